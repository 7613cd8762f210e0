"""PPO on scored answers: sample, score, estimate advantages, take epochs x minibatches clipped steps.

RLOO and GRPO are the same loop with another advantage and no critic. No reward model here: scores arrive as numbers.
Axes: s scored tokens of a rollout.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from rlhflab.config import PpoRun
from rlhflab.core.batch import Batch
from rlhflab.core.losses import PolicyLoss, policy_loss, ppo_value_loss
from rlhflab.core.returns import KL, Episodes, Estimator, advantage_estimator, explained_variance, token_weights
from rlhflab.data.chat import ChatFormat
from rlhflab.data.types import Prompt
from rlhflab.errors import ConfigError, RunError
from rlhflab.model.shared import SharedModel
from rlhflab.rollout.rewards import Reward
from rlhflab.rollout.scoring import read_trees
from rlhflab.train.kl import KlCoefficient
from rlhflab.train.rollouts import Observer, Sampled, sample_rollouts
from rlhflab.train.state import Saved, Step, TrainState


def train_ppo(run: PpoRun, model: SharedModel, prompts: Sequence[Prompt], *, chat: ChatFormat, reward: Reward,
              reference: str | None, observe: Observer = lambda sampled: {}, role: str = "policy",
              value_role: str = "value", saved: Saved | None = None) -> Iterator[Step]:
    """Yields after every rollout and its optimizer steps. `reference` is None where the policy began as the base.

    `value_role` is there only where the advantage needs a critic.
    """
    assert run.steps is not None
    critic = value_role if has_critic(run) else None
    estimate: Estimator = advantage_estimator.bind(run.advantage.name, run.advantage.options, where="advantage")
    loss_of: PolicyLoss = policy_loss.bind(run.policy_loss.name, run.policy_loss.options, where="policy_loss")
    planned = run.epochs * run.minibatches
    state = TrainState(run.optimizer, parameter_groups(run, model, role, critic), total=run.steps * planned,
                       may_have_nothing_to_learn=True, saved=saved)
    kl_coefficient = KlCoefficient(run.kl_coefficient, target=run.kl_target, horizon=run.kl_horizon)
    state.carry("kl_coefficient", kl_coefficient)
    rollouts = sample_rollouts(run, model, prompts, state, chat=chat, reward=reward, reference=reference,
                               observe=observe, role=role)
    for number, sampled in enumerate(rollouts, start=state.done):
        experience = gather_experience(run, model, sampled, estimate, kl_coefficient.value, critic=critic)
        learner = Learner(run, model, state, experience, loss_of, role=role, critic=critic,
                          policy_learns=number >= run.critic_warmup)
        groups = [group for epoch in range(run.epochs)
                  for group in minibatches(len(sampled.trees), run.minibatches, seed=number * 1_000_003 + epoch)]
        if len(groups) != planned:
            raise RunError(f"{len(groups)} optimizer steps would be taken, not {planned}: a rollout has fewer prompts "
                           f"than minibatches ({run.minibatches})")
        taken = 0
        for group in groups:
            if not learner.step(group):
                break
            taken += 1
        metrics = {**describe(experience), "updates": float(taken), "kl_coefficient": kl_coefficient.value}
        kl_coefficient.update(metrics["kl"] or 0.0, answers=len(sampled.score))
        yield state.finish_step(metrics)._replace(number=number + 1)


def has_critic(run: PpoRun) -> bool:
    """Whether the run's advantage needs a value role. ConfigError where the run warms up a critic it has not."""
    needed = "critic" in advantage_estimator.entry(run.advantage.name, where="advantage").needs
    if run.critic_warmup and not needed:
        raise ConfigError(f"critic_warmup: advantage {run.advantage.name} has no critic that could warm up")
    return needed


def parameter_groups(run: PpoRun, model: SharedModel, role: str,
                     critic: str | None) -> list[tuple[list[torch.nn.Parameter], float]]:
    """What is trained, at which learning rate."""
    rate = run.optimizer.learning_rate
    groups = [(model.parameters(role), rate)]
    if critic is not None:
        adapter_rate = rate if run.value_adapter_learning_rate is None else run.value_adapter_learning_rate
        groups += [(model.parameters(critic), adapter_rate), (model.head_parameters(critic), run.value_learning_rate)]
    return groups


@dataclass(frozen=True, slots=True, kw_only=True)
class Experience:
    """A rollout with what is to be learnt from it, on the CPU."""

    sampled: Sampled
    tree_of_token: Int[Tensor, " s"]
    advantage: Float[Tensor, " s"]
    value: Float[Tensor, " s"] | None
    """The critic's before the update, None without one."""
    returns: Float[Tensor, " s"] | None
    kl_coefficient: float


