"""Every data check against rows whose fault was put there by hand, and the page that shows them."""

import json
from dataclasses import replace

import pytest

from report_pages import EVIL, Page
from rlhflab.analysis.data_checks import data_check
from rlhflab.analysis.data_checks.base import CannotSay
from rlhflab.analysis.data_checks.labels import flipped
from rlhflab.analysis.data_page import held, next_words, write_data_page
from rlhflab.data.chat import ChatFormat
from rlhflab.data.survey.columns import BadRow
from rlhflab.data.survey.suites import Suite
from rlhflab.data.types import Conversation, Message
from rlhflab.model.tiny import byte_tokenizer
from rlhflab.runs.data_check import Asked, record_of, run_checks
from survey_rows import FILE, asked, pair, surveyed, thumb

POEM = "the fog comes on little cat feet it sits looking over harbour and city on silent haunches and then moves on"


def found(name, seen, **options):
    return data_check.bind(name, options, where="test")(seen)


def test_every_check_runs_on_clean_pairs_or_says_what_it_lacks():
    seen = surveyed(*(pair(f"question number {i}", f"answer {i}", f"reply no. {i} here", "ab"[i % 2])
                      for i in range(20)))
    verdicts = {finding.name: finding.verdict for finding in run_checks(seen, {})}
    assert set(verdicts) == set(data_check.names())
    assert {name for name, verdict in verdicts.items() if verdict == "not run"} == {
        "contamination", "end_tokens", "identical_when_cut", "languages", "leaks", "length_budget", "label_noise",
        "thumbs_up"}
    assert {verdict for verdict in verdicts.values()} == {"clean", "not run"}


def test_rows_that_could_not_be_read_are_counted_by_what_is_wrong_with_them():
    bad = (BadRow(FILE, 4, "broken", "is not JSON"), BadRow(FILE, 5, "empty", "'a' is empty"),
           BadRow(FILE, 6, "identical", "'a' and 'b' are equal"), BadRow(FILE, 7, "broken", "is not UTF-8"))
    seen = surveyed(pair("q", "x", "y", "a"), pair("q", "x ", " x", "a"), bad=bad)
    counts = {name: (found(name, seen).count, found(name, seen).rate.n) for name in ("broken", "empty", "identical")}
    assert counts == {"broken": (2, 6), "empty": (1, 6), "identical": (2, 3)}
    assert found("broken", seen).examples[0] == ("mine.jsonl:4", "is not JSON")
    assert found("identical", seen).drop == {1: "identical answers"}, "what was not read has no row to drop"


def test_a_contradiction_counts_both_rows_and_the_side_with_fewer_is_left_out():
    seen = surveyed(pair("q", "x", "y", "a"), pair("q", "y", "x", "b"), pair("q", "x", "y", "b"),
                    pair("q", "x", "z", "b"), thumb("q", "x", True), thumb("q", "x", False))
    finding = found("contradictory", seen)
    assert (finding.count, finding.rate.n) == (5, 6) and sorted(finding.drop) == [2, 4, 5]
    assert finding.examples[0].where == "mine.jsonl:1, mine.jsonl:2, mine.jsonl:3"


def test_a_copy_says_the_same_with_its_answers_in_either_order():
    seen = surveyed(pair("q", "x", "y", "a"), pair("q", "y", "x", "b"), pair(" q", "x", "y ", "a"),
                    pair("q", "x", "y", "b"), pair("q", "x", "y", "tie"), pair("Q", "x", "y", "a"))
    finding = found("duplicates", seen)
    assert finding.drop == {1: "a copy of mine.jsonl:1", 2: "a copy of mine.jsonl:1"} and finding.count == 2


def test_a_near_copy_needs_its_prompt_and_both_answers_to_be_near():
    other = "an old pond a frog leaps in the sound of water and nothing else is heard in the garden tonight"
    rows = [pair(POEM, POEM, other, "a"), pair(f"{POEM} ok", other, f"{POEM} ok", "b"), pair(POEM, POEM, "short", "a"),
            pair(other, POEM, other, "a")]
    finding = found("near_duplicates", surveyed(*rows))
    assert finding.drop == {1: "nearly a copy of mine.jsonl:1"}
    assert found("near_duplicates", surveyed(*rows), similarity=1.0).count == 0


