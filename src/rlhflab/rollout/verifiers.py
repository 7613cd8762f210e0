"""Checks of an answer that need no model: 1 passed, 0 failed, None where there is nothing to check against.

What is right for a prompt stands in its `facts`, which come from the data file and are never shown to the model.
"""

import json
import re
from collections.abc import Callable
from typing import Annotated, Any

from pydantic import AfterValidator, Field

from rlhflab.catalog import Catalog
from rlhflab.data.types import Prompt, Score

Verifier = Callable[[Prompt, str], Score]
verifier: Catalog[Callable[..., Score]] = Catalog("verifier")
"""Entries take a prompt and an answer's text."""


def _compiles(pattern: str) -> str:
    try:
        re.compile(pattern)
    except re.error as error:
        raise ValueError(f"is not a regular expression: {error}") from error
    return pattern


Pattern = Annotated[str, AfterValidator(_compiles)]


@verifier("exact", needs=("facts",), source="SQuAD's exact match, arXiv:1606.05250")
def exact(prompt: Prompt, answer: str, *, key: str = "value", case: bool = False) -> Score:
    """The whole answer is the value, or one of the list of values, at `key` of the prompt's facts.

    Spaces around and between words, and a full stop at the end, do not count; letters' case only if `case`.
    """
    return _against_facts(prompt, key, "exact", lambda value: _plain(answer, case) == _plain(value, case))


@verifier("contains", needs=("facts",))
def contains(prompt: Prompt, answer: str, *, key: str = "value", case: bool = False) -> Score:
    """The answer holds the value, or one of the list of values, at `key` of the prompt's facts, as whole words.

    5 is not in 25, and not in 2.5 either.
    """
    def found(value: str) -> bool:
        inside = rf"(?<!\w)(?<!\d[.,]){re.escape(_plain(value, case))}(?!\w)(?![.,]\d)"
        return re.search(inside, _plain(answer, case)) is not None

    return _against_facts(prompt, key, "contains", found)


@verifier("regex")
def regex(prompt: Prompt, answer: str, *, pattern: Pattern = "", whole: bool = False) -> Score:
    """The pattern, a Python regular expression, is found in the answer; `whole`: it matches all of it."""
    return _passed((re.fullmatch if whole else re.search)(pattern, answer) is not None, "regex")


@verifier("json")
def valid_json(prompt: Prompt, answer: str, *, keys: list[str] = []) -> Score:  # noqa: B006 - pydantic copies it
    """The answer is one JSON value, and with `keys` an object that has them. NaN and Infinity are not JSON."""
    try:
        value = json.loads(answer, parse_constant=_refuse)
    except (ValueError, RecursionError):
        return _passed(False, "json")
    return _passed(not keys or (isinstance(value, dict) and set(keys) <= set(value)), "json")


@verifier("max_words")
def max_words(prompt: Prompt, answer: str, *, most: Annotated[int, Field(ge=1)] = 12) -> Score:
    """The answer has at least one word and at most `most`."""
    return _passed(1 <= len(answer.split()) <= most, "max_words")


def _passed(passed: bool, by: str) -> Score:
    return Score(value=float(passed), by=by)


def _against_facts(prompt: Prompt, key: str, by: str, check: Callable[[str], bool]) -> Score:
    values = prompt.facts.get(key)
    accepted = [str(value) for value in (values if isinstance(values, list | tuple) else [values])
                if value is not None and str(value).strip()]
    if not accepted:
        return Score(value=None, by=by, reason=f"row {prompt.id} has no {key!r} in its facts")
    return _passed(any(check(value) for value in accepted), by)


def _plain(text: str, case: bool) -> str:
    words = " ".join(text.split()).removesuffix(".")
    return words if case else words.casefold()


def _refuse(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")
