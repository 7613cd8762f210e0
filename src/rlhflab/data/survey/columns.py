"""One pass over located rows, in batches: what the checks need of each row, as columns. Memory does not hold the texts.

A row costs some three kilobytes, whatever its length: hashes, counts, two signatures and its opening words. Nothing is
judged here, and no file is read.
"""

from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from random import Random
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from rlhflab.data.chat import ChatFacts, ChatFormat
from rlhflab.data.forms import winner
from rlhflab.data.reading import Located
from rlhflab.data.splitting import prompt_of
from rlhflab.data.survey.markers import Markers
from rlhflab.data.survey.secrets import find_secrets, redacted
from rlhflab.data.survey.suites import Suite
from rlhflab.data.survey.texts import (
    Hashes,
    Runs,
    Signatures,
    content_hash,
    normal,
    shingles,
    signatures,
    word_hashes,
)
from rlhflab.data.types import Conversation, Judged, Message, Prompt, Thumb

KINDS = ("pair", "thumb", "demonstration", "prompt")
BATCH = 256
"""Rows that go through each step together."""
EXCERPT = 110
"""Characters of a row that are kept to show it."""
SAMPLED = 1000
"""Rows whose language is looked at, drawn evenly."""
OPENING = 400
"""Characters of a text that its language is told from."""
FIELDS = ("prompt", "first answer", "second answer")


class BadRow(NamedTuple):
    """A row that could not be used."""

    path: Path
    line: int | None
    fault: str
    """broken, empty or identical."""
    sentence: str


class Opinion(NamedTuple):
    """One judgment of a pair."""

    row: int
    verdict: int
    """1 for the first answer, -1 for the second, 0 for neither."""
    first_shown: int
    """1 where the first answer was shown first, -1 the second, 0 where nobody wrote it down."""


class Marked(NamedTuple):
    """Something found in a text of a row."""

    row: int
    where: str
    """One of `FIELDS`."""
    kind: str
    shown: str
    """What may be shown of it."""


class Met(NamedTuple):
    """A row that holds runs of words of an evaluation prompt."""

    row: int
    suite: int
    prompt: int
    share: float
    """Of the prompt's runs of words."""


class Opened(NamedTuple):
    """The beginning of a prompt and of an answer to it."""

    row: int
    prompt: str
    answer: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Tokens:
    """Lengths in tokens, as the project's loops see them; -1 where there is no such text."""

    prompt: NDArray[np.int32]
    """With the template and the opening of the answer."""
    answers: NDArray[np.int32]
    """(n, 2), each with its end token. Of a demonstration, all that follows its first prompt."""
    same_when_cut: NDArray[np.bool_]
    """The two answers agree on all tokens that the budget leaves them."""
    max_length: int
    chat: ChatFacts

    @property
    def longest(self) -> NDArray[np.int32]:
        """Prompt and its longer answer."""
        return np.asarray(self.prompt + np.maximum(self.answers.max(axis=1), 0), dtype=np.int32)


@dataclass(frozen=True, slots=True, kw_only=True)
class Survey:
    """All rows that could be read, as columns of length n, and those that could not."""

    files: tuple[Path, ...]
    file: NDArray[np.int32]
    line: NDArray[np.int64]
    splits: tuple[str, ...]
    """Names of the splits; a file is one unless its rows name theirs."""
    split: NDArray[np.int32]
    kind: NDArray[np.int8]
    """Index into `KINDS`."""
    prompt: Hashes
    """Content hash of all turns up to the answer."""
    asked: Hashes
    """Content hash of the last of them."""
    answers: Hashes
    """(n, 2): content hashes of the answers, 0 where there is none."""
    label: NDArray[np.int8]
    """1: the first answer is preferred, or the thumb is up; -1: the other way; 0: neither."""
    chars: NDArray[np.int32]
    """(n, 2): characters of the answers."""
    excerpt: tuple[str, ...]
    """Opening words of each row's last prompt turn, without secrets."""
    opinions: tuple[Opinion, ...]
    secrets: tuple[Marked, ...]
    markers: tuple[Marked, ...]
    met: tuple[Met, ...]
    sample: tuple[Opened, ...]
    suites: tuple[Suite, ...]
    signatures: tuple[Signatures, Signatures, Signatures] | None
    """Of the prompts' last turns, of the first and of the second answers, (n, 60) each."""
    tokens: Tokens | None
    bad: tuple[BadRow, ...] = ()
    chat_problem: str = ""
    """Why the model cannot write a conversation, where it cannot."""

    @property
    def rows(self) -> int:
        """Rows that could be read."""
        return int(self.line.size)

    def of(self, kind: str) -> NDArray[np.bool_]:
        """Which rows are of this kind."""
        return np.asarray(self.kind == KINDS.index(kind))

    def place(self, row: int) -> str:
        """`pairs.jsonl:12`."""
        return f"{self.files[self.file[row]].name}:{self.line[row]}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Look:
    """What to look at beside what every survey has."""

    chat: ChatFormat | None = None
    """Counts tokens."""
    max_length: int = 1024
    near: bool = True
    """Make signatures."""
    suites: tuple[Suite, ...] = ()
    seed: int = 0


