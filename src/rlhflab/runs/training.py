"""`rlhflab train`: one run file, one folder, one trained role."""

from pathlib import Path

from rlhflab.analysis.report import write_report
from rlhflab.config import Run
from rlhflab.progress import Progress
from rlhflab.runs.folder import Record, RunFolder
from rlhflab.runs.lab import Lab
from rlhflab.runs.stages import run_stage


def run_training(run: Run, *, out: Path | None, progress: Progress) -> Path:
    """Train as `run` says, into a new folder, which is returned."""
    if out is not None and out.exists():
        RunFolder.create(out)  # refuses before the model is loaded
    progress.say(f"Loading {run.model} ...")
    lab = Lab.load(run.model, dtype=run.dtype, device=run.device, progress=progress)
    folder = RunFolder.create(out) if out is not None else RunFolder.named(run.kind)
    record = Record(folder, run.kind, base={"name": lab.model.base.name, "digest": lab.model.base.digest})
    try:
        run_stage(run, lab, folder)
    except BaseException:
        record.close("stopped")
        raise
    record.close("finished")
    write_report(folder.path)
    return folder.path
