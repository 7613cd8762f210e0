"""The states in which a reward role scored a run's answers, one safetensors file a step. NumPy only, no torch.

They cost no forward pass, since a score is read from them. Rows are in the order of the step's rows in
`rollouts.jsonl`, of which they are the first ones.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load_file, save

from rlhflab.data.types import Score
from rlhflab.errors import RunError
from rlhflab.runs.folder import RunFolder

HIDDEN, STATES = "hidden", "states"
MOST = 128
"""Answers of a step whose states are kept: enough for a share, and what a long run leaves stays small."""


def keep_states(folder: RunFolder, step: int, scores: Sequence[Score]) -> None:
    """Write the states of a step's scores, (n, d) in float16; nothing where a score was read from none."""
    states = [score.state for score in scores[:MOST]]
    known = [state for state in states if state is not None]
    if known and len(known) == len(states):
        folder.write_bytes(f"{HIDDEN}/{step:06d}.safetensors", save({STATES: np.stack(known)}))


def read_states(folder: Path, *, ends: bool = False) -> dict[int, NDArray[Any]]:
    """By step: what `keep_states` wrote; of the first and the last step alone, where the `ends` are asked for."""
    steps = sorted(files(folder).items())
    return {step: read(path) for step, path in ([*steps[:1], *steps[1:][-1:]] if ends else steps)}


def cut_states(folder: RunFolder, done: int) -> None:
    """Remove what lies after the last checkpoint, `done` steps from the start; all of it where there is none."""
    for step, path in files(folder.path).items():
        if not done or step > done:
            path.unlink()


def files(folder: Path) -> dict[int, Path]:
    """The file of each step."""
    return {int(path.stem): path for path in (folder / HIDDEN).glob("*.safetensors") if path.stem.isdecimal()}


def read(path: Path) -> NDArray[Any]:
    """The states in one file. RunError where it holds none."""
    try:
        states: NDArray[Any] = load_file(path)[STATES]
    except (SafetensorError, KeyError, OSError) as error:
        raise RunError(f"{path}: holds no hidden states that can be read ({error}); remove it to do "
                       "without") from error
    return states
