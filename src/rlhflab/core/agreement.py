"""How far annotators agree, and who of them errs: kappa, alpha, and the model of Dawid and Skene.

NumPy and SciPy only; a verdict is a number here. Axes: v votes, u items, a annotators, c categories.
"""

from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from rlhflab.core.stats import Estimate, bootstrap_totals, jackknife

Array = NDArray[np.float64]
Indices = NDArray[np.int64]
FEWEST_SHARED = 10
"""Items that two annotators must share before the kappa of the two counts."""
SMOOTHING = 1.0
"""Votes, spread evenly over the categories, that Dawid and Skene's estimate adds to each row of a confusion."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Votes:
    """Who said what of which item, each as a number from 0. An item may have any number of votes."""

    item: Indices
    annotator: Indices
    value: Indices
    items: int
    annotators: int
    categories: int

    @property
    def counts(self) -> Array:
        """(u, c): how often each item got each verdict."""
        flat = np.bincount(self.item * self.categories + self.value, minlength=self.items * self.categories)
        return flat.reshape(self.items, self.categories).astype(float)

    def of(self, keep: NDArray[np.bool_]) -> "Votes":
        """Some of the votes; items, annotators and categories keep their numbers."""
        return Votes(item=self.item[keep], annotator=self.annotator[keep], value=self.value[keep], items=self.items,
                     annotators=self.annotators, categories=self.categories)


def repeated(votes: Votes) -> int:
    """Items with two votes or more: what every measure of agreement is over."""
    return int((np.bincount(votes.item, minlength=1) > 1).sum())


def raw_agreement(votes: Votes) -> Estimate | None:
    """Share of equal verdicts among all pairs of votes on one item; None where no item has two."""
    counts, total = _repeated_counts(votes)
    sums = np.stack([(counts * (counts - 1)).sum(1), total * (total - 1)], axis=1)
    return bootstrap_totals(sums, lambda sums: sums[:, 0] / sums[:, 1], n=len(sums))


def fleiss_kappa(votes: Votes) -> Estimate | None:
    """Agreement beyond chance, chance being the shares of the verdicts over all items (Fleiss 1971).

    Every item counts alike, however many votes it has. None where no item has two votes or all say the same.
    """
    counts, total = _repeated_counts(votes)
    agreeing = (counts * (counts - 1)).sum(1) / (total * (total - 1))
    sums = np.column_stack([np.ones_like(total), agreeing, counts])

    def kappa(sums: Array) -> Array:
        shares = sums[:, 2:] / sums[:, 2:].sum(1, keepdims=True)
        chance = (shares**2).sum(1)
        return np.asarray((sums[:, 1] / sums[:, 0] - chance) / (1 - chance))

    return bootstrap_totals(sums, kappa, n=len(sums))


def krippendorff_alpha(votes: Votes, *, ordinal: bool = False) -> Estimate | None:
    """1 - observed / expected disagreement, for any number of votes an item (Krippendorff 2011).

    Nominal: two verdicts are equal or not. `ordinal`: categories are in order, and the distance of two is the squared
    number of votes between their middles. None where no item has two votes or all say the same.
    """
    counts, total = _repeated_counts(votes)
    same = counts[:, :, None] * np.eye(votes.categories)
    together = (counts[:, :, None] * counts[:, None, :] - same) / (total - 1)[:, None, None]

    def alpha(sums: Array) -> Array:
        found = sums.reshape(-1, votes.categories, votes.categories)
        margin = found.sum(2)
        expected = margin[:, :, None] * margin[:, None, :]
        if ordinal:
            middle = np.cumsum(margin, axis=1) - margin / 2
            distance = (middle[:, :, None] - middle[:, None, :]) ** 2
        else:
            distance = np.broadcast_to(1 - np.eye(votes.categories), found.shape)
        apart, chance = (found * distance).sum((1, 2)), (expected * distance).sum((1, 2))
        return np.asarray(1 - (margin.sum(1) - 1) * apart / chance)

    return bootstrap_totals(together.reshape(len(total), votes.categories**2), alpha, n=len(total))


def interval_alpha(item: Indices, value: Array) -> Estimate | None:
    """Krippendorff's alpha with squared differences of numbers, such as a preference with its strength.

    With m values of an item, the sum of squared differences over ordered pairs is 2 (m sum x^2 - (sum x)^2).
    """
    count, first, second = (np.bincount(item, weights=value**power) for power in (0, 1, 2))
    many = count > 1
    count, first, second = count[many], first[many], second[many]
    sums = np.stack([count, first, second, (count * second - first**2) / (count - 1)], axis=1)

    def alpha(sums: Array) -> Array:
        n, one, two, apart = sums.T
        return np.asarray(1 - (n - 1) * apart / (n * two - one**2))

    return bootstrap_totals(sums, alpha, n=len(sums))


def cohen_kappa(ratings: Sequence[tuple[Hashable, Hashable, Hashable]]) -> float:
    """Agreement of two beyond chance, from `(pair, verdict of one, verdict of the other)` (Cohen 1960).

    Of several pairs of annotators, the mean of their kappas weighted by what they share (Light 1971). NaN where chance
    alone would have every pair agree.
    """
    of_pair: dict[Hashable, list[tuple[Hashable, Hashable]]] = {}
    for pair, one, other in ratings:
        of_pair.setdefault(pair, []).append((one, other))
    kappas = {pair: _kappa_of_two(both) for pair, both in of_pair.items()}
    weight = {pair: len(both) for pair, both in of_pair.items() if np.isfinite(kappas[pair])}
    return sum(kappas[pair] * n for pair, n in weight.items()) / sum(weight.values()) if weight else float("nan")


def _kappa_of_two(both: Sequence[tuple[Hashable, Hashable]]) -> float:
    numbers: dict[Hashable, int] = {}
    one, other = (np.array([numbers.setdefault(value, len(numbers)) for value in side])
                  for side in zip(*both, strict=True))
    shares = [np.bincount(side, minlength=len(numbers)) / len(both) for side in (one, other)]
    chance = float(shares[0] @ shares[1])
    return (float((one == other).mean()) - chance) / (1 - chance) if chance < 1 else float("nan")


def pairwise_kappa(votes: Votes, *, fewest: int = FEWEST_SHARED) -> Estimate | None:
    """Cohen's kappa of all pairs of annotators who share enough items, with an interval that leaves out items.

    `n` counts shared verdicts. None where no pair shares enough, or chance alone would have them agree.
    """
    shared = list(_shared(votes))
    sizes: dict[tuple[int, int], int] = {}
    for _, pair, _, _ in shared:
        sizes[pair] = sizes.get(pair, 0) + 1
    by_item: dict[int, list[tuple[tuple[int, int], int, int]]] = {}
    for item, pair, one, other in shared:
        if sizes[pair] >= fewest:
            by_item.setdefault(item, []).append((pair, one, other))
    if not by_item:
        return None
    found = jackknife(cohen_kappa, by_item)  # type: ignore[arg-type]
    return found if np.isfinite(found.mean) else None


def _shared(votes: Votes) -> Iterator[tuple[int, tuple[int, int], int, int]]:
    """(item, pair of annotators, their two verdicts) for every two votes of different annotators on one item."""
    order = np.lexsort((votes.annotator, votes.item))
    item, annotator, value = (of[order].tolist() for of in (votes.item, votes.annotator, votes.value))
    for i in range(len(item)):
        j = i + 1
        while j < len(item) and item[j] == item[i]:
            if annotator[i] != annotator[j]:
                yield item[i], (annotator[i], annotator[j]), value[i], value[j]
            j += 1


def _repeated_counts(votes: Votes) -> tuple[Array, Array]:
    """Counts of the items with two votes or more, and their totals."""
    counts = votes.counts
    total = counts.sum(1)
    return counts[total > 1], total[total > 1]


# -- who errs --------------------------------------------------------------------------------------------------------


class Skill(NamedTuple):
    """What Dawid and Skene's model says of annotators and items."""

    prior: Array
    """(c,): how often each category is the truth."""
    confusion: Array
    """(a, c, c): how often an annotator says the second where the first is the truth."""
    truth: Array
    """(u, c): probability of each category of each item; the prior for an item without votes."""


