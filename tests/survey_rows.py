"""Rows as a reader gives them, and their survey, for tests of data checks."""

from pathlib import Path
from typing import Any

from rlhflab.data.reading import Located
from rlhflab.data.survey.columns import BadRow, Look, Survey, survey
from rlhflab.data.types import Comparison, Conversation, Judged, Judgment, Message, Prompt, Thumb

FILE = Path("mine.jsonl")


def asked(text: str, *before: str) -> Prompt:
    """A prompt: turns of user and assistant, the last one the user's."""
    roles = ("user", "assistant")
    turns = tuple(Message(role=roles[i % 2], content=turn) for i, turn in enumerate((*before, text)))
    return Prompt(id=text[:20], messages=turns)


def pair(prompt: str | Prompt, a: str, b: str, *verdicts: str, first: str | None = None, **meta: Any) -> Judged:
    """A comparison with its judgments; `first` is the answer that each judge saw first."""
    prompt = asked(prompt) if isinstance(prompt, str) else prompt
    return Judged(comparison=Comparison(prompt=prompt, a=a, b=b), meta=meta, judgments=tuple(
        Judgment(verdict=verdict, annotator="", shown_first=first) for verdict in verdicts))  # type: ignore[arg-type]


def thumb(prompt: str, answer: str, good: bool) -> Thumb:
    return Thumb(prompt=asked(prompt), answer=answer, good=good)


def surveyed(*items: Judged | Thumb | Conversation | Prompt, bad: tuple[BadRow, ...] = (), **look: Any) -> Survey:
    """The survey of some items, each on a line of its own from 1."""
    rows = (Located(path=FILE, line=line, item=item) for line, item in enumerate(items, start=1))
    return survey(rows, Look(**look), bad=bad)
