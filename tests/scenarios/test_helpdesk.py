"""Prompts, splits, demonstrations and cards of the note scenarios."""

import json
import subprocess
import sys
from collections import Counter
from dataclasses import asdict
from hashlib import sha256
from typing import get_args

import pytest

from rlhflab.data.types import Message, Prompt
from rlhflab.errors import ConfigError
from rlhflab.scenarios import names, scenario
from rlhflab.scenarios.answers import in_demand
from rlhflab.scenarios.base import Split
from rlhflab.scenarios.gold import check, contains, count_words, distractor, normalised
from rlhflab.scenarios.note_scenario import NoteScenario
from rlhflab.scenarios.notes import DEMANDS
from rlhflab.scenarios.splits import owned

SPLITS = get_args(Split)
HELPDESK = scenario("helpdesk")


def families(name):
    found = scenario(name)
    assert isinstance(found, NoteScenario)
    return found.families


NOTES = [name for name in names() if isinstance(scenario(name), NoteScenario)]


def test_an_unknown_scenario_is_answered_with_the_known_names():
    with pytest.raises(ConfigError, match=r"'helpdesk2'; there are .*helpdesk.*release_notes"):
        scenario("helpdesk2")


def test_an_unknown_split_is_answered_with_the_known_splits():
    with pytest.raises(ConfigError, match="'test'; there are train, rl, evaluation, regression"):
        HELPDESK.prompts("test", 1)


@pytest.mark.parametrize("name", NOTES)
def test_no_entity_value_or_phrasing_is_in_two_splits(name):
    home = {}
    for family in families(name):
        for split in SPLITS:
            for items in (family.entities, family.statements, family.questions):
                assert len(set(items)) == len(items)
                for item in owned(items, split):
                    assert home.setdefault(item, split) == split, item
            for value in family.kind.of(split):
                assert home.setdefault(("value", normalised(value)), split) == split, value


@pytest.mark.parametrize("name", NOTES)
def test_every_split_owns_at_least_two_entities_two_values_and_one_phrasing_of_each_kind(name):
    for family in families(name):
        for split in SPLITS:
            assert len(owned(family.entities, split)) >= 2
            assert len(family.kind.of(split)) >= 2
            assert owned(family.statements, split) and owned(family.questions, split)


def test_the_prompts_of_two_splits_share_no_sentence_and_no_question():
    seen = {}
    for split in SPLITS:
        for prompt in HELPDESK.prompts(split, 300):
            for text in (*prompt.facts["note_sentences"], prompt.facts["question"]):
                assert seen.setdefault(text, split) == split


def test_the_helpdesk_has_at_least_sixteen_families():
    assert len({family.name for family in families("helpdesk")}) >= 16


def test_a_smaller_number_of_prompts_is_a_prefix_of_a_larger_one():
    assert HELPDESK.prompts("rl", 30, seed=4) == HELPDESK.prompts("rl", 90, seed=4)[:30]


@pytest.mark.parametrize("name", ["helpdesk", "release_notes", "devtools"])
def test_every_other_prompt_to_compare_is_open_and_a_smaller_number_is_a_prefix(name):
    task = scenario(name)
    prompts = task.comparison_prompts(31, seed=4)
    assert [p.facts["answerable"] for p in prompts] == [False, True] * 15 + [False]
    assert prompts == task.comparison_prompts(90, seed=4)[:31]
    assert len({p.id for p in prompts}) == 31 and all(p.facts["split"] == "rl" for p in prompts)


def test_another_seed_gives_other_prompts_and_other_ids():
    one, two = HELPDESK.prompts("rl", 50, seed=1), HELPDESK.prompts("rl", 50, seed=2)
    assert not {p.messages for p in one} & {p.messages for p in two}
    assert one[7].id == "helpdesk-rl-1-7"


@pytest.mark.parametrize("split", SPLITS)
def test_no_two_prompts_of_one_call_are_equal(split):
    prompts = HELPDESK.prompts(split, 1500)
    assert len({prompt.messages[-1].content for prompt in prompts}) == 1500


def digest_of_prompts():
    text = "".join(p.messages[-1].content for p in HELPDESK.prompts("train", 20))
    return sha256(text.encode()).hexdigest()


def test_another_process_with_another_string_hash_makes_the_same_prompts():
    code = ("from hashlib import sha256; from rlhflab.scenarios import scenario; "
            "text = ''.join(p.messages[-1].content for p in scenario('helpdesk').prompts('train', 20)); "
            "print(sha256(text.encode()).hexdigest())")
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True,
                         env={"PYTHONHASHSEED": "77", "PYTHONPATH": ":".join(sys.path)})
    assert run.stdout.strip() == digest_of_prompts()


def test_three_quarters_are_answerable_and_half_of_the_rest_ask_for_a_sibling():
    counts = Counter(p.facts["answerability"] for p in HELPDESK.prompts("evaluation", 400))
    assert counts == {"answerable": 300, "sibling": 50, "other_family": 50}


def test_two_fifths_carry_no_demand_and_the_others_are_equally_frequent():
    counts = Counter(p.facts["demand"] for p in HELPDESK.prompts("evaluation", 500))
    assert counts == {"none": 200, **{demand: 60 for demand in DEMANDS if demand != "none"}}


