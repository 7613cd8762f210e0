"""Every way to train a head, against plain twins: ensembles, bootstraps, a length head, frozen features."""

from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from scipy.special import expit

from conftest import moved_role
from rlhflab.config import Lora, RewardRun
from rlhflab.core.batch import PreferenceTree, TokenAnswer, Tree, pack, pair_index
from rlhflab.core.losses import bradley_terry_loss
from rlhflab.model.shared import SharedModel
from rlhflab.rollout.scoring import score_members
from rlhflab.train.reward import QUALITY, bootstrap, fit_frozen_heads, head_outputs, train_reward

STEADY = {"learning_rate": 1e-2, "epsilon": 1e-3, "schedule": "constant", "warmup": 0.0}


def reward_run(**settings: Any) -> RewardRun:
    return RewardRun(dtype="float32", batch=8, **{"optimizer": STEADY, **settings})


def preferences(n: int, *, longer_wins: bool = False) -> list[PreferenceTree]:
    """Token 100 is preferred to 120; the preferred answer is the longer one of two, or of any length."""
    trees = []
    for i in range(n):
        more = 3 if longer_wins else i % 4
        trees.append(PreferenceTree(chosen=(0,), rejected=(1,), strength=(0.5 + i % 2 / 2,), tree=Tree(
            prompt=(*range(10, 12 + i % 5), 30 + i), answers=(
                TokenAnswer(ids=(100, *range(101, 101 + more), 2)),
                TokenAnswer(ids=(120, *range(130, 131 + i % 2), 2))))))
    return trees


def trained(run: RewardRun, data: list[PreferenceTree]) -> tuple[SharedModel, list[dict[str, Any]]]:
    model = SharedModel.load("tiny-llama", dtype="float32", device="cpu")
    model.add_role("reward", Lora(rank=4, alpha=8), head="random", outputs=head_outputs(run), seed=3)
    return model, [dict(step.metrics) for step in train_reward(run, model, data)]


def weights_of(model: SharedModel) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in [*model.parameters("reward"), *model.head_parameters("reward")]])


def test_one_head_is_plain_bradley_terry() -> None:
    run = reward_run(steps=3, epochs=3, margin=0.3, label_smoothing=0.1)
    model, metrics = trained(run, preferences(8))
    plain = SharedModel.load("tiny-llama", dtype="float32", device="cpu")
    plain.add_role("reward", Lora(rank=4, alpha=8), head="random", seed=3)
    groups = [{"params": plain.parameters("reward"), "lr": 1e-2},
              {"params": plain.head_parameters("reward"), "lr": run.head_learning_rate}]
    optimizer = torch.optim.AdamW(groups, eps=1e-3, weight_decay=0.0)
    data = preferences(8)
    strength = torch.tensor([each.strength[0] for each in data])
    chosen, rejected = pair_index(data)
    losses = []
    for _ in range(3):
        scores = plain.score(pack([each.tree for each in data]), "reward")
        loss = bradley_terry_loss(scores[chosen], scores[rejected], margin=0.3 * strength, centering=0.01,
                                  label_smoothing=0.1).each.mean()
        losses.append(float(loss.detach()))
        optimizer.zero_grad()
        loss.backward()
        for group in groups:
            torch.nn.utils.clip_grad_norm_(group["params"], 1.0)
        optimizer.step()
    assert [step["loss"] for step in metrics] == pytest.approx(losses, rel=1e-5)
    twin = torch.cat([p.detach().flatten() for group in groups for p in group["params"]])
    torch.testing.assert_close(weights_of(model), twin, atol=1e-5, rtol=1e-4)


def test_a_bootstrap_draws_prompts_and_a_single_head_sees_each_once() -> None:
    data = preferences(40)
    data.append(data[0])  # a prompt with so many pairs that it fills two trees
    assert torch.equal(bootstrap(data, 1, seed=0), torch.ones(1, 41))
    counts = bootstrap(data, 3, seed=0)
    assert (counts[:, :40].sum(-1) == 40).all() and torch.equal(counts[:, 0], counts[:, 40])
    assert not torch.equal(counts[0], counts[1]) and not torch.equal(counts, bootstrap(data, 3, seed=1))
    assert torch.equal(counts, bootstrap(data, 3, seed=0))


