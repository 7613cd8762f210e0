"""One schema that sets of different origin were brought to, with votes. The sets' own formats are elsewhere."""

from dataclasses import replace
from typing import Any, cast

from rlhflab.data.formats import Row, kind_of, shortly, strength_in, turn_rows
from rlhflab.data.forms.base import (
    ASK,
    BAD,
    GOOD,
    VERDICTS,
    Form,
    Values,
    compared,
    data_format,
    meta_in,
    rest_of,
    winner,
)
from rlhflab.data.forms.transcripts import as_transcript, is_transcript, transcript
from rlhflab.data.types import Judged, Judgment, Verdict


@data_format("shared", needs=("prompt", "response_a", "response_b", "label"))
def shared_form() -> Form:
    """One schema for sets of different origin: a label, and votes as counts or, in `meta.workers`, by worker."""
    return Form(
        fits=lambda values: {"prompt", "response_a", "response_b"} <= set(values), read=lambda row: [_shared(row)],
        holds=Judged, row=_shared_row,
        example={"id": "sum", "source": "crowd", "prompt": ASK, "response_a": GOOD, "response_b": BAD, "label": "a",
                 "votes": {"a": 2, "b": 0, "tie": 1}, "strength": 0.5,
                 "meta": {"workers": [["w7", "a"], ["w8", "a"], ["w9", "tie"]]}},
        loses="facts, reasons, tags, times, sides shown first or skips")


def _shared(row: Row) -> Judged:
    prompt = row.values.get("prompt")
    turns = row.ending(transcript(row, prompt, "prompt"), "user", "prompt") if is_transcript(prompt) else row.prompt()
    _, a = row.answer("response_a")
    _, b = row.answer("response_b")
    label = row.values.get("label")
    if label not in ("a", "b", "tie"):
        raise row.wrong("label", f"must be a, b or tie, found {shortly(label)}")
    meta = {**meta_in(row), **rest_of(row, "id", "prompt", "facts", "response_a", "response_b", "label", "votes",
                                  "strength", "meta")}
    if not meta.get("source"):
        meta.pop("source", None)
    strength = row.values.get("strength", 1.0)
    if isinstance(strength, int | float) and strength > 1:
        meta["strength"], strength = strength, 1.0  # A gap of ranks or the like, of which nobody knows the largest.
    checked = strength_in(replace(row, values={**row.values, "strength": strength}))
    votes = _workers(row, meta) or [("", verdict) for verdict in _votes(row)] or [("", label)]
    return compared(row, turns, a, b, *(Judgment(verdict=cast(Verdict, said), annotator=who, strength=checked)
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


def _shared_row(judged: Judged) -> Values | None:
    """A lone verdict of nobody known is a label without votes; a comparison that nobody judged has no row."""
    comparison, meta = judged.comparison, dict(judged.meta)
    said = [j for j in judged.judgments if j.verdict != "skip"]
    if not said:
        return None
    verdicts = ["tie" if j.verdict == "both_bad" else j.verdict for j in said]
    if any(j.annotator for j in said):
        meta["workers"] = [[j.annotator, verdict] for j, verdict in zip(said, verdicts, strict=True)]
    votes = {verdict: verdicts.count(verdict) for verdict in ("a", "b", "tie")}
    strengths = {j.strength for j in said} - {1.0}
    strength = meta.pop("strength", strengths.pop() if len(strengths) == 1 else None)
    turns = comparison.prompt.messages
    alone = len(turns) == 1 and turns[0].role == "user" and not is_transcript(turns[0].content)
    told = as_transcript(turns) if all(turn.content == turn.content.strip() for turn in turns) else None
    return {"id": comparison.prompt.id, "source": meta.pop("source", ""),
            "prompt": turns[0].content if alone else told or turn_rows(turns),
            "response_a": comparison.a, "response_b": comparison.b, "label": winner(judged) or "tie",
            "votes": votes if len(said) > 1 or said[0].annotator else None, "strength": strength, "meta": meta}
