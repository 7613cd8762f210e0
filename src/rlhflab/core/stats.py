"""Intervals and tests for means, rates and changes, with samples clustered by prompt. NumPy and SciPy only."""

from collections.abc import Callable, Hashable, Mapping, Sequence
from math import comb
from typing import NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray
from scipy import optimize, stats

T = TypeVar("T")
GROUPS = 20
"""Groups of clusters that the jackknife leaves out one by one, at most."""
CLUSTERS = 2000
"""Clusters that the bootstrap draws from, at most; more are put together."""


class Estimate(NamedTuple):
    """A mean with its 95 % interval and the number of values behind it."""

    mean: float
    low: float
    high: float
    n: int

    def __str__(self) -> str:
        return f"{self.mean:.3f} [{self.low:.3f}, {self.high:.3f}] n={self.n}"


def wilson(successes: float, n: float, *, confidence: float = 0.95) -> tuple[float, float]:
    """Wilson score interval of a rate (Wilson 1927); stays inside [0, 1] and has width at 0 and n successes."""
    z = float(stats.norm.ppf(0.5 + confidence / 2))
    rate = successes / n
    centre = (rate + z * z / (2 * n)) / (1 + z * z / n)
    half = z * np.sqrt(rate * (1 - rate) / n + z * z / (4 * n * n)) / (1 + z * z / n)
    return max(0.0, float(centre - half)), min(1.0, float(centre + half))


def best_of_n(proxy: Sequence[float], gold: Sequence[float], n: int) -> float:
    """Expected gold of the answer with the highest proxy among n of one prompt's N answers, over all such draws.

    Sum over i from n to N of C(i-1, n-1) / C(N, n) gold_(i), answers in the order of their proxy: unbiased, where
    drawing n once would waste the others (Nakano et al. 2021, arXiv:2112.09332, appendix I). Equal proxies share their
    mean gold, as if drawn by lot. Raises ValueError unless 1 <= n <= N.
    """
    total = len(proxy)
    if not 1 <= n <= total:
        raise ValueError(f"the best of {n} cannot be estimated from {total} answers")
    rank = np.unique(np.asarray(proxy, dtype=float), return_inverse=True)[1]
    shared = (np.bincount(rank, weights=np.asarray(gold, dtype=float)) / np.bincount(rank))[rank]
    weight = np.array([comb(i, n - 1) / comb(total, n) for i in range(total)])
    return float(weight @ shared[np.argsort(rank)])


def mean_variance(x: NDArray[np.float64], clusters: Sequence[Hashable] | None) -> tuple[float, float, int]:
    """Mean of `x`, the cluster-robust variance of that mean (Liang & Zeger 1986), and the number of clusters."""
    if x.size == 0:
        raise ValueError("no values to estimate a mean from")
    names = np.arange(x.size) if clusters is None else np.asarray([str(name) for name in clusters])
    _, member = np.unique(names, return_inverse=True)
    groups = int(member.max()) + 1
    mean = float(x.mean())
    residual_sums = np.bincount(member, weights=x - mean, minlength=groups)
    return mean, float((residual_sums**2).sum()) / x.size**2 * groups / max(groups - 1, 1), groups


def _t_interval(mean: float, variance: float, groups: int) -> tuple[float, float]:
    """95 % interval; one cluster says nothing about spread, so its interval is the whole line."""
    if groups < 2:
        return float("-inf"), float("inf")
    half = float(stats.t.ppf(0.975, groups - 1)) * variance**0.5
    return mean - half, mean + half


def mean_interval(values: Sequence[float], clusters: Sequence[Hashable] | None = None) -> Estimate:
    """Mean and 95 % interval of `values`; values of one cluster (a prompt's samples) may depend on each other.

    Rates (only 0 and 1) get a Wilson interval at the effective sample size, n / design effect; other values a
    t-interval with cluster-robust standard error. Raises ValueError for no values.
    """
    x = np.asarray(values, dtype=float)
    mean, variance, groups = mean_variance(x, clusters)
    if not np.isin(x, (0.0, 1.0)).all():
        return Estimate(mean, *_t_interval(mean, variance, groups), int(x.size))
    independent = mean * (1 - mean) / x.size
    design_effect = max(1.0, variance / independent) if independent > 0 else x.size / groups
    effective = x.size / design_effect
    return Estimate(mean, *wilson(mean * effective, effective), int(x.size))


def paired_change(after: Sequence[float], before: Sequence[float],
                  clusters: Sequence[Hashable] | None = None) -> Estimate:
    """Mean of `after - before` on the same items with a cluster-robust 95 % t-interval."""
    change = np.asarray(after, dtype=float) - np.asarray(before, dtype=float)
    mean, variance, groups = mean_variance(change, clusters)
    return Estimate(mean, *_t_interval(mean, variance, groups), int(change.size))


