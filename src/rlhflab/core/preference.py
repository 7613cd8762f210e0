"""Preference losses as pure functions: one value a pair, or a thumb. No model and no loop, which divides once a step.

Axes: p pairs (or answers of one side), s scored tokens. Log-probs are sums over an answer's scored tokens, in nats.
D = log policy - log reference of an answer, c the chosen and r the rejected one of a pair, h = D_c - D_r. The first
line of each loss is its formula. `admits` names the keys of a DPO run that go with a loss; docs/methods says why.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated

import torch
from jaxtyping import Bool, Float, Int
from pydantic import Field
from torch import Tensor
from torch.nn.functional import logsigmoid

from rlhflab.catalog import Catalog
from rlhflab.core.logprobs import answer_sums, tail_weighted_sums
from rlhflab.core.losses import Loss

Positive = Annotated[float, Field(gt=0)]
NotNegative = Annotated[float, Field(ge=0)]
Noise = Annotated[float, Field(ge=0, lt=0.5)]
"""Share of the labels that are wrong."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AnswerLogprobs:
    """Log-probs of answers: of one side of the pairs, or of all answers of a batch."""

    policy: Float[Tensor, " p"]
    reference: Float[Tensor, " p"] | None
    """None for a loss that needs no reference."""
    tokens: Float[Tensor, " p"]
    """Scored tokens of each answer."""

    def of(self, answers: Int[Tensor, " q"]) -> "AnswerLogprobs":
        """Those of some answers, in the order asked for."""
        return AnswerLogprobs(policy=self.policy[answers], tokens=self.tokens[answers],
                              reference=None if self.reference is None else self.reference[answers])

    def per_token(self) -> "AnswerLogprobs":
        """Each answer as if it were one token of its mean log-prob."""
        return AnswerLogprobs(policy=self.policy / self.tokens, tokens=torch.ones_like(self.tokens),
                              reference=None if self.reference is None else self.reference / self.tokens)

    @property
    def mean(self) -> Float[Tensor, " p"]:
        """Mean log-prob of the policy, nats a token."""
        return self.policy / self.tokens

    @property
    def logratio(self) -> Float[Tensor, " p"]:
        """Log policy - log reference, nats an answer."""
        assert self.reference is not None, "a loss that reads the log-ratio says that it needs the reference"
        return self.policy - self.reference


PairLoss = Callable[[AnswerLogprobs, AnswerLogprobs], Loss]
"""(chosen, rejected) to one value a pair."""
ThumbLoss = Callable[[AnswerLogprobs, Tensor, Tensor], Loss]
"""(answers, which are good, baseline) to one value an answer. The baseline is one log-ratio in nats."""
preference_loss: Catalog[Callable[..., Loss]] = Catalog("preference loss")
"""`needs`: `pairs` or `labels` (thumbs), `reference`, and what a thumb loss takes its baseline from."""


def answer_logprobs(policy: Float[Tensor, " s"], reference: Float[Tensor, " s"] | None, owner: Int[Tensor, " s"],
                    n: int) -> AnswerLogprobs:
    """Token log-probs summed over each answer of a batch."""
    return AnswerLogprobs(policy=answer_sums(policy, owner, n), tokens=answer_sums(torch.ones_like(policy), owner, n),
                          reference=None if reference is None else answer_sums(reference, owner, n))


def less_tail(policy: Float[Tensor, " s"], reference: Float[Tensor, " s"] | None, owner: Int[Tensor, " s"],
              chosen: Int[Tensor, " p"], rejected: Int[Tensor, " p"], *,
              alpha: float) -> tuple[AnswerLogprobs, AnswerLogprobs]:
    """Both sides of each pair; tokens beyond the length of the pair's shorter answer weigh `alpha`.

    LD-DPO (Liu et al. 2024, arXiv:2409.06411): 1 is DPO, 0 forgets the longer answer's tail. An answer has another sum
    in each pair, so the sums belong to sides of pairs.
    """
    length = torch.bincount(owner)
    sides = []
    for answers, other in ((chosen, rejected), (rejected, chosen)):
        shared = torch.minimum(length[answers], length[other])
        sums = [None if x is None else tail_weighted_sums(x, length, answers, shared, alpha=alpha)
                for x in (policy, reference)]
        assert sums[0] is not None
        sides.append(AnswerLogprobs(policy=sums[0], reference=sums[1], tokens=length[answers].to(policy.dtype)))
    return sides[0], sides[1]


