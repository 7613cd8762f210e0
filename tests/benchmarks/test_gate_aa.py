"""`benchmarks/gate_aa.py`: drawn pairs have the discordance and the loss they are to have, and gates are counted."""

import importlib
import sys
from pathlib import Path

import numpy as np
import pytest

from rlhflab.suites import PolicyRow

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))
gate_aa = importlib.import_module("gate_aa")
ROW = {"suite": "s", "metric": "m", "margin": 0.1, "discordance": 0.15}


@pytest.mark.parametrize("better", ["higher", "lower"])
@pytest.mark.parametrize("loss", [0.0, 0.1])
def test_drawn_rates_differ_as_often_and_lose_as_much_as_asked(better, loss):
    pairs = gate_aa.drawn(PolicyRow(**ROW), 40_000, loss, better, np.random.default_rng(0))
    change = np.subtract(pairs.after, pairs.before)
    assert (change**2).mean() == pytest.approx(0.15, abs=0.01)
    assert change.mean() == pytest.approx(-loss if better == "higher" else loss, abs=0.01)


def test_drawn_numbers_have_a_relative_change():
    pairs = gate_aa.drawn(PolicyRow(**ROW, relative=True), 40_000, 0.2, "lower", np.random.default_rng(0))
    assert np.mean(pairs.after) / np.mean(pairs.before) == pytest.approx(1.2, abs=0.01)


def test_equal_candidates_pass_and_one_bad_row_is_enough_to_be_kept_out():
    found = gate_aa.simulated("demo.yaml", 6)
    assert found["equal_pass"] >= 5 / 6 and found["one_bad_row_pass"] == 0 and found["gates"] == 6
