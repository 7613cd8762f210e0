"""Charts, tails, phrases and outliers against numbers worked by hand and against the plain formulas."""

import math
from itertools import combinations

import numpy as np
import pytest
from scipy import stats

from rlhflab.core.signals import cusum, cusum_false_alarms, gain_at_equal_length, hill, log_odds, rarefied


def test_a_cusum_by_hand() -> None:
    # 1 - .5 = .5; .5 + .2 - .5 = .2; .2 - 3 - .5 < 0 -> 0; 2 - .5 = 1.5; 1.5 + 4 - .5 = 5
    assert cusum([1.0, 0.2, -3.0, 2.0, 4.0], k=0.5) == pytest.approx([0.5, 0.2, 0.0, 1.5, 5.0])


def test_false_alarms_of_a_cusum_are_as_rare_as_tables_say() -> None:
    # One-sided, k = .5: a false alarm once in 336 steps at h = 4, in 931 at h = 5 (Montgomery).
    assert cusum_false_alarms(k=0.5, h=4.0, steps=1)[0] == pytest.approx(336, rel=0.005)
    average, chance = cusum_false_alarms(k=0.5, h=5.0, steps=1)
    assert average == pytest.approx(931, rel=0.005)
    assert chance == pytest.approx(stats.norm.sf(5.5), rel=0.01), "the first step alarms where z - .5 > 5"


def test_hills_estimate_by_hand() -> None:
    # the two largest, 8 and 4, above the third, 2: (log 4 + log 2) / 2 = 1.5 log 2
    assert hill([1.0, 8.0, 2.0, 4.0, 0.5], 2) == pytest.approx(1.5 * math.log(2))
    assert hill([0.0, 0.0, -1.0, 3.0], 1) == 0.0, "the second largest is 0: nothing to compare the largest with"
    with pytest.raises(ValueError, match="none below them"):
        hill([1.0, 2.0], 2)


def test_hills_estimate_finds_the_index_of_a_pareto_distribution() -> None:
    draws = stats.pareto(b=2).ppf((np.arange(5000) + 0.5) / 5000)
    assert hill(draws.tolist(), 500) == pytest.approx(0.5, abs=0.02)


def test_log_odds_with_a_dirichlet_prior_by_hand() -> None:
    # prior .5: alpha_a = .5 x (6 + 2) = 4, alpha of all = .5 x (10 + 10) = 10
    # now (6 + 4) / (10 + 10 - 6 - 4) = 1; start (2 + 4) / (10 + 10 - 2 - 4) = 3 / 7; variance 1 / 10 + 1 / 6
    scores = log_odds({"a": 6, "b": 4}, {"a": 2, "b": 8}, prior=0.5)
    assert scores["a"] == pytest.approx(math.log(7 / 3) / math.sqrt(1 / 10 + 1 / 6))
    assert scores["b"] == pytest.approx(math.log(3 / 7) / math.sqrt(1 / 10 + 1 / 14))


def test_rarefied_counts_are_the_mean_over_all_draws() -> None:
    items = ["a", "a", "a", "b", "b", "c"]
    draws = [len({items[i] for i in chosen}) for chosen in combinations(range(6), 3)]
    assert rarefied(items, 3) == pytest.approx(sum(draws) / len(draws))
    assert rarefied(items, 6) == pytest.approx(3) and rarefied(items, 1) == pytest.approx(1)


def test_the_share_of_the_gain_at_equal_length_by_hand() -> None:
    # gain 3.5 - 1; short answers gained 2 - 1, long ones 4 - 1 -> (1 x 1 + 3 x 3) / 4 / 2.5
    start, now = [(2.0, 0.5), (2.0, 1.5), (9.0, 1.0)], [(2.0, 2.0), (9.0, 3.0), (9.0, 5.0), (9.0, 4.0)]
    gain = (2 + 3 + 5 + 4) / 4 - 1.0
    within = 0.25 * (2 - 1.0) + 0.75 * (4 - 1.0)
    assert gain_at_equal_length(now, start, np.array([5.0])) == pytest.approx(within / gain)


def test_a_gain_that_only_moves_answers_between_lengths_leaves_nothing() -> None:
    start, now = [(2.0, 0.0), (2.0, 0.0), (9.0, 4.0)], [(2.0, 0.0), (9.0, 4.0), (9.0, 4.0)]
    assert gain_at_equal_length(now, start, np.array([5.0])) == 0
    assert math.isnan(gain_at_equal_length([(9.0, 1.0)], [(2.0, 0.0)], np.array([5.0]))), "no length is shared"


def test_answers_at_the_two_ends_of_a_bin_are_not_of_equal_length() -> None:
    start, now = [(6.0, 0.6), (8.0, 0.8), (9.0, 0.9)], [(9.0, 0.9), (27.0, 2.7), (28.0, 2.8)]
    assert gain_at_equal_length(now, start, np.array([])) == 0  # of one bin, the answers of 9 words alone are compared
    assert math.isnan(gain_at_equal_length(now[1:], start, np.array([])))
