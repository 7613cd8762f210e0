"""What the rows of an evaluation say: rates with intervals, and two evaluations side by side. Rows in, numbers out.

A row is one answer: `suite`, `prompt_id`, `sample` (0 for the greedy one), `answer`, and `values` by metric.
"""

from collections.abc import Hashable, Mapping, Sequence
from typing import Any, NamedTuple

from rlhflab.core.stats import mean_interval

Row = Mapping[str, Any]


class Paired(NamedTuple):
    """Values of one metric on the items that both evaluations scored, in one order."""

    after: list[float]
    before: list[float]
    prompts: list[Hashable]
    unscored: int
    """Items that one of the two, or both, did not score."""
    before_prompts: int
    """Prompts of which the evaluation `before` scored an answer."""


def measured(rows: Sequence[Row], metrics: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Mean, interval and count of each metric, and how many answers it did not score."""
    found: dict[str, dict[str, Any]] = {}
    for metric in metrics:
        asked = [row for row in rows if metric in row["values"]]
        scored = [row for row in asked if row["values"][metric] is not None]
        estimate = mean_interval([row["values"][metric] for row in scored],
                                 [row["prompt_id"] for row in scored])._asdict() if scored else None
        found[metric] = {"estimate": estimate, "unscored": len(asked) - len(scored)}
    return found


def paired(after: Sequence[Row], before: Sequence[Row], metric: str) -> Paired:
    """The same prompts and samples in two evaluations. An item that one did not score is dropped and counted."""
    earlier = {(row["prompt_id"], row["sample"]): row["values"][metric] for row in before if metric in row["values"]}
    items = [(row["prompt_id"], row["values"][metric], earlier[row["prompt_id"], row["sample"]])
             for row in after if metric in row["values"] and (row["prompt_id"], row["sample"]) in earlier]
    scored = [(prompt, new, old) for prompt, new, old in items if new is not None and old is not None]
    return Paired(after=[new for _, new, _ in scored], before=[old for _, _, old in scored],
                  prompts=[prompt for prompt, _, _ in scored], unscored=len(items) - len(scored),
                  before_prompts=len({prompt for prompt, _, old in items if old is not None}))
