"""Runs detectors: on the latest step, or on every step of a run. What is missing is said here, once for all of them."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any, NamedTuple

from rlhflab.analysis.detectors.base import Read, Unclear, detector
from rlhflab.analysis.evidence import Evidence, Finding, Sample

AT_ONCE = frozenset({"length_drift", "probe_battery", "chosen_displacement"})
"""Detectors whose first alarm is confirmed: they add up over steps by themselves, or do not change with them."""


class Need(NamedTuple):
    """What a detector may need."""

    stream: str
    """Of the evidence: what it is recorded in."""
    there: Callable[[Evidence], bool]
    how: str
    """How to come by it."""


def _any(read: Callable[[Sample], object]) -> Callable[[Evidence], bool]:
    return lambda evidence: any(read(sample) is not None for sample in evidence.rollouts)


NUMBERS: Mapping[str, Read] = {
    "rewards": lambda s: s.reward, "twin rewards": lambda s: s.twin, "log-probs": lambda s: s.logprob,
    "reference log-probs": lambda s: s.reference_logprob, "entropies": lambda s: s.entropy}
"""Needs that are one number a rollout: looked through for NaN, and rewards for constants."""

NEEDS: Mapping[str, Need] = {
    "rollouts": Need("rollouts", lambda e: bool(e.rollouts), "record the sampled answers of each step"),
    "stops": Need("rollouts", _any(lambda s: s.stopped), "record whether each answer ended by itself"),
    "tokens": Need("rollouts", _any(lambda s: s.tokens), "record the tokens of each answer"),
    "members": Need("rollouts", _any(lambda s: s.members or None), "reward with an ensemble of two heads or more"),
    "terms": Need("rollouts", _any(lambda s: s.terms or None), "record what each term added to the reward"),
    "canary": Need("canary", lambda e: any(s.measures for s in e.canary),
                   "answer the same fixed prompts at some steps and measure the answers by a check"),
    "canary rewards": Need("canary", lambda e: any(s.reward is not None and s.measures
                                                   for s in [*e.canary, *e.rollouts]),
                           "score the canary's answers with the reward too"),
    "hidden states": Need("hidden", lambda e: bool(e.hidden),
                          "train with `detect:` on a reward role, whose states are then kept as it scores the answers"),
    "probes": Need("probes", lambda e: bool(e.probes), "give a report of `rlhflab report reward ROLE` as --probes"),
    "pair log-probs": Need("pairs", lambda e: bool(e.pairs), "train on preference pairs against a reference"),
    "rewards": Need("rollouts", _any(NUMBERS["rewards"]), "record the reward of each answer"),
    "twin rewards": Need("rollouts", _any(NUMBERS["twin rewards"]),
                         "learn a second reward model from other pairs and score the answers with it too"),
    "log-probs": Need("rollouts", _any(NUMBERS["log-probs"]), "record each answer's log-prob under the policy"),
    "reference log-probs": Need("rollouts", _any(NUMBERS["reference log-probs"]),
                                "record each answer's log-prob under the reference"),
    "entropies": Need("rollouts", _any(NUMBERS["entropies"]), "record the entropy of the token distributions"),
}
MEASURED_BY: Mapping[str, str] = {"sycophancy_flip": "let a run ask questions twice (`detect.pressed`)"}
"""How to come by a measure of the canary that no scenario's check makes."""
STREAMS: Mapping[str, Callable[[Evidence], Iterable[int]]] = {
    "canary": lambda e: (s.step for s in e.canary), "pairs": lambda e: (int(row["step"]) for row in e.pairs),
    "hidden": lambda e: e.hidden, "rollouts": lambda e: (s.step for s in e.rollouts)}
"""The steps of each part of the evidence, those recorded at the fewest steps first."""


def gold_free(needs: Iterable[str]) -> bool:
    """Whether a detector with these needs knows no right answer."""
    return not any(need.startswith("canary") for need in needs)


def examine(evidence: Evidence, names: Sequence[str] | None = None,
            options: Mapping[str, Mapping[str, Any]] | None = None) -> list[Finding]:
    """What each detector says of the latest step, all of them where no `names` are given.

    `options` by name. What is missing gives `not run`, too little of it `unclear`. ConfigError for an unknown name or a
    wrong option.
    """
    return [_look(name, look, evidence) for name, look in _bound(names, options).items()]


@dataclass(frozen=True, slots=True, kw_only=True)
class Track:
    """What one detector said over a run."""

    name: str
    gold_free: bool
    findings: Sequence[Finding]
    """At each step examined, in order."""
    first_alarm: int | None
    """Step of the first of the alarms that were confirmed."""
    fired_at: int | None
    """Step at which they were: when a run that watches itself knows."""

    @property
    def latest(self) -> Finding:
        """Of the last step."""
        return self.findings[-1]


