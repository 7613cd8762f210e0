"""From a file of one data format to a file of another, a row at a time, with a count of everything that is left out.

What a row says is the formats' business; here an item becomes the kind of record that the other format's rows hold.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from rlhflab.data.files import kind_of_file, write_rows
from rlhflab.data.formats import Told
from rlhflab.data.forms import Form, Item, data_format
from rlhflab.data.reading import Located, Rule, detect_form, pairs_of, read_items
from rlhflab.data.types import Conversation, Judged, Message, PreferencePair, Prompt, Thumb, thumbs_of
from rlhflab.errors import ConfigError, DataError

NAMES: Mapping[type[Any], str] = {Judged: "comparisons", Thumb: "thumbs", Conversation: "demonstrations",
                                  Prompt: "prompts", PreferencePair: "pairs"}
EVERY = 1000
"""Items between two words about how far it is."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Converted:
    """What became of a file's items."""

    path: Path
    form: str
    """The format that was read."""
    to: str
    rule: Rule
    read: Mapping[str, int]
    """Items by kind: comparisons, thumbs, demonstrations, prompts."""
    rows: int
    """Rows written."""
    holds: str
    """What a written row is one of."""
    bad: int
    """Broken rows that were skipped."""
    dropped: Mapping[str, int]
    """Items or judgments that gave no row, by reason."""
    loses: str
    """What has no place in a row of the format written."""


def convert(source: Path | str, target: Path, *, form: str | None = None, to: str = "pairs", rule: Rule = "majority",
            bad: Told | None = None, advance: Callable[[int], None] = lambda rows: None) -> Converted:
    """Read `source` and write `target` in the format `to`; `advance` hears every so often how many more were read.

    Pairs come of judgments by `rule`. Broken rows raise, or go to `bad`. ConfigError where `target` exists or no format
    that can be written is called `to`; DataError where nothing is left to write.
    """
    written = data_format.entry(to, where="--to").function()
    if written.row is None or written.holds is None:
        raise ConfigError(f"--to: rows of {to} can be read, not written; there are {', '.join(writable())}")
    if target.exists():
        raise ConfigError(f"{target}: exists already; name a new file")
    kind_of_file(target)
    form = form or detect_form(source)
    work = _Conversion(str(source), written, rule, bad)
    items = _telling(read_items(source, form=form, bad=work.skip if bad else None), advance)
    write_rows(target, work.rows(items), example=written.example)
    return Converted(path=target, form=form, to=to, rule=rule, read=dict(work.read), rows=work.written, bad=work.bad,
                     holds=NAMES[written.holds], dropped=dict(work.dropped), loses=written.loses)


def writable() -> list[str]:
    """The formats that can be written."""
    return [entry.name for entry in data_format.entries() if entry.function().row is not None]


def counted(counts: Mapping[str, int]) -> str:
    """`12 ties, 3 thumbs`."""
    return ", ".join(f"{count:,} {what}" for what, count in counts.items())


def _telling(items: Iterator[Located], advance: Callable[[int], None]) -> Iterator[Located]:
    """The items; `advance` is told of each EVERY, since a bar costs more than a row."""
    while some := list(islice(items, EVERY)):
        yield from some
        advance(len(some))


class _Conversion:
    """Counts what passes while rows are made."""

    def __init__(self, source: str, form: Form, rule: Rule, bad: Told | None) -> None:
        self._source, self._form, self._rule, self._tell = source, form, rule, bad
        self.read: Counter[str] = Counter()
        self.dropped: Counter[str] = Counter()
        self.bad = self.written = 0
        self._prompts: set[int] = set()

    def skip(self, error: DataError) -> None:
        """A row is broken."""
        self.bad += 1
        if self._tell is not None:
            self._tell(error)

    def rows(self, items: Iterable[Located]) -> Iterator[Mapping[str, Any]]:
        """The rows to write. DataError where there is none."""
        for located in items:
            self.read[NAMES[type(located.item)]] += 1
            for record in self._records(located.item):
                row = self._form.row(record) if self._form.row else None
                if row is None:
                    self.dropped["that the format cannot say"] += 1
                else:
                    self.written += 1
                    yield row
        if not self.written:
            lost = counted({**self.dropped, **({"broken rows": self.bad} if self.bad else {})})
            wanted = NAMES[self._form.holds] if self._form.holds else "rows"
            raise DataError(f"{self._source}: no {wanted} are left to write; it holds "
                            f"{counted(self.read) or 'nothing that can be read'}, and dropped are {lost}")

    def _records(self, item: Item) -> Iterator[Any]:
        """An item as what the format's rows hold."""
        holds = self._form.holds
        if holds is Prompt:
            yield from self._new_prompt(_prompt_of(item))
        elif holds is type(item):
            yield item
        elif isinstance(item, Judged):
            for pair in self._pairs(item):
                if holds is Thumb:
                    yield from thumbs_of(pair)
                else:
                    yield pair if holds is PreferencePair else _demonstration(pair.prompt, pair.chosen)
        elif isinstance(item, Thumb) and holds is Conversation and item.good:
            yield _demonstration(item.prompt, item.answer)
        else:
            self.dropped["thumbs down" if isinstance(item, Thumb) and holds is Conversation else NAMES[type(item)]] += 1

    def _pairs(self, judged: Judged) -> Iterator[PreferencePair]:
        """The rule's pairs; what gives none is counted by its verdict."""
        pairs = list(pairs_of(judged, self._rule))
        yield from pairs
        verdicts = [judgment.verdict for judgment in judged.judgments]
        if not verdicts:
            self.dropped["not judged"] += 1
        elif self._rule == "each":
            self.dropped.update(LOST[verdict] for verdict in verdicts if verdict in LOST)
        elif not pairs:
            alike = len(set(verdicts)) == 1
            self.dropped[LOST[verdicts[0]] if alike else "without a majority"] += 1

    def _new_prompt(self, prompt: Prompt) -> Iterator[Prompt]:
        """The prompt, unless its turns came before."""
        seen = hash(prompt.messages)
        if seen in self._prompts:
            self.dropped["prompts that came before"] += 1
        else:
            self._prompts.add(seen)
            yield prompt


LOST: Mapping[str, str] = {"tie": "ties", "both_bad": "ties (both bad)", "skip": "skips"}
"""Verdicts that give no pair."""


def _prompt_of(item: Item) -> Prompt:
    if isinstance(item, Prompt):
        return item
    if isinstance(item, Conversation):
        return Prompt(id=item.id, messages=item.messages[:-1])
    return item.prompt if isinstance(item, Thumb) else item.comparison.prompt


def _demonstration(prompt: Prompt, answer: str) -> Conversation:
    return Conversation(id=prompt.id, messages=(*prompt.messages, Message(role="assistant", content=answer)))
