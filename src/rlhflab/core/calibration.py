"""What scores mean: how much of them is length, how sure they are of an order, and how sure one can be at all.

NumPy and SciPy only.
"""

from collections.abc import Hashable, Iterable, Sequence
from itertools import groupby
from math import comb, sqrt
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize_scalar
from scipy.special import expit

from rlhflab.core.stats import Estimate, bootstrap_totals, mean_interval

Array = NDArray[np.float64]
KNOTS = 21
"""Places, at equal shares of the data, where a length curve is fitted; straight lines join them."""
BINS = 15


class LengthCurve(NamedTuple):
    """The usual score of an answer of each length. Beyond the lengths it was fitted on it stays at its ends."""

    lengths: Array
    scores: Array

    def at(self, lengths: Array) -> Array:
        """The usual scores at `lengths`."""
        return np.interp(lengths, self.lengths, self.scores)


def fit_length_curve(lengths: Array, scores: Array, *, share: float = 2 / 3) -> LengthCurve:
    """LOWESS of scores on lengths (Cleveland 1979, without its robustness passes), at quantiles of the lengths.

    At each knot a straight line is fitted to the nearest `share` of the points, weighted by the tricube of their
    distance. Subtracting it is the post-hoc calibration of Huang et al. 2024 (arXiv:2409.17407).
    """
    x, y = lengths, scores
    knots = np.unique(np.quantile(x, np.linspace(0, 1, KNOTS)))
    nearest = max(1, round(share * x.size))
    fitted = []
    for knot in knots:
        distance = np.abs(x - knot)
        reach = max(float(np.partition(distance, nearest - 1)[nearest - 1]), 0.5) * (1 + 1e-9)
        root = np.sqrt(np.clip(1 - (distance / reach) ** 3, 0, None) ** 3)
        line = np.linalg.lstsq(root[:, None] * np.stack([np.ones_like(x), x - knot], axis=1), root * y, rcond=None)
        fitted.append(line[0][0])
    return LengthCurve(knots, np.array(fitted))


class Calibration(NamedTuple):
    """How well P = sigmoid(gap / T) says how often the order of two scores is the label's."""

    temperature: float
    """Fitted on all pairs."""
    ece: float
    """Expected calibration error over `BINS` bins of the confidence, [0.5, 1]."""
    brier: float
    """Mean (1 - P(chosen is preferred))^2; 0.25 for a coin."""
    n: int


def fit_temperature(gaps: Array) -> float:
    """T in [0.01, 100] with the least mean -log sigmoid(gap / T). `gaps`: score of chosen less that of rejected.

    Guo et al. 2017 (arXiv:1706.04599 section 4.2), for two classes.
    """
    found = minimize_scalar(lambda sharpness: float(np.logaddexp(0, -gaps * sharpness).mean()), bounds=(0.01, 100),
                            method="bounded", options={"xatol": 1e-6})
    return 1 / float(found.x)


def calibrate(gaps: Array, prompts: Sequence[Hashable]) -> Calibration:
    """Temperature, and errors of probabilities whose temperature was fitted on the pairs of other prompts.

    Two halves of the prompts, in the order they come in. With one prompt alone the errors are those of the fit itself.
    """
    chosen = unseen_probabilities(gaps, prompts)
    return Calibration(fit_temperature(gaps), expected_calibration_error(chosen), float(((1 - chosen) ** 2).mean()),
                       gaps.size)


def unseen_probabilities(gaps: Array, prompts: Sequence[Hashable]) -> Array:
    """P(chosen is preferred) of each pair, with a temperature fitted on the pairs of other prompts."""
    number = {prompt: i for i, prompt in enumerate(dict.fromkeys(prompts))}
    half = np.array([number[prompt] % 2 for prompt in prompts])
    of_half = [fit_temperature(gaps[half != side] if len(number) > 1 else gaps) for side in (0, 1)]
    probabilities: Array = expit(gaps / np.array(of_half)[half])
    return probabilities


def expected_calibration_error(chosen: Array, *, bins: int = BINS) -> float:
    """Mean |accuracy - confidence| over equal bins of the confidence, weighted by their counts.

    `chosen`: the probability given to the label of each pair. The confidence is that of the likelier order.
    """
    confidence, right, bin_of = _binned(chosen, bins)
    gap = np.bincount(bin_of, weights=right - confidence, minlength=bins)
    return float(np.abs(gap).sum() / chosen.size)


class Bin(NamedTuple):
    """Pairs of which a reward model is about equally sure."""

    confidence: float
    """Mean probability of the likelier order."""
    accuracy: Estimate
    """Share of labels that are that order, with an interval clustered by prompt."""


