"""Two samples of answers to the same prompts: distances between them, and tests that permute within a prompt.

Numbers in, numbers out: no texts, no model and no verdict here. An answer changes sides only with one to the same
prompt, so that prompts may differ as they like. NumPy and SciPy only. Axes: n answers, p prompts, r permutations,
c categories, l characters or tokens.
"""

from collections.abc import Callable, Sequence
from itertools import combinations, product
from math import comb, prod
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int, Shaped
from scipy import stats

from rlhflab.core.stats import Estimate, bootstrap_totals, jackknife, paired_change

Array = np.ndarray[Any, Any]
"""NumPy's own alias would do, but jaxtyping cannot read that of NumPy 2.5."""
Kernel = Callable[[Int[Array, " i"], Int[Array, " j"]], Float[Array, "i j"]]
"""From the numbers of i and of j answers to their (i, j) likeness."""
EXACT = 10_000
"""Assignments that are gone through one by one, at most; else as many as `draws` says are drawn."""
POINTS = 200
"""Points at which the interval of a Kolmogorov-Smirnov distance looks, at most."""
POWER = 0.8


class Layout(NamedTuple):
    """Which answer is to which prompt, and on which side. Each prompt has an answer on both."""

    prompt: Int[Array, " n"]
    """Number of the prompt, from 0 on."""
    current: Bool[Array, " n"]

    @property
    def prompts(self) -> int:
        """How many there are."""
        return int(self.prompt.max()) + 1

    @property
    def weight(self) -> Float[Array, " n"]:
        """+1 / (p n_p) of each current answer, -1 / (p m_p) of the others: each prompt counts alike."""
        side = np.where(self.current, 1.0, -1.0)
        own = np.where(self.current, self._count(True)[self.prompt], self._count(False)[self.prompt])
        return np.asarray(side / (own * self.prompts))

    def _count(self, current: bool) -> Int[Array, " p"]:
        return np.asarray(np.bincount(self.prompt[self.current == current], minlength=self.prompts))

    @property
    def repeated(self) -> Bool[Array, " p"]:
        """The prompts with two answers or more on both sides."""
        return np.asarray((self._count(True) > 1) & (self._count(False) > 1))

    def live(self, value: Shaped[Array, " n"]) -> Bool[Array, " p"]:
        """The prompts whose answers are not all of one value: in the others a permutation changes nothing."""
        number = np.unique(value, return_inverse=True)[1].reshape(-1)
        least, most = np.full(self.prompts, len(number)), np.full(self.prompts, -1)
        np.minimum.at(least, self.prompt, number)
        np.maximum.at(most, self.prompt, number)
        return np.asarray(least < most)

    def only(self, keep: Bool[Array, " p"]) -> tuple["Layout", Int[Array, " m"]]:
        """The layout of some prompts, numbered anew, and the numbers of its answers here."""
        answers = np.flatnonzero(keep[self.prompt])
        number = np.cumsum(keep) - 1
        return Layout(number[self.prompt[answers]], self.current[answers]), answers


class Test(NamedTuple):
    """A statistic beside what permutations make of it."""

    statistic: float
    p: float
    null: Float[Array, " r"]
    exact: bool
    """Whether all assignments were gone through."""
    z: float
    """Standard normal where nothing changed: of the mid-p that a value as high comes by chance."""

    def detectable(self, alpha: float) -> float:
        """About the change that is found with a chance of .8 at level `alpha`, as the permutations scatter."""
        critical = float(np.quantile(np.abs(self.null), 1 - alpha, method="higher"))
        return critical + float(stats.norm.ppf(POWER)) * float(self.null.std())


# -- permutations ----------------------------------------------------------------------------------------------------


