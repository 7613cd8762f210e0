"""Splits of a data file that stay what they are when the file grows: a row's split is a function of its prompt alone.

No shuffling, no seed that has to be kept, no look at other rows. Near copies of a prompt are not looked for.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from shutil import rmtree
from tempfile import mkdtemp
from typing import Any, Literal

from rlhflab.data.files import rows_of
from rlhflab.data.formats import Told, tell, write_jsonl
from rlhflab.data.forms import Item, data_format
from rlhflab.data.reading import detect_form
from rlhflab.data.survey.texts import plain_words
from rlhflab.data.types import Conversation, Judged, Message, Thumb
from rlhflab.errors import ConfigError, DataError

By = Literal["prompt", "first_turn"]
NAMES = {1: ("all",), 2: ("train", "held_out"), 3: ("train", "validation", "test")}


@dataclass(frozen=True, slots=True, kw_only=True)
class Split:
    """One part of a file."""

    name: str
    path: Path
    asked: float
    """Share of the prompts that was asked for."""
    rows: int
    prompts: int


def split_file(source: Path, folder: Path, shares: Sequence[float], *, names: Sequence[str] = (), by: By = "prompt",
               salt: str = "", form: str | None = None, bad: Told | None = None,
               advance: Callable[[], None] = lambda: None) -> list[Split]:
    """Write each part as `folder/NAME.jsonl`; the folder appears whole or not at all.

    ConfigError for shares that are none, or a folder that exists.
    """
    names = tuple(names) or NAMES.get(len(shares)) or tuple(f"part_{i}" for i in range(1, len(shares) + 1))
    if len(names) != len(shares) or len(set(names)) != len(names):
        raise ConfigError(f"--names: {len(shares)} shares need as many different names, found {', '.join(names)}")
    if min(shares) <= 0 or abs(sum(shares) - 1) > 1e-6:
        raise ConfigError(f"--shares: must be above 0 and add up to 1, found {', '.join(f'{s:g}' for s in shares)}")
    if folder.exists():
        raise ConfigError(f"{folder}: exists already; name a new folder")
    parts = _Parts(source, form or detect_form(source), shares, by, salt)
    folder.parent.mkdir(parents=True, exist_ok=True)
    unfinished = Path(mkdtemp(dir=folder.parent, prefix=f".{folder.name}-"))
    try:
        for place, name in enumerate(names):  # One pass a part keeps no row in memory.
            write_jsonl(unfinished / f"{name}.jsonl",
                        parts.rows(place, bad if place == 0 else lambda error: None, advance))
        unfinished.chmod(0o755)
        unfinished.rename(folder)
    finally:
        rmtree(unfinished, ignore_errors=True)
    return [Split(name=name, path=folder / f"{name}.jsonl", asked=shares[place], rows=parts.counts[place],
                  prompts=len(parts.prompts[place])) for place, name in enumerate(names)]


class _Parts:
    """The rows of a file by part, and how many there were."""

    def __init__(self, source: Path, form: str, shares: Sequence[float], by: By, salt: str) -> None:
        self.source, self.shares, self.by, self.salt = source, shares, by, salt
        self.read = data_format.entry(form, where="--from").function().read
        self.counts = [0] * len(shares)
        self.prompts: list[set[str]] = [set() for _ in shares]

    def rows(self, part: int, bad: Told | None, advance: Callable[[], None]) -> Iterator[Mapping[str, Any]]:
        """The values of the rows of one part."""
        for row in rows_of(self.source, bad=bad):
            try:
                items = list(self.read(row))
            except DataError as error:
                tell(bad, error, error)
                continue
            advance()
            if items:
                group = group_of(items[0], by=self.by)
                if part_of(group, self.shares, salt=self.salt) == part:
                    self.counts[part] += 1
                    self.prompts[part].add(group)
                    yield row.values


def group_of(item: Item, *, by: By) -> str:
    """What decides an item's part: the words of its prompt, or of the first turn of it.

    Case, punctuation and spaces do not count, so prompts that differ in nothing else stay together.
    """
    turns = prompt_of(item)
    if by == "first_turn":
        turns = next(((turn,) for turn in turns if turn.role == "user"), turns[:1])
    return "\n".join(f"{turn.role}: {' '.join(plain_words(turn.content)) or turn.content}" for turn in turns)


def prompt_of(item: Item) -> tuple[Message, ...]:
    """The turns up to the answer; of a demonstration, those up to its first answer."""
    if isinstance(item, Conversation):
        first = next((i for i, turn in enumerate(item.messages) if turn.role == "assistant"), len(item.messages))
        return item.messages[:first]
    if isinstance(item, Judged):
        return item.comparison.prompt.messages
    return item.prompt.messages if isinstance(item, Thumb) else item.messages


def part_of(group: str, shares: Sequence[float], *, salt: str = "") -> int:
    """The part in which the group's hash, a number from 0 to 1, falls. The same on every machine and for every file."""
    digest = blake2b(f"{salt}\n{group}".encode("utf-8", "surrogatepass"), digest_size=8).digest()
    place, below = int.from_bytes(digest, "big") / 2**64, 0.0
    for part, share in enumerate(shares[:-1]):
        below += share
        if place < below:
            return part
    return len(shares) - 1
