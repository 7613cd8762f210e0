"""Turns written as one text behind `Human:` and `Assistant:`, as in hh-rlhf. Nothing else is looked for in a text."""

import re
from collections.abc import Sequence
from dataclasses import replace

from rlhflab.data.formats import Row, turn_rows
from rlhflab.data.forms.base import ASK, BAD, BARE_PAIR_LOSES, GOOD, Form, Values, data_format, judged_pair
from rlhflab.data.types import Judged, Message, PreferencePair

TURN = re.compile(r"(?:\A|\n\n)(Human|Assistant):")
SPEAKERS = {"Human": "user", "Assistant": "assistant"}


@data_format("hh", needs=("chosen", "rejected"), source="arXiv:2204.05862")
def hh_form() -> Form:
    """Transcripts as hh-rlhf: turns behind `Human:` and `Assistant:`, two whole ones or a prompt and two answers."""
    asked = f"\n\nHuman: {ASK}\n\nAssistant: "
    return Form(fits=_fits, read=lambda row: [_hh(row)], holds=PreferencePair, row=_hh_row,
                loses=f"{BARE_PAIR_LOSES}, or space around texts",
                example={"chosen": asked + GOOD, "rejected": asked + BAD})


def _fits(values: Values) -> bool:
    if not {"chosen", "rejected"} <= set(values):
        return False
    return is_transcript(values.get("prompt", values["chosen"]))


def is_transcript(value: object) -> bool:
    """Whether a value is a text that begins as a transcript does."""
    return isinstance(value, str) and value.lstrip("\n").startswith("Human:")


def _hh(row: Row) -> Judged:
    if "prompt" in row.values:
        asked = row.text(row.values["prompt"], "prompt").rstrip().removesuffix("Assistant:").rstrip()
        turns: tuple[Message, ...] = row.ending(transcript(row, asked, "prompt"), "user", "prompt")
        given = {**row.values, "prompt": turn_rows(turns),
                 **{key: _stripped(row.values.get(key)) for key in ("chosen", "rejected")}}
    else:
        given = {**row.values, **{key: turn_rows(transcript(row, row.given(key), key))
                                  for key in ("chosen", "rejected")}}
    return judged_pair(replace(row, values={key: value for key, value in given.items() if value is not None}))


def _stripped(value: object) -> object:
    return value.strip() if isinstance(value, str) else value


def _hh_row(pair: PreferencePair) -> Values | None:
    said = {key: as_transcript((*pair.prompt.messages, Message(role="assistant", content=text)))
            for key, text in (("chosen", pair.chosen), ("rejected", pair.rejected))}
    # Answers that differ only in the space around them would be equal.
    if None in said.values() or said["chosen"] == said["rejected"]:
        return None
    return {key: f"\n\n{text}" for key, text in said.items()}


def transcript(row: Row, value: object, key: str) -> tuple[Message, ...]:
    """The turns of `Human: ... Assistant: ...`; an opening for an answer at the end is no turn."""
    text = row.text(value, key)
    start, *parts = TURN.split(text.lstrip("\n"))
    if start or not parts:
        raise row.wrong(key, "must begin with 'Human:', as a transcript does")
    said = zip(parts[::2], parts[1::2], strict=True)
    return row.messages([{"role": SPEAKERS[who], "content": words.strip()} for who, words in said], key)


def as_transcript(turns: Sequence[Message]) -> str | None:
    """Turns as `transcript` reads them back, stripped; None where it could not, for a system turn or speaker's name."""
    names = {role: name for name, role in SPEAKERS.items()}
    if any(turn.role not in names or TURN.search(" " + turn.content.strip()) for turn in turns):
        return None
    return "\n\n".join(f"{names[turn.role]}: {turn.content.strip()}" for turn in turns)
