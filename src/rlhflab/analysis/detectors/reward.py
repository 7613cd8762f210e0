"""Detectors of the reward itself: what it is made of, who else agrees with it, what it can be fooled by."""

from collections.abc import Sequence
from typing import Annotated

import numpy as np
from pydantic import Field

from rlhflab.analysis.detectors.base import (
    ANSWERS,
    SLOPES,
    WINDOW,
    Array,
    Unclear,
    by_step,
    clustered,
    detector,
    enough,
    having,
    mean_and_deviation,
    means_by_step,
    numbers,
    prompts,
    shown,
    start_and_now,
    told,
)
from rlhflab.analysis.detectors.text import length
from rlhflab.analysis.evidence import Evidence, Finding, Sample
from rlhflab.core.signals import gain_at_equal_length, hill
from rlhflab.core.stats import Estimate, difference, holm, jackknife, mean_interval, sign_test, theil_sen

Positive = Annotated[float, Field(gt=0)]
Share = Annotated[float, Field(gt=0, lt=1)]


@detector("twin_gap", needs=("rollouts", "rewards", "twin rewards"),
          source="Eisenstein et al. 2023, arXiv:2312.09244 (reward models equal in distribution part under shift)")
def twin_gap(evidence: Evidence, *, gap: Positive = 1.0, ratio: Share = 0.5, alike: Share = 0.3) -> Finding:
    """Gap r z(reward) - z(twin) above 1 deviation of the start, or slope of the twin / slope of the reward below .5 r.

    r is the correlation of both on the start's answers. Answers that one model scores a deviation higher are expected r
    deviations higher with the other (regression to the mean), so only what is missing beyond that is a gap. Below a
    correlation of .3 the two were not taught the same, and nothing can be said. The slopes over steps are Theil and
    Sen's, read from 5 steps on and where the reward clearly rises by half a deviation.
    """
    start, now = start_and_now(evidence, lambda s: s.reward, lambda s: s.twin)
    own_start, twin_start = (numbers(start, read) for read in (lambda s: s.reward, lambda s: s.twin))
    mean, deviation = mean_and_deviation(own_start, "rewards")
    twin_mean, twin_deviation = mean_and_deviation(twin_start, "twin's rewards")
    agreement = float(np.corrcoef(own_start, twin_start)[0, 1])
    if agreement < alike:
        raise Unclear(f"the two reward models correlate by {agreement:.2f} on the answers of the start, and {alike:g} "
                      "is needed for one to stand for the other: teach the twin from judgments of the same kind, or "
                      "both from more of them")

    def z(sample: Sample) -> float:
        return ((sample.reward or 0.0) - mean) / deviation

    def z_twin(sample: Sample) -> float:
        return ((sample.twin or 0.0) - twin_mean) / twin_deviation

    def missing(sample: Sample) -> float:
        return agreement * z(sample) - z_twin(sample)

    scored = having(evidence.rollouts, lambda s: s.reward, lambda s: s.twin)
    steps, own = means_by_step(scored, z)
    slopes = (theil_sen(steps, own), theil_sen(*means_by_step(scored, z_twin))) if len(steps) >= SLOPES else None
    follows = slopes[1].mean / slopes[0].mean if slopes and slopes[0].low > 0 and own[-1] > 0.5 else None
    apart = mean_interval([missing(sample) for sample in now], prompts(now))
    wrong = apart.mean > gap or (follows is not None and follows < ratio * agreement)
    return Finding(
        name="twin_gap", verdict="alarm" if wrong else "ok", effect=apart, unit="deviations of the start",
        says=f"A reward model learnt from other data grants {told(apart)} deviations less than this gain of reward "
             f"lets expect, with a correlation of {agreement:.2f} on the start"
             + (f", and rises {follows:.2f} times as fast." if follows is not None else "."),
        limit=f"above {gap:g} deviations, or the twin rising less than {ratio:g} times the correlation as fast",
        examples=shown(now, missing),
        next="What is gained is this reward model's own error. Stop, reward with the mean or the lowest of both "
             "models, or collect comparisons on the answers where they differ most.")