def dawid_skene(votes: Votes, *, start: Array | None = None, smoothing: float = SMOOTHING, tolerance: float = 1e-6,
                rounds: int = 500) -> Skill:
    """Truth of items and confusion of annotators by EM, from the shares of each verdict (Dawid & Skene 1979).

    Annotators are taken to err independently, given the truth. Errors that they share pass for the truth. `start`: the
    truth to begin with instead, (u, c).
    """
    counts = votes.counts
    total = counts.sum(1, keepdims=True)
    truth = np.where(total > 0, counts / np.maximum(total, 1), 1 / votes.categories) if start is None else start
    cell = votes.annotator * votes.categories + votes.value
    for _ in range(rounds):
        said = np.stack([np.bincount(cell, weights=truth[votes.item, true],
                                     minlength=votes.annotators * votes.categories)
                         for true in range(votes.categories)], axis=1)
        often = said.reshape(votes.annotators, votes.categories, votes.categories).transpose(0, 2, 1)
        confusion: Array = (often + smoothing / votes.categories) / (often.sum(2, keepdims=True) + smoothing)
        prior = truth[total[:, 0] > 0].sum(0) + smoothing / votes.categories
        prior = prior / prior.sum()
        new = _posterior(votes, prior, confusion)
        moved = float(np.abs(new - truth).max())
        truth = new
        if moved < tolerance:
            break
    return Skill(prior, confusion, truth)


def _posterior(votes: Votes, prior: Array, confusion: Array) -> Array:
    """P(truth of each item), by Bayes' rule from its votes."""
    told = np.log(confusion)[votes.annotator, :, votes.value]
    log = np.log(prior) + np.stack([np.bincount(votes.item, weights=told[:, true], minlength=votes.items)
                                    for true in range(votes.categories)], axis=1)
    likely = np.exp(log - log.max(1, keepdims=True))
    return np.asarray(likely / likely.sum(1, keepdims=True))
