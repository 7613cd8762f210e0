"""What a stage measures: splits by prompt, length baselines, agreement with gold."""

import numpy as np

from rlhflab.analysis.reward_quality import reward_quality
from rlhflab.data.types import Message, PreferencePair, Prompt
from rlhflab.runs.sources import group_by_prompt
from rlhflab.runs.stages import split_by_prompt
from rlhflab.scenarios import scenario


def pair(name: str, chosen: str, rejected: str) -> PreferencePair:
    return PreferencePair(prompt=Prompt(id=name, messages=(Message(role="user", content=name),)), chosen=chosen,
                          rejected=rejected)


def test_no_prompt_is_on_both_sides_of_the_split() -> None:
    pairs = [pair(f"p{i % 10}", f"a{i}", "b") for i in range(40)]
    train, held_out = split_by_prompt(pairs, share=0.2, seed=1)
    assert len(held_out) == 8 and len(train) == 32
    assert not {p.prompt.messages for p in train} & {p.prompt.messages for p in held_out}


def test_pairs_of_one_prompt_are_grouped_whatever_their_ids() -> None:
    groups = group_by_prompt([pair("p", "a", "b"), pair("q", "a", "b"), pair("p", "a", "c")])
    assert [[p.rejected for p in group] for group in groups] == [["b", "c"], ["b"]]


def test_the_length_baseline_takes_its_direction_from_the_training_pairs() -> None:
    shorter_wins = [pair(f"t{i}", "a", "a long one") for i in range(5)]
    held_out = [pair("h0", "b", "longer"), pair("h1", "longer", "b"), pair("h2", "b", "b")]
    scores = np.array([[1.0, 0.0], [0.0, 1.0], [2.0, 1.0]])
    quality = reward_quality(shorter_wins, held_out, scores, None)
    assert quality["length_only"]["mean"] == 0.5, "one right, one wrong, one tie at a half"
    assert quality["accuracy"]["mean"] == 2 / 3 and quality["gold_order"] is None


def test_agreement_with_gold_leaves_gold_ties_out_and_does_not_ask_the_labels() -> None:
    task = scenario("helpdesk")
    prompt = next(p for p in task.prompts("rl", 20) if p.facts["answerable"] and p.facts["demand"] == "none")
    right = str(prompt.facts["sentence"])
    mislabelled = PreferencePair(prompt=prompt, chosen="I don't know.", rejected=right)
    tie = PreferencePair(prompt=prompt, chosen="", rejected=" ")
    scores = np.array([[0.0, 1.0], [1.0, 0.0]])  # the model sides with gold, against the label
    quality = reward_quality([mislabelled], [mislabelled, tie], scores, task)
    assert quality["gold_order"]["mean"] == 1.0 and quality["gold_order"]["n"] == 1
    assert quality["labels_on_gold_order"]["mean"] == 0.0
