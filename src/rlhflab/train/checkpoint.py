"""Checkpoints of a training run: all that changes from step to step, written in one go, the last good one kept.

A run that goes on from one takes the same steps to the same bits as a run that was never stopped (fp32, one process,
same machine). What does not change (data, references, reward models) is made again from the run's settings.
"""

import json
import os
import shutil
from collections.abc import Sequence
from pathlib import Path

from safetensors.torch import load_file, save_file

from rlhflab.errors import RunError
from rlhflab.model.shared import SharedModel
from rlhflab.train.state import Saved, TrainState

STATE, TENSORS, ROLES = "state.json", "state.safetensors", "roles"


class Checkpoints:
    """Owns the folder `checkpoints` of a run."""

    def __init__(self, folder: Path, *, every: int, roles: Sequence[str]) -> None:
        """`every`: steps between two checkpoints, 0 for none. `roles`: those that change."""
        self.folder, self.every, self.roles = folder, every, roles

    def latest(self) -> Path | None:
        """The last whole checkpoint."""
        whole = [path for path in self.folder.glob("step-*") if (path / STATE).is_file()]
        return max(whole, key=lambda path: int(path.name.partition("-")[2]), default=None)

    def restore(self, model: SharedModel) -> Saved | None:
        """Put the roles back as they were; what a loop needs to go on. None where there is no checkpoint."""
        path = self.latest()
        if path is None:
            return None
        for role in self.roles:
            model.restore_role(role, path / ROLES / role)
        content = json.loads((path / STATE).read_text())
        return Saved(number=content["number"], step=content["step"], moved=content["moved"], carried=content["carried"],
                     tensors=load_file(path / TENSORS))

    def keep(self, step: int, state: TrainState, model: SharedModel) -> None:
        """Write a checkpoint after step number `step` if one is due. A failure leaves the one before as it was."""
        if not self.every or step % self.every:
            return
        saved = state.capture(step)
        path, unfinished = self.folder / f"step-{step}", self.folder / ".unfinished"
        shutil.rmtree(unfinished, ignore_errors=True)
        try:
            (unfinished / ROLES).mkdir(parents=True)
            for role in self.roles:
                model.save_role(role, unfinished / ROLES / role, alone=True)
            save_file(dict(saved.tensors), unfinished / TENSORS)
            (unfinished / STATE).write_text(json.dumps(
                {"step": saved.step, "number": saved.number, "moved": saved.moved, "carried": saved.carried}))
            _sync(unfinished)
            unfinished.rename(path)
        except Exception as error:  # safetensors reports a full disk by an error of its own
            shutil.rmtree(unfinished, ignore_errors=True)
            last = self.latest()
            raise RunError(f"{path}: the checkpoint could not be written ({error}); "
                           + (f"the one before is whole: {last}" if last else "there is none before it")) from error
        for older in self.folder.glob("step-*"):
            if older != path:
                shutil.rmtree(older)

    def drop(self) -> None:
        """Remove them: a finished run needs none."""
        shutil.rmtree(self.folder, ignore_errors=True)


def _sync(folder: Path) -> None:
    """Have every file below `folder` on the disk, so that a checkpoint with its name is whole."""
    for path in [*folder.rglob("*"), folder]:
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
