"""Which comparisons to have judged next, from what earlier labels taught a small ensemble. Words only, no model.

Whether that is worth more than drawing at random is a question of the data: docs/results/active-selection.md.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit

from rlhflab.analysis.bag_of_words import Vocabulary, fit_preferences
from rlhflab.core.calibration import Array
from rlhflab.data.types import Comparison

Strategy = Literal["disagreement", "near_tie", "coverage", "random"]
MEMBERS = 8
"""Of the ensemble, each fitted on a bootstrap of the prompts (Breiman 1996)."""
PENALTY = 1.0
"""Of the fit on features of length 1."""


class Label(NamedTuple):
    """A comparison and whether its `a` was preferred."""

    comparison: Comparison
    prefers_a: bool


class Pool(NamedTuple):
    """Comparisons nobody has judged, as the strategies see them. k members, p comparisons, w words."""

    gaps: Array
    """(k, p): score of a less that of b, by each member; no members where nothing is labelled."""
    texts: Any
    """Sparse (p, w): words of prompt and answers, each row of length 1 ..."""
    labelled_texts: Any
    """... and those of what is labelled already."""


def pool_of(labels: Sequence[Label], unlabelled: Sequence[Comparison], *, members: int = MEMBERS,
            seed: int = 0) -> Pool:
    """The pool, with an ensemble fitted on `labels`. Words are those of all texts, which are known before any label."""
    labelled = [label.comparison for label in labels]
    answers = Vocabulary.of([text for each in (*labelled, *unlabelled) for text in (each.a, each.b)])
    whole = [_whole(each) for each in (*labelled, *unlabelled)]
    of_whole = Vocabulary.of(whole).tf_idf(whole)
    unseen = differences(answers, unlabelled)
    fits = ensemble(differences(answers, labelled), labels, members=members, seed=seed)
    return Pool(np.stack([unseen @ weights for weights in fits]) if fits else np.zeros((0, len(unlabelled))),
                of_whole[len(labelled):], of_whole[:len(labelled)])


def differences(vocabulary: Vocabulary, comparisons: Sequence[Comparison]) -> Any:
    """Sparse (n, w): features of a less those of b."""
    return vocabulary.tf_idf([each.a for each in comparisons]) - vocabulary.tf_idf([each.b for each in comparisons])


def ensemble(seen: Any, labels: Sequence[Label], *, members: int, seed: int) -> list[Array]:
    """The weights of each member. `seen`: the `differences` of the labelled comparisons, in their order."""
    if not labels:
        return []
    towards = towards_preferred(seen, labels)
    prompts = {messages: i for i, messages in enumerate(dict.fromkeys(
        label.comparison.prompt.messages for label in labels))}
    of_label = np.array([prompts[label.comparison.prompt.messages] for label in labels])
    random = np.random.default_rng(seed)
    drawn = [np.bincount(random.integers(0, len(prompts), len(prompts)), minlength=len(prompts)).astype(float)
             for _ in range(members)]
    return [fit_preferences(towards, penalty=PENALTY, weight=often[of_label]) for often in drawn]


def towards_preferred(differences: Any, labels: Sequence[Label]) -> Any:
    """Features of the preferred answer less those of the other, from those of a less those of b."""
    sign = np.array([1.0 if label.prefers_a else -1.0 for label in labels])
    return differences.multiply(sign[:, None]).tocsr()


def select(pool: Pool, n: int, by: Strategy, *, seed: int = 0) -> list[int]:
    """Numbers of the `n` comparisons to have judged next, the first one first."""
    return STRATEGIES[by](pool, n, np.random.default_rng(seed))


def by_disagreement(pool: Pool, n: int, random: np.random.Generator) -> list[int]:
    """Where members differ most about the probability that a is preferred (query by committee, Seung et al. 1992)."""
    return _highest(expit(pool.gaps).std(axis=0), n, random)


def by_near_tie(pool: Pool, n: int, random: np.random.Generator) -> list[int]:
    """Where the ensemble's mean score of both answers is nearest to equal (Lewis & Gale 1994)."""
    return _highest(-np.abs(pool.gaps.mean(axis=0)), n, random)


def by_coverage(pool: Pool, n: int, random: np.random.Generator) -> list[int]:
    """One after the other the one furthest, by cosine, from all labelled and chosen (Gonzalez 1985; k-center).

    Sener & Savarese 2018 (arXiv:1708.00489) select in this way on learnt features; these are words.
    """
    count = pool.texts.shape[0]
    nearest = np.full(count, -1.0)
    for start in range(0, pool.labelled_texts.shape[0], 256):
        part = pool.labelled_texts[start:start + 256]
        nearest = np.maximum(nearest, (pool.texts @ part.T).toarray().max(axis=1))
    chosen: list[int] = []
    for _ in range(min(n, count)):
        place = _highest(-nearest, 1, random)[0]
        chosen.append(place)
        nearest = np.maximum(nearest, (pool.texts @ pool.texts[place:place + 1].T).toarray()[:, 0])
        nearest[chosen] = np.inf
    return chosen


def by_lot(pool: Pool, n: int, random: np.random.Generator) -> list[int]:
    """At random: what every other way is to be measured against."""
    order: list[int] = random.permutation(pool.texts.shape[0])[:n].tolist()
    return order


STRATEGIES: Mapping[Strategy, Callable[[Pool, int, np.random.Generator], list[int]]] = {
    "disagreement": by_disagreement, "near_tie": by_near_tie, "coverage": by_coverage, "random": by_lot}
TAUGHT: tuple[Strategy, ...] = ("disagreement", "near_tie")
"""Strategies that need labels to begin with."""


def _highest(values: NDArray[Any], n: int, random: np.random.Generator) -> list[int]:
    """Places of the `n` highest, equal ones by lot."""
    lot = random.permutation(len(values))
    order: list[int] = lot[np.argsort(-values[lot], kind="stable")][:n].tolist()
    return order


def _whole(comparison: Comparison) -> str:
    return "\n".join([*(turn.content for turn in comparison.prompt.messages), comparison.a, comparison.b])
