"""Over-optimisation: how a proxy and what it stands for move on the way from the start. Pure functions on arrays.

No files and no pictures. A measure is kept as sums and counts by prompt, so that what is drawn again for an interval
is prompts, never single answers. Axes: p prompts, s places, b draws; place 0 is the start. A place is a size of
best-of-n, or a few steps of a run.
"""

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import stats
from scipy.special import xlogy

from rlhflab.core.stats import Estimate, best_of_n, mean_interval
from rlhflab.errors import DataError

Array = NDArray[np.float64]
Form = Literal["best-of-n", "rl"]
Scores = Sequence[Sequence[float]]
"""By prompt, then by answer."""

LEAST_PROMPTS = 8
"""Below this many, intervals from drawing prompts again are too narrow to be of use."""
LEAST_PLACES = 3
"""Beside the start: two coefficients are fitted."""
LEAST_DOSES = 3
DRAWS = 1000
REACH = 1.5
"""How far a fit is read, in largest measured distances; further out two coefficients say nothing."""
BEND: Mapping[Form, Callable[[Array], Array]] = {
    "best-of-n": lambda d: d**2, "rl": lambda d: np.asarray(xlogy(d, d), np.float64)}
"""What b is taken times: R(d) = a d - b BEND(d)."""
TURN: Mapping[Form, Callable[[Array, Array], Array]] = {
    "best-of-n": lambda a, b: a / (2 * b), "rl": lambda a, b: np.exp(np.minimum(a / b - 1, 700.0))}
"""Where R'(d) = 0."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Series:
    """One measure by prompt and place: (p, s) each. A prompt that was not asked at a place has the count 0 there."""

    total: Array
    count: Array

    @classmethod
    def of(cls, values: Sequence[float], prompts: Sequence[int], places: Sequence[int], *,
           shape: tuple[int, int]) -> "Series":
        """From single answers, each with the number of its prompt and of its place."""
        total, count = np.zeros((2, *shape))
        np.add.at(total, (prompts, places), values)
        np.add.at(count, (prompts, places), 1.0)
        return cls(total=total, count=count)

    def means(self, weights: Array | None = None) -> Array:
        """Mean at each place, (s,), or (b, s) where `weights`, (b, p), say how often each prompt is drawn.

        NaN where nothing was drawn.
        """
        weights = np.ones(len(self.total)) if weights is None else weights
        with np.errstate(invalid="ignore", divide="ignore"):
            return (weights @ self.total) / (weights @ self.count)


@dataclass(frozen=True, slots=True, kw_only=True)
class Way:
    """What was measured at places on one way from the start. All series count the same prompts."""

    form: Form
    places: tuple[str, ...]
    """A name each: the n of best-of-n, or steps."""
    kl: Series
    """KL to the start, nats an answer."""
    series: Mapping[str, Series]

    @property
    def prompts(self) -> int:
        """How many there are. One, where only means were kept and no interval can be had."""
        return len(self.kl.total)

    def distances(self, weights: Array | None = None) -> Array:
        """sqrt(KL) at each place; the start's is 0. An estimate of KL below 0 counts as 0."""
        distance = np.sqrt(np.clip(self.kl.means(weights), 0.0, None))
        distance[..., 0] = 0.0
        return distance

    @property
    def apart(self) -> int:
        """Number of different distances beside the start's: what a fit has to go by."""
        distance = self.distances()
        return len(np.unique(distance[distance > 0].round(6)))


# -- best of n -----------------------------------------------------------------------------------------------------


def best_of_n_kl(n: int) -> float:
    """Upper bound of KL(best of n || one sample), nats: ln n - (n - 1)/n.

    Nakano et al. 2021 (arXiv:2112.09332) give it as an equality; it is a bound, and strict where one answer can be
    sampled twice (Beirami et al. 2024, arXiv:2401.01879).
    """
    return float(np.log(n) - (n - 1) / n)


