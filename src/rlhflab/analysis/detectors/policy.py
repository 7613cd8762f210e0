"""Detectors of how far the policy has moved: from its reference, from usual text, from the chosen answers."""

import math
from typing import Annotated

import numpy as np
from pydantic import Field

from rlhflab.analysis.detectors.base import (
    SHOWN,
    Unclear,
    clustered,
    detector,
    enough,
    having,
    numbers,
    prompts,
    shown,
    start_and_now,
    told,
)
from rlhflab.analysis.evidence import Evidence, Finding, Sample
from rlhflab.core.outliers import fit_cloud
from rlhflab.core.stats import Estimate, jackknife, mean_interval, theil_sen

Positive = Annotated[float, Field(gt=0)]
Share = Annotated[float, Field(gt=0, lt=1)]
HIDDEN = 64
"""Hidden states of the start, of which half give the covariance and half the limit."""


def _log_ratio(sample: Sample) -> float | None:
    """Log policy - log reference of the answer, nats: one draw of the KL (k1)."""
    if sample.logprob is None or sample.reference_logprob is None:
        return None
    return sample.logprob - sample.reference_logprob


@detector("kl_budget", needs=("rollouts", "log-probs", "reference log-probs"),
          source="Gao et al. 2022, arXiv:2210.10760 (gold falls beyond a distance)")
def kl_budget(evidence: Evidence, *, budget: Positive = 8.0) -> Finding:
    """Mean of log policy - log reference an answer, nats, above the budget.

    The default is for answers of a dozen words; set it to where gold, a twin reward or people's votes peak over KL.
    """
    latest = evidence.rollouts[-1].step
    now = having((sample for sample in evidence.rollouts if sample.step == latest), _log_ratio)
    enough(len(now), 8, "answers with log-probs of policy and reference at the latest step")
    kl = mean_interval(numbers(now, _log_ratio), prompts(now))
    return Finding(
        name="kl_budget", verdict="alarm" if kl.mean > budget else "ok", effect=kl, unit="nats an answer",
        says=f"The policy is {told(kl)} nats an answer away from its reference.", limit=f"above {budget:g} nats",
        examples=shown(now, lambda s: _log_ratio(s) or 0.0),
        next="Stop here or go back to a checkpoint within the budget; then raise the KL coefficient, or let it adapt "
             "to a target below the budget.")


@detector("reference_perplexity", needs=("rollouts", "tokens", "reference log-probs"),
          source="Zheng et al. 2023, arXiv:2307.04964 (perplexity tells collapse, reward does not)")
def reference_perplexity(evidence: Evidence, *, low: Share = 0.6,
                         high: Annotated[float, Field(gt=1)] = 3.0) -> Finding:
    """Perplexity of the answers under the reference, now / start, below .6 (one pattern) or above 3 (gibberish).

    exp(-sum of log-probs / sum of tokens) of each side.
    """
    start, now = start_and_now(evidence, lambda s: s.reference_logprob, lambda s: s.tokens or None)
    pairs = [clustered(side, lambda s: (s.reference_logprob or 0.0, float(s.tokens or 0))) for side in (now, start)]

    def log_ratio(after: list[tuple[float, float]], before: list[tuple[float, float]]) -> float:
        (up, n), (up0, n0) = (np.sum(side, axis=0) for side in (after, before))
        return float(up0 / n0 - up / n)

    found = jackknife(log_ratio, *pairs)
    mean, least, most = (math.exp(min(bound, 700.0)) for bound in found[:3])
    ratio = Estimate(mean, least, most, found.n)
    worse = ratio.mean < low or ratio.mean > high
    return Finding(
        name="reference_perplexity", verdict="alarm" if worse else "ok", effect=ratio, unit="now / start",
        says=f"To the reference the answers are {told(ratio)} times as surprising a token as those of the start.",
        limit=f"below {low:g} (one pattern) or above {high:g} (gibberish)",
        examples=shown(now, lambda s: (-1 if ratio.mean > 1 else 1) * (s.reference_logprob or 0) / (s.tokens or 1)),
        next="Read the answers: below 1 they repeat one pattern, above 1 they leave the language. Go back to the last "
             "good checkpoint and raise the KL coefficient.")


