"""The command `experiment dials`: adapters of tone, verbosity and clarity, and what each of them moves."""

from pathlib import Path
from typing import Any

from rlhflab.commands.shared import DEFAULT_MODEL, Count, Json, Seed, finish, quietly
from rlhflab.errors import ConfigError


def dials_command(*, model: str = DEFAULT_MODEL, axes: list[str] | None = None, seed: Seed = 0,
                  start: Path | None = None, evaluation_prompts: Count | None = None, pairs: Count | None = None,
                  device: str = "auto", quick: bool = False, out: Path | None = None, resume: Path | None = None,
                  as_json: Json = False) -> None:
    """Train an adapter an axis of behaviour from pairs, and show what turning it up moves and what it leaves.

    Tone, verbosity and clarity, each by DPO on pairs of right answers that differ on that axis alone. Every adapter is
    then measured at strengths from 0 to 1.25. Criteria and margins stand in recipes/dials.yaml.

    Args:
        model: A name of `rlhflab models`, a hub id, or a local transformers folder.
        axes: Some of tone, verbosity, clarity; all of them where absent.
        seed: Of data, sampling and training.
        start: The adapter that all dials begin as; an SFT on answers of every style where absent.
        evaluation_prompts: Prompts that are answered at every strength, in place of the recipe's.
        pairs: Preference pairs of each axis, in place of the recipe's.
        device: auto (a GPU where there is one), cpu, cuda, cuda:1.
        quick: A small pass through every part. Its numbers say nothing.
        out: The new folder; under runs/ where absent.
        resume: A folder of an experiment that was stopped: goes on after its last finished part.
        as_json: Print the result as JSON.
    """
    from rlhflab.progress import Progress
    from rlhflab.runs.dials import resume_dials, run_dials

    if out is not None and resume is not None:
        raise ConfigError("--out and --resume: an experiment is new or goes on, so give one of them")
    if resume is not None:
        folder = quietly(lambda: resume_dials(resume, progress=Progress()))
    else:
        given: dict[str, Any] = {"evaluation_prompts": evaluation_prompts, "pairs": pairs}
        changes = {key: value for key, value in given.items() if value is not None}
        folder = quietly(lambda: run_dials(model=model, seed=seed, axes=axes or (), start=start, device=device,
                                            quick=quick, changes=changes, out=out, progress=Progress()))
    finish(folder, as_json, next_step=f"open {folder / 'dials.html'} in a browser")
