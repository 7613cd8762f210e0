"""The catalogue of data formats: how a row of each looks, what it says, and how one is written.

A format knows rows, never files. Which pairs are made of judgments is not decided here: that is a rule of its own
(`reading.py`).
"""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Any, cast

from rlhflab.catalog import Catalog
from rlhflab.data.formats import (
    ANSWER_KEYS,
    Row,
    comparison_in,
    comparison_row,
    conversation_in,
    conversation_row,
    finite,
    kind_of,
    pair_in,
    pair_row,
    prompt_row,
    shortly,
    strength_in,
    thumb_in,
    thumb_row,
    turn_rows,
)
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
    """What of a record has no place in a row."""


data_format: Catalog[Callable[[], Form]] = Catalog("data format")
"""`needs`: keys that a row has."""

ASK, GOOD, BAD = "What is 2 + 2?", "4", "It is 5."
ASKED, SAID = {"role": "user", "content": ASK}, {"role": "assistant", "content": GOOD}
SAID_BADLY = {"role": "assistant", "content": BAD}
VERDICTS = ("a", "b", "tie", "both_bad", "skip")


def in_order() -> dict[str, Form]:
    """Every format, the most telling look first: a row of thumbs has a prompt, too. Third parties' come before all."""
    names = sorted(data_format.names(), key=lambda name: ORDER.index(name) if name in ORDER else -1)
    return {name: data_format.entry(name, where="data format").function() for name in names}


ORDER = ("judged", "shared", "arena", "oasst", "scored", "sharegpt", "alpaca", "hh", "pairs", "trl", "trl_implicit",
         "thumbs", "demonstrations", "prompts")
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


@data_format("shared", needs=("prompt", "response_a", "response_b", "label"))
def shared_form() -> Form:
    """One schema for sets of different origin: a label, and votes as counts or, in `meta.workers`, by worker."""
    return Form(
        fits=lambda values: {"prompt", "response_a", "response_b"} <= set(values), read=lambda row: [_shared(row)],
        holds=Judged, row=_shared_row,
        example={"id": "sum", "source": "crowd", "prompt": ASK, "response_a": GOOD, "response_b": BAD, "label": "a",
                 "votes": {"a": 2, "b": 0, "tie": 1}, "strength": 0.5,
                 "meta": {"workers": [["w7", "a"], ["w8", "a"], ["w9", "tie"]]}},
        loses="facts, reasons, tags, time, the side shown first, and skips")


@data_format("arena", needs=("conversation_a", "conversation_b", "winner"))
def arena_form() -> Form:
    """Votes of a chatbot arena: two conversations that differ in their last turn, and the model that won."""
    talks = {f"conversation_{side}": [ASKED, said] for side, said in (("a", SAID), ("b", SAID_BADLY))}
    return Form(fits=lambda values: {"conversation_a", "conversation_b", "winner"} <= set(values),
                read=lambda row: [_arena(row)],
                example={"question_id": "q1", "model_a": "small", "model_b": "large", "winner": "model_a",
                         "judge": "w7", **talks})


@data_format("oasst", needs=("prompt",), source="arXiv:2304.07327")
def oasst_form() -> Form:
    """Trees of replies with ranks, as OpenAssistant: every two ranked replies to one turn are a comparison."""
    replies = [{"message_id": f"m{rank}", "role": "assistant", "text": text, "rank": rank, "replies": []}
               for rank, text in enumerate((GOOD, BAD))]
    return Form(fits=lambda values: isinstance(values.get("prompt"), dict) and "replies" in values["prompt"],
                read=_tree,
                example={"message_tree_id": "t1", "prompt": {"message_id": "t1", "role": "prompter", "text": ASK,
                                                             "replies": replies}})


@data_format("scored", needs=("completions",), source="arXiv:2310.01377")
def scored_form() -> Form:
    """One prompt and several answers with scores, as UltraFeedback: every two scored answers are a comparison."""
    return Form(fits=lambda values: isinstance(values.get("completions", values.get("responses")), list),
                read=_scored,
                example={"instruction": ASK, "completions": [{"response": GOOD, "overall_score": 9.0, "model": "small"},
                                                             {"response": BAD, "overall_score": 2.5, "model": "large"}]})