def add_nll(loss: Loss, chosen: AnswerLogprobs, *, weight: float) -> Loss:
    """Plus weight x the negative log-likelihood of the chosen answer, nats a token of that answer.

    Pang et al. 2024, arXiv:2404.19733 eq. 1 (weight 1); Liu et al. 2024, arXiv:2405.16436 (weight .005).
    """
    each = loss.each - weight * chosen.mean
    return Loss(each, {**loss.metrics, "loss": each.detach(), "nll": -chosen.mean.detach()})


def _of_pairs(each: Tensor, reward_chosen: Tensor, reward_rejected: Tensor) -> Loss:
    """The loss with the metrics of every pair loss; rewards are the implicit ones, beta D for most."""
    chosen, rejected = reward_chosen.detach(), reward_rejected.detach()
    return Loss(each, {"loss": each.detach(), "reward_chosen": chosen, "reward_rejected": rejected,
                       "margin": chosen - rejected, "accuracy": (chosen > rejected).float()})


def _of_logratios(each: Tensor, chosen: AnswerLogprobs, rejected: AnswerLogprobs, beta: float) -> Loss:
    return _of_pairs(each, beta * chosen.logratio, beta * rejected.logratio)


# -- losses on the difference of log-ratios ---------------------------------------------------------------------------

EVERY_OPTION = ("length", "ld_alpha", "nll_weight")
PAIRS = ("pairs", "reference")


@preference_loss("dpo", needs=PAIRS, source="Rafailov et al. 2023, arXiv:2305.18290 eq. 7", admits=EVERY_OPTION)
def dpo_loss(chosen: AnswerLogprobs, rejected: AnswerLogprobs, *, beta: Positive = 0.1) -> Loss:
    """-log sigmoid(beta h).

    With `length: mean` it is the length-normalised DPO of Tulu 3 (arXiv:2411.15124), whose beta is 5.
    """
    return _of_logratios(-logsigmoid(beta * (chosen.logratio - rejected.logratio)), chosen, rejected, beta)


@preference_loss("cdpo", needs=PAIRS, source='Mitchell 2023, "A note on DPO with noisy preferences"',
                 admits=EVERY_OPTION)
def cdpo_loss(chosen: AnswerLogprobs, rejected: AnswerLogprobs, *, beta: Positive = 0.1,
              label_noise: Noise = 0.1) -> Loss:
    """-(1 - e) log sigmoid(beta h) - e log sigmoid(-beta h), e = label_noise.

    The loss is smallest where sigmoid(beta h) = 1 - e, so it never asks for an endless margin.
    """
    h = beta * (chosen.logratio - rejected.logratio)
    return _of_logratios(-(1 - label_noise) * logsigmoid(h) - label_noise * logsigmoid(-h), chosen, rejected, beta)


@preference_loss("robust", needs=PAIRS, source="Chowdhury et al. 2024, arXiv:2403.00409 (rDPO)", admits=EVERY_OPTION)
def robust_loss(chosen: AnswerLogprobs, rejected: AnswerLogprobs, *, beta: Positive = 0.1,
                label_noise: Noise = 0.1) -> Loss:
    """[-(1 - e) log sigmoid(beta h) + e log sigmoid(-beta h)] / (1 - 2e), e = label_noise.

    Over labels of which a known share e is flipped, its mean is the DPO loss of the clean labels. Can be negative.
    """
    h = beta * (chosen.logratio - rejected.logratio)
    each = (-(1 - label_noise) * logsigmoid(h) + label_noise * logsigmoid(-h)) / (1 - 2 * label_noise)
    return _of_logratios(each, chosen, rejected, beta)


@preference_loss("hinge", needs=PAIRS, source="SLiC-HF, arXiv:2305.10425, on log-ratios as RSO, arXiv:2309.06657",
                 admits=EVERY_OPTION)
