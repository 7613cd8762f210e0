"""Verdicts on answers: what has changed, what is equivalent, what nobody can tell yet; charts over releases."""

import random

import pytest

from report_pages import EVIL, Page
from rlhflab.analysis import drift
from rlhflab.analysis.behaviour import declines, shape
from rlhflab.analysis.drift import Reply, draw_halves, drift_record, match, release_charts
from rlhflab.analysis.drift_page import history_says, main_table, says, write_drift_page, write_history_page
from rlhflab.errors import ConfigError, DataError

WORDS = ("the", "parcel", "arrives", "on", "monday", "or", "later", "please", "wait", "for", "a", "letter")


def answers(n, *, seed, prefix="", samples=1, length=12):
    """`samples` random answers to each of n prompts."""
    chosen = random.Random(seed)
    return [Reply(prompt=f"question {i}", text=prefix + " ".join(chosen.choice(WORDS) for _ in range(length)))
            for i in range(n) for _ in range(samples)]


def verdicts(record):
    return {row["name"]: row["verdict"] for row in record["measures"]}


def row_of(record, name):
    return next(row for row in record["measures"] if row["name"] == name)


@pytest.mark.parametrize(("text", "expected"), [
    ("I'm sorry, but I can't help with that.", True), ("I cannot assist with this request.", True),
    ("As an AI language model, I cannot provide a list.", True), ("I am unable to do that.", True),
    ("You can help by calling us. I cannot wait!", False), ("Sorry about the delay: your parcel is here.", False)])
def test_an_answer_that_declines_says_so_at_its_start(text, expected):
    assert declines(text) is expected
    assert declines("All right. " * 40 + text) is False, "what comes late is part of an answer"


@pytest.mark.parametrize(("text", "expected"), [
    (" ", "nothing"), ('{"a": 1}', "JSON"), ("```python\nx\n```", "code"), ("- one\n- two", "list"),
    ("1. one", "prose"), ("I cannot help.\n- a\n- b", "declines"), ("3", "prose")])
def test_the_shape_of_an_answer_is_the_first_that_fits(text, expected):
    assert shape(text) == expected


def test_an_opening_that_all_answers_share_is_found_with_one_answer_a_prompt():
    record = drift_record(answers(40, seed=0), answers(40, seed=1, prefix="Certainly! "))
    found = verdicts(record)
    assert record["verdict"] == found["text_over_prompts"] == "changed"
    assert found["declines"] == "equivalent" and row_of(record, "declines")["effect"]["high"] < 0.1
    assert any("one answer a side" in note for note in record["notes"])


def test_answers_of_the_same_kind_are_no_change():
    record = drift_record(answers(60, seed=0), answers(60, seed=1))
    assert record["verdict"] != "changed"
    assert not any(row["difference_found"] for row in record["measures"])


def test_no_difference_found_is_not_equivalent_and_too_few_says_how_many():
    row = row_of(drift_record(answers(20, seed=0), answers(20, seed=1)), "declines")
    # Nobody declines in 20: up to 14 % may, .05^(1/20) = .861; 29 prompts are needed for 10 %.
    assert (row["verdict"], row["needed"]) == ("too few to say", 29)
    assert row["effect"]["mean"] == 0 and row["p_adjusted"] == 1
    assert row_of(drift_record(answers(40, seed=0), answers(40, seed=1)), "declines")["verdict"] == "equivalent"
    wide = row_of(drift_record(answers(40, seed=0), answers(40, seed=1), margins={"declines": 0.074}), "declines")
    assert wide["verdict"] == "equivalent", "1 - .05^(1/40) = .0722"


def test_a_change_within_the_margin_is_equivalent_and_still_said_to_be_found():
    before = [Reply(prompt=str(i), text="a " * 30) for i in range(40)]
    after = [Reply(prompt=str(i), text="a " * 31) for i in range(40)]
    row = row_of(drift_record(before, after), "length")
    assert row["verdict"] == "equivalent" and row["difference_found"] and row["effect"]["mean"] == pytest.approx(1)
    assert row["margin"] == pytest.approx(0.15 * 30)


def test_two_answers_a_prompt_show_a_change_that_prompts_do_not_share():
    chosen = random.Random(0)
    old, new = ([["".join(chosen.sample("abcdefghijklmnopqrst", 20)) for _ in range(30)] for _ in range(2)])
    before, after = ([Reply(prompt=str(i), text=texts[i] + str(k)) for i in range(30) for k in range(2)]
                     for texts in (old, new))
    record = drift_record(before, after)
    assert verdicts(record)["text"] == "changed" and row_of(record, "text")["effect"]["mean"] > 1
    single = drift_record(before[::2], after[::2])
    assert verdicts(single)["text_over_prompts"] != "changed", "with one answer a side nobody can tell"


def test_p_is_adjusted_over_all_measures():
    record = drift_record(answers(30, seed=0), answers(30, seed=1, length=13))
    rows = sorted(record["measures"], key=lambda row: row["p"])
    assert rows[0]["p_adjusted"] == pytest.approx(min(1, rows[0]["p"] * len(rows)))


def test_a_category_of_the_source_has_its_index_beside_what_chance_gives():
    before, after = ([Reply(prompt=str(i), text="same", outcomes={"passed": "10"[i % 10 >= right]}) for i in range(50)]
                     for right in (8, 3))
    row = row_of(drift_record(before, after), "outcome:passed")
    assert row["verdict"] == "changed" and "above .25" in row["detail"]["band"]
    assert row["detail"]["shares"]["1"] == {"baseline": pytest.approx(0.8), "current": pytest.approx(0.3)}
    assert 0 < row["detail"]["by_chance"] < row["effect"]["mean"]