def history(evidence: Evidence, names: Sequence[str] | None = None, *, every: int = 1, confirm: int = 2,
            options: Mapping[str, Mapping[str, Any]] | None = None) -> list[Track]:
    """What each detector says at every `every`-th step that brings it something new, and at the last one.

    An alarm counts once `confirm` looks in a row had one; detectors of `AT_ONCE` need one.
    """
    looks = _bound(names, options)
    needs = {name: detector.entry(name, where="detectors").needs for name in looks}
    due = {name: [step for place, step in enumerate(steps) if place % every == 0 or step == steps[-1]]
           for name in looks for steps in [_steps(evidence, needs[name])]}
    findings: dict[str, list[Finding]] = {name: [] if due[name] else [_look(name, looks[name], evidence)]
                                          for name in looks}
    for step in sorted({step for steps in due.values() for step in steps}):
        known = _until(evidence, step)
        for name in looks:
            if step in due[name]:
                findings[name].append(_look(name, looks[name], known))
    tracks = []
    for name, found in findings.items():
        first, fired = confirmed(found, 1 if name in AT_ONCE else confirm)
        tracks.append(Track(name=name, gold_free=gold_free(needs[name]), findings=found, first_alarm=first,
                            fired_at=fired))
    return tracks


def confirmed(findings: Sequence[Finding], confirm: int = 2) -> tuple[int | None, int | None]:
    """(step of the first, step of the last) of the first `confirm` alarms in a row; None where there were none."""
    row: list[int | None] = []
    for finding in findings:
        row = [*row, finding.step] if finding.verdict == "alarm" else []
        if len(row) == confirm:
            return row[0], row[-1]
    return None, None


def as_row(finding: Finding) -> dict[str, Any]:
    """A finding as JSON can hold it: an endless bound is None."""
    row = asdict(finding)
    if finding.effect is not None:
        row["effect"] = {key: value if math.isfinite(value) else None for key, value in
                         finding.effect._asdict().items()}
    return {**row, "examples": list(finding.examples)}


def _bound(names: Sequence[str] | None, options: Mapping[str, Mapping[str, Any]] | None) -> dict[str, Any]:
    """Each detector asked for, with its options."""
    given = options or {}
    for name in given:
        detector.entry(name, where="detectors")
    return {name: detector.bind(name, given.get(name, {}), where=f"detectors.{name}")
            for name in (detector.names() if names is None else names)}


def _look(name: str, look: "partial[Finding]", evidence: Evidence) -> Finding:
    """One detector's finding."""
    needs = detector.entry(name, where="detectors").needs
    steps = _steps(evidence, needs)
    step = steps[-1] if steps else None
    missing = {need: evidence.how.get(need) or NEEDS[need].how for need in needs if not NEEDS[need].there(evidence)}
    if not missing and not gold_free(needs):
        missing = _missing_measure(evidence, look.keywords.get("measure"))
    if missing:
        return Finding(name=name, verdict="not run", says=f"not run: needs {', '.join(missing)}", step=step,
                       next=f"To run it, {'; '.join(missing.values())}.")
    try:
        _refuse_no_numbers(evidence, needs)
        found = replace(look(evidence), step=step)
    except Unclear as unclear:
        return Finding(name=name, verdict="unclear", says=f"unclear: {unclear}", step=step,
                       next="Look again with more evidence.")
    return replace(found, says=found.says + _left_out(evidence, needs))


def _missing_measure(evidence: Evidence, measure: str | None) -> dict[str, str]:
    """What a canary lacks for a detector that reads one `measure`."""
    known = {name for sample in [*evidence.canary, *evidence.rollouts]
             for name, value in sample.measures.items() if value is not None}
    if measure is None or measure in known:
        return {}
    how = MEASURED_BY.get(measure, "let the canary's check measure it")
    return {f"canary measure '{measure}'": f"{how}, or name another measure of it, of "
                                           f"{', '.join(sorted(known)) or 'none'}, as the option `measure`"}


def _refuse_no_numbers(evidence: Evidence, needs: Iterable[str]) -> None:
    """Unclear where what is needed is NaN throughout, or where rewards are all equal."""
    for need in needs:
        if need in NUMBERS:
            values = [value for sample in evidence.rollouts if (value := NUMBERS[need](sample)) is not None]
            finite = {value for value in values if math.isfinite(value)}
            if not finite:
                raise Unclear(f"all {len(values)} {need} are NaN or infinite")
            if len(finite) == 1 and len(values) > 1 and need in ("rewards", "twin rewards"):
                raise Unclear(f"all {len(values)} {need} are {finite.pop():g}, so nothing can be read from them")


def _left_out(evidence: Evidence, needs: Iterable[str]) -> str:
    """In words: how many rollouts have no usable reward, where one is needed."""
    if "rewards" not in needs:
        return ""
    unscored = sum(sample.reward is None or not math.isfinite(sample.reward) for sample in evidence.rollouts)
    return f" {unscored} of {len(evidence.rollouts)} answers have no reward and are left out." if unscored else ""


def _steps(evidence: Evidence, needs: Iterable[str]) -> list[int]:
    """The steps at which a detector sees something new: those of what it needs that is recorded most rarely."""
    streams = {NEEDS[need].stream for need in needs} | {"rollouts"}
    for name, steps in STREAMS.items():
        if name in streams and (found := sorted(set(steps(evidence)))):
            return found[-1:] if "probes" in streams else found
    return []


def _until(evidence: Evidence, step: int) -> Evidence:
    """What was known at `step`."""
    return replace(
        evidence, rollouts=[sample for sample in evidence.rollouts if sample.step <= step],
        canary=[sample for sample in evidence.canary if sample.step <= step],
        hidden={at: states for at, states in evidence.hidden.items() if at <= step},
        pairs=[row for row in evidence.pairs if row["step"] <= step])
