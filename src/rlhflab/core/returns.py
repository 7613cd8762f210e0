"""KL estimators, per-token rewards and advantages of a rollout. Axes: s scored tokens, n answers.

Tokens of one answer lie next to each other, in order; `owner` says whose they are.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, Literal, NamedTuple

import torch
from jaxtyping import Float, Int
from pydantic import Field
from torch import Tensor

from rlhflab.catalog import Catalog
from rlhflab.core.logprobs import answer_sums
from rlhflab.errors import RunError


def kl_k1(logprob: Float[Tensor, " s"], reference: Float[Tensor, " s"]) -> Float[Tensor, " s"]:
    """Log p - log q on tokens drawn from p: unbiased for KL(p, q), can be negative (Schulman, "Approximating KL")."""
    return logprob - reference


def kl_k2(logprob: Float[Tensor, " s"], reference: Float[Tensor, " s"]) -> Float[Tensor, " s"]:
    """(log p - log q)^2 / 2 on tokens drawn from p: biased as a value, but its gradient, (log p - log q) grad log p, is
    unbiased for that of KL(p, q) (Schulman, "Approximating KL"; Tang & Munos 2025, arXiv:2506.09477).
    """
    return 0.5 * (logprob - reference) ** 2


def kl_k3(logprob: Float[Tensor, " s"], reference: Float[Tensor, " s"]) -> Float[Tensor, " s"]:
    """q/p - 1 - log(q/p): unbiased for KL(p, q), never negative, lower variance where p and q are close.

    Its gradient, (1 - q/p) grad log p, is not that of KL(p, q): its mean is the gradient of KL(q, p)
    (arXiv:2506.09477).
    """
    logratio = reference - logprob
    return logratio.exp() - 1 - logratio


KL: Mapping[str, Callable[[Tensor, Tensor], Tensor]] = {"k1": kl_k1, "k2": kl_k2, "k3": kl_k3}
"""By the names that run files use."""


def last_of_each(owner: Int[Tensor, " s"], n: int) -> Int[Tensor, " n"]:
    """Index of each answer's last scored token."""
    index = torch.arange(len(owner), device=owner.device)
    return torch.zeros(n, dtype=torch.long, device=owner.device).scatter_reduce(0, owner, index, "amax")


def token_rewards(score: Float[Tensor, " n"], penalty: Float[Tensor, " s"],
                  owner: Int[Tensor, " s"]) -> Float[Tensor, " s"]:
    """Less the KL penalty at every token, and the answer's score at its last one (Ziegler et al., arXiv:1909.08593)."""
    return (-penalty).index_add(0, last_of_each(owner, len(score)), score.to(penalty.dtype))


def whiten(x: Float[Tensor, " s"], *, shift_mean: bool = True) -> Float[Tensor, " s"]:
    """Standard deviation 1 over all tokens of the rollout, and mean 0 unless the mean is kept (`shift_mean` False)."""
    mean = x.mean()
    white = (x - mean) / (x.std(unbiased=False) + 1e-8)
    return white if shift_mean else white + mean


def leave_one_out(score: Float[Tensor, " n"], prompt: Int[Tensor, " n"]) -> Float[Tensor, " n"]:
    """Each score less the mean of the other answers to its prompt; an answer without others gets 0.

    It leaves the gradient unbiased and takes out how hard the prompt is (RLOO, Ahmadian et al. 2024, arXiv:2402.14740).
    `prompt`: the number of each answer's prompt. RunError where no prompt has two answers.
    """
    count = _answers(prompt).to(score.dtype)
    others = torch.zeros_like(score).index_add(0, prompt, score)[prompt] - score
    return torch.where(count > 1, score - others / (count - 1).clamp(min=1), torch.zeros_like(score))


def group_standardised(score: Float[Tensor, " n"], prompt: Int[Tensor, " n"], *,
                       scale: bool = True) -> Float[Tensor, " n"]:
    """(Score - mean) / standard deviation over the answers to its prompt; 0 where all of them score the same.

    Shao et al. 2024, arXiv:2402.03300 (GRPO). `scale` False leaves the division out. RunError where no prompt
    has two answers.
    """
    count = _answers(prompt).to(score.dtype)
    centred = score - torch.zeros_like(score).index_add(0, prompt, score)[prompt] / count
    if not scale:
        return centred
    squares = torch.zeros_like(score).index_add(0, prompt, centred**2)[prompt]
    return centred / ((squares / (count - 1).clamp(min=1)).sqrt() + 1e-4)


def _answers(prompt: Int[Tensor, " n"]) -> Int[Tensor, " n"]:
    """How many answers the prompt of each answer has."""
    count = torch.bincount(prompt)[prompt]
    if int(count.max()) < 2:
        raise RunError("every prompt has one answer and nothing to compare it with: samples must be at least 2")
    return count


class Advantages(NamedTuple):
    """Of each scored token."""

    advantage: Float[Tensor, " s"]
    returns: Float[Tensor, " s"] | None = None
    """What the value should have been: advantage + old value, before any whitening. None without a critic."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Episodes:
    """A scored rollout, an episode an answer. What an advantage estimator sees of it."""

    score: Float[Tensor, " n"]
    """Of the whole answer, without the KL term."""
    penalty: Float[Tensor, " s"]
    """Coefficient x KL of each token, to be taken off its reward; zeros where the KL term stands in the loss."""
    owner: Int[Tensor, " s"]
    prompt: Int[Tensor, " n"]
    """Number of each answer's prompt."""
    value: Float[Tensor, " s"] | None = None
    """The critic's, for estimators that need one."""

    @property
    def net_score(self) -> Float[Tensor, " n"]:
        """Score less the KL term of the whole answer."""
        return self.score - answer_sums(self.penalty, self.owner, len(self.score))


