"""Length curves, temperatures and the noise ceiling, against hand-worked numbers and independent fits."""

import math

import numpy as np
import pytest
from scipy.optimize import brentq
from scipy.special import expit

from rlhflab.core.calibration import (
    accuracy_by_gap,
    calibrate,
    expected_calibration_error,
    fit_length_curve,
    fit_temperature,
    length_correlation,
    noise_ceiling,
    reliability,
)


def test_a_straight_line_is_its_own_length_curve_and_ends_where_the_data_ends() -> None:
    lengths = np.array([3.0, 5, 5, 8, 13, 21])
    curve = fit_length_curve(lengths, 2 - 0.5 * lengths)
    np.testing.assert_allclose(curve.at(lengths), 2 - 0.5 * lengths, atol=1e-9)
    np.testing.assert_allclose(curve.at(np.array([0.0, 100])), [2 - 1.5, 2 - 10.5], atol=1e-9)


def test_the_length_curve_is_a_tricube_weighted_line_at_each_knot() -> None:
    random = np.random.default_rng(0)
    lengths = random.integers(2, 60, 80).astype(float)
    scores = np.sqrt(lengths) + random.normal(0, 0.1, 80)
    curve = fit_length_curve(lengths, scores, share=0.5)
    knot = curve.lengths[7]
    distance = np.abs(lengths - knot)
    weight = np.clip(1 - (distance / np.sort(distance)[39]) ** 3, 0, None) ** 3
    slope, level = np.polyfit(lengths, scores, 1, w=np.sqrt(weight))  # polyfit squares its weights
    assert curve.scores[7] == pytest.approx(level + slope * knot, abs=1e-5)
    residual = scores - curve.at(lengths)
    assert abs(np.corrcoef(residual, lengths)[0, 1]) < 0.05 < 0.9 < np.corrcoef(scores, lengths)[0, 1]


def test_answers_of_one_length_are_only_centred() -> None:
    curve = fit_length_curve(np.full(4, 7.0), np.array([1.0, 2, 3, 6]))
    np.testing.assert_allclose(curve.at(np.array([1.0, 7, 9])), [3, 3, 3])


def test_the_temperature_is_where_the_likelihood_is_flat() -> None:
    gaps = np.array([1.0, 2.0, -0.5, 3.0, -1.0, 0.2])
    # d/ds of sum log sigmoid(s gap) = sum gap (1 - sigmoid(s gap)) is 0 at s = 1 / T
    sharpness = brentq(lambda s: float((gaps * (1 - expit(s * gaps))).sum()), 0.01, 10)
    assert fit_temperature(gaps) == pytest.approx(1 / sharpness, rel=1e-3)


