"""`rlhflab data agreement`: how far the annotators of a file agree, its record and its page."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rlhflab.analysis.agreement import agreement_record, gathered
from rlhflab.analysis.agreement_page import write_agreement_page
from rlhflab.errors import DataError
from rlhflab.progress import Progress
from rlhflab.runs.comparisons import read_judged
from rlhflab.runs.folder import RunFolder


def measure_agreement(path: Path, *, form: str | None = None, judges: Sequence[str] = (), skip_bad: bool = False,
                      out: Path | None = None, progress: Progress | None = None) -> dict[str, Any]:
    """Write `agreement.json` and `agreement.html` into a new folder; returns what the first holds, and where both are.

    DataError where nobody said anything, or where a judge is not among the annotators.
    """
    judged, data = gathered(read_judged(path, form=form, skip_bad=skip_bad, progress=progress)), str(path)
    names = {judgment.annotator for each in judged for judgment in each.judgments}
    unknown = [judge for judge in judges if judge not in names and not any(judge in each.meta for each in judged)]
    if unknown:
        some = ", ".join(sorted(filter(None, names))[:8]) or "nobody by name"
        raise DataError(f"{data}: no annotator and no key of meta is called {unknown[0]!r}; the annotators are {some}")
    if not any(judgment.verdict != "skip" and judgment.annotator not in judges
               for each in judged for judgment in each.judgments):
        raise DataError(f"{data}: holds no judgment of its {len(judged)} comparisons")
    if progress is not None:
        count = sum(len(each.judgments) for each in judged)
        progress.say(f"Measuring {count} judgments of {len(names)} annotators ...")
    record = {"data": data, **agreement_record(judged, judges=judges)}
    folder = RunFolder.create(out) if out is not None else RunFolder.named("agreement")
    folder.write_json("agreement.json", record)
    return {**record, "page": str(write_agreement_page(record, folder.path / "agreement.html"))}
