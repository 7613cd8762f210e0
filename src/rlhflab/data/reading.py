"""One way in for data of any format: items one after the other, each with the place it stands at.

The file's kind and the rows' format are found out or named; nothing is kept in memory but the row at hand. What a
format's rows say is in `forms/`, what holds rows in `files.py`.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Literal

from rlhflab.data.files import rows_of
from rlhflab.data.formats import tell
from rlhflab.data.forms import Item, data_format, in_order, winner
from rlhflab.data.types import Judged, PreferencePair
from rlhflab.errors import DataError

LOOKED_AT = 50
"""Rows that a format is found out by."""

Rule = Literal["majority", "each"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Located:
    """One item and where it stands."""

    path: Path
    line: int
    """The line its row begins on; the number of its row in Parquet and in data sets. Both count from 1."""
    item: Item


def read_items(path: Path | str, *, form: str | None = None, bad: Callable[[DataError], None] | None = None,
               any_answer: bool = False) -> Iterator[Located]:
    """The items of a file, a folder of `datasets`, or `hub:NAME`, as they are read.

    `form` None finds the format out. DataError names file, line and key of the first broken row; where `bad` is given
    it is told instead, and reading goes on. A verdict of which nobody knows whose it is has the annotator "". A row
    that holds several items is read whole or not at all. `any_answer` lets judged answers be empty or equal, where only
    the judgments matter.
    """
    read = data_format.entry(form or detect_form(path), where=str(path)).function().read
    for row in rows_of(path, bad=bad):
        try:
            items = list(read(replace(row, any_answer=any_answer)))
        except DataError as error:
            tell(bad, error)
            continue
        for item in items:
            yield Located(path=row.path, line=row.line, item=item)


def detect_form(path: Path | str) -> str:
    """The format that most of the first rows look like. DataError where none of them looks like any."""
    first = None
    found: Counter[str] = Counter()
    forms = in_order()
    for row in islice(rows_of(path, bad=lambda error: None), LOOKED_AT):
        first = first or row
        found.update(islice((name for name, form in forms.items() if form.fits(row.values)), 1))
    if found:
        return found.most_common(1)[0][0]  # Of equals the one that came first.
    if first is None:
        next(rows_of(path))  # Says what is wrong with the first row.
        raise DataError(f"{path}: holds no row that can be read")
    if {"message_id", "message_tree_id", "text"} <= set(first.values):
        raise DataError(f"{first.path}:{first.line}: is one message of an OpenAssistant tree; whole trees can be read, "
                        "such as the *.trees.jsonl.gz files of the same data set")
    keys = ", ".join(map(repr, first.values)) or "nothing"
    raise DataError(f"{first.path}:{first.line}: holds {keys[:200]}, which is no data format of the lab; "
                    "rlhflab list formats shows what each needs")


def pairs_of(judged: Judged, rule: Rule = "majority") -> Iterator[PreferencePair]:
    """The pairs that a rule derives from judgments: `majority` at most one, `each` one a judgment for a or b.

    Answers of which one is empty, or that are equal, make none: nothing can be learnt from them.
    """
    a, b = judged.comparison.a, judged.comparison.b
    if a != b and a.strip() and b.strip():
        yield from RULES[rule](judged)


def majority(judged: Judged) -> Iterator[PreferencePair]:
    """One pair where an answer has more judgments than the other and at least as many as there are ties.

    Its strength is the mean of those for it, times the lead: votes for it less those against, over all but skips.
    """
    won = winner(judged)
    if won is None:
        return
    counted = [judgment for judgment in judged.judgments if judgment.verdict != "skip"]
    those_for = [judgment for judgment in counted if judgment.verdict == won]
    against = sum(judgment.verdict in ("a", "b") for judgment in counted) - len(those_for)
    mean = sum(judgment.strength for judgment in those_for) / len(those_for)
    sources = {judgment.annotator for judgment in counted}
    yield _pair(judged, prefers_a=won == "a", strength=mean * (len(those_for) - against) / len(counted),
                source=sources.pop() if len(sources) == 1 else "")


def each_judgment(judged: Judged) -> Iterator[PreferencePair]:
    """A pair a judgment for a or b; annotators who disagree make opposite pairs."""
    for judgment in judged.judgments:
        if judgment.verdict in ("a", "b"):
            yield _pair(judged, prefers_a=judgment.verdict == "a", strength=judgment.strength,
                        source=judgment.annotator)


RULES: Mapping[Rule, Callable[[Judged], Iterator[PreferencePair]]] = {"majority": majority, "each": each_judgment}


def _pair(judged: Judged, *, prefers_a: bool, strength: float, source: str) -> PreferencePair:
    """Where no annotator is known, the pair's source is that of the data set."""
    comparison, known = judged.comparison, judged.meta.get("source", "")
    chosen, rejected = (comparison.a, comparison.b) if prefers_a else (comparison.b, comparison.a)
    return PreferencePair(prompt=comparison.prompt, chosen=chosen, rejected=rejected, strength=strength,
                          source=source or (known if isinstance(known, str) else ""))
