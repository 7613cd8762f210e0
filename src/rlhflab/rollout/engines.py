"""The choice of what writes a run's answers: our own engine, transformers' continuous batching, or a server."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Annotated, Any

import torch
from pydantic import Field
from transformers import ContinuousBatchingConfig, GenerationConfig

from rlhflab.catalog import Catalog
from rlhflab.config import Choice
from rlhflab.errors import ConfigError, RunError
from rlhflab.model.decoding import attending
from rlhflab.model.shared import SharedModel
from rlhflab.rollout.engine import ROWS, Engine, Generation, folds, generate, with_limits
from rlhflab.rollout.served import openai_engine

engine: Catalog[Callable[..., Engine]] = Catalog("engine")
"""Entries take the policy's model and return what writes answers in one of its roles."""

engine("openai", needs=("a completions server that loads adapters, such as vLLM",),
       source="vLLM: OpenAI-compatible server, dynamically serving LoRA adapters")(openai_engine)


def make_engine(choice: Choice, policy: SharedModel) -> Engine:
    """The engine a run asks for. ConfigError names what does not fit."""
    return engine.bind(choice.name, choice.options, where="engine")(policy)


@engine("torch")
def torch_engine(policy: SharedModel, *, rows: Annotated[int, Field(ge=1)] = ROWS, fold: bool | None = None) -> Engine:
    """Our own: continuous batching, prompts read once for all their answers, each answer drawn by its own seed.

    At most `rows` answers are written at one time. `fold` adds the adapter to a copy of the weights first: faster, and
    where absent only done under an fp32 base, since in bf16 it moves the log-probs by more than a run allows.
    """
    return partial(generate, policy, rows=rows, fold=fold)


@engine("transformers", needs=("a GPU",), source="transformers, generation/continuous_batching")
def transformers_engine(policy: SharedModel, *, fold: bool | None = None) -> Engine:
    """The continuous batching of transformers, with its paged cache.

    Draws come from one generator for all answers, seeded by the first answer's seed: they depend on the batch.
    """
    if policy.device.type != "cuda":
        raise ConfigError(f"engine: transformers' continuous batching is made for a GPU, and the model is on "
                          f"{policy.device}; take engine: {{name: torch}}")
    return partial(generate_batch, policy, fold=fold)


def generate_batch(model: SharedModel, prompts: Sequence[Sequence[int]], *, role: str | None,
                   seeds: Sequence[Sequence[int | None]], max_new_tokens: int | Sequence[Sequence[int]],
                   stop_ids: Sequence[int], temperature: float = 1.0, fold: bool | None = None,
                   advance: Callable[[int], None] = lambda answers: None) -> list[list[Generation]]:
    """The answers of `generate`, written by transformers; those drawn alike and of one limit in one batch."""
    wanted = [(i, seed, limit) for i, each in enumerate(with_limits(seeds, max_new_tokens)) for seed, limit in each]
    written: dict[int, Generation] = {}
    base: Any = model.base.model
    with model.writing(role, fold=folds(model, fold)), attending(model.decoder, "sdpa"), torch.random.fork_rng():
        for greedy, limit in dict.fromkeys((seed is None, limit) for _, seed, limit in wanted):
            batch = [k for k, (_, seed, most) in enumerate(wanted) if (seed is None, most) == (greedy, limit)]
            settings = GenerationConfig(
                do_sample=not greedy, temperature=None if greedy else temperature, top_k=0, top_p=1.0,
                max_new_tokens=limit, eos_token_id=sorted(set(stop_ids)) or None, pad_token_id=0)
            results = base.generate_batch(
                [list(prompts[wanted[k][0]]) for k in batch], settings,
                ContinuousBatchingConfig(return_logprobs=True, seed=(wanted[batch[0]][1] or 0) % 2**32))
            for k, result in zip(batch, results.values(), strict=True):
                if result.error is not None or len(result.logprobs) != len(result.generated_tokens):
                    raise RunError(f"transformers' continuous batching failed for an answer: {result.error}")
                ids = tuple(result.generated_tokens)
                written[k] = Generation(ids, tuple(result.logprobs), "stop" if ids[-1] in stop_ids else "length")
            advance(len(batch))
    each = iter(written[k] for k in range(len(wanted)))
    return [[next(each) for _ in own] for own in seeds]
