"""What a data format is, the catalogue of them, and what their readers share."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, cast

from rlhflab.catalog import Catalog
from rlhflab.data.formats import Row, finite, kind_of, pair_in, shortly
from rlhflab.data.types import (
    Comparison,
    Conversation,
    Judged,
    Judgment,
    Message,
    PreferencePair,
    Prompt,
    Thumb,
    Verdict,
)

Item = Judged | Thumb | Conversation | Prompt
Values = Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Form:
    """One way to write preferences, demonstrations or prompts as rows."""

    fits: Callable[[Values], bool]
    """Whether a row looks like it."""
    read: Callable[[Row], Iterable[Item]]
    """What a row says. DataError names file, line and key."""
    example: Values
    """A row with every column filled."""
    holds: type[Any] | None = None
    """What one row is written of: PreferencePair, Judged, Thumb, Conversation or Prompt; None where none is."""
    row: Callable[[Any], Values | None] | None = None
    """The row of one such record; None where the format cannot say it."""
    loses: str = ""
    """What of an item has no place in a row."""


data_format: Catalog[Callable[[], Form]] = Catalog("data format")
"""`needs`: keys that a row has."""

PAIR_LOSES = "reasons, tags, times or other columns"
BARE_PAIR_LOSES = f"id, facts, strength, source, {PAIR_LOSES}"
ASK, GOOD, BAD = "What is 2 + 2?", "4", "It is 5."
ASKED, SAID = {"role": "user", "content": ASK}, {"role": "assistant", "content": GOOD}
SAID_BADLY = {"role": "assistant", "content": BAD}
VERDICTS = ("a", "b", "tie", "both_bad", "skip")


def winner(judged: Judged) -> Verdict | None:
    """The answer that more judgments name than the other and at least as many as call it a tie; None without one."""
    verdicts = [judgment.verdict for judgment in judged.judgments]
    a, b = verdicts.count("a"), verdicts.count("b")
    ties = verdicts.count("tie") + verdicts.count("both_bad")
    if a == b or max(a, b) < ties:
        return None
    return "a" if a > b else "b"


def compared(row: Row, turns: tuple[Message, ...], a: str, b: str, *judgments: Judgment,
             keys: tuple[str, str], meta: Values) -> Judged:
    """A row's comparison with what was said of it. DataError by `keys` for two equal answers, unless any may be."""
    if a == b and not row.any_answer:
        raise row.wrong(keys[0], f"and {keys[1]!r} are equal; there is nothing to compare", fault="identical")
    return Judged(comparison=Comparison(prompt=Prompt(id=row.id, messages=turns, facts=row.facts), a=a, b=b),
                  judgments=judgments, meta=meta)


def _preferred(pair: PreferencePair, meta: Values) -> Judged:
    """A pair as a comparison of which one judgment is known. Nobody wrote down which answer was shown first."""
    return Judged(comparison=Comparison(prompt=pair.prompt, a=pair.chosen, b=pair.rejected), meta=meta,
                  judgments=(Judgment(verdict="a", annotator=pair.source, strength=pair.strength),))


def judged_pair(row: Row) -> Judged:
    """A row of `chosen` and `rejected` as a comparison."""
    return _preferred(pair_in(row), rest_of(row, "id", "prompt", "facts", "chosen", "rejected", "strength", "source"))


def rest_of(row: Row, *used: str) -> dict[str, Any]:
    """What else a row tells, as JSON can hold it."""
    return {key: finite(value) for key, value in row.values.items() if key not in used}


def objects_in(row: Row, value: object, key: str) -> list[dict[str, Any]]:
    """`value`, if it is a list of objects."""
    if not isinstance(value, list):
        raise row.wrong(key, f"must be a list of objects, found {kind_of(value)}")
    for place, each in enumerate(value):
        if not isinstance(each, dict):
            raise row.wrong(f"{key}[{place}]", f"must be an object, found {kind_of(each)}")
    return value


def name_in(row: Row, key: str) -> str:
    """A text or number that may be absent, or empty."""
    value = row.values.get(key, "")
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    return row.text(value, key) if value != "" else ""


def meta_in(row: Row) -> dict[str, Any]:
    """What a row's own `meta` tells."""
    meta = row.values.get("meta", {})
    if not isinstance(meta, dict):
        raise row.wrong("meta", f"must be an object, found {kind_of(meta)}")
    return cast(dict[str, Any], finite(meta))


def verdict_in(row: Row, value: object, key: str) -> Verdict:
    """`value`, if it is a verdict."""
    if value not in VERDICTS:
        raise row.wrong(key, f"must be one of {', '.join(VERDICTS)}, found {shortly(value)}")
    return cast(Verdict, value)
