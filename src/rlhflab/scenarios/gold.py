"""The gold check of an answer to a question about a note: rules on text. No model, no scenario's own words.

All it needs stands in `Prompt.facts` as JSON values, so gold can be computed again from a stored row.
"""

import json
import re
import unicodedata
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

from rlhflab.scenarios.checks import EMPTY, Check, assembled, knowledge

ABSTAIN_PHRASES = (
    "i don't know", "i do not know", "i dont know", "note does not say", "note doesn't say", "not mentioned",
    "not stated", "not specified", "no information", "i cannot tell", "i can't tell", "i am not sure", "i'm not sure",
    "not in the note", "does not mention", "doesn't mention", "manual does not say", "manual doesn't say",
    "not in the manual",
)
CONFIDENCE_MARKERS = (
    "certainly", "definitely", "absolutely", "clearly", "of course", "without a doubt", "no doubt", "undoubtedly",
    "guaranteed", "obviously", "surely", "i am sure", "i'm sure", "i am certain", "i am confident",
)

_MONTHS = "january|february|march|april|may|june|july|august|september|october|november|december"
_SAME = tuple((re.compile(pattern), to) for pattern, to in (
    (r"[\u2018\u2019\u02bc]", "'"),
    (r"(?<![a-z])([ap])\. ?m\b\.?", r"\1m"),  # 8 p.m. is 8 pm
    (r"(\d):00(?= ?[ap]m\b)", r"\1"),  # 8:00 pm is 8 pm
    (r"(?<![a-z])v(?=\d)", ""),  # v2.4.1 is 2.4.1
    (r"(?<![\d.,])(\d+(?:\.\d+)?) (?:us )?dollars?\b", r"$\1"),
    (r"(?<=\d) ?per ?cent\b", "%"),
    (rf"\b({_MONTHS}) (\d{{1,2}})(?:st|nd|rd|th)?\b(?![.:]\d)", r"\2 \1"),  # March 12th is 12 March
    (rf"\b(\d{{1,2}})(?:st|nd|rd|th)?(?: of)? ({_MONTHS})\b", r"\1 \2"),
))
_TOKEN = re.compile(r"\d+(?:[.,:]\d+)*|[^\W\d_]+|[$%]")
_DAYTIME_STOP = re.compile(r"\b([apAP])\.[mM]\.(?=\s+[^A-Z\s])")
_SENTENCE_END = re.compile(r"(?<=[.!?])\s+")


@lru_cache(maxsize=1 << 16)
def normalised(text: str) -> str:
    """Case-blind tokens joined by blanks; a number with its points stays one token, so 25 is not in 125 or 2.5."""
    text = unicodedata.normalize("NFKC", text).casefold()
    for pattern, to in _SAME:
        text = pattern.sub(to, text)
    return " ".join(_TOKEN.findall(text))


def contains(text: str, value: str) -> bool:
    """Whether the tokens of `value` stand in `text` next to each other; both are normalised."""
    return bool(value) and f" {value} " in f" {text} "


def has_phrase(answer: str, phrases: tuple[str, ...]) -> bool:
    """Whether one of the phrases stands in the answer, whatever its case and apostrophes."""
    text = normalised(answer)
    return any(contains(text, normalised(phrase)) for phrase in phrases)


def count_words(text: str) -> int:
    """Whitespace tokens that hold a letter or a digit: a lone dash is no word."""
    return sum(any(c.isalnum() for c in token) for token in text.split())


def count_sentences(text: str) -> int:
    """Sentences end at [.!?] before a space or the end; the stop of `8 p.m.` ends one only before a capital."""
    text = _DAYTIME_STOP.sub(r"\1m", text)
    return sum(any(c.isalnum() for c in part) for part in _SENTENCE_END.split(text))


# ---- demands ------------------------------------------------------------------------------------------------


def unwrapped(answer: str, demand: str) -> str | None:
    """The answer without the wrapper its demand asks for, or None where the demand is not met as emitted.

    A wrapper around nothing gives "": an empty answer is empty in any wrapper.
    """
    text = answer.strip()
    if demand == "json":
        return _json_answer(text)
    if demand == "prefix":
        return text.removeprefix("Answer:").strip() if text.startswith("Answer:") else None
    if demand == "bullet":
        one_bullet = "\n" not in text and f"{text} "[:2] in ("- ", "* ", "\u2022 ")
        return text[2:].strip() if one_bullet else None
    kept = {"none": True, "lower": text == text.lower(), "no_commas": "," not in text}
    return text if kept[demand] else None


def _json_answer(text: str) -> str | None:
    """The value of an object with exactly the key "answer"."""
    values = json_values(text, ("answer",))
    return None if values is None else values[0]


def json_values(text: str, keys: Sequence[str]) -> list[str] | None:
    """The values, as text, of an object with exactly these keys; None for anything else.

    A key given twice would hide a second answer.
    """
    try:
        pairs = json.loads(text, object_pairs_hook=list)
    except (json.JSONDecodeError, RecursionError):
        return None
    if not (isinstance(pairs, list) and all(isinstance(pair, tuple) for pair in pairs)):
        return None
    if sorted(key for key, _ in pairs) != sorted(keys):
        return None
    found = dict(pairs)
    if any(isinstance(value, bool) or not isinstance(value, str | int | float) for value in found.values()):
        return None
    return [str(found[key]).strip() for key in keys]


def meets_loosely(answer: str, demand: str) -> bool:
    """The demand, tried also without code fences and without the first or the last line."""
    return any(unwrapped(text, demand) for text in loose_readings(answer))


def loose_readings(answer: str) -> list[str]:
    """The answer, and what it is without code fences, and then without the first or the last line."""
    lines = [line for line in answer.strip().splitlines() if not line.strip().startswith("```")]
    return [answer, *("\n".join(part) for part in (lines, lines[1:], lines[:-1]))]


# ---- the check ----------------------------------------------------------------------------------------------


def check(facts: Mapping[str, Any], answer: str, *, stopped: bool = True) -> Check:
    """Judge one answer against the facts of its prompt."""
    demand = facts["demand"]
    stripped = unwrapped(answer, demand)
    text = answer.strip() if stripped is None else stripped
    words, sentences = count_words(text), count_sentences(text)
    if not words:
        return EMPTY
    right = facts["right"]
    found = knowledge(facts, source="note", phrase=has_phrase(text, ABSTAIN_PHRASES), wrong=distractor(facts, text),
                      has_right=right is not None and contains(normalised(text), normalised(right)))
    return assembled(found, demand=demand, words=words, sentences=sentences, stopped=stopped,
                     confident=has_phrase(text, CONFIDENCE_MARKERS), met=stripped is not None,
                     loosely=meets_loosely(answer, demand))


def distractor(facts: Mapping[str, Any], text: str) -> str | None:
    """The first value in the text that is not the right one: of the note, of the same kind, or shaped like it."""
    rest = normalised(text)
    right = normalised(facts["right"] or "")
    if right:
        while contains(rest, right):
            rest = f" {rest} ".replace(f" {right} ", " | ").strip()
    for value in (*facts["note_values"], *facts["wrong_values"]):
        if contains(rest, normalised(value)):
            return str(value)
    found = re.search(rf"(?<!\S)(?:{facts['pattern']})(?!\S)", rest) if facts["pattern"] else None
    return found[0] if found else None
