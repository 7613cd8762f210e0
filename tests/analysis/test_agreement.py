"""The record of annotators: counted by hand, on real votes, and a page on which names stay text."""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from conftest import SHARED
from report_pages import EVIL, Page
from rlhflab.analysis.agreement import advice, agreement_record, gathered, judge_labels
from rlhflab.analysis.agreement_page import main_table, write_agreement_page
from rlhflab.core.calibration import flip_rate
from rlhflab.data.types import Comparison, Judged, Judgment, Message, Prompt

LLMFAO = SHARED / "data" / "preferences" / "llmfao" / "pairs.jsonl"


def judged(number: int, said: dict[str, str], *, a: str = "short", b: str = "rather longer", **more: Any) -> Judged:
    prompt = Prompt(id=str(number), messages=(Message(role="user", content=f"question {number}"),))
    return Judged(comparison=Comparison(prompt=prompt, a=a, b=b), judgments=tuple(
        Judgment(verdict=verdict, annotator=name, **more) for name, verdict in said.items()))  # type: ignore[arg-type]


def rows_of_llmfao() -> Iterator[Judged]:
    """Every vote, those on an empty answer too."""
    for number, line in enumerate(LLMFAO.read_text(encoding="utf-8").splitlines()):
        row = json.loads(line)
        said = {f"worker-{worker}": vote for worker, vote in row["meta"]["workers"]}
        whole = judged(number, said, a=row["response_a"], b=row["response_b"])
        prompt = Prompt(id=row["id"], messages=(Message(role="user", content=row["prompt"]),))
        yield replace(whole, comparison=replace(whole.comparison, prompt=prompt), meta={"gpt4": row["meta"]["gpt4"]})


@pytest.mark.skipif(not LLMFAO.is_file(), reason="the real votes are not beside this checkout")
def test_on_real_votes_alpha_and_a_judge_are_what_they_are_known_to_be() -> None:
    found = agreement_record(list(rows_of_llmfao()), judges=["gpt4"])
    assert (found["opinions"], len(found["annotators"]), found["comparisons"]) == (8931, 124, 2139)
    assert found["agreement"]["alpha_nominal"]["mean"] == pytest.approx(0.291, abs=5e-4)
    judge = found["judges"]["gpt4"]["agreement"]
    assert judge["mean"] == pytest.approx(0.719, abs=5e-4) and judge["n"] == 1237
    assert found["noise"]["flipped"]["mean"] == pytest.approx(0.183, abs=5e-4)
    assert abs(found["noise"]["flipped_dawid_skene"]["mean"] - found["noise"]["flipped"]["mean"]) < 0.01
    assert "--loss.name robust --loss.label_noise 0.18" in found["advice"][-1]


def test_flips_come_from_opinions_that_take_a_side_and_the_ceiling_with_them() -> None:
    # Of pairs with a side: 9 agree, 3 do not; ties and skips have none.
    rows = [*(judged(i, {"x": "a", "y": "a", "z": "tie"}) for i in range(9)),
            *(judged(i, {"x": "a", "y": "b", "z": "skip"}) for i in range(9, 12))]
    found = agreement_record(rows)
    assert found["noise"]["agreement_on_sides"]["mean"] == pytest.approx(0.75)
    assert found["noise"]["flipped"]["mean"] == pytest.approx((1 - 0.5**0.5) / 2)
    assert found["noise"]["noise_ceiling"]["accuracy"] == pytest.approx(1 - (1 - 0.5**0.5) / 2)
    assert found["noise"]["flipped"]["low"] <= found["noise"]["flipped"]["mean"] <= found["noise"]["flipped"]["high"]
    assert found["verdicts"] == {"a": 21, "tie": 9, "b": 3} and found["skipped"] == 3


def test_habits_are_counted_where_they_can_be_seen() -> None:
    rows = [judged(1, {"x": "b"}, shown_first="b", seconds=10.0), judged(2, {"x": "a"}, shown_first="b", seconds=30.0),
            judged(3, {"x": "b"}), judged(4, {"x": "tie"}, shown_first="a"), judged(5, {"x": "a"}, a="same", b="long")]
    (row,) = agreement_record(rows)["annotators"]
    assert (row["first_preferred"]["mean"], row["first_preferred"]["n"]) == (0.5, 2), "ties take no side"
    assert (row["longer_preferred"]["mean"], row["longer_preferred"]["n"]) == (pytest.approx(2 / 3), 3)
    assert (row["seconds"]["median"], row["seconds"]["n"]) == (20.0, 2)
    assert row["reliability"] is None, "nobody else judged these"


