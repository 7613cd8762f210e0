"""Whether a dial moves its own axis, always the same way, and leaves the others within their margins. No model here.

What is asked is written down in recipes/dials.yaml before a run; intervals are paired bootstraps over prompts, 95 %.
"""

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

from rlhflab.core.stats import Estimate, mean_interval, paired_bootstrap
from rlhflab.scenarios.dials import AXES

Row = Mapping[str, Any]
"""One answer: `prompt_id`, and its `measures`, None where one does not apply to the prompt."""


def dial_result(axis: str, by_strength: Mapping[float, Sequence[Row]], *, margins: Mapping[str, float],
                losses: Mapping[str, float]) -> dict[str, Any]:
    """What the dial of `axis` did at each strength, and which of the criteria hold. The first strength is the start.

    Moves: no successive change of its axis has its whole interval below 0, and that from end to end lies above 0.
    Stays: the interval of each other axis's change from the start is within its margin at every strength. Keeps: that
    of what may not be lost lies above the loss allowed.
    """
    strengths = sorted(by_strength)
    start, end = by_strength[strengths[0]], by_strength[strengths[-1]]
    steps = {(low, high): change(by_strength[high], by_strength[low], axis) for low, high in pairwise(strengths)}
    whole = change(end, start, axis)
    others = [bounded(name, by_strength, low=-margin, high=margin) for name, margin in margins.items() if name != axis]
    kept = [bounded(name, by_strength, low=-loss, high=None) for name, loss in losses.items()]
    rising = all(step.high >= 0 for step in steps.values())
    return {
        "axis": axis, "says": AXES[axis].says, "unit": AXES[axis].unit, "end_to_end": whole._asdict(),
        "steps": [{"from": low, "to": high, "change": step._asdict()} for (low, high), step in steps.items()],
        "moves": rising and whole.low > 0, "stays": all(row["holds"] for row in others),
        "keeps": all(row["holds"] for row in kept), "bounds": [*others, *kept],
        "strengths": [{"strength": strength,
                       "measures": {name: _mean(by_strength[strength], name) for name in (*margins, *losses)},
                       "changes": {name: _change(by_strength[strength], start, name) for name in (*margins, *losses)}}
                      for strength in strengths]}


def bounded(name: str, by_strength: Mapping[float, Sequence[Row]], *, low: float, high: float | None) -> dict[str, Any]:
    """Whether a measure's change from the start keeps its interval within the bounds at every strength."""
    strengths = sorted(by_strength)
    start = by_strength[strengths[0]]
    outside = []
    for strength in strengths[1:]:
        found = change(by_strength[strength], start, name)
        if found.low < low or (high is not None and found.high > high):
            outside.append(strength)
    return {"measure": name, "low": low, "high": high, "outside_at": outside, "holds": not outside}


def change(after: Sequence[Row], before: Sequence[Row], measure: str) -> Estimate:
    """Paired change of a measure on the same prompts and samples. ValueError where it applies to none of them."""
    pairs = [(a["measures"][measure], b["measures"][measure], a["prompt_id"])
             for a, b in zip(after, before, strict=True) if a["measures"][measure] is not None]
    if not pairs:
        raise ValueError(f"no answer has the measure {measure}")
    return paired_bootstrap(*zip(*pairs, strict=True))


def _change(after: Sequence[Row], before: Sequence[Row], measure: str) -> dict[str, float]:
    return change(after, before, measure)._asdict()


def _mean(rows: Sequence[Row], measure: str) -> dict[str, float] | None:
    seen = [(row["measures"][measure], row["prompt_id"]) for row in rows if row["measures"][measure] is not None]
    return mean_interval(*zip(*seen, strict=True))._asdict() if seen else None
