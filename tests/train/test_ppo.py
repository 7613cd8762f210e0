"""Policy optimisation on a tiny model: what a step is made of, and that each method raises its reward."""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import pytest
import torch

from rlhflab.config import Lora, make_run
from rlhflab.data.types import Rollout, Score
from rlhflab.errors import ConfigError, RunError
from rlhflab.model.shared import SharedModel
from rlhflab.train.ppo import Learner
from rlhflab.train.rollouts import Reading, ScoredRollout, read_rollout
from rlhflab.train.state import TrainState
from sampling_runs import Letters, constant, train_tiny

STEADY = {"learning_rate": 1e-2, "epsilon": 1e-3, "schedule": "constant", "warmup": 0.0}
"""Adam divides by the gradient's size, so that a rounding error in a tiny gradient would move a weight a whole step."""


def mean(steps: list[Any], name: str) -> float:
    return sum(step.metrics[name] for step in steps) / len(steps)


@pytest.mark.parametrize("settings", [
    {"advantage": {"name": "rloo"}},
    {"advantage": {"name": "rloo", "whiten_advantages": True}, "policy_loss": {"name": "reinforce"}, "epochs": 1},
    {"advantage": {"name": "grpo"}, "token_mean": "answer"},
    {"advantage": {"name": "grpo", "scale": False}, "token_mean": "budget"},
    {"kl_in": "loss", "kl_coefficient": 0.05},
    {"policy_loss": {"name": "clip", "clip": 0.2, "clip_high": 0.28, "dual_clip": 3.0}, "value_clip": None,
     "advantage": {"name": "gae", "whiten_rewards": True}, "reward_clip": 8.0},
])
def test_every_way_of_policy_optimisation_raises_its_reward(llama: SharedModel, settings: dict[str, Any]) -> None:
    steps = train_tiny(llama, "ppo", steps=18, **settings)
    assert mean(steps[-3:], "proxy") > mean(steps[:3], "proxy") + 1.0


def test_an_estimator_without_a_critic_trains_the_policy_alone(llama: SharedModel) -> None:
    step = train_tiny(llama, "ppo", steps=1, advantage={"name": "rloo"})[0]
    assert list(llama.records) == ["policy"]
    assert "explained_variance" not in step.metrics and "value_loss" not in step.metrics
    groups = step.state._optimizer.param_groups
    assert [len(group["params"]) for group in groups] == [len(llama.parameters("policy"))]


@pytest.mark.parametrize("advantage", ["gae", "rloo"])
def test_accumulated_micro_batches_equal_one_batch(advantage: str) -> None:
    results = []
    for micro_tokens in (16, 4096):
        model = SharedModel.load("tiny-llama", dtype="float32", device="cpu")
        train_tiny(model, "ppo", steps=2, epochs=1, micro_tokens=micro_tokens, optimizer=STEADY, token_mean="answer",
                   advantage={"name": advantage}, entropy_coefficient=0.1, kl_in="loss", kl_coefficient=0.1)
        results.append(torch.cat([p.detach().flatten() for role in model.records for p in model.parameters(role)]))
    torch.testing.assert_close(results[0], results[1], atol=2e-4, rtol=2e-3)


@pytest.mark.parametrize(("epochs", "minibatches"), [(1, 1), (3, 1), (1, 4), (2, 4)])
def test_optimizer_steps_are_epochs_times_minibatches(
        llama: SharedModel, monkeypatch: pytest.MonkeyPatch, epochs: int, minibatches: int) -> None:
    # TRL's num_mini_batches left the number of steps at num_ppo_epochs (huggingface/trl issue 5645).
    taken = []
    step = torch.optim.AdamW.step
    monkeypatch.setattr(torch.optim.AdamW, "step", lambda self, *a: (taken.append(1), step(self, *a))[1])
    steps = train_tiny(llama, "ppo", steps=2, epochs=epochs, minibatches=minibatches)
    assert len(taken) == 2 * epochs * minibatches == steps[-1].state.number
    assert [each.metrics["updates"] for each in steps] == [epochs * minibatches] * 2