class _Texts(NamedTuple):
    """A row's texts, whatever its kind."""

    kind: int
    turns: tuple[Message, ...]
    first: str
    second: str
    label: int

    @property
    def asked(self) -> str:
        """The last turn of the prompt."""
        return self.turns[-1].content if self.turns else ""

    @property
    def fields(self) -> tuple[str, str, str]:
        """All of the prompt, and the answers: the texts behind `FIELDS`."""
        return "\n".join(turn.content for turn in self.turns), self.first, self.second


def survey(items: Iterable[Located], look: Look, *, bad: Iterable[BadRow] = ()) -> Survey:
    """The columns of all rows. `bad` is read when the items have come to an end, so a reader may fill it meanwhile."""
    found = _Columns(look)
    rows = iter(items)
    # A fast tokenizer counts outside the interpreter's lock, so a second core works on it meanwhile.
    with ThreadPoolExecutor(max_workers=1) as pool:
        while batch := list(islice(rows, BATCH)):
            found.add(batch, pool)
    return found.survey(tuple(bad))


@dataclass
class _Columns:
    """Columns as they grow."""

    look: Look
    files: dict[Path, int] = field(default_factory=dict)
    splits: dict[str, int] = field(default_factory=dict)
    lists: dict[str, list[Any]] = field(default_factory=lambda: {name: [] for name in (
        "file", "line", "split", "kind", "prompt", "asked", "answers", "label", "chars", "excerpt",
        "opinions", "secrets", "markers", "met", "near_prompt", "near_first", "near_second", "prompt_tokens",
        "answer_tokens", "same")})
    sample: list[Opened] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.rows, self._random = 0, Random(self.look.seed)
        self._markers = Markers(() if self.look.chat is None else self.look.chat.control_tokens)

    def add(self, batch: Sequence[Located], pool: ThreadPoolExecutor) -> None:
        """Add some rows; `pool` counts their tokens while the rest is looked at."""
        texts = [_texts(located.item) for located in batch]
        chat = self.look.chat
        counting = None if chat is None else pool.submit(chat.token_counts, _tokenized(chat, texts))
        for located, row in zip(batch, texts, strict=True):
            self._place(located)
            self._contents(row)
            self._found_in(row)
            self._judged(located.item)
            self.rows += 1
        self._read_words(texts)
        if chat is not None and counting is not None:
            self._count_tokens(chat, [located.item for located in batch], texts, counting.result())

    def survey(self, bad: tuple[BadRow, ...]) -> Survey:
        """What has been added."""
        got = self.lists

        def column(name: str, dtype: Any, width: int = 0) -> Any:
            return np.array(got[name], dtype=dtype).reshape((-1, width) if width else -1)

        near = None if not self.look.near else (
            _stacked(got["near_prompt"]), _stacked(got["near_first"]), _stacked(got["near_second"]))
        tokens = None if self.look.chat is None else Tokens(
            prompt=column("prompt_tokens", np.int32), answers=column("answer_tokens", np.int32, 2),
            same_when_cut=column("same", np.bool_), max_length=self.look.max_length, chat=self.look.chat.facts)
        return Survey(files=tuple(self.files), file=column("file", np.int32), line=column("line", np.int64),
                      splits=tuple(self.splits), split=column("split", np.int32), kind=column("kind", np.int8),
                      prompt=column("prompt", np.uint64), asked=column("asked", np.uint64),
                      answers=column("answers", np.uint64, 2),
                      label=column("label", np.int8), chars=column("chars", np.int32, 2),
                      excerpt=tuple(got["excerpt"]), opinions=tuple(got["opinions"]), secrets=tuple(got["secrets"]),
                      markers=tuple(got["markers"]), met=tuple(got["met"]), sample=tuple(sorted(self.sample)),
                      suites=self.look.suites, signatures=near, tokens=tokens, bad=bad)

    def _place(self, located: Located) -> None:
        split = split_of(located)
        self.lists["file"].append(self.files.setdefault(located.path, len(self.files)))
        self.lists["line"].append(located.line)
        self.lists["split"].append(self.splits.setdefault(split, len(self.splits)))

    def _contents(self, row: _Texts) -> None:
        self.lists["kind"].append(row.kind)
        self.lists["prompt"].append(prompt_hash(row.turns))
        self.lists["asked"].append(content_hash(normal(row.asked)))
        self.lists["answers"].append([content_hash(normal(text)) if text else 0 for text in (row.first, row.second)])
        self.lists["label"].append(row.label)
        self.lists["chars"].append([len(row.first), len(row.second)])

    def _found_in(self, row: _Texts) -> None:
        clean = True
        for where, text in zip(FIELDS, row.fields, strict=True):
            for secret in find_secrets(text):
                clean = False
                self.lists["secrets"].append(Marked(self.rows, where, secret.kind, secret.masked))
            for token in sorted(self._markers.tokens(text)):
                self.lists["markers"].append(Marked(self.rows, where, "control token", token))
            if self._markers.turns(text):
                self.lists["markers"].append(Marked(self.rows, where, "transcript", "turns of a transcript"))
        asked = row.asked if clean else redacted(row.asked)
        self.lists["excerpt"].append(shortened(asked))
        self._draw(Opened(self.rows, row.asked[:OPENING], row.first[:OPENING]))

    def _draw(self, opened: Opened) -> None:
        """Keep each row with the same probability, however many are to come (Vitter 1985, algorithm R)."""
        if len(self.sample) < SAMPLED:
            self.sample.append(opened)
        elif (place := self._random.randrange(self.rows + 1)) < SAMPLED:
            self.sample[place] = opened

    def _judged(self, item: Judged | Thumb | Conversation | Prompt) -> None:
        sides = {"a": 1, "b": -1}
        judgments = item.judgments if isinstance(item, Judged) else ()
        for each in judgments:
            if each.verdict != "skip":
                self.lists["opinions"].append(
                    Opinion(self.rows, sides.get(each.verdict, 0), sides.get(each.shown_first or "", 0)))

    def _read_words(self, texts: Sequence[_Texts]) -> None:
        """What is made of words: signatures, and runs shared with evaluations."""
        each = [word_hashes(column) for column in ([row.asked for row in texts], [row.first for row in texts],
                                                   [row.second for row in texts])]
        if self.look.near:
            for name, words in zip(("near_prompt", "near_first", "near_second"), each, strict=True):
                self.lists[name].append(signatures(shingles(words)))
        start = self.rows - len(texts)
        for place, suite in enumerate(self.look.suites):
            best: dict[int, Met] = {}
            for words in each:
                for hit in suite.hits(words):
                    if hit.row not in best or hit.share > best[hit.row].share:
                        best[hit.row] = Met(start + hit.row, place, hit.prompt, hit.share)
            self.lists["met"] += best.values()

    def _count_tokens(self, chat: ChatFormat, items: Sequence[Any], texts: Sequence[_Texts],
                      counts: Sequence[int]) -> None:
        n = len(texts)
        for row, item, prompt, *answers in zip(texts, items, counts[:n], counts[n:2 * n], counts[2 * n:], strict=True):
            lengths = [count + 1 if text else -1 for count, text in zip(answers, row.fields[1:], strict=True)]
            if isinstance(item, Conversation):  # has tokens between its turns, too
                whole = chat.conversation(item)
                prompt, lengths = len(whole.prompt), [len(whole.ids), -1]
            self.lists["prompt_tokens"].append(prompt)
            self.lists["answer_tokens"].append(lengths)
            room = self.look.max_length - prompt
            self.lists["same"].append(row.kind == 0 and min(lengths) > room and (
                room <= 0 or chat.answer(row.first)[:room] == chat.answer(row.second)[:room]))