def test_labels_drawn_at_a_temperature_give_it_back() -> None:
    random = np.random.default_rng(0)
    gap = random.normal(0, 3, 20_000)
    signed = np.where(random.random(20_000) < expit(gap / 2), gap, -gap)
    found = calibrate(signed, [i // 4 for i in range(20_000)])
    assert found.temperature == pytest.approx(2, rel=0.05)
    assert found.ece < 0.02 and found.n == 20_000
    assert found.brier == pytest.approx(float(np.mean((1 - expit(np.abs(gap) / 2)) * expit(np.abs(gap) / 2))), abs=0.01)


def test_the_errors_are_those_of_temperatures_from_other_prompts() -> None:
    # prompt p alone would be given a sharp temperature, q alone a flat one; each is judged by the other's
    gaps = np.array([1.0, 1.0, 1.0, -1.0])
    sharp, flat = fit_temperature(gaps[:2]), fit_temperature(gaps[2:])
    chosen = expit(np.array([1 / flat, 1 / flat, 1 / sharp, -1 / sharp]))
    assert calibrate(gaps, ["p", "p", "q", "q"]).brier == pytest.approx(float(((1 - chosen) ** 2).mean()))


def test_calibration_error_by_hand() -> None:
    # confidences .9 .9 (one right, one wrong) and .6 (right), all in bins of their own: (2 |.5 - .9| + |1 - .6|) / 3
    assert expected_calibration_error(np.array([0.9, 0.1, 0.6])) == pytest.approx((2 * 0.4 + 0.4) / 3)
    assert expected_calibration_error(np.array([0.5, 0.5])) == 0, "a coin that knows it is one"
    assert expected_calibration_error(np.array([1.0])) == 0


@pytest.mark.parametrize(("verdicts", "agreement"), [
    ([[True, True, True], [True, False]], 3 / 4),  # three equal pairs of three, none of one
    ([[True, False, False], [True]], 1 / 3),  # a comparison with one opinion says nothing
])
def test_the_noise_ceiling_by_hand(verdicts: list[list[bool]], agreement: float) -> None:
    ceiling = noise_ceiling([(i, verdict) for i, each in enumerate(verdicts) for verdict in each])
    assert ceiling is not None and ceiling.agreement == pytest.approx(agreement)
    flipped = (1 - math.sqrt(2 * agreement - 1)) / 2 if agreement > 0.5 else 0.5
    assert ceiling.accuracy == pytest.approx(1 - flipped)
    assert flipped == 0.5 or agreement == pytest.approx(flipped**2 + (1 - flipped) ** 2)


def test_one_opinion_each_gives_no_ceiling() -> None:
    assert noise_ceiling([("p", True), ("q", False)]) is None


def test_reliability_bins_hold_their_own_pairs_and_add_up_to_the_error() -> None:
    chosen = np.array([0.92, 0.95, 0.07, 0.65, 0.5])  # confidences .92, .95, .93 in one bin, .65, .5 in others
    even, unsure, sure = reliability(chosen, ["a", "b", "c", "d", "e"], bins=5)
    assert (even.confidence, even.accuracy.mean) == (0.5, 0.5), "an even chance is half right"
    assert (unsure.confidence, unsure.accuracy.mean, unsure.accuracy.n) == (0.65, 1.0, 1)
    assert sure.confidence == pytest.approx((0.92 + 0.95 + 0.93) / 3) and sure.accuracy.mean == pytest.approx(2 / 3)
    error = sum(each.accuracy.n * abs(each.accuracy.mean - each.confidence) for each in (even, unsure, sure)) / 5
    assert expected_calibration_error(chosen, bins=5) == pytest.approx(error)


def test_accuracy_by_gap_takes_equal_shares_by_distance() -> None:
    near, far = accuracy_by_gap(np.array([3.0, -0.1, 0.2, -4.0, 0.0, 2.0]), list("abcdef"), parts=2)
    assert (near.low, near.high, near.accuracy.mean) == (0.0, 0.2, 0.5), "one right, one wrong, one even"
    assert (far.low, far.high, far.accuracy.mean) == (2.0, 4.0, 2 / 3)


def test_correlation_with_length_raw_and_within_prompts() -> None:
    # within each prompt longer is worse; between prompts longer is better
    lengths, prompts = np.array([1.0, 2, 11, 12, 21, 22]), list("aabbcc")
    scores = np.array([1.0, 0, 11, 10, 21, 20])
    raw = length_correlation(scores, lengths, prompts, within=False)
    within = length_correlation(scores, lengths, prompts, within=True)
    assert raw is not None and within is not None
    assert raw.mean == pytest.approx(np.corrcoef(scores, lengths)[0, 1]) and raw.n == 6
    assert within.mean == pytest.approx(-1) and within.low == pytest.approx(-1) and within.high == pytest.approx(-1)
    assert length_correlation(np.ones(4), np.arange(4.0), list("aabb"), within=False) is None
    assert length_correlation(np.arange(4.0), np.arange(4.0), list("abcd"), within=True) is None, "one answer a prompt"


def test_the_interval_of_the_correlation_counts_prompts_and_not_answers() -> None:
    random = np.random.default_rng(1)
    x, y = random.normal(size=200), random.normal(size=200)
    alone = length_correlation(x, y, list(range(200)), within=False)
    copied = length_correlation(np.repeat(x, 4), np.repeat(y, 4), [i // 4 for i in range(800)], within=False)
    assert alone is not None and copied is not None
    half = 1.96 / 200**0.5
    assert alone.high - alone.low == pytest.approx(2 * half, rel=0.15)
    assert copied.high - copied.low == pytest.approx(alone.high - alone.low, rel=0.1)