def best_of_n_way(scores: Mapping[str, Scores], *, proxy: str) -> Way:
    """Every measure of `scores` of the best of n by `proxy`, for n = 1, 2, 4 ... up to the answers of a prompt.

    By the unbiased estimator `core/stats.best_of_n`. The last n uses each prompt's answers once and is the noisiest.
    DataError for too few prompts or answers, for scores that are no numbers, and for a constant proxy.
    """
    answers = min(map(len, scores[proxy]), default=0)
    check_prompts(len(scores[proxy]))
    if answers < 2**LEAST_PLACES:
        raise DataError(f"best of n: a prompt has {answers} answers; a curve needs at least {2**LEAST_PLACES}")
    for name, each in scores.items():
        check_values(name, [value for of_prompt in each for value in of_prompt], vary=name == proxy)
    sizes = [2**i for i in range(int(np.log2(answers)) + 1)]
    ones = np.ones((len(scores[proxy]), len(sizes)))
    series = {name: Series(count=ones, total=np.array([
        [best_of_n(by, of, n) for n in sizes] for by, of in zip(scores[proxy], each, strict=True)]))
        for name, each in scores.items()}
    kl = Series(total=ones * [best_of_n_kl(n) for n in sizes], count=ones)
    return Way(form="best-of-n", places=tuple(map(str, sizes)), kl=kl, series=series)


# -- gains and fits ------------------------------------------------------------------------------------------------


def change(series: Series, at: int, since: int = 0, *, confidence: float = 0.95) -> Estimate:
    """Mean at one place less that at another, with an interval that is clustered by prompt.

    Linearised (Liang & Zeger 1986): prompts seen at both places are paired by that, others are not. Degrees of
    freedom are those of the place with fewer prompts. One prompt alone has an endless interval.
    """
    mean = series.means()
    influence = [(series.total[:, i] - mean[i] * series.count[:, i]) / series.count[:, i].sum() for i in (at, since)]
    prompts = min(int((series.count[:, i] > 0).sum()) for i in (at, since))
    shift, n = float(mean[at] - mean[since]), int(series.count[:, at].sum())
    if prompts < 2:
        return Estimate(shift, float("-inf"), float("inf"), n)
    variance = float(((influence[0] - influence[1]) ** 2).sum()) * prompts / (prompts - 1)
    half = float(stats.t.ppf(0.5 + confidence / 2, prompts - 1)) * variance**0.5
    return Estimate(shift, shift - half, shift + half, n)


class Coefficients(NamedTuple):
    """Of R(d) = d (a - b d), best of n, or R(d) = d (a - b ln d), RL. One each, or one a draw."""

    a: Array
    b: Array

    def at(self, distance: Array, form: Form) -> Array:
        """The fitted gain."""
        result: Array = self.a * distance - self.b * BEND[form](distance)
        return result


def fit_coefficients(distance: Array, gain: Array, *, form: Form) -> Coefficients:
    """Least squares through R(0) = 0, every place the same weight: both forms are linear in a and b.

    `distance` and `gain`: (..., s), NaN where unknown. Gao et al. 2022 (arXiv:2210.10760 section 3.1).
    """
    known = np.isfinite(distance) & np.isfinite(gain)
    d, r = (np.where(known, x, 0.0) for x in (distance, gain))
    x, y = d, -BEND[form](d)
    xx, xy, yy, xr, yr = ((p * q).sum(-1) for p, q in ((x, x), (x, y), (y, y), (x, r), (y, r)))
    with np.errstate(invalid="ignore", divide="ignore"):
        determinant = xx * yy - xy**2
        return Coefficients((yy * xr - xy * yr) / determinant, (xx * yr - xy * xr) / determinant)


