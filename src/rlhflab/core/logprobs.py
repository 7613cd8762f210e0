"""Log-probs of scored tokens without a [b, t, vocabulary] tensor. No model here: a hidden state and a matrix.

Axes: s scored tokens, d width, v vocabulary. Memory is O(chunk x v): a chunk's logits are made, read and dropped,
and made again in the backward pass.
"""

import math
from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.autograd.function import once_differentiable

from rlhflab.core.products import linear

CHUNK = 1024
"""Scored tokens whose logits exist at one time."""


class TokenScores(NamedTuple):
    """Of each scored token, in nats, fp32."""

    logprob: Float[Tensor, " s"]
    entropy: Float[Tensor, " s"]
    """Of the distribution it was drawn from."""


def token_scores(hidden: Float[Tensor, "s d"], weight: Float[Tensor, "v d"], target: Int[Tensor, " s"], *,
                 temperature: float = 1.0, chunk: int = CHUNK, compiled: bool = False) -> TokenScores:
    """Log softmax(hidden @ weight.T / temperature)[target], and the entropy. `weight` is frozen: it gets no gradient.

    Logits are made in the dtype of `hidden`, everything after that is fp32. `compiled`: by kernels that torch makes of
    what is done with a chunk.
    """
    return TokenScores(*_TokenScores.apply(hidden, weight, target, temperature, chunk, compiled))


class _TokenScores(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, target: Tensor, temperature: float, chunk: int,
                compiled: bool) -> tuple[Tensor, Tensor]:
        logprob = torch.empty(target.shape, dtype=torch.float32, device=hidden.device)
        entropy, normaliser = torch.empty_like(logprob), torch.empty_like(logprob)
        read = _compiled(_read) if compiled else _read
        for part in _parts(len(target), chunk):
            logprob[part], entropy[part], normaliser[part] = read(
                linear(hidden[part], weight), target[part], temperature)
        ctx.save_for_backward(hidden, weight, target, normaliser, entropy)
        ctx.temperature, ctx.chunk, ctx.compiled = temperature, chunk, compiled
        ctx.set_materialize_grads(False)  # most losses use one of the two, and None says that the other is not needed
        return logprob, entropy

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, by_logprob: Tensor | None, by_entropy: Tensor | None) -> tuple[Tensor | None, ...]:
        hidden, weight, target, normaliser, entropy = ctx.saved_tensors
        by_logprob = torch.zeros_like(entropy) if by_logprob is None else by_logprob
        result = torch.empty_like(hidden)
        by_logit = _compiled(_by_logit) if ctx.compiled else _by_logit
        for part in _parts(len(target), ctx.chunk):
            result[part] = linear(by_logit(
                linear(hidden[part], weight), target[part], normaliser[part], entropy[part], by_logprob[part],
                None if by_entropy is None else by_entropy[part], ctx.temperature), weight.T)
        return result, None, None, None, None, None


def _read(z: Float[Tensor, "m v"], target: Int[Tensor, " m"],
          temperature: float) -> tuple[Float[Tensor, " m"], Float[Tensor, " m"], Float[Tensor, " m"]]:
    """Log-prob, entropy and normaliser of a chunk, of its logits before the temperature."""
    logits = z.float() / temperature
    normaliser = logits.logsumexp(-1)
    logprob = logits.gather(-1, target[:, None]).squeeze(-1) - normaliser
    probability = (logits - normaliser[:, None]).exp_()
    return logprob, normaliser - (probability.mul_(logits)).sum(-1), normaliser


def _by_logit(z: Float[Tensor, "m v"], target: Int[Tensor, " m"], normaliser: Float[Tensor, " m"],
              entropy: Float[Tensor, " m"], by_logprob: Float[Tensor, " m"], by_entropy: Float[Tensor, " m"] | None,
              temperature: float) -> Float[Tensor, "m v"]:
    """The gradient by z: d logprob / d logit = onehot(target) - p, d H / d logit = -p (log p + H), logit = z / T."""
    logprobs = (z.float() / temperature).sub_(normaliser[:, None])
    share = -by_logprob[:, None]
    if by_entropy is not None:
        share = share - by_entropy[:, None] * (logprobs + entropy[:, None])
    by_logit = logprobs.exp_().mul_(share)
    if torch.compiler.is_compiling():  # a scatter would be a kernel of its own, before and behind it the whole chunk
        hit = torch.arange(z.shape[-1], device=z.device) == target[:, None]
        by_logit = torch.where(hit, by_logit + by_logprob[:, None], by_logit)
    else:
        by_logit.scatter_add_(-1, target[:, None], by_logprob[:, None])
    return by_logit.div_(temperature).to(z.dtype)


@cache
def _compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function by kernels of its own. Made once: it takes seconds."""
    return torch.compile(function)


def _parts(n: int, chunk: int) -> list[slice]:
    return [slice(start, start + chunk) for start in range(0, n, chunk)]


def _logits(hidden: Tensor, weight: Tensor, temperature: float) -> Tensor:
    return linear(hidden, weight).float() / temperature


class Divergences(NamedTuple):
    """Of two models at each scored token, over the whole vocabulary, nats, fp32."""

    forward: Float[Tensor, " s"]
    """KL(p | q) = sum p log(p / q)."""
    reverse: Float[Tensor, " s"]
    """KL(q | p)."""
    jensen_shannon: Float[Tensor, " s"]
    """(KL(p | m) + KL(q | m)) / 2 with m = (p + q) / 2: at most log 2 (Lin 1991)."""


@torch.no_grad()
def token_divergences(p: Float[Tensor, "s d"], q: Float[Tensor, "s d"], weight: Float[Tensor, "v d"], *,
                      temperature: float = 1.0, chunk: int = CHUNK) -> Divergences:
    """How far softmax(p @ weight.T / temperature) and that of q are apart, from the hidden states p and q."""
    parts = []
    for part in _parts(len(p), chunk):
        log_p, log_q = (_logits(hidden[part], weight, temperature).log_softmax(-1) for hidden in (p, q))
        middle = torch.logaddexp(log_p, log_q) - math.log(2)
        each = [(first.exp() * (first - second)).sum(-1) for first, second in (
            (log_p, log_q), (log_q, log_p), (log_p, middle), (log_q, middle))]
        parts.append(torch.stack([each[0], each[1], (each[2] + each[3]) / 2]))
    return Divergences(*torch.cat(parts, dim=1)) if parts else Divergences(*torch.zeros(3, 0))


def answer_sums(x: Float[Tensor, " s"], owner: Int[Tensor, " s"], n: int) -> Float[Tensor, " n"]:
    """Sum of a token quantity over each answer."""
    return torch.zeros(n, dtype=x.dtype, device=x.device).index_add(0, owner, x)


def tail_weighted_sums(x: Float[Tensor, " s"], length: Int[Tensor, " n"], answers: Int[Tensor, " q"],
                       shared: Int[Tensor, " q"], *, alpha: float) -> Float[Tensor, " q"]:
    """Sum of a token quantity over each of `answers`, in which tokens behind the first `shared` ones weigh `alpha`.

    `length`: scored tokens of each answer; answers lie one after the other in `x`. An answer may be asked for more than
    once, with another `shared` each time.
    """
    own = length[answers]
    side = torch.repeat_interleave(torch.arange(len(own), device=x.device), own)
    place = torch.arange(len(side), device=x.device) - (own.cumsum(0) - own)[side]
    token = (length.cumsum(0) - length)[answers][side] + place
    weight = torch.where(place < shared[side], 1.0, alpha)
    return torch.zeros(len(own), dtype=x.dtype, device=x.device).index_add(0, side, weight * x[token])
