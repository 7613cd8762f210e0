"""Agreement against numbers worked by hand and the `krippendorff` package; errors of simulated annotators come out."""

import math

import krippendorff
import numpy as np
import pytest

from rlhflab.core.agreement import (
    Votes,
    cohen_kappa,
    dawid_skene,
    fleiss_kappa,
    interval_alpha,
    krippendorff_alpha,
    pairwise_kappa,
    raw_agreement,
    repeated,
)


def votes(*items: str) -> Votes:
    """One text an item, one letter a vote; the place of a letter is its annotator, a blank is no vote."""
    rows = [(item, annotator, "abc".index(letter)) for item, text in enumerate(items)
            for annotator, letter in enumerate(text) if letter != " "]
    item, annotator, value = (np.array(column, dtype=np.int64) for column in zip(*rows, strict=True))
    return Votes(item=item, annotator=annotator, value=value, items=len(items), annotators=max(map(len, items)),
                 categories=3)


def simulated(accuracy: list[float], *, items: int = 400, seed: int = 0) -> tuple[Votes, np.ndarray]:
    """Every annotator judges every item and says the other of two categories as often as they err."""
    random = np.random.default_rng(seed)
    truth = random.integers(0, 2, items)
    wrong = random.random((items, len(accuracy))) > np.array(accuracy)
    item, annotator = (axis.ravel() for axis in np.indices(wrong.shape))
    return Votes(item=item, annotator=annotator, value=np.where(wrong.ravel(), 1 - truth[item], truth[item]),
                 items=items, annotators=len(accuracy), categories=2), truth


def test_raw_agreement_counts_pairs_of_votes() -> None:
    # aab: 1 of 3 pairs; ab: 0 of 1; aa: 1 of 1; a single vote has no pair.
    found = raw_agreement(votes("aab", "ab", "aa", "c"))
    assert found is not None and found.mean == pytest.approx(2 / 5) and found.n == 3
    assert found.low <= 0.4 <= found.high and repeated(votes("aab", "ab", "aa", "c")) == 3


def test_fleiss_kappa_by_hand() -> None:
    found = fleiss_kappa(votes("aaa", "aab", "bbb"))
    # Agreement 1, 1/3, 1: 7/9. Shares 5/9, 4/9: chance 41/81. (63 - 41) / (81 - 41).
    assert found is not None and found.mean == pytest.approx(22 / 40)


def test_cohen_kappa_by_hand_and_of_pairs_weighted_by_what_they_share() -> None:
    # Agree on 3 of 4; shares of a: 3/4 and 2/4, chance 1/2; kappa 1/2.
    ratings = [("p", "a", "a"), ("p", "a", "a"), ("p", "a", "b"), ("p", "b", "b")]
    assert cohen_kappa(ratings) == pytest.approx(0.5)
    perfect = [("q", "a", "a"), ("q", "b", "b")]
    assert cohen_kappa(ratings + perfect) == pytest.approx((4 * 0.5 + 2 * 1.0) / 6)
    assert math.isnan(cohen_kappa([("p", "a", "a")])), "chance alone would have them agree"


def test_pairs_that_share_too_little_do_not_count() -> None:
    some = votes(*["ab", "aa", "bb"] * 4, *[" bb", " ab"] * 2)
    found = pairwise_kappa(some, fewest=10)
    # The first two share twelve: agree on 2/3, shares of a 2/3 and 1/3, chance 4/9.
    assert found is not None and found.mean == pytest.approx((2 / 3 - 4 / 9) / (1 - 4 / 9)) and found.n == 12
    assert pairwise_kappa(some, fewest=13) is None


@pytest.mark.parametrize("seed", range(4))
def test_alpha_is_that_of_the_package(seed: int) -> None:
    random = np.random.default_rng(seed)
    item = np.repeat(np.arange(40), random.integers(1, 6, 40))
    value = np.clip(item % 3 + random.integers(-1, 2, len(item)), 0, 2)
    some = Votes(item=item, annotator=np.zeros_like(item), value=value, items=40, annotators=1, categories=3)
    for level, found in (("nominal", krippendorff_alpha(some)), ("ordinal", krippendorff_alpha(some, ordinal=True)),
                         ("interval", interval_alpha(item, value.astype(float)))):
        expected = krippendorff.alpha(value_counts=some.counts.astype(int), level_of_measurement=level)
        assert found is not None and found.mean == pytest.approx(expected, abs=1e-12), level
        assert found.low < found.mean < found.high


def test_where_nobody_agrees_with_anybody_there_is_no_number() -> None:
    alone, alike = votes("a", "b"), votes("aa", "aa")
    for measure in (raw_agreement, fleiss_kappa, krippendorff_alpha, pairwise_kappa):
        assert measure(alone) is None
    assert fleiss_kappa(alike) is None and krippendorff_alpha(alike) is None, "without a second verdict no chance"
    one_item = raw_agreement(votes("ab"))
    assert one_item is not None and math.isinf(one_item.high), "one item says nothing of spread"


def test_dawid_and_skene_find_who_errs_and_beat_the_majority() -> None:
    accuracy = [0.95, 0.9, 0.6, 0.55, 0.55]
    some, truth = simulated(accuracy, items=2000)
    skill = dawid_skene(some)
    found = np.einsum("t,att->a", skill.prior, skill.confusion)
    np.testing.assert_allclose(found, accuracy, atol=0.05)
    np.testing.assert_allclose(skill.confusion.sum(2), 1)
    by_model, by_majority = (float((guess == truth).mean()) for guess in (
        skill.truth.argmax(1), some.counts.argmax(1)))
    assert by_model > 0.93 > by_majority


def test_an_annotator_who_says_the_opposite_is_found_out() -> None:
    some, _ = simulated([0.9, 0.9, 0.9, 0.1])
    assert dawid_skene(some).confusion[3, 0, 1] == pytest.approx(0.9, abs=0.05)


def test_an_item_without_votes_has_the_prior() -> None:
    some, _ = simulated([0.9, 0.8], items=50)
    more = Votes(item=some.item, annotator=some.annotator, value=some.value, items=51, annotators=2, categories=2)
    skill = dawid_skene(more)
    np.testing.assert_allclose(skill.truth[50], skill.prior)