def reliability(chosen: Array, prompts: Sequence[Hashable], *, bins: int = BINS) -> list[Bin]:
    """The bins behind `expected_calibration_error`, those without a pair left out."""
    confidence, right, bin_of = _binned(chosen, bins)
    members = [np.flatnonzero(bin_of == number).tolist() for number in np.unique(bin_of)]
    return [Bin(float(confidence[of].mean()), mean_interval(right[of].tolist(), [prompts[i] for i in of]))
            for of in members]


def _binned(chosen: Array, bins: int) -> tuple[Array, Array, NDArray[np.int64]]:
    """(confidence, whether the label is the likelier order, bin) of each pair; an even chance is half right."""
    confidence, right = np.maximum(chosen, 1 - chosen), np.where(chosen == 0.5, 0.5, (chosen > 0.5).astype(float))
    return confidence, right, np.minimum(((confidence - 0.5) * 2 * bins).astype(np.int64), bins - 1)


class GapBin(NamedTuple):
    """Pairs whose two scores lie about equally far apart."""

    low: float
    high: float
    """Least and greatest distance in the bin."""
    accuracy: Estimate


def accuracy_by_gap(gaps: Array, prompts: Sequence[Hashable], *, parts: int = 5) -> list[GapBin]:
    """How often the higher score is the label's, for `parts` equal shares of the pairs by the distance of the scores.

    The table of Huang et al. 2024, arXiv:2403.17031 ("N+ details"), asks the same: a model that is surer is righter.
    """
    shares = [of.tolist() for of in np.array_split(np.argsort(np.abs(gaps), kind="stable"), parts) if of.size]
    return [GapBin(float(np.abs(gaps[of]).min()), float(np.abs(gaps[of]).max()),
                   mean_interval((0.5 + 0.5 * np.sign(gaps[of])).tolist(), [prompts[i] for i in of])) for of in shares]


def length_correlation(scores: Array, lengths: Array, prompts: Sequence[Hashable], *, within: bool,
                       draws: int = 2000, seed: int = 0) -> Estimate | None:
    """Pearson's correlation of score and length over answers, with a 95 % bootstrap interval that draws prompts.

    `within`: of what is left after the mean of each prompt's answers is taken away, so that prompts that ask for long
    answers and score high do not count. None where either does not vary.
    """
    member = np.unique(np.array([repr(prompt) for prompt in prompts]), return_inverse=True)[1]
    counts = np.bincount(member).astype(float)
    x, y = (values - (np.bincount(member, values) / counts)[member] if within else values - values.mean()
            for values in (scores, lengths))
    if min(float((x * x).sum()), float((y * y).sum())) < 1e-12:
        return None
    moments: Array = np.stack([np.bincount(member, each).astype(float) for each in (
        np.ones_like(x), x, y, x * x, y * y, x * y)], axis=1)

    def correlation(sums: Array) -> Array:
        n, sx, sy, xx, yy, xy = sums.T
        return np.asarray((xy - sx * sy / n) / np.sqrt((xx - sx * sx / n) * (yy - sy * sy / n)))

    return bootstrap_totals(moments, correlation, n=int(x.size), draws=draws, seed=seed)


class Ceiling(NamedTuple):
    """What a perfect reward model scores against single labels of annotators who agree so often."""

    agreement: float
    """Share of equal verdicts among any two opinions on one comparison."""
    flipped: float
    """Share of opinions against the truth, if annotators err independently and equally often."""
    accuracy: float
    """1 - flipped."""
    comparisons: int
    """Those with two opinions or more."""


def noise_ceiling(opinions: Iterable[tuple[Hashable, bool]]) -> Ceiling | None:
    """From `(comparison, verdict)` of each opinion; None where no comparison has two.

    Two annotators who each err with probability e agree with A = e^2 + (1 - e)^2, which `flip_rate` turns round.
    """
    numbers: dict[Hashable, int] = {}
    numbered = sorted((numbers.setdefault(comparison, len(numbers)), verdict) for comparison, verdict in opinions)
    verdicts = [[verdict for _, verdict in group] for _, group in groupby(numbered, key=lambda pair: pair[0])]
    repeated = [(len(each), sum(each)) for each in verdicts if len(each) > 1]
    if not repeated:
        return None
    equal = sum(comb(yes, 2) + comb(n - yes, 2) for n, yes in repeated)
    agreement = equal / sum(comb(n, 2) for n, _ in repeated)
    flipped = flip_rate(agreement)
    return Ceiling(agreement, flipped, 1 - flipped, len(repeated))


def flip_rate(agreement: float) -> float:
    """The e of two annotators who agree with A = e^2 + (1 - e)^2; a half where they agree no oftener than coins do."""
    return (1 - sqrt(max(0.0, 2 * agreement - 1))) / 2