def gae(reward: Float[Tensor, " s"], value: Float[Tensor, " s"], owner: Int[Tensor, " s"], *, gamma: float,
        gae_lambda: float) -> Advantages:
    """Generalised advantage estimation (Schulman et al. 2015, arXiv:1506.02438 eq. 16), an episode an answer.

    delta_t = r_t + gamma V_{t+1} - V_t; A_t = delta_t + gamma lambda A_{t+1}; after the last token V and A are 0.
    """
    continues = torch.zeros_like(reward)
    continues[:-1] = (owner[1:] == owner[:-1]).to(reward.dtype)
    next_value = torch.cat([value[1:], value.new_zeros(1)]) * continues
    delta = reward + gamma * next_value - value
    backwards, following = [], 0.0
    for own, goes_on in zip(delta.flip(0).tolist(), continues.flip(0).tolist(), strict=True):
        following = own + gamma * gae_lambda * goes_on * following
        backwards.append(following)
    advantage = delta.new_tensor(backwards).flip(0)
    return Advantages(advantage, advantage + value)


Estimator = Callable[[Episodes], Advantages]
advantage_estimator: Catalog[Callable[..., Advantages]] = Catalog("advantage estimator")
"""Entries that need a `critic` are given values; the others train no value role."""


@advantage_estimator("gae", needs=("critic",), source="arXiv:1506.02438 eq. 16; arXiv:1707.06347 eq. 11")
def gae_estimator(episodes: Episodes, *, gamma: Annotated[float, Field(gt=0, le=1)] = 1.0,
                  gae_lambda: Annotated[float, Field(ge=0, le=1)] = 0.95, baseline: Literal["none", "prompt"] = "none",
                  whiten_rewards: bool = False, whiten_advantages: bool = True) -> Advantages:
    """Generalised advantage estimation with a critic, as PPO has it.

    `baseline: prompt` takes the mean of the prompt's other answers off each score first, which a young critic does not
    know yet. `whiten_rewards` gives the token rewards, KL term included, standard deviation 1 and keeps their mean
    (arXiv:2403.17031); the deviation is the rollout's own, so how large rewards are is lost.
    """
    assert episodes.value is not None
    score = leave_one_out(episodes.score, episodes.prompt) if baseline == "prompt" else episodes.score
    reward = token_rewards(score, episodes.penalty, episodes.owner)
    reward = whiten(reward, shift_mean=False) if whiten_rewards else reward
    estimate = gae(reward, episodes.value, episodes.owner, gamma=gamma, gae_lambda=gae_lambda)
    return estimate._replace(advantage=whiten(estimate.advantage)) if whiten_advantages else estimate


@advantage_estimator("rloo", needs=("two samples",), source="arXiv:2402.14740")
def rloo_estimator(episodes: Episodes, *, whiten_advantages: bool = False) -> Advantages:
    """Net score of the answer less the mean of the prompt's other answers, for each of its tokens; no critic.

    An answer is one action here, so its KL term counts as a whole and every token gets the same advantage. Unbiased;
    with `whiten_advantages` no longer, as a rollout's own deviation divides.
    """
    advantage = leave_one_out(episodes.net_score, episodes.prompt)[episodes.owner]
    return Advantages(whiten(advantage) if whiten_advantages else advantage)


@advantage_estimator("grpo", needs=("two samples",), source="arXiv:2402.03300; arXiv:2503.20783 for scale")
def grpo_estimator(episodes: Episodes, *, scale: bool = True) -> Advantages:
    """Net score of the answer, standardised over the answers to its prompt; no critic.

    The division weighs prompts whose answers score alike the most: a bias (Dr. GRPO, Liu et al. 2025, arXiv:2503.20783)
    that `scale: false` takes out. The mean holds the answer itself, so without the division it is
    (k-1)/k of the leave-one-out advantage with k samples.
    """
    return Advantages(group_standardised(episodes.net_score, episodes.prompt, scale=scale)[episodes.owner])


def token_weights(owner: Int[Tensor, " s"], *, how: Literal["token", "answer", "budget"],
                  budget: int) -> Float[Tensor, " s"]:
    """What each token of a minibatch counts, so that the sum of weight x loss is the loss of the minibatch.

    token: the mean over its tokens (DAPO, arXiv:2503.14476); answer: the mean over answers of the mean over an
    answer's tokens (GRPO, arXiv:2402.03300 eq. 3), in which a token of a long answer counts less; budget: the sum over
    tokens by answers x `budget`, the longest answer's tokens (Dr. GRPO, arXiv:2503.20783), whatever the lengths.
    `owner`: the answer of each token, by any number.
    """
    _, member, length = owner.unique(return_inverse=True, return_counts=True)
    answers = len(length)
    parts = {"token": torch.full_like(length, len(owner)), "answer": answers * length,
             "budget": torch.full_like(length, answers * budget)}[how]
    weight: Tensor = parts[member].float().reciprocal()
    return weight


def explained_variance(predicted: Float[Tensor, " s"], returns: Float[Tensor, " s"]) -> Tensor:
    """1 - Var(returns - predicted) / Var(returns): 1 perfect, 0 no better than the mean, below 0 worse."""
    return 1 - (returns - predicted).var(unbiased=False) / returns.var(unbiased=False).clamp(min=1e-12)
