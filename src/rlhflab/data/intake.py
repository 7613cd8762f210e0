"""From files to items of an annotation store: comparisons, pairs, single answers, and what a store itself wrote.

Files of other formats come in by `reading`, with the judgments of annotators that they name. A file is read whole
before anything is stored, so a broken row leaves the store as it was, unless such rows are to be left out.
"""

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple, get_args

from rlhflab.data import reading
from rlhflab.data.files import rows_of
from rlhflab.data.formats import ANSWER_KEYS, Row, comparison_in, pair_in, tell, thumb_in
from rlhflab.data.judging import (
    PAIR_VERDICTS,
    SINGLE_VERDICTS,
    Counted,
    Item,
    Opinion,
    Purpose,
    Side,
    Told,
    check_name,
    check_opinion,
)
from rlhflab.data.reading import Located, detect_form
from rlhflab.data.store import Store
from rlhflab.data.types import Judged, Judgment, Prompt, Thumb
from rlhflab.errors import DataError, LabError

OWN_FORMS = ("judged", "pairs", "trl", "thumbs", "demonstrations", "prompts")
"""Forms of JSONL whose rows are read here, since they may hold gold verdicts or what a store wrote."""
OWN_KEYS = ("id", "prompt", "a", "b", "chosen", "rejected", *ANSWER_KEYS, "label", "facts", "gold", "judgments", "meta")
"""Keys that are not kept as meta."""
SHAPES = ("'a' and 'b' (a comparison)", "'chosen' and 'rejected' (a pair)",
          f"one of {', '.join(map(repr, ANSWER_KEYS))} (a single answer)")


Heard = Callable[[DataError], None]
"""Hears of a row that cannot be used, where reading is to go on."""


class Taken(NamedTuple):
    """What a file gave to a store."""

    items: Counted
    judgments: Counted


def take_file(store: Store, path: Path, *, bad: Heard | None = None) -> Taken:
    """Append the items of a file, and the judgments that it holds. DataError names file, line and key.

    Where `bad` is given, it is told of broken rows, and the others are taken; DataError where there are none.
    """
    items, told = read_items(path, bad=bad)
    if not items:
        raise DataError(f"{path}: holds no row that can be judged")
    return Taken(store.add(items), store.add_judgments(told))


def read_items(path: Path, *, bad: Heard | None = None) -> tuple[list[Item], list[Told]]:
    """Items and judgments of a file whose rows all have one shape, that of the first one that has any."""
    own = detect_form(path) in OWN_FORMS and path.suffixes[-1:] in ([".jsonl"], [".gz"])
    items: list[Item] = []
    told: list[Told] = []
    for item, said in _of_own_shape(path, bad) if own else _of_other_formats(path, bad):
        items.append(item)
        told += said
    return items, told


def _of_own_shape(path: Path, bad: Heard | None) -> Iterator[tuple[Item, list[Told]]]:
    shape: Callable[[Row], Item] | None = None
    for row in rows_of(path, bad=bad):
        try:
            shape = shape or _shape(row)
            item = shape(row)
            said = _judgments(item, row)
        except DataError as error:
            tell(bad, error)
            continue
        yield item, said


def _of_other_formats(path: Path, bad: Heard | None) -> Iterator[tuple[Item, list[Told]]]:
    """Comparisons and thumbs of any format. A judgment of which nobody knows whose it is stays out."""
    for located in reading.read_items(path, bad=bad):
        try:
            item = _item_of(located)
            said = [_told(item, judgment, located) for judgment in located.item.judgments if judgment.annotator] \
                if isinstance(located.item, Judged) else []
        except DataError as error:
            tell(bad, error)
            continue
        yield item, said


def _item_of(located: Located) -> Item:
    given = located.item
    if isinstance(given, Judged):
        return Item(prompt=given.comparison.prompt, a=given.comparison.a, b=given.comparison.b, meta=given.meta,
                    source=located.path.name)
    if isinstance(given, Thumb):
        return Item(prompt=given.prompt, a=given.answer, meta={"label": given.good}, source=located.path.name)
    raise DataError(f"{located.path}:{located.line}: is a {type(given).__name__.lower()}; what is to be judged is a "
                    "comparison of two answers, a pair or a single answer")


def _told(item: Item, judgment: Judgment, where: Located) -> Told:
    opinion = Opinion(verdict=judgment.verdict, reason=judgment.reason, strength=judgment.strength, tags=judgment.tags,
                      seconds=judgment.seconds)
    try:
        check_name(judgment.annotator)
        check_opinion(item, opinion)
    except LabError as error:
        raise DataError(f"{where.path}:{where.line}: {error}") from error
    return Told(item=item, annotator=judgment.annotator, purpose="judge", opinion=opinion,
                shown_first=judgment.shown_first, at=judgment.at)


