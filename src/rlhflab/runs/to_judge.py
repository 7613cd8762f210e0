"""What people could compare: two answers that a run sampled, or answers that two adapters write now."""

from collections.abc import Iterator
from pathlib import Path

from rlhflab.analysis.recorded import read_samples
from rlhflab.analysis.relabel import random_batch
from rlhflab.config import SampledRun, read_run
from rlhflab.data.formats import read_prompts
from rlhflab.data.judging import Item
from rlhflab.data.types import Prompt
from rlhflab.errors import ConfigError, RunError
from rlhflab.progress import Progress
from rlhflab.rollout.sampling import sample
from rlhflab.runs.lab import Lab
from rlhflab.runs.relabelling import prompts_as_told, prompts_of
from rlhflab.scenarios import names
from rlhflab.scenarios import scenario as scenario_named

BATCH = 8
"""Prompts answered before their pairs are handed on: the first ones are there soon."""
BASE = "base"
"""What stands for the model without an adapter."""


def items_of_run(folder: Path, *, n: int, seed: int) -> list[Item]:
    """Up to `n` comparisons of two different answers to one prompt, prompts and answers drawn from all steps."""
    rollouts = read_samples(folder / "rollouts.jsonl")
    if not rollouts:
        raise RunError(f"{folder}: has no rollouts.jsonl with rollouts in it; give the folder of a run that wrote one")
    run = read_run(None, folder / "config.yaml") if (folder / "config.yaml").is_file() else None
    prompts = prompts_of(run, rollouts) if isinstance(run, SampledRun) else prompts_as_told(rollouts)
    drawn = random_batch(rollouts, n=n, seed=seed).proposals
    if not drawn:
        raise RunError(f"{folder}: its rollouts hold no prompt with two different answers, so nothing can be compared")
    return [Item(prompt=prompts[each.suspect.prompt_id], a=each.suspect.answer, b=each.better.answer,
                 meta={"step": {"a": each.suspect.step, "b": each.better.step}}, source=str(folder)) for each in drawn]


def written_pairs(adapters: tuple[str, str], *, model: str, prompts: str, n: int, max_new_tokens: int,
                  temperature: float, seed: int, progress: Progress) -> Iterator[list[Item]]:
    """Answers of two adapters (or `base`) to the same prompts, some at a time; equal and empty ones are left out."""
    asked = scenario_named(prompts).prompts("evaluation", n, seed=seed) if prompts in names() else \
        read_prompts(Path(prompts))[:n]
    if adapters[0] == adapters[1]:
        raise ConfigError(f"--adapter {adapters[0]}: is given twice; two different policies are to be compared")
    lab = Lab.load(model, progress=progress)
    roles = []
    for name, adapter in zip(("one", "other"), adapters, strict=True):
        if adapter != BASE:
            lab.model.load_role(name, Path(adapter))
        roles.append(None if adapter == BASE else name)
    for start in range(0, len(asked), BATCH):
        yield _pairs(lab, asked[start:start + BATCH], roles, adapters, max_new_tokens=max_new_tokens,
                     temperature=temperature, seed=seed + start)


def _pairs(lab: Lab, prompts: list[Prompt], roles: list[str | None], adapters: tuple[str, str], *,
           max_new_tokens: int, temperature: float, seed: int) -> list[Item]:
    a, b = (sample(lab.model, lab.chat, prompts, role=role, max_new_tokens=max_new_tokens, temperature=temperature,
                   seed=seed) for role in roles)
    return [Item(prompt=one.prompt, a=one.text, b=other.text, meta={"adapter": {"a": adapters[0], "b": adapters[1]}},
                 source="written while people judged")
            for one, other in zip(a, b, strict=True)
            if one.text.strip() and other.text.strip() and one.text != other.text]