def draws(n: int) -> int:
    """How many permutations of n answers are drawn: fewer of many, for memory and time."""
    return min(9999, max(999, 20_000_000 // max(n, 1)))


def permuted(layout: Layout, live: Bool[Array, " p"], *, seed: int = 0,
             exact: int = EXACT) -> tuple[Bool[Array, "r n"], bool]:
    """Sides of the answers under permutations within each `live` prompt, and whether these are all there are.

    All of them include the one that was seen; drawn ones do not.
    """
    groups = [np.flatnonzero(layout.prompt == i) for i in np.flatnonzero(live)]
    sizes = [(len(group), int(layout.current[group].sum())) for group in groups]
    if prod(comb(*size) for size in sizes) <= min(exact, draws(len(layout.prompt)) + 1):
        chosen = list(product(*([group[list(each)] for each in combinations(range(len(group)), size[1])]
                                for group, size in zip(groups, sizes, strict=True))))
        sides = np.repeat(layout.current[None], len(chosen), axis=0)
        sides[:, live[layout.prompt]] = False
        for row, each in enumerate(chosen):
            for answers in each:
                sides[row, answers] = True
        return sides, True
    generator = np.random.default_rng(seed)
    order = np.lexsort((layout.current, layout.prompt))
    place, side = layout.prompt[order], layout.current[order]
    sides = np.empty((draws(len(side)), len(side)), dtype=bool)
    for part in np.array_split(np.arange(len(sides)), max(1, sides.size // 2_000_000)):
        shuffled = np.argsort(place + generator.random((len(part), len(side))), axis=1)
        sides[np.ix_(part, order)] = side[shuffled]
    return sides, False


def _weights(layout: Layout, sides: Bool[Array, "r n"]) -> Float[Array, "r n"]:
    """The weights of permuted answers: a side's size within a prompt does not change."""
    up = np.zeros(layout.prompts)
    down = np.zeros(layout.prompts)
    up[layout.prompt[layout.current]] = layout.weight[layout.current]
    down[layout.prompt[~layout.current]] = layout.weight[~layout.current]
    return np.asarray(np.where(sides, up[layout.prompt], down[layout.prompt]))


def _tested(statistic: float, null: Float[Array, " r"], exact: bool, *, two_sided: bool = False) -> Test:
    """Its p is the share of assignments as far out; of drawn ones (1 + such) / (1 + r) (Phipson & Smyth 2010)."""
    slack = 1e-6 * max(float(np.abs(null).max()), abs(statistic))  # kernels are in fp32: equal values differ by less
    far, seen = (np.abs(null), abs(statistic)) if two_sided else (null, statistic)
    count = int((far >= seen - slack).sum())
    p = count / len(null) if exact else (1 + count) / (1 + len(null))
    above, equal = float((null > statistic + slack).mean()), float((np.abs(null - statistic) <= slack).mean())
    least = 0.5 / len(null)
    return Test(statistic, p, null, exact, float(-stats.norm.ppf(np.clip(above + equal / 2, least, 1 - least))))


# -- one number an answer --------------------------------------------------------------------------------------------


def prompt_differences(layout: Layout, value: Float[Array, " n"]) -> Float[Array, " p"]:
    """Mean of the current answers less that of the others, of each prompt."""
    return np.asarray(np.bincount(layout.prompt, weights=layout.weight * value * layout.prompts,
                                  minlength=layout.prompts))


def mean_test(layout: Layout, value: Float[Array, " n"], *, seed: int = 0) -> Test:
    """Two-sided test of the mean difference over prompts. One answer of 0 or 1 a side makes it McNemar's exact test."""
    sides, exact = permuted(layout, layout.live(value), seed=seed)
    return _tested(float(layout.weight @ value), _weights(layout, sides) @ value, exact, two_sided=True)


def over_prompts(values: Float[Array, " p"]) -> Estimate:
    """Their mean with a 95 % t-interval, whatever the values are: a difference or distance is no rate."""
    return paired_change(values.tolist(), [0.0] * len(values))


def change(differences: Float[Array, " p"], *, rate: bool = False) -> tuple[Estimate, Estimate]:
    """The mean difference with its 95 % interval, and with the 90 % interval of two one-sided tests at 5 % (TOST).

    A `rate` of which no prompt changed may still change in one of the next: its intervals are at least as wide as n
    prompts without a change leave it, 1 - .05^(1/n) to each side at 90 % (Schuirmann 1987; exact binomial).
    """
    n = len(differences)
    wide = over_prompts(differences)
    halves = [wide.high - wide.mean, (wide.high - wide.mean) * _shrink(n)]
    if rate:
        halves = [max(half, zero_bound(n, tail)) for half, tail in zip(halves, (0.025, 0.05), strict=True)]
    two = [Estimate(wide.mean, wide.mean - half, wide.mean + half, n) for half in halves]
    return two[0], two[1]


def _shrink(n: int) -> float:
    return float(stats.t.ppf(0.95, n - 1) / stats.t.ppf(0.975, n - 1)) if n > 1 else 1.0


def zero_bound(n: int, tail: float = 0.05) -> float:
    """The highest rate at which n prompts without a case are not yet unlikely: about 3 / n at 5 %."""
    return float(1 - tail ** (1 / n))


def above(values: Float[Array, " p"], limit: float) -> float:
    """One-sided p that the mean lies at or below `limit` (Student's t over prompts). 1 of fewer than two prompts."""
    if len(values) < 2:
        return 1.0
    error = float(values.std(ddof=1)) / len(values) ** 0.5
    if error == 0:
        return float(values.mean() <= limit)
    return float(stats.t.sf((float(values.mean()) - limit) / error, len(values) - 1))


# -- distributions ---------------------------------------------------------------------------------------------------


def ks_test(layout: Layout, value: Float[Array, " n"], *, seed: int = 0) -> tuple[Test, Estimate]:
    """Kolmogorov-Smirnov's largest gap between the two distributions, prompts alike, and its interval over prompts."""
    number = np.unique(value, return_inverse=True)[1].reshape(-1)
    order, last = np.argsort(number, kind="stable"), np.cumsum(np.bincount(number)) - 1

    def gaps(weights: Float[Array, "r n"]) -> Float[Array, " r"]:
        return np.asarray(np.abs(np.cumsum(weights[:, order], axis=1)[:, last]).max(1))

    sides, exact = permuted(layout, layout.live(value), seed=seed)
    test = _tested(float(gaps(layout.weight[None])[0]), gaps(_weights(layout, sides)), exact)
    step = np.searchsorted(np.unique(np.linspace(0, number.max(), POINTS).astype(int)), number)
    mass = np.zeros((layout.prompts, int(step.max()) + 1))
    np.add.at(mass, (layout.prompt, step), layout.weight)
    found = bootstrap_totals(mass, lambda totals: np.abs(np.cumsum(totals, axis=1)).max(1), n=layout.prompts)
    assert found is not None
    return test, found._replace(mean=test.statistic)


def psi(before: Float[Array, "r c"], after: Float[Array, "r c"], n: int) -> Float[Array, " r"]:
    """Population stability index, sum of (a - b) log(a / b) over categories; half a case is added to each of n."""
    b, a = ((share * n + 0.5) / (n + 0.5 * share.shape[1]) for share in (before, after))
    return np.asarray(((a - b) * np.log(a / b)).sum(1))


def psi_test(layout: Layout, category: Int[Array, " n"], *, seed: int = 0) -> tuple[Test, Estimate]:
    """The index over prompts alike, tested by permutations, since by chance alone it is about (c - 1) 2 / n."""
    one_hot = np.eye(int(category.max()) + 1)[category]

    def index(weights: Float[Array, "r n"]) -> Float[Array, " r"]:
        return psi(-np.minimum(weights, 0) @ one_hot, np.maximum(weights, 0) @ one_hot, layout.prompts)

    sides, exact = permuted(layout, layout.live(category), seed=seed)
    test = _tested(float(index(layout.weight[None])[0]), index(_weights(layout, sides)), exact)
    shares = np.zeros((layout.prompts, 2, one_hot.shape[1]))
    np.add.at(shares, (layout.prompt, layout.current.astype(int)), np.abs(layout.weight)[:, None] * one_hot)
    c = one_hot.shape[1]
    found = bootstrap_totals(shares.reshape(layout.prompts, 2 * c),
                             lambda totals: psi(totals[:, :c], totals[:, c:], layout.prompts), n=layout.prompts)
    assert found is not None
    return test, found._replace(mean=test.statistic)


# -- kernels ---------------------------------------------------------------------------------------------------------


def hamming(codes: Int[Array, "n l"]) -> Kernel:
    """Share of places at which two answers have the same character or token, the padding behind them included.

    The kernel of model equality testing (Gao et al. 2024, arXiv:2410.20247, section 3), divided by the length.
    """
    def kernel(i: Int[Array, " i"], j: Int[Array, " j"]) -> Float[Array, "i j"]:
        found = np.zeros((len(i), len(j)), dtype=np.float32)
        for place in range(codes.shape[1]):
            found += codes[i, place][:, None] == codes[j, place][None]
        return found / np.float32(codes.shape[1])

    return kernel


def energy(vectors: Any) -> Kernel:
    """-|x - y|, whose squared MMD is the energy distance 2 E|X - Y| - E|X - X'| - E|Y - Y'| (Székely & Rizzo 2013).

    `vectors`: (n, d), dense or sparse.
    """
    norm = np.asarray((vectors.multiply(vectors) if hasattr(vectors, "multiply") else vectors**2).sum(1)).reshape(-1)

    def kernel(i: Int[Array, " i"], j: Int[Array, " j"]) -> Float[Array, "i j"]:
        inner = vectors[i] @ vectors[j].T
        dense = inner.toarray() if hasattr(inner, "toarray") else np.asarray(inner)
        squared = norm[i][:, None] + norm[j][None] - 2 * dense
        return np.asarray(-np.sqrt(np.where(squared > 1e-9, squared, 0.0)))

    return kernel


def within_test(layout: Layout, kernel: Kernel, text: Shaped[Array, " n"], *, seed: int = 0) -> tuple[Test, Estimate]:
    """Squared MMD between the two sides' answers to one prompt, unbiased, in the mean over prompts.

    The test of model equality (arXiv:2410.20247): answers to different prompts are not compared. Every prompt needs two
    answers a side. `text`: equal where answers are; the interval is over prompts.
    """
    sides, exact = permuted(layout, layout.live(text), seed=seed)
    null, each = np.zeros(len(sides)), np.zeros(layout.prompts)
    for i in range(layout.prompts):
        answers = np.flatnonzero(layout.prompt == i)
        block = kernel(answers, answers).astype(float)
        np.fill_diagonal(block, 0.0)
        each[i] = _block_mmd(block, layout.current[None, answers])[0]
        null += _block_mmd(block, sides[:, answers]) / layout.prompts
    return _tested(float(each.mean()), null, exact), over_prompts(each)


def _block_mmd(block: Float[Array, "b b"], current: Bool[Array, "r b"]) -> Float[Array, " r"]:
    """Unbiased squared MMD (Gretton et al. 2012, JMLR 13, eq. 3) from a kernel whose diagonal is 0."""
    now, before = current.astype(float), (~current).astype(float)
    a, b = now.sum(1), before.sum(1)
    by_now = now @ block
    both = ((by_now * now).sum(1) / (a * (a - 1)), ((before @ block) * before).sum(1) / (b * (b - 1)))
    return np.asarray(both[0] + both[1] - 2 * (by_now * before).sum(1) / (a * b))


def over_test(layout: Layout, kernel: Kernel, text: Shaped[Array, " n"], *, seed: int = 0) -> tuple[Test, Estimate]:
    """Squared length of the mean difference of embeddings over prompts, unbiased: 1 / (p (p - 1)) sum over different
    prompts of <d_i, d_j>.

    One answer a side is enough. It finds what changes alike in many prompts, such as an opening, and is blind to what
    changes in each its own way. The interval leaves out prompts (jackknife).
    """
    everyone = np.arange(len(layout.prompt))
    whole = kernel(everyone, everyone).astype(np.float32)
    p = layout.prompts
    apart = np.where(layout.prompt[:, None] == layout.prompt[None], np.float32(0), whole)

    def length(weights: Float[Array, "r n"]) -> Float[Array, " r"]:
        small = weights.astype(np.float32)
        return np.asarray(((small @ apart) * small).sum(1), dtype=float) * p / max(p - 1, 1)

    sides, exact = permuted(layout, layout.live(text), seed=seed)
    test = _tested(float(length(layout.weight[None])[0]), length(_weights(layout, sides)), exact)
    onto = np.zeros((p, len(everyone)))
    onto[layout.prompt, everyone] = layout.weight * p
    inner = onto @ whole @ onto.T
    np.fill_diagonal(inner, 0.0)

    def mean_product(prompts: Sequence[int]) -> float:
        return float(inner[np.ix_(prompts, prompts)].sum()) / max(len(prompts) * (len(prompts) - 1), 1)

    return test, jackknife(mean_product, {i: [i] for i in range(p)})._replace(mean=test.statistic)
