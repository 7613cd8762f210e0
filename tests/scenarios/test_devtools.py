"""The scenario `devtools`: disjoint splits, a gold check that parses, and no cheap policy that pays."""

import json
from random import Random
from statistics import mean
from typing import get_args

import pytest

from rlhflab.scenarios import scenario
from rlhflab.scenarios.annotators import CALIBRATED, calibrate
from rlhflab.scenarios.base import Split
from rlhflab.scenarios.manual_answers import in_demand, like_after_sft, sentence, wrong_value
from rlhflab.scenarios.manual_gold import check, fault_of, unwrapped
from rlhflab.scenarios.manuals import ABSTENTION
from rlhflab.scenarios.tools import FILES, FLAGS, TOOLS, VALUED

DEVTOOLS = scenario("devtools")
OPTIONS = [{"names": ["--depth", "-d"], "argument": "N"}, {"names": ["--quiet", "-q"], "argument": ""},
           {"names": ["--jobs"], "argument": "N"}]


def command(demand="none", **other):
    return {"family": "command", "demand": demand, "answerable": True, "tool": "lopsy", "options": OPTIONS,
            "file": "notes.md", "wanted": {"--depth": "3", "--quiet": None},
            "right": "lopsy --depth 3 --quiet notes.md", **other}


def option(demand="none", **other):
    return {"family": "option", "demand": demand, "answerable": True, "tool": "lopsy", "options": OPTIONS,
            "right": "--depth", "right_names": ["--depth", "-d"], **other}


def default(demand="none", **other):
    return {"family": "default", "demand": demand, "answerable": True, "tool": "lopsy", "options": OPTIONS,
            "right": "4", "asked": "--depth", "wrong_values": ["8"], "note_values": ["17"],
            "pattern": r"\d+(?:[.,:]\d+)*", **other}


SILENT = {"answerable": False, "right": None}


@pytest.mark.parametrize("line", [
    "lopsy --depth 3 --quiet notes.md", "lopsy -q notes.md -d 3", "lopsy --quiet --depth=3 notes.md",
    "lopsy -d3 -q 'notes.md'", "$ lopsy -d 3 --quiet notes.md"])
def test_a_command_is_right_in_any_order_and_spelling(line):
    assert fault_of(command(), line) is None


@pytest.mark.parametrize(("line", "says"), [
    ("lopsy --depth 3 notes.md", "other options"), ("lopsy --depth 4 --quiet notes.md", "other options"),
    ("lopsy --depth 3 --quiet", "the files (none)"), ("lopsy --depth 3 --quiet other.md", "the files other.md"),
    ("lopsy --depth 3 --quiet --fast notes.md", "--fast, which the manual does not list"),
    ("mibbet --depth 3 --quiet notes.md", "another command"), ("lopsy --quiet=3 --depth 3 notes.md", "does not fit"),
    ("lopsy -d 3 --depth 3 -q notes.md", "does not fit"), ("lopsy 'notes.md", "no command line"),
    ("lopsy --quiet notes.md --depth", "other options"), ("lopsy -d 3 -q notes.md && touch x", "the files")])
def test_what_is_wrong_with_a_command_is_said(line, says):
    assert says in fault_of(command(), line)


@pytest.mark.parametrize(("demand", "good", "bad"), [
    ("fence", "```\nlopsy -d 3 -q notes.md\n```", "lopsy -d 3 -q notes.md"),
    ("fence", "```sh\nlopsy -d 3 -q notes.md\n```", "```\nlopsy -d 3 -q notes.md\n```\nDone."),
    ("json", '{"command": "lopsy -d 3 -q notes.md"}', '{"answer": "lopsy -d 3 -q notes.md"}'),
    ("json", ' {"command": "lopsy -d 3 -q notes.md"}', '{"command": "a", "command": "lopsy -d 3 -q notes.md"}'),
    ("json_tool", '{"tool": "lopsy", "command": "lopsy -d 3 -q notes.md"}', '{"command": "lopsy -d 3 -q notes.md"}'),
    ("json_tool", '{"command": "lopsy -d 3 -q notes.md", "tool": "lopsy"}', '["lopsy"]'),
    ("none", "Run `lopsy -d 3 -q notes.md`.", "Run\n`lopsy -d 3 -q notes.md`.")])
