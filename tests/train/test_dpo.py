"""What a DPO run says of length, likelihood and its reference, in the loop."""

import pytest
import torch

from conftest import moved_role
from rlhflab.config import DpoRun, Lora, make_run
from rlhflab.core.batch import PreferenceTree, TokenAnswer, Tree
from rlhflab.errors import ConfigError
from rlhflab.model.shared import SharedModel
from rlhflab.rollout.scoring import tree_logprobs
from rlhflab.train.dpo import train_dpo
from rlhflab.train.preferences import objective
from slow_twins import plain_logprobs

FAST = {"dtype": "float32", "batch": 4, "optimizer": {"learning_rate": 1e-2, "schedule": "constant", "warmup": 0.0}}
SHARED = PreferenceTree(  # answer 0 is in two pairs, beside a shorter and beside a longer one
    tree=Tree(prompt=(10, 11), answers=tuple(TokenAnswer(ids=ids) for ids in (
        (100, 101, 102, 2), (110, 2), (120, 121, 122, 123, 124, 2)))),
    chosen=(0, 0, 1), rejected=(1, 2, 2), strength=(1.0, 1.0, 1.0))
TREES = [SHARED, *(PreferenceTree(tree=Tree(prompt=(12, 13 + i), answers=(
    TokenAnswer(ids=(100 + i, 2)), TokenAnswer(ids=(120 + i, 121, 2)))), chosen=(0,), rejected=(1,), strength=(1.0,))
    for i in range(7))]


def dpo_run(**settings: object) -> DpoRun:
    run = make_run("dpo", {**FAST, **settings})
    assert isinstance(run, DpoRun)
    return run


def with_reference(seed: int = 1) -> SharedModel:
    model = SharedModel.load("tiny-llama", dtype="float32", device="cpu")
    moved_role(model, "policy", seed=seed)
    model.add_role("reference", Lora(), copy_of="policy", trainable=False)
    return model


def first_loss_of_a_moved_policy(monkeypatch: pytest.MonkeyPatch, **settings: object) -> tuple[float, SharedModel]:
    """The logged loss of one step on SHARED, with a policy that is not its reference (which a run would refuse)."""
    monkeypatch.setattr("rlhflab.train.dpo.refuse_wrong_reference", lambda *args, **names: {})
    model = SharedModel.load("tiny-llama", dtype="float32", device="cpu")
    moved_role(model, "policy", seed=1)
    moved_role(model, "reference", seed=2, trainable=False)
    run = dpo_run(steps=1, optimizer={"learning_rate": 0.0}, **settings)
    steps = list(train_dpo(run, model, [SHARED], reference="reference"))
    loss = steps[0].metrics["loss"]
    assert loss is not None
    return loss, model


def by_hand(model: SharedModel, alpha: float, divide: bool, weight: float) -> float:
    """The same from log-probs of each answer alone, pair by pair."""
    policy, reference = (plain_logprobs(model, SHARED.tree, role) for role in ("policy", "reference"))
    losses = []
    for c, r in zip(SHARED.chosen, SHARED.rejected, strict=True):
        shared = min(len(policy[c]), len(policy[r]))
        ratios = []
        for i in (c, r):
            ratio = policy[i] - reference[i]
            total = ratio[:shared].sum() + alpha * ratio[shared:].sum()
            ratios.append(total / len(ratio) if divide else total)
        losses.append(-torch.nn.functional.logsigmoid(0.1 * (ratios[0] - ratios[1])) - weight * policy[c].mean())
    return float(torch.stack(losses).mean())


@pytest.mark.parametrize(("settings", "alpha", "divide", "weight"), [
    ({}, 1.0, False, 0.0), ({"ld_alpha": 0.3}, 0.3, False, 0.0), ({"length": "mean"}, 1.0, True, 0.0),
    ({"nll_weight": 0.5}, 1.0, False, 0.5), ({"ld_alpha": 0.0, "nll_weight": 0.5}, 0.0, False, 0.5)])
def test_options_in_the_loop_equal_pairs_worked_one_by_one(
        monkeypatch: pytest.MonkeyPatch, settings: dict[str, object], alpha: float, divide: bool,
        weight: float) -> None:
    loss, model = first_loss_of_a_moved_policy(monkeypatch, **settings)
    with torch.no_grad():
        assert loss == pytest.approx(by_hand(model, alpha, divide, weight), rel=1e-4)


@pytest.mark.parametrize("settings", [{"ld_alpha": 0.3}, {"length": "mean"}, {"nll_weight": 0.5},
                                      {"loss": {"name": "orpo"}}])
def test_accumulated_micro_batches_equal_one_big_batch(settings: dict[str, object]) -> None:
    results = []
    for micro_tokens in (16, 4096):
        model = with_reference()
        run = dpo_run(steps=2, batch=8, micro_tokens=micro_tokens, **settings,
                      optimizer={"learning_rate": 1e-2, "epsilon": 1e-3})
        list(train_dpo(run, model, TREES, reference="reference"))
        results.append(torch.cat([p.detach().flatten() for p in model.parameters("policy")]))
    torch.testing.assert_close(results[0], results[1], atol=2e-4, rtol=2e-3)


