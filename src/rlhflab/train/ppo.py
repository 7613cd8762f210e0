"""PPO on scored answers: sample, score, estimate advantages, take epochs x minibatches clipped steps.

RLOO and GRPO are the same loop with another advantage and no critic. No reward model here: scores arrive as numbers.
A rollout that is learnt from once is read once: `read_and_learn`, the fast path, which a reader may skip. Axes: s
scored tokens of a rollout, m those of a micro-batch.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
from jaxtyping import Float, Int
from torch import Tensor

from rlhflab.config import PpoRun
from rlhflab.core.batch import Batch
from rlhflab.core.logprobs import TokenScores
from rlhflab.core.losses import PolicyLoss, policy_loss, ppo_value_loss
from rlhflab.core.returns import KL, Episodes, Estimator, advantage_estimator, explained_variance, token_weights
from rlhflab.data.chat import ChatFormat
from rlhflab.data.types import Prompt
from rlhflab.errors import ConfigError, RunError
from rlhflab.model.shared import SharedModel
from rlhflab.rollout.rewards import Reward
from rlhflab.rollout.scoring import read_trees
from rlhflab.train.guards import engine_agrees, engine_gap
from rlhflab.train.kl import KlCoefficient
from rlhflab.train.rollouts import Observer, Reading, Sampled, ScoredRollout, read_rollout, sample_rollouts
from rlhflab.train.state import Saved, Step, TrainState


def train_ppo(run: PpoRun, model: SharedModel, prompts: Sequence[Prompt], *, chat: ChatFormat, reward: Reward,
              reference: str | None, observe: Observer = lambda sampled: {}, role: str = "policy",
              value_role: str = "value", saved: Saved | None = None) -> Iterator[Step]:
    """Yields after every rollout and its optimizer steps. `reference` is None where the policy began as the base.

    `value_role` is there only where the advantage needs a critic.
    """
    assert run.steps is not None
    critic = value_role if has_critic(run) else None
    planned = run.epochs * run.minibatches
    state = TrainState(run.optimizer, parameter_groups(run, model, role, critic), total=run.steps * planned,
                       may_have_nothing_to_learn=True, saved=saved)
    kl_coefficient = KlCoefficient(run.kl_coefficient, target=run.kl_target, horizon=run.kl_horizon)
    state.carry("kl_coefficient", kl_coefficient)
    learner = Learner(run, model, state, kl_coefficient, role=role, critic=critic, reference=reference)
    rollouts = sample_rollouts(run, model, prompts, state, chat=chat, reward=reward, reference=reference,
                               observe=observe, role=role, read=learner.read)
    for number, sampled in enumerate(rollouts, start=state.done):
        experience, taken = learner.learn(sampled)
        metrics = {**describe(sampled, experience), "updates": float(taken), "kl_coefficient": kl_coefficient.value}
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
    """What is to be learnt from a rollout, on the CPU."""

    advantage: Float[Tensor, " s"]
    value: Float[Tensor, " s"] | None
    """The critic's before the update, None without one."""
    returns: Float[Tensor, " s"] | None


