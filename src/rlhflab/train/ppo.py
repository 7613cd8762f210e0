"""PPO on scored answers: sample, score, estimate advantages, take epochs x minibatches clipped steps.

No reward model here: scores arrive as numbers. Axes: s scored tokens of a rollout, n answers.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from rlhflab.config import EndRule, PpoRun
from rlhflab.core.batch import Tree, micro_batches, pack
from rlhflab.core.losses import ppo_policy_loss, ppo_value_loss
from rlhflab.core.returns import explained_variance, gae, kl_k1, kl_k3, token_rewards, whiten
from rlhflab.data.chat import ChatFormat
from rlhflab.data.types import Prompt, Rollout, Score
from rlhflab.errors import RunError
from rlhflab.model.shared import SharedModel
from rlhflab.rollout.rewards import Reward
from rlhflab.rollout.sampling import rollout_trees, sample
from rlhflab.rollout.scoring import read_trees, tree_logprobs
from rlhflab.train.guards import engine_gap, refuse_engine_gap, refuse_wrong_reference
from rlhflab.train.state import Saved, Schedule, Step, TrainState

Observer = Callable[[Sequence[Rollout], Sequence[Score]], dict[str, float | None]]
"""Looks at a rollout's answers and their scores; what it returns is logged with the step."""
MOST_UNSCORED = 0.1
"""Share of unscored answers in a rollout above which the run stops."""