def highest(found: Coefficients, reach: float, *, form: Form) -> tuple[Array, Array]:
    """(distance, gain) of the highest point of the fit on [0, reach].

    The distance is infinite where the fit still rises at `reach`: no peak within reach; the gain is then that at
    `reach`. It is 0 where the start is best.
    """
    a, b = map(np.asarray, found)
    with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
        turn = TURN[form](a, b)
    inside = (b > 0) & (turn > 0) & (turn <= reach)
    turn = np.where(inside, turn, 0.0)
    top, end = np.maximum(found.at(turn, form), 0.0), found.at(np.asarray(reach), form)
    return np.where(end > top, np.inf, np.where(top > 0, turn, 0.0)), np.maximum(top, end)


@dataclass(frozen=True, slots=True, kw_only=True)
class Fit:
    """A fitted curve of one measure's gain. Intervals by drawing prompts again."""

    form: Form
    a: Estimate
    b: Estimate
    peak: Estimate | None
    """Distance of the highest point, sqrt nats: 0 where the start is best, None where no peak is within reach. Its
    upper bound is endless where more than 1 in 40 draws have none."""
    best: Estimate
    """Highest gain of the fit within reach."""
    peaked: float | None
    """Share of the draws with a peak within reach; None where there are no draws."""
    reach: float
    """Up to where the fit is read, sqrt nats."""

    @property
    def coefficients(self) -> Coefficients:
        """To draw it."""
        return Coefficients(np.asarray(self.a.mean), np.asarray(self.b.mean))


def fit_gain(way: Way, name: str, *, seed: int = 0, draws: int = DRAWS) -> Fit:
    """The fit of a measure's gain over the distance, with 95 % intervals of a, b and the peak.

    DataError for fewer than `LEAST_PROMPTS` prompts or `LEAST_PLACES` distances. Where only means are known (one
    prompt), the intervals are endless.
    """
    if way.apart < LEAST_PLACES:
        raise DataError(f"{name}: was measured at {way.apart} distances from the start; a fit of two coefficients "
                        f"needs at least {LEAST_PLACES}")
    distance = way.distances()
    series, reach = way.series[name], REACH * float(distance.max())
    alone = fit_coefficients(distance, series.means() - series.means()[0], form=way.form)
    peak, best = highest(alone, reach, form=way.form)
    values = [float(x) for x in (*alone, peak, best)]
    if way.prompts == 1:
        a, b, at, top = (Estimate(x, float("-inf"), float("inf"), len(way.places)) for x in values)
        return Fit(form=way.form, a=a, b=b, peak=at if np.isfinite(peak) else None, best=top, peaked=None, reach=reach)
    check_prompts(way.prompts)
    weights = np.random.default_rng(seed).multinomial(way.prompts, np.full(way.prompts, 1 / way.prompts),
                                                       size=draws).astype(float)
    means = series.means(weights)
    drawn = fit_coefficients(way.distances(weights), means - means[:, :1], form=way.form)
    whole = np.isfinite(drawn.a) & np.isfinite(drawn.b)
    drawn = Coefficients(drawn.a[whole], drawn.b[whole])
    peaks, bests = highest(drawn, reach, form=way.form)
    a, b, at, top = (Estimate(x, *_bounds(each), way.prompts)
                     for x, each in zip(values, (*drawn, peaks, bests), strict=True))
    return Fit(form=way.form, a=a, b=b, peak=at if np.isfinite(peak) else None, best=top,
               peaked=float(np.isfinite(peaks).mean()), reach=reach)


def _bounds(drawn: Array) -> tuple[float, float]:
    """The middle 95 % of the draws, which may be infinite: no interpolation between them."""
    low, high = np.quantile(drawn, (0.025, 0.975), method="inverted_cdf")
    return float(low), float(high)


# -- where the two part --------------------------------------------------------------------------------------------


class Parting(NamedTuple):
    """Where the proxy and what it stands for part."""

    best: int
    """Place of the best mean so far of what the proxy stands for."""
    seen: int
    """Place at which the fall is sure."""
    proxy: Estimate
    """Gain of the proxy from the start to `seen`."""
    against: Estimate
    """Change from `best` to `seen`."""


