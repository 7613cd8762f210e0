"""The steered KL coefficient, worked by hand."""

import pytest

from rlhflab.train.kl import KlCoefficient


@pytest.mark.parametrize(("kl", "expected"), [
    (6.6, 0.15 * (1 + 0.1 * 512 / 10_000)),  # a tenth above the target
    (60.0, 0.15 * (1 + 0.2 * 512 / 10_000)),  # far above: at most .2
    (0.0, 0.15 * (1 - 0.2 * 512 / 10_000)),
    (6.0, 0.15)])
def test_the_coefficient_follows_the_clipped_error(kl: float, expected: float) -> None:
    coefficient = KlCoefficient(0.15, target=6.0, horizon=10_000)
    coefficient.update(kl, answers=512)
    assert coefficient.value == pytest.approx(expected)


def test_a_fixed_coefficient_stays() -> None:
    coefficient = KlCoefficient(0.15)
    coefficient.update(100.0, answers=512)
    assert coefficient.value == 0.15


def test_it_goes_on_where_it_was() -> None:
    before, after = KlCoefficient(0.15, target=6.0), KlCoefficient(0.15, target=6.0)
    before.update(20.0, answers=512)
    after.load_state_dict(before.state_dict())
    assert after.value == before.value != 0.15
