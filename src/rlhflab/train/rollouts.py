"""Rollouts: sample answers, have them scored, read their log-probs. The half that every method on samples shares.

No advantage, no pair and no loss here. Axes: s scored tokens of a rollout, n answers.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from functools import partial
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from rlhflab.config import EndRule, SampledRun
from rlhflab.core.batch import Shelf, Tree
from rlhflab.core.returns import KL
from rlhflab.data.chat import ChatFormat
from rlhflab.data.types import Prompt, Rollout, Score
from rlhflab.errors import RunError
from rlhflab.model.shared import SharedModel
from rlhflab.rollout.engines import make_engine
from rlhflab.rollout.rewards import Reward
from rlhflab.rollout.sampling import rollout_trees, sample
from rlhflab.rollout.scoring import tree_token_scores
from rlhflab.train.guards import engine_gap, refuse_engine_gap, refuse_wrong_reference
from rlhflab.train.state import Schedule, TrainState

MOST_UNSCORED = 0.1
"""Share of unscored answers in a rollout above which the run stops."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoredRollout:
    """A scored rollout as tensors on the CPU, its tokens in the order of `trees` and their answers.

    Policy and reference have not read it yet.
    """

    number: int
    """Of the step it is for, from 1."""
    rollouts: Sequence[Rollout]
    scores: Sequence[Score]
    """Of each answer by the reward, before clip and end rule."""
    trees: Sequence[Tree]
    """A prompt with its answers each."""
    owner: Int[Tensor, " s"]
    """Answer of each token."""
    prompt: Int[Tensor, " n"]
    """Tree of each answer."""
    score: Float[Tensor, " n"]
    """By the reward, after clip and end rule."""
    engine: Float[Tensor, " s"]
    """Log-probs the sampler saw."""
    shelf: Shelf = field(default_factory=Shelf)
    """Where the trunks of `trees` are, for all roles that read them."""

    @property
    def tree_of_token(self) -> Int[Tensor, " s"]:
        """The number of each token's tree."""
        return self.prompt[self.owner]

    def answers_of_trees(self) -> list[Int[Tensor, " k"]]:
        """The numbers of each tree's answers."""
        return [(self.prompt == i).nonzero().squeeze(-1) for i in range(len(self.trees))]

    def tokens_of(self, trees: Sequence[int]) -> Int[Tensor, " m"]:
        """The places of the tokens of some trees, one tree after the other."""
        return torch.cat([(self.tree_of_token == i).nonzero().squeeze(-1) for i in trees])


