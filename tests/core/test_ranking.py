"""Win rates at equal length and Bradley-Terry strengths, on numbers worked by hand."""

import math

import pytest

from rlhflab.core.ranking import bradley_terry, win_rate


def test_a_side_that_wins_only_by_length_wins_half_at_equal_length() -> None:
    # Longer by 5: 3 of 4 won; shorter by 5: 1 of 4. logit(3/4) = log 3 = phi tanh(1), and theta is 0.
    wins, longer = [1.0, 1.0, 1.0, 0.0, 1.0, 0.0, 0.0, 0.0], [5.0] * 4 + [-5.0] * 4
    found = win_rate(wins, longer, range(8))
    assert found.raw.mean == 0.5 and found.controlled.mean == pytest.approx(0.5, abs=1e-6)
    assert found.phi == pytest.approx(math.log(3) / math.tanh(1), rel=1e-2)


def test_length_control_takes_off_what_length_gave() -> None:
    # Always longer in the won half: at equal length, logit P = theta, between logit(3/4) and logit(1/4).
    wins, longer = [1.0, 1.0, 1.0, 0.0, 1.0, 1.0, 0.0, 0.0], [4.0] * 4 + [0.0] * 4
    found = win_rate(wins, longer, range(8))
    assert found.raw.mean == 5 / 8 and found.controlled.mean == pytest.approx(0.5, abs=1e-3)
    assert found.controlled.low < 0.5 < found.controlled.high


def test_without_a_difference_of_length_the_two_rates_are_one() -> None:
    found = win_rate([1.0, 1.0, 1.0, 0.0], [0.0] * 4, "abcd")
    assert found.controlled.mean == pytest.approx(0.75, abs=1e-3) and found.phi == pytest.approx(0, abs=1e-9)


def test_three_wins_of_four_are_a_gap_of_log_three() -> None:
    ranks = bradley_terry(["a", "b"], [(0, 1, 1.0), (0, 1, 1.0), (1, 0, 0.0), (0, 1, 0.0)], range(4))
    assert [rank.name for rank in ranks] == ["a", "b"]
    assert ranks[0].elo.mean - ranks[1].elo.mean == pytest.approx(400 * math.log10(3), rel=1e-2)
    assert ranks[0].elo.n == 4 and (ranks[0].best, ranks[1].worst) == (1, 2)


def test_only_ties_give_equal_strengths_and_a_chain_is_ordered() -> None:
    assert {rank.elo.mean for rank in bradley_terry("ab", [(0, 1, 0.5)] * 4, range(4))} == {0.0}
    chain = bradley_terry("abc", [(1, 0, 1.0), (2, 1, 1.0)] * 20, range(40))
    assert [rank.name for rank in chain] == ["c", "b", "a"] and chain[0].best == chain[0].worst == 1


def test_nothing_to_rank_by_is_an_error() -> None:
    with pytest.raises(ValueError, match="no comparisons"):
        bradley_terry("ab", [], [])
