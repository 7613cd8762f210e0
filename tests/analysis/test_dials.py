"""The verdict on a dial: it moves one way, it stays, it keeps; each on answers whose measures are written by hand."""

import json
from pathlib import Path

import pytest

from rlhflab.analysis.dials import bounded, change, dial_result
from rlhflab.analysis.dials_page import dial_figure, verdict, write_dials_page

MARGINS, LOSSES = {"tone": 0.25, "verbosity": 3.0, "clarity": 0.15}, {"right": 0.1}


def rows(tone, words=10.0, right=1.0, clarity=0.5, n=40):
    """`tone` of every second prompt is .1 higher: a little spread."""
    return [{"prompt_id": f"p{i}", "prompt": [{"role": "user", "content": "<b>?</b>"}], "answer": "<i>8 pm</i>",
             "measures": {"tone": tone + 0.1 * (i % 2), "verbosity": words, "clarity": clarity,
                          "right": right if i % 4 else None}} for i in range(n)]


def result(**by_strength):
    return dial_result("tone", {float(name[1:]): each for name, each in by_strength.items()}, margins=MARGINS,
                       losses=LOSSES)


def test_a_dial_that_rises_and_changes_nothing_else_is_shown():
    found = result(s0=rows(-0.5), s1=rows(0.2), s2=rows(0.9))
    assert (found["moves"], found["stays"], found["keeps"]) == (True, True, True)
    assert found["end_to_end"]["mean"] == pytest.approx(1.4) and found["end_to_end"]["n"] == 40
    assert [step["change"]["mean"] for step in found["steps"]] == pytest.approx([0.7, 0.7])


def test_a_dial_that_falls_between_two_strengths_does_not_move_one_way():
    found = result(s0=rows(-0.5), s1=rows(0.9), s2=rows(0.4))
    assert found["end_to_end"]["low"] > 0 and not found["moves"]
    assert "it falls from 1 to 2" in verdict(found)


def test_a_dial_that_stands_still_is_not_shown_to_move():
    found = result(s0=rows(0.0), s1=rows(0.0))
    assert not found["moves"] and "not shown to move" in verdict(found)


def test_another_axis_that_leaves_its_margin_at_one_strength_is_named():
    found = result(s0=rows(0.0), s1=rows(0.5, words=14.0), s2=rows(1.0))
    row = next(row for row in found["bounds"] if row["measure"] == "verbosity")
    assert (row["holds"], row["outside_at"], found["stays"], found["keeps"]) == (False, [1.0], False, True)
    assert "Verbosity is not shown to stay within \u22123.000 to 3.000 at 1." in verdict(found)


def test_a_loss_counts_and_a_gain_does_not():
    assert result(s0=rows(0.0, right=0.0), s1=rows(1.0))["keeps"]
    assert not result(s0=rows(0.0), s1=rows(1.0, right=0.8))["keeps"]


def test_an_interval_that_reaches_over_the_margin_does_not_hold_although_its_mean_does():
    after = rows(0.0)
    for i, row in enumerate(after):
        row["measures"]["verbosity"] = 30.0 if i < 4 else 10.0
    found = bounded("verbosity", {0.0: rows(0.0), 1.0: after}, low=-3.0, high=3.0)
    assert change(after, rows(0.0), "verbosity").mean == 2.0 and not found["holds"]


def test_a_measure_is_compared_where_it_applies():
    assert change(rows(0.0), rows(0.0), "right").n == 30
    with pytest.raises(ValueError, match="no answer has the measure"):
        change(rows(0.0, n=1), rows(0.0, n=1), "right")


def test_the_page_draws_every_measure_and_keeps_answers_text(tmp_path: Path):
    found = result(s0=rows(-0.5), s1=rows(0.2))
    protocol = {"margins": MARGINS, "losses": LOSSES}
    drawn = json.loads(dial_figure(found, protocol).json)["data"]
    assert [trace["name"] for trace in drawn] == ["tone", "verbosity", "clarity", "right"]
    assert drawn[0]["y"] == pytest.approx([0.0, 2.8]) and drawn[0]["line"]["width"] > drawn[1]["line"]["width"]
    page = write_dials_page({"model": "m", "scenario": "helpdesk", "seed": 0, "quick": False, "protocol": protocol,
                             "axes": {"tone": found}, "examples": {"tone": [
                                 {"strength": 0, "prompt": "<b>?</b>", "answer": "<i>8 pm</i>"}]}},
                            tmp_path / "dials.html").read_text()
    assert "&lt;i&gt;8 pm&lt;/i&gt;" in page and "<i>8 pm" not in page and "It moves its axis one way" in page