def gather_experience(run: PpoRun, model: SharedModel, sampled: Sampled, estimate: Estimator, kl_coefficient: float, *,
                      critic: str | None) -> Experience:
    """Values and advantages of a rollout. The KL term is part of the reward unless the run has it in the loss."""
    value = None if critic is None else torch.cat(read_trees(
        model, sampled.trees, lambda batch: model.values(batch, critic), per="token", micro_tokens=run.micro_tokens,
        shelf=sampled.shelf))
    in_reward = kl_coefficient if run.kl_in == "reward" else 0.0
    advantage, returns = estimate(Episodes(
        score=sampled.score, penalty=in_reward * KL[run.kl_kind](sampled.logprob, sampled.reference),
        owner=sampled.owner, prompt=sampled.prompt, value=value))
    return Experience(sampled=sampled, tree_of_token=sampled.prompt[sampled.owner], advantage=advantage, value=value,
                      returns=returns, kl_coefficient=kl_coefficient)


class Learner:
    """The optimizer steps on one rollout."""

    def __init__(self, run: PpoRun, model: SharedModel, state: TrainState, experience: Experience, loss_of: PolicyLoss,
                 *, role: str, critic: str | None, policy_learns: bool) -> None:
        """`policy_learns` is False while the critic warms up."""
        self.run, self.model, self.state, self.experience = run, model, state, experience
        self.loss_of, self.role, self.critic, self.policy_learns = loss_of, role, critic, policy_learns

    def step(self, trees: Sequence[int]) -> bool:
        """One optimizer step of policy and value on some trees of the rollout.

        False, and no step, where the policy is further than `stop_kl` from the one that sampled.
        """
        run, sampled = self.run, self.experience.sampled
        of_trees = torch.isin(self.experience.tree_of_token, torch.tensor(trees)).nonzero().squeeze(-1)
        weight = torch.zeros(len(sampled.owner)).index_add(0, of_trees, token_weights(
            sampled.owner[of_trees], how=run.token_mean, budget=run.max_new_tokens))

        def learn(part: list[int]) -> float:
            chosen = [trees[i] for i in part]
            batch = sampled.shelf.pack([sampled.trees[i] for i in chosen], self.model.device)
            token = torch.cat([(self.experience.tree_of_token == i).nonzero().squeeze(-1) for i in chosen])
            update_kl = self._policy_loss(batch, token, weight[token]) if self.policy_learns else 0.0
            if self.critic is not None:
                self._value_loss(batch, token, weight[token])
            return update_kl

        update_kl = sum(self.state.accumulate([len(sampled.trees[i]) for i in trees], learn,
                                              micro_tokens=run.micro_tokens))
        if run.stop_kl is not None and update_kl / len(of_trees) > run.stop_kl:
            self.state.forget_gradients()
            return False
        self.state.optimize()
        return True

    def _policy_loss(self, batch: Batch, token: Int[Tensor, " m"], weight: Float[Tensor, " m"]) -> float:
        """Backward through the policy's loss on a micro-batch; the sum of its KL from the policy that sampled."""
        run, sampled = self.run, self.experience.sampled
        old, reference, advantage, weight = (x.to(self.model.device) for x in (
            sampled.logprob[token], sampled.reference[token], self.experience.advantage[token], weight))
        scores = self.model.logprobs(batch, self.role, temperature=run.temperature)
        loss = self.loss_of(scores.logprob, old, advantage)
        each = loss.each
        if run.kl_in == "loss":
            each = each + self.experience.kl_coefficient * KL[run.kl_kind](scores.logprob, reference)
        if run.entropy_coefficient:
            each = each - run.entropy_coefficient * scores.entropy
        (weight * each).sum().backward()
        self.state.note({**loss.metrics, "entropy": scores.entropy})
        return float(loss.metrics["update_kl"].sum())

    def _value_loss(self, batch: Batch, token: Int[Tensor, " m"], weight: Float[Tensor, " m"]) -> None:
        """Backward through the critic's loss on a micro-batch."""
        assert self.critic is not None and self.experience.value is not None and self.experience.returns is not None
        old, returns, weight = (x.to(self.model.device) for x in (
            self.experience.value[token], self.experience.returns[token], weight))
        loss = ppo_value_loss(self.model.values(batch, self.critic), old, returns, clip=self.run.value_clip)
        (self.run.value_coefficient * weight * loss.each).sum().backward()
        self.state.note(loss.metrics)


def minibatches(trees: int, count: int, *, seed: int) -> list[list[int]]:
    """`count` groups of tree numbers of nearly equal size, in a seeded order."""
    order = torch.randperm(trees, generator=torch.Generator().manual_seed(seed)).tolist()
    groups = [order[start::count] for start in range(count)]
    return [group for group in groups if group]


def describe(experience: Experience) -> dict[str, float | None]:
    """What a rollout looked like before its update. KL in nats an answer, proxy without KL and end rule."""
    metrics = dict(experience.sampled.metrics)
    if experience.value is not None and experience.returns is not None:
        metrics["explained_variance"] = float(explained_variance(experience.value, experience.returns))
    return metrics
