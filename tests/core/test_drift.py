"""Permutation tests within a prompt, against hand-worked numbers and against every assignment."""

from itertools import combinations, product

import numpy as np
import pytest

from rlhflab.core import drift
from rlhflab.core.drift import (
    Layout,
    above,
    change,
    energy,
    hamming,
    ks_test,
    mean_test,
    over_test,
    permuted,
    prompt_differences,
    psi,
    psi_test,
    within_test,
    zero_bound,
)
from rlhflab.core.stats import sign_test


def layout_of(*sizes):
    """Prompts with (baseline, current) answers each."""
    prompt = [i for i, (m, n) in enumerate(sizes) for _ in range(m + n)]
    return Layout(np.array(prompt), np.array([late for m, n in sizes for late in [False] * m + [True] * n]))


def test_permutations_are_all_there_are_and_keep_each_prompt_s_sides():
    layout = layout_of((1, 1), (2, 1))
    sides, exact = permuted(layout, np.array([True, True]))
    assert exact and len(sides) == len({tuple(row) for row in sides}) == 2 * 3
    assert (sides[:, :2].sum(1) == 1).all() and (sides[:, 2:].sum(1) == 1).all()
    assert (sides == layout.current).all(1).sum() == 1, "the seen assignment is among them"


def test_drawn_permutations_keep_the_sides_of_each_prompt_and_are_fair():
    layout = layout_of(*[(1, 3)] * 12)
    sides, exact = permuted(layout, np.ones(12, dtype=bool))
    assert not exact and len(sides) == 9999
    assert (sides.reshape(-1, 12, 4).sum(2) == 3).all()
    assert sides.mean(0) == pytest.approx([0.75] * 48, abs=0.02)


def test_prompts_whose_answers_are_equal_are_left_alone():
    layout = layout_of((1, 1), (1, 1), (1, 1))
    live = layout.live(np.array(["x", "x", "a", "b", "y", "y"]))
    assert live.tolist() == [False, True, False]
    sides, _ = permuted(layout, live)
    assert len(sides) == 2 and (sides[:, [0, 1, 4, 5]] == [False, True, False, True]).all()


def test_one_answer_of_zero_or_one_a_side_is_mcnemar_s_exact_test():
    before, after = [0, 0, 0, 0, 0, 1, 1, 0], [1, 1, 1, 1, 1, 0, 1, 0]  # five up, one down, two ties
    value = np.array([x for pair in zip(before, after, strict=True) for x in pair], dtype=float)
    test = mean_test(layout_of(*[(1, 1)] * 8), value)
    assert test.exact and len(test.null) == 2**6
    assert test.statistic == pytest.approx(4 / 8) and test.p == pytest.approx(14 / 64)
    assert test.p == pytest.approx(sign_test(np.subtract(after, before).astype(float).tolist()))


def test_prompts_count_alike_however_many_answers_they_have():
    layout = layout_of((1, 1), (2, 4))
    value = np.array([0, 1, 2, 4, 3, 3, 3, 3], dtype=float)
    assert prompt_differences(layout, value).tolist() == pytest.approx([1.0, 0.0])
    assert layout.weight @ value == pytest.approx(0.5)


def every_assignment(sizes):
    """The current answers of each assignment, numbered over all prompts: the slow twin of `permuted`."""
    starts = np.cumsum([0, *(m + n for m, n in sizes)])
    each = [list(combinations(range(start, start + m + n), n))
            for start, (m, n) in zip(starts, sizes, strict=False)]
    return [sum(chosen, ()) for chosen in product(*each)]


def plain_within(kernel, sizes, current):
    """Unbiased squared MMD, pair by pair."""
    total, start = 0.0, 0
    for m, n in sizes:
        own = range(start, start + m + n)
        now, before = [i for i in own if i in current], [i for i in own if i not in current]
        total += sum(kernel[i, j] for i in now for j in now if i != j) / (n * (n - 1))
        total += sum(kernel[i, j] for i in before for j in before if i != j) / (m * (m - 1))
        total -= 2 * sum(kernel[i, j] for i in now for j in before) / (m * n)
        start += m + n
    return total / len(sizes)


def plain_over(kernel, sizes, current):
    """Mean product of the differences of different prompts, pair by pair."""
    prompt = [i for i, (m, n) in enumerate(sizes) for _ in range(m + n)]
    weight = [1 / sizes[prompt[i]][1] if i in current else -1 / sizes[prompt[i]][0] for i in range(len(prompt))]
    total = sum(weight[i] * weight[j] * kernel[i, j] for i in range(len(prompt)) for j in range(len(prompt))
                if prompt[i] != prompt[j])
    return total / (len(sizes) * (len(sizes) - 1))


@pytest.mark.parametrize(("test", "plain", "sizes"), [
    (within_test, plain_within, [(2, 2), (2, 3), (3, 2)]), (over_test, plain_over, [(1, 1), (1, 2), (1, 1), (2, 1)])])
def test_p_of_a_kernel_is_the_share_of_all_assignments(test, plain, sizes):
    generator = np.random.default_rng(3)
    codes = generator.integers(0, 3, (sum(map(sum, sizes)), 7))
    kernel, layout = hamming(codes), layout_of(*sizes)
    whole = kernel(np.arange(len(codes)), np.arange(len(codes))).astype(float)
    found, effect = test(layout, kernel, np.arange(len(codes)))
    values = [plain(whole, sizes, set(chosen)) for chosen in every_assignment(sizes)]
    seen = plain(whole, sizes, set(np.flatnonzero(layout.current)))
    assert found.exact and sorted(found.null) == pytest.approx(sorted(values), abs=1e-6)
    assert found.statistic == pytest.approx(seen, abs=1e-6) and effect.mean == pytest.approx(seen, abs=1e-6)
    assert found.p == pytest.approx(np.mean(np.array(values) >= seen - 1e-6))


