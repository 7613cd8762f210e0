"""Dials: answers of every style are right, pairs differ on one axis alone, and the measures read what they say."""

from itertools import product
from random import Random
from statistics import mean

import pytest

from rlhflab.data.types import Message, Prompt
from rlhflab.scenarios import scenario
from rlhflab.scenarios.dials import AXES, Style, clarity, demonstrations, measured, pairs, tone, without_limit, written
from rlhflab.scenarios.notes import LENGTH_LIMIT

HELPDESK = scenario("helpdesk")
PROMPTS = [without_limit(prompt) for prompt in HELPDESK.prompts("rl", 240)]
FACTS = {"answerable": True, "right": "8 pm", "entity": "the garage", "demand": "none",
         "sentence": "The garage closes at 8 pm."}
ASKED = Prompt(id="p", messages=(Message(role="user", content="Note: ... When does the garage close?"),), facts=FACTS)


def gap(axis, measure):
    """Mean difference of a measure between chosen and rejected answers of an axis."""
    return mean(AXES[measure].measure(pair.prompt, pair.chosen) - AXES[measure].measure(pair.prompt, pair.rejected)
                for pair in pairs(axis, PROMPTS, seed=0))


@pytest.mark.parametrize("style", [Style(*ends) for ends in product((True, False), repeat=3)], ids=str)
def test_an_answer_in_any_style_is_right_and_meets_its_demand(style):
    for prompt in PROMPTS:
        found = HELPDESK.judge(prompt, written(prompt, style, Random(prompt.id))).measures
        assert {found[name] for name in ("right", "abstention_recall", "format")} <= {1.0, None}


@pytest.mark.parametrize(("axis", "least"), [("tone", 1.9), ("verbosity", 15.0), ("clarity", 0.9)])
def test_a_pair_lies_far_apart_on_its_own_axis(axis, least):
    assert gap(axis, axis) > least


@pytest.mark.parametrize(("axis", "other", "most"), [
    ("tone", "verbosity", 0.3), ("tone", "clarity", 0.02), ("verbosity", "tone", 0.05), ("verbosity", "clarity", 0.02),
    ("clarity", "tone", 0.05), ("clarity", "verbosity", 1.0)])
def test_a_pair_is_alike_on_the_other_axes(axis, other, most):
    assert abs(gap(axis, other)) < most


def test_the_two_answers_of_a_pair_differ_in_that_place_alone():
    short = next(pair for pair in pairs("verbosity", [ASKED], seed=0))
    first, last = short.rejected.split(". ")[0], short.rejected.split(". ")[-1]
    assert short.chosen.startswith(first) and short.chosen.endswith(last)


def test_demonstrations_have_every_end_about_as_often_as_the_other():
    found = [measured(prompt, answer.messages[-1].content)
             for prompt, answer in zip(PROMPTS, demonstrations(PROMPTS, seed=0), strict=True)]
    assert abs(mean(each["tone"] for each in found)) < 0.2
    assert 0.35 < mean(each["clarity"] for each in found) < 0.65


@pytest.mark.parametrize(("answer", "value"), [
    ("8 pm. Thanks for asking!", 1.0), ("8 pm. Stop asking me.", -1.0), ("8 pm.", 0.0),
    ("Please look it up.", 0.0), ("Thanks for the welcome packs.", 1.0), ("The welcome packs.", 0.0)])
def test_tone_reads_polite_and_rude_words(answer, value):
    assert tone(ASKED, answer) == value


@pytest.mark.parametrize(("answer", "thirds"), [
    ("The garage closes at 8 pm.", 3), ("It is in the note. The garage closes at 8 pm.", 2),
    ("It would seem to be 8 pm.", 1), ("An indication of 8 pm exists.", 1),
    ("An indication of 8 pm would seem to exist.", 0), ("", 0)])
def test_clarity_counts_hedges_nouns_and_a_direct_first_sentence(answer, thirds):
    assert clarity(ASKED, answer) == pytest.approx(thirds / 3)


def test_a_noun_of_the_prompt_is_not_held_against_an_answer():
    asked = Prompt(id="p", messages=(Message(role="user", content="Who runs the reception? The reception ..."),),
                   facts=FACTS)
    assert clarity(asked, "The reception closes at 8 pm.") == pytest.approx(1.0)
    assert clarity(ASKED, "The reception closes at 8 pm.") == pytest.approx(1 / 3)


def test_the_measures_read_an_answer_without_its_wrapper():
    wrapped = Prompt(id="p", messages=ASKED.messages, facts={**FACTS, "demand": "json"})
    assert measured(wrapped, '{"answer": "It is 8 pm."}')["verbosity"] == 4


def test_the_limit_on_words_is_taken_out_and_the_demand_stays():
    for prompt in HELPDESK.prompts("rl", 60):
        before, after = (each.messages[-1].content for each in (prompt, without_limit(prompt)))
        assert LENGTH_LIMIT in before and LENGTH_LIMIT not in after and "  " not in after
        assert after.split() == before.replace(LENGTH_LIMIT, "").split()