class Learner:
    """Lets the roles read rollouts, and takes the optimizer steps on them."""

    def __init__(self, run: PpoRun, model: SharedModel, state: TrainState, kl_coefficient: KlCoefficient, *, role: str,
                 critic: str | None, reference: str | None) -> None:
        self.run, self.model, self.state, self.kl_coefficient = run, model, state, kl_coefficient
        self.role, self.critic, self.reference = role, critic, reference
        self.estimate: Estimator = advantage_estimator.bind(run.advantage.name, run.advantage.options,
                                                            where="advantage")
        self.loss_of: PolicyLoss = policy_loss.bind(run.policy_loss.name, run.policy_loss.options, where="policy_loss")
        self._learnt: Experience | None = None
        """Of the rollout that was read last, where its gradients are there already."""

    def read(self, scored: ScoredRollout) -> Reading:
        """Policy and reference read a rollout. One that is learnt from once leaves its gradients too."""
        run, self._learnt = self.run, None
        if self._policy_learns(scored) and run.epochs * run.minibatches == 1:
            return self.read_and_learn(scored)
        return read_rollout(run, self.model, scored, role=self.role, reference=self.reference)

    def learn(self, sampled: Sampled) -> tuple[Experience, int]:
        """The optimizer steps on a rollout; what was learnt from it, and how many were taken."""
        if self._learnt is not None:
            self.state.optimize()
            return self._learnt, 1
        run, experience, taken = self.run, self.gather_experience(sampled), 0
        groups = [group for epoch in range(run.epochs) for group in minibatches(
            len(sampled.trees), run.minibatches, seed=(sampled.number - 1) * 1_000_003 + epoch)]
        if len(groups) != run.epochs * run.minibatches:
            raise RunError(f"{len(groups)} optimizer steps would be taken, not {run.epochs * run.minibatches}: a "
                           f"rollout has fewer prompts than minibatches ({run.minibatches})")
        while taken < len(groups) and self.step(sampled, experience, groups[taken]):
            taken += 1
        return experience, taken

    def gather_experience(self, sampled: Sampled) -> Experience:
        """Values and advantages of a rollout."""
        critic = self.critic
        value = None if critic is None else torch.cat(read_trees(
            self.model, sampled.trees, lambda batch: self.model.values(batch, critic), per="token",
            micro_tokens=self.run.micro_tokens, shelf=sampled.shelf))
        return self._experience(self._episodes(sampled, sampled.logprob, sampled.reference), value)

    def step(self, sampled: Sampled, experience: Experience, trees: Sequence[int]) -> bool:
        """One optimizer step of policy and value on some trees of the rollout.

        False, and no step, where the policy is further than `stop_kl` from the one that sampled.
        """
        run, of_trees = self.run, sampled.tokens_of(trees)
        weight = torch.zeros(len(sampled.owner)).index_add(0, of_trees, self._weights(sampled.owner[of_trees]))

        def learn(part: list[int]) -> float:
            batch, token = self._micro_batch(sampled, [trees[i] for i in part])
            update_kl = 0.0
            if self._policy_learns(sampled):
                update_kl = self._policy_loss(
                    self.model.logprobs(batch, self.role, temperature=run.temperature), sampled.logprob[token],
                    sampled.reference[token], experience.advantage[token], weight[token])
            if self.critic is not None:
                assert experience.value is not None and experience.returns is not None
                self._value_loss(self.model.values(batch, self.critic), experience.value[token],
                                 experience.returns[token], weight[token])
            return update_kl

        update_kl = sum(self.state.accumulate([len(sampled.trees[i]) for i in trees], learn,
                                              micro_tokens=run.micro_tokens))
        if run.stop_kl is not None and update_kl / len(of_trees) > run.stop_kl:
            self.state.forget_gradients()
            return False
        self.state.optimize()
        return True

    def read_and_learn(self, scored: ScoredRollout) -> Reading:
        """Each role reads the rollout once, and what is trained leaves the gradients of its one optimizer step.

        The policy is still the one that sampled: old log-probs are the new ones without gradient, and the ratio is 1.
        In a KL term of the reward the sampler's log-probs stand for those that the policy has not read yet, which
        touches the critic's returns and what advantages are whitened by. Where they are further from the training
        forward's than a run may begin with, the gradients are dropped, and `learn` reads again.
        """
        meter = self.state.meter.copy()
        reading, experience, holds = self.state.within_memory(
            [len(tree) for tree in scored.trees], partial(self._pass_over, scored), micro_tokens=self.run.micro_tokens)
        if holds:
            self._learnt = experience
        else:
            self.state.forget_gradients()
            self.state.meter = meter
        return reading

    def _pass_over(self, scored: ScoredRollout, groups: Sequence[Sequence[int]]) -> tuple[Reading, Experience, bool]:
        """One role after the other reads all micro-batches, critic and policy with their backward passes.

        Advantages may be whitened over the rollout, so the policy reads when all values are there. The last result says
        whether the experience holds: whether it is what reading twice would give.
        """
        run, model = self.run, self.model
        parts = [self._micro_batch(scored, group) for group in groups]
        weight = self._weights(scored.owner)
        logprob, (entropy, reference) = scored.engine.clone(), torch.zeros(2, len(scored.owner))
        for batch, token in parts:
            with torch.no_grad():
                reference[token] = model.logprobs(batch, self.reference, temperature=run.temperature).logprob.cpu()
        value, holds = None, True
        if self.critic is not None:
            value, holds = self._learn_values(parts, self._episodes(scored, logprob, reference), weight)
        for batch, token in parts:
            scores = model.logprobs(batch, self.role, temperature=run.temperature)
            logprob[token], entropy[token] = (each.detach().cpu() for each in scores)
            experience = self._experience(self._episodes(scored, logprob, reference), value)
            self._policy_loss(scores, scores.logprob.detach(), reference[token], experience.advantage[token],
                              weight[token])
        if self._in_reward:
            holds = holds and engine_agrees(engine_gap(scored.engine, logprob), dtype=model.unembedding.dtype)
        return Reading(logprob, entropy, reference), experience, holds

    def _learn_values(self, parts: Sequence[tuple[Batch, Tensor]], episodes: Episodes,
                      weight: Float[Tensor, " s"]) -> tuple[Float[Tensor, " s"], bool]:
        """The critic reads all micro-batches with their backward passes: its values, and whether it was taught right.

        Where the returns of an answer rest on its own values alone, those of a micro-batch are known when it is read.
        """
        assert self.critic is not None
        value, taught = torch.zeros(2, len(weight))
        for batch, token in parts:
            read = self.model.values(batch, self.critic)
            value[token] = read.detach().cpu()
            returns = self._experience(episodes, value).returns
            assert returns is not None
            taught[token] = returns[token]
            self._value_loss(read, value[token], taught[token], weight[token])
        assert returns is not None
        return value, torch.equal(taught, returns)

    def _policy_learns(self, scored: ScoredRollout) -> bool:
        """Not while the critic warms up."""
        return scored.number > self.run.critic_warmup

    @property
    def _in_reward(self) -> float:
        """Coefficient of the KL term in the reward, of which it is a part unless the run has it in the loss."""
        return self.kl_coefficient.value if self.run.kl_in == "reward" else 0.0

    def _micro_batch(self, scored: ScoredRollout, trees: Sequence[int]) -> tuple[Batch, Int[Tensor, " m"]]:
        """Some trees of the rollout as a batch, and the places of its tokens."""
        return scored.shelf.pack([scored.trees[i] for i in trees], self.model.device), scored.tokens_of(trees)

    def _weights(self, owner: Int[Tensor, " m"]) -> Float[Tensor, " m"]:
        return token_weights(owner, how=self.run.token_mean, budget=self.run.max_new_tokens)

    def _episodes(self, scored: ScoredRollout, logprob: Float[Tensor, " s"],
                  reference: Float[Tensor, " s"]) -> Episodes:
        return Episodes(score=scored.score, penalty=self._in_reward * KL[self.run.kl_kind](logprob, reference),
                        owner=scored.owner, prompt=scored.prompt)

    def _experience(self, episodes: Episodes, value: Float[Tensor, " s"] | None) -> Experience:
        advantage, returns = self.estimate(replace(episodes, value=value))
        return Experience(advantage=advantage, value=value, returns=returns)

    def _policy_loss(self, scores: TokenScores, old: Float[Tensor, " m"], reference: Float[Tensor, " m"],
                     advantage: Float[Tensor, " m"], weight: Float[Tensor, " m"]) -> float:
        """Backward through the policy's loss on a micro-batch; the sum of its KL from the policy that sampled."""
        run = self.run
        old, reference, advantage, weight = (x.to(self.model.device) for x in (old, reference, advantage, weight))
        loss = self.loss_of(scores.logprob, old, advantage)
        each = loss.each
        if run.kl_in == "loss":
            each = each + self.kl_coefficient.value * KL[run.kl_kind](scores.logprob, reference)
        if run.entropy_coefficient:
            each = each - run.entropy_coefficient * scores.entropy
        (weight * each).sum().backward()
        self.state.note({**loss.metrics, "entropy": scores.entropy})
        return float(loss.metrics["update_kl"].sum())

    def _value_loss(self, value: Float[Tensor, " m"], old: Float[Tensor, " m"], returns: Float[Tensor, " m"],
                    weight: Float[Tensor, " m"]) -> None:
        """Backward through the critic's loss on a micro-batch."""
        old, returns, weight = (x.to(self.model.device) for x in (old, returns, weight))
        loss = ppo_value_loss(value, old, returns, clip=self.run.value_clip)
        (self.run.value_coefficient * weight * loss.each).sum().backward()
        self.state.note(loss.metrics)


def minibatches(trees: int, count: int, *, seed: int) -> list[list[int]]:
    """`count` groups of tree numbers of nearly equal size, in a seeded order."""
    order = torch.randperm(trees, generator=torch.Generator().manual_seed(seed)).tolist()
    groups = [order[start::count] for start in range(count)]
    return [group for group in groups if group]


def describe(sampled: Sampled, experience: Experience) -> dict[str, float | None]:
    """What a rollout looked like before its update. KL in nats an answer, proxy without KL and end rule."""
    metrics = dict(sampled.metrics)
    if experience.value is not None and experience.returns is not None:
        metrics["explained_variance"] = float(explained_variance(experience.value, experience.returns))
    return metrics