def hinge_loss(chosen: AnswerLogprobs, rejected: AnswerLogprobs, *, beta: Positive = 0.1) -> Loss:
    """max(0, 1 - beta h)."""
    return _of_logratios(torch.relu(1 - beta * (chosen.logratio - rejected.logratio)), chosen, rejected, beta)


@preference_loss("exo", needs=PAIRS, source="Ji et al. 2024, arXiv:2402.00856 eq. 16", admits=EVERY_OPTION)
def exo_loss(chosen: AnswerLogprobs, rejected: AnswerLogprobs, *, beta: Positive = 0.1,
             label_noise: Annotated[float, Field(gt=0, lt=0.5)] = 1e-3) -> Loss:
    """KL(q, p), q = (sigmoid(beta h), sigmoid(-beta h)), p = (1 - e, e), e = label_noise > 0.

    The reverse of DPO's cross-entropy: it seeks the mode of p.
    """
    h = beta * (chosen.logratio - rejected.logratio)
    right, noise = h.sigmoid(), torch.tensor(label_noise, dtype=h.dtype, device=h.device)
    each = right * (logsigmoid(h) - torch.log1p(-noise)) + (1 - right) * (logsigmoid(-h) - noise.log())
    return _of_logratios(each, chosen, rejected, beta)


@preference_loss("ipo_sum", needs=PAIRS, source="Azar et al. 2023, arXiv:2310.12036 eq. 17",
                 admits=("ld_alpha", "nll_weight"))
def ipo_sum_loss(chosen: AnswerLogprobs, rejected: AnswerLogprobs, *, beta: Positive = 0.1,
                 label_noise: Noise = 0.0) -> Loss:
    """(h - (1 - 2e)/(2 beta))^2, e = label_noise.

    On sums of log-ratios, as OpenRLHF. With a share e of wrong labels the expected target is smaller by 1 - 2e.
    """
    h = chosen.logratio - rejected.logratio
    return _of_logratios((h - (1 - 2 * label_noise) / (2 * beta)) ** 2, chosen, rejected, beta)


@preference_loss("ipo_avg", needs=PAIRS, source="arXiv:2310.12036 eq. 17, averaged over tokens as its authors ran it",
                 admits=("nll_weight",))
def ipo_avg_loss(chosen: AnswerLogprobs, rejected: AnswerLogprobs, *, beta: Positive = 0.1,
                 label_noise: Noise = 0.0) -> Loss:
    """(D_c/n_c - D_r/n_r - (1 - 2e)/(2 beta))^2, n = tokens of the answer, e = label_noise."""
    return ipo_sum_loss(chosen.per_token(), rejected.per_token(), beta=beta, label_noise=label_noise)


@preference_loss("r_dpo", needs=PAIRS, source="Park et al. 2024, arXiv:2403.19159 eq. 9", admits=("nll_weight",))
def r_dpo_loss(chosen: AnswerLogprobs, rejected: AnswerLogprobs, *, beta: Positive = 0.1,
               length_penalty: NotNegative = 0.01) -> Loss:
    """-log sigmoid(beta h + a (n_c - n_r)), n = tokens of the answer, a = length_penalty.

    The best policy of a reward that costs `length_penalty` a token: a longer chosen answer needs less margin.
    """
    h = beta * (chosen.logratio - rejected.logratio) + length_penalty * (chosen.tokens - rejected.tokens)
    return _of_logratios(-logsigmoid(h), chosen, rejected, beta)


@preference_loss("dpop", needs=PAIRS, source="Pal et al. 2024, arXiv:2402.13228 eq. 3", admits=EVERY_OPTION)
def dpop_loss(chosen: AnswerLogprobs, rejected: AnswerLogprobs, *, beta: Positive = 0.1,
              penalty: NotNegative = 5.0) -> Loss:
    """-log sigmoid(beta (h - w max(0, -D_c))), w = penalty.

    The margin may not come from a chosen answer that grows less likely than under the reference.
    """
    h = chosen.logratio - rejected.logratio - penalty * torch.relu(-chosen.logratio)
    return _of_logratios(-logsigmoid(beta * h), chosen, rejected, beta)


# -- losses that anchor each answer to the reference -------------------------------------------------------------------


