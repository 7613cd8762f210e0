"""Which of two answers is preferred, by their words alone: features and a convex fit. Neither prompt nor order is read.

Axes: n texts or pairs, w words.
"""

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.optimize import minimize
from scipy.sparse import csr_array
from scipy.special import expit

from rlhflab.core.calibration import Array

WORD = re.compile(r"\w+|[^\w\s]")
VOCABULARY = 5000
"""Words known at most: those of the most texts."""


def words(text: str) -> list[str]:
    """Words and signs in lower case."""
    return WORD.findall(text.lower())


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Vocabulary:
    """Words with the columns they are counted in, and how much each weighs by its rarity."""

    column: Mapping[str, int]
    rarity: Array
    """(w,): 1 + log((1 + texts) / (1 + texts with the word))."""

    @classmethod
    def of(cls, texts: Sequence[str], *, most: int = VOCABULARY) -> "Vocabulary":
        """The words of `texts`."""
        known = Counter(word for text in texts for word in set(words(text))).most_common(most)
        return cls(column={word: i for i, (word, _) in enumerate(known)},
                   rarity=1 + np.log((1 + len(texts)) / (1 + np.array([float(often) for _, often in known]))))

    def counts(self, texts: Iterable[str]) -> Any:
        """Sparse (n, w): how often each known word stands in each text."""
        return self._sparse([[(self.column[word], 1.0) for word in words(text) if word in self.column]
                             for text in texts])

    def tf_idf(self, texts: Iterable[str]) -> Any:
        """Sparse (n, w): (1 + log count) x rarity, each text scaled to length 1."""
        rows = []
        for text in texts:
            often = Counter(self.column[word] for word in words(text) if word in self.column)
            row = [(place, (1 + np.log(count)) * self.rarity[place]) for place, count in often.items()]
            length = np.sqrt(sum(value**2 for _, value in row))
            rows.append([(place, value / length) for place, value in row])
        return self._sparse(rows)

    def _sparse(self, rows: Sequence[Sequence[tuple[int, float]]]) -> Any:
        found = [(row, place, value) for row, each in enumerate(rows) for place, value in each]
        row, place, values = zip(*found, strict=True) if found else ((), (), ())
        return csr_array((np.array(values, dtype=float), (np.array(row, dtype=int), np.array(place, dtype=int))),
                         shape=(len(rows), len(self.column)))  # equal places are added up


def fit_preferences(differences: Any, *, penalty: float = 1.0, weight: Array | None = None) -> Array:
    """(w,): weights w with the least sum of -log sigmoid(w . d) over pairs, plus `penalty` / 2 |w|^2.

    `differences`: (n, w), features of the preferred answer less those of the other; `weight`: of each pair, 1 where
    absent. Convex, so the fit depends on no seed (Bradley & Terry 1952, with a ridge).
    """
    of_pair = np.ones(differences.shape[0]) if weight is None else weight

    def loss(weights: Array) -> tuple[float, Array]:
        gaps = differences @ weights
        return (float((of_pair * np.logaddexp(0, -gaps)).sum() + penalty * (weights @ weights) / 2),
                np.asarray(penalty * weights - differences.T @ (of_pair * expit(-gaps))))

    found: Array = minimize(loss, np.zeros(differences.shape[1]), jac=True, method="L-BFGS-B").x
    return found
