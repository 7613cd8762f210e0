"""Formats that rank answers to one prompt: votes of an arena, lists with scores, trees of replies. Only read."""

from collections.abc import Iterator
from dataclasses import replace
from itertools import combinations
from typing import Any, cast

from rlhflab.data.formats import Row, kind_of, shortly
from rlhflab.data.forms.base import (
    ASK,
    ASKED,
    BAD,
    GOOD,
    SAID,
    SAID_BADLY,
    Form,
    Values,
    compared,
    data_format,
    name_in,
    objects_in,
    rest_of,
)
from rlhflab.data.types import Judged, Judgment, Message, Verdict


@data_format("arena", needs=("conversation_a", "conversation_b", "winner"))
def arena_form() -> Form:
    """Votes of a chatbot arena: two conversations that differ in their last turn, and the model that won."""
    talks = {f"conversation_{side}": [ASKED, said] for side, said in (("a", SAID), ("b", SAID_BADLY))}
    return Form(fits=lambda values: {"conversation_a", "conversation_b", "winner"} <= set(values),
                read=lambda row: [_arena(row)],
                example={"question_id": "q1", "model_a": "small", "model_b": "large", "winner": "model_a",
                         "judge": "w7", **talks})


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
    return compared(given, turns, a, b,
                     Judgment(verdict=cast(Verdict, ARENA[won]), annotator=name_in(row, "judge")),
                     keys=("conversation_a", "conversation_b"),
                     meta=rest_of(row, "id", "facts", "conversation_a", "conversation_b", "winner", "judge"))


@data_format("scored", needs=("completions",), source="arXiv:2310.01377")
def scored_form() -> Form:
    """One prompt and several answers with scores, as UltraFeedback: every two scored answers are a comparison."""
    return Form(fits=lambda values: bool({"completions", "responses"} & set(values)), read=_scored,
                example={"instruction": ASK, "completions": [
                    {"response": GOOD, "overall_score": 9.0, "model": "small"},
                    {"response": BAD, "overall_score": 2.5, "model": "large"}]})


def _scored(row: Row) -> Iterator[Judged]:
    prompt = {"prompt": row.values.get("prompt", row.values.get("instruction", row.values.get("question")))}
    turns = replace(row, values={key: value for key, value in prompt.items() if value is not None}).prompt()
    answers = _scored_answers(row)
    if len(answers) < 2:
        raise row.wrong("completions", f"must hold at least two answers with a score, found {len(answers)}")
    meta = rest_of(row, "id", "prompt", "instruction", "question", "facts", "completions", "responses", "scores")
    for (a, score_a, who_a), (b, score_b, who_b) in combinations(answers, 2):
        if a == b:
            continue  # The same words twice: there is nothing to compare.
        verdict: Verdict = "a" if score_a > score_b else "b" if score_b > score_a else "tie"
        # `source` is where the prompt is from: of a score, nobody knows whose it is.
        yield compared(row, turns, a, b, Judgment(verdict=verdict, annotator=""), keys=("completions", "completions"),
                        meta={**meta, "score_a": score_a, "score_b": score_b, "model_a": who_a, "model_b": who_b})


SCORED_TEXTS = ("response", "completion", "answer", "text", "content")
SCORES = ("overall_score", "score", "rating")


def _scored_answers(row: Row) -> list[tuple[str, float, str | None]]:
    """Text, score and author of each answer that has a score: `completions` of objects, or two lists side by side."""
    key = "responses" if "responses" in row.values else "completions"
    given = row.given(key)
    if not isinstance(given, list):
        raise row.wrong(key, f"must be a list, found {kind_of(given)}")
    if all(isinstance(each, str) for each in given):
        scores = row.values.get("scores")
        if not isinstance(scores, list) or len(scores) != len(given):
            raise row.wrong("scores", f"must be a list of {len(given)} numbers, one for each of {key!r}")
        given = [{"response": text, "score": score} for text, score in zip(given, scores, strict=True)]
    answers = []
    for place, each in enumerate(objects_in(row, given, key)):
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


@data_format("oasst", needs=("prompt",), source="arXiv:2304.07327")
def oasst_form() -> Form:
    """Trees of replies with ranks, as OpenAssistant: every two ranked replies to one turn are a comparison."""
    replies = [{"message_id": f"m{rank}", "role": "assistant", "text": text, "rank": rank, "replies": []}
               for rank, text in enumerate((GOOD, BAD))]
    return Form(fits=lambda values: isinstance(values.get("prompt"), dict) and "replies" in values["prompt"],
                read=_tree,
                example={"message_tree_id": "t1", "prompt": {"message_id": "t1", "role": "prompter", "text": ASK,
                                                             "replies": replies}})


OASST_ROLES = {"prompter": "user", "assistant": "assistant"}


def _tree(row: Row) -> Iterator[Judged]:
    """Rank 0 is the best. Replies without a rank were not ranked, and deleted ones are passed over."""
    pending: list[tuple[Any, str, tuple[Message, ...]]] = [(row.values.get("prompt"), "prompt", ())]
    while pending:
        node, where, before = pending.pop()
        if not isinstance(node, dict):
            raise row.wrong(where, f"must be an object with text, role and replies, found {kind_of(node)}")
        turns = (*before, _oasst_turn(row, node, where))
        replies = objects_in(row, node.get("replies") or [], f"{where}.replies")
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
    here = replace(row, values={"id": name_in(replace(row, values=parent), "message_id") or row.id})
    for (rank_a, a, first), (rank_b, b, second) in combinations(ranked, 2):
        if a == b:
            continue
        verdict: Verdict = "a" if rank_a < rank_b else "b" if rank_b < rank_a else "tie"
        yield compared(here, turns, a, b, Judgment(verdict=verdict, annotator=""), keys=("text", "text"), meta={
            "tree": row.values.get("message_tree_id"), "rank_a": rank_a, "rank_b": rank_b,
            "synthetic": bool(first.get("synthetic") or second.get("synthetic"))})
