"""What a report is made of, read from a demo folder or a single training run. No figures and no HTML here.

Every input may be missing: an unfinished demo is worth reading too. What is there must be well formed, except for
the last line of a JSONL file, which a running stage may still be writing.
"""

import itertools
import json
import math
import random
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from rlhflab.core.stats import Estimate, paired_change
from rlhflab.data.formats import in_lines
from rlhflab.errors import DataError, RunError

POLICIES = ("base", "sft", "dpo", "ppo")
STAGES = ("sft", "reward", "dpo", "ppo")
START_OF = {"sft": "base", "dpo": "sft", "ppo": "sft"}
"""What each policy was trained from: the one its change is measured against."""
MODES = ("greedy", "sampled")
CARDS = ("data", "annotators", "model")
NOT_CURVES = {"step", "seconds"}


class Turn(NamedTuple):
    """One message of a prompt, as text that nobody vouches for."""

    role: str
    content: str


class Point(NamedTuple):
    """A metric at a step."""

    step: float
    value: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Measure:
    """A number an answer is judged by."""

    name: str
    says: str = ""
    better: str | None = None
    """`higher`, `lower`, or None where neither is better (the length, say)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """One answer to one prompt with what the gold rules made of it."""

    policy: str
    """Who answered; in a single run, the step at which the policy answered."""
    mode: str
    prompt_id: str
    prompt: tuple[Turn, ...]
    text: str
    finish: str
    measures: Mapping[str, float]
    """Only the measures that apply to the prompt; a missing one is not 0."""
    reason: str

    @property
    def words(self) -> float:
        """Length by the gold's own count where it has one, else by white space."""
        return self.measures.get("words", len(self.text.split()))


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """One training run: its curves and the settings it ran with."""

    name: str
    curves: Mapping[str, Sequence[Point]]
    config: str = ""
    facts: Mapping[str, str] = field(default_factory=dict)
    """Its summary and record, one line a value."""
    alarms: Mapping[str, float] = field(default_factory=dict)
    """The step at which each detector fired that did."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """How a measure moved on the same prompts from the policy a training run started at."""

    policy: str
    start: str
    measure: Measure
    change: Estimate

    @property
    def direction(self) -> str:
        """`better`, `worse`, `moved` (no better side), or `unclear` where the interval holds 0."""
        if not (self.change.low > 0 or self.change.high < 0):
            return "unclear"
        if self.measure.better is None:
            return "moved"
        return "better" if (self.change.mean > 0) == (self.measure.better == "higher") else "worse"


@dataclass(frozen=True, slots=True, kw_only=True)
class ReportData:
    """Everything a report may show."""

    name: str
    summary: Mapping[str, Any]
    measures: Sequence[Measure]
    answers: Sequence[Answer]
    stages: Sequence[Stage]
    cards: Mapping[str, str]
    single_run: bool
    hacking: Mapping[str, Any] = field(default_factory=dict)
    """The reward-hacking experiment: its summary, with the story told beside it. Empty without one."""
    release: Mapping[str, Any] = field(default_factory=dict)
    """What became of the release: verdicts, ledger and the proof of the way back. Empty without one."""

    @property
    def seed(self) -> int:
        """Picks the prompts shown, so that nobody chooses them by hand."""
        return int(number(self.summary.get("seed")) or 0)

    @property
    def policies(self) -> list[str]:
        """Policies that were evaluated: the known ones in order of training, then any others."""
        found = list(section(self.summary, "policies")) + [answer.policy for answer in self.answers]
        return [name for name in dict.fromkeys((*POLICIES, *found)) if name in found]

    @property
    def missing_stages(self) -> list[str]:
        """Stages a finished demo has and this one has not."""
        done = {stage.name for stage in self.stages} | {str(row.get("name")) for row in rows(self.summary, "stages")}
        return [] if self.single_run or self.is_experiment else [name for name in STAGES if name not in done]

    @property
    def unevaluated(self) -> list[str]:
        """Policies of a demo that have no evaluation yet."""
        return [] if self.single_run or self.is_experiment else [
            name for name in POLICIES if name not in self.policies]

    @property
    def is_experiment(self) -> bool:
        """Whether it is the reward-hacking experiment alone, not a demo that has it as a part."""
        return bool(self.hacking) and not section(self.summary, "policies")

    def estimate(self, policy: str, mode: str, measure: str) -> Estimate | None:
        """A policy's mean of a measure with its interval, or None where it was not measured."""
        return estimate(section(self.summary, "policies", policy, mode).get(measure))


