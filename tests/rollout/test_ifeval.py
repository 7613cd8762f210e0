"""Instructions are checked by checkers from outside, in all, in part, and loosely; benchmarks run lm-eval itself."""

import random
from typing import Any

import pytest

from rlhflab.data.types import Message, Prompt
from rlhflab.errors import ConfigError
from rlhflab.rollout import ifeval
from rlhflab.rollout.ifeval import follows, variants


class StartsWith:
    """A checker of the shape lm-eval's have."""

    def __init__(self, name: str) -> None:
        self.start = ""

    def build_description(self, start: str = "", prompt: str = "") -> None:
        self.start = start or prompt

    def get_instruction_args(self) -> dict[str, str]:
        return {"start": self.start}

    def check_following(self, text: str) -> bool:
        return text.startswith(self.start)


class Repeats(StartsWith):
    """One that asks for the prompt's own text."""

    def get_instruction_args(self) -> dict[str, str]:
        return {"prompt": ""}


class Draws(StartsWith):
    """One that decides by chance, as lm-eval's does of a letter that is none."""

    def check_following(self, text: str) -> bool:
        return random.random() < 0.5


REGISTRY = {"start": StartsWith, "repeat": Repeats, "draw": Draws}


def score(answer: str, ids: list[str], options: list[Any], **how: bool) -> float | None:
    prompt = Prompt(id="p1", messages=(Message(role="user", content="Why?"),),
                    facts={"instruction_id_list": ids, "kwargs": options})
    return follows(prompt, answer, registry=REGISTRY, **{"loose": False, "share": False, **how}).value


def test_all_instructions_count_or_their_share() -> None:
    two: tuple[list[str], list[Any]] = (["start", "repeat"], [{"start": "W", "unused": None}, None])
    assert score("Why? So.", *two) == 1 and score("Well.", *two) == 0
    assert score("Well.", *two, share=True) == 0.5 and score("  ", ["start"], [{}]) == 0


def test_the_loose_measure_forgives_a_first_line_and_asterisks() -> None:
    answer = "Sure!\n**Why**? So.\nBye."
    assert score(answer, ["repeat"], [{}]) == 0 and score(answer, ["repeat"], [{}], loose=True) == 1
    assert len(variants(answer)) == 8 and "Why? So." in variants(answer)


def test_rows_that_name_nothing_known_are_one_sentence() -> None:
    with pytest.raises(ConfigError, match="row p1: no instruction is called 'stop'; there are draw, repeat, start"):
        score("a", ["stop"], [{}])
    with pytest.raises(ConfigError, match="two lists of one length"):
        score("a", ["start"], [])


def test_without_the_extra_the_sentence_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ifeval.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"not installed; run: pip install 'mini-rlhf-lab\[ifeval\]'"):
        ifeval.registry_of_lm_eval()


def test_a_type_that_needs_a_download_is_unscored(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ifeval, "registry_of_lm_eval", lambda: REGISTRY)
    monkeypatch.setattr(ifeval, "has_punkt", lambda: False)
    prompt = Prompt(id="p1", messages=(), facts={
        "instruction_id_list": ["length_constraints:number_sentences"], "kwargs": [{}]})
    found = follows(prompt, "One.", loose=False, share=False)
    assert found.value is None and "punkt_tab, which is not downloaded" in found.reason


def test_what_a_checker_draws_is_the_same_for_the_same_row_and_leaves_other_draws_alone() -> None:
    def verdicts() -> list[float | None]:
        return [follows(Prompt(id=f"p{i}", messages=(Message(role="user", content="Why?"),), facts={
            "instruction_id_list": ["draw"], "kwargs": [{}]}), "a", loose=False, share=False, registry=REGISTRY).value
            for i in range(20)]

    random.seed(1)
    before = random.getstate()
    first = verdicts()
    assert random.getstate() == before
    random.seed(2)
    assert verdicts() == first and set(first) == {0.0, 1.0}
