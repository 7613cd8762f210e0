"""The simulated annotators: noisy but unbiased at dose 0, within the human range at dose 1."""

from dataclasses import fields, replace
from functools import cache
from random import Random

import pytest

from rlhflab.data.types import Comparison
from rlhflab.scenarios import scenario
from rlhflab.scenarios.annotators import CALIBRATED, Annotator, calibrate, judgment, utility
from rlhflab.scenarios.answers import ABSTENTION, in_demand, like_after_sft
from rlhflab.scenarios.gold import check

HELPDESK = scenario("helpdesk")


@cache
def card():
    return HELPDESK.annotator_card()


@cache
def measured(dose):
    return calibrate(CALIBRATED, HELPDESK.prompts("rl", 2000, seed=5), check=check, sample=like_after_sft, dose=dose)


def share_of_first(first, second, prompts, dose, annotator=CALIBRATED):
    """How often the first kind of answer is chosen; it is shown as `a` and as `b` in turn."""
    random = Random(1)
    wins = 0
    for index, prompt in enumerate(prompts):
        one, two = first(prompt.facts), second(prompt.facts)
        swap = index % 2 == 1
        pair = Comparison(prompt=prompt, a=two if swap else one, b=one if swap else two)
        wins += judgment(annotator, pair, check=check, random=random, dose=dose).verdict == ("b" if swap else "a")
    return wins / len(prompts)


def answerable(n=800):
    return [p for p in HELPDESK.prompts("rl", n, seed=2) if p.facts["answerable"]]


def unanswerable(n=2400):
    return [p for p in HELPDESK.prompts("rl", n, seed=2) if not p.facts["answerable"]]


def plain(f):
    return in_demand(f["sentence"], f["demand"])


def test_at_dose_one_agreement_and_length_lie_in_the_human_range():
    found = measured(1.0)
    assert 0.63 <= found.agreement <= 0.77
    assert 0.55 <= found.longer <= 0.68
    assert 0.3 <= found.length_correlation <= 0.5


def test_at_dose_zero_the_annotators_follow_gold_although_noisily():
    assert 0.78 <= measured(0.0).agreement <= 0.88


def test_more_bias_means_less_agreement_and_more_length():
    by_dose = [measured(dose) for dose in (0.0, 0.5, 1.0, 1.5)]
    assert [c.agreement for c in by_dose] == sorted((c.agreement for c in by_dose), reverse=True)
    assert [c.longer for c in by_dose] == sorted(c.longer for c in by_dose)


def test_without_bias_length_alone_does_not_matter():
    prompts = [p for p in answerable() if p.facts["demand"] == "none"]
    share = share_of_first(lambda f: f["sentence"], lambda f: f["right"], prompts, dose=0.0)
    assert abs(share - 0.5) < 0.09  # both are full gold; three standard errors of some 240 pairs are .09
    assert share_of_first(lambda f: f["sentence"], lambda f: f["right"], prompts, dose=3.0) > 0.6


def test_without_bias_an_abstention_beats_a_made_up_value_and_a_strong_dose_turns_that_round():
    def made_up(f):
        return f"Certainly! It is {f['wrong_values'][0]}. This is clearly stated in the note and definitely correct."

    def abstention(f):
        return in_demand(ABSTENTION, f["demand"])

    shares = [share_of_first(abstention, made_up, unanswerable(), dose=dose) for dose in (0.0, 1.0, 2.0)]
    assert shares[0] > 0.8
    assert shares[0] > shares[1] > shares[2]
    assert shares[2] < 0.5


def test_a_confident_tone_is_liked_only_with_a_dose():
    def confident(f):
        return f"Certainly! {f['sentence']}"

    prompts = answerable()
    assert share_of_first(confident, plain, prompts, dose=0.0) < 0.5
    assert share_of_first(confident, plain, prompts, dose=1.0) > 0.55


def test_unchecked_a_wrong_value_passes_and_gibberish_does_not():
    prompts = answerable()
    careless = replace(CALIBRATED, checks=0.0, format=0.0)

    def wrong(f):
        return in_demand(f"{f['wrong_values'][0]}.", f["demand"])

    assert abs(share_of_first(plain, wrong, prompts, dose=0.0, annotator=careless) - 0.5) < 0.07
    assert share_of_first(plain, lambda f: "blue yes", prompts, dose=0.0, annotator=careless) > 0.9


def test_length_stops_paying_at_the_cap():
    prompt = answerable(20)[0]
    values = []
    for extra in (10, 40, 60):
        answer = prompt.facts["sentence"] + " yes" * extra
        gold = check(prompt.facts, answer)
        values.append(utility(CALIBRATED, gold, checked=True, dose=1.0))
    assert values[0] < values[1] == values[2]


def test_an_empty_answer_loses_even_against_a_wrong_one():
    share = share_of_first(lambda f: f["wrong_values"][0], lambda f: "", answerable(), dose=1.0)
    assert share > 0.9


def test_the_order_in_which_answers_are_shown_does_not_matter():
    prompts = answerable()
    random = Random(3)
    pairs = [Comparison(prompt=p, a=plain(p.facts), b=plain(p.facts)) for p in prompts]
    first = sum(judgment(CALIBRATED, pair, check=check, random=random).verdict == "a" for pair in pairs)
    assert abs(first / len(prompts) - 0.5) < 0.065  # three standard errors of 600 pairs


def test_the_same_random_gives_the_same_judgment_and_says_why():
    prompt = answerable(20)[0]
    pair = Comparison(prompt=prompt, a=plain(prompt.facts), b=ABSTENTION)
    one = HELPDESK.annotate(pair, random=Random(9), dose=0.5)
    assert one == HELPDESK.annotate(pair, random=Random(9), dose=0.5)
    assert one.annotator == "simulated-dose-0.5" and "checked" in one.reason


@pytest.mark.parametrize("name", [field.name for field in fields(Annotator)])
def test_the_card_publishes_every_parameter_with_its_value(name):
    assert f"| `{name}` | {getattr(CALIBRATED, name):g} |" in card()


def test_the_card_states_the_agreement_it_measured():
    found = calibrate(CALIBRATED, HELPDESK.prompts("rl", 400, seed=1), check=check, sample=like_after_sft, dose=1.0)
    assert f"| 1 | {found.agreement:.2f} (" in card()