DEFAULT_MEASURES = (
    Measure(name="gold", says="Quality by the gold rules, 0 to 1", better="higher"),
    Measure(name="right", says="Answerable prompts answered right", better="higher"),
    Measure(name="abstention_recall", says="Unanswerable prompts where it says it does not know", better="higher"),
    Measure(name="over_refusal", says="Answerable prompts where it says it does not know", better="lower"),
    Measure(name="confident_wrong", says="Answers that are wrong in a confident tone", better="lower"),
    Measure(name="format", says="Prompts with a format demand that meet it", better="higher"),
    Measure(name="words", says="Length of an answer, words"),
)


def load(folder: Path) -> ReportData:
    """Read a demo folder or a single run folder; RunError where it is neither."""
    single_run = (folder / "metrics.jsonl").exists()
    summary = read_json(folder / "summary.json", {})
    if not isinstance(summary, dict):
        raise DataError(f"{folder / 'summary.json'}: expected keys and values, found {type(summary).__name__}")
    homes = [folder] if single_run else [folder / name for name in STAGES]
    stages = [stage for home in homes if (stage := read_stage(home, summary)) is not None]
    answers = read_samples(folder / "rollouts.jsonl") if single_run else read_answers(folder / "evaluation")
    if not (summary or stages or answers):
        raise RunError(f"{folder}: holds no summary.json, metrics.jsonl or evaluation/; expected a demo or a run")
    return ReportData(name=folder.resolve().name, summary=summary, measures=read_measures(folder, summary),
                      answers=answers, stages=stages, cards=read_cards(folder / "cards"), single_run=single_run,
                      hacking=read_hacking(folder, summary), release=read_release(folder))


def read_json(path: Path, default: Any) -> Any:
    """The file's content, or `default` where there is no such file."""
    if not path.exists():
        return default
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: is not JSON: {error}") from error


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The objects of a JSONL file, none where it is missing. A half-written last line is left out."""
    lines = path.read_text().split("\n") if path.exists() else []
    found = []
    for position, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            if position == len(lines):  # no newline after it: the writer has not finished
                break
            raise DataError(f"{path}:{position}: is not JSON: {error}") from error
        if not isinstance(row, dict):
            raise DataError(f"{path}:{position}: expected an object, found {type(row).__name__}")
        found.append(row)
    return found


def read_hacking(folder: Path, summary: Mapping[str, Any]) -> Mapping[str, Any]:
    """The experiment of a demo, or of a folder that is one, once it was judged."""
    found = section(summary, "hacking")
    story = read_json(folder / "hacking" / "story.json", None) or read_json(folder / "story.json", {})
    return {**found, **story} if found else {}


def read_release(folder: Path) -> Mapping[str, Any]:
    """The release of a demo, once it was done."""
    found = read_json(folder / "release" / "story.json", {})
    return found if isinstance(found, dict) else {}


def read_stage(home: Path, summary: Mapping[str, Any]) -> Stage | None:
    """Curves, settings and facts of one training run, None where it left no curve. A demo's summary has PPO's too."""
    metrics = read_rows(home / "metrics.jsonl") or (rows(summary, "ppo", "steps") if home.name == "ppo" else [])
    if not metrics:
        return None
    records = [found if isinstance(found, dict) else {}
               for found in (read_json(home / name, {}) for name in ("record.json", "summary.json"))]
    facts = {key: value for found in records for key, value in in_lines(found).items()}
    alarms = {name: step for name, value in section(records[1], "fired").items()
              if (step := number(value)) is not None}
    config = (home / "config.yaml").read_text() if (home / "config.yaml").exists() else ""
    return Stage(name=home.resolve().name, curves=curves(metrics), config=config, facts=facts,
                 alarms=alarms)


def curves(metrics: Iterable[Mapping[str, Any]]) -> dict[str, list[Point]]:
    """Each numeric metric over the steps that have it. A missing value leaves a gap in steps, never a 0."""
    found: dict[str, list[Point]] = defaultdict(list)
    for position, row in enumerate(metrics, start=1):
        step = number(row.get("step"))
        for name, value in row.items():
            if name not in NOT_CURVES and (y := number(value)) is not None:
                found[name].append(Point(position if step is None else step, y))
    return dict(found)


def ppo_curves(data: ReportData) -> Mapping[str, Sequence[Point]]:
    """PPO's proxy, gold and KL by step: the demo's summary, else the run's own metrics."""
    steps = rows(data.summary, "ppo", "steps")
    own = [stage.curves for stage in data.stages if data.single_run or stage.name == "ppo"]
    return curves(steps) if steps else (own[0] if own else {})