def test_drawn_permutations_come_close_to_all_of_them(monkeypatch):
    generator = np.random.default_rng(0)
    layout, value = layout_of(*[(1, 1)] * 12), generator.normal(0.4, 1, 24)
    exact = mean_test(layout, value)
    monkeypatch.setattr(drift, "permuted", lambda *args, **options: permuted(*args, **options, exact=1))
    drawn = mean_test(layout, value)
    assert exact.exact and not drawn.exact
    assert drawn.p == pytest.approx(exact.p, abs=0.02) and 0.05 < exact.p < 0.95


def test_hamming_counts_equal_places_and_equal_ends():
    kernel = hamming(np.array([[1, 2, 3, -1], [1, 5, 3, -1], [9, 2, 3, 4]]))
    assert kernel(np.array([0]), np.array([0, 1, 2])).tolist() == [[1.0, 0.75, 0.5]]


def test_energy_distance_of_two_points_is_twice_their_gap():
    vectors = np.array([[0.0, 0.0], [0.0, 0.0], [3.0, 4.0], [3.0, 4.0]])
    found, _ = within_test(layout_of((2, 2)), energy(vectors), np.array([0, 0, 1, 1]))
    assert found.statistic == pytest.approx(10.0)
    assert found.p == pytest.approx(2 / 6), "of six assignments this and its mirror are as far apart"


def test_ks_is_the_largest_gap_and_its_p_that_of_all_assignments():
    test, effect = ks_test(layout_of((1, 1), (1, 1), (1, 1)), np.array([1.0, 5, 2, 6, 3, 7]))
    assert test.statistic == effect.mean == pytest.approx(1.0)
    assert test.exact and test.p == pytest.approx(2 / 8), "only all three, or none of them, swapped are as far"


def test_psi_of_a_half_that_becomes_nine_tenths():
    before, after = np.array([[0.5, 0.5]]), np.array([[0.9, 0.1]])
    b, a = (99 * 0.5 + 0.5) / 100, (99 * 0.9 + 0.5) / 100
    expected = (a - b) * np.log(a / b) + (b - a) * np.log((1 - a) / (1 - b))
    assert psi(before, after, 99)[0] == pytest.approx(expected)
    assert psi(before, before, 99)[0] == 0


def test_psi_by_chance_grows_with_categories_and_shrinks_with_prompts():
    generator = np.random.default_rng(1)

    def by_chance(prompts):
        test, _ = psi_test(layout_of(*[(1, 1)] * prompts), generator.integers(0, 4, 2 * prompts))
        return float(np.mean(test.null))

    few, many = by_chance(50), by_chance(400)
    assert few == pytest.approx(3 * 2 / 50, rel=0.35) and many == pytest.approx(3 * 2 / 400, rel=0.35)


def test_a_rate_without_a_single_change_is_not_known_to_be_unchanged():
    assert zero_bound(29) < 0.1 < zero_bound(28)  # .05^(1/28) = .8985
    wide, tost = change(np.zeros(20), rate=True)
    assert tost.high == -tost.low == pytest.approx(1 - 0.05 ** (1 / 20)) and wide.high > tost.high
    plain, _ = change(np.zeros(20))
    assert plain.low == plain.high == 0


def test_the_tost_interval_is_that_of_ninety_per_cent():
    _, tost = change(np.array([1.0, -1.0, 1.0, -1.0, 0.0]))
    assert tost.high == pytest.approx(2.131847 * 1 / 5**0.5, rel=1e-5)  # t(.95, 4) sd / sqrt n, sd = 1


def test_above_is_a_one_sided_t_test():
    assert above(np.array([1.0, 2.0, 3.0]), 2.0) == pytest.approx(0.5)
    assert above(np.array([0.2, 0.2]), 0.1) == 0 and above(np.array([0.1, 0.1]), 0.1) == 1
    assert above(np.array([5.0]), 0.1) == 1


def test_what_is_detectable_shrinks_with_the_root_of_the_prompts():
    generator = np.random.default_rng(0)

    def detectable(prompts):
        test = mean_test(layout_of(*[(1, 1)] * prompts), generator.normal(0, 1, 2 * prompts))
        return test.detectable(0.05)

    # (1.96 + .84) sqrt(2) / sqrt n
    assert detectable(50) == pytest.approx(2.8 * 2**0.5 / 50**0.5, rel=0.2)
    assert detectable(400) == pytest.approx(2.8 * 2**0.5 / 400**0.5, rel=0.2)


def test_equal_answers_are_no_difference_at_all():
    layout, text = layout_of((1, 1), (1, 1), (1, 1)), np.array([0, 0, 1, 1, 2, 2])
    test, effect = over_test(layout, hamming(text[:, None]), text)
    assert (test.statistic, test.p, test.z, effect.high) == (0, 1, 0, 0)


def test_false_alarms_come_as_often_as_the_level_says():
    generator, layout = np.random.default_rng(5), layout_of(*[(1, 1)] * 10)
    found = [mean_test(layout, generator.normal(0, 1, 20)).p for _ in range(200)]
    assert 3 <= sum(p <= 0.05 for p in found) <= 20, "10 of 200 expected"
