"""Losses of scores, policies and values as pure functions: one value a pair or token, and metrics. The loop divides.

The losses that learn a policy from preferences are in `rlhflab.core.preference`. Axes: p pairs, s scored tokens.
"""

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import logsigmoid


class Loss(NamedTuple):
    """`each` carries the gradient; `metrics` are detached, one value each pair or token."""

    each: Tensor
    metrics: dict[str, Tensor]


def bradley_terry_loss(chosen: Float[Tensor, " p"], rejected: Float[Tensor, " p"], *,
                       margin: Float[Tensor, " p"] | float = 0.0, centering: float = 0.0,
                       label_smoothing: float = 0.0) -> Loss:
    """(1 - e) L(r_c - r_r) + e L(r_r - r_c) + centering (r_c + r_r)^2 with L(gap) = -log sigmoid(gap - margin).

    Ouyang et al. 2022, arXiv:2203.02155 eq. 1; margin as in Llama 2, arXiv:2307.09288 eq. 2. `label_smoothing` e in
    [0, 0.5) is the share of labels taken to be flipped, margin and all.
    """
    gap = chosen - rejected
    each = -(1 - label_smoothing) * logsigmoid(gap - margin) - label_smoothing * logsigmoid(-gap - margin)
    each = each + centering * (chosen + rejected) ** 2
    gap = gap.detach()
    return Loss(each, {"loss": each.detach(), "margin": gap, "accuracy": (gap > 0).float()})


def length_loss(quality: Float[Tensor, " n"], length: Float[Tensor, " n"], tokens: Float[Tensor, " n"]) -> Loss:
    """|corr(quality, tokens)| - corr(length, tokens), one value for all answers of an optimizer step.

    It moves what the answers' lengths explain from the quality head to the length head (ODIN, Chen et al. 2024,
    arXiv:2402.07319). A correlation is of the whole step, so it is no sum over micro-batches.
    """
    of_quality, of_length = correlation(quality, tokens), correlation(length, tokens)
    return Loss(of_quality.abs() - of_length, {"quality_length_correlation": of_quality.detach(),
                                               "length_head_correlation": of_length.detach()})


def correlation(x: Float[Tensor, " n"], y: Float[Tensor, " n"]) -> Float[Tensor, ""]:
    """Pearson's; 0 where one of the two does not vary."""
    x, y = x - x.mean(), y - y.mean()
    value: Tensor = (x * y).sum() / (x.norm() * y.norm()).clamp(min=1e-12)
    return value


def ppo_policy_loss(logprob: Float[Tensor, " s"], old_logprob: Float[Tensor, " s"],
                    advantage: Float[Tensor, " s"], *, clip: float = 0.2) -> Loss:
    """max(-A ratio, -A clip(ratio, 1 - clip, 1 + clip)) of each token.

    Schulman et al. 2017, arXiv:1707.06347 eq. 7, with the sign of a loss.
    """
    logratio = logprob - old_logprob
    ratio = logratio.exp()
    each = torch.maximum(-advantage * ratio, -advantage * ratio.clamp(1 - clip, 1 + clip))
    return Loss(each, {
        "policy_loss": each.detach(),
        "clip_fraction": ((ratio - 1).abs() > clip).float(),
        "update_kl": (ratio - 1 - logratio).detach(),
    })


def ppo_value_loss(value: Float[Tensor, " s"], old_value: Float[Tensor, " s"], returns: Float[Tensor, " s"], *,
                   clip: float = 0.2) -> Loss:
    """Half the larger of the squared errors of the value and of the value clipped around the old one, each token.

    As in OpenAI's lm-human-preferences; "N implementation details of RLHF with PPO".
    """
    clipped = old_value + (value - old_value).clamp(-clip, clip)
    each = 0.5 * torch.maximum((value - returns) ** 2, (clipped - returns) ** 2)
    return Loss(each, {"value_loss": each.detach(), "value_clip_fraction": ((value - old_value).abs() > clip).float()})