@detector("latent_outliers", needs=("hidden states",),
          source="Miao et al. 2025, arXiv:2510.13694 (MOP); Ledoit & Wolf 2004 (covariance)")
def latent_outliers(evidence: Evidence, *, share: Share = 0.05) -> Finding:
    """Share of hidden states beyond the start's 99 % Mahalanobis distance, above 5 %.

    Mean and shrunk covariance come from one half of the start's states, the 99 % quantile of distances from the other,
    in place of a chi-square that real states do not follow. The share's interval has to lie above what is expected.
    """
    first, latest = min(evidence.hidden), max(evidence.hidden)
    if first == latest:
        raise Unclear("hidden states of the start and of a later step are needed, found those of one step only")
    start, now = (np.asarray(evidence.hidden[step], dtype=float) for step in (first, latest))
    enough(len(start), HIDDEN, "hidden states of the start")
    enough(len(now), 8, "hidden states of the latest step")
    if not (np.isfinite(start).all() and np.isfinite(now).all()):
        raise Unclear("hidden states are NaN or infinite")
    if not start.std(axis=0).any():
        raise Unclear("hidden states of the start: all points are equal")
    excess = fit_cloud(start).excess(now)
    answers = [sample for sample in evidence.rollouts if sample.step == latest][:len(now)]
    known = len(answers) == len(now)
    beyond = mean_interval((excess > 0).astype(float).tolist(), prompts(answers) if known else None)
    expected = max(0.01, 1 / (len(start) - len(start) // 2 + 1))
    return Finding(
        name="latent_outliers", verdict="alarm" if beyond.mean > share and beyond.low > expected else "ok",
        effect=beyond, unit="share of answers",
        says=f"{beyond.mean:.0%} of {len(now)} answers lie where hardly any answer of the start lay "
             f"({expected:.0%} is expected).", limit=f"above {share:.0%}, with the interval above {expected:.0%}",
        examples=[answers[i].answer for i in np.argsort(-excess)[:SHOWN] if excess[i] > 0] if known else (),
        next="The reward model judges text unlike what it learnt from: label some of these answers, add them to its "
             "pairs, and penalise distance from the start until then.")


@detector("chosen_displacement", needs=("pair log-probs",), source="Razin et al. 2024, arXiv:2410.08847")
def chosen_displacement(evidence: Evidence, *, fall: Positive = 0.15,
                        window: Annotated[int, Field(ge=2)] = 5) -> Finding:
    """Chosen answers' log-prob ratio a token below -.15 nats while the margin rises.

    The ratio is the mean of the last `window` steps, the margin's slope that of Theil and Sen over all of them.
    """
    rows = [row for row in evidence.pairs if all(math.isfinite(row[key]) for key in ("chosen", "margin"))]
    enough(len(rows), 2 * window, "steps on pairs")
    shift = mean_interval([float(row["chosen"]) for row in rows[-window:]])
    slope = theil_sen([float(row["step"]) for row in rows], [float(row["margin"]) for row in rows])
    return Finding(
        name="chosen_displacement", verdict="alarm" if shift.mean < -fall and slope.low > 0 else "ok", effect=shift,
        unit="nats a token",
        says=f"The chosen answers' log-probs have moved by {told(shift)} nats a token from the reference over the last "
             f"{window} steps, while the margin {'rises' if slope.low > 0 else 'does not clearly rise'}.",
        limit=f"below -{fall:g} nats a token with a rising margin",
        next="The probability goes to answers that nobody chose: add an NLL term on the chosen answers "
             "(`nll_weight`) or use DPOP, drop pairs whose two answers are nearly alike, or lower the learning rate.")
