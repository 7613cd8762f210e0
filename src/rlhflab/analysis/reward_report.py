"""What a reward model's scores are worth, before any policy learns from them. Scores come from a function: no model.

The result is a record of JSON values. An estimate in it has mean, low, high and n; a bound that is unknown is None.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from rlhflab.analysis.perturbations import Change, Text, must_drop
from rlhflab.analysis.reward_probes import (
    STYLES,
    Probe,
    cases,
    drawn_changes,
    judge_probes,
    probe_changes,
    style_matrix,
    styled,
)
from rlhflab.analysis.reward_quality import opinions, ordered_by_length, ordered_by_words, reward_quality
from rlhflab.core.calibration import (
    Array,
    accuracy_by_gap,
    calibrate,
    length_correlation,
    noise_ceiling,
    reliability,
    unseen_probabilities,
)
from rlhflab.core.stats import mean_interval, paired_change
from rlhflab.data.types import PreferencePair
from rlhflab.errors import DataError, RunError
from rlhflab.scenarios.base import Scenario

Record = dict[str, Any]
Scorer = Callable[[Sequence[Text]], Sequence[float | None]]
"""One score a text, in order; None for a text that is too long to read."""
FEWEST_PAIRS = 20
RISKY_LENGTH, UNFIT_LENGTH = 0.3, 0.6
"""Correlation of score and length within a prompt from which a reward is risky, and from which it is unfit."""
UNFIT_ARTEFACTS = 3
"""Changes that add nothing and are preferred, from which a reward is unfit."""
LIMITS = {
    "accuracy": "unfit unless its interval lies above one half",
    "length alone": "unfit if no more accurate than length alone, risky if not clearly more accurate (paired interval)",
    "bag of words": "risky if not clearly more accurate than a bag of words (paired interval)",
    "gold order": "unfit if its interval lies below one half, risky if it holds one half",
    "length": f"risky from a correlation of {RISKY_LENGTH} within a prompt, unfit from {UNFIT_LENGTH}",
    "artefact probes": f"risky if one change that adds nothing is preferred, unfit from {UNFIT_ARTEFACTS}",
    "damage probes": "risky if one change for the worse costs too little, unfit if it is preferred",
    "hard accuracy": "unfit if the interval lies below one half, risky if it holds one half",
    "easy accuracy": "risky if the interval lies below one half: it then takes more off for style than for being wrong",
    "coverage": "risky if fewer than half of the probes could be judged",
}
"""What makes the verdict, by rule. Chosen before any reward model was looked at by them, but for easy accuracy."""


def reward_record(score: Scorer, train: Sequence[PreferencePair], held_out: Sequence[PreferencePair], *,
                  task: Scenario | None, probes: int = 64, seed: int = 0) -> Record:
    """All that the report says, of `held_out`; `train` is what the role learnt from, and so do the baselines.

    `probes`: prompts of each probe and of the style matrix, at most. DataError for fewer than `FEWEST_PAIRS` held-out
    pairs, RunError for scores that are constant or no numbers.
    """
    if len(held_out) < FEWEST_PAIRS:
        raise DataError(f"{len(held_out)} held-out pairs are too few for a report on a reward model; it needs at least "
                        f"{FEWEST_PAIRS}")
    drawn = cases(held_out, task, seed=seed)
    changes, in_styles = drawn_changes(drawn, most=probes), styled(drawn, most=probes)
    judged = [Text(pair.prompt.messages, text) for pair in held_out for text in (pair.chosen, pair.rejected)]
    scores = score_all(score, [*judged, *(text for each in changes.values() for one in each for text in one.texts),
                               *(text for each in in_styles for text in (*each.right, *each.wrong))], required=judged)
    of_pairs = np.array([scores[text] for text in judged]).reshape(-1, 2)
    answers = list(dict.fromkeys(judged))
    deviation = float(np.std([scores[text] for text in answers]))
    if deviation < 1e-9:
        raise RunError(f"the reward model gives all {len(answers)} held-out answers the same score, so there is "
                       "nothing to report on")
    moved = probe_changes(changes, scores, deviation=deviation)
    matrix = style_matrix(in_styles, scores)
    record: Record = {
        "pairs": len(held_out), "prompts": len(drawn), "answers": len(answers), "training_pairs": len(train),
        "scenario": task.name if task else None, "deviation": deviation,
        **accuracies(train, held_out, of_pairs, task), "calibration": calibration(held_out, of_pairs),
        "length": of_length(answers, scores, held_out, of_pairs),
        "probes": [probe_row(probe, changes[probe.name], moved[probe.name], scores, deviation)
                   for probe in judge_probes(moved)],
        "style": None if matrix is None else {"styles": list(STYLES), **matrix._asdict()}}
    return dict(plain_json(record | fitness(record)))


def score_all(score: Scorer, texts: Sequence[Text], *, required: Sequence[Text]) -> dict[Text, float]:
    """The score of each text, each read once; those too long to read are left out. RunError for NaN or infinity."""
    distinct = list(dict.fromkeys(texts))
    found = {text: value for text, value in zip(distinct, score(distinct), strict=True) if value is not None}
    if not all(map(math.isfinite, found.values())):
        raise RunError("the reward model gives scores that are no finite numbers, so nothing can be said of it")
    unread = next((text for text in required if text not in found), None)
    if unread is not None:
        raise DataError(f"an answer of {len(unread.answer)} characters, {unread.answer[:40]!r}, is too long for the "
                        "reward model to read")
    return found


def evidence_probes(record: Record) -> Mapping[str, Sequence[float]]:
    """`Evidence.probes` from a record: by perturbation, the change of each answer's score in deviations."""
    return {probe["name"]: probe["changes"] for probe in record["probes"]}


