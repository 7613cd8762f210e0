"""`rlhflab data select`: the comparisons of a file that are worth a label next. Nobody is asked here."""

from pathlib import Path
from typing import Any

from rlhflab.analysis.selection import TAUGHT, Label, Strategy, pool_of, select
from rlhflab.data.formats import comparison_row, write_jsonl
from rlhflab.data.forms import winner
from rlhflab.errors import DataError
from rlhflab.progress import Progress
from rlhflab.runs.comparisons import read_judged

FEWEST_LABELS = 20
"""Labelled comparisons that an ensemble learns from, at least."""


def select_comparisons(path: Path, *, n: int, by: Strategy, out: Path, form: str | None = None, skip_bad: bool = False,
                       seed: int = 0, progress: Progress) -> dict[str, Any]:
    """Write `n` comparisons that nobody has judged to `out`, the most wanted first; returns what was done.

    Those on which a majority took a side are what is labelled. DataError where too few of either kind are there.
    """
    rows = read_judged(path, form=form, skip_bad=skip_bad, progress=progress)
    labels = [Label(row.comparison, won == "a") for row in rows if (won := winner(row)) is not None]
    open_ = [row.comparison for row in rows if all(judgment.verdict == "skip" for judgment in row.judgments)]
    if not open_:
        raise DataError(f"{path}: all {len(rows)} comparisons are judged; there is nothing to choose from")
    if by in TAUGHT and len(labels) < FEWEST_LABELS:
        raise DataError(f"{path}: {len(labels)} comparisons have a label, and --by {by} learns from at least "
                        f"{FEWEST_LABELS}; begin with --by coverage or random")
    progress.say(f"Choosing {min(n, len(open_))} of {len(open_)} comparisons; {len(labels)} have a label ...")
    chosen = select(pool_of(labels, open_, seed=seed), n, by, seed=seed)
    write_jsonl(out, (comparison_row(open_[i]) for i in chosen))
    return {"by": by, "chosen": len(chosen), "open": len(open_), "labelled": len(labels), "written": str(out)}
