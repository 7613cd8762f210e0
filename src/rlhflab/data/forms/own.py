"""The lab's own formats: comparisons, pairs, thumbs, demonstrations and prompts; and TRL's, read by the same code.

No transcripts here, and no formats of other tools.
"""

from collections.abc import Sequence
from dataclasses import replace

from rlhflab.data.formats import (
    ANSWER_KEYS,
    Row,
    comparison_in,
    comparison_row,
    conversation_in,
    conversation_row,
    kind_of,
    pair_row,
    prompt_row,
    shortly,
    strength_in,
    thumb_in,
    thumb_row,
    turn_rows,
)
from rlhflab.data.forms.base import (
    ASKED,
    BAD,
    BARE_PAIR_LOSES,
    GOOD,
    PAIR_LOSES,
    SAID,
    SAID_BADLY,
    Form,
    Values,
    data_format,
    judged_pair,
    meta_in,
    name_in,
    objects_in,
    rest_of,
    verdict_in,
)
from rlhflab.data.types import Conversation, Judged, Judgment, PreferencePair, Prompt, Thumb

PROMPTS = {"prompt", "question"}


@data_format("judged", needs=("prompt", "a", "b"))
def judged_form() -> Form:
    """The lab's own comparisons with all that was said of them: `judgments` of several annotators, or one verdict."""
    return Form(
        fits=lambda values: {"prompt", "a", "b"} <= set(values), read=lambda row: [_judged(row)], holds=Judged,
        row=_judged_row,
        example={"id": "sum", "prompt": [ASKED], "facts": {"sum": 4}, "a": GOOD, "b": BAD, "judgments": [
            {"verdict": "a", "annotator": "w7", "reason": "right", "shown_first": "b", "strength": 1.0,
             "tags": ["wrong"], "seconds": 4.5, "at": "2026-03-01T10:00:00Z"}, {"verdict": "tie", "annotator": "w9"}],
            "meta": {"batch": 3}})


def _judged(row: Row) -> Judged:
    comparison = comparison_in(row)
    given = row.values.get("judgments")
    alone = [row.values] if "verdict" in row.values else []
    said: Sequence[Values] = alone if given is None else objects_in(row, given, "judgments")
    known = ("verdict", "annotator", "reason", "shown_first", "strength", "tags", "seconds", "at")
    own = rest_of(row, "id", "prompt", "facts", "a", "b", "judgments", "meta", *known)
    return Judged(comparison=comparison, meta={**meta_in(row), **own}, judgments=tuple(
        _judgment(row, each, "" if given is None else f"judgments[{place}].") for place, each in enumerate(said)))


def _judgment(row: Row, said: Values, where: str) -> Judgment:
    """One annotator's word; `where` stands before the key in an error."""
    here = Row(path=row.path, line=row.line, values={where + key: value for key, value in said.items()
                                                     if value is not None})
    first, tags = here.values.get(where + "shown_first"), here.values.get(where + "tags", [])
    if first not in (None, "a", "b"):
        raise here.wrong(where + "shown_first", f"must be a, b or null, found {shortly(first)}")
    if not isinstance(tags, list):
        raise here.wrong(where + "tags", f"must be a list of texts, found {kind_of(tags)}")
    seconds = here.values.get(where + "seconds")
    if seconds is not None and (isinstance(seconds, bool) or not isinstance(seconds, int | float)):
        raise here.wrong(where + "seconds", f"must be a number, found {kind_of(seconds)}")
    return Judgment(
        verdict=verdict_in(here, here.values.get(where + "verdict"), where + "verdict"),
        annotator=name_in(here, where + "annotator"), reason=name_in(here, where + "reason"), shown_first=first,
        strength=strength_in(here, where + "strength"), tags=tuple(here.text(tag, where + "tags") for tag in tags),
        seconds=seconds, at=name_in(here, where + "at") or None)


def _judged_row(judged: Judged) -> Values:
    blank = Judgment(verdict="skip", annotator="")
    said = [{key: list(value) if isinstance(value, tuple) else value
             for key in ("verdict", "annotator", "reason", "shown_first", "strength", "tags", "seconds", "at")
             if (value := getattr(judgment, key)) != getattr(blank, key) or key in ("verdict", "annotator")}
            for judgment in judged.judgments]
    return {**comparison_row(judged.comparison), "judgments": said, "meta": dict(judged.meta)}


