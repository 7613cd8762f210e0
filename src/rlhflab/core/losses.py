"""Losses of scores, policies and values as pure functions: one value a pair or token, and metrics. The loop divides.

The losses that learn a policy from preferences are in `rlhflab.core.preference`. Axes: p pairs, s scored tokens.
"""

from collections.abc import Callable
from typing import Annotated, NamedTuple

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor
from torch.nn.functional import logsigmoid

from rlhflab.catalog import Catalog


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


PolicyLoss = Callable[[Tensor, Tensor, Tensor], Loss]
policy_loss: Catalog[Callable[..., Loss]] = Catalog("policy loss")
"""Entries take log-probs now, log-probs at sampling and advantages, each (s,)."""


@policy_loss("clip", source="arXiv:1707.06347 eq. 7")
def ppo_policy_loss(logprob: Float[Tensor, " s"], old_logprob: Float[Tensor, " s"], advantage: Float[Tensor, " s"], *,
                    clip: Annotated[float, Field(gt=0)] = 0.2, clip_high: Annotated[float | None, Field(gt=0)] = None,
                    dual_clip: Annotated[float | None, Field(gt=1)] = None) -> Loss:
    """max(-A ratio, -A clip(ratio, 1 - clip, 1 + clip)) of each token: PPO's clipped probability ratio.

    With the sign of a loss. `clip_high`: another bound above 1 (DAPO, arXiv:2503.14476). `dual_clip` c: at most
    -c A where A < 0, however large the ratio (Ye et al. 2019, arXiv:1912.09729).
    """
    logratio = logprob - old_logprob
    ratio = logratio.exp()
    high = 1 + (clip if clip_high is None else clip_high)
    each = torch.maximum(-advantage * ratio, -advantage * ratio.clamp(1 - clip, high))
    if dual_clip is not None:
        each = torch.where(advantage < 0, torch.minimum(each, -dual_clip * advantage), each)
    return Loss(each, {
        "policy_loss": each.detach(),
        "clip_fraction": ((ratio < 1 - clip) | (ratio > high)).float(),
        "update_kl": (ratio - 1 - logratio).detach(),
    })


@policy_loss("reinforce", source="Williams 1992; arXiv:2402.14740")
def reinforce_loss(logprob: Float[Tensor, " s"], old_logprob: Float[Tensor, " s"],
                   advantage: Float[Tensor, " s"]) -> Loss:
    """-A log-prob of each token: REINFORCE.

    The first step after a rollout is the same as that of `clip`, whose ratio is then 1; later steps on the same rollout
    are biased, as the tokens were drawn from an older policy and nothing makes up for it.
    """
    logratio = (logprob - old_logprob).detach()
    each = -advantage * logprob
    return Loss(each, {"policy_loss": each.detach(), "update_kl": logratio.exp() - 1 - logratio})


def ppo_value_loss(value: Float[Tensor, " s"], old_value: Float[Tensor, " s"], returns: Float[Tensor, " s"], *,
                   clip: float | None = 0.2) -> Loss:
    """Half the larger of the squared errors of the value and of the value clipped around the old one, each token.

    As in OpenAI's lm-human-preferences; "N implementation details of RLHF with PPO". `clip` None: half the
    squared error.
    """
    bound = float("inf") if clip is None else clip
    clipped = old_value + (value - old_value).clamp(-bound, bound)
    each = 0.5 * torch.maximum((value - returns) ** 2, (clipped - returns) ** 2)
    return Loss(each, {"value_loss": each.detach(),
                       "value_clip_fraction": ((value - old_value).abs() > bound).float()})
