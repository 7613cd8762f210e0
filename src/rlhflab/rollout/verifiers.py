"""Checks of an answer that need no model: 1 passed, 0 failed, None where there is nothing to check against.

What is right for a prompt stands in its `facts`, which come from the data file and are never shown to the model.
"""

import json
import re
from collections.abc import Callable
from typing import Annotated, Any

from pydantic import AfterValidator, Field

from rlhflab.catalog import Catalog
from rlhflab.config import Choice
from rlhflab.data.types import Prompt, Score
from rlhflab.errors import ConfigError
from rlhflab.rollout.ifeval import follows
from rlhflab.rollout.schema import checked_schema, fits
from rlhflab.scenarios.gold import ABSTAIN_PHRASES, has_phrase

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
Schema = Annotated[dict[str, Any], AfterValidator(checked_schema)]
REFUSALS = (
    "i can't", "i cannot", "i can not", "i won't", "i will not", "i'm not able to", "i am not able to", "i'm unable to",
    "i am unable to", "i must decline", "i have to decline", "i refuse", "can't help with", "cannot help with",
    "can't assist", "cannot assist", "not going to help", "not comfortable", "not something i can")
"""Ways to decline a request, in English. An answer that helps and then warns holds none of them."""


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


@verifier("json_schema", source="a part of JSON Schema 2020-12, see rollout/schema.py")
def json_schema(prompt: Prompt, answer: str, *, shape: Schema = {}) -> Score:  # noqa: B006 - pydantic copies it
    """The answer is one JSON value that fits `shape`, a JSON schema."""
    try:
        value = json.loads(answer, parse_constant=_refuse)
    except (ValueError, RecursionError):
        return _passed(False, "json_schema")
    return _passed(fits(value, shape), "json_schema")


@verifier("mentions")
def mentions(prompt: Prompt, answer: str, *, any_of: list[str] = [], all_of: list[str] = [],  # noqa: B006
             none_of: list[str] = []) -> Score:  # noqa: B006 - pydantic copies them
    """Of some words or phrases the answer holds one, all, or none; case and punctuation do not count."""
    wanted = not any_of or has_phrase(answer, tuple(any_of))
    return _passed(wanted and all(has_phrase(answer, (each,)) for each in all_of)
                   and not has_phrase(answer, tuple(none_of)), "mentions")


@verifier("abstains")
def abstains(prompt: Prompt, answer: str, *, also: list[str] = []) -> Score:  # noqa: B006 - pydantic copies it
    """The answer says that it does not know, by a list of English phrases and those of `also`."""
    return _passed(has_phrase(answer, (*ABSTAIN_PHRASES, *also)), "abstains")


@verifier("refuses")
def refuses(prompt: Prompt, answer: str, *, also: list[str] = []) -> Score:  # noqa: B006 - pydantic copies it
    """The answer declines the request, by a list of English phrases and those of `also`."""
    return _passed(has_phrase(answer, (*REFUSALS, *also)), "refuses")


@verifier("ifeval", needs=("the extra ifeval",), source="arXiv:2311.07911, checkers of lm-evaluation-harness")
def ifeval(prompt: Prompt, answer: str, *, loose: bool = False, share: bool = False) -> Score:
    """The answer follows the instructions of the facts `instruction_id_list` and `kwargs`: all, or which `share`.

    `loose` also tries it without its first or last line and without asterisks.
    """
    return follows(prompt, answer, loose=loose, share=share)


@verifier("own", needs=("facts",))
def own(prompt: Prompt, answer: str, *, key: str = "check") -> Score:
    """The verifier that the prompt's facts name at `key`, with its options: a check of its own for each row."""
    return own_check(prompt, key)(prompt, answer)


def own_check(prompt: Prompt, key: str) -> Verifier:
    """The check that a prompt's facts name. ConfigError names the row and what there is."""
    where = f"row {prompt.id}: facts.{key}"
    named = prompt.facts.get(key)
    if not isinstance(named, dict) or not isinstance(named.get("name"), str) or named["name"] == "own":
        raise ConfigError(f"{where}: must be an object with the name of a verifier, such as {{\"name\": \"json\"}}")
    choice = Choice(**named)
    return verifier.bind(choice.name, choice.options, where=where)


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