def test_a_prompt_in_two_splits_is_a_leak_exact_or_near():
    rows = [pair(f"prompt {i}", "x", "y", "a", split="train") for i in range(5)]
    rows += [pair(POEM, "x", "y", "a", split="train"), pair("prompt 1", "u", "v", "b", split="test"),
             pair(f"{POEM} ok", "u", "v", "b", split="test"), pair("new", "u", "v", "b", split="test")]
    finding = found("leaks", surveyed(*rows))
    assert (finding.count, finding.rate.n, finding.details["exact"]) == (2, 3, 1)
    assert sorted(finding.drop) == [1, 5], "the larger split gives them up"


def test_an_evaluation_prompt_is_met_exactly_nearly_or_by_most_of_its_words():
    suite = Suite.of("poems", [POEM, "why?"])
    rows = [pair("Why?", "x", "y", "a"), pair("why?", "x", "y", "a"), pair(f"{POEM} ok", "x", "y", "a"),
            pair("recite", f"well then here it goes {POEM} and that was all of it for the day", "no", "a")]
    finding = found("contamination", surveyed(*rows, suites=(suite,)))
    assert sorted(finding.drop) == [0, 1, 2, 3] and finding.details["suites"]["poems"]["met"] == 2
    assert "the same prompt" in finding.examples[1].text and "nearly" in finding.examples[0].text


def test_half_of_the_judgments_that_agree_are_a_coins():
    assert flipped(1.0) == 0 and flipped(0.5) == flipped(0.4) == 0.5
    assert flipped(0.82) == pytest.approx(0.1), "0.1^2 + 0.9^2 = 0.82"


def test_label_noise_is_read_from_comparisons_judged_twice_in_whichever_row():
    # 9 agreements and 1 disagreement of two: A = .9, e = (1 - sqrt(.8)) / 2.
    rows = [pair(f"q{i}", "x", "y", "a", "a") for i in range(8)]
    rows += [pair("r", "x", "y", "a"), pair("r", "y", "x", "b"), pair("s", "x", "y", "a", "b"),
             pair("t", "x", "y", "a")]
    finding = found("label_noise", surveyed(*rows))
    assert finding.rate.mean == pytest.approx((1 - 0.8**0.5) / 2) and finding.rate.n == 10
    assert finding.rate.low <= finding.rate.mean <= finding.rate.high


def test_position_is_that_on_the_screen_where_it_is_known_and_the_files_where_it_varies():
    known = surveyed(*(pair(f"q{i}", "x", "y", "a", first="b") for i in range(30)))
    assert (found("position_bias", known).rate.mean, found("position_bias", known).verdict) == (0, "look")
    by_file = surveyed(*(pair(f"q{i}", "x", "y", "ab"[i % 2]) for i in range(30)))
    assert found("position_bias", by_file).rate.mean == 0.5 and "not known" in found("position_bias", by_file).says
    with pytest.raises(CannotSay, match="fixed place"):
        found("position_bias", surveyed(*(pair(f"q{i}", "x", "y", "a") for i in range(30))))


def test_length_bias_counts_pairs_whose_answers_differ_in_length():
    rows = [pair(f"q{i}", "long answer", "short", "a" if i < 30 else "b") for i in range(40)]
    finding = found("length_bias", surveyed(*rows, pair("same", "xx", "yy", "a"), pair("tie", "x", "yy", "tie")))
    assert (finding.rate.mean, finding.rate.n, finding.verdict) == (0.75, 40, "look")
    assert finding.limited == 0.75 and sum(finding.details["histogram"]["chosen"]) == pytest.approx(1)
    shorter = found("length_bias", surveyed(*(pair(f"q{i}", "x", "longer", "a") for i in range(40))))
    assert shorter.rate.mean == 0 and shorter.limited == 1, "a limit holds to either side"


