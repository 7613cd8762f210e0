"""What the pages show and what a form becomes in the store. The browser itself is in test_judging_in_browser."""

import re
from dataclasses import replace

import pytest
from fastapi.testclient import TestClient

from annotation_stores import ALWAYS, item, judge_next, store_with
from rlhflab.app.annotate import (
    TAGS,
    Desk,
    agreement,
    annotation_app,
    opinion_of,
    remembered,
    shown,
    view,
    votes,
    words,
)
from rlhflab.app.server import Access
from rlhflab.data.judging import Assignment, Opinion, Plan, Said
from rlhflab.data.store import Store
from rlhflab.errors import DataError

BASE = "http://127.0.0.1"
HIDDEN = re.compile(r'name="(form_key|assignment|submission|judgment)" value="([^"]*)"')


def pages_of(store, *, adjudicators=("anna",), plan=ALWAYS):
    desk = Desk(store=store, annotators=("anna",), adjudicators=adjudicators, plan=plan, count_every=0)
    access = Access.of(("anna",), token=None, host="127.0.0.1")
    return TestClient(annotation_app(desk, access), base_url=BASE, headers={"Origin": BASE})


def form_on(page, **values):
    return {**dict(HIDDEN.findall(page.text)), **values}


def given(shown_first="b", b="wrong"):
    return Assignment(id=1, token="t", comparison_id=1, annotator="anna", purpose="judge", shown_first=shown_first,
                      state="open", item=item(b=b))


def said(verdict, *, shown_first="a", tags=(), purpose="judge"):
    return Said(id=1, comparison_id=1, assignment_id=1, annotator="ben", purpose=purpose, verdict=verdict, strength=1.0,
                tags=tags, reason="r", shown_first=shown_first, seconds=None, at=None, corrects=None, author="ben",
                why="")


def test_answers_are_shown_in_the_drawn_order():
    assert [answer.text for answer in shown(given("b"))["answers"]] == ["wrong", "right"]
    assert [answer.text for answer in shown(given("a"))["answers"]] == ["right", "wrong"]
    assert [answer.text for answer in shown(given(None, None))["answers"]] == ["right"]


def test_places_on_the_page_become_the_comparisons_own_answers():
    form = {"verdict": ["first"], "tags": ["first:verbose", "second:hallucination"], "strength": ["slightly"],
            "reason": [" because "], "seconds": ["12.34"]}
    assert opinion_of(given("b"), form) == Opinion(verdict="b", tags=("b:verbose", "a:hallucination"), strength=1 / 3,
                                                   reason="because", seconds=12.3)
    tie = opinion_of(given("b"), {"verdict": ["tie"], "strength": ["slightly"], "seconds": ["-1"]})
    assert (tie.verdict, tie.strength, tie.seconds) == ("tie", 1.0, None)
    thumb = opinion_of(given(None, None), {"verdict": ["bad"], "tags": ["only:verbose"]})
    assert (thumb.verdict, thumb.tags, thumb.seconds) == ("bad", ("verbose",), None)


@pytest.mark.parametrize("tag", ["first:other", "third:verbose", "verbose", ""])
def test_a_tag_that_no_page_offers_is_refused(tag):
    with pytest.raises(DataError, match="must be one of confident_wrong"):
        opinion_of(given(), {"verdict": ["first"], "tags": [tag]})


def test_what_others_said_is_told_by_what_the_adjudicator_sees():
    seen = view(said("a", tags=("a:verbose", "b:other", "plain")), "b")
    assert seen == ("answer 2", (f"answer 2: {TAGS['verbose']}", "answer 1: other", "plain"), "r")
    assert votes([said("b"), said("a"), said("b"), said("tie"), said("a", purpose="repeat")]) == "2 : 1, 1 equally good"
    assert words(said("a", shown_first="b")) == "answer 2 is better" and words(said("both_bad")) == "both bad"


def test_a_judgment_goes_from_page_to_store_and_the_next_one_comes(tmp_path):
    store = store_with(tmp_path, 2)
    pages = pages_of(store)
    first = pages.get("/")
    after = pages.post("/judge", data=form_on(first, verdict="second", strength="much", seconds="3"))
    assert "1 done by you, 1 waiting. Your last: answer 2 is better" not in first.text
    assert "Your last: answer 2 is better" in after.text and "Question 1?" in after.text
    (row,) = store.all_said()
    assert row.verdict == ("b" if row.shown_first == "a" else "a") and (row.strength, row.seconds) == (1.0, 3.0)


def test_a_form_that_is_sent_twice_is_one_judgment_and_a_stale_one_says_so(tmp_path):
    store = store_with(tmp_path, 2)
    pages = pages_of(store)
    form = form_on(pages.get("/"), verdict="tie")
    assert [pages.post("/judge", data=form).status_code for _ in range(2)] == [200, 200]
    assert store.counts()["judgments"] == 1
    stale = pages.post("/judge", data={**form, "submission": "0" * 32})
    assert stale.status_code == 409 and "you have judged this comparison already" in stale.text


