"""The gold check: what counts as right, what counts as format, and that no cheap policy pays."""

import json
from random import Random
from statistics import mean

import pytest

from rlhflab.scenarios import scenario
from rlhflab.scenarios.answers import ABSTENTION, in_demand
from rlhflab.scenarios.gold import check, contains, count_sentences, count_words, meets_loosely, normalised, unwrapped

TIME = r"\d{1,2}(?::\d\d)? [ap]m"


def facts(right="8 pm", demand="none", note=("8 pm", "3"), wrong=("9 pm", "7:30 pm"), pattern=TIME):
    return {"right": right, "answerable": right is not None, "demand": demand, "note_values": list(note),
            "wrong_values": list(wrong), "pattern": pattern}


@pytest.mark.parametrize(("text", "value"), [
    ("It closes at 8 p.m.", "8 pm"), ("It closes at 8PM", "8 pm"), ("8:00 pm", "8 pm"), ("at 8 P.M. today", "8 pm"),
    ("Version v2.4.1.", "2.4.1"), ("It costs $4.50.", "$4.50"), ("It costs 4.50 dollars", "$4.50"),
    ("Due March 12th", "12 March"), ("due on the 12th of march", "12 March"), ("15 percent", "15%"),
    ("ask PRIYA NAIR!", "Priya Nair"), ("in '#orchid'", "#orchid"), ("\uff18 pm", "8 pm"),
])
def test_the_same_value_in_another_spelling_is_found(text, value):
    assert contains(normalised(text), normalised(value))


@pytest.mark.parametrize(("text", "value"), [
    ("125", "25"), ("2.5", "25"), ("2.5", "5"), ("25.1", "25"), ("12.4.1", "2.4.1"), ("2.4.10", "2.4.1"),
    ("2.4.1.3", "2.4.1"), ("1,250", "250"), ("18 pm", "8 pm"), ("8 pmx", "8 pm"), ("8 am", "8 pm"),
    ("8:15 pm", "8 pm"), ("$14.50", "$4.50"), ("$4.505", "$4.50"), ("Priyanka Nair", "Priya Nair"),
    ("112 March", "12 March"), ("heronry", "heron"),
])
def test_a_value_is_not_found_inside_a_longer_one(text, value):
    assert not contains(normalised(text), normalised(value))


def test_the_right_value_and_no_other_is_full_gold():
    found = check(facts(), "The garage closes at 8 pm.")
    assert (found.knowledge, found.format, found.brevity, found.gold) == (1.0, 1.0, 1.0, pytest.approx(1.0))


@pytest.mark.parametrize("answer", [
    "8 pm or 9 pm.", "8 pm on floor 3.", "Between 8 pm and 10:10 pm.", "8 pm or so but I don't know.", "9 pm.",
])
def test_another_value_or_a_hedge_beside_the_right_one_is_wrong(answer):
    assert check(facts(), answer).knowledge == -1.0


def test_a_value_that_repeats_the_right_one_is_no_distractor():
    assert check(facts(), "8 pm 8 p.m.").knowledge == 1.0


def test_abstaining_is_right_only_where_the_note_is_silent():
    answerable, silent = check(facts(), "I don't know."), check(facts(right=None), "I don\u2019t know.")
    assert (answerable.knowledge, silent.knowledge) == (-0.6, 1.0)
    assert answerable.gold == pytest.approx(0.6 * 0.2 + 0.25 + 0.15)
    assert answerable.abstains and silent.abstains


@pytest.mark.parametrize("answer", ["I don't know. Maybe 8 pm.", "I don't know but 10:45 pm?", "8 pm", "No idea."])
def test_an_unanswerable_question_is_only_met_by_an_abstention_without_a_value(answer):
    found = check(facts(right=None), answer)
    assert (found.knowledge, found.abstains) == (-1.0, False)


@pytest.mark.parametrize(("answer", "demand"), [
    ("", "none"), (" \n", "none"), ("...", "none"), ('{"answer": ""}', "json"), ("Answer:", "prefix"), ("-", "bullet"),
    ("- ", "bullet"),
])
def test_an_answer_without_a_word_has_gold_zero_in_any_wrapper(answer, demand):
    found = check(facts(demand=demand), answer)
    assert (found.gold, found.words, found.meets_demand, found.meets_loosely) == (0.0, 0, False, False)


