"""From judgments to training data by a rule that is written down: pairs, thumbs, or every judgment as it was made.

The same store gives the same bytes. Beside the file lies a sidecar with the rule, what was left out and why, and
digests of the file and of every row of judgments, so that anybody can see what was made of what. Attention checks and
judgments that repeat earlier ones are never exported as training data.
"""

import hashlib
import json
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

from rlhflab.data.files import kind_of_file
from rlhflab.data.formats import pair_row, prompt_row, thumb_row, write_jsonl
from rlhflab.data.judging import Purpose, Said, Standing, digest
from rlhflab.data.store import Store
from rlhflab.data.types import Judged, PreferencePair, Thumb
from rlhflab.errors import ConfigError, DataError

Shape = Literal["pairs", "thumbs", "judged"]
BETTER = ("a", "b", "good", "bad")
"""Verdicts that make a pair or a thumb."""


class Decision(NamedTuple):
    """What a rule makes of one item: a verdict that makes a pair or a thumb, how clear it is, and who says so."""

    verdict: str
    strength: float
    source: str


class Undecided(NamedTuple):
    """Why a rule makes nothing of an item."""

    why: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """How judgments become training data."""

    name: Literal["adjudicated", "majority", "each"] = "adjudicated"
    """adjudicated: the adjudicator's verdict where there is one, else majority. majority: the verdict of more than
    half, ties and both bad being verdicts too. each: every judgment by itself."""
    min_judgments: int = 1
    """Judgments, skips not counted, that an item needs; an adjudicator's verdict needs no others."""
    min_agreement: float = 0.5
    """Share of the judgments that the majority must exceed, or reach where it is above a half."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Export:
    """What was written where."""

    path: Path
    sidecar: Path
    rows: int
    record: Mapping[str, Any]


def export(store: Store, out: Path, *, shape: Shape = "pairs", rule: Rule = Rule()) -> Export:
    """Write the rows and their sidecar, whole or not at all. DataError where nothing can be exported."""
    if not 0 <= rule.min_agreement <= 1:
        raise ConfigError(f"--min-agreement {rule.min_agreement}: must be from 0 to 1")
    if kind_of_file(out) != ".jsonl":
        raise ConfigError(f"--out {out}: an export is JSONL, in a file that ends in .jsonl or .jsonl.gz; rlhflab data "
                          "convert makes other files of it")
    counted: Counter[str] = Counter()
    with store.moment() as moment:
        standings = store.everything(moment)
        rows = list(_judged_rows(standings) if shape == "judged" else _derived_rows(standings, shape, rule, counted))
        ledger = _ledger(store.all_said(moment))
    if not rows:
        reasons = ", ".join(f"{n} {why}" for why, n in sorted(counted.items())) or "it is empty"
        raise DataError(f"{store.name}: gives no {shape} ({reasons}); judge some, or choose another rule")
    write_jsonl(out, rows)
    record = {
        "file": out.name, "rows": len(rows), "shape": shape,
        "rule": None if shape == "judged" else {"name": rule.name, "min_judgments": rule.min_judgments,
                                                "min_agreement": rule.min_agreement},
        "left_out": dict(sorted(counted.items())),
        "sha256": hashlib.sha256(out.read_bytes()).hexdigest(),
        "judgments": ledger}
    sidecar = out.with_name(out.name.removesuffix(".gz").removesuffix(".jsonl") + ".export.json")
    _write_json(sidecar, record)
    return Export(path=out, sidecar=sidecar, rows=len(rows), record=record)


def judged(store: Store) -> Iterator[Judged]:
    """Every comparison with the judgments that stand, adjudications among them; single answers are left out."""
    for standing in store.everything():
        if standing.item.b is not None:
            yield Judged(comparison=standing.item.comparison, meta=standing.item.meta,
                         judgments=tuple(said.judgment for said in standing.said if said.purpose != "repeat"))


def decide(said: Sequence[Said], rule: Rule) -> Decision | Undecided:
    """What majority or adjudication makes of the judgments that stand of one item."""
    if rule.name == "adjudicated" and (last := _votes(said, "adjudicate")):
        return _of_one(last[-1])
    votes = _votes(said, "judge")
    if len(votes) < max(rule.min_judgments, 1):
        return Undecided("with too few judgments" if votes else "not judged")
    (verdict, most), *_ = Counter(each.verdict for each in votes).most_common(1)
    share = most / len(votes)
    if share <= 0.5 or share < rule.min_agreement:
        return Undecided("without enough agreement")
    if verdict not in BETTER:
        return Undecided(f"judged {verdict}")
    for_it = [each for each in votes if each.verdict == verdict]
    strength = share * sum(each.strength for each in for_it) / len(for_it)
    source = for_it[0].annotator if len(votes) == 1 else f"majority {most} of {len(votes)}"
    return Decision(str(verdict), strength, source)


def _votes(said: Sequence[Said], purpose: Purpose) -> list[Said]:
    return [each for each in said if each.purpose == purpose and each.verdict != "skip"]


def _of_one(said: Said) -> Decision | Undecided:
    if said.verdict not in BETTER:
        return Undecided(f"judged {said.verdict}")
    return Decision(str(said.verdict), said.strength, said.annotator)


def _decisions(said: Sequence[Said], rule: Rule) -> list[Decision | Undecided]:
    if rule.name != "each":
        return [decide(said, rule)]
    votes = _votes(said, "judge")
    enough = len(votes) >= max(rule.min_judgments, 1)
    return [_of_one(each) for each in votes] if enough else [
        Undecided("with too few judgments" if votes else "not judged")]


def _derived_rows(standings: Iterable[Standing], shape: Shape, rule: Rule,
                  counted: Counter[str]) -> Iterator[Mapping[str, Any]]:
    """One row a decision, in the order in which items came into the store."""
    make: Callable[[Standing, Decision], Mapping[str, Any]] = _pair if shape == "pairs" else _thumb
    for standing in standings:
        if (standing.item.b is None) == (shape == "pairs"):
            counted["of the other kind"] += 1
        elif standing.item.gold is not None:
            counted["attention checks"] += 1
        else:
            for decision in _decisions(standing.said, rule):
                if isinstance(decision, Undecided):
                    counted[decision.why] += 1
                else:
                    yield make(standing, decision)


def _pair(standing: Standing, decision: Decision) -> Mapping[str, Any]:
    item = standing.item
    assert item.b is not None
    chosen, rejected = (item.a, item.b) if decision.verdict == "a" else (item.b, item.a)
    return pair_row(PreferencePair(prompt=item.prompt, chosen=chosen, rejected=rejected,
                                   strength=round(decision.strength, 6), source=decision.source))


def _thumb(standing: Standing, decision: Decision) -> Mapping[str, Any]:
    return thumb_row(Thumb(prompt=standing.item.prompt, answer=standing.item.a, good=decision.verdict == "good",
                           source=decision.source))


def _judged_rows(standings: Iterable[Standing]) -> Iterator[Mapping[str, Any]]:
    """What `intake.read_items` reads back: every item, with the judgments that stand."""
    for standing in standings:
        item = standing.item
        answers = {"answer": item.a} if item.b is None else {"a": item.a, "b": item.b}
        yield {**prompt_row(item.prompt), **answers, **({} if item.gold is None else {"gold": item.gold}),
               "meta": dict(item.meta), "judgments": [_said_row(said) for said in standing.said]}


def _said_row(said: Said) -> dict[str, Any]:
    return {"verdict": said.verdict, "annotator": said.annotator, "purpose": said.purpose, "strength": said.strength,
            "tags": list(said.tags), "reason": said.reason, "shown_first": said.shown_first, "seconds": said.seconds,
            "at": said.at, **({} if said.corrects is None else {"author": said.author, "why": said.why})}


def _ledger(written: Iterable[Said]) -> dict[str, Any]:
    """How many rows of judgments there are, and a digest of all of them in the order of writing."""
    whole, rows = hashlib.sha256(), 0
    for said in written:
        whole.update(digest([said.id, said.comparison_id, said.corrects, said.author, said.why,
                             _said_row(said)]).encode())
        rows += 1
    return {"rows": rows, "sha256": whole.hexdigest()}


def _write_json(path: Path, value: Mapping[str, Any]) -> None:
    partial = path.with_name(f".{path.name}.part")
    partial.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    os.replace(partial, path)