class Reading(NamedTuple):
    """What policy and reference say of each token before the update, at the temperature of the sampling, on the CPU."""

    logprob: Float[Tensor, " s"]
    """Log-probs of the policy, by the training forward: the ratio's denominator."""
    entropy: Float[Tensor, " s"]
    """Of the policy's distribution at each token."""
    reference: Float[Tensor, " s"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampled(ScoredRollout):
    """A rollout that policy and reference have read. The fields of `Reading`, and what it looked like."""

    logprob: Float[Tensor, " s"]
    entropy: Float[Tensor, " s"]
    reference: Float[Tensor, " s"]
    metrics: dict[str, float | None]
    """What the rollout looked like before its update."""


Reader = Callable[[ScoredRollout], Reading]
Observer = Callable[[Sampled], dict[str, float | None]]
"""Looks at a rollout before its update; what it returns is logged with the step. The loop learns nothing from it."""


def sample_rollouts(run: SampledRun, model: SharedModel, prompts: Sequence[Prompt], state: TrainState, *,
                    chat: ChatFormat, reward: Reward, reference: str | None, observe: Observer, role: str,
                    read: Reader | None = None) -> Iterator[Sampled]:
    """A rollout of `batch` prompts with `samples` answers each, for every step of the run that is not done yet.

    The policy answers as it is when the next rollout is asked for. `read` lets policy and reference read a rollout,
    without gradient where it is absent. RunError before the first update where the policy is not its reference, or
    where sampler and trainer disagree.
    """
    assert run.steps is not None
    read = read or partial(read_rollout, run, model, role=role, reference=reference)
    constant = ConstantRewards()
    state.carry("constant_rewards", constant)
    for name, each in getattr(reward, "carried", {}).items():
        state.carry(f"reward.{name}", each)
    engine = make_engine(run.engine, model)
    schedule = Schedule(items=len(prompts), batch=run.batch, epochs=run.steps, steps=run.steps)
    for number, indices in enumerate(schedule.order(run.seed, done=state.done), start=state.done):
        rollouts = sample(model, chat, [prompts[i] for i in indices], role=role, samples=run.samples,
                          max_new_tokens=run.max_new_tokens, temperature=run.temperature, engine=engine,
                          seed=run.seed * 1_000_003 + number)
        rollouts, scores, unscored = keep_scored(rollouts, reward(rollouts))
        prices: Mapping[str, float | None] = getattr(reward, "metrics", {})
        sampled = as_read(scored := scored_rollout(run, rollouts, scores, number=number + 1), read(scored))
        if number == 0:
            state.note(refuse_wrong_reference(sampled.logprob, sampled.reference, role=role, name=reference))
            refuse_engine_gap(engine_gap(sampled.engine, sampled.logprob), dtype=model.unembedding.dtype)
        sampled.metrics.update(unscored=unscored, **prices, **observe(sampled),
                               constant_rewards=constant.see(values_of(scores)))
        yield sampled


def scored_rollout(run: SampledRun, rollouts: Sequence[Rollout], scores: Sequence[Score], *,
                   number: int) -> ScoredRollout:
    """Answers and their scores as tensors."""
    trees = rollout_trees(rollouts)
    lengths = torch.tensor([len(rollout.token_ids) for rollout in rollouts])
    return ScoredRollout(
        number=number, rollouts=rollouts, scores=scores, trees=trees,
        owner=torch.repeat_interleave(torch.arange(len(rollouts)), lengths),
        prompt=torch.tensor([i for i, tree in enumerate(trees) for _ in tree.answers]),
        score=torch.tensor([end_score(run.end, clipped(score, run.reward_clip), stopped=rollout.stopped)
                            for rollout, score in zip(rollouts, values_of(scores), strict=True)]),
        engine=torch.tensor([x for rollout in rollouts for x in rollout.logprobs]))


def read_rollout(run: SampledRun, model: SharedModel, scored: ScoredRollout, *, role: str,
                 reference: str | None) -> Reading:
    """Policy and reference read a rollout without gradient."""
    read = partial(tree_token_scores, model, scored.trees, micro_tokens=run.micro_tokens, temperature=run.temperature,
                   shelf=scored.shelf)
    (logprob, entropy), (reference_logprob, _) = (torch.cat(read(role=each)).T.contiguous()
                                                  for each in (role, reference))
    return Reading(logprob, entropy, reference_logprob)


def as_read(scored: ScoredRollout, reading: Reading) -> Sampled:
    """The rollout with what policy and reference said of it."""
    n = len(scored.rollouts)
    metrics: dict[str, float | None] = {
        "proxy": sum(values_of(scored.scores)) / n,
        "stop_rate": sum(rollout.stopped for rollout in scored.rollouts) / n,
        **kl_an_answer(reading.logprob, reading.reference, n),
        "tokens": float(sum(len(tree) for tree in scored.trees)), **engine_gap(scored.engine, reading.logprob)}
    return Sampled(**{each.name: getattr(scored, each.name) for each in fields(scored)}, **reading._asdict(),
                   metrics=metrics)


def kl_an_answer(logprob: Float[Tensor, " s"], reference: Float[Tensor, " s"], n: int) -> dict[str, float]:
    """KL(policy, reference) by each estimator, nats an answer; `kl` is that of k1."""
    return {"kl" if name == "k1" else f"kl_{name}": float(estimate(logprob, reference).sum()) / n
            for name, estimate in KL.items()}


def keep_scored(rollouts: Sequence[Rollout],
                scores: Sequence[Score]) -> tuple[list[Rollout], list[Score], int]:
    """The scored rollouts, their scores, and how many were not scored. RunError where those are too many."""
    kept = [(rollout, score) for rollout, score in zip(rollouts, scores, strict=True) if score.value is not None]
    unscored = len(rollouts) - len(kept)
    if unscored > MOST_UNSCORED * len(rollouts):
        example = next(score for score in scores if score.value is None)
        raise RunError(f"{unscored} of {len(rollouts)} answers could not be scored ({example.by}: "
                       f"{example.reason or 'no reason given'}); at most {MOST_UNSCORED:.0%} may be unscored")
    return [rollout for rollout, _ in kept], [score for _, score in kept], unscored


def values_of(scores: Sequence[Score]) -> list[float]:
    """Of those that have one."""
    return [score.value for score in scores if score.value is not None]


def clipped(score: float, limit: float | None) -> float:
    """The score, at most `limit` from 0."""
    return score if limit is None else max(-limit, min(limit, score))


def end_score(end: EndRule, score: float, *, stopped: bool) -> float:
    """The score after the end rule."""
    if stopped or end.rule == "none":
        return score
    return score - end.value if end.rule == "subtract" else -end.value


class ConstantRewards:
    """Counts the rollouts in a row, up to the last one, in which every answer scored the same."""

    def __init__(self) -> None:
        self._rollouts, self._score = 0, 0.0

    def see(self, scores: Sequence[float]) -> int:
        """The count with one more rollout."""
        constant = min(scores) == max(scores)
        self._rollouts = (self._rollouts + 1 if self._rollouts and scores[0] == self._score else 1) if constant else 0
        self._score = scores[0]
        return self._rollouts

    def state_dict(self) -> dict[str, float]:
        """For a checkpoint."""
        return {"rollouts": self._rollouts, "score": self._score}

    def load_state_dict(self, state: Mapping[str, float]) -> None:
        """From a checkpoint."""
        self._rollouts, self._score = int(state["rollouts"]), state["score"]