def parting(proxy: Series, against: Series) -> Parting | None:
    """The first place at which `against` has surely fallen from its best while the proxy is surely up.

    That is: the lower bound of the proxy's gain since the start is above 0, the proxy has not surely fallen since the
    place of `against`'s best mean so far, the upper bound of `against`'s change since that place is below 0, and all
    this is so at the next place as well. The best of several noisy means is chosen for being high, so the bounds of
    that last change are widened by Bonferroni over the places. None where there is no such place.
    """
    mean, places = against.means(), len(against.means())
    confidence = 1 - 0.05 / max(1, places - 1)

    def apart(at: int, best: int) -> bool:
        return (change(proxy, at).low > 0 and change(proxy, at, best).high > 0
                and change(against, at, best, confidence=confidence).high < 0)

    for seen in range(1, places - 1):
        best = int(np.argmax(mean[:seen]))
        if apart(seen, best) and apart(seen + 1, best):
            return Parting(best, seen, change(proxy, seen), change(against, seen, best, confidence=confidence))
    return None


# -- dose and response ---------------------------------------------------------------------------------------------


class DoseResponse(NamedTuple):
    """One measure's gain by dose of a bias, and whether it goes one way."""

    gains: Mapping[float, Estimate]
    """By dose, rising."""
    slope: Estimate
    """Change of the gain for one unit of dose: mean over prompts of each prompt's straight line."""
    rises: float
    """p of Page's test against no trend: the gain rises with the dose."""
    falls: float
    """p that it falls."""


def dose_response(gains: Mapping[float, Sequence[float]]) -> DoseResponse:
    """By dose: the gain of each prompt, the same prompts in the same order at every dose.

    Page 1963, ranks within prompts, normal approximation; ties make it careful. DataError for fewer than
    `LEAST_DOSES` doses or `LEAST_PROMPTS` prompts, and where doses differ in their prompts.
    """
    doses = np.array(sorted(gains))
    if len(doses) < LEAST_DOSES:
        raise DataError(f"dose and response: found {len(doses)} doses; a trend needs at least {LEAST_DOSES}")
    prompts = {len(gains[dose]) for dose in doses}
    if len(prompts) > 1:
        raise DataError(f"dose and response: doses have {', '.join(map(str, sorted(prompts)))} prompts; each must be "
                        "measured on the same ones")
    check_prompts(prompts.pop())
    table = np.array([gains[dose] for dose in doses], dtype=float).T
    check_values("gain", table.ravel().tolist())
    centred = doses - doses.mean()
    rises, falls = (float(stats.page_trend_test(x, method="asymptotic").pvalue) for x in (table, table[:, ::-1]))
    return DoseResponse({float(dose): mean_interval(table[:, i].tolist()) for i, dose in enumerate(doses)},
                        mean_interval((table @ centred / (centred @ centred)).tolist()), rises, falls)


# -- what cannot be used -------------------------------------------------------------------------------------------


def check_prompts(found: int) -> None:
    """DataError for too few prompts to draw from."""
    if found < LEAST_PROMPTS:
        raise DataError(f"a curve with intervals needs at least {LEAST_PROMPTS} prompts, found {found}")


def check_values(name: str, values: Sequence[float], *, vary: bool = False) -> None:
    """DataError for values that are no finite numbers, or, where they have to `vary`, all the same."""
    x = np.asarray(values, dtype=float)
    if not np.isfinite(x).all():
        raise DataError(f"{name}: holds {x[~np.isfinite(x)][0]}; every score must be a finite number")
    if vary and x.size and (x == x[0]).all():
        raise DataError(f"{name}: is {x[0]:g} for every one of {x.size} answers, so there is nothing to choose by")


def numbered(keys: Sequence[Hashable]) -> list[int]:
    """Each key's number, in order of first appearance."""
    number: dict[Hashable, int] = {}
    return [number.setdefault(key, len(number)) for key in keys]
