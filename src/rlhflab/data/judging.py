"""The records of the annotation store, and what a name and a judgment can be. No database here."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal, NamedTuple, cast, get_args

from rlhflab.data.types import Comparison, Judgment, Prompt, Verdict
from rlhflab.errors import ConfigError, DataError

STORE_SUFFIXES = (".sqlite", ".sqlite3", ".db")
"""Endings of a file that is an annotation store."""
Side = Literal["a", "b"]
Purpose = Literal["judge", "repeat", "adjudicate"]
"""Why somebody is asked: for a judgment, once more to compare with their own first one, or to decide a conflict."""

PAIR_VERDICTS = ("a", "b", "tie", "both_bad", "skip")
SINGLE_VERDICTS = ("good", "bad", "skip")
LONGEST_REASON = 4000
"""Characters of a reason."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Item:
    """Two answers to a prompt, or a single one, that somebody is to judge."""

    prompt: Prompt
    a: str
    b: str | None = None
    """None for a single answer, which gets a thumb."""
    gold: str | None = None
    """The verdict that a careful annotator gives, where the item checks attention."""
    meta: Mapping[str, Any] = field(default_factory=dict)
    """What else the source tells (JSON values). Never shown to annotators."""
    source: str = ""

    @property
    def verdicts(self) -> tuple[str, ...]:
        """What can be said of it."""
        return SINGLE_VERDICTS if self.b is None else PAIR_VERDICTS

    @property
    def key(self) -> str:
        """Equal for equal content, whichever answer is a."""
        answers = [self.a] if self.b is None else sorted([self.a, self.b])
        return digest([[[m.role, m.content] for m in self.prompt.messages], answers])

    @property
    def comparison(self) -> Comparison:
        """The two answers. ValueError for a single one."""
        if self.b is None:
            raise ValueError("a single answer is no comparison")
        return Comparison(prompt=self.prompt, a=self.a, b=self.b)


@dataclass(frozen=True, slots=True, kw_only=True)
class Opinion:
    """What an annotator submits."""

    verdict: str
    strength: float = 1.0
    tags: tuple[str, ...] = ()
    reason: str = ""
    seconds: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Told:
    """A judgment that was made elsewhere, by a file say."""

    item: Item
    annotator: str
    purpose: Purpose
    opinion: Opinion
    shown_first: Side | None = None
    at: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Said:
    """A judgment as it is stored."""

    id: int
    comparison_id: int
    assignment_id: int
    annotator: str
    purpose: Purpose
    verdict: str | None
    """None where this row takes a judgment back."""
    strength: float
    tags: tuple[str, ...]
    reason: str
    shown_first: Side | None
    seconds: float | None
    at: str | None
    corrects: int | None
    """The row that this one replaces."""
    author: str
    why: str

    @property
    def judgment(self) -> Judgment:
        """Of a comparison. ValueError for a thumb, and for a judgment that was taken back."""
        if self.verdict not in get_args(Verdict):
            raise ValueError(f"{self.verdict!r} is no verdict on a comparison")
        return Judgment(verdict=cast(Verdict, self.verdict), annotator=self.annotator, reason=self.reason,
                        shown_first=self.shown_first, strength=self.strength, tags=self.tags, seconds=self.seconds,
                        at=self.at)


@dataclass(frozen=True, slots=True, kw_only=True)
class Assignment:
    """Something that an annotator was asked, with the order in which it is shown."""

    id: int
    token: str
    comparison_id: int
    annotator: str
    purpose: Purpose
    shown_first: Side | None
    """The answer on the left or on top; None for a single answer."""
    state: str
    item: Item


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What annotators are asked beside the comparisons that wait."""

    gold_every: int = 10
    """About one in so many is an attention check, while there are unseen ones; 0 for none."""
    repeat_every: int = 0
    """About one in so many is a comparison that the annotator has judged before; 0 for none."""
    lease_hours: float = 24.0
    """How long a comparison stays with somebody who does not judge it, when nothing else waits."""


class Turn(NamedTuple):
    """What an annotator's page shows."""

    given: Assignment | None
    last: Said | None
    """The annotator's latest judgment that stands."""
    done: int
    """Assignments that the annotator has judged or skipped."""


class Counted(NamedTuple):
    """Rows that were new, and rows that the store had already."""

    new: int
    known: int


class Standing(NamedTuple):
    """A comparison, and what counts of what was said of it."""

    id: int
    item: Item
    said: tuple[Said, ...]


def digest(value: Any) -> str:
    """sha256 of a JSON value."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, ensure_ascii=False).encode()).hexdigest()


def check_name(annotator: str) -> str:
    """The name, if it can be one. ConfigError otherwise."""
    if not 0 < len(annotator) <= 64 or not all(c.isalnum() or c in "._-@" for c in annotator):
        raise ConfigError(f"annotator {annotator!r}: a name is 1 to 64 letters, digits and . _ - @")
    return annotator


def check_opinion(item: Item, opinion: Opinion) -> None:
    """DataError for a verdict, strength or text that a judgment of this item cannot have."""
    if opinion.verdict not in item.verdicts:
        raise DataError(f"verdict {opinion.verdict!r}: must be one of {', '.join(item.verdicts)}")
    if not 0 < opinion.strength <= 1:
        raise DataError(f"strength {opinion.strength}: must be above 0 and at most 1")
    if len(opinion.reason) > LONGEST_REASON or "\0" in opinion.reason:
        raise DataError(f"the reason must be text of at most {LONGEST_REASON} characters")


def sides_turned(told: Told) -> Told:
    """The same judgment where a and b have changed places."""
    sides = {"a": "b", "b": "a"}
    said = told.opinion
    tags = tuple(f"{sides[side]}:{rest}" if colon and side in sides else tag
                 for tag in said.tags for side, colon, rest in [tag.partition(":")])
    shown: Any = sides.get(told.shown_first or "")
    return replace(told, opinion=replace(said, verdict=sides.get(said.verdict, said.verdict), tags=tags),
                   shown_first=shown)