@preference_loss("sppo", needs=PAIRS, source="Wu et al. 2024, arXiv:2405.00675 eq. 4.7, win probability 1",
                 admits=("ld_alpha", "nll_weight"))
def sppo_loss(chosen: AnswerLogprobs, rejected: AnswerLogprobs, *, beta: Positive = 0.1) -> Loss:
    """(D_c - 1/(2 beta))^2 + (D_r + 1/(2 beta))^2."""
    target = 0.5 / beta
    each = (chosen.logratio - target) ** 2 + (rejected.logratio + target) ** 2
    return _of_logratios(each, chosen, rejected, beta)


@preference_loss("nca", needs=PAIRS, source="Chen et al. 2024, arXiv:2402.05369, NCA of two answers",
                 admits=EVERY_OPTION)
def nca_loss(chosen: AnswerLogprobs, rejected: AnswerLogprobs, *, beta: Positive = 0.1) -> Loss:
    """-log sigmoid(beta D_c) - log sigmoid(-beta D_c)/2 - log sigmoid(-beta D_r)/2."""
    good, bad = beta * chosen.logratio, beta * rejected.logratio
    return _of_logratios(-logsigmoid(good) - 0.5 * logsigmoid(-good) - 0.5 * logsigmoid(-bad), chosen, rejected, beta)


@preference_loss("bco_pair", needs=PAIRS, source="Jung et al. 2024, arXiv:2404.04656, on pairs and without its shift",
                 admits=EVERY_OPTION)
def bco_pair_loss(chosen: AnswerLogprobs, rejected: AnswerLogprobs, *, beta: Positive = 0.1) -> Loss:
    """-log sigmoid(beta D_c) - log sigmoid(-beta D_r)."""
    each = -logsigmoid(beta * chosen.logratio) - logsigmoid(-beta * rejected.logratio)
    return _of_logratios(each, chosen, rejected, beta)


@preference_loss("apo_zero", needs=PAIRS, source="D'Oosterlinck et al. 2024, arXiv:2408.06266 eq. 7",
                 admits=EVERY_OPTION)
def apo_zero_loss(chosen: AnswerLogprobs, rejected: AnswerLogprobs, *, beta: Positive = 0.1) -> Loss:
    """1 - sigmoid(beta D_c) + sigmoid(beta D_r).

    For chosen answers that are better than the model's own: they become likelier, rejected ones less likely.
    """
    each = 1 - (beta * chosen.logratio).sigmoid() + (beta * rejected.logratio).sigmoid()
    return _of_logratios(each, chosen, rejected, beta)


@preference_loss("apo_down", needs=PAIRS, source="D'Oosterlinck et al. 2024, arXiv:2408.06266 eq. 8",
                 admits=EVERY_OPTION)
def apo_down_loss(chosen: AnswerLogprobs, rejected: AnswerLogprobs, *, beta: Positive = 0.1) -> Loss:
    """sigmoid(beta D_c) + 1 - sigmoid(beta h).

    For chosen answers that are worse than the model's own: both become less likely, the rejected one more so.
    """
    each = (beta * chosen.logratio).sigmoid() + 1 - (beta * (chosen.logratio - rejected.logratio)).sigmoid()
    return _of_logratios(each, chosen, rejected, beta)


# -- losses without a reference ----------------------------------------------------------------------------------------


@preference_loss("simpo", needs=("pairs",), source="Meng et al. 2024, arXiv:2405.14734 eq. 6", admits=("nll_weight",))
def simpo_loss(chosen: AnswerLogprobs, rejected: AnswerLogprobs, *, beta: Positive = 2.0,
               gamma: NotNegative = 1.0) -> Loss:
    """-log sigmoid(beta (log p_c/n_c - log p_r/n_r) - gamma), n = tokens of the answer."""
    good, bad = beta * chosen.mean, beta * rejected.mean
    return _of_pairs(-logsigmoid(good - bad - gamma), good, bad)


@preference_loss("cpo", needs=("pairs",), source="Xu et al. 2024, arXiv:2401.08417 eq. 3, NLL averaged over tokens")
def cpo_loss(chosen: AnswerLogprobs, rejected: AnswerLogprobs, *, beta: Positive = 0.1,
             nll: NotNegative = 1.0) -> Loss:
    """-log sigmoid(beta (log p_c - log p_r)) - nll x log p_c/n_c, n = tokens of the answer."""
    good, bad = beta * chosen.policy, beta * rejected.policy
    return add_nll(_of_pairs(-logsigmoid(good - bad), good, bad), chosen, weight=nll)


