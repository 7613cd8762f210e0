"""A token for each row from its logits, as a function of the row's own number alone. Axes: r rows, v vocabulary."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

NUCLEUS = 1024
"""Vocabulary entries that are sorted first, which mostly hold the probability asked for."""
BLOCK = 256
"""Vocabulary entries whose probabilities are summed first, so that the running sum is over v / BLOCK numbers."""


def draw(logits: Float[Tensor, "r v"], uniform: Float[Tensor, " r"], *,
         temperature: float) -> tuple[Int[Tensor, " r"], Float[Tensor, " r"]]:
    """A token and its log-prob for each row, by inverting the cumulative distribution at `uniform`.

    A draw is a function of the row's logits and its own number, so it does not depend on the other rows. The
    distribution is inverted in two levels: first the block of the vocabulary, then the token within it.
    """
    probability = (logits / temperature if temperature != 1 else logits).softmax(-1)
    if logits.shape[-1] % BLOCK:
        probability = torch.nn.functional.pad(probability, (0, -logits.shape[-1] % BLOCK))
    probability = probability.view(len(logits), -1, BLOCK)
    blocks = probability.sum(-1).cumsum(-1)
    goal = uniform[:, None] * blocks[:, -1:]
    block = torch.searchsorted(blocks, goal, right=True).clamp(max=blocks.shape[1] - 1)
    before = torch.where(block > 0, blocks.gather(-1, (block - 1).clamp(min=0)), 0.0)
    inside = probability[torch.arange(len(logits), device=logits.device), block[:, 0]]
    within = inside.cumsum(-1)
    place = torch.searchsorted(within, goal - before, right=True).clamp(max=BLOCK - 1)
    token = (block * BLOCK + place).clamp(max=logits.shape[-1] - 1)
    return token.squeeze(-1), inside.gather(-1, place).log().squeeze(-1)


def most_likely(logits: Float[Tensor, "r v"]) -> tuple[Int[Tensor, " r"], Float[Tensor, " r"]]:
    """The most likely token of each row and its log-prob."""
    highest, token = logits.max(-1)
    return token, highest - logits.logsumexp(-1)


def uniforms(seed: int, n: int) -> list[float]:
    """`n` numbers in [0, 1) of an answer's own seed; a longer list begins with the same ones."""
    numbers: list[float] = torch.rand(n, generator=torch.Generator().manual_seed(seed)).tolist()
    return numbers


def nucleus(logits: Float[Tensor, " v"], top_p: float) -> Float[Tensor, " v"]:
    """The logits of the likeliest tokens that hold `top_p` of the probability together, -inf for the rest.

    Holtzman et al. 2020, arXiv:1904.09751: the smallest such set. Only a part of the vocabulary is sorted where that is
    enough.
    """
    total = logits.logsumexp(-1)
    for most in (min(NUCLEUS, len(logits)), len(logits)):
        highest, token = logits.topk(most)
        before = (highest - total).exp().cumsum(-1)
        if before[-1] >= top_p:
            break
    kept = token[:int((before < top_p).sum()) + 1]
    return torch.full_like(logits, float("-inf")).scatter(0, kept, logits[kept])
