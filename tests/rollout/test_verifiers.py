"""What each check lets pass, at the places where a careless one would be wrong."""

import pytest

from rlhflab.data.types import Message, Prompt
from rlhflab.errors import ConfigError
from rlhflab.rollout.verifiers import verifier


def verify(name: str, answer: str, *, facts: dict[str, object] | None = None, **options: object) -> float | None:
    prompt = Prompt(id="p7", messages=(Message(role="user", content="?"),), facts=facts or {})
    return verifier.bind(name, options, where="check")(prompt, answer).value


@pytest.mark.parametrize(("name", "answer", "value", "passes"), [
    ("exact", " At  8 PM. ", "at 8 pm", 1), ("exact", "At 8 pm sharp", "at 8 pm", 0),
    ("contains", "It is 5, I think.", 5, 1),
    ("contains", "It is 25.", 5, 0),  # "25" ends with "5" as text, but 25 is not 5
    ("contains", "It is 2.5 km.", 5, 0), ("contains", "It is 5.5 km.", 5, 0), ("contains", "It is 5.", 5, 1),
    ("contains", "an Annabel", "Anna", 0), ("contains", "Ask ANNA!", "Anna", 1),
    ("contains", "costs $4 (four)", "$4", 1), ("contains", "(a+b)", "a+b", 1),
    ("contains", "by noon", ["at 12", "noon"], 1), ("contains", "later", ["at 12", "noon"], 0),
])
def test_a_value_of_the_facts(name: str, answer: str, value: object, passes: float) -> None:
    assert verify(name, answer, facts={"value": value}) == passes


def test_letters_count_when_asked() -> None:
    assert verify("contains", "ask ANNA", facts={"who": "Anna"}, key="who", case=True) == 0
    assert verify("exact", "Anna", facts={"who": "Anna"}, key="who", case=True) == 1


@pytest.mark.parametrize("facts", [{}, {"value": None}, {"value": " "}, {"value": []}])
def test_without_a_value_nothing_is_scored(facts: dict[str, object]) -> None:
    prompt = Prompt(id="p7", messages=(Message(role="user", content="?"),), facts=facts)
    score = verifier.bind("contains", {}, where="check")(prompt, "5")
    assert score.value is None and score.reason == "row p7 has no 'value' in its facts"


@pytest.mark.parametrize(("options", "answer", "passes"), [
    ({"pattern": r"\d+ pm"}, "at 8 pm", 1), ({"pattern": r"\d+ pm", "whole": True}, "at 8 pm", 0),
    ({"pattern": r"[^\n]*", "whole": True}, "one\ntwo", 0)])
def test_a_pattern(options: dict[str, object], answer: str, passes: float) -> None:
    assert verify("regex", answer, **options) == passes


def test_a_broken_pattern_is_named_before_the_run() -> None:
    with pytest.raises(ConfigError, match=r"check\.pattern: .*is not a regular expression"):
        verify("regex", "x", pattern="(")


@pytest.mark.parametrize(("answer", "keys", "passes"), [
    ('{"a": 1}', [], 1), ('{"a": 1}', ["a"], 1), ('{"a": 1}', ["a", "b"], 0), ("[1]", ["a"], 0), ("3", [], 1),
    ('{"a": NaN}', [], 0), ('Here: {"a": 1}', [], 0), ("", [], 0), ("[" * 99_999, [], 0)])
def test_json(answer: str, keys: list[str], passes: float) -> None:
    assert verify("json", answer, keys=keys) == passes


@pytest.mark.parametrize(("answer", "passes"), [("one two", 1), ("one two three", 0), ("", 0), ("  \n", 0)])
def test_words(answer: str, passes: float) -> None:
    assert verify("max_words", answer, most=2) == passes


@pytest.mark.parametrize(("answer", "options", "passes"), [
    ("It rained all day.", {"any_of": ["snow", "rain"]}, 0), ("Rain, then snow.", {"any_of": ["snow", "rain"]}, 1),
    ("red and blue", {"all_of": ["red", "green"]}, 0), ("Red and GREEN!", {"all_of": ["red", "green"]}, 1),
    ("Shut up, please.", {"none_of": ["shut up"]}, 0), ("The shutters are up.", {"none_of": ["shut up"]}, 1),
])
def test_words_that_are_mentioned_are_whole_words(answer: str, options: dict[str, object], passes: float) -> None:
    assert verify("mentions", answer, **options) == passes


@pytest.mark.parametrize(("name", "answer", "passes"), [
    ("abstains", "I don\u2019t know.", 1), ("abstains", "I know.", 0), ("abstains", "", 0),
    ("refuses", "I'm sorry, but I can\u2019t help with that.", 1),
    ("refuses", "You cannot buy it, but here is how.", 0), ("refuses", "I will not do this.", 1),
    ("refuses", "It will not hurt.", 0),
])
def test_abstaining_and_refusing_are_read_off_phrases(name: str, answer: str, passes: float) -> None:
    assert verify(name, answer) == passes
    assert verify(name, "Ask me later.", also=["ask me later"]) == 1


def test_a_row_may_name_a_check_of_its_own() -> None:
    facts: dict[str, object] = {"check": {"name": "max_words", "most": 1}}
    assert verify("own", "two words", facts=facts) == 0 and verify("own", "one", facts=facts) == 1
    with pytest.raises(ConfigError, match=r"row p7: facts.check: no verifier is called 'length'; there are abstains"):
        verify("own", "one", facts={"check": {"name": "length"}})
    with pytest.raises(ConfigError, match="must be an object with the name of a verifier"):
        verify("own", "one", facts={"check": {"name": "own"}})
