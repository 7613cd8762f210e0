"""`rlhflab train`: one run file, one folder, one trained role."""

from pathlib import Path
from typing import Any

import torch

from rlhflab.config import PpoRun, Run
from rlhflab.model.load import model_folder
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
    return folder.path


def describe_run(run: Run) -> dict[str, Any]:
    """The resolved run and an estimate of what it takes, without running it."""
    folder, name = model_folder(run.model)
    weights = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
    parameters = weights / 4 if name.startswith(("smollm2", "tiny")) else weights / 2
    bytes_each = torch.empty(0, dtype=getattr(torch, run.dtype)).element_size()
    roles = 4 if isinstance(run, PpoRun) else 2
    return {"kind": run.kind, "run": run.model_dump(mode="json"),
            "estimate": {"base_gb": round(parameters * bytes_each / 1e9, 2), "roles": roles}}