@pytest.mark.parametrize("epochs", [1, 2])
def test_no_metric_is_diluted_by_zeros_of_unused_slots(llama: SharedModel, epochs: int) -> None:
    # TRL averaged over a [epochs, minibatches, accumulation] array larger than what was filled (trl issue 7012).
    # With a rate of 0 every pass sees the same policy, so each mean is what one pass over all tokens gives.
    reward = Letters()
    step = train_tiny(llama, "ppo", steps=1, epochs=epochs, minibatches=4, micro_tokens=32, reward=reward,
                      optimizer={"learning_rate": 0.0}, value_learning_rate=0.0,
                      advantage={"name": "rloo"}, policy_loss={"name": "reinforce"})[0]
    rollouts = reward.rollouts[0]
    logprobs = [torch.tensor(rollout.logprobs) for rollout in rollouts]
    scores = torch.tensor([10 * sum("a" <= x <= "m" for x in r.text) / max(1, len(r.text)) - (not r.stopped)
                           for r in rollouts]).view(8, 4)
    advantages = (scores - (scores.sum(1, keepdim=True) - scores) / 3).flatten()
    losses = torch.cat([-a * logprob for a, logprob in zip(advantages, logprobs, strict=True)])
    assert step.metrics["policy_loss"] == pytest.approx(losses.mean().item(), abs=1e-4)
    assert step.metrics["update_kl"] == pytest.approx(0.0, abs=1e-6)


def test_the_end_of_an_answer_is_what_the_sampler_says_and_lies_on_its_last_token(llama: SharedModel) -> None:
    # TRL asked for eos_token_id where the run stopped at another token, so the penalty never fired or always did
    # (ppo_trainer.py, stop_token); and it could put the score on padding. Here `finish` decides, and nothing is padded.
    reward = Letters()
    step = train_tiny(llama, "ppo", steps=1, reward=reward, max_new_tokens=24, samples=8)[0]
    rollouts = reward.rollouts[0]
    stops = set(llama.tokenizer.all_special_ids)
    stopped = [rollout.token_ids[-1] in stops for rollout in rollouts]
    assert [rollout.stopped for rollout in rollouts] == stopped and 0 < sum(stopped) < len(stopped)
    assert step.metrics["stop_rate"] == sum(stopped) / len(stopped)
    assert all(rollout.token_ids[-1] not in stops for rollout in rollouts if len(rollout.token_ids) == 24
               and not rollout.stopped)


def test_a_critic_warms_up_while_the_policy_waits(llama: SharedModel) -> None:
    steps = train_tiny(llama, "ppo", steps=3, critic_warmup=2)
    assert [step.metrics["kl"] == 0 for step in steps] == [True, True, True], "measured before each update"
    assert "policy_loss" not in steps[1].metrics and steps[2].metrics["policy_loss"] is not None
    assert steps[1].metrics["value_loss"] is not None


def test_during_the_warm_up_only_the_critic_moves(llama: SharedModel) -> None:
    seen: dict[str, list[torch.Tensor]] = {"policy": [], "value": []}
    letters = Letters()

    def reward(rollouts: Sequence[Rollout]) -> list[Score]:  # called before each update
        for role, weights in seen.items():
            weights.append(torch.cat([p.detach().flatten() for p in llama.parameters(role)]))
        return letters(rollouts)

    train_tiny(llama, "ppo", steps=3, critic_warmup=1, reward=reward, optimizer={**STEADY, "weight_decay": 0.1})
    moved = {role: [not torch.equal(a, b) for a, b in pairwise(weights)] for role, weights in seen.items()}
    assert moved == {"policy": [False, True], "value": [True, True]}


def test_a_policy_that_moved_too_far_ends_the_updates_of_a_rollout(llama: SharedModel) -> None:
    steps = train_tiny(llama, "ppo", steps=2, epochs=8, stop_kl=1e-3, advantage={"name": "rloo"})
    assert all(1 <= step.metrics["updates"] < 8 for step in steps)
    assert steps[-1].state.number == sum(step.metrics["updates"] for step in steps)


