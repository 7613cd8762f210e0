"""Checks of what judges said: undecided pairs, the side shown first, and how often a label is wrong."""

from collections import Counter, defaultdict
from collections.abc import Hashable
from math import comb

import numpy as np

from rlhflab.analysis.data_checks.base import (
    CannotSay,
    DataFinding,
    comparison_keys,
    data_check,
    share,
    told,
)
from rlhflab.core.calibration import noise_ceiling
from rlhflab.core.stats import Estimate, jackknife, mean_interval
from rlhflab.data.survey.columns import Survey

MANY_TIES = 0.05
"""Share of undecided pairs above which the finding says to look."""
MUCH_NOISE = 0.1
"""Share of wrong labels from which the finding says to look."""


@data_check("undecided")
def undecided(survey: Survey) -> DataFinding:
    """Pairs of which no answer is preferred: ties, even votes, or no judgment."""
    pairs = survey.of("pair")
    n, without = int(pairs.sum()), int((pairs & (survey.label == 0)).sum())
    if n == 0:
        raise CannotSay("there are no pairs to look at")
    rate = share(without, n)
    said = Counter(opinion.verdict for opinion in survey.opinions)
    ties = f" Of {sum(said.values()):,} judgments, {said[0]:,} name neither answer." if survey.opinions else ""
    many = rate.mean > MANY_TIES
    return DataFinding(verdict="look" if many else "clean", count=without, rate=rate, of="pairs", limited=rate.mean,
                       says=f"{without:,} of {n:,} pairs prefer no answer: {told(rate)}.{ties}",
                       next="training on pairs leaves them out, so count on fewer pairs than rows." if many else "")


@data_check("thumbs_up")
def thumbs_up(survey: Survey) -> DataFinding:
    """Share of thumbs that are up; far from a half, weights of the two sides should be set."""
    thumbs = survey.of("thumb")
    if not thumbs.any():
        raise CannotSay("there are no thumbs")
    up = survey.label[thumbs] == 1
    rate = mean_interval(up.astype(float).tolist(), survey.prompt[thumbs].tolist())
    return _sided(rate, f"{int(up.sum()):,} of {rate.n:,} thumbs are up: {told(rate)}.", of="thumbs", far=0.3,
                  next_step="balance them with the weights of the loss (rlhflab list losses: kto, bco).")


@data_check("position_bias")
def position_bias(survey: Survey) -> DataFinding:
    """How often judges choose the answer that was shown first, or that stands first in the file."""
    known = [opinion for opinion in survey.opinions if opinion.verdict and opinion.first_shown]
    sides = [opinion.verdict == opinion.first_shown for opinion in known]
    where = "was shown first"
    if not known:
        known = [opinion for opinion in survey.opinions if opinion.verdict]
        sides = [opinion.verdict == 1 for opinion in known]
        where = "stands first in the file (the order on the screen is not known)"
        if not 0 < sum(sides) < len(sides):
            raise CannotSay("nobody wrote down which answer was shown first, and the file puts the preferred one at a "
                            "fixed place")
    rate = mean_interval([float(side) for side in sides], [int(survey.prompt[opinion.row]) for opinion in known])
    return _sided(rate, f"The answer that {where} is chosen in {told(rate)} of {rate.n:,} judgments.", of="judgments",
                  next_step="show the answers in an order drawn anew for each judge, and judge both orders where a "
                            "model judges.")


@data_check("label_noise", source="A = e^2 + (1 - e)^2, Dawid & Skene's model with one rate for all judges")
def label_noise(survey: Survey) -> DataFinding:
    """Share of judgments that are wrong, from how often two judgments of one comparison agree."""
    keys, _ = comparison_keys(survey)
    turned = np.where(survey.answers[:, 0] <= survey.answers[:, 1], 1, -1)
    opinions = [(int(keys[each.row]), bool(each.verdict * turned[each.row] > 0)) for each in survey.opinions
                if each.verdict]
    ceiling = noise_ceiling(opinions)
    if ceiling is None:
        raise CannotSay("no comparison was judged twice; have some judged again to know what a label is worth")
    agreement = agreement_interval(opinions, {int(keys[each.row]): int(survey.prompt[each.row])
                                              for each in survey.opinions})
    rate = Estimate(ceiling.flipped, flipped(agreement.high), flipped(agreement.low), ceiling.comparisons)
    noisy = rate.mean >= MUCH_NOISE
    rows_of: dict[int, set[int]] = defaultdict(set)
    for each in survey.opinions:
        rows_of[int(keys[each.row])].add(each.row)
    repeats = "; rows that repeat a comparison count as judgments of their own, so copies make this too small" \
        if any(len(rows) > 1 for rows in rows_of.values()) else ""
    return DataFinding(
        verdict="look" if noisy else "clean", rate=rate, of="judgments", limited=rate.mean,
        says=f"Two judgments of one comparison agree in {told(agreement)} of the cases, so {told(rate)} of the "
             f"judgments are wrong if judges err independently ({ceiling.comparisons:,} comparisons judged twice or "
             f"more{repeats}). No reward model can be right more often than {100 - 100 * rate.mean:.0f} % on single "
             "judgments.",
        details={"agreement": agreement._asdict(), "ceiling": ceiling.accuracy},
        next=f"train with label noise in the loss (--loss.name cdpo --loss.label_noise {min(rate.mean, 0.49):.2f}), "
             "take the majority of several judges, or make the criteria clearer." if noisy else "")


def flipped(agreement: float) -> float:
    """E of A = e^2 + (1 - e)^2 below a half; a half where judges agree no more often than coins."""
    return float((1 - max(0.0, 2 * min(agreement, 1.0) - 1) ** 0.5) / 2)


def agreement_interval(opinions: list[tuple[int, bool]], prompt_of: dict[int, int]) -> Estimate:
    """Share of equal verdicts among any two of one comparison, with an interval from leaving prompts out."""
    votes: dict[int, list[int]] = defaultdict(lambda: [0, 0])
    for comparison, verdict in opinions:
        votes[comparison][verdict] += 1
    clusters: dict[Hashable, list[tuple[int, int]]] = defaultdict(list)
    for comparison, (no, yes) in votes.items():
        if no + yes > 1:
            clusters[prompt_of[comparison]].append((comb(no, 2) + comb(yes, 2), comb(no + yes, 2)))
    found = jackknife(lambda pairs: sum(equal for equal, _ in pairs) / sum(n for _, n in pairs), clusters)
    return found._replace(low=max(found.low, 0.0), high=min(found.high, 1.0))


def _sided(rate: Estimate, says: str, *, of: str, next_step: str, far: float = 0.0) -> DataFinding:
    """A rate that would be a half without a bias: to look at where its interval is further from a half than `far`."""
    biased = rate.low > 0.5 + far or rate.high < 0.5 - far
    return DataFinding(verdict="look" if biased else "clean", says=says, rate=rate, of=of,
                       count=round(rate.mean * rate.n), limited=max(rate.mean, 1 - rate.mean),
                       next=next_step if biased else "")