def test_rewards_count_where_all_answers_have_one_in_deviations_of_the_baseline():
    before, after = ([Reply(prompt=str(i), text="same", reward=shift + (-1) ** i) for i in range(30)]
                     for shift in (0.0, 1.0))
    row = row_of(drift_record(before, after), "reward")
    assert row["verdict"] == "changed" and row["effect"]["mean"] == pytest.approx(1 / (30 / 29) ** 0.5)
    assert "reward" not in verdicts(drift_record(before, [*after[:-1], Reply(prompt="29", text="same")]))


def test_a_divergence_is_held_against_its_margin_not_against_nothing():
    sides = answers(30, seed=0), answers(30, seed=1)
    noise = [0.01 * (-1) ** i for i in range(30)]
    record = drift_record(*sides, token_divergence={"kl_forward": [0.01 + x for x in noise],
                                                    "kl_reverse": [0.5 + x for x in noise],
                                                    "jsd": [0.02 + 2 * x for x in noise]})
    found = verdicts(record)
    assert (found["kl_forward"], found["kl_reverse"], found["jsd"]) == ("equivalent", "changed", "too few to say")


def test_fewer_than_ten_prompts_say_nothing_good():
    record = drift_record(answers(6, seed=0), answers(6, seed=0))
    assert set(verdicts(record).values()) == {"too few to say"}
    assert min(row["needed"] for row in record["measures"]) >= 10


def test_prompts_that_only_one_side_has_are_counted_and_none_in_common_is_an_error():
    left, right = answers(12, seed=0), answers(15, seed=1)[3:]
    record = drift_record(left, right)
    assert record["shared_prompts"] == 9 and "9 prompts are in both (baseline 12, current 12)" in record["notes"][0]
    with pytest.raises(DataError, match="a and b: none of their 3 and 3 prompts is in both"):
        drift_record(left[:3], right[-3:], names=("a", "b"))
    with pytest.raises(DataError, match="b: holds no answer"):
        drift_record(left, [], names=("a", "b"))


def test_too_many_answers_are_drawn_from_by_prompt(monkeypatch):
    monkeypatch.setattr(drift, "MOST", 20)
    found = match(answers(30, seed=0), answers(30, seed=1), names=("a", "b"), seed=3)
    assert found.counts["prompts"] == 10 and len(found.replies) == 20
    assert "10 of the 30 shared prompts were drawn" in " ".join(drift.notes(found))


@pytest.mark.parametrize("margins", [{"lenght": 0.1}, {"length": 0.0}, {"length": float("inf")}])
def test_a_margin_that_cannot_be_is_one_sentence(margins):
    with pytest.raises(ConfigError, match="--margin len"):
        drift_record(answers(3, seed=0), answers(3, seed=1), margins=margins)


def test_halves_of_one_version_are_paired_and_share_no_answer():
    first, second = draw_halves(answers(11, seed=0), seed=1)
    assert [reply.prompt for reply in first] == [reply.prompt for reply in second] and len(first) == 5
    assert not {reply.text for reply in first} & {reply.text for reply in second}


# -- pages and charts ------------------------------------------------------------------------------------------------


def test_the_page_shows_every_measure_and_no_foreign_markup(tmp_path):
    sides = ([Reply(prompt=str(i), text=EVIL, outcomes={EVIL: str(i % 2)}) for i in range(12)] for _ in range(2))
    record = drift_record(*sides, names=(EVIL, "current"))
    page = Page(write_drift_page(record, tmp_path / "drift.html"))
    assert "Declines" in page.text and EVIL in page.text and "Length (distribution)" in page.text
    assert all("alert" not in text for kind, text in page.scripts if kind is None)
    assert len(main_table(record)) == len(record["measures"]) and says(record).count("prompts") >= 1


def releases(*scores, signed=False, baseline="v1"):
    return [{"baseline": baseline, "current": f"v{i + 2}",
             "measures": [{"name": "length", "z": z, "signed": signed}, {"name": "jsd", "z": None, "signed": False}]}
            for i, z in enumerate(scores)]


def test_a_chart_adds_up_small_changes_that_no_release_shows_alone(tmp_path):
    found = release_charts(releases(1.5, 2.0, 1.9, 2.1, 2.0))
    # Sums of z - .5: 1, 2.5, 3.9, 5.5, 7; the limit is 5
    assert found["charts"][0]["chart"] == pytest.approx([1.0, 2.5, 3.9, 5.5, 7.0])
    assert found["charts"][0]["crossed"] == 3 and found["alarms"] == 1 and len(found["charts"]) == 1
    assert found["average_run_length"] == pytest.approx(931, rel=0.005)
    text = history_says(found)
    assert "In alarm: Length, above, at v5." in text and "once in 931 releases" in text and "lower bound" in text
    assert "In alarm." in Page(write_history_page(found, tmp_path / "history.html")).text


def test_a_signed_measure_has_a_chart_for_each_direction():
    found = release_charts(releases(-3.0, -3.0, -3.0, signed=True))
    assert [(chart["side"], chart["alarm"]) for chart in found["charts"]] == [("above", False), ("below", True)]
    assert found["any_false_alarm_chance"] == pytest.approx(2 * found["false_alarm_chance"])


def test_a_history_needs_two_records_with_a_measure_in_common():
    with pytest.raises(DataError, match="1 record is no history"):
        release_charts(releases(1.0))
    with pytest.raises(DataError, match="no measure in common"):
        release_charts([*releases(1.0), {"baseline": "a", "current": "b", "measures": []}])