@data_format("sharegpt", needs=("conversations",))
def sharegpt_form() -> Form:
    """ShareGPT as LLaMA-Factory takes it: `conversations`, with `chosen` and `rejected`, with `kto_tag`, or alone."""
    return Form(fits=lambda values: "conversations" in values, read=lambda row: [_sharegpt(row)], holds=PreferencePair,
                row=_sharegpt_row, loses="id, facts, strength and source",
                example={"system": "Be brief.", "conversations": [{"from": "human", "value": ASK}],
                         "chosen": {"from": "gpt", "value": GOOD}, "rejected": {"from": "gpt", "value": BAD}})


@data_format("alpaca", needs=("instruction",))
def alpaca_form() -> Form:
    """Alpaca as LLaMA-Factory takes it: `instruction`, `input`, and `chosen` and `rejected`, or `output` and `kto_tag`."""
    return Form(fits=lambda values: "instruction" in values and bool({"output", "chosen", "rejected"} & set(values)),
                read=lambda row: [_alpaca(row)], holds=PreferencePair, row=_alpaca_row,
                loses="id, facts, strength and source",
                example={"system": "Be brief.", "history": [["Hello", "Hello."]], "instruction": ASK, "input": "",
                         "chosen": GOOD, "rejected": BAD})


@data_format("hh", needs=("chosen", "rejected"), source="arXiv:2204.05862")
def hh_form() -> Form:
    """Transcripts as hh-rlhf: turns behind `Human:` and `Assistant:`, two whole ones or a prompt and two answers."""
    asked = f"\n\nHuman: {ASK}\n\nAssistant: "
    return Form(fits=_is_transcript, read=lambda row: [_hh(row)], holds=PreferencePair, row=_hh_row,
                loses="id, facts, strength and source", example={"chosen": asked + GOOD, "rejected": asked + BAD})


@data_format("pairs", needs=("prompt", "chosen", "rejected", "strength"))
def pairs_form() -> Form:
    """The lab's own pairs, which `train` reads: `prompt` as turns, `chosen` and `rejected` as text, `strength`."""
    return Form(fits=lambda values: {"prompt", "chosen", "rejected", "strength"} <= set(values), holds=PreferencePair,
                read=lambda row: [_judged_pair(row)], row=pair_row,
                example={"id": "sum", "prompt": [ASKED], "facts": {"sum": 4}, "chosen": GOOD, "rejected": BAD,
                         "strength": 0.5, "source": "w7"})


@data_format("trl", needs=("prompt", "chosen", "rejected"))
def trl_form() -> Form:
    """TRL with the prompt apart: `prompt`, `chosen` and `rejected`, each text or messages."""
    return Form(fits=lambda values: {"prompt", "chosen", "rejected"} <= set(values), holds=PreferencePair,
                read=lambda row: [_judged_pair(row)], row=_trl_row, loses="id, facts, strength and source",
                example={"prompt": [ASKED], "chosen": [SAID], "rejected": [SAID_BADLY]})


@data_format("trl_implicit", needs=("chosen", "rejected"))
def trl_implicit_form() -> Form:
    """TRL with the prompt inside: `chosen` and `rejected` are whole conversations that differ in their last turn."""
    return Form(fits=lambda values: {"chosen", "rejected"} <= set(values), holds=PreferencePair,
                read=lambda row: [_judged_pair(row)], row=_trl_implicit_row, loses="id, facts, strength and source",
                example={"chosen": [ASKED, SAID], "rejected": [ASKED, SAID_BADLY]})


@data_format("thumbs", needs=("prompt", "label"))
def thumbs_form() -> Form:
    """Thumbs as KTO takes them: `prompt` (or `question`), one answer, and `label` true or false."""
    return Form(fits=lambda values: bool(PROMPTS & set(values)) and "label" in values and _one_answer(values),
                holds=Thumb, read=lambda row: [_thumb(row)], row=thumb_row,
                example={"id": "sum", "prompt": [ASKED], "facts": {"sum": 4}, "completion": GOOD, "label": True,
                         "source": "w7"})


@data_format("demonstrations", needs=("messages",))
def demonstrations_form() -> Form:
    """What SFT learns: `messages` that end in an answer, or `prompt` (or `question`) and one answer."""
    return Form(fits=_is_demonstration, holds=Conversation, row=conversation_row,
                read=lambda row: [Conversation(id=row.id, messages=conversation_in(_prompted(row)))],
                example={"id": "sum", "messages": [ASKED, SAID]})