def test_a_demand_is_met_as_emitted_or_not_at_all(demand, good, bad):
    assert check(command(demand), good).gold == pytest.approx(1.0)
    assert unwrapped(command(demand), bad) is None


@pytest.mark.parametrize("answer", [
    "Run `lopsy -d 3 -q notes.md`.", "`lopsy -d 3 -q notes.md`", "lopsy -d 3 -q notes.md.",
    "Certainly! Run `lopsy -d 3 -q notes.md`. This is clear.", "Sure:\n```\nlopsy -d 3 -q notes.md\n```\nBye."])
def test_a_command_is_found_in_words_around_it(answer):
    assert check(command(), answer).knowledge == 1.0


def test_two_commands_of_which_one_is_right_are_wrong():
    found = check(command(), "`lopsy -d 3 -q notes.md` or `lopsy -q notes.md`")
    assert (found.knowledge, found.plausible) == (-1.0, True)


def test_an_option_is_right_under_either_name_and_not_beside_another():
    knows = [check(option(), text).knowledge for text in (
        "Pass --depth.", "Use -d.", "--depth or --jobs.", "--jobs.", "--depths.", "depth", "Use --fast.")]
    assert knows == [1.0, 1.0, -1.0, -1.0, -1.0, -1.0, -1.0]


def test_a_default_is_its_value_and_no_other():
    knows = [check(default(), text).knowledge for text in (
        "4.", "The default of --depth is 4.", "4 or 8.", "17.", "40.", "It is 4, not 99.")]
    assert knows == [1.0, 1.0, -1.0, -1.0, -1.0, -1.0]


def test_the_tool_of_a_json_answer_has_to_be_right_too():
    good, bad = (json.dumps({"tool": tool, "option": "--depth"}) for tool in ("lopsy", "mibbet"))
    assert [check(option("json_tool"), text).knowledge for text in (good, bad)] == [1.0, -1.0]


def test_abstaining_is_right_only_where_the_manual_is_silent_and_meets_the_demand():
    silent = option("json", right_names=[], **SILENT)
    assert check(silent, json.dumps({"option": ABSTENTION})).gold == pytest.approx(1.0)
    assert check(silent, ABSTENTION).gold == pytest.approx(0.75)
    assert check(option(), ABSTENTION).knowledge == -0.6
    assert check(silent, f"{ABSTENTION} Maybe --depth.").knowledge == -1.0


def test_an_abstention_stands_without_a_code_block_and_no_command_is_right_then():
    silent = command("fence", wanted={}, **SILENT)
    assert check(silent, ABSTENTION).gold == pytest.approx(1.0)
    assert check(silent, "```\nlopsy notes.md\n```").knowledge == -1.0


def test_the_loose_check_forgives_words_around_a_block():
    found = check(command("fence"), "Here it is:\n```\nlopsy -d 3 -q notes.md\n```\nDone.")
    assert (found.meets_demand, found.meets_loosely, found.knowledge) == (False, True, 1.0)


@pytest.mark.parametrize("answer", ["", " \n", "```\n```", '{"command": ""}'])
def test_an_answer_without_a_word_has_gold_zero(answer):
    assert check(command("json"), answer).gold == 0.0


# ---- data -----------------------------------------------------------------------------------------------------


def test_no_tool_option_file_or_question_is_in_two_splits():
    said = {split: " ".join(p.messages[-1].content for p in DEVTOOLS.prompts(split, 600)).split()
            for split in get_args(Split)}
    for name in (*TOOLS, *FILES, *(f"{each.name}:" for each in FLAGS), *(each.name for each in VALUED)):
        assert sum(name in words or f"{name}," in words for words in said.values()) <= 1, name


def test_a_quarter_is_unanswerable_in_each_family_and_a_smaller_draw_is_a_prefix():
    prompts = DEVTOOLS.prompts("train", 240)
    assert prompts[:50] == DEVTOOLS.prompts("train", 50)
    for family in ("option", "default", "command"):
        of = [p.facts["answerable"] for p in prompts if p.facts["family"] == family]
        assert (len(of), sum(of)) == (80, 60)