def difference(after: Sequence[float], before: Sequence[float], after_clusters: Sequence[Hashable] | None = None,
               before_clusters: Sequence[Hashable] | None = None) -> Estimate:
    """Mean of `after` less mean of `before`, which share no item; Welch's 95 % interval, cluster-robust.

    `n` counts `after`. Raises ValueError for no values.
    """
    mean, variance, groups = mean_variance(np.asarray(after, dtype=float), after_clusters)
    start, start_variance, start_groups = mean_variance(np.asarray(before, dtype=float), before_clusters)
    change, both, n = mean - start, variance + start_variance, len(after)
    if min(groups, start_groups) < 2:
        return Estimate(change, float("-inf"), float("inf"), n)
    if both == 0:
        return Estimate(change, change, change, n)
    freedom = both**2 / (variance**2 / (groups - 1) + start_variance**2 / (start_groups - 1))
    half = float(stats.t.ppf(0.975, freedom)) * both**0.5
    return Estimate(change, change - half, change + half, n)


def sign_test(changes: Sequence[float]) -> float:
    """Exact two-sided p that ups and downs are equally likely; zeros say nothing. 1 where nothing changed.

    Of changes between 0 and 1 it is McNemar's exact test (McNemar 1947).
    """
    signs = np.sign(np.asarray(changes, dtype=float))
    ups, downs = int((signs > 0).sum()), int((signs < 0).sum())
    return float(stats.binomtest(ups, ups + downs).pvalue) if ups + downs else 1.0


def holm(p: Sequence[float]) -> list[float]:
    """Each p adjusted for how many there are (Holm 1979): the smallest times m, the next times m - 1, ..."""
    order = np.argsort(p)
    adjusted, highest = [1.0] * len(p), 0.0
    for place, i in enumerate(order):
        highest = max(highest, min(1.0, p[i] * (len(p) - place)))
        adjusted[i] = highest
    return adjusted


def paired_rate_change(after: Sequence[float], before: Sequence[float], *, confidence: float = 0.95) -> Estimate:
    """Change of a rate on the same independent items, 0 or 1 before and after, with Tango's score interval.

    Tango 1998 (Statistics in Medicine 17:891), which has width where nothing changed: of n equal pairs its half is that
    of no success in n. Without a change it tests as McNemar does.
    """
    change = np.asarray(after, dtype=float) - np.asarray(before, dtype=float)
    n, ups, downs = int(change.size), int((change > 0).sum()), int((change < 0).sum())
    z = float(stats.norm.ppf(0.5 + confidence / 2))

    def score(delta: float) -> float:
        linear = (2 * n - ups + downs) * delta - ups - downs
        worse = ((linear**2 + 8 * n * downs * delta * (1 - delta)) ** 0.5 - linear) / (4 * n)
        variance = n * (2 * worse + delta * (1 - delta))
        return float((ups - downs - n * delta) / max(variance, 1e-300) ** 0.5)

    mean = (ups - downs) / n
    low = optimize.brentq(lambda d: score(d) - z, -1 + 1e-12, mean) if mean > -1 else -1.0
    high = optimize.brentq(lambda d: score(d) + z, mean, 1 - 1e-12) if mean < 1 else 1.0
    return Estimate(mean, float(low), float(high), n)


def paired_bootstrap(after: Sequence[float], before: Sequence[float], clusters: Sequence[Hashable], *,
                     relative: bool = False, confidence: float = 0.95, draws: int = 10_000) -> Estimate:
    """Mean of `after - before`, or `relative`ly mean after / mean before - 1, from drawing clusters of items.

    A ratio over a mean of 0 is infinite. Raises ValueError for no values.
    """
    _, member = np.unique(np.asarray([str(name) for name in clusters]), return_inverse=True)
    columns = (after, before, np.ones(len(after)))
    sums = np.stack([np.bincount(member, weights=np.asarray(column, dtype=float)) for column in columns],
                    axis=1).astype(np.float64)
    statistic = (lambda t: t[:, 0] / t[:, 1] - 1) if relative else (lambda t: (t[:, 0] - t[:, 1]) / t[:, 2])
    found = bootstrap_totals(sums, statistic, n=len(after), draws=draws, confidence=confidence)
    return found or Estimate(float("inf"), float("-inf"), float("inf"), len(after))


def non_inferiority_power(n: int, discordance: float, margin: float, *, alpha: float = 0.05) -> float:
    """Chance to show that a candidate that is no worse is not worse by `margin`, from `n` paired items.

    `discordance`: mean square of the paired change; for rates the share of items on which the two differ. Normal
    approximation: Phi(margin sqrt(n / discordance) - z).
    """
    if discordance == 0:
        return 1.0
    return float(stats.norm.cdf(margin * (n / discordance) ** 0.5 - stats.norm.ppf(1 - alpha)))