@data_format("prompts", needs=("prompt",))
def prompts_form() -> Form:
    """Prompts alone: text or messages in `prompt`, or `messages` that end in a turn of the user."""
    return Form(fits=lambda values: bool((PROMPTS | {"messages"}) & set(values)), holds=Prompt, row=prompt_row,
                read=lambda row: [_prompt(row)], example={"id": "sum", "prompt": [ASKED], "facts": {"sum": 4}})


def _one_answer(values: Values) -> bool:
    return sum(key in values for key in ANSWER_KEYS) == 1


def _is_demonstration(values: Values) -> bool:
    messages = values.get("messages")
    if isinstance(messages, list) and messages and isinstance(messages[-1], dict):
        return bool(messages[-1].get("role") == "assistant")
    return bool(PROMPTS & set(values)) and _one_answer(values)


def _prompted(row: Row) -> Row:
    """The row with its question called `prompt`."""
    if "question" not in row.values or "prompt" in row.values:
        return row
    return replace(row, values={**{k: v for k, v in row.values.items() if k != "question"},
                                "prompt": row.values["question"]})


def _rest(row: Row, *used: str) -> dict[str, Any]:
    """What else a row tells, as JSON can hold it."""
    return {key: finite(value) for key, value in row.values.items() if key not in used}


def _compared(row: Row, turns: tuple[Message, ...], a: str, b: str, *judgments: Judgment,
              keys: tuple[str, str], meta: Values) -> Judged:
    if a == b:
        raise row.wrong(keys[0], f"and {keys[1]!r} are equal; there is nothing to compare", fault="identical")
    return Judged(comparison=Comparison(prompt=Prompt(id=row.id, messages=turns, facts=row.facts), a=a, b=b),
                  judgments=judgments, meta=meta)


def _preferred(pair: PreferencePair, meta: Values) -> Judged:
    """A pair as a comparison of which one judgment is known. Nobody wrote down which answer was shown first."""
    return Judged(comparison=Comparison(prompt=pair.prompt, a=pair.chosen, b=pair.rejected), meta=meta,
                  judgments=(Judgment(verdict="a", annotator=pair.source, strength=pair.strength),))


def _judged_pair(row: Row) -> Judged:
    return _preferred(pair_in(row), _rest(row, "id", "prompt", "facts", "chosen", "rejected", "strength", "source"))


def _trl_row(pair: PreferencePair) -> Values:
    return {"prompt": turn_rows(pair.prompt.messages), "chosen": [{"role": "assistant", "content": pair.chosen}],
            "rejected": [{"role": "assistant", "content": pair.rejected}]}


def _trl_implicit_row(pair: PreferencePair) -> Values:
    row = _trl_row(pair)
    return {key: [*row["prompt"], *row[key]] for key in ("chosen", "rejected")}


def _thumb(row: Row) -> Thumb:
    row = _prompted(row)
    label = row.values.get("label")
    if not isinstance(label, bool) and label in (0, 1, "0", "1"):
        row = replace(row, values={**row.values, "label": bool(int(label))})
    return thumb_in(row)


def _prompt(row: Row) -> Prompt:
    row = _prompted(row)
    key = "messages" if "prompt" not in row.values and "messages" in row.values else "prompt"
    return Prompt(id=row.id, messages=row.prompt(key), facts=row.facts)


def _verdict(row: Row, value: object, key: str) -> Verdict:
    if value not in VERDICTS:
        raise row.wrong(key, f"must be one of {', '.join(VERDICTS)}, found {shortly(value)}")
    return cast(Verdict, value)


