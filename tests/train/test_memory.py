"""A step that runs out of memory is done again in smaller micro-batches, and leaves no trace but its note."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

from rlhflab.config import Lora, Optimizer, make_run
from rlhflab.core.batch import Batch, PreferenceTree, ThumbTree, TokenAnswer, Tree, micro_batches
from rlhflab.errors import RunError
from rlhflab.model.shared import SharedModel
from rlhflab.train.dpo import train_dpo
from rlhflab.train.reward import train_reward
from rlhflab.train.sft import train_sft
from rlhflab.train.state import Step, TrainState
from rlhflab.train.thumbs import train_thumbs
from sampling_runs import train_tiny

TREES = [Tree(prompt=tuple(range(10, 12 + i % 5)), answers=(
    TokenAnswer(ids=(100, 101 + i % 3, 2)), TokenAnswer(ids=(120, 121, 122, 2)[:2 + i % 3]))) for i in range(8)]
PAIRS = [PreferenceTree(tree=tree, chosen=(0,), rejected=(1,), strength=(1.0,)) for tree in TREES]
THUMBS = [ThumbTree(tree=tree, judged=(0, 1), good=(True, False)) for tree in TREES]
LORA = Lora(rank=4, dropout=0.3)
LARGE = 40
"""Tokens: two micro-batches a step of these trees."""


LENGTHS = [len(tree) for tree in TREES]


def halved(micro_tokens: int) -> int:
    """Half of the largest micro-batch of the trees."""
    return max(len(group) * LENGTHS[group[0]] for group in micro_batches(LENGTHS, micro_tokens)) // 2


def train(kind: str, micro_tokens: int, model: SharedModel) -> Iterator[Step]:
    run: Any = make_run("dpo" if kind in ("kto", "bco") else kind, {
        "batch": 8, "micro_tokens": micro_tokens, "epochs": 2, "dtype": "float32", "lora": LORA.model_dump(),
        "optimizer": {"learning_rate": 1e-2, "warmup": 0.0},
        **({"loss": {"name": kind}} if kind in ("kto", "bco") else {})})
    model.add_role("policy", LORA, head="random" if kind == "reward" else "none")
    if kind in ("dpo", "kto", "bco"):
        model.add_role("reference", LORA, copy_of="policy", trainable=False)
    loops: dict[str, Callable[[], Iterator[Step]]] = {
        "sft": lambda: train_sft(run, model, TREES), "reward": lambda: train_reward(run, model, PAIRS, role="policy"),
        "dpo": lambda: train_dpo(run, model, PAIRS, reference="reference")}
    torch.manual_seed(0)
    return loops.get(kind, lambda: train_thumbs(run, model, THUMBS, reference="reference"))()


def weights(model: SharedModel) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for role in model.records
                      for p in (*model.parameters(role), *model.head_parameters(role))])


@pytest.fixture
def run_out(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[int]]:
    """Let the backward passes with these numbers find no memory. Returns the columns of all that were begun."""
    def let(*numbers: int) -> list[int]:
        read, seen = SharedModel.hidden, []

        def hidden(self: SharedModel, batch: Batch, role: str | None) -> torch.Tensor:
            states = read(self, batch, role)
            if states.requires_grad:
                seen.append(batch.tokens.numel())
                if len(seen) in numbers:
                    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB.")
            return states

        monkeypatch.setattr(SharedModel, "hidden", hidden)
        return seen

    return let


@pytest.mark.parametrize("kind", ["sft", "reward", "dpo", "kto", "bco"])
def test_a_run_that_ran_out_of_memory_equals_one_that_began_with_less(
        kind: str, run_out: Callable[..., list[int]], monkeypatch: pytest.MonkeyPatch) -> None:
    models = [SharedModel.load("tiny-llama", dtype="float32", device="cpu") for _ in range(2)]
    expected = list(train(kind, halved(LARGE), models[0]))
    seen = run_out(2)
    found = list(train(kind, LARGE, models[1]))
    assert max(seen[2:]) <= halved(LARGE) < seen[0], "the second try and all steps behind it are smaller"
    assert torch.equal(weights(models[0]), weights(models[1]))
    assert found[0].metrics.pop("micro_tokens") == halved(LARGE)
    assert [step.metrics for step in found] == [step.metrics for step in expected]


def test_policy_optimisation_goes_on_too(run_out: Callable[..., list[int]]) -> None:
    models = [SharedModel.load("tiny-llama", dtype="float32", device="cpu") for _ in range(2)]
    settings = {"steps": 2, "epochs": 1, "stop_kl": 10.0,
                "optimizer": {"learning_rate": 1e-2, "epsilon": 1e-3}}
    train_tiny(models[0], "ppo", micro_tokens=150, **settings)
    run_out(2)  # the policy's pass over the first micro-batch, behind all of the critic's
    steps = train_tiny(models[1], "ppo", micro_tokens=4096, **settings)
    assert steps[0].metrics["micro_tokens"] < 4096 and "micro_tokens" not in steps[1].metrics
    torch.testing.assert_close(weights(models[0]), weights(models[1]), atol=2e-4, rtol=2e-3)


def test_it_is_halved_as_often_as_is_needed_and_a_checkpoint_remembers(run_out: Callable[..., list[int]],
                                                                       llama: SharedModel) -> None:
    run_out(1, 2)
    step = next(train("sft", LARGE, llama))
    limit = step.metrics["micro_tokens"]
    assert limit == halved(halved(LARGE))
    state = TrainState(Optimizer(), [(llama.parameters("policy"), 1e-3)], total=2, saved=step.state.capture(1))
    groups = state.accumulate([5] * 8, lambda part: part, micro_tokens=LARGE)
    assert groups == micro_batches([5] * 8, int(limit)) != micro_batches([5] * 8, LARGE)


def test_an_example_that_does_not_fit_alone_is_one_sentence(run_out: Callable[..., list[int]],
                                                            llama: SharedModel) -> None:
    run_out(*range(1, 20))
    with pytest.raises(RunError, match=r"ran out of memory on one example of at most 1[0-9] tokens; lower max_length"):
        next(train("sft", LARGE, llama))
