"""What a watched run is summed up by: charts, tails, phrases. Numbers in, numbers out.

No samples, no steps and no verdict here; `analysis/detectors` draws the line.
"""

from collections import Counter
from collections.abc import Hashable, Iterable, Mapping, Sequence
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray
from scipy.special import gammaln
from scipy.stats import norm

Array = NDArray[np.float64]
T = TypeVar("T", bound=Hashable)


def cusum(deviations: Iterable[float], *, k: float) -> list[float]:
    """One-sided upper CUSUM of standardised deviations: S_t = max(0, S_(t-1) + z_t - k), S_0 = 0 (Page 1954)."""
    chart, level = [], 0.0
    for z in deviations:
        level = max(0.0, level + z - k)
        chart.append(level)
    return chart


def cusum_false_alarms(*, k: float, h: float, steps: int, states: int = 400) -> tuple[float, float]:
    """Of a one-sided CUSUM of standard normal values that alarms above `h`: mean steps to a false alarm, and the chance
    of one within `steps`.

    The chart is taken for a Markov chain over `states` levels (Brook & Evans 1972, Biometrika 59).
    """
    width = 2 * h / (2 * states - 1)
    level = np.arange(states) * width
    upper = norm.cdf(level[None] + width / 2 - level[:, None] + k)
    stay = np.diff(upper, axis=1, prepend=0.0)
    ones = np.ones(states)
    mean = float(np.linalg.solve(np.eye(states) - stay, ones)[0])
    return mean, float(1 - (np.linalg.matrix_power(stay, steps) @ ones)[0])


def hill(values: Sequence[float], k: int) -> float:
    """Hill's estimate of the tail index xi: mean of log(x_(i) / x_(k+1)) over the k largest values (Hill 1975).

    Above 1/3 a distribution has no third moment, above 1/2 no variance. 0 where x_(k+1) is not positive: fewer than k
    values stand out. Raises ValueError unless 1 <= k < n.
    """
    if not 1 <= k < len(values):
        raise ValueError(f"the {k} largest of {len(values)} values have none below them")
    ordered = np.sort(np.asarray(values, dtype=float))[::-1]
    return float(np.log(ordered[:k] / ordered[k]).mean()) if ordered[k] > 0 else 0.0


def log_odds(now: Mapping[T, int], start: Mapping[T, int], *, prior: float,
             of: tuple[int, int] | None = None) -> dict[T, float]:
    """By phrase: z of the change of its log-odds, with an informative Dirichlet prior.

    Odds are among all phrases; `of`, how many answers there are now and at the start, makes them those of an answer to
    hold the phrase.

    alpha_w = prior x count of w in both; delta = log odds(now) - log odds(start) of the counts plus alpha, var =
    1 / (y_now + alpha_w) + 1 / (y_start + alpha_w), z = delta / sqrt(var). Monroe, Colaresi & Quinn 2008 (Fightin'
    Words, Political Analysis 16), section 3.
    """
    total = of or tuple(sum(counts.values()) for counts in (now, start))
    most = prior * sum(total)

    def log_odd(count: int, alpha: float, n: int) -> float:
        return float(np.log((count + alpha) / (n + most - count - alpha)))

    scores = {}
    for phrase in now.keys() | start.keys():
        counts = now.get(phrase, 0), start.get(phrase, 0)
        alpha = prior * sum(counts)
        if alpha == most:  # the only phrase there is: no odds
            continue
        delta = log_odd(counts[0], alpha, total[0]) - log_odd(counts[1], alpha, total[1])
        scores[phrase] = delta / (1 / (counts[0] + alpha) + 1 / (counts[1] + alpha)) ** 0.5
    return scores


def rarefied(items: Iterable[Hashable], draws: int) -> float:
    """Expected number of different items among `draws` of them, without replacement (Hurlbert 1971).

    sum over items of 1 - C(N - c, m) / C(N, m), so that samples of different size can be compared.
    """
    counts = np.array(list(Counter(items).values()), dtype=float)
    total = counts.sum()
    left = total - counts
    never = np.full_like(counts, -np.inf)  # log of the chance that an item is not drawn
    can = left >= draws
    never[can] = (gammaln(left[can] + 1) - gammaln(left[can] - draws + 1)
                  - gammaln(total + 1) + gammaln(total - draws + 1))
    return float((1 - np.exp(never)).sum())


def gain_at_equal_length(now: Sequence[tuple[float, float]], start: Sequence[tuple[float, float]],
                         edges: Array) -> float:
    """NRG: the share of a reward's gain that is left between answers of equal length.

    `now` and `start`: (length, reward) of each answer; `edges`: inner bounds of the length bins. sum_b w_b (mean now in
    b - mean start in b) / (mean now - mean start), with w_b the share of `now` in b among the bins that both have
    (Singhal et al. 2023, arXiv:2310.03716). Of a bin count the answers within the lengths that both sides have there:
    answers that lie at its two ends are not of equal length. NaN where no length is shared or nothing was gained.
    """
    (x, r), (x0, r0) = (np.asarray(each, dtype=float).reshape(-1, 2).T for each in (now, start))
    bins, bins0 = np.searchsorted(edges, x, side="right"), np.searchsorted(edges, x0, side="right")
    gain = r.mean() - r0.mean()
    counts, within = [], []
    for b in np.intersect1d(bins, bins0):
        here, there = bins == b, bins0 == b
        low, high = max(x[here].min(), x0[there].min()), min(x[here].max(), x0[there].max())
        here, there = here & (x >= low) & (x <= high), there & (x0 >= low) & (x0 <= high)
        if here.any() and there.any():
            counts.append(here.sum())
            within.append(r[here].mean() - r0[there].mean())
    if not counts or gain == 0:
        return float("nan")
    return float(np.average(within, weights=counts) / gain)