def test_the_length_budget_counts_prompt_and_longer_answer_and_ends_beyond_it_are_lost():
    chat = ChatFormat(byte_tokenizer())
    prompt = len(chat.prompt(asked("q")))
    seen = surveyed(pair("q", "x" * 9, "y", "a"), pair("q", "x" * 10, "y", "a"), chat=chat, max_length=prompt + 10)
    budget, ends = found("length_budget", seen), found("end_tokens", seen)
    assert (budget.count, budget.examples[0].where) == (1, "mine.jsonl:2")
    assert budget.details["quantiles"][1] == {"part": "answer", "n": 4, "50 %": 10, "90 %": 11, "95 %": 11, "99 %": 11,
                                              "100 %": 11}
    assert (ends.count, ends.rate.n) == (1, 4) and "<|im_end|>" in ends.says


def test_a_missing_chat_template_is_a_fault():
    seen = replace(surveyed(pair("q", "x", "y", "a")), chat_problem="the tokenizer has no chat template")
    assert found("end_tokens", seen).verdict == "fault" and "no chat template" in found("end_tokens", seen).says


def test_languages_are_told_and_answers_in_another_one_than_the_prompt_shown():
    pytest.importorskip("py3langid")
    english = "Where does the train to the airport leave, and how long does the whole journey take from here?"
    german = "Der Zug zum Flughafen fährt jede Stunde von Gleis sieben ab und braucht ungefähr vierzig Minuten."
    seen = surveyed(*(thumb(english, english, True) for _ in range(9)), thumb(english, german, True))
    finding = found("languages", seen)
    assert finding.details["languages"] == {"en": 9, "de": 1} and finding.verdict == "look"
    assert finding.examples[0].text.startswith("prompt en, answer de")


def test_thumbs_and_undecided_pairs_are_counted():
    seen = surveyed(thumb("q", "x", True), thumb("r", "x", False), pair("q", "x", "y", "a", "b"),
                    pair("q", "x", "z", "a"))
    assert found("thumbs_up", seen).rate.mean == 0.5 and found("undecided", seen).count == 1


def test_control_tokens_and_transcripts_are_found_in_any_text():
    talk = Conversation(id="", messages=(*asked("Hi").messages, Message(role="assistant", content="bye</s>")))
    seen = surveyed(talk, pair("Human: Hi\nAssistant: Yes?\nHuman: So?", "x", "y", "a"))
    assert found("control_tokens", seen).examples == [("mine.jsonl:1", "first answer: </s>")]
    assert found("transcripts", seen).examples[0].where == "mine.jsonl:2"


def page_of(seen, tmp_path):
    findings = run_checks(seen, {})
    record = record_of(Asked(files=[FILE], model=None), seen, findings, [])
    assert json.loads(json.dumps(record)) == record
    return record, Page(write_data_page(record, tmp_path / "page.html"))


def test_the_page_says_what_was_found_and_shows_text_as_text(tmp_path):
    seen = surveyed(*(pair(f"{i}", f"{EVIL}</s>", "y" * (i + 1), "ab"[i % 2]) for i in range(12)),
                    pair(EVIL, "x", "y", "a"), pair(EVIL, "x", "y", "b"))
    record, page = page_of(seen, tmp_path)
    assert EVIL in page.text and not [tag for tag, given in page.elements if tag == "img" or "onerror" in given]
    assert "12 of 14 rows spell out a control token" in page.text.replace("\n", " ")
    assert {"verdict", "findings", "todo", "lengths", "control_tokens"} <= page.ids and len(page.figures) == 3
    assert next_words(record).startswith("Next: open it in a browser. Then, control_tokens: take the tokens out")


def test_the_page_never_holds_a_whole_secret(tmp_path):
    seen = surveyed(pair("Write to anna.meier@mail.net", "ask carl.b@mail.net", "or 415-867-5309", "a"))
    _, page = page_of(seen, tmp_path)
    whole = (tmp_path / "page.html").read_text()
    assert not any(secret in whole for secret in ("anna.meier@mail", "carl.b@mail", "867-5309"))
    assert "e-mail address, 19 characters" in page.text
    assert held("2.1 % of") == "2.1\u00a0% of"