def train_ppo(run: PpoRun, model: SharedModel, prompts: Sequence[Prompt], *, chat: ChatFormat, reward: Reward,
              reference: str | None, observe: Observer = lambda rollouts, scores: {}, role: str = "policy",
              value_role: str = "value", saved: Saved | None = None) -> Iterator[Step]:
    """Yields after every rollout and its optimizer steps. `reference` is None where the policy began as the base."""
    assert run.steps is not None
    per_rollout = run.epochs * run.minibatches
    state = TrainState(run.optimizer, [(model.parameters(role), run.optimizer.learning_rate),
                                       (model.parameters(value_role), run.optimizer.learning_rate),
                                       (model.head_parameters(value_role), run.value_learning_rate)],
                       total=run.steps * per_rollout, may_have_nothing_to_learn=True, saved=saved)
    schedule = Schedule(items=len(prompts), batch=run.batch, epochs=run.steps, steps=run.steps)
    for number, indices in enumerate(schedule.order(run.seed, done=state.done), start=state.done):
        rollouts = sample(model, chat, [prompts[i] for i in indices], role=role, samples=run.samples,
                          max_new_tokens=run.max_new_tokens, temperature=run.temperature,
                          seed=run.seed * 1_000_003 + number)
        scored = reward(rollouts)
        seen = observe(rollouts, scored)
        rollouts, scores, unscored = keep_scored(rollouts, scored)
        experience = gather_experience(run, model, rollouts, scores, role=role, value_role=value_role,
                                       reference=reference)
        if number == 0:
            state.note(refuse_wrong_reference(experience.logprob, experience.reference, role=role, name=reference))
            refuse_engine_gap(engine_gap(experience.engine, experience.logprob), dtype=model.unembedding.dtype)
        for epoch in range(run.epochs):
            for trees in minibatches(len(experience.trees), run.minibatches, seed=number * 1_000_003 + epoch):
                update(run, model, experience, trees, state, role=role, value_role=value_role)
        if state.number != (number + 1) * per_rollout:
            raise RunError(f"{state.number} optimizer steps were taken, not {(number + 1) * per_rollout}: a rollout "
                           f"has fewer prompts than minibatches ({run.minibatches})")
        metrics = {**describe(experience, rollouts, scores), "unscored": unscored, **seen}
        yield state.finish_step(metrics)._replace(number=number + 1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Experience:
    """A rollout as tensors on the CPU, its tokens in the order of `trees` and their answers."""

    trees: Sequence[Tree]
    owner: Int[Tensor, " s"]
    tree_of_token: Int[Tensor, " s"]
    engine: Float[Tensor, " s"]
    """Log-probs the sampler saw."""
    logprob: Float[Tensor, " s"]
    """Log-probs of the policy before the update, by the training forward: the ratio's denominator."""
    reference: Float[Tensor, " s"]
    value: Float[Tensor, " s"]
    advantage: Float[Tensor, " s"]
    returns: Float[Tensor, " s"]


def gather_experience(run: PpoRun, model: SharedModel, rollouts: Sequence[Rollout], scores: Sequence[float], *,
                      role: str, value_role: str, reference: str | None) -> Experience:
    """Log-probs, values and advantages of a rollout. The KL term is part of the reward, token by token."""
    trees = rollout_trees(rollouts)
    lengths = torch.tensor([len(rollout.token_ids) for rollout in rollouts])
    owner = torch.repeat_interleave(torch.arange(len(rollouts)), lengths)
    tree_of_answer = torch.tensor([i for i, tree in enumerate(trees) for _ in tree.answers])
    logprob, reference_logprob = (
        torch.cat(tree_logprobs(model, trees, role=each, micro_tokens=run.micro_tokens, temperature=run.temperature))
        for each in (role, reference))
    value = torch.cat(read_trees(model, trees, lambda batch: model.values(batch, value_role), per="token",
                                 micro_tokens=run.micro_tokens))
    final = torch.tensor([end_score(run.end, score, stopped=rollout.stopped)
                          for rollout, score in zip(rollouts, scores, strict=True)])
    if run.baseline == "prompt":
        final = less_prompt_baseline(final, tree_of_answer)
    reward = token_rewards(final, kl_k1(logprob, reference_logprob), owner, kl_coefficient=run.kl_coefficient)
    estimate = gae(reward, value, owner, gamma=run.gamma, gae_lambda=run.gae_lambda)
    return Experience(
        trees=trees, owner=owner, tree_of_token=tree_of_answer[owner],
        engine=torch.tensor([x for rollout in rollouts for x in rollout.logprobs]),
        logprob=logprob, reference=reference_logprob, value=value,
        advantage=whiten(estimate.advantage) if run.whiten_advantages else estimate.advantage, returns=estimate.returns)


def update(run: PpoRun, model: SharedModel, experience: Experience, trees: Sequence[int], state: TrainState, *,
           role: str, value_role: str) -> None:
    """One optimizer step of policy and value on some trees of a rollout. Losses are means over their tokens."""
    tokens = int(torch.isin(experience.tree_of_token, torch.tensor(trees)).sum())
    for part in micro_batches([len(experience.trees[i]) for i in trees], run.micro_tokens):
        chosen = [trees[i] for i in part]
        batch = pack([experience.trees[i] for i in chosen]).to(model.device)
        token = torch.cat([(experience.tree_of_token == i).nonzero().squeeze(-1) for i in chosen])
        old, advantage, old_value, returns = (x[token].to(model.device) for x in (
            experience.logprob, experience.advantage, experience.value, experience.returns))
        scores = model.logprobs(batch, role, temperature=run.temperature)
        policy_loss = ppo_policy_loss(scores.logprob, old, advantage, clip=run.clip)
        (policy_loss.each.sum() / tokens).backward()
        value_loss = ppo_value_loss(model.values(batch, value_role), old_value, returns, clip=run.value_clip)
        (run.value_coefficient * value_loss.each.sum() / tokens).backward()
        state.note({**policy_loss.metrics, **value_loss.metrics, "entropy": scores.entropy})
    state.optimize()


def minibatches(trees: int, count: int, *, seed: int) -> list[list[int]]:
    """`count` groups of tree numbers of nearly equal size, in a seeded order."""
    order = torch.randperm(trees, generator=torch.Generator().manual_seed(seed)).tolist()
    groups = [order[start::count] for start in range(count)]
    return [group for group in groups if group]


def keep_scored(rollouts: Sequence[Rollout],
                scores: Sequence[Score]) -> tuple[list[Rollout], list[float], int]:
    """The scored rollouts, their scores, and how many were not scored. RunError where those are too many."""
    kept = [(rollout, score.value) for rollout, score in zip(rollouts, scores, strict=True) if score.value is not None]
    unscored = len(rollouts) - len(kept)
    if unscored > MOST_UNSCORED * len(rollouts):
        example = next(score for score in scores if score.value is None)
        raise RunError(f"{unscored} of {len(rollouts)} answers could not be scored ({example.by}: "
                       f"{example.reason or 'no reason given'}); at most {MOST_UNSCORED:.0%} may be unscored")
    return [rollout for rollout, _ in kept], [score for _, score in kept], unscored


def less_prompt_baseline(score: Float[Tensor, " n"], prompt: Int[Tensor, " n"]) -> Float[Tensor, " n"]:
    """Each score less the mean of the other answers to its prompt; an answer without others keeps 0.

    It leaves the gradient unbiased (Ahmadian et al. 2024, arXiv:2402.14740, RLOO) and takes out how hard the prompt is,
    which a young critic does not know yet. `prompt`: the number of each answer's prompt.
    """
    count = torch.bincount(prompt).to(score.dtype)[prompt]
    others = torch.zeros_like(score).index_add(0, prompt, score)[prompt] - score
    return torch.where(count > 1, score - others / (count - 1).clamp(min=1), torch.zeros_like(score))


def end_score(end: EndRule, score: float, *, stopped: bool) -> float:
    """The score after the end rule."""
    if stopped or end.rule == "none":
        return score
    return score - end.value if end.rule == "subtract" else -end.value


def describe(experience: Experience, rollouts: Sequence[Rollout], scores: Sequence[float]) -> dict[str, float | None]:
    """What a rollout looked like before its update. KL in nats an answer, proxy without KL and end rule."""
    n = len(rollouts)
    k1 = kl_k1(experience.logprob, experience.reference).sum() / n
    k3 = kl_k3(experience.logprob, experience.reference).sum() / n
    gap = engine_gap(experience.engine, experience.logprob)
    return {
        "proxy": sum(scores) / n, "kl": float(k1), "kl_k3": float(k3),
        "stop_rate": sum(rollout.stopped for rollout in rollouts) / n,
        "tokens": float(len(experience.owner) + sum(len(tree.prompt) for tree in experience.trees)),
        "explained_variance": float(explained_variance(experience.value, experience.returns)), **gap,
    }