def _shape(row: Row) -> Callable[[Row], Item]:
    if "a" in row.values or "b" in row.values:
        return _comparison
    if "chosen" in row.values or "rejected" in row.values:
        return _pair
    if any(key in row.values for key in ANSWER_KEYS):
        return _thumb if "label" in row.values else _single_answer
    raise row.wrong("a", f"is missing; what is to be judged has {', or '.join(SHAPES)}, found "
                         f"{', '.join(map(repr, row.values)) or 'nothing'}")


def _comparison(row: Row) -> Item:
    each = comparison_in(row)
    return _item(row, each.prompt, each.a, each.b)


def _pair(row: Row) -> Item:
    """A pair to be judged again; which answer was chosen is kept as meta. Which one becomes a says nothing."""
    pair = pair_in(row)
    a, b = sorted((pair.chosen, pair.rejected))
    return _item(row, pair.prompt, a, b, chosen="a" if a == pair.chosen else "b")


def _thumb(row: Row) -> Item:
    """An answer that gets another thumb; the label that is there is kept as meta."""
    thumb = thumb_in(row)
    return _item(row, thumb.prompt, thumb.answer, None, label=thumb.good)


def _single_answer(row: Row) -> Item:
    """An answer that gets a thumb."""
    given = [key for key in ANSWER_KEYS if key in row.values]
    if len(given) != 1:
        raise row.wrong("answer", f"is missing or given twice; a single answer has one of "
                                  f"{', '.join(map(repr, ANSWER_KEYS))}")
    messages, answer = row.prompted_answer(given[0])
    return _item(row, Prompt(id=row.id, messages=messages, facts=row.facts), answer, None)


def _item(row: Row, prompt: Prompt, a: str, b: str | None, **meta: Any) -> Item:
    gold = row.values.get("gold")
    allowed = SINGLE_VERDICTS if b is None else PAIR_VERDICTS
    if gold is not None and gold not in allowed[:-1]:
        raise row.wrong("gold", f"must be one of {', '.join(allowed[:-1])}, the verdict of a careful annotator, found "
                                f"{gold!r}")
    given = row.values.get("meta", {})
    if not isinstance(given, dict):
        raise row.wrong("meta", "must be an object")
    rest = {key: value for key, value in row.values.items() if key not in OWN_KEYS}
    return Item(prompt=prompt, a=a, b=b, gold=gold, meta={**rest, **given, **meta}, source=row.path.name)


def _judgments(item: Item, row: Row) -> list[Told]:
    given = row.values.get("judgments", [])
    if not isinstance(given, list):
        raise row.wrong("judgments", "must be a list")
    return [_judgment(item, row, f"judgments[{place}]", value) for place, value in enumerate(given)]


def _judgment(item: Item, row: Row, key: str, value: Any) -> Told:
    if not isinstance(value, dict):
        raise row.wrong(key, "must be an object")
    verdict = _one_of(row, f"{key}.verdict", value.get("verdict"), item.verdicts)
    purpose: Any = _one_of(row, f"{key}.purpose", value.get("purpose", "judge"), get_args(Purpose))
    shown: Side | None = value.get("shown_first")
    if shown not in (None, "a", "b"):
        raise row.wrong(f"{key}.shown_first", f"must be a or b, found {shown!r}")
    tags = value.get("tags", [])
    if not isinstance(tags, list) or not all(isinstance(tag, str) for tag in tags):
        raise row.wrong(f"{key}.tags", "must be a list of texts")
    annotator = row.text(value.get("annotator"), f"{key}.annotator")
    opinion = Opinion(verdict=verdict, reason=str(value.get("reason") or ""), tags=tuple(tags),
                      strength=_number(row, f"{key}.strength", value, most=1.0) or 1.0,
                      seconds=_number(row, f"{key}.seconds", value))
    try:
        check_name(annotator)
        check_opinion(item, opinion)
    except LabError as error:
        raise row.wrong(key, f"cannot be used: {error}") from error
    return Told(item=item, annotator=annotator, purpose=purpose, opinion=opinion, shown_first=shown,
                at=value.get("at"))


def _one_of(row: Row, key: str, value: Any, allowed: tuple[str, ...]) -> str:
    if value not in allowed:
        raise row.wrong(key, f"must be one of {', '.join(allowed)}, found {value!r}")
    return str(value)


def _number(row: Row, key: str, value: Mapping[str, Any], *, most: float = float("inf")) -> float | None:
    found = value.get(key.rpartition(".")[2])
    if found is None:
        return None
    if isinstance(found, bool) or not isinstance(found, int | float) or not 0 <= found <= most:
        raise row.wrong(key, f"must be a number from 0 on{'' if most == float('inf') else f' to {most:g}'}, found "
                             f"{found!r}")
    return float(found)