@pytest.mark.parametrize("name", NOTES)
def test_the_note_answers_the_question_exactly_when_the_prompt_says_so(name):
    for prompt in scenario(name).prompts("evaluation", 200):
        facts = prompt.facts
        asked = [s for s, f in zip(facts["note_sentences"], facts["note_families"], strict=True)
                 if f == facts["family"] and facts["entity"].casefold() in s.casefold()]
        assert len(asked) == (1 if facts["answerable"] else 0)
        assert (facts["family"] in facts["note_families"]) == (facts["answerability"] != "other_family")


@pytest.mark.parametrize("name", NOTES)
def test_no_value_of_a_note_is_found_inside_another_one(name):
    for prompt in scenario(name).prompts("rl", 300):
        values = [normalised(value) for value in prompt.facts["note_values"]]
        assert 3 <= len(values) <= 5
        assert not any(contains(a, b) for i, a in enumerate(values) for j, b in enumerate(values) if i != j)


@pytest.mark.parametrize("name", NOTES)
def test_no_value_of_the_asked_kind_stands_in_a_question(name):
    for prompt in scenario(name).prompts("train", 300):
        assert distractor({**prompt.facts, "right": None}, prompt.facts["question"]) is None


def test_prompts_are_short_and_carry_the_limit():
    prompts = HELPDESK.prompts("rl", 200)
    assert all("Answer in at most 12 words." in p.messages[-1].content for p in prompts)
    assert max(len(p.messages[-1].content) for p in prompts) < 400


def test_no_generated_value_holds_a_comma_and_no_statement_breaks_the_limit():
    for name in NOTES:
        for family in families(name):
            longest = max(family.kind.values, key=count_words)
            entity = max(family.entities, key=count_words)
            assert not any("," in value for value in family.kind.values)
            assert all(count_words(s.format(e=entity, E=entity, v=longest)) <= 12 for s in family.statements)


def test_a_prompt_read_back_from_json_is_judged_the_same():
    for prompt in HELPDESK.prompts("evaluation", 40):
        row = json.loads(json.dumps(asdict(prompt)))
        again = Prompt(id=row["id"], messages=tuple(Message(**m) for m in row["messages"]), facts=row["facts"])
        for answer in ("I don't know.", prompt.facts["note_sentences"][0], ""):
            assert HELPDESK.judge(again, answer) == HELPDESK.judge(prompt, answer)


def test_measures_that_do_not_apply_are_none():
    prompts = HELPDESK.prompts("evaluation", 100)
    free = next(p for p in prompts if p.facts["answerable"] and p.facts["demand"] == "none")
    bound = next(p for p in prompts if not p.facts["answerable"] and p.facts["demand"] == "lower")
    on_free, on_bound = HELPDESK.judge(free, "x").measures, HELPDESK.judge(bound, "i don't know.").measures
    assert {name for name, value in on_free.items() if value is None} == {
        "abstention_recall", "format", "format_loose"}
    assert {name for name, value in on_bound.items() if value is None} == {"right", "over_refusal"}
    assert on_bound["abstention_recall"] == on_bound["format"] == on_bound["strict"] == 1.0


def test_every_declared_measure_is_reported_and_gold_is_the_first():
    prompt = HELPDESK.prompts("evaluation", 1)[0]
    assert [m.name for m in HELPDESK.measures] == list(HELPDESK.judge(prompt, "x").measures)
    assert HELPDESK.measures[0].name == "gold"


def test_demonstrations_answer_train_prompts_right_and_always_abstain_on_unanswerable_ones():
    prompts = HELPDESK.prompts("train", 300, seed=3)
    for prompt, shown in zip(prompts, HELPDESK.demonstrations(300, seed=3), strict=True):
        assert shown.messages[:-1] == prompt.messages
        found = check(prompt.facts, shown.messages[-1].content)
        assert found.knowledge == 1.0, found.reason
        assert prompt.facts["answerable"] or found.format == 1.0


@pytest.mark.parametrize("mixed", [0.0, 0.4, 1.0])
def test_the_share_of_demonstrations_in_mixed_style_is_the_one_asked_for(mixed):
    prompts = HELPDESK.prompts("train", 400)
    shown = HELPDESK.demonstrations(400, mixed=mixed)
    answerable = [(p, c) for p, c in zip(prompts, shown, strict=True) if p.facts["answerable"]]
    plain = sum(c.messages[-1].content in {
        in_demand(text, p.facts["demand"])
        for text in (p.facts["sentence"], f"{p.facts['right'][0].upper()}{p.facts['right'][1:]}.")
    } for p, c in answerable)
    # an opener alone changes the text too, so what is not plain is mixed
    assert len(answerable) - plain == round(mixed * len(answerable))


def test_demonstrations_are_a_prefix_too_and_both_styles_come_in_several_wordings():
    shown = HELPDESK.demonstrations(200)
    assert HELPDESK.demonstrations(60) == shown[:60]
    openers = Counter(c.messages[-1].content.split()[0].strip("!:").lower() for c in shown)
    assert sum(openers[word] > 0 for word in ("certainly", "absolutely", "of", "without", "definitely")) >= 4


@pytest.mark.parametrize("name", NOTES)
def test_the_data_card_names_licence_splits_and_every_family(name):
    card = scenario(name).data_card()
    assert "Apache-2.0" in card and "## Limits" in card
    assert all(f"| {family.name} |" in card for family in families(name))
    assert all(f"| {split} |" in card for split in SPLITS)


def test_the_second_domain_shares_no_value_entity_or_phrasing_with_the_trained_one():
    def everything(name):
        return {normalised(value) for f in families(name) for value in f.kind.values} | {
            item for f in families(name) for item in (*f.entities, *f.statements, *f.questions)}

    assert not everything("helpdesk") & everything("release_notes")