@data_format("pairs", needs=("prompt", "chosen", "rejected", "strength"))
def pairs_form() -> Form:
    """The lab's own pairs, which `train` reads: `prompt` as turns, `chosen` and `rejected` as text, `strength`."""
    return Form(fits=lambda values: {"prompt", "chosen", "rejected", "strength"} <= set(values), holds=PreferencePair,
                read=lambda row: [judged_pair(row)], row=pair_row, loses=PAIR_LOSES,
                example={"id": "sum", "prompt": [ASKED], "facts": {"sum": 4}, "chosen": GOOD, "rejected": BAD,
                         "strength": 0.5, "source": "w7"})


@data_format("trl", needs=("prompt", "chosen", "rejected"))
def trl_form() -> Form:
    """TRL with the prompt apart: `prompt`, `chosen` and `rejected`, each text or messages."""
    return Form(fits=lambda values: {"prompt", "chosen", "rejected"} <= set(values), holds=PreferencePair,
                read=lambda row: [judged_pair(row)], row=_trl_row, loses=BARE_PAIR_LOSES,
                example={"prompt": [ASKED], "chosen": [SAID], "rejected": [SAID_BADLY]})


def _trl_row(pair: PreferencePair) -> Values:
    return {"prompt": turn_rows(pair.prompt.messages), "chosen": [{"role": "assistant", "content": pair.chosen}],
            "rejected": [{"role": "assistant", "content": pair.rejected}]}


@data_format("trl_implicit", needs=("chosen", "rejected"))
def trl_implicit_form() -> Form:
    """TRL with the prompt inside: `chosen` and `rejected` are whole conversations that differ in their last turn."""
    return Form(fits=lambda values: {"chosen", "rejected"} <= set(values), holds=PreferencePair,
                read=lambda row: [judged_pair(row)], row=_trl_implicit_row, loses=BARE_PAIR_LOSES,
                example={"chosen": [ASKED, SAID], "rejected": [ASKED, SAID_BADLY]})


def _trl_implicit_row(pair: PreferencePair) -> Values:
    row = _trl_row(pair)
    return {key: [*row["prompt"], *row[key]] for key in ("chosen", "rejected")}


@data_format("thumbs", needs=("prompt", "label"))
def thumbs_form() -> Form:
    """Thumbs as KTO takes them: `prompt` (or `question`), one answer, and `label` true or false."""
    return Form(fits=lambda values: bool(PROMPTS & set(values)) and "label" in values and _one_answer(values),
                holds=Thumb, read=lambda row: [_thumb(row)], row=thumb_row, loses=f"strength, {PAIR_LOSES}",
                example={"id": "sum", "prompt": [ASKED], "facts": {"sum": 4}, "completion": GOOD, "label": True,
                         "source": "w7"})


def _thumb(row: Row) -> Thumb:
    row = _prompted(row)
    label = row.values.get("label")
    if not isinstance(label, bool) and label in (0, 1, "0", "1"):
        row = replace(row, values={**row.values, "label": bool(int(label))})
    return thumb_in(row)


def _one_answer(values: Values) -> bool:
    return sum(key in values for key in ANSWER_KEYS) == 1


@data_format("demonstrations", needs=("messages",))
def demonstrations_form() -> Form:
    """What SFT learns: `messages` that end in an answer, or `prompt` (or `question`) and one answer."""
    return Form(fits=_is_demonstration, holds=Conversation, row=conversation_row,
                loses="answers that were not preferred, facts or other columns",
                read=lambda row: [Conversation(id=row.id, messages=conversation_in(_prompted(row)))],
                example={"id": "sum", "messages": [ASKED, SAID]})


def _is_demonstration(values: Values) -> bool:
    messages = values.get("messages")
    if isinstance(messages, list) and messages and isinstance(messages[-1], dict):
        return bool(messages[-1].get("role") == "assistant")
    return bool(PROMPTS & set(values)) and _one_answer(values)


@data_format("prompts", needs=("prompt",))
def prompts_form() -> Form:
    """Prompts alone: text or messages in `prompt`, or `messages` that end in a turn of the user."""
    return Form(fits=lambda values: bool((PROMPTS | {"messages"}) & set(values)), holds=Prompt, row=prompt_row,
                loses="answers or other columns",
                read=lambda row: [_prompt(row)], example={"id": "sum", "prompt": [ASKED], "facts": {"sum": 4}})


def _prompt(row: Row) -> Prompt:
    row = _prompted(row)
    key = "messages" if "prompt" not in row.values and "messages" in row.values else "prompt"
    return Prompt(id=row.id, messages=row.prompt(key), facts=row.facts)


def _prompted(row: Row) -> Row:
    """The row with its question called `prompt`."""
    if "question" not in row.values or "prompt" in row.values:
        return row
    return replace(row, values={**{k: v for k, v in row.values.items() if k != "question"},
                                "prompt": row.values["question"]})