def ppo_alarms(data: ReportData) -> Mapping[str, float]:
    """The detectors that fired in the run of `ppo_curves`, with their steps."""
    return next((stage.alarms for stage in data.stages if data.single_run or stage.name == "ppo"), {})


def read_answers(folder: Path) -> list[Answer]:
    """Every evaluated answer, in file order."""
    return [make_answer(row, policy=path.stem) for path in sorted(folder.glob("*.jsonl")) for row in read_rows(path)]


def read_samples(path: Path) -> list[Answer]:
    """A single run's samples; the step takes the place of the policy, the score that of gold."""
    made = []
    for row in read_rows(path):
        told = {"measures": {"score": row.get("reward"), **section(row, "measures")}, "mode": "sampled",
                "policy": f"step {row.get('step')}", "finish": "length" if row.get("stopped") is False else "stop"}
        made.append(make_answer({**row, **told}))
    return made


def make_answer(row: Mapping[str, Any], *, policy: str = "") -> Answer:
    """An answer from a row that may lack any key."""
    measures = {name: y for name, value in section(row, "measures").items() if (y := number(value)) is not None}
    return Answer(policy=str(row.get("policy") or policy), mode=str(row.get("mode") or "greedy"),
                  prompt_id=str(row.get("prompt_id")), prompt=turns(row.get("prompt")),
                  text=str(row.get("answer") or ""), finish=str(row.get("finish") or ""), measures=measures,
                  reason=str(row.get("reason") or ""))


def turns(prompt: Any) -> tuple[Turn, ...]:
    """A prompt as turns, from a list of messages or from plain text."""
    if isinstance(prompt, list):
        return tuple(Turn(str(message.get("role", "")), str(message.get("content", "")))
                     for message in prompt if isinstance(message, dict))
    return (Turn("user", str(prompt)),) if prompt else ()


def read_measures(folder: Path, summary: Mapping[str, Any]) -> list[Measure]:
    """The measures with what they say, in the order of `measures.json`; any the file leaves out come last."""
    declared = read_json(folder / "measures.json", None)
    known = list(DEFAULT_MEASURES) if not isinstance(declared, list) else [
        Measure(name=str(row["name"]), says=str(row.get("says") or ""), better=row.get("better"))
        for row in declared if isinstance(row, dict) and "name" in row]
    names = {name for policy in section(summary, "policies") for mode in MODES
             for name in section(summary, "policies", policy, mode)}
    defaults = {measure.name: measure for measure in DEFAULT_MEASURES}
    extra = sorted(names - {measure.name for measure in known})
    return known + [defaults.get(name, Measure(name=name)) for name in extra]


def read_cards(folder: Path) -> dict[str, str]:
    """Markdown of the cards that are there."""
    return {name: (folder / f"{name}.md").read_text() for name in CARDS if (folder / f"{name}.md").exists()}


