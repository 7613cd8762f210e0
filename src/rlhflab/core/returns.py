"""KL estimators, per-token rewards and advantages of a rollout. Axes: s scored tokens, n answers.

Tokens of one answer lie next to each other, in order; `owner` says whose they are.
"""

from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor


def kl_k1(logprob: Float[Tensor, " s"], reference: Float[Tensor, " s"]) -> Float[Tensor, " s"]:
    """Log p - log q on tokens drawn from p: unbiased for KL(p, q), can be negative (Schulman, "Approximating KL")."""
    return logprob - reference


def kl_k3(logprob: Float[Tensor, " s"], reference: Float[Tensor, " s"]) -> Float[Tensor, " s"]:
    """q/p - 1 - log(q/p): unbiased for KL(p, q), never negative, lower variance where p and q are close."""
    logratio = reference - logprob
    return logratio.exp() - 1 - logratio


def last_of_each(owner: Int[Tensor, " s"], n: int) -> Int[Tensor, " n"]:
    """Index of each answer's last scored token."""
    index = torch.arange(len(owner), device=owner.device)
    return torch.zeros(n, dtype=torch.long, device=owner.device).scatter_reduce(0, owner, index, "amax")


def token_rewards(score: Float[Tensor, " n"], kl: Float[Tensor, " s"], owner: Int[Tensor, " s"], *,
                  kl_coefficient: float) -> Float[Tensor, " s"]:
    """-coefficient x KL at every token, and the answer's score at its last one (Ziegler et al., arXiv:1909.08593)."""
    reward = -kl_coefficient * kl
    return reward.index_add(0, last_of_each(owner, len(score)), score.to(reward.dtype))


class Advantages(NamedTuple):
    """Of each scored token."""

    advantage: Float[Tensor, " s"]
    returns: Float[Tensor, " s"]
    """What the value should have been: advantage + old value, before any whitening."""


def gae(reward: Float[Tensor, " s"], value: Float[Tensor, " s"], owner: Int[Tensor, " s"], *, gamma: float,
        gae_lambda: float) -> Advantages:
    """Generalised advantage estimation (Schulman et al. 2015, arXiv:1506.02438 eq. 16), an episode an answer.

    delta_t = r_t + gamma V_{t+1} - V_t; A_t = delta_t + gamma lambda A_{t+1}; after the last token V and A are 0.
    """
    continues = torch.zeros_like(reward)
    continues[:-1] = (owner[1:] == owner[:-1]).to(reward.dtype)
    next_value = torch.cat([value[1:], value.new_zeros(1)]) * continues
    delta = reward + gamma * next_value - value
    advantage, following = torch.empty_like(delta), delta.new_zeros(())
    for t in range(len(delta) - 1, -1, -1):
        following = delta[t] + gamma * gae_lambda * continues[t] * following
        advantage[t] = following
    return Advantages(advantage, advantage + value)


def whiten(x: Float[Tensor, " s"]) -> Float[Tensor, " s"]:
    """Mean 0, standard deviation 1 over all tokens of the rollout."""
    return (x - x.mean()) / (x.std(unbiased=False) + 1e-8)


def explained_variance(predicted: Float[Tensor, " s"], returns: Float[Tensor, " s"]) -> Tensor:
    """1 - Var(returns - predicted) / Var(returns): 1 perfect, 0 no better than the mean, below 0 worse."""
    return 1 - (returns - predicted).var(unbiased=False) / returns.var(unbiased=False).clamp(min=1e-12)