def _judged(row: Row) -> Judged:
    comparison = comparison_in(row)
    given = row.values.get("judgments")
    alone = [row.values] if "verdict" in row.values else []
    said: Sequence[Values] = alone if given is None else _objects(row, given, "judgments")
    known = ("verdict", "annotator", "reason", "shown_first", "strength", "tags", "seconds", "at")
    own = _rest(row, "id", "prompt", "facts", "a", "b", "judgments", "meta", *known)
    return Judged(comparison=comparison, meta={**_meta(row), **own}, judgments=tuple(
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
        verdict=_verdict(here, here.values.get(where + "verdict"), where + "verdict"),
        annotator=_name(here, where + "annotator"), reason=_name(here, where + "reason"), shown_first=first,
        strength=strength_in(here, where + "strength"), tags=tuple(here.text(tag, where + "tags") for tag in tags),
        seconds=seconds, at=_name(here, where + "at") or None)


def _name(row: Row, key: str) -> str:
    """A text or number that may be absent, or empty."""
    value = row.values.get(key, "")
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    return row.text(value, key) if value != "" else ""


def _objects(row: Row, value: object, key: str) -> list[dict[str, Any]]:
    if not isinstance(value, list):
        raise row.wrong(key, f"must be a list of objects, found {kind_of(value)}")
    for place, each in enumerate(value):
        if not isinstance(each, dict):
            raise row.wrong(f"{key}[{place}]", f"must be an object, found {kind_of(each)}")
    return value


def _meta(row: Row) -> dict[str, Any]:
    meta = row.values.get("meta", {})
    if not isinstance(meta, dict):
        raise row.wrong("meta", f"must be an object, found {kind_of(meta)}")
    return cast(dict[str, Any], finite(meta))


def _judged_row(judged: Judged) -> Values:
    blank = Judgment(verdict="skip", annotator="")
    said = [{key: list(value) if isinstance(value, tuple) else value
             for key in ("verdict", "annotator", "reason", "shown_first", "strength", "tags", "seconds", "at")
             if (value := getattr(judgment, key)) != getattr(blank, key) or key in ("verdict", "annotator")}
            for judgment in judged.judgments]
    return {**comparison_row(judged.comparison), "judgments": said, "meta": dict(judged.meta)}


TURN = re.compile(r"(?:\A|\n\n)(Human|Assistant):")
SPEAKERS = {"Human": "user", "Assistant": "assistant"}


def transcript(row: Row, value: object, key: str) -> tuple[Message, ...]:
    """The turns of `Human: ... Assistant: ...`; an opening for an answer at the end is no turn."""
    text = row.text(value, key)
    start, *parts = TURN.split(text if text.startswith("Human:") else text.replace("\n\nHuman:", "Human:", 1))
    if start.strip() or not parts:
        raise row.wrong(key, "must begin with 'Human:', as a transcript does")
    said = zip(parts[::2], parts[1::2], strict=True)
    return row.messages([{"role": SPEAKERS[who], "content": words.strip()} for who, words in said], key)


def _is_transcript(values: Values) -> bool:
    if not {"chosen", "rejected"} <= set(values):
        return False
    return _begins(values.get("prompt", values["chosen"]))


def _begins(value: object) -> bool:
    return isinstance(value, str) and value.lstrip("\n").startswith("Human:")


def _hh(row: Row) -> Judged:
    if "prompt" in row.values:
        asked = row.text(row.values["prompt"], "prompt").rstrip().removesuffix("Assistant:").rstrip()
        turns: tuple[Message, ...] = row.ending(transcript(row, asked, "prompt"), "user", "prompt")
        given = {**row.values, "prompt": turn_rows(turns),
                 **{key: _stripped(row.values.get(key)) for key in ("chosen", "rejected")}}
    else:
        given = {**row.values, **{key: turn_rows(transcript(row, row.values.get(key), key))
                                  for key in ("chosen", "rejected")}}
    return _judged_pair(replace(row, values={key: value for key, value in given.items() if value is not None}))


def _stripped(value: object) -> object:
    return value.strip() if isinstance(value, str) else value


def _hh_row(pair: PreferencePair) -> Values | None:
    asked = as_transcript(pair.prompt.messages)
    answers = [Message(role="assistant", content=text) for text in (pair.chosen, pair.rejected)]
    if asked is None or not all(as_transcript((*pair.prompt.messages, answer)) for answer in answers):
        return None
    return {"chosen": f"\n\n{asked}\n\nAssistant: {pair.chosen}",
            "rejected": f"\n\n{asked}\n\nAssistant: {pair.rejected}"}


def as_transcript(turns: Sequence[Message]) -> str | None:
    """Turns as `transcript` reads them back; None where it could not: a system turn, or a speaker's name in a text."""
    names = {"user": "Human", "assistant": "Assistant"}
    if any(turn.role not in names or TURN.search("\n\n" + turn.content) or turn.content != turn.content.strip()
           for turn in turns):
        return None
    return "\n\n".join(f"{names[turn.role]}: {turn.content}" for turn in turns)


def _shared(row: Row) -> Judged:
    prompt = row.values.get("prompt")
    turns = row.ending(transcript(row, prompt, "prompt"), "user", "prompt") if _begins(prompt) else row.prompt()
    _, a = row.answer("response_a")
    _, b = row.answer("response_b")
    label = row.values.get("label")
    if label not in ("a", "b", "tie"):
        raise row.wrong("label", f"must be a, b or tie, found {shortly(label)}")
    meta = {**_meta(row), **_rest(row, "id", "prompt", "facts", "response_a", "response_b", "label", "votes",
                                  "strength", "meta")}
    strength = row.values.get("strength", 1.0)
    if isinstance(strength, int | float) and strength > 1:
        meta["strength"], strength = strength, 1.0  # A gap of ranks or the like, of which nobody knows the largest.
    checked = strength_in(replace(row, values={**row.values, "strength": strength}))
    votes = _workers(row, meta) or [("", verdict) for verdict in _votes(row)] or [("", label)]
    return _compared(row, turns, a, b, *(Judgment(verdict=cast(Verdict, said), annotator=who, strength=checked)
                                         for who, said in votes), keys=("response_a", "response_b"), meta=meta)


def _workers(row: Row, meta: dict[str, Any]) -> list[tuple[str, str]]:
    """Who said what, taken out of `meta.workers`: a list of [worker, verdict]."""
    workers = meta.pop("workers", None) or []
    if not isinstance(workers, list):
        raise row.wrong("meta.workers", f"must be a list, found {kind_of(workers)}")
    for place, each in enumerate(workers):
        if not isinstance(each, list) or len(each) != 2 or each[1] not in VERDICTS:
            raise row.wrong(f"meta.workers[{place}]", f"must be [worker, verdict], found {shortly(each)}")
    counted = _votes(row)
    if workers and counted and sorted(verdict for _, verdict in workers) != sorted(counted):
        raise row.wrong("votes", "counts other verdicts than those in meta.workers")
    return [(str(who), verdict) for who, verdict in workers]


def _votes(row: Row) -> list[str]:
    """A verdict a vote; nobody knows whose."""
    votes = row.values.get("votes", {})
    if not isinstance(votes, dict):
        raise row.wrong("votes", f"must be an object, found {kind_of(votes)}")
    for verdict, count in votes.items():
        if verdict not in VERDICTS or isinstance(count, bool) or not isinstance(count, int) or count < 0:
            raise row.wrong(f"votes.{verdict}", f"must count votes for a, b or tie, found {shortly(count)}")
    return [verdict for verdict, count in votes.items() for _ in range(count)]


def _shared_row(judged: Judged) -> Values:
    comparison, meta = judged.comparison, dict(judged.meta)
    said = [j for j in judged.judgments if j.verdict != "skip"]
    verdicts = ["tie" if j.verdict == "both_bad" else j.verdict for j in said]
    if any(j.annotator for j in said):
        meta["workers"] = [[j.annotator, verdict] for j, verdict in zip(said, verdicts, strict=True)]
    strengths = {j.strength for j in said} - {1.0}
    strength = meta.pop("strength", strengths.pop() if len(strengths) == 1 else None)
    turns = comparison.prompt.messages
    plain = turns[0].content if len(turns) == 1 and turns[0].role == "user" and not _begins(turns[0].content) else None
    return {"id": comparison.prompt.id, "source": meta.pop("source", ""),
            "prompt": plain or as_transcript(turns) or turn_rows(turns),
            "response_a": comparison.a, "response_b": comparison.b, "label": winner(judged) or "tie",
            "votes": {verdict: verdicts.count(verdict) for verdict in ("a", "b", "tie")}, "strength": strength,
            "meta": meta}


def winner(judged: Judged) -> Verdict | None:
    """The answer that more judgments name than the other and at least as many as call it a tie; None without one."""
    verdicts = [judgment.verdict for judgment in judged.judgments]
    a, b = verdicts.count("a"), verdicts.count("b")
    ties = verdicts.count("tie") + verdicts.count("both_bad")
    if a == b or max(a, b) < ties:
        return None
    return "a" if a > b else "b"


ARENA = {"model_a": "a", "model_b": "b", "tie": "tie", "tie (bothbad)": "both_bad", "tie (inconsistent)": "tie"}


def _arena(row: Row) -> Judged:
    (turns, a), (others, b) = row.answer("conversation_a"), row.answer("conversation_b")
    if turns != others:
        raise row.wrong("conversation_b", "differs from 'conversation_a' before its last turn; both must answer one "
                                          "prompt")
    if not turns:
        raise row.wrong("conversation_a", "holds no turns before its answer")
    row.ending(turns, "user", "conversation_a, without its last turn,")
    won = row.values["winner"] if isinstance(row.values.get("winner"), str) else None
    if won not in ARENA:
        raise row.wrong("winner", f"must be one of {', '.join(ARENA)}, found {shortly(row.values.get('winner'))}")
    given = row if "id" in row.values else replace(row, values={**row.values, "id": row.values.get("question_id")})
    return _compared(given, turns, a, b,
                     Judgment(verdict=cast(Verdict, ARENA[won]), annotator=_name(row, "judge")),
                     keys=("conversation_a", "conversation_b"),
                     meta=_rest(row, "id", "facts", "conversation_a", "conversation_b", "winner", "judge"))


def _scored(row: Row) -> Iterator[Judged]:
    prompt = {"prompt": row.values.get("prompt", row.values.get("instruction", row.values.get("question")))}
    turns = replace(row, values={key: value for key, value in prompt.items() if value is not None}).prompt()
    answers = _scored_answers(row)
    if len(answers) < 2:
        raise row.wrong("completions", f"must hold at least two answers with a score, found {len(answers)}")
    meta = _rest(row, "id", "prompt", "instruction", "question", "facts", "completions", "responses", "scores")
    for (a, score_a, who_a), (b, score_b, who_b) in combinations(answers, 2):
        if a == b:
            continue  # The same words twice: there is nothing to compare.
        verdict: Verdict = "a" if score_a > score_b else "b" if score_b > score_a else "tie"
        yield _compared(row, turns, a, b, Judgment(verdict=verdict, annotator=row.source),
                        keys=("completions", "completions"),
                        meta={**meta, "score_a": score_a, "score_b": score_b, "model_a": who_a, "model_b": who_b})


SCORED_TEXTS = ("response", "completion", "answer", "text", "content")
SCORES = ("overall_score", "score", "rating")


def _scored_answers(row: Row) -> list[tuple[str, float, str | None]]:
    """Text, score and author of each answer that has a score: `completions` of objects, or two lists side by side."""
    key = "completions" if "completions" in row.values else "responses"
    given = row.values[key]
    if not isinstance(given, list):
        raise row.wrong(key, f"must be a list, found {kind_of(given)}")
    if all(isinstance(each, str) for each in given):
        scores = row.values.get("scores")
        if not isinstance(scores, list) or len(scores) != len(given):
            raise row.wrong("scores", f"must be a list of {len(given)} numbers, one for each of {key!r}")
        given = [{"response": text, "score": score} for text, score in zip(given, scores, strict=True)]
    answers = []
    for place, each in enumerate(_objects(row, given, key)):
        where = f"{key}[{place}]"
        text = next((each[name] for name in SCORED_TEXTS if each.get(name) is not None), None)
        name, score = next(((name, each[name]) for name in SCORES if each.get(name) is not None), (SCORES[0], None))
        answer = row.text(text, f"{where}.response")
        if score is None:
            continue
        if isinstance(score, bool) or not isinstance(score, int | float) or score != score:
            raise row.wrong(f"{where}.{name}", f"must be a number, found {shortly(score)}")
        model = each.get("model")
        answers.append((answer, score, model if isinstance(model, str) else None))
    return answers


OASST_ROLES = {"prompter": "user", "assistant": "assistant"}


def _tree(row: Row) -> Iterator[Judged]:
    """Rank 0 is the best. Replies without a rank were not ranked, and deleted ones are passed over."""
    pending: list[tuple[Any, str, tuple[Message, ...]]] = [(row.values.get("prompt"), "prompt", ())]
    while pending:
        node, where, before = pending.pop()
        if not isinstance(node, dict):
            raise row.wrong(where, f"must be an object with text, role and replies, found {kind_of(node)}")
        turns = (*before, _oasst_turn(row, node, where))
        replies = _objects(row, node.get("replies") or [], f"{where}.replies")
        named = [(f"{where}.replies[{place}]", each) for place, each in enumerate(replies) if not each.get("deleted")]
        if turns[-1].role == "user":
            yield from _ranked(row, turns, node, named)
        pending += [(each, place, turns) for place, each in reversed(named)]


def _oasst_turn(row: Row, node: Values, where: str) -> Message:
    role = node.get("role")
    if role not in OASST_ROLES:
        raise row.wrong(f"{where}.role", f"must be one of {', '.join(OASST_ROLES)}, found {shortly(role)}")
    return Message(role=cast(Any, OASST_ROLES[role]), content=row.text(node.get("text"), f"{where}.text"))


def _ranked(row: Row, turns: tuple[Message, ...], parent: Values, replies: list[tuple[str, dict[str, Any]]],
            ) -> Iterator[Judged]:
    """Every two of the replies to one turn that have a rank and differ."""
    ranked = []
    for where, reply in replies:
        rank = reply.get("rank")
        if rank is None:
            continue
        if isinstance(rank, bool) or not isinstance(rank, int):
            raise row.wrong(f"{where}.rank", f"must be a whole number, found {shortly(rank)}")
        ranked.append((rank, _oasst_turn(row, reply, where).content, reply))
    here = replace(row, values={"id": _name(replace(row, values=parent), "message_id") or row.id})
    for (rank_a, a, first), (rank_b, b, second) in combinations(ranked, 2):
        if a == b:
            continue
        verdict: Verdict = "a" if rank_a < rank_b else "b" if rank_b < rank_a else "tie"
        yield _compared(here, turns, a, b, Judgment(verdict=verdict, annotator=""), keys=("text", "text"), meta={
            "tree": row.values.get("message_tree_id"), "rank_a": rank_a, "rank_b": rank_b,
            "synthetic": bool(first.get("synthetic") or second.get("synthetic"))})


SHAREGPT_ROLES = {"human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant", "system": "system"}
SHAREGPT_NAMES = {"user": "human", "assistant": "gpt", "system": "system"}


def _sharegpt(row: Row) -> Judged | Thumb | Conversation:
    talk = [_said(row, each, f"conversations[{place}]")
            for place, each in enumerate(_objects(row, row.values["conversations"], "conversations"))]
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


def _alpaca(row: Row) -> Judged | Thumb | Conversation:
    more = _name(row, "input")
    talk = [turn for question, answer in _history(row)
            for turn in ({"role": "user", "content": question}, {"role": "assistant", "content": answer})]
    instruction = row.text(row.values.get("instruction"), "instruction")
    talk.append({"role": "user", "content": f"{instruction}\n{more}" if more else instruction})
    output = row.values.get("output")
    if isinstance(output, list) and len(output) == 2:  # The older way to write a pair.
        answers: dict[str, Any] = dict(zip(("chosen", "rejected"), output, strict=True))
    else:
        answers = {key: row.values[key] for key in ("chosen", "rejected") if key in row.values}
    if not answers:
        talk.append({"role": "assistant", "content": row.text(output, "output")})
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
    system = _name(row, "system")
    turns: list[dict[str, Any]] = [*([{"role": "system", "content": system}] if system else []), *talk]
    rest = _rest(row, "chosen", "rejected", "system", "kto_tag", *used)
    if answers:
        return _judged_pair(replace(row, values={**rest, "prompt": turns, **answers}))
    if "kto_tag" in row.values:
        prompt = replace(row, values={**rest, "prompt": turns[:-1]}) if len(turns) > 1 else row
        said = turns[-1]["content"] if turns[-1]["role"] == "assistant" else None
        return _tagged(row, prompt, said)
    return Conversation(id=row.id, messages=row.ending(row.messages(turns, "conversations"), "assistant",
                                                       "conversations"))


def _tagged(row: Row, prompt: Row, said: str | None) -> Thumb:
    tag = row.values["kto_tag"]
    if not isinstance(tag, bool):
        raise row.wrong("kto_tag", f"must be true (a good answer) or false, found {kind_of(tag)}")
    if said is None:
        raise row.wrong("conversations", "must end in a turn of the assistant")
    return thumb_in(replace(prompt, values={**prompt.values, "completion": said, "label": tag}))


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