def test_a_kl_term_in_the_loss_holds_the_policy(llama: SharedModel) -> None:
    moved = []
    for coefficient in (0.0, 1.0):
        model = SharedModel.load("tiny-llama", dtype="float32", device="cpu")
        steps = train_tiny(model, "ppo", steps=10, advantage={"name": "rloo"}, kl_in="loss", kl_coefficient=coefficient,
                           epochs=2)
        moved.append(steps[-1].metrics["kl_k3"])
    assert moved[1] < 0.5 * moved[0]


def test_the_three_estimates_of_the_kl_are_logged(llama: SharedModel) -> None:
    last = train_tiny(llama, "ppo", steps=4)[-1].metrics
    assert last["kl_k2"] > 0 and last["kl_k3"] > 0 and last["kl"] != last["kl_k2"] != last["kl_k3"]


def test_a_steered_coefficient_follows_the_measured_kl(llama: SharedModel) -> None:
    steps = train_tiny(llama, "ppo", steps=3, kl_coefficient=0.1, kl_target=1e-3, kl_horizon=100)
    values = [step.metrics["kl_coefficient"] for step in steps]
    assert values[0] == 0.1
    assert values[1] == pytest.approx(0.1 * (1 - 0.2 * 32 / 100)), "the first rollout has no KL at all"
    error = max(-0.2, min(0.2, steps[1].metrics["kl"] / 1e-3 - 1))
    assert values[2] == pytest.approx(values[1] * (1 + error * 32 / 100))


def test_an_entropy_bonus_keeps_the_policy_random(llama: SharedModel) -> None:
    entropies = []
    for coefficient in (0.0, 1.0):
        model = SharedModel.load("tiny-llama", dtype="float32", device="cpu")
        steps = train_tiny(model, "ppo", steps=8, advantage={"name": "rloo", "whiten_advantages": True},
                           entropy_coefficient=coefficient)
        entropies.append(mean(steps[-2:], "entropy"))
    assert entropies[1] > entropies[0] + 0.1


@pytest.mark.parametrize("advantage", ["rloo", "grpo"])
def test_methods_that_compare_answers_refuse_one_sample(llama: SharedModel, advantage: str) -> None:
    with pytest.raises(RunError, match="samples must be at least 2"):
        train_tiny(llama, "ppo", steps=1, samples=1, advantage={"name": advantage})


@pytest.mark.parametrize(("settings", "sentence"), [
    ({"kl_in": "loss", "kl_estimator": "k1"}, "kl_estimator must be k2 or k3 in the loss: the gradient of k1 there is"),
    ({"critic_warmup": 30}, "critic_warmup must be below steps"),
])
def test_settings_that_could_not_learn_are_refused(settings: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence) as refused:
        make_run("ppo", settings)
    assert "\n" not in str(refused.value)


def test_a_critic_that_is_not_there_cannot_warm_up(llama: SharedModel) -> None:
    with pytest.raises(ConfigError, match="critic_warmup: advantage rloo has no critic"):
        train_tiny(llama, "ppo", steps=3, critic_warmup=1, advantage={"name": "rloo"})


def test_a_reward_that_tells_nothing_apart_moves_no_weight_of_rloo(llama: SharedModel) -> None:
    llama.add_role("policy", Lora(rank=8))
    before = [parameter.clone() for parameter in llama.parameters("policy")]
    steps = train_tiny(llama, "ppo", reward=constant, steps=2, keep_roles=True, advantage={"name": "rloo"},
                       end={"rule": "none"})
    assert all(torch.equal(a, b) for a, b in zip(before, llama.parameters("policy"), strict=True))
    assert [step.metrics["constant_rewards"] for step in steps] == [1, 2]


