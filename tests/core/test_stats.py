"""Intervals against SciPy and against numbers worked by hand."""

import math
from itertools import combinations

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import stats

from rlhflab.core.stats import (
    best_of_n,
    bootstrap_totals,
    bound_power,
    detectable_change,
    difference,
    holm,
    items_needed,
    jackknife,
    mean_interval,
    non_inferiority_power,
    paired_bootstrap,
    paired_change,
    paired_rate_change,
    rate_bound,
    sign_test,
    theil_sen,
    wilson,
)


def test_wilson_equals_scipys() -> None:
    theirs = stats.binomtest(7, 20).proportion_ci(method="wilson")
    assert wilson(7.0, 20.0) == pytest.approx((theirs.low, theirs.high))


def test_no_success_still_has_an_upper_bound() -> None:
    rate = mean_interval([0.0] * 20)
    assert rate.mean == rate.low == 0 and rate.high == pytest.approx(wilson(0.0, 20.0)[1]) and rate.high > 0.1


def test_a_mean_of_independent_values_equals_the_t_interval() -> None:
    values = [1.0, 2.5, 3.0, 7.0, 4.0]
    theirs = stats.ttest_1samp(values, 0).confidence_interval(0.95)
    ours = mean_interval(values)
    assert (ours.low, ours.high) == pytest.approx((theirs.low, theirs.high))


def test_copies_of_a_prompts_answer_do_not_narrow_the_interval() -> None:
    values = [1.0, 0.0, 0.0, 1.0, 1.0, 0.0]
    once = mean_interval(values, range(6))
    twice = mean_interval(values * 2, [*range(6), *range(6)])
    assert twice.n == 12
    assert twice.high - twice.low == pytest.approx(once.high - once.low, rel=0.15)
    assert mean_interval(values * 2).high < twice.high, "counted as independent it would be narrower"


def test_a_paired_change_equals_the_paired_t_test() -> None:
    after, before = [3.0, 4.0, 5.5, 2.0], [2.0, 4.5, 3.0, 1.0]
    theirs = stats.ttest_rel(after, before).confidence_interval(0.95)
    ours = paired_change(after, before)
    assert (ours.low, ours.high, ours.mean) == pytest.approx((theirs.low, theirs.high, 1.0))


def test_one_cluster_says_nothing_about_spread() -> None:
    assert mean_interval([1.5, 2.0], ["p", "p"]).high == math.inf


def test_no_values_are_refused() -> None:
    with pytest.raises(ValueError, match="no values"):
        mean_interval([])


def test_the_best_of_two_by_hand() -> None:
    # by proxy the gold is 1, 0, 4; pairs' winners: {1,2} -> 0, {1,3} -> 4, {2,3} -> 4
    assert best_of_n([0.1, 0.5, 0.9], [1.0, 0.0, 4.0], 2) == pytest.approx(8 / 3)


@pytest.mark.parametrize("n", [1, 2, 3, 5, 6])
def test_the_best_of_n_equals_the_mean_over_all_draws(n: int) -> None:
    proxy, gold = [3.0, 1.0, 4.0, 1.5, 9.0, 2.0], [0.0, 1.0, 0.5, 0.25, 0.1, 0.9]
    draws = [gold[max(draw, key=lambda i: proxy[i])] for draw in combinations(range(6), n)]
    assert best_of_n(proxy, gold, n) == pytest.approx(sum(draws) / len(draws))


def test_equal_proxies_share_their_gold() -> None:
    assert best_of_n([1.0, 1.0], [0.0, 1.0], 2) == best_of_n([1.0, 1.0], [1.0, 0.0], 2) == 0.5


@pytest.mark.parametrize("n", [0, 3])
def test_no_best_of_more_answers_than_there_are(n: int) -> None:
    with pytest.raises(ValueError, match="cannot be estimated from 2 answers"):
        best_of_n([1.0, 2.0], [1.0, 2.0], n)


