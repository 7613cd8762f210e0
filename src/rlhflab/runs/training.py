"""`rlhflab train`: one run file, one folder, one trained role."""

from pathlib import Path

from rlhflab.analysis.report import write_report
from rlhflab.config import Run, read_run
from rlhflab.errors import RunError
from rlhflab.progress import Progress
from rlhflab.runs import sources
from rlhflab.runs.estimate import within_memory
from rlhflab.runs.folder import Record, RunFolder
from rlhflab.runs.lab import Lab
from rlhflab.runs.stages import check_choices, run_stage


def run_training(run: Run, *, out: Path | None, progress: Progress) -> Path:
    """Train as `run` says, into a new folder, which is returned."""
    check_choices(run)
    RunFolder.refuse_taken(out)
    lab = _load(run, progress)
    run = within_memory(lab.resolved(run), lab)
    folder = RunFolder.create(out) if out is not None else RunFolder.named(run.kind)
    return _train(run, lab, folder)


def resume_training(path: Path, *, progress: Progress) -> Path:
    """Go on with a stopped run from its last checkpoint, or from its start where it has none."""
    folder = RunFolder(path)
    if not folder.has("config.yaml") or not folder.has("record.json"):
        raise RunError(f"{path}: is not the folder of a run")
    record = folder.read_json("record.json")
    run = read_run(None, path / "config.yaml")
    if folder.has("summary.json"):
        if record["status"] == "finished" and folder.has("report.html"):
            raise RunError(f"{path}: this run is finished; there is nothing to go on with")
        if record["status"] != "finished":  # it was killed after its last step
            Record(folder, run.kind, base=record["base"], data=record.get("data")).close("finished")
        return _finish(folder)
    lab = _load(run, progress)
    stored = record["base"]["digest"]
    if stored != lab.model.base.digest:
        raise RunError(f"{path}: was started on base weights {stored[:12]}, but {run.model} now has "
                       f"{lab.model.base.digest[:12]}; a run goes on with the weights it began with")
    data = sources.data_read(run)
    changed = next((each for each in record.get("data") or () if each not in data), None)
    if changed:
        raise RunError(f"{path}: {changed['name']} is no longer what the run began with (sha256 "
                       f"{changed['sha256'][:12]}); a run goes on with the data it began with")
    return _train(run, lab, folder)


def _load(run: Run, progress: Progress) -> Lab:
    progress.say(f"Loading {run.model} ...")
    return Lab.load(run.model, dtype=run.dtype, device=run.device, quantize=run.quantize,
                    progress=progress)


def _train(run: Run, lab: Lab, folder: RunFolder) -> Path:
    try:
        run_stage(run, lab, folder)
    except BaseException:
        if (folder.path / "checkpoints").is_dir():
            lab.progress.say(f"Stopped. To go on from the last checkpoint: rlhflab train --resume {folder.path}")
        raise
    return _finish(folder)


def _finish(folder: RunFolder) -> Path:
    write_report(folder.path)
    return folder.path