def paired_changes(data: ReportData) -> list[Change]:
    """Change of every measure from each policy's start, on the prompts both answered (sampled where there is any).

    A prompt's samples are averaged first, so n counts prompts and the interval needs no independence within one.
    Where the demo states its own change of gold, that one stands, so that a page never shows two.
    """
    means = prompt_means(data.answers)
    found = []
    for measure, (policy, start) in itertools.product(data.measures, START_OF.items()):
        mode = "sampled" if (policy, "sampled") in means and (start, "sampled") in means else "greedy"
        after, before = means.get((policy, mode), {}), means.get((start, mode), {})
        shared = [key for key in after if key in before and key[0] == measure.name]
        stated = section(data.summary, "policies", policy).get("versus_sft") if measure.name == "gold" else None
        change = estimate(stated)
        if change is None and len(shared) > 1:  # one prompt alone has no interval
            change = paired_change([after[key] for key in shared], [before[key] for key in shared])
        if change is not None:
            found.append(Change(policy=policy, start=start, measure=measure, change=change))
    return found


def prompt_means(answers: Iterable[Answer]) -> dict[tuple[str, str], dict[tuple[str, str], float]]:
    """By (policy, mode), then by (measure, prompt): the mean over the prompt's answers that have the measure."""
    values: dict[tuple[str, str], dict[tuple[str, str], list[float]]] = defaultdict(lambda: defaultdict(list))
    for answer in answers:
        for name, value in answer.measures.items():
            values[answer.policy, answer.mode][name, answer.prompt_id].append(value)
    return {who: {key: sum(found) / len(found) for key, found in by_key.items()} for who, by_key in values.items()}


def gold_change(policy: str, changes: Sequence[Change]) -> Estimate | None:
    """A policy's paired change of gold."""
    return next((found.change for found in changes if found.policy == policy and found.measure.name == "gold"), None)


def side_by_side(data: ReportData, *, prompts: int = 8) -> list[list[Answer]]:
    """Answers of every policy to prompts drawn by the run's seed: one list a prompt, in order of training."""
    answers = first_and_last(data.answers) if data.single_run else data.answers
    mode = next((mode for mode in MODES if any(answer.mode == mode for answer in answers)), None)
    order = {name: place for place, name in enumerate(data.policies)}
    by_prompt: dict[str, dict[str, Answer]] = defaultdict(dict)
    for answer in answers:
        if answer.mode == mode:
            by_prompt[answer.prompt_id].setdefault(answer.policy, answer)
    most = max((len(found) for found in by_prompt.values()), default=0)
    shared = sorted(key for key, found in by_prompt.items() if len(found) == most)
    drawn = random.Random(data.seed).sample(shared, min(prompts, len(shared)))
    return [sorted(by_prompt[key].values(), key=lambda answer: order[answer.policy]) for key in drawn]


def first_and_last(answers: Sequence[Answer]) -> list[Answer]:
    """Of a run's samples, those of its first and last sampled step; of the last alone if no prompt is in both."""
    if not answers:
        return []
    steps = list(dict.fromkeys(answer.policy for answer in answers))
    first, last = ([answer for answer in answers if answer.policy == step] for step in (steps[:1] + steps[-1:]))
    shared = {answer.prompt_id for answer in first} & {answer.prompt_id for answer in last}
    return first + last if shared and len(steps) > 1 else last


def section(content: Mapping[str, Any], *keys: str) -> Mapping[str, Any]:
    """The mapping below `keys`, empty where any of them is missing or null."""
    for key in keys:
        below = content.get(key)
        content = below if isinstance(below, Mapping) else {}
    return content


def rows(content: Mapping[str, Any], *keys: str) -> list[Mapping[str, Any]]:
    """The list of objects below `keys`, empty where it is missing."""
    found = section(content, *keys[:-1]).get(keys[-1])
    return [row for row in found if isinstance(row, Mapping)] if isinstance(found, list) else []


def number(value: Any) -> float | None:
    """A finite number, or None: JSON's NaN, a bool and text are no measurements."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        found = float(value)
    except OverflowError:  # JSON's whole numbers have no largest
        return None
    return found if math.isfinite(found) else None


def estimate(value: Any) -> Estimate | None:
    """A mean with interval and count; None unless it has a mean. Bounds that are no numbers are unknown."""
    if not isinstance(value, Mapping) or (mean := number(value.get("mean"))) is None:
        return None
    low, high = number(value.get("low")), number(value.get("high"))
    return Estimate(mean, -math.inf if low is None else low, math.inf if high is None else high,
                    int(number(value.get("n")) or 0))