def test_the_sign_test_drops_what_did_not_move() -> None:
    assert sign_test([1.0, 2.0, 0.5, -0.1, 0.0]) == pytest.approx(2 * 5 / 16)  # at most one fall of four: (1 + 4) / 16
    assert sign_test([1.0, -1.0]) == sign_test([0.0, 0.0]) == sign_test([]) == 1
    assert sign_test([-1.0] * 9 + [3.0] * 2) == pytest.approx(stats.binomtest(2, 11).pvalue)


def test_holm_never_falls_again() -> None:
    # in order: 3 x .01, 2 x .03 and, since p may not fall again, .06 for .04
    assert holm([0.04, 0.01, 0.03]) == pytest.approx([0.06, 0.03, 0.06])
    assert holm([0.9, 0.6]) == [1.0, 1.0] and holm([]) == []


def test_a_difference_of_independent_means_equals_welchs() -> None:
    after, before = [3.0, 4.0, 5.5, 2.0], [2.0, 4.5, 3.0, 1.0, 1.5]
    theirs = stats.ttest_ind(after, before, equal_var=False).confidence_interval(0.95)
    ours = difference(after, before)
    assert (ours.low, ours.high, ours.n) == pytest.approx((theirs.low, theirs.high, 4))
    assert difference(after, before, ["p"] * 4).high == math.inf, "one prompt says nothing about spread"


def test_the_sign_test_of_rates_is_mcnemars_exact_test() -> None:
    # 1 up, 6 down, 3 unchanged: 2 (C(7,0) + C(7,1)) / 2^7
    assert sign_test([1.0] + [-1.0] * 6 + [0.0] * 3) == pytest.approx(2 * 8 / 128)
    assert sign_test([0.0, 0.0]) == 1


def test_holm_by_hand() -> None:
    # sorted .01 x 3, .02 x 2, .03 x 1 -> .03, .04, then never less than what came before
    assert holm([0.03, 0.01, 0.02]) == pytest.approx([0.04, 0.03, 0.04])


def test_one_wild_point_does_not_move_theil_and_sens_slope() -> None:
    assert theil_sen([0.0, 1.0, 2.0, 3.0, 4.0], [0.0, 2.0, 4.0, 6.0, 100.0]).mean == 2


def test_the_jackknife_of_a_mean_is_its_t_interval_and_of_two_means_adds_their_variances() -> None:
    values, others = [1.0, 2.5, 3.0, 7.0, 4.0], [0.5, 1.0, 4.0, 2.0, 2.5]
    of_one = jackknife(lambda x: sum(x) / len(x), {i: [v] for i, v in enumerate(values)})
    theirs = stats.ttest_1samp(values, 0).confidence_interval(0.95)
    assert (of_one.low, of_one.high) == pytest.approx((theirs.low, theirs.high))
    of_two = jackknife(lambda x, y: sum(x) / len(x) - sum(y) / len(y),
                       {i: [v] for i, v in enumerate(values)}, {i: [v] for i, v in enumerate(others)})
    half = stats.t.ppf(0.975, 4) * math.sqrt(stats.sem(values) ** 2 + stats.sem(others) ** 2)
    assert of_two.high - of_two.mean == pytest.approx(half)


def test_the_jackknife_leaves_out_whole_clusters() -> None:
    values = [1.0, 2.5, 3.0, 7.0, 4.0]
    once = jackknife(lambda x: sum(x) / len(x), {i: [v] for i, v in enumerate(values)})
    thrice = jackknife(lambda x: sum(x) / len(x), {i: [v] * 3 for i, v in enumerate(values)})
    assert thrice[:3] == pytest.approx(once[:3]) and thrice.n == 15
    assert jackknife(sum, {"p": [1.0]}).high == math.inf


def test_the_bootstrap_of_totals_is_that_of_a_ratio_of_means() -> None:
    random = np.random.default_rng(1)
    parts = random.normal(3.0, 1.0, 400)
    sums = np.column_stack([np.ones(400), parts])
    found = bootstrap_totals(sums, lambda sums: sums[:, 1] / sums[:, 0], n=400)
    normal = mean_interval(parts.tolist())
    assert found is not None and found.mean == pytest.approx(normal.mean) and found.n == 400
    assert (found.low, found.high) == pytest.approx((normal.low, normal.high), abs=0.015)


