"""Over-optimisation: the estimator against every draw there is, fits that find what was put in, no made-up peaks."""

from itertools import combinations
from math import inf, log

import numpy as np
import pytest

from rlhflab.analysis.overoptimisation import (
    REACH,
    Coefficients,
    Series,
    Way,
    best_of_n_kl,
    best_of_n_way,
    change,
    dose_response,
    fit_coefficients,
    fit_gain,
    highest,
    parting,
)
from rlhflab.core.stats import paired_change
from rlhflab.errors import DataError

DISTANCE = np.linspace(0, 2, 9)
SHAPE = {"best-of-n": lambda d, a, b: d * (a - b * d), "rl": lambda d, a, b: d * (a - b * np.log(np.maximum(d, 1e-12)))}


def series(table):
    table = np.asarray(table, dtype=float)
    return Series(total=table, count=np.ones_like(table))


def way(gains, *, form="rl", distance=DISTANCE):
    table = np.asarray(gains, dtype=float)
    kl = series(np.ones((len(table), 1)) * distance**2)
    return Way(form=form, places=tuple(map(str, range(len(distance)))), kl=kl, series={"gold": series(table)})


def test_best_of_n_is_the_mean_over_all_draws_for_every_prompt_and_size():
    draw = np.random.default_rng(0)
    proxy, gold = (draw.normal(size=(8, 8)).tolist() for _ in range(2))
    found = best_of_n_way({"proxy": proxy, "gold": gold}, proxy="proxy")
    assert found.places == ("1", "2", "4", "8")
    for i, n in enumerate((1, 2, 4, 8)):
        for prompt in range(8):
            draws = [max(each, key=lambda k: proxy[prompt][k]) for each in combinations(range(8), n)]
            by_hand = np.mean([gold[prompt][k] for k in draws])
            assert found.series["gold"].total[prompt, i] == pytest.approx(by_hand)


def test_the_bound_of_kl_is_that_of_the_published_table():
    assert [round(best_of_n_kl(n), 2) for n in (1, 4, 16, 64, 256)] == [0, 0.64, 1.84, 3.17, 4.55]


@pytest.mark.parametrize("form", ["best-of-n", "rl"])
def test_a_fit_finds_the_coefficients_of_a_curve_without_noise_and_its_peak(form):
    a, b = 1.0, 0.5
    found = fit_coefficients(DISTANCE, SHAPE[form](DISTANCE, a, b), form=form)
    assert (float(found.a), float(found.b)) == pytest.approx((a, b))
    peak, gain = highest(found, 4.0, form=form)
    # best of n: a / 2b = 1 and a^2 / 4b = .5; RL: exp(a/b - 1) = e and b e.
    assert (float(peak), float(gain)) == pytest.approx({"best-of-n": (1.0, 0.5), "rl": (np.e, 0.5 * np.e)}[form])


@pytest.mark.parametrize("form", ["best-of-n", "rl"])
@pytest.mark.parametrize(("a", "b", "distance"), [
    (1.0, -0.1, inf),  # b <= 0 rises for ever
    (1.0, 0.0, inf),
    (-1.0, -0.01, 0.0),  # falls from the start, and is not back within reach
    (1.0, 0.05, inf),  # its peak is far beyond what was measured
])
def test_a_curve_without_a_peak_within_reach_gets_none(form, a, b, distance):
    assert float(highest(Coefficients(np.array(a), np.array(b)), 3.0, form=form)[0]) == distance


def test_the_form_of_rl_falls_from_the_start_only_after_a_tiny_rise():
    peak, gain = highest(Coefficients(np.array(-1.0), np.array(0.3)), 3.0, form="rl")
    assert 0 < float(peak) < 0.02 and float(gain) < 0.01


@pytest.mark.parametrize("form", ["best-of-n", "rl"])
def test_intervals_cover_what_was_put_in_about_as_often_as_they_say(form):
    draw = np.random.default_rng(1)
    a, b, covered = 1.0, 0.45, np.zeros(2)
    for seed in range(60):
        of_prompt = draw.normal(0, 0.3, (24, 1)) * DISTANCE
        noisy = SHAPE[form](DISTANCE, a, b) + of_prompt + draw.normal(0, 0.3, (24, len(DISTANCE)))
        fit = fit_gain(way(noisy, form=form), "gold", seed=seed, draws=200)
        covered += [fit.a.low <= a <= fit.a.high, fit.b.low <= b <= fit.b.high]
    assert (covered / 60 >= 0.83).all(), covered / 60


def test_a_rising_curve_has_no_peak_and_an_endless_bound_where_some_draws_have_none():
    draw = np.random.default_rng(0)
    rising = fit_gain(way(DISTANCE + draw.normal(0, 0.05, (16, 9))), "gold")
    assert rising.peak is None and rising.peaked < 0.2
    flat = fit_gain(way(SHAPE["rl"](DISTANCE, 1.0, 0.6) + draw.normal(0, 0.6, (16, 9))), "gold")
    assert flat.peak is not None and flat.peak.high == inf and 0.5 < flat.peaked < 0.975
    assert flat.reach == pytest.approx(2 * REACH) and np.isfinite(flat.best.high)


def test_one_prompt_alone_has_a_fit_and_no_interval():
    fit = fit_gain(way([SHAPE["rl"](DISTANCE, 1.0, 0.9)]), "gold")
    assert fit.a.mean == pytest.approx(1.0) and fit.a.high == inf and fit.peaked is None


