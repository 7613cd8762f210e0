"""Every loss as a pure function: one value an answer, pair or token, and metrics. The loop divides, once a step.

Axes: p pairs, s scored tokens. Log-probs are sums over an answer's scored tokens, in nats.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, NamedTuple

import torch
from jaxtyping import Float, Int
from pydantic import Field
from torch import Tensor
from torch.nn.functional import logsigmoid

from rlhflab.catalog import Catalog


class Loss(NamedTuple):
    """`each` carries the gradient; `metrics` are detached, one value each pair or token."""

    each: Tensor
    metrics: dict[str, Tensor]


@dataclass(frozen=True, slots=True, kw_only=True)
class AnswerLogprobs:
    """Log-probs of answers: of one side of the pairs, or of all answers of a batch."""

    policy: Float[Tensor, " p"]
    reference: Float[Tensor, " p"]
    tokens: Float[Tensor, " p"]
    """Scored tokens of each answer."""

    def of(self, answers: Int[Tensor, " q"]) -> "AnswerLogprobs":
        """Those of some answers, in the order asked for."""
        return AnswerLogprobs(policy=self.policy[answers], reference=self.reference[answers],
                              tokens=self.tokens[answers])

    @property
    def logratio(self) -> Float[Tensor, " p"]:
        """Log policy - log reference, nats an answer."""
        return self.policy - self.reference


PreferenceLoss = Callable[[AnswerLogprobs, AnswerLogprobs], Loss]
preference_loss: Catalog[Callable[..., Loss]] = Catalog("preference loss")


def _with_metrics(each: Tensor, chosen: AnswerLogprobs, rejected: AnswerLogprobs, beta: float) -> Loss:
    reward_chosen = (beta * chosen.logratio).detach()
    reward_rejected = (beta * rejected.logratio).detach()
    return Loss(each, {
        "loss": each.detach(),
        "reward_chosen": reward_chosen,
        "reward_rejected": reward_rejected,
        "margin": reward_chosen - reward_rejected,
        "accuracy": (reward_chosen > reward_rejected).float(),
        "chosen_logprob_per_token": (chosen.policy / chosen.tokens).detach(),
        "chosen_shift_per_token": (chosen.logratio / chosen.tokens).detach(),
    })


@preference_loss("dpo")
def dpo_loss(chosen: AnswerLogprobs, rejected: AnswerLogprobs, *, beta: float = 0.1,
             label_noise: float = 0.0) -> Loss:
    """-log sigmoid(beta h), h = difference of log-ratios.

    Rafailov et al. 2023, arXiv:2305.18290 eq. 7. `label_noise` e in [0, 0.5) makes it conservative DPO:
    (1 - e) L(h) + e L(-h) (Mitchell 2023, "A note on DPO with noisy preferences").
    """
    h = beta * (chosen.logratio - rejected.logratio)
    each = -(1 - label_noise) * logsigmoid(h) - label_noise * logsigmoid(-h)
    return _with_metrics(each, chosen, rejected, beta)


@preference_loss("ipo_sum")
def ipo_sum_loss(chosen: AnswerLogprobs, rejected: AnswerLogprobs, *, beta: float = 0.1,
                 label_noise: float = 0.0) -> Loss:
    """(h - 1/(2 beta))^2 on sums of log-ratios.

    Azar et al. 2023, arXiv:2310.12036 eq. 17. With label noise e the expected target is (1 - 2e)/(2 beta).
    """
    h = chosen.logratio - rejected.logratio
    return _with_metrics((h - (1 - 2 * label_noise) / (2 * beta)) ** 2, chosen, rejected, beta)


@preference_loss("ipo_avg")
def ipo_avg_loss(chosen: AnswerLogprobs, rejected: AnswerLogprobs, *, beta: float = 0.1,
                 label_noise: float = 0.0) -> Loss:
    """(h - 1/(2 beta))^2 on means of log-ratios over tokens, as its authors ran it.

    arXiv:2310.12036 eq. 17 with the averaging of TRL and OpenRLHF's length-normalised variant.
    """
    h = chosen.logratio / chosen.tokens - rejected.logratio / rejected.tokens
    return _with_metrics((h - (1 - 2 * label_noise) / (2 * beta)) ** 2, chosen, rejected, beta)


def bradley_terry_loss(chosen: Float[Tensor, " p"], rejected: Float[Tensor, " p"], *,
                       margin: Float[Tensor, " p"] | float = 0.0, centering: float = 0.0) -> Loss:
    """-log sigmoid(r_c - r_r - margin) + centering (r_c + r_r)^2 on reward scores.

    Ouyang et al. 2022, arXiv:2203.02155 eq. 1; margin as in Llama 2, arXiv:2307.09288 eq. 2.
    """
    each = -logsigmoid(chosen - rejected - margin) + centering * (chosen + rejected) ** 2
    gap = (chosen - rejected).detach()
    return Loss(each, {"loss": each.detach(), "margin": gap, "accuracy": (gap > 0).float()})


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
