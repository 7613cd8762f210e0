"""`benchmarks/gate_aa.py`: drawn pairs have the discordance and the loss they are to have, and gates are counted."""

import importlib
import json
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


SUITE = """
name: mine
prompts: prompts.jsonl
answers: {max_new_tokens: 4}
metrics:
  words: {check: length, better: lower}
"""
POLICY = """
rows:
  - {suite: mine, metric: words, margin: 9, discordance: 0.1}
"""


def row_of(test: str, found: list[float | None]) -> dict:
    key = "change" if test == "no_new_failures" else "discordance"
    row = PolicyRow(**{**ROW, "test": test})
    return gate_aa.found_row(row, [{"discordance": 9.0, key: each, "n": 120, "blocking": True, "verdict": "pass"}
                                   for each in found])


def test_what_was_found_is_in_the_units_of_what_is_declared():
    rates = row_of("non_inferior", [0.2, None, 0.1])
    assert rates["found"] == [0.1, 0.2] and rates["passed"] == rates["gates"] == 3
    assert rates["needs"] == 316, "(1.645 + 2.326)^2 x .2 / .1^2 = 315.4"
    assert row_of("no_new_failures", [0.02, 0.0])["found"] == [0.0, 0.02]
    assert row_of("no_new_failures", [0.02])["needs"] is None


def test_seeds_are_trained_gated_both_ways_and_written_between_marks_and_a_second_run_does_nothing_again(
        tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("RLHFLAB_CACHE", str(tmp_path / "cache"))
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "suite.yaml").write_text(SUITE)
    (tmp_path / "mine" / "prompts.jsonl").write_text("".join(f'{{"prompt": "Say {i}."}}\n' for i in range(3)))
    (tmp_path / "policy.yaml").write_text(POLICY)
    page = tmp_path / "page.md"
    page.write_text("# Mine\n\n<!-- measured: adapters -->\nold\n<!-- end: adapters -->\nbelow\n")
    command = ["--policy", str(tmp_path / "policy.yaml"), "--train", "2", "--model", "tiny-llama", "--device", "cpu",
               "--out", str(tmp_path / "aa"), "--write", str(page), "--flags", "--examples", "4", "--steps", "1",
               "--batch", "2"]
    assert gate_aa.main(command) == 0
    [first] = json.loads(capsys.readouterr().out)
    assert first["gates"] == 2 and first["answers"] == 6 and first["equal_pass"] == 1
    text = page.read_text()
    assert "| mine: words | non_inferior | 9 | 0.1 |" in text and "old" not in text and text.endswith("below\n")
    monkeypatch.setattr("rlhflab.runs.gate.gate_with", None)
    monkeypatch.setattr("rlhflab.runs.stages.run_stage", None)
    assert gate_aa.main(command) == 0
    assert json.loads(capsys.readouterr().out) == [first]


def test_one_adapter_has_nothing_to_stand_against():
    with pytest.raises(SystemExit, match="two adapters or more"):
        gate_aa.main(["--train", "1"])