def test_fits_of_a_seed_are_the_same_twice():
    table = np.random.default_rng(0).normal(size=(10, 9))
    assert fit_gain(way(table), "gold", seed=3) == fit_gain(way(table), "gold", seed=3)


def test_a_change_on_the_same_prompts_is_the_paired_one():
    table = np.random.default_rng(0).normal(size=(12, 3))
    assert change(series(table), 2, 1) == pytest.approx(paired_change(table[:, 2].tolist(), table[:, 1].tolist()))


def test_answers_of_one_prompt_count_as_one_cluster_and_other_prompts_are_not_paired():
    # Place 0 has prompts 0, 1; place 1 has prompts 1, 2, the latter twice.
    found = Series.of([1.0, 3.0, 5.0, 7.0, 9.0], [0, 1, 1, 2, 2], [0, 0, 1, 1, 1], shape=(3, 2))
    assert found.total.tolist() == [[1, 0], [3, 5], [0, 16]] and found.count.tolist() == [[1, 0], [1, 1], [0, 2]]
    assert change(found, 1).mean == 5.0 and change(found, 1).n == 3
    assert found.means(np.array([[1.0, 0, 0], [0, 1, 2]])).tolist()[1] == [3.0, 37 / 5]
    assert np.isnan(found.means(np.array([[1.0, 0, 0]]))[0, 1])


def test_the_two_part_where_one_has_fallen_for_sure_while_the_other_is_up():
    wobble = np.tile([[0.01], [-0.01]], (8, 1)) * [0, 1, -1, 1, -1, 1]
    gold = series(np.array([0.5, 0.6, 0.7, 0.69, 0.5, 0.4]) + wobble)
    proxy = series(np.array([0.0, 0.2, 0.4, 0.6, 0.8, 1.0]) + wobble)
    found = parting(proxy, gold)
    # Place 3 has fallen by .01, which is sure neither there nor, against the best at 2, wide enough; 4 and 5 have.
    assert (found.best, found.seen) == (2, 4)
    assert found.proxy.mean == pytest.approx(0.8) and found.against.mean == pytest.approx(-0.2)
    assert parting(series(-proxy.total), gold) is None, "a reward that falls as well has not parted from it"
    assert parting(Series(total=proxy.total[:, :5], count=proxy.count[:, :5]),
                   Series(total=gold.total[:, :5], count=gold.count[:, :5])) is None, "the last place is alone"
    dip = series(np.array([0.5, 0.6, 0.7, 0.4, 0.71, 0.72]) + wobble)
    assert parting(proxy, dip) is None, "nor is one that the next takes back"


def test_noise_around_a_level_is_rarely_a_parting():
    draw = np.random.default_rng(0)
    up = np.linspace(0, 1, 8)
    alarms = sum(parting(series(up + draw.normal(0, 0.3, (24, 8))), series(draw.normal(0, 0.3, (24, 8)))) is not None
                 for _ in range(100))
    assert alarms <= 5


def test_a_dose_that_works_shows_a_slope_and_one_that_does_not_shows_none():
    draw = np.random.default_rng(0)
    falling = dose_response({dose: (-0.2 * dose + draw.normal(0, 0.1, 24)).tolist() for dose in (0.0, 0.5, 1.0, 1.5)})
    assert falling.falls < 0.001 < 0.9 < falling.rises
    assert falling.slope.low < -0.2 < falling.slope.high < 0 and list(falling.gains) == [0, 0.5, 1, 1.5]
    level = dose_response({dose: draw.normal(0, 0.1, 24).tolist() for dose in (0.0, 0.5, 1.0)})
    assert min(level.falls, level.rises) > 0.01


@pytest.mark.parametrize(("call", "sentence"), [
    (lambda: best_of_n_way({"r": [[1.0, 2.0] * 4] * 3}, proxy="r"), "at least 8 prompts, found 3"),
    (lambda: best_of_n_way({"r": [[1.0, 2.0]] * 9}, proxy="r"), "a prompt has 2 answers; a curve needs at least 8"),
    (lambda: best_of_n_way({"r": [[1.5] * 8] * 9}, proxy="r"), "r: is 1.5 for every one of 72 answers"),
    (lambda: best_of_n_way({"r": [[1.0, float("nan")] * 4] * 9}, proxy="r"), "r: holds nan; every score"),
    (lambda: fit_gain(way(np.ones((9, 3)), distance=np.array([0, 1, 1])), "gold"), "measured at 1 distances"),
    (lambda: fit_gain(way(np.ones((3, 9))), "gold"), "at least 8 prompts, found 3"),
    (lambda: dose_response({0.0: [1.0] * 9, 1.0: [1.0] * 9}), "found 2 doses; a trend needs at least 3"),
    (lambda: dose_response({0.0: [1.0] * 9, 1.0: [1.0] * 9, 2.0: [1.0] * 8}), "doses have 8, 9 prompts"),
])
def test_what_cannot_be_used_is_said_with_what_is_needed(call, sentence):
    with pytest.raises(DataError, match=sentence):
        call()


def test_ln_n_less_a_share_is_what_the_bound_says():
    assert best_of_n_kl(2) == pytest.approx(log(2) - 0.5)