@preference_loss("orpo", needs=("pairs",), source="Hong et al. 2024, arXiv:2403.07691 eq. 6 and 7")
def orpo_loss(chosen: AnswerLogprobs, rejected: AnswerLogprobs, *, odds_weight: Positive = 0.1) -> Loss:
    """-log p_c/n_c - odds_weight x log sigmoid(log odds_c - log odds_r), odds = q/(1 - q), log q = log p/n.

    n = tokens of the answer. The likelihood is the answer's; the prompt is not learnt.
    """
    good, bad = chosen.mean, rejected.mean
    odds = -odds_weight * logsigmoid(_log_odds(good) - _log_odds(bad))
    return add_nll(_of_pairs(odds, odds_weight * good, odds_weight * bad), chosen, weight=1.0)


def _log_odds(logprob: Float[Tensor, " p"]) -> Float[Tensor, " p"]:
    """Log (q/(1 - q)) of log q, without cancellation where q is close to 0 or to 1."""
    logprob = logprob.clamp(max=-1e-6)  # an answer of probability 1 has infinite odds
    near_one = logprob > -0.69
    other = torch.where(near_one, torch.log(-torch.expm1(logprob)), torch.log1p(-torch.exp(logprob)))
    return logprob - other


# -- losses on thumbs: one answer and whether it is good ---------------------------------------------------------------


def _of_thumbs(each: Tensor, answers: AnswerLogprobs, good: Tensor, baseline: Tensor, beta: float) -> Loss:
    reward, above = (beta * answers.logratio).detach(), (answers.logratio - baseline).detach()
    return Loss(each, {"loss": each.detach(), "reward_chosen": reward[good], "reward_rejected": reward[~good],
                       "accuracy": (torch.where(good, above, -above) > 0).float(), "baseline": baseline[None]})


@preference_loss("kto", needs=("labels", "reference", "mismatched KL"),
                 source="Ethayarajh et al. 2024, arXiv:2402.01306 eq. 7")
def kto_loss(answers: AnswerLogprobs, good: Bool[Tensor, " p"], baseline: Float[Tensor, ""], *, beta: Positive = 0.1,
             desirable_weight: NotNegative = 1.0, undesirable_weight: NotNegative = 1.0) -> Loss:
    """(1 - sigmoid(beta (D - z))) x weight of a good, (1 - sigmoid(beta (z - D))) x weight of a bad answer, z = KL.

    weight = desirable_weight or undesirable_weight. `baseline` is z, the KL to the reference, at least 0, estimated on
    answers to other prompts (`rlhflab.train.thumbs.mismatched_kl`). The paper wants about equal weight x count.
    """
    away = torch.where(good, answers.logratio - baseline, baseline - answers.logratio)
    weight = torch.where(good, desirable_weight, undesirable_weight)
    return _of_thumbs(weight * (1 - (beta * away).sigmoid()), answers, good, baseline, beta)


@preference_loss("bco", needs=("labels", "reference", "running shift"), source="Jung et al. 2024, arXiv:2404.04656")
def bco_loss(answers: AnswerLogprobs, good: Bool[Tensor, " p"], baseline: Float[Tensor, ""], *, beta: Positive = 0.1,
             desirable_weight: NotNegative = 1.0, undesirable_weight: NotNegative = 1.0) -> Loss:
    """-log sigmoid(beta (D - d)) x weight of a good, -log sigmoid(beta (d - D)) x weight of a bad answer, d = shift.

    weight = desirable_weight or undesirable_weight. `baseline` is d, half way between the mean log-ratios of good and
    of bad answers (`rlhflab.train.thumbs.RunningShift`); beta d is the paper's reward shift.
    """
    away = torch.where(good, answers.logratio - baseline, baseline - answers.logratio)
    weight = torch.where(good, desirable_weight, undesirable_weight)
    return _of_thumbs(-weight * logsigmoid(beta * away), answers, good, baseline, beta)