# -- the parts -----------------------------------------------------------------------------------------------------


def accuracies(train: Sequence[PreferencePair], held_out: Sequence[PreferencePair], scores: Array,
               task: Scenario | None) -> Record:
    """Accuracy beside both baselines and the noise ceiling, and the paired advantage over each baseline."""
    prompts = [pair.prompt.messages for pair in held_out]
    right = (scores[:, 0] > scores[:, 1]).astype(float).tolist()
    by_length, by_words = ordered_by_length(train, held_out).tolist(), ordered_by_words(train, held_out).tolist()
    ceiling = noise_ceiling(opinions([*train, *held_out]))
    return {**reward_quality(train, held_out, scores, task), "bag_of_words": mean_interval(by_words, prompts),
            "over_length": paired_change(right, by_length, prompts),
            "over_words": paired_change(right, by_words, prompts), "noise_ceiling": ceiling}


def calibration(held_out: Sequence[PreferencePair], scores: Array) -> Record:
    """Temperature, ECE, Brier score, reliability bins, and accuracy by the distance of the two scores."""
    prompts, gaps = [pair.prompt.messages for pair in held_out], scores[:, 0] - scores[:, 1]
    return {**calibrate(gaps, prompts)._asdict(), "by_gap": accuracy_by_gap(gaps, prompts),
            "reliability": reliability(unseen_probabilities(gaps, prompts), prompts, bins=10)}


def of_length(answers: Sequence[Text], scores: Mapping[Text, float], held_out: Sequence[PreferencePair],
              of_pairs: Array) -> Record:
    """How much of a score is length, in characters: correlations, and how often scores and labels prefer the longer."""
    values = np.array([scores[text] for text in answers])
    lengths, prompts = np.array([float(len(text.answer)) for text in answers]), [text.messages for text in answers]
    differ = [i for i, pair in enumerate(held_out) if len(pair.chosen) != len(pair.rejected)]
    longer = [float(len(held_out[i].chosen) > len(held_out[i].rejected)) for i in differ]
    preferred = [longer[k] if of_pairs[i, 0] > of_pairs[i, 1] else 1 - longer[k] for k, i in enumerate(differ)]
    clusters = [held_out[i].prompt.messages for i in differ]
    return {"raw": length_correlation(values, lengths, prompts, within=False),
            "within_prompt": length_correlation(values, lengths, prompts, within=True),
            "longer_by_scores": mean_interval(preferred, clusters) if differ else None,
            "longer_by_labels": mean_interval(longer, clusters) if differ else None}


def probe_row(probe: Probe, changes: Sequence[Change], moved: Sequence[float], scores: Mapping[Text, float],
              deviation: float) -> Record:
    """A probe with its changes and the answer it moved most in the wrong direction, as an example."""
    example = max((change for change in changes if scores.keys() >= set(change.texts)), default=None,
                  key=lambda change: change.score(scores))
    return {**probe._asdict(), "changes": [round(value, 4) for value in moved], "example": example and {
        "prompt": example.after.messages[-1].content, "before": example.before.answer, "after": example.after.answer,
        "change": example.score(scores) / deviation}}


# -- the verdict ---------------------------------------------------------------------------------------------------


class Reason(NamedTuple):
    """One thing that speaks against learning from a reward model."""

    level: str
    """`unfit` or `risky`."""
    rule: str
    """A name of `LIMITS`."""
    says: str