def test_a_member_learns_from_the_prompts_of_its_bootstrap_alone() -> None:
    """With a frozen adapter the heads are independent: member k is a single head on the weighted pairs."""
    data = preferences(8)
    run = reward_run(heads=3, epochs=1, head_learning_rate=0.1, centering=0.0,
                     optimizer={**STEADY, "learning_rate": 1e-12, "max_grad_norm": 1e9})
    model, _ = trained(run, data)
    counts = bootstrap(data, 3, seed=0)
    plain = SharedModel.load("tiny-llama", dtype="float32", device="cpu")
    plain.add_role("reward", Lora(rank=4, alpha=8), head="random", outputs=3, seed=3)
    outputs = plain.outputs(pack([each.tree for each in data]), "reward")
    chosen, rejected = pair_index(data)
    gap = outputs[chosen] - outputs[rejected]
    (-(counts.T * torch.nn.functional.logsigmoid(gap)).sum() / (8 * 3)).backward()
    (head,) = plain.head_parameters("reward")
    assert head.grad is not None
    expected = head.detach() - 0.1 * head.grad / (head.grad.abs() + 1e-3)  # Adam's first step
    torch.testing.assert_close(model.head_parameters("reward")[0].detach(), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("settings", [{"heads": 3}, {"length_head": True}, {"length_head": True, "length_weight": 5.0}])
def test_micro_batches_change_nothing(settings: dict[str, Any]) -> None:
    models = [trained(reward_run(steps=3, micro_tokens=tokens, **settings), preferences(12))[0]
              for tokens in (16, 4096)]
    torch.testing.assert_close(weights_of(models[0]), weights_of(models[1]), atol=2e-4, rtol=2e-3)


def test_the_first_step_with_a_length_head_has_the_gradient_of_the_whole_loss() -> None:
    """The term goes through its gradient by the outputs; here autograd goes through everything at once."""
    run = reward_run(steps=1, length_head=True, length_weight=2.0, orthogonality=0.5, micro_tokens=24,
                     optimizer={**STEADY, "learning_rate": 1e-12, "max_grad_norm": 1e9}, head_learning_rate=1e-3)
    data = preferences(8)
    model, _ = trained(run, data)
    plain = SharedModel.load("tiny-llama", dtype="float32", device="cpu")
    plain.add_role("reward", Lora(rank=4, alpha=8), head="random", outputs=2, seed=3)
    outputs = plain.outputs(pack([each.tree for each in data]), "reward")
    tokens = torch.tensor([float(len(a.ids)) for each in data for a in each.tree.answers])
    chosen, rejected = pair_index(data)
    total = outputs.sum(-1)
    loss = (-torch.nn.functional.logsigmoid(total[chosen] - total[rejected])
            + 0.01 * (total[chosen] + total[rejected]) ** 2).mean()
    of_quality, of_length = (torch.corrcoef(torch.stack([outputs[:, k], tokens]))[0, 1] for k in (0, 1))
    (head,) = plain.head_parameters("reward")
    cosine = (head[0] @ head[1]) / (head[0].norm() * head[1].norm())
    (loss + 2.0 * (of_quality.abs() - of_length) + 0.5 * cosine.abs()).backward()
    assert head.grad is not None
    expected = head.detach() - 1e-3 * head.grad / (head.grad.abs() + 1e-3)
    torch.testing.assert_close(model.head_parameters("reward")[0].detach(), expected, atol=2e-6, rtol=1e-4)


def test_the_length_head_takes_the_length_away_from_the_quality_head() -> None:
    data = preferences(24, longer_wins=True)
    trees = [each.tree for each in data]
    tokens = torch.tensor([float(len(a.ids)) for tree in trees for a in tree.answers])
    found = {}
    for length_head in (False, True):
        model, metrics = trained(reward_run(epochs=10, length_head=length_head, length_weight=3.0), data)
        scores = torch.cat(score_members(model, trees, role="reward", micro_tokens=512))[:, QUALITY]
        found[length_head] = abs(float(torch.corrcoef(torch.stack([scores, tokens]))[0, 1]))
    assert found[True] < 0.3 < 0.7 < found[False]
    assert metrics[-1]["length_head_correlation"] > 0.9 and metrics[-1]["accuracy"] == 1
    assert abs(metrics[-1]["head_cosine"]) < 0.1


@pytest.mark.parametrize(("settings", "sentence"), [
    ({"length_head": True, "heads": 2}, "length_head: true needs heads: 1"),
    ({"length_head": True, "features": "frozen"}, "features: trained"),
    ({"length_head": True, "lora": {"dropout": 0.1}}, "lora.dropout must be 0"),
    ({"label_smoothing": 0.5}, "less than 0.5"),
])
def test_what_does_not_go_together_is_refused(settings: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValidationError, match=sentence):
        RewardRun(**settings)


# -- frozen features -----------------------------------------------------------------------------------------------


def frozen(**settings: Any) -> tuple[SharedModel, dict[str, float]]:
    model = SharedModel.load("tiny-llama", dtype="float32", device="cpu")
    moved_role(model, "reward")
    run = reward_run(features="frozen", **settings)
    return model, fit_frozen_heads(run, model, preferences(20))


def test_a_head_on_frozen_features_is_logistic_regression_on_their_differences() -> None:
    model, metrics = frozen(centering=0.0, ridge=0.05)
    assert metrics["accuracy"] == 1
    states = model.hidden(pack([each.tree for each in preferences(20)]), "reward").detach()
    states = states[pack([each.tree for each in preferences(20)]).last].double().numpy()
    scale = states.std(0)
    difference = (states[0::2] - states[1::2]) / scale
    head = np.zeros(states.shape[1])
    for _ in range(50):  # Newton's method, from scratch
        p = expit(difference @ head)
        gradient = -(difference * (1 - p)[:, None]).mean(0) + 0.05 * head
        hessian = (difference.T * (p * (1 - p))) @ difference / len(difference) + 0.05 * np.eye(len(head))
        head -= np.linalg.solve(hessian, gradient)
    ours = model.head_parameters("reward")[0][0].detach().numpy()
    np.testing.assert_allclose(ours * scale, head, atol=1e-4)


def test_a_frozen_fit_leaves_the_adapter_alone_and_is_the_same_every_time() -> None:
    model, _ = frozen(heads=3, margin=0.2, label_smoothing=0.1)
    fresh = SharedModel.load("tiny-llama", dtype="float32", device="cpu")
    moved_role(fresh, "reward")
    assert all(torch.equal(a, b) for a, b in zip(model.parameters("reward"), fresh.parameters("reward"), strict=True))
    again, _ = frozen(heads=3, margin=0.2, label_smoothing=0.1)
    head = model.head_parameters("reward")[0]
    assert head.shape == (3, 64) and torch.equal(head, again.head_parameters("reward")[0])
    assert not torch.allclose(head[0], head[1]), "each member has a bootstrap of its own"