@detector("probe_battery", needs=("probes",), source="Wu et al. 2025, arXiv:2503.11751 (reWordBench); sign test")
def probe_battery(evidence: Evidence, *, preferred: Share = 0.6, gain: Positive = 0.2) -> Finding:
    """Share of answers scored higher when perturbed above 60 % (sign test, Holm), or mean gain above .2 deviations.

    No perturbation is an improvement, so that no one should pay. Those with fewer than 20 answers are left out.
    """
    probes = {name: [float(x) for x in changes if np.isfinite(x)] for name, changes in evidence.probes.items()}
    probes = {name: changes for name, changes in probes.items() if len(changes) >= 20}
    enough(len(probes), 1, "perturbations with 20 answers or more")
    names = list(probes)
    p = dict(zip(names, holm([sign_test(probes[name]) for name in names]), strict=True))
    effects = {name: mean_interval(changes) for name, changes in probes.items()}
    higher = {name: sum(x > 0 for x in changes) / len(changes) for name, changes in probes.items()}
    fooled = [name for name in names if (higher[name] > preferred and p[name] < 0.05)
              or (effects[name].mean > gain and effects[name].low > 0)]
    worst = max(fooled or names, key=lambda name: effects[name].mean)
    return Finding(
        name="probe_battery", verdict="alarm" if fooled else "ok", effect=effects[worst],
        unit=f"deviations of the score, by: {worst}",
        says=(f"The reward model pays for {', '.join(fooled)}" if fooled else
              f"None of {len(names)} perturbations pays") + f"; '{worst}' moves its score by {told(effects[worst])} "
             f"deviations and is preferred in {higher[worst]:.0%} of {len(probes[worst])} answers.",
        limit=f"preferred in more than {preferred:.0%} (p < .05 after Holm) or by more than {gain:g} deviations",
        next="Do not optimise against this reward model yet: add pairs that differ in the perturbation only, the plain "
             "answer chosen, and train it again.")


@detector("length_share", needs=("rollouts", "rewards"), source="Singhal et al. 2023, arXiv:2310.03716 (NRG)")
def length_share(evidence: Evidence, *, share: Share = 0.3, gain: Positive = 0.5,
                 bins: Annotated[int, Field(ge=2)] = 10) -> Finding:
    """NRG, the share of the reward's gain between answers of equal length, below .3 with a gain above .5 deviations.

    NRG = sum_b w_b (mean now in b - mean start in b) / (mean now - mean start), bins at quantiles of the pooled
    lengths, w_b the share of the latest answers in b.
    """
    start, now = start_and_now(evidence, lambda s: s.reward, least=2 * ANSWERS, window=WINDOW)
    _, deviation = mean_and_deviation(numbers(start, lambda s: s.reward), "rewards")
    rise = difference(numbers(now, lambda s: s.reward), numbers(start, lambda s: s.reward), prompts(now),
                      prompts(start))
    limit = f"below {share:g} while the reward gains more than {gain:g} deviations"
    if rise.mean <= gain * deviation:
        return Finding(name="length_share", verdict="ok", limit=limit, says=(
            f"The reward has moved by {rise.mean / deviation:.2f} deviations of the start, too little of a gain to ask "
            "how much of it is length."))
    sides = [clustered(side, lambda s: (length(s.answer), s.reward or 0.0)) for side in (now, start)]
    edges = np.unique(np.quantile([x for side in sides for found in side.values() for x, _ in found],
                                  np.linspace(0, 1, bins + 1)[1:-1]))
    nrg = jackknife(lambda after, before: gain_at_equal_length(after, before, edges), *sides)
    if not np.isfinite(nrg.mean):
        raise Unclear(f"the reward gained {rise.mean / deviation:.2f} deviations, but no answer now is as long as one "
                      "of the start, so gains at equal length cannot be read; look at length_drift")
    return Finding(
        name="length_share", verdict="alarm" if nrg.mean < share else "ok", effect=nrg, unit="share of the gain",
        says=f"Of a gain of {rise.mean / deviation:.2f} deviations, {told(nrg)} is left between answers of equal "
             "length; the rest is length.", limit=limit,
        examples=shown(now, lambda s: length(s.answer)),
        next="The policy is paid for length: take length out of the reward (length correction, ODIN) or add pairs "
             "whose shorter answer is the better one.")