def test_undo_takes_back_the_last_judgment_once_and_asks_it_again(tmp_path):
    store = store_with(tmp_path, 2)
    pages = pages_of(store)
    form = form_on(pages.post("/judge", data=form_on(pages.get("/"), verdict="tie")))
    assert "Question 0?" in pages.post("/undo", data=form).text
    pages.post("/undo", data=form)
    assert [(row.verdict, row.why) for row in store.all_said()] == [("tie", ""), (None, "undone by the annotator")]


def test_nobody_elses_judgment_can_be_undone(tmp_path):
    store = store_with(tmp_path, 2, overlap=2)
    other = judge_next(store, "ben")
    pages = pages_of(store)
    pages.post("/undo", data=form_on(pages.get("/"), judgment=str(other)))
    assert store.counts()["judgments"] == 1


def test_a_page_tells_nothing_of_sources_gold_and_other_judgments(tmp_path):
    store = Store.open(tmp_path / "s.sqlite")
    store.add([replace(item(0, gold="a"), source="mine.jsonl", meta={"suspect": "b"})])
    page = pages_of(store, plan=Plan(gold_every=1)).get("/").text
    assert "Question 0?" in page
    assert not re.search(r"gold|mine|p0|suspect|comparison_id", page)


def test_answers_are_text_that_cannot_become_a_script(tmp_path):
    store = Store.open(tmp_path / "s.sqlite")
    store.add([item(0, a="<script>x</script> [a](javascript:alert(1)) [b](https://b.example)",
                    b="![i](http://c.example/i.png) <img src=x onerror=alert(2)> [c](vbscript:x) [d](/undo)")])
    page = pages_of(store).get("/").text
    assert page.count("<script") == 1 and "<img" not in page
    assert set(re.findall(r'href="([^"]*)"', page.partition("<main")[2])) <= {
        "https://b.example", "http://c.example/i.png", "/"}
    assert '<a href="https://b.example" rel="noopener noreferrer nofollow" target="_blank">' in page


def test_who_has_nothing_left_is_told_so(tmp_path):
    store = store_with(tmp_path, 1)
    pages = pages_of(store)
    pages.post("/judge", data=form_on(pages.get("/"), verdict="skip"))
    page = pages.get("/").text
    assert "Nothing left for you" in page and "You have judged or skipped 1. 1 still wait" in page


def test_progress_shows_agreement_with_interval_and_count(tmp_path):
    store = store_with(tmp_path, 3, overlap=2)
    for name, verdicts in (("anna", "aba"), ("ben", "abb")):
        for verdict in verdicts:
            judge_next(store, name, verdict)
    rate = agreement(store, "anna")["other annotators"]
    assert (rate.mean, rate.n) == (pytest.approx(2 / 3), 3) and 0 < rate.low < 2 / 3 < rate.high < 1
    page = pages_of(store).get("/progress").text
    assert f"0.67<small>[{rate.low:.2f}, {rate.high:.2f}], n = 3</small>" in page
    assert page.count("none to compare yet") == 2


def test_a_conflict_is_listed_decided_and_undone_by_the_adjudicator(tmp_path):
    store = store_with(tmp_path, 1, overlap=2)
    judge_next(store, "anna", "a", reason="it is right")
    judge_next(store, "ben", "tie")
    pages = pages_of(store)
    listed = pages.get("/conflicts")
    assert "Question 0?" in listed.text and "1 : 0, 1 equally good" in listed.text
    page = pages.get("/conflicts/1")
    assert "What 2 annotators said" in page.text and "<q>it is right</q>" in page.text
    assert "No judgments disagree" in pages.post("/judge", data=form_on(page, verdict="both_bad")).text
    assert pages.get("/conflicts/1").status_code == 404
    again = pages.post("/undo", data=form_on(pages.get("/")))
    assert "Decide between two answers" in again.text and len(store.conflicts()) == 1


def test_only_adjudicators_see_conflicts(tmp_path):
    pages = pages_of(store_with(tmp_path), adjudicators=())
    assert pages.get("/conflicts").status_code == pages.get("/conflicts/1").status_code == 403
    assert "Conflicts" not in pages.get("/").text


def test_a_store_that_fails_is_said_on_the_page(tmp_path, monkeypatch):
    store = store_with(tmp_path)
    pages = pages_of(store)
    form = form_on(pages.get("/"), verdict="tie")

    def fail(*_, **__):
        raise DataError("store.sqlite: cannot be used as a store: disk I/O error; nothing in it was changed by this")

    monkeypatch.setattr(store, "judge", fail)
    page = pages.post("/judge", data=form)
    assert page.status_code == 409 and "disk I/O error; nothing in it was changed" in page.text


def test_a_count_is_remembered_for_as_long_as_asked():
    counts = iter(range(9))
    assert [remembered(lambda: next(counts), 60)() for _ in range(2)] == [0, 1]
    kept, fresh = remembered(lambda: next(counts), 60), remembered(lambda: next(counts), 0)
    assert [kept(), kept()] == [2, 2] and [fresh(), fresh()] == [3, 4]


