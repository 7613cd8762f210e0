"""ShareGPT and Alpaca with preferences, as LLaMA-Factory takes them. Tools and pictures are no turns here."""

from dataclasses import replace
from typing import Any

from rlhflab.data.formats import Row, kind_of, shortly, thumb_in, turn_rows
from rlhflab.data.forms.base import (
    ASK,
    BAD,
    BARE_PAIR_LOSES,
    GOOD,
    Form,
    Values,
    data_format,
    judged_pair,
    name_in,
    objects_in,
    rest_of,
)
from rlhflab.data.types import Conversation, Judged, PreferencePair, Thumb


@data_format("sharegpt", needs=("conversations",))
def sharegpt_form() -> Form:
    """ShareGPT as LLaMA-Factory takes it: `conversations`, with `chosen` and `rejected`, with `kto_tag`, or alone."""
    return Form(fits=lambda values: "conversations" in values, read=lambda row: [_sharegpt(row)], holds=PreferencePair,
                row=_sharegpt_row, loses=BARE_PAIR_LOSES,
                example={"system": "Be brief.", "conversations": [{"from": "human", "value": ASK}],
                         "chosen": {"from": "gpt", "value": GOOD}, "rejected": {"from": "gpt", "value": BAD}})


SHAREGPT_ROLES = {"human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant", "system": "system"}
SHAREGPT_NAMES = {"user": "human", "assistant": "gpt", "system": "system"}


def _sharegpt(row: Row) -> Judged | Thumb | Conversation:
    talk = [_said(row, each, f"conversations[{place}]")
            for place, each in enumerate(objects_in(row, row.given("conversations"), "conversations"))]
    answers = {key: [_said(row, row.values[key], key)] for key in ("chosen", "rejected") if key in row.values}
    return _factory_item(row, talk, answers, used=("conversations",))


def _said(row: Row, turn: object, where: str) -> dict[str, Any]:
    """A turn of `from` and `value` in the lab's words."""
    if not isinstance(turn, dict):
        raise row.wrong(where, f"must be an object with from and value, found {kind_of(turn)}")
    role = turn.get("from")
    if not isinstance(role, str) or role not in SHAREGPT_ROLES:
        raise row.wrong(f"{where}.from", f"must be one of {', '.join(SHAREGPT_ROLES)}, found {shortly(role)}")
    return {"role": SHAREGPT_ROLES[role], "content": row.text(turn.get("value"), f"{where}.value")}


@data_format("alpaca", needs=("instruction",))
def alpaca_form() -> Form:
    """Alpaca as LLaMA-Factory takes it: `instruction` with `chosen` and `rejected`, or with `output` and `kto_tag`."""
    return Form(fits=lambda values: "instruction" in values and bool({"output", "chosen", "rejected"} & set(values)),
                read=lambda row: [_alpaca(row)], holds=PreferencePair, row=_alpaca_row,
                loses=BARE_PAIR_LOSES,
                example={"system": "Be brief.", "history": [["Hello", "Hello."]], "instruction": ASK, "input": "",
                         "chosen": GOOD, "rejected": BAD})


def _alpaca(row: Row) -> Judged | Thumb | Conversation:
    more = name_in(row, "input")
    talk = [turn for question, answer in _history(row)
            for turn in ({"role": "user", "content": question}, {"role": "assistant", "content": answer})]
    instruction = row.text(row.given("instruction"), "instruction")
    talk.append({"role": "user", "content": f"{instruction}\n{more}" if more else instruction})
    output = row.values.get("output")
    if isinstance(output, list) and len(output) == 2:  # The older way to write a pair.
        answers: dict[str, Any] = dict(zip(("chosen", "rejected"), output, strict=True))
    else:
        answers = {key: row.values[key] for key in ("chosen", "rejected") if key in row.values}
    if not answers:
        talk.append({"role": "assistant", "content": row.text(row.given("output"), "output")})
    return _factory_item(row, talk, answers, used=("instruction", "input", "output", "history"))


def _history(row: Row) -> list[tuple[str, str]]:
    history = row.values.get("history", [])
    if not isinstance(history, list) or not all(isinstance(each, list) and len(each) == 2 for each in history):
        raise row.wrong("history", f"must be a list of [question, answer], found {shortly(history)}")
    return [(row.text(question, f"history[{place}][0]"), row.text(answer, f"history[{place}][1]"))
            for place, (question, answer) in enumerate(history)]


def _factory_item(row: Row, talk: list[dict[str, Any]], answers: Values, *, used: tuple[str, ...],
                  ) -> Judged | Thumb | Conversation:
    """What LLaMA-Factory makes of the turns: a pair, a thumb by `kto_tag`, or a demonstration."""
    system = name_in(row, "system")
    turns: list[dict[str, Any]] = [*([{"role": "system", "content": system}] if system else []), *talk]
    rest = rest_of(row, "chosen", "rejected", "system", "kto_tag", *used)
    if answers:
        return judged_pair(replace(row, values={**rest, "prompt": turns, **answers}))
    if "kto_tag" in row.values:
        return _tagged(row, turns)
    return Conversation(id=row.id, messages=row.ending(row.messages(turns, "conversations"), "assistant",
                                                       "conversations"))


def _tagged(row: Row, turns: list[dict[str, Any]]) -> Thumb:
    tag = row.values["kto_tag"]
    if not isinstance(tag, bool):
        raise row.wrong("kto_tag", f"must be true (a good answer) or false, found {kind_of(tag)}")
    *asked, said = row.ending(row.messages(turns, "conversations"), "assistant", "conversations")
    own = {key: row.values[key] for key in ("id", "facts", "source") if key in row.values}
    return thumb_in(replace(row, values={**own, "prompt": turn_rows(asked), "completion": said.content, "label": tag}))


def _sharegpt_row(pair: PreferencePair) -> Values:
    turns = [{"from": SHAREGPT_NAMES[turn.role], "value": turn.content} for turn in pair.prompt.messages]
    system = turns.pop(0)["value"] if turns[0]["from"] == "system" else ""
    return {"system": system, "conversations": turns, "chosen": {"from": "gpt", "value": pair.chosen},
            "rejected": {"from": "gpt", "value": pair.rejected}}


def _alpaca_row(pair: PreferencePair) -> Values | None:
    turns = list(pair.prompt.messages)
    system = turns.pop(0).content if turns[0].role == "system" else ""
    if [turn.role for turn in turns] != ["user", "assistant"] * (len(turns) // 2) + ["user"]:
        return None
    history = [[ask.content, reply.content] for ask, reply in zip(turns[:-1:2], turns[1::2], strict=True)]
    return {"system": system, "history": history, "instruction": turns[-1].content, "input": "", "chosen": pair.chosen,
            "rejected": pair.rejected}