def gradient(state: TrainState) -> torch.Tensor:
    return torch.cat([p.grad.flatten() for group in state._optimizer.param_groups for p in group["params"]
                      if p.grad is not None])


@pytest.fixture
def both_ways(monkeypatch: pytest.MonkeyPatch) -> dict[str, list[torch.Tensor]]:
    """Let every rollout be learnt from by one read and by two, on the same weights; the gradients of each way."""
    found: dict[str, list[torch.Tensor]] = {"once": [], "twice": []}
    optimize = TrainState.optimize

    def read(self: Learner, scored: ScoredRollout) -> Reading:
        once = self.read_and_learn(scored)
        found["once"].append(gradient(self.state))
        self.state.forget_gradients()
        self._learnt = None
        twice = read_rollout(self.run, self.model, scored, role=self.role, reference=self.reference)
        for first, second in zip(once, twice, strict=True):
            torch.testing.assert_close(first, second, atol=1e-6, rtol=1e-6)
        return twice

    def recorded(self: TrainState) -> None:
        found["twice"].append(gradient(self))
        optimize(self)

    monkeypatch.setattr(Learner, "read", read)
    monkeypatch.setattr(TrainState, "optimize", recorded)
    return found


@pytest.mark.parametrize("settings", [
    {"kl_coefficient": 0.1},
    {"kl_coefficient": 0.1, "advantage": {"name": "gae", "whiten_rewards": True, "baseline": "prompt"}},
    {"kl_coefficient": 0.1, "advantage": {"name": "gae", "whiten_advantages": False}, "token_mean": "answer"},
    {"kl_coefficient": 0.1, "kl_in": "loss", "entropy_coefficient": 0.1, "value_clip": None},
    {"kl_coefficient": 0.1, "advantage": {"name": "rloo"}, "policy_loss": {"name": "reinforce"}},
    {"kl_coefficient": 0.1, "advantage": {"name": "grpo"}, "temperature": 0.8},
])
def test_reading_once_gives_the_gradients_of_reading_twice(
        llama: SharedModel, both_ways: dict[str, list[torch.Tensor]], settings: dict[str, Any]) -> None:
    last = train_tiny(llama, "ppo", steps=3, epochs=1, micro_tokens=64, **settings)[-1]
    assert abs(last.metrics["kl_k3"]) > 1e-4, "the KL term is at work"
    assert len(both_ways["once"]) == len(both_ways["twice"]) == 3
    for once, twice in zip(*both_ways.values(), strict=True):
        assert (once - twice).norm() < 1e-6 * twice.norm()


def read_by(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The roles that read for training from now on, in turn; a name in capitals reads with a gradient."""
    seen: list[str] = []
    hidden = SharedModel.hidden

    def noted(self: SharedModel, batch: Any, role: str | None) -> torch.Tensor:
        states = hidden(self, batch, role)
        seen.append(str(role).upper() if states.requires_grad else str(role))
        return states

    monkeypatch.setattr(SharedModel, "hidden", noted)
    return seen


def test_a_rollout_that_is_learnt_from_once_is_read_once_by_every_role(
        llama: SharedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = read_by(monkeypatch)
    train_tiny(llama, "ppo", steps=1, epochs=1)
    assert seen == ["None", "VALUE", "POLICY"]
    seen.clear()
    train_tiny(SharedModel.load("tiny-llama", dtype="float32", device="cpu"), "ppo", steps=1, epochs=2)
    assert seen == ["policy", "None", "value", "POLICY", "VALUE", "POLICY", "VALUE"]


def test_a_sampler_that_disagrees_with_the_trainer_has_the_rollout_read_again(
        llama: SharedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rlhflab.train.ppo.engine_agrees", lambda gap, *, dtype: False)
    seen = read_by(monkeypatch)
    step = train_tiny(llama, "ppo", steps=1, epochs=1, kl_coefficient=0.1)[-1]
    assert seen == ["None", "VALUE", "POLICY", "value", "POLICY", "VALUE"]
    assert step.metrics["updates"] == step.state.number == 1