@detector("ensemble_disagreement", needs=("rollouts", "members"), source="Coste et al. 2023, arXiv:2310.02743")
def ensemble_disagreement(evidence: Evidence, *, ratio: Annotated[float, Field(gt=1)] = 1.5) -> Finding:
    """Mean over answers of the members' deviation, now / start, above 1.5.

    Each member is standardised on the start first. Members that share an error agree on it: silence is no proof.
    """
    start, now = start_and_now(evidence, _first_member)
    count = len(start[0].members)
    if count < 2 or any(len(sample.members) != count for sample in [*start, *now]):
        raise Unclear("each answer needs scores of the same two members or more")
    scores: Array = np.array([sample.members for sample in start])
    mean, deviation = scores.mean(0), scores.std(0, ddof=1)
    if (deviation <= 1e-9).any():
        raise Unclear("a member scores all answers of the start alike, so there is no deviation to measure by")

    def spread(sample: Sample) -> float:
        return float(np.std((np.array(sample.members) - mean) / deviation, ddof=1))

    if sum(map(spread, start)) == 0:
        raise Unclear("the members score the answers of the start alike: they are copies of each other")
    grown = jackknife(lambda after, before: float(np.mean(after) / np.mean(before)),
                      clustered(now, spread), clustered(start, spread))
    return Finding(
        name="ensemble_disagreement", verdict="alarm" if grown.mean > ratio else "ok", effect=grown,
        unit="now / start", says=f"The {count} members of the reward disagree {told(grown)} times as much as at the "
                                 "start.", limit=f"above {ratio:g}", examples=shown(now, spread),
        next="The answers have left what the reward model knows: subtract the disagreement from the reward (UWO) or "
             "take the lowest member (WCO), and label answers on which the members differ.")


def _first_member(sample: Sample) -> float | None:
    return sum(sample.members) if sample.members else None


@detector("reward_tail", needs=("rollouts", "rewards"),
          source="Hill 1975; Kwa et al. 2024, arXiv:2407.14503 (catastrophic Goodhart)")
def reward_tail(evidence: Evidence, *, tail: Share = 0.05, index: Positive = 1 / 3,
                share: Share = 0.7) -> Finding:
    """Hill's index of the top 5 % of rewards above their step's median over 1/3, or one term's variance share over .7.

    Heavy tails let the reward grow without bound at a small KL. At least 10 values are in the tail, so 200 are needed;
    a reward with fewer than 10 different values has none. A term alarms if it did not hold that share at the start.
    """
    scored = having(evidence.rollouts, lambda s: s.reward)
    captured = _captured(evidence, share)
    excess = [value - float(np.median(found)) for samples in by_step(scored).values()
              for found in [numbers(samples, lambda s: s.reward)] for value in found]
    k = int(tail * len(excess))
    graded = len({sample.reward for sample in scored}) >= 10
    if graded and not captured:
        enough(len(excess), round(10 / tail), "scored answers")
    xi: Estimate | None = None
    if graded and k >= 10:
        value = hill(excess, k)
        half = 1.96 * value / k**0.5
        xi = Estimate(value, value - half, value + half, k)
    heavy = xi is not None and xi.mean > index
    heights = (f"The top {tail:.0%} of the rewards, above the median of their step, have a tail index of {told(xi)}"
               if xi else f"Among {len(excess)} rewards no tail can be measured")
    return Finding(
        name="reward_tail", verdict="alarm" if heavy or captured else "ok", effect=xi, unit="tail index",
        says=f"{heights}{f'; {captured}' if captured else ''}.",
        limit=f"tail index above {index:.2g}, or a term that comes to hold more than {share:.0%} of the variance",
        examples=shown(scored, lambda s: s.reward or 0.0),
        next="A few answers or one term carry the learning: bound the reward (clip it, or shape it against the "
             "reference's score), and weigh the terms by their deviation.")


def _captured(evidence: Evidence, share: float) -> str:
    """In words: the term that has come to hold more than `share` of the terms' variance; empty where none has."""
    steps = list(by_step(sample for sample in evidence.rollouts if len(sample.terms) > 1).values())
    if len(steps) < 2 or min(len(steps[0]), len(steps[-1])) < ANSWERS:
        return ""
    before, now = (_variance_shares(samples) for samples in (steps[0], steps[-1]))
    grown = [name for name, held in now.items() if held > share >= before.get(name, 0.0)]
    return "; ".join(f"the term '{name}' holds {now[name]:.0%} of the terms' variance and held "
                     f"{before.get(name, 0.0):.0%} at the start" for name in grown)


def _variance_shares(samples: Sequence[Sample]) -> dict[str, float]:
    """Each term's share of the sum of the terms' variances."""
    variances = {name: float(np.var([sample.terms.get(name, 0.0) for sample in samples]))
                 for name in dict.fromkeys(name for sample in samples for name in sample.terms)}
    total = sum(variances.values())
    return {name: value / total for name, value in variances.items()} if total else {}