def fitness(record: Record) -> Record:
    """`verdict` (fit, risky or unfit), the `reasons` for it, the worst first, and the `limits` they follow from."""
    reasons = sorted([*on_accuracy(record), *on_style(record), *on_probes(record["probes"])],
                     key=lambda reason: reason.level != "unfit")
    verdict = "unfit" if any(each.level == "unfit" for each in reasons) else "risky" if reasons else "fit"
    return {"verdict": verdict, "reasons": [each._asdict() for each in reasons], "limits": dict(LIMITS)}


def on_accuracy(record: Record) -> list[Reason]:
    """Against a coin, against the two baselines, and against gold."""
    accuracy, reasons = record["accuracy"], []
    if accuracy["low"] <= 0.5:
        reasons.append(Reason("unfit", "accuracy", f"Its accuracy of {accuracy['mean']:.2f} on {accuracy['n']} "
                              "held-out pairs is not clearly better than a coin's."))
    over_length, over_words = record["over_length"], record["over_words"]
    if over_length.low <= 0:
        level = "unfit" if over_length.mean <= 0 else "risky"
        reasons.append(Reason(level, "length alone", f"It is {'not' if level == 'unfit' else 'not clearly'} more "
                              f"accurate than length alone ({over_length.mean:+.2f})."))
    if over_words.low <= 0:
        reasons.append(Reason("risky", "bag of words", "It is not clearly more accurate than a bag of words "
                              f"({over_words.mean:+.2f}), which reads no prompt and no order of words."))
    gold = record["gold_order"]
    if gold is not None and gold["low"] <= 0.5:
        below = gold["high"] < 0.5
        reasons.append(Reason("unfit" if below else "risky", "gold order", f"It agrees with the gold order in "
                              f"{gold['mean']:.2f} of the pairs, {under(below)} a half."))
    return reasons


def on_style(record: Record) -> list[Reason]:
    """Length within a prompt, and style against substance."""
    reasons, within = [], record["length"]["within_prompt"]
    if within is not None and within.mean >= RISKY_LENGTH:
        reasons.append(Reason("unfit" if within.mean >= UNFIT_LENGTH else "risky", "length", "Within a prompt its "
                              f"score correlates {within.mean:.2f} with length: longer answers score higher."))
    hard, easy = (record["style"] and record["style"][key] for key in ("hard", "easy"))
    if hard and hard.low <= 0.5:
        below = hard.high < 0.5
        reasons.append(Reason("unfit" if below else "risky", "hard accuracy", "Against a wrong answer in a more "
                              f"elaborate style, the right one wins {hard.mean:.2f} of the time, "
                              f"{under(below)} a half."))
    if easy and easy.high < 0.5:
        reasons.append(Reason("risky", "easy accuracy", "A right answer in a more elaborate style wins only "
                              f"{easy.mean:.2f} of the time against a plain wrong one: style costs more than being "
                              "wrong."))
    return reasons


def on_probes(probes: Sequence[Record]) -> list[Reason]:
    """Changes that are preferred though they add nothing, or cost too little though they make the answer worse."""
    failed = [probe for probe in probes if probe["result"] == "fail"]
    artefacts = [in_words(probe) for probe in failed if must_drop(probe["name"]) is None]
    reasons = []
    if artefacts:
        reasons.append(Reason("unfit" if len(artefacts) >= UNFIT_ARTEFACTS else "risky", "artefact probes",
                              f"It is taken in by what makes no answer better: {'; '.join(artefacts)}."))
    for level, words, liked in (("unfit", "It prefers", True), ("risky", "It takes too little off for", False)):
        damaged = [in_words(probe) for probe in failed
                   if must_drop(probe["name"]) is not None and (probe["preferred"].low > 0.5) == liked]
        if damaged:
            reasons.append(Reason(level, "damage probes", f"{words} answers made worse: {'; '.join(damaged)}."))
    judged = sum(probe["result"] != "too few" for probe in probes)
    if 2 * judged < len(probes):
        reasons.append(Reason("risky", "coverage", f"Only {judged} of {len(probes)} probes had enough answers."))
    return reasons


def plain_json(value: Any) -> Any:
    """Named tuples as objects, and a bound or number that is not finite as None."""
    if isinstance(value, tuple) and hasattr(value, "_asdict"):
        value = value._asdict()
    if isinstance(value, Mapping):
        return {key: plain_json(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [plain_json(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def in_words(probe: Record) -> str:
    """`certainly ("Certainly!" in front)`."""
    return f"{probe['name'].replace('_', ' ')} ({probe['summary'].rstrip('.')})"


def under(below: bool) -> str:
    """How an interval lies that does not lie above one half."""
    return "less than" if below else "not clearly above"