@pytest.mark.parametrize("loss", ["simpo", "cpo", "orpo"])
def test_a_loss_without_reference_reads_the_policy_alone(loss: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = SharedModel.load("tiny-llama", dtype="float32", device="cpu")
    model.add_role("policy", Lora(rank=4))
    roles: list[str | None] = []
    playing = model.playing
    monkeypatch.setattr(model, "playing", lambda role: (roles.append(role), playing(role))[1])
    steps = list(train_dpo(dpo_run(epochs=3, loss={"name": loss}), model, TREES, reference=None))
    assert set(roles) == {"policy"}
    assert "chosen_shift_per_token" not in steps[0].metrics
    margins = [step.metrics["margin"] for step in steps]
    assert margins[-1] > margins[0]  # type: ignore[operator]


@pytest.mark.parametrize(("settings", "sentence"), [
    ({"loss": {"name": "ipo_avg"}, "length": "mean"}, "length: does not go with .* ipo_avg; .* admits nll_weight"),
    ({"loss": {"name": "ipo_sum"}, "length": "mean"}, "length: does not go with the loss ipo_sum"),
    ({"loss": {"name": "simpo"}, "ld_alpha": 0.5}, "ld_alpha: does not go with the loss simpo"),
    ({"loss": {"name": "cpo"}, "nll_weight": 1.0}, "nll_weight: does not go with the loss cpo; .* none of them"),
    ({"loss": {"name": "kto"}, "nll_weight": 1.0}, "nll_weight: does not go with the loss kto"),
    ({"loss": {"name": "orpo"}, "reference_ema": {"every": 1}}, "reference_ema: the loss orpo has no reference"),
    ({"loss": {"name": "kto"}, "batch": 1}, "batch: the loss kto .* must be at least 2, found 1"),
    ({"length": "mean", "ld_alpha": 0.5}, "both correct for length"),
    ({"reference_ema": {"mix": 1.5}}, r"reference_ema\.mix"),
])
def test_what_does_not_go_together_is_one_sentence(settings: dict[str, object], sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        objective(dpo_run(**settings))


# -- a reference that moves --------------------------------------------------------------------------------------------


def flat(model: SharedModel, role: str) -> torch.Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in model.parameters(role)]).clone()


def test_a_role_moves_by_its_share_and_nothing_else_does(llama: SharedModel) -> None:
    moved_role(llama, "policy", seed=1)
    moved_role(llama, "reference", seed=2, trainable=False)
    policy, reference = flat(llama, "policy"), flat(llama, "reference")
    llama.move_role("reference", towards="policy", mix=0.25)
    torch.testing.assert_close(flat(llama, "reference"), 0.25 * policy + 0.75 * reference)
    assert torch.equal(flat(llama, "policy"), policy)
    assert not any(parameter.requires_grad for parameter in llama.parameters("reference"))


def test_a_frozen_copy_has_no_dropout(llama: SharedModel) -> None:
    llama.add_role("policy", Lora(rank=4, dropout=0.5))
    with torch.no_grad():
        for parameter in llama.parameters("policy"):
            parameter.fill_(0.1)
    llama.add_role("reference", Lora(), copy_of="policy", trainable=False)
    trees = [each.tree for each in TREES]
    twice = [torch.cat(tree_logprobs(llama, trees, role="reference", micro_tokens=512)) for _ in range(2)]
    assert torch.equal(twice[0], twice[1])


def test_the_reference_moves_every_so_many_steps() -> None:
    model = with_reference()
    start = flat(model, "reference")
    run = dpo_run(batch=2, reference_ema={"mix": 0.5, "every": 2})
    seen = []
    for step in train_dpo(run, model, TREES, reference="reference"):
        seen.append((step.number, flat(model, "policy"), flat(model, "reference")))
    assert [number for number, _, _ in seen] == [1, 2, 3, 4]
    after_two = 0.5 * seen[1][1] + 0.5 * start
    torch.testing.assert_close(seen[0][2], start)
    torch.testing.assert_close(seen[1][2], after_two)
    torch.testing.assert_close(seen[2][2], after_two)
    torch.testing.assert_close(seen[3][2], 0.5 * seen[3][1] + 0.5 * after_two)


def test_log_ratios_are_against_the_reference_as_it_is_now() -> None:
    moved, still = with_reference(), with_reference()
    whole = list(train_dpo(dpo_run(reference_ema={"mix": 1.0, "every": 1}), moved, TREES, reference="reference"))
    plain = list(train_dpo(dpo_run(), still, TREES, reference="reference"))
    assert plain[1].metrics["margin"] != 0
    assert whole[1].metrics["margin"] == pytest.approx(0, abs=1e-6), "a reference that is the policy of the step before"