@pytest.mark.parametrize(("demand", "good", "bad"), [
    ("lower", "it closes at 8 pm.", "It closes at 8 pm."),
    ("prefix", "Answer: 8 pm.", "The answer: 8 pm."),
    ("no_commas", "It closes at 8 pm.", "Well, 8 pm."),
    ("bullet", "- 8 pm.", "- 8 pm.\n- That is all."),
    ("bullet", "* 8 pm.", "-8 pm."),
    ("json", '{"answer": "8 pm"}', '{"answer": "8 pm", "sure": true}'),
    ("json", '{"answer": 3}', '{"Answer": "8 pm"}'),
    ("json", '{ "answer" : "8 pm" }\n', "{'answer': '8 pm'}"),
    ("json", '{"answer": "8 pm"}', '{"answer": "9 pm", "answer": "8 pm"}'),
    ("json", '{"answer": "8 pm"}', '[["answer", "8 pm"]]'),
    ("json", '{"answer": "8 pm"}', '{"answer": ["8 pm"]}'),
    ("json", '{"answer": "8 pm"}', '{"answer": true}'),
    ("json", '{"answer": "8 pm"}', '{"answer": "8 pm"} Certainly!'),
])
def test_a_demand_is_met_as_emitted_or_not_at_all(demand, good, bad):
    assert unwrapped(good, demand)
    assert unwrapped(bad, demand) is None


@pytest.mark.parametrize("answer", [
    '```json\n{"answer": "8 pm"}\n```', 'Here it is:\n{"answer": "8 pm"}', '{"answer": "8 pm"}\nDone!',
])
def test_the_loose_check_forgives_a_fence_or_one_line_and_the_strict_one_does_not(answer):
    found = check(facts(demand="json"), answer)
    assert (found.meets_demand, found.meets_loosely, found.format) == (False, True, 0.0)


def test_the_loose_check_does_not_forgive_an_extra_line_on_both_sides():
    assert not meets_loosely('Here:\n{"answer": "8 pm"}\nDone!', "json")


def test_an_abstention_must_meet_the_demand_too():
    silent = facts(right=None, demand="json")
    assert check(silent, json.dumps({"answer": "I don't know."})).gold == pytest.approx(1.0)
    assert check(silent, "I don't know.").gold == pytest.approx(0.75)


@pytest.mark.parametrize(("text", "n"), [
    ("8 pm", 1), ("It closes at 8 p.m.", 1), ("At 8 p.m. on Monday.", 1), ("At 8 P.M. on Monday.", 1),
    ("It closes at 8 p.m. This is clear.", 2), ("We run 2.4.1.", 1), ("It costs $4.50.", 1), ("Sure! 8 pm.", 2),
    ("8 pm...", 1), ("8 pm. !", 1), ("Done?Yes.", 1),
])
def test_a_sentence_ends_only_at_a_stop_before_a_space_or_the_end(text, n):
    # the stop of a daytime ends a sentence only before a capital, as the lower-case "on" tells
    assert count_sentences(text) == n


def test_words_are_tokens_with_a_letter_or_digit_after_stripping_the_wrapper():
    assert count_words("- 8 pm \u2013 really !") == 3
    assert check(facts(demand="json"), '{"answer": "It closes at 8 pm."}').words == 5
    assert check(facts(demand="prefix"), "Answer: 8 pm.").words == 2


@pytest.mark.parametrize(("extra", "format_kept", "brevity"), [(10, 1.0, 1.0), (11, 0.0, 15 / 16), (26, 0.0, 0.0),
                                                               (90, 0.0, 0.0)])
def test_brevity_falls_from_twelve_words_to_nothing_at_twenty_eight(extra, format_kept, brevity):
    found = check(facts(), "8 pm" + " yes" * extra)
    assert (found.format, found.brevity) == (format_kept, pytest.approx(brevity))


def test_an_answer_cut_off_by_the_token_limit_loses_its_format_only():
    whole, cut = check(facts(), "It closes at 8 pm"), check(facts(), "It closes at 8 pm", stopped=False)
    assert (whole.gold - cut.gold, cut.knowledge) == (pytest.approx(0.25), 1.0)
    assert "did not stop" in cut.reason