def items_needed(discordance: float, margin: float, *, power: float = 0.99, alpha: float = 0.05) -> int:
    """Paired items with which `non_inferiority_power` is `power`: n = (z_alpha + z_power)^2 discordance / margin^2."""
    z = float(stats.norm.ppf(1 - alpha) + stats.norm.ppf(power))
    return int(np.ceil(z * z * discordance / margin**2))


def detectable_change(n: int, discordance: float, *, alpha: float = 0.05, power: float = 0.8) -> float:
    """Smallest true change that a two-sided paired test of `n` items finds with `power` (Miettinen 1968).

    From n = z^2 (discordance - change^2) / change^2 with z^2 = 7.85 for the defaults.
    """
    z = float(stats.norm.ppf(1 - alpha / 2) + stats.norm.ppf(power))
    return float((z * z * discordance / (n + z * z)) ** 0.5)


def rate_bound(events: int, n: int, *, confidence: float = 0.95) -> float:
    """Exact upper bound of a rate (Clopper & Pearson 1934); about 3 / n where nothing happened."""
    return 1.0 if events >= n else float(stats.beta.ppf(confidence, events + 1, n - events))


def bound_power(n: int, rate: float, margin: float, *, confidence: float = 0.95) -> float:
    """Chance that `rate_bound` of `n` items whose true rate is `rate` lies below `margin`."""
    most = next((k - 1 for k in range(n + 1) if rate_bound(k, n, confidence=confidence) >= margin), n)
    return float(stats.binom.cdf(most, n, rate))


def theil_sen(x: Sequence[float], y: Sequence[float]) -> Estimate:
    """Median slope of `y` on `x` over all pairs of points, with Sen's 95 % interval (Theil 1950, Sen 1968)."""
    found = stats.theilslopes(np.asarray(y, dtype=float), np.asarray(x, dtype=float), 0.95)
    return Estimate(float(found[0]), float(found[2]), float(found[3]), len(x))


def jackknife(statistic: Callable[..., float], *samples: Mapping[Hashable, Sequence[T]]) -> Estimate:
    """`statistic` of independent samples with a 95 % interval from leaving out clusters (Efron & Stein 1981).

    Each sample is given by cluster, and `statistic` takes each as one list. With more than `GROUPS` clusters, groups of
    them are left out (Kott 2001). For smooth statistics, such as ratios of means. `n` counts the first sample.
    """
    groups = [_groups(sample) for sample in samples]
    whole = [[value for group in sample for value in group] for sample in groups]
    value, variance = statistic(*whole), 0.0
    if min(map(len, groups)) < 2:
        return Estimate(value, float("-inf"), float("inf"), len(whole[0]))
    for i, sample in enumerate(groups):
        without = np.array([statistic(*whole[:i], [x for j, group in enumerate(sample) if j != left for x in group],
                                      *whole[i + 1:]) for left in range(len(sample))])
        variance += (len(sample) - 1) / len(sample) * float(((without - without.mean()) ** 2).sum())
    half = float(stats.t.ppf(0.975, min(map(len, groups)) - 1)) * variance**0.5
    return Estimate(value, value - half, value + half, len(whole[0]))


def bootstrap_totals(sums: NDArray[np.float64], statistic: Callable[[NDArray[np.float64]], NDArray[np.float64]], *,
                     n: int, draws: int = 2000, seed: int = 0, confidence: float = 0.95) -> Estimate | None:
    """`statistic` of totals over clusters, with a percentile interval from drawing clusters (Efron 1979).

    `sums`: (clusters, s), what each cluster adds to each of s totals. `statistic` takes (draws, s) and gives one value
    a draw. None where it has no value on the whole; one cluster says nothing about spread, so its interval is the line.
    """
    if not len(sums):
        return None
    clusters = min(CLUSTERS, len(sums))
    together = np.zeros((clusters, sums.shape[1]))
    np.add.at(together, np.arange(len(sums)) % clusters, sums)
    drawn = np.random.default_rng(seed).multinomial(clusters, np.full(clusters, 1 / clusters), size=draws)
    with np.errstate(invalid="ignore", divide="ignore"):  # a draw in which nothing varies may have no value
        found = statistic(np.concatenate([together.sum(0, keepdims=True), drawn @ together]))
    if not np.isfinite(found[0]):
        return None
    known = found[1:][np.isfinite(found[1:])]
    if clusters < 2 or not known.size:
        return Estimate(float(found[0]), float("-inf"), float("inf"), n)
    low, high = np.quantile(known, [0.5 - confidence / 2, 0.5 + confidence / 2])
    return Estimate(float(found[0]), float(low), float(high), n)


def _groups(sample: Mapping[Hashable, Sequence[T]]) -> list[list[T]]:
    """The clusters of a sample, put together to at most `GROUPS`."""
    clusters = list(sample.values())
    count = min(GROUPS, len(clusters))
    return [[value for cluster in clusters[i::count] for value in cluster] for i in range(count)]