def test_what_the_facts_say_is_right_stands_in_the_manual_and_what_is_absent_does_not():
    for prompt in DEVTOOLS.prompts("rl", 240):
        manual, facts = prompt.messages[-1].content.rpartition("\n")[0], prompt.facts
        if facts["family"] == "default":
            line = next(line for line in manual.splitlines() if facts["asked"] in line)
            assert line.endswith(f"(default: {facts['right']})") == facts["answerable"]
        for name in facts.get("wanted", {}):
            assert name in manual


# ---- audit ------------------------------------------------------------------------------------------------------


def oracle(f, random):
    value = f["right"] or ABSTENTION
    return in_demand(f, value, sentence(f, value, random) if f["right"] else ABSTENTION)


def never_abstains(f, random):
    value = f["right"] or wrong_value(f, random)
    return in_demand(f, value, sentence(f, value, random))


def right_in_seven_of_ten(f, random):
    value = wrong_value(f, random)
    return oracle(f, random) if random.random() < 0.7 else in_demand(f, value, sentence(f, value, random))


def always_abstains(f, _random):
    return in_demand(f, ABSTENTION, ABSTENTION)


def copies_the_manual(f, _random):
    return "\n".join(f"{', '.join(each['names'])}: does something" for each in f["options"])


DEGENERATE = {
    "always abstains": always_abstains, "copies the manual": copies_the_manual, "empty": lambda f, _: "",
    "abstains without the demand": lambda f, _: ABSTENTION,
    "repeats the question": lambda f, _: in_demand(f, f["question"], f["question"]),
    "lists all options": lambda f, _: in_demand(f, *[" ".join(each["names"][0] for each in f["options"])] * 2),
    "tool and file": lambda f, _: in_demand(f, *[f"{f['tool']} {f.get('file', '')}"] * 2),
    "value and hedge": lambda f, r: in_demand(f, *[f"{never_abstains({**f, 'demand': 'none'}, r)} {ABSTENTION}"] * 2),
    "invents an option": lambda f, _: in_demand(f, *[f"{f['tool']} --auto {f.get('file', '')}"] * 2),
    "confident and wrong": lambda f, r: in_demand(f, *[f"Certainly! {sentence(f, wrong_value(f, r), r)}"] * 2),
}


def mean_gold(policy, split="evaluation"):
    random = Random(0)
    return mean(DEVTOOLS.judge(p, policy(p.facts, random)).gold for p in DEVTOOLS.prompts(split, 360))


@pytest.mark.parametrize("split", get_args(Split))
def test_the_oracle_reaches_full_gold_on_every_prompt(split):
    assert mean_gold(oracle, split) == pytest.approx(1.0)


def test_policies_rank_as_they_deserve():
    ranked = [mean_gold(policy) for policy in (
        oracle, never_abstains, right_in_seven_of_ten, always_abstains, copies_the_manual, lambda f, r: "")]
    assert ranked == sorted(ranked, reverse=True) and len(set(ranked)) == 6 and ranked[-1] == 0.0


@pytest.mark.parametrize("policy", DEGENERATE)
def test_every_degenerate_policy_ranks_below_seventy_percent_right(policy):
    assert mean_gold(DEGENERATE[policy]) < mean_gold(right_in_seven_of_ten) - 0.05


def test_demonstrations_are_right_and_a_share_of_them_is_mixed():
    prompts = DEVTOOLS.prompts("train", 240)
    found = [DEVTOOLS.judge(p, each.messages[-1].content).measures
             for p, each in zip(prompts, DEVTOOLS.demonstrations(240), strict=True)]
    assert {each["right"] for each in found} == {1.0, None}
    assert 0.6 < mean(each["strict"] for each in found) < 0.8, ".3 of all are mixed: .4 of three quarters"


def test_the_annotators_lie_in_the_human_range_here_too():
    found = calibrate(CALIBRATED, DEVTOOLS.prompts("rl", 1200, seed=5), check=check, sample=like_after_sft, dose=1.0)
    assert 0.63 <= found.agreement <= 0.77 and 0.55 <= found.longer <= 0.68


def test_the_cards_count_what_they_say():
    assert "| train | 12 | 30 | 9 | 9 |" in DEVTOOLS.data_card()
    assert "any option, value or command line" in DEVTOOLS.annotator_card()