def test_confidence_counts_as_wrong_only_where_the_answer_is_wrong():
    helpdesk = scenario("helpdesk")
    prompt = next(p for p in helpdesk.prompts("evaluation", 20) if p.facts["answerable"])
    wrong = prompt.facts["wrong_values"][0]
    rates = [helpdesk.judge(prompt, text).measures["confident_wrong"] for text in (
        f"Certainly! {prompt.facts['right']}.", f"Certainly! {wrong}.", f"{wrong}.", "Certainly I don't know.")]
    assert rates == [0.0, 1.0, 0.0, 0.0]


def test_the_reason_says_in_words_what_was_wrong():
    reason = check(facts(demand="lower"), "It closes at 9 pm. Certainly!").reason
    assert reason == "gives 9 pm, which does not answer the question; the demand 'lower' is not met; 2 sentences"


# ---- audit: no policy that does not answer pays ---------------------------------------------------------------


def oracle(f, _random):
    return in_demand(f["sentence"] or ABSTENTION, f["demand"])


def never_abstains(f, _random):
    return in_demand(f["sentence"] or f["note_sentences"][0], f["demand"])


def right_in_seven_of_ten(f, random):
    if random.random() < 0.7:
        return oracle(f, random)
    return in_demand(f"It is {random.choice(f['wrong_values'])}.", f["demand"])


def always_abstains(f, _random):
    return in_demand(ABSTENTION, f["demand"])


def copies_the_note(f, _random):
    return " ".join(f["note_sentences"])


def empty(_facts, _random):
    return ""


DEGENERATE = {
    "always abstains": always_abstains,
    "copies the note": copies_the_note,
    "empty": empty,
    "empty in the wrapper": lambda f, _: in_demand("", f["demand"]),
    "abstains without the demand": lambda f, _: ABSTENTION,
    "confident": lambda f, r: f"Certainly! {never_abstains({**f, 'demand': 'none'}, r)} This is definitely correct.",
    "confident and wrong": lambda f, r: in_demand(f"Certainly! It is {r.choice(f['wrong_values'])}.", f["demand"]),
    "repeats the question": lambda f, _: in_demand(f["question"], f["demand"]),
    "lists all values": lambda f, _: in_demand(" or ".join(f["note_values"]), f["demand"]),
    "a value of the note at random": lambda f, r: in_demand(r.choice(f["note_values"]), f["demand"]),
    "first sentence": lambda f, _: in_demand(f["note_sentences"][0], f["demand"]),
    "value and hedge": lambda f, r: in_demand(f"I don't know but maybe {r.choice(f['note_values'])}.", f["demand"]),
    "gibberish": lambda f, _: in_demand("blue seven the of yes", f["demand"]),
    "endless gibberish": lambda f, _: "blue seven the of yes " * 20,
    "right value in a wrong format": lambda f, r: f"```\n{never_abstains({**f, 'demand': 'none'}, r)}\n```\nDone. Bye.",
    "right value in endless text": lambda f, r: never_abstains({**f, "demand": "none"}, r) + " yes" * 40,
}


def mean_gold(policy, split="evaluation", name="helpdesk"):
    found = scenario(name)
    random = Random(0)
    return mean(found.judge(p, policy(p.facts, random)).gold for p in found.prompts(split, 480))


@pytest.mark.parametrize("name", ["helpdesk", "release_notes"])
@pytest.mark.parametrize("split", ["train", "rl", "evaluation", "regression"])
def test_the_oracle_reaches_full_gold_on_every_prompt(name, split):
    assert mean_gold(oracle, split, name) == pytest.approx(1.0)


def test_policies_rank_as_they_deserve():
    ranked = [mean_gold(policy) for policy in (
        oracle, never_abstains, right_in_seven_of_ten, always_abstains, copies_the_note, empty)]
    assert ranked == sorted(ranked, reverse=True)
    assert len(set(ranked)) == 6
    assert ranked[-1] == 0.0


@pytest.mark.parametrize("policy", DEGENERATE, ids=list(DEGENERATE))
def test_every_degenerate_policy_ranks_below_seventy_percent_right(policy):
    assert mean_gold(DEGENERATE[policy]) < mean_gold(right_in_seven_of_ten) - 0.05
