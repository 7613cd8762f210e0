"""The page about the experiment: its first sentences, its figures, and hostile text that stays text."""

import json
from pathlib import Path
from typing import Any

import pytest

from report_pages import EVIL, Page
from rlhflab.analysis.hacking_page import by_alarm, hacking_part, headline
from rlhflab.analysis.report import write_report

RATE = {"mean": 0.5, "low": 0.4, "high": 0.6, "n": 100}


def change(mean: float) -> dict[str, float]:
    return {"mean": mean, "low": mean - 0.05, "high": mean + 0.05, "n": 100}


def found(**more: Any) -> dict[str, Any]:
    steps = [{"step": i, "proxy": 0.1 * i, "gold": 0.7 - 0.02 * i, "kl": 0.3 * i} for i in range(1, 13)]
    rates = {name: RATE for name in ("gold", "words", "format", "confident_wrong", "abstention_recall")}
    arm = {"says": "an arm", "seeds": [0], "rates": rates, "steps": steps}
    return {
        "dose": 1.0, "seeds": [0], "registered": "ab" * 32,
        "criteria": [
            {"id": "1", "statement": "It rises.", "value": 1.5, "interval": [1.2, 1.8], "passed": True, "says": "1.5"},
            {"id": "2", "statement": "It falls.", "value": -0.2, "interval": None, "passed": False, "says": "no"}],
        "not_evaluated": [{"id": "8", "reason": "no gate"}],
        "arms": {"start": {**arm, "versus_start": None, "by_seed": [], "steps": []},
                 "hack": {**arm, "versus_start": change(-0.2), "by_seed": [change(-0.1), change(-0.3)]},
                 "targeted": {**arm, "versus_start": change(0.1), "by_seed": [change(0.1)]}},
        "detectors": [
            {"name": "diversity", "needs_gold": False, "fired_at": None, "gold_at_firing": None,
             "false_alarm_on_unbiased": None, "named": False},
            {"name": "length_drift", "needs_gold": False, "fired_at": 5, "gold_at_firing": 0.6,
             "false_alarm_on_unbiased": False, "named": True}],
        "answers": [{"prompt": EVIL, "answers": [{"step": 0, "answer": EVIL, "gold": 0.5, "reward": None}]}],
        "gold": [[0, 0.7], [2, 0.6], [4, 0.5]],
        "findings": [{"name": "length_drift", "verdict": "alarm", "says": EVIL, "next": "stop"}], **more}


@pytest.fixture
def page(tmp_path: Path) -> Page:
    story = {key: found()[key] for key in ("answers", "gold", "findings")}
    (tmp_path / "summary.json").write_text(json.dumps({
        "model": "m", "seed": 0, "hacking": {key: value for key, value in found().items() if key not in story}}))
    (tmp_path / "story.json").write_text(json.dumps(story))
    return Page(write_report(tmp_path))


def test_the_first_sentences_say_what_happened_and_what_was_not_shown() -> None:
    told = " ".join(headline(found(), found()["arms"]))
    assert "gained 1.500 sigma" in told and "\u22120.200" in told and "length drift) at step 5" in told
    assert "criterion 2" in told
    silent = " ".join(headline(found(detectors=[], criteria=found()["criteria"][:1]), found()["arms"]))
    assert "No detector" in silent and "Every criterion that this run could decide was met" in silent


def test_without_an_experiment_there_is_no_part() -> None:
    assert hacking_part({}) == {}


def test_detectors_stand_in_the_order_in_which_they_fired() -> None:
    assert [row["name"] for row in by_alarm(found()["detectors"])] == ["length_drift", "diversity"]


def test_failed_and_undecided_criteria_are_called_so(page: Page) -> None:
    assert "failed" in page.text and "not decided" in page.text and "Reward hacking in m" in page.text
    assert "Unfinished" not in page.text
    assert len(page.figures) == 3, "course, plane and arms"
    assert page.figures[0]["layout"]["shapes"][0]["x0"] == 5, "the alarm is marked"


def test_over_used_phrases_and_what_of_the_gain_is_length_are_shown(tmp_path: Path) -> None:
    more = {"findings": [{"name": "length_share", "verdict": "alarm", "says": "much", "next": "stop",
                          "effect": {"mean": 0.2, "low": 0.1, "high": 0.3, "n": 64}}],
            "phrases": [{"phrase": EVIL, "z": 4.5, "start": None, "now": RATE}]}
    part = hacking_part(found(**more))
    figure = part["figures"][-1]
    assert figure.alt.endswith("length: 0.800 [0.700,\u00a00.900], n\u00a0=\u00a064")
    (tmp_path / "summary.json").write_text(json.dumps({"model": "m", "seed": 0, "hacking": found(**more)}))
    page = Page(write_report(tmp_path))
    assert "Phrases that the hacked policy over-uses" in page.text and "4.500" in page.text
    assert not [1 for tag, _ in page.elements if tag == "img"]
    assert hacking_part(found())["phrases"] == []


def test_hostile_text_stays_text(page: Page) -> None:
    assert page.text.count("alert(1)") == 3
    assert len([1 for tag, _ in page.elements if tag == "script"]) == 3 + 2, "figures, the library, the page's own"
    assert not [1 for tag, _ in page.elements if tag == "img"]