def _tokenized(chat: ChatFormat, texts: Sequence[_Texts]) -> list[str]:
    """All prompts, then all first and all second answers; demonstrations are read turn by turn instead."""
    turns = [KINDS[row.kind] == "demonstration" for row in texts]
    return [*("" if skip else chat.opened(row.turns) for row, skip in zip(texts, turns, strict=True)),
            *("" if skip else row.first for row, skip in zip(texts, turns, strict=True)),
            *(row.second for row in texts)]


def split_of(located: Located) -> str:
    """The split that a row names in its field `split`, else its file."""
    item = located.item
    facts: Mapping[str, Any] = {}
    if isinstance(item, Judged):
        facts = item.meta
    elif isinstance(item, Prompt):
        facts = item.facts
    named = facts.get("split")
    return named if isinstance(named, str) and named else located.path.name


def prompt_hash(turns: Sequence[Message]) -> int:
    """Content hash of the turns up to an answer; who speaks counts."""
    return content_hash(*(part for turn in turns for part in (turn.role, normal(turn.content))))


def shortened(text: str) -> str:
    """The opening words of a text, on one line."""
    line = " ".join(text[:4 * EXCERPT].split())
    return line if len(line) <= EXCERPT else line[:EXCERPT - 1] + "…"


def _texts(item: Judged | Thumb | Conversation | Prompt) -> _Texts:
    turns = prompt_of(item)
    if isinstance(item, Judged):
        label = {"a": 1, "b": -1}.get(winner(item) or "", 0)
        return _Texts(0, turns, item.comparison.a, item.comparison.b, label)
    if isinstance(item, Thumb):
        return _Texts(1, turns, item.answer, "", 1 if item.good else -1)
    if isinstance(item, Conversation):
        return _Texts(2, turns, "\n".join(turn.content for turn in item.messages[len(turns):]), "", 0)
    return _Texts(3, turns, "", "", 0)


def _stacked(parts: Sequence[Signatures]) -> Signatures:
    return np.concatenate(parts) if parts else signatures(Runs(np.zeros(0, np.uint64), np.zeros(1, np.int64)))