def test_the_bootstrap_of_totals_says_nothing_where_it_cannot() -> None:
    def ratio(sums: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.asarray(sums[:, 1] / sums[:, 0])

    one = bootstrap_totals(np.array([[2.0, 1.0]]), ratio, n=1)
    assert one is not None and one[:3] == (0.5, -math.inf, math.inf), "one cluster has no spread"
    assert bootstrap_totals(np.zeros((0, 2)), ratio, n=0) is None
    assert bootstrap_totals(np.zeros((3, 2)), ratio, n=3) is None, "0 / 0"


def test_of_equal_pairs_tangos_interval_is_that_of_no_success_in_n() -> None:
    # No pair differs: z^2 / (n + z^2) with z = 1.6449 and n = 20 is .1192.
    found = paired_rate_change([1.0] * 12 + [0.0] * 8, [1.0] * 12 + [0.0] * 8, confidence=0.9)
    assert found.mean == 0 and found.n == 20
    assert (found.low, found.high) == pytest.approx((-0.11916, 0.11916), abs=1e-5)


def test_tangos_interval_holds_no_change_just_where_mcnemar_says_so() -> None:
    # 15 up and 5 down of 40: z = 10 / sqrt(20) = 2.236, above 1.96 and below 2.576.
    after, before = [1.0] * 15 + [0.0] * 5 + [1.0] * 20, [0.0] * 15 + [1.0] * 5 + [1.0] * 20
    assert paired_rate_change(after, before, confidence=0.95).low > 0
    assert paired_rate_change(after, before, confidence=0.99).low < 0
    mirrored = paired_rate_change(before, after)
    assert mirrored.high == pytest.approx(-paired_rate_change(after, before).low)


def test_a_change_of_everything_ends_at_the_end_of_the_scale() -> None:
    found = paired_rate_change([1.0] * 10, [0.0] * 10)
    assert found.mean == found.high == 1 and 0.4 < found.low < 1


def test_a_relative_change_is_that_of_the_means_and_draws_whole_prompts() -> None:
    found = paired_bootstrap([11.0, 22.0, 33.0], [10.0, 20.0, 30.0], "abc", relative=True)
    assert found[:3] == pytest.approx((0.1, 0.1, 0.1))
    alone = paired_bootstrap([2.0, 2.0, 5.0], [1.0, 1.0, 1.0], "aaa")
    assert alone.mean == 2 and alone.low == float("-inf"), "one prompt says nothing about spread"
    assert paired_bootstrap([1.0], [0.0], "a", relative=True).mean == float("inf")


def test_power_and_size_of_a_gate_row_are_each_others_inverse() -> None:
    # (1.645 + 2.326)^2 x .15 / .10^2 = 236.6
    assert items_needed(0.15, 0.10) == 237
    assert non_inferiority_power(237, 0.15, 0.10) == pytest.approx(0.99, abs=5e-4)
    assert non_inferiority_power(60, 0.15, 0.10) == pytest.approx(0.6388, abs=1e-3), "Phi(2 - 1.645)"
    assert non_inferiority_power(5, 0.0, 0.1) == 1


def test_the_detectable_change_is_the_one_that_its_number_of_items_is_for() -> None:
    # 7.85 (.2 - .01) / .01 = 149
    assert detectable_change(149, 0.2) == pytest.approx(0.1, abs=1e-3)


def test_the_exact_bound_of_no_event_is_the_rule_of_three() -> None:
    assert rate_bound(0, 40) == pytest.approx(1 - 0.05 ** (1 / 40)) and rate_bound(0, 40) < 3 / 40
    assert rate_bound(40, 40) == 1


def test_the_power_of_a_bound_is_the_chance_of_few_enough_events() -> None:
    # Of 40 items 0 events give .072, 1 event .113: below .10 only 0 events pass, whose chance at .02 is .98^40.
    assert bound_power(40, 0.02, 0.10) == pytest.approx(0.98**40)
    assert bound_power(10, 0.0, 0.10) == 0, "even no event in 10 is no proof"
