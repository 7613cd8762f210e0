"""Intervals for means and rates, with samples clustered by prompt. NumPy and SciPy only."""

from collections.abc import Hashable, Sequence
from math import comb
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import stats


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


def _mean_variance(x: NDArray[np.float64], clusters: Sequence[Hashable] | None) -> tuple[float, float, int]:
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
    mean, variance, groups = _mean_variance(x, clusters)
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
    mean, variance, groups = _mean_variance(change, clusters)
    return Estimate(mean, *_t_interval(mean, variance, groups), int(change.size))


def sign_test(changes: Sequence[float]) -> float:
    """Two-sided exact p of so many rises among those that moved, were rise and fall as likely; 1 where none moved."""
    up, down = (sum(sign * change > 0 for change in changes) for sign in (1, -1))
    return min(1.0, 2 * float(stats.binom.cdf(min(up, down), up + down, 0.5)))


def holm(p_values: Sequence[float]) -> list[float]:
    """The p-values of a family, adjusted so that no false one is below a limit more often than it says (Holm 1979)."""
    order = np.argsort(p_values, kind="stable")
    stepped = np.asarray(p_values, dtype=float)[order] * np.arange(len(p_values), 0, -1)
    adjusted = np.empty(len(p_values))
    adjusted[order] = np.minimum(1.0, np.maximum.accumulate(stepped))
    return [float(p) for p in adjusted]
