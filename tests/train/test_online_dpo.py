"""Online DPO: the pairs that the reward makes of fresh answers, and that learning from them raises it."""

from typing import Any

import pytest
import torch

from rlhflab.config import Lora
from rlhflab.core.batch import TokenAnswer, Tree
from rlhflab.model.shared import SharedModel
from rlhflab.train.online_dpo import best_and_worst
from rlhflab.train.rollouts import Sampled
from sampling_runs import constant, train_tiny

PLAIN = {"learning_rate": 0.1, "epsilon": 10.0, "max_grad_norm": float("inf"), "schedule": "constant", "warmup": 0.0}
"""So large an epsilon leaves Adam's step proportional to the gradient, whose scale would else be lost."""


def test_a_pair_is_the_best_and_the_worst_and_equal_answers_are_none() -> None:
    trees = [Tree(prompt=(1,), answers=tuple(TokenAnswer(ids=(token,)) for token in tokens))
             for tokens in ((10, 11, 12), (20, 21), (30, 31))]
    nothing = torch.zeros(7)
    pairs = best_and_worst(Sampled(
        number=1, rollouts=(), scores=(), entropy=nothing, trees=trees, owner=torch.arange(7),
        prompt=torch.tensor([0, 0, 0, 1, 1, 2, 2]), score=torch.tensor([2.0, 1.0, 3.0, 5.0, 5.0, 1.0, 0.0]),
        engine=nothing, logprob=nothing, reference=nothing, metrics={}))
    ids = [[answer.ids[0] for answer in pair.tree.answers] for pair in pairs]
    assert ids == [[11, 12], [30, 31]]
    assert [(pair.chosen, pair.rejected) for pair in pairs] == [((1,), (0,)), ((0,), (1,))]


@pytest.mark.parametrize("settings", [{"samples": 2}, {"samples": 4, "loss": {"name": "ipo_avg"}}])
def test_online_dpo_raises_its_reward(llama: SharedModel, settings: dict[str, Any]) -> None:
    steps = train_tiny(llama, "online_dpo", steps=14, epochs=2, batch=16, **settings)
    proxies = [step.metrics["proxy"] or 0.0 for step in steps]
    assert sum(proxies[-3:]) / 3 > sum(proxies[:3]) / 3 + 1.0
    assert steps[0].metrics["pairs"] is not None and 0 < steps[0].metrics["pairs"] <= 16


def test_a_rollout_without_a_pair_moves_nothing_and_ends_nothing(llama: SharedModel) -> None:
    llama.add_role("policy", Lora(rank=8))
    before = [parameter.clone() for parameter in llama.parameters("policy")]
    steps = train_tiny(llama, "online_dpo", reward=constant, steps=2, samples=2, keep_roles=True, end={"rule": "none"})
    assert [step.metrics["pairs"] for step in steps] == [0, 0]
    assert all(torch.equal(a, b) for a, b in zip(before, llama.parameters("policy"), strict=True))


def test_accumulated_micro_batches_equal_one_batch() -> None:
    results = []
    for micro_tokens in (16, 4096):
        model = SharedModel.load("tiny-llama", dtype="float32", device="cpu")
        train_tiny(model, "online_dpo", steps=2, samples=2, micro_tokens=micro_tokens, optimizer=PLAIN)
        results.append(torch.cat([parameter.detach().flatten() for parameter in model.parameters("policy")]))
    torch.testing.assert_close(results[0], results[1], atol=1e-5, rtol=1e-4)
