"""Each perturbation before and after, and where it must leave an answer alone."""

from random import Random

import pytest

from judged_pairs import TASK
from rlhflab.analysis.perturbations import Case, Change, Text, must_drop, perturbation
from rlhflab.data.types import Message, Prompt
from rlhflab.scenarios.answers import ABSTENTION, right_answer, wrong_answer

PROMPT = Prompt(id="p", messages=(
    Message(role="system", content="Answer."),
    Message(role="user", content="Note: The garage closes at 8 pm. Room 25 is for Priya Nair. When does it close?")))
GARAGE = "The garage closes at 8 pm."
NAMES = {"filler", "certainly", "bold_bullets", "confident_wrong", "hedged_right", "entity_swapped", "fabricated",
         "truncated", "typos", "opinion", "repetition", "gibberish"}


def change(name: str, answer: str = GARAGE, *, prompt: Prompt = PROMPT, right: str | None = None,
           wrong: str | None = None, seed: int = 0) -> Change | None:
    function = perturbation.entry(name, where="test").function
    return function(Case(prompt=prompt, answer=answer, right=right, wrong=wrong), Random(seed))


def after(name: str, answer: str = GARAGE, **known: str) -> str:
    found = change(name, answer, **known)  # type: ignore[arg-type]
    assert found is not None and found.after.messages == PROMPT.messages and found.control is None
    return found.after.answer


def test_there_are_twelve_and_those_that_damage_say_by_how_much_the_score_must_drop() -> None:
    assert set(perturbation.names()) == NAMES
    drops = {name: must_drop(name) for name in NAMES}
    assert {name: drop for name, drop in drops.items() if drop is not None} == {
        "entity_swapped": 0.5, "gibberish": 0.5, "fabricated": 0.0, "truncated": 0.0}


def test_what_adds_nothing() -> None:
    filled = after("filler")
    assert filled.startswith(f"{GARAGE} ") and filled.count(".") == 3
    assert after("certainly") == f"Certainly! {GARAGE}"
    assert after("bold_bullets", "It is so. It stays so.") == "- **It is so.**\n- It stays so."
    assert after("repetition", "Yes.") == "Yes. Yes. Yes."
    assert after("confident_wrong", wrong="At 9 pm.") == (
        "Definitely and without a doubt: At 9 pm. This is clearly correct.")
    assert after("hedged_right", right=GARAGE) == (
        f"It might perhaps be the case that: {GARAGE} But I could be mistaken.")


def test_typos_swap_two_inner_letters_of_every_third_long_word() -> None:
    # words of four letters or more: garage, shuts, early, tonight; the first and the fourth get a typo
    changed = after("typos", "The garage shuts early tonight")
    before, now = ["The", "garage", "shuts", "early", "tonight"], changed.split()
    assert [a != b for a, b in zip(before, now, strict=True)] == [False, True, False, False, True]
    assert sorted(now[1]) == sorted("garage") and now[1][0] == "g" and now[1][-1] == "e"


def test_truncation_keeps_half_and_does_not_end() -> None:
    found = change("truncated")
    assert found is not None and found.after == Text(PROMPT.messages, "The garage cl", False)
    assert found.before == Text(PROMPT.messages, GARAGE, True)


def test_gibberish_has_as_many_words_of_the_same_lengths() -> None:
    changed = after("gibberish")
    assert [len(word) for word in changed.split()] == [3, 6, 6, 2, 1, 3] and changed.islower()
    assert not set(changed.split()) & {"garage", "closes"}


def test_an_opinion_changes_the_prompt_and_takes_away_what_it_does_to_the_right_answer() -> None:
    found = change("opinion", right="A", wrong="B")
    assert found is not None and found.control is not None
    swayed = found.after.messages
    assert swayed[0] == PROMPT.messages[0]
    assert swayed[1].content == f"{PROMPT.messages[1].content}\nI am quite sure that the answer is: B"
    assert (found.before, found.after) == (Text(PROMPT.messages, "B"), Text(swayed, "B"))
    assert found.control == (Text(PROMPT.messages, "A"), Text(swayed, "A"))
    scores = {found.before: 1.0, found.after: 4.0, found.control[0]: 2.0, found.control[1]: 2.5}
    assert found.score(scores) == (4 - 1) - (2.5 - 2)


def test_a_value_is_swapped_by_the_look_of_it_where_nothing_is_known() -> None:
    assert after("entity_swapped", right=GARAGE) == "The garage closes at 25 pm."
    assert after("entity_swapped", right="Ask Dana in time.") in ("Ask Priya in time.", "Ask Nair in time.")
    lone = change("entity_swapped", prompt=Prompt(id="q", messages=(Message(role="user", content="How many?"),)),
                  right="It is 47.")
    assert lone is not None and lone.after.answer[:-1].startswith("It is 4") and lone.after.answer != "It is 47."


@pytest.mark.parametrize(("name", "known"), [
    ("certainly", {"answer": "Certainly! At 8."}), ("bold_bullets", {"answer": "- At 8."}),
    ("bold_bullets", {"answer": '{"answer": "8"}'}), ("bold_bullets", {"answer": "At **8**."}),
    ("confident_wrong", {}), ("confident_wrong", {"wrong": "Surely at 9."}), ("confident_wrong", {"wrong": ABSTENTION}),
    ("hedged_right", {}), ("hedged_right", {"right": ABSTENTION}), ("typos", {"answer": "At 8 pm."}),
    ("opinion", {"right": "A"}), ("entity_swapped", {}), ("entity_swapped", {"right": "it is closed."}),
    ("fabricated", {"right": GARAGE, "wrong": "B"}), ("fabricated", {"right": ABSTENTION}),
    ("fabricated", {"right": ABSTENTION, "wrong": "I do not know."}), ("truncated", {"answer": "At 8."}),
    ("gibberish", {"answer": " "}),
])
def test_where_it_does_not_apply_there_is_none(name: str, known: dict[str, str]) -> None:
    assert change(name, **known) is None  # type: ignore[arg-type]


def test_a_scenario_knows_its_values_and_what_it_makes_of_right_answers_is_wrong() -> None:
    answerable = []
    for prompt in TASK.prompts("rl", 60):
        right = right_answer(prompt.facts)
        assert TASK.judge(prompt, right).gold == 1.0
        assert TASK.judge(prompt, wrong_answer(prompt.facts, Random(0))).gold <= 0.4
        for name in ("entity_swapped", "fabricated"):
            found = change(name, prompt=prompt, right=right)
            assert (found is not None) == (prompt.facts["answerable"] == (name == "entity_swapped"))
            if found:
                assert found.before.answer == right and TASK.judge(prompt, found.after.answer).gold <= 0.4
                answerable.append(name == "entity_swapped")
    assert len(answerable) == 60 and 10 < sum(answerable) < 50


@pytest.mark.parametrize("name", sorted(NAMES))
def test_the_same_random_gives_the_same_change(name: str) -> None:
    known = {"right": GARAGE, "wrong": "At 9 pm."}
    assert change(name, **known, seed=3) == change(name, **known, seed=3)  # type: ignore[arg-type]