def test_of_one_annotator_the_last_word_counts_and_nameless_opinions_all_count() -> None:
    corrected = judged(1, {"x": "a"})
    corrected = Judged(comparison=corrected.comparison, judgments=(
        *corrected.judgments, Judgment(verdict="b", annotator="x"), Judgment(verdict="b", annotator=""),
        Judgment(verdict="b", annotator="")))
    found = agreement_record([corrected])
    assert found["verdicts"] == {"a": 0, "b": 3} and found["agreement"]["raw"]["mean"] == 1


def test_rows_of_one_judgment_on_the_same_answers_are_one_comparison() -> None:
    one, other = judged(1, {"x": "a"}, a="p", b="q"), judged(1, {"y": "a"}, a="q", b="p", shown_first="a")
    (together,) = gathered([one, other])
    assert [(j.annotator, j.verdict, j.shown_first) for j in together.judgments] == [("x", "a", None), ("y", "b", "b")]
    several = judged(1, {"x": "a", "z": "tie"}, a="p", b="q")
    assert gathered([several, several, one, judged(2, {"y": "b"}, a="p", b="q")])[:2] == [several, several]
    assert agreement_record(gathered([one, other]))["agreement"]["raw"]["mean"] == 0, "q was better, says the other"


def test_strengths_bring_the_interval_alpha_and_a_third_verdict_the_ordinal_one() -> None:
    rows = [judged(i, {"x": "a" if i % 2 else "b", "y": "a" if i % 3 else "b"}) for i in range(12)]
    assert agreement_record(rows)["agreement"]["alpha_interval"] is None
    assert agreement_record(rows)["agreement"]["alpha_ordinal"] is None
    more = [*rows, judged(12, {"x": "tie", "y": "a"}, strength=0.5)]
    assert None not in agreement_record(more)["agreement"].values()


def test_a_judge_is_measured_where_people_and_it_take_a_side() -> None:
    rows = [judged(1, {"x": "a", "gpt": "a"}), judged(2, {"x": "a", "gpt": "b"}), judged(3, {"x": "tie", "gpt": "b"}),
            judged(4, {"x": "a", "gpt": "tie"}), judged(5, {"x": "b"})]
    assert [labels[1:] for labels in judge_labels(rows, "gpt")] == [("a", "a"), ("a", "b")]
    told = [replace(each, judgments=each.judgments[:1], meta={"gpt": each.judgments[-1].verdict}) for each in rows[:4]]
    assert judge_labels(told, "gpt") == judge_labels(rows, "gpt"), "a verdict may stand in meta"
    found = agreement_record(rows, judges=["gpt"])
    assert found["judges"]["gpt"]["agreement"]["mean"] == 0.5 and len(found["annotators"]) == 1
    assert found["opinions"] == 5, "a judge is not one of the people"


def test_what_to_do_next_follows_from_the_noise() -> None:
    alone = agreement_record([judged(1, {"x": "a"})])
    assert "judged by two people" in alone["advice"][0]
    even = agreement_record([judged(i, {"x": "a", "y": "ab"[i % 2]}) for i in range(8)])
    assert "no loss learns" in even["advice"][-1] and even["noise"]["flipped"]["mean"] == 0.5
    sure = agreement_record([judged(i, {"x": "a", "y": "a"}) for i in range(8)])
    assert "no noise" in sure["advice"][-1]
    assert flip_rate(0.82) == pytest.approx(0.1), "0.1^2 + 0.9^2 = 0.82"
    assert advice({"noise": {"flipped": None, "flipped_dawid_skene": None}}) == alone["advice"]


def test_names_and_verdicts_on_the_page_stay_text(tmp_path: Path) -> None:
    rows = [judged(i, {EVIL: "a", "y": "a" if i % 3 else "b", "judge": "a"}, seconds=3.0) for i in range(20)]
    record = {"data": EVIL, **agreement_record(rows, judges=["judge"])}
    page = Page(write_agreement_page(record, tmp_path / "agreement.html"))
    assert not [attributes for name, attributes in page.elements if name == "img"]
    assert page.text.count(EVIL) >= 3 and "Flipped labels" in page.text and "judge beside people" in page.text
    assert len(page.figures) == 1 and len(page.figures[0]["data"]) == 2
    words = [row["what"] for row in main_table(record)]
    assert "Krippendorff's alpha, nominal" in words and "judge: with the majority of people" in words
