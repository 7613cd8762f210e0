"""The user's JSONL: demonstrations, preference pairs and prompts, read with errors that name file, line and key.

UTF-8, one JSON object a line, `.jsonl` or `.jsonl.gz`; blank lines and unknown keys are skipped, `null` means absent.
Pairs and thumbs may look as TRL writes them: strings, messages, or whole conversations that differ in their last turn.
"""

import gzip
import json
import math
import os
import tempfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Literal, cast

from rlhflab.data.types import Comparison, Conversation, Message, PreferencePair, Prompt, Thumb, thumbs_of
from rlhflab.errors import DataError

ROLES = ("system", "user", "assistant")
ANSWER_KEYS = ("answer", "completion", "response")
LONGEST_ROW = 64 * 2**20
"""Bytes of the longest row that is read: a file without line ends is not to fill the memory."""
GZIP_MAGIC = b"\x1f\x8b"
Told = Callable[[DataError], None]
"""Hears of a row that cannot be used, where reading is to go on."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One JSON object and where it stands, so that whatever is wrong with it can be named."""

    path: Path
    line: int
    values: Mapping[str, Any]
    any_answer: bool = False
    """Whether an answer may be empty, and two of them equal: people judge such answers, nothing is learnt from them."""

    @property
    def id(self) -> str:
        """The row's own id, or `file:line`."""
        given = self.values.get("id")
        if given is None:
            return f"{Path(self.path.name.removesuffix('.gz')).stem}:{self.line}"
        return str(given) if isinstance(given, int) else self.text(given, "id")

    @property
    def facts(self) -> Mapping[str, Any]:
        """What a verifier needs; empty where absent."""
        facts = self.values.get("facts", {})
        if not isinstance(facts, dict):
            raise self.wrong("facts", f"must be an object, found {kind_of(facts)}")
        return facts

    def wrong(self, key: str, problem: str, *, fault: Literal["broken", "empty", "identical"] = "broken") -> DataError:
        """The error that says what is wrong with `key`."""
        error = DataError(f"{self.path}:{self.line}: {key!r} {problem}")
        error.line, error.fault = self.line, fault
        return error

    def given(self, key: str) -> Any:
        """The value of a key that has to be there."""
        value = self.values.get(key)
        if value is None:
            raise self.wrong(key, "is missing")
        return value

    def text(self, value: object, key: str) -> str:
        """`value`, if it is text with something in it."""
        if not isinstance(value, str):
            raise self.wrong(key, f"must be text, found {kind_of(value)}")
        if not value.strip():
            raise self.wrong(key, "is empty", fault="empty")
        try:
            value.encode()
        except UnicodeEncodeError as error:
            raise self.wrong(key, f"holds half of a surrogate pair at character {error.start}") from error
        return value

    def messages(self, value: object, key: str) -> tuple[Message, ...]:
        """`value`, if it is a list of turns with a known role and a content."""
        if not isinstance(value, list):
            raise self.wrong(key, f"must be a list of messages, found {kind_of(value)}")
        if not value:
            raise self.wrong(key, "is an empty list")
        turns = []
        for place, turn in enumerate(value):
            if not isinstance(turn, dict):
                raise self.wrong(f"{key}[{place}]", f"must be an object with role and content, found {kind_of(turn)}")
            role = turn.get("role")
            if role not in ROLES:
                raise self.wrong(f"{key}[{place}].role", f"must be one of {', '.join(ROLES)}, found {shortly(role)}")
            turns.append(Message(role=role, content=self.text(turn.get("content"), f"{key}[{place}].content")))
        return tuple(turns)

    def prompt(self, key: str = "prompt") -> tuple[Message, ...]:
        """The turns up to the answer: text is one user turn."""
        value = self.given(key)
        if isinstance(value, str):
            return (Message(role="user", content=self.text(value, key)),)
        return self.ending(self.messages(value, key), "user", key)

    def answer(self, key: str) -> tuple[tuple[Message, ...], str]:
        """The answer, and the turns before it where `key` holds a conversation."""
        value = self.given(key)
        if isinstance(value, str):
            return (), "" if self.any_answer and not value.strip() else self.text(value, key)
        turns = self.ending(self.messages(value, key), "assistant", key)
        return turns[:-1], turns[-1].content

    @property
    def source(self) -> str:
        """Who judged; empty where absent."""
        source = self.values.get("source", "")
        if not isinstance(source, str):
            raise self.wrong("source", f"must be text, found {kind_of(source)}")
        return source

    def prompted_answer(self, key: str) -> tuple[tuple[Message, ...], str]:
        """`prompt` and the answer to it, which `key` may repeat the prompt's turns before."""
        prompt = self.prompt()
        before, answer = self.answer(key)
        if before not in ((), prompt):
            raise self.wrong(key, "starts with other turns than 'prompt'")
        return prompt, answer

    def ending(self, turns: tuple[Message, ...], role: str, key: str) -> tuple[Message, ...]:
        """`turns`, if the last one is of `role`."""
        if turns[-1].role != role:
            raise self.wrong(key, f"must end in a turn of the {role}, found one of the {turns[-1].role}")
        return turns


def read_conversations(path: Path) -> list[Conversation]:
    """Demonstrations: `{"messages": [...]}`, or `prompt` and one of `answer`, `completion`, `response`."""
    return [Conversation(id=row.id, messages=conversation_in(row)) for row in read_rows(path)]


def read_pairs(path: Path) -> list[PreferencePair]:
    """Preferences: `prompt`, `chosen` and `rejected`, or two conversations that differ in their last turn."""
    return [pair_in(row) for row in read_rows(path)]


def read_thumbs(path: Path) -> list[Thumb]:
    """Thumbs: `prompt`, one of `answer`, `completion`, `response`, and `label` true or false. A pair is two thumbs."""
    return [thumb for row in read_rows(path)
            for thumb in (thumbs_of(pair_in(row)) if "chosen" in row.values else (thumb_in(row),))]


def read_comparisons(path: Path) -> list[Comparison]:
    """What is to be judged: `prompt`, and two answers `a` and `b` that differ."""
    return [comparison_in(row) for row in read_rows(path)]


def read_prompts(path: Path) -> list[Prompt]:
    """Prompts: `{"prompt": text or messages}`, or `{"messages": [...]}` ending in a user turn."""
    prompts = []
    for row in read_rows(path):
        key = "messages" if "prompt" not in row.values and "messages" in row.values else "prompt"
        prompts.append(Prompt(id=row.id, messages=row.prompt(key), facts=row.facts))
    return prompts


def read_rows(path: Path, *, bad: Told | None = None) -> Iterator[Row]:
    """The objects of a JSONL file; DataError where a line is none, or where the file has none.

    With `bad`, that is told what is wrong with a line, and reading goes on behind it.
    """
    found = False
    for number, line in enumerate(_lines(path, bad), start=1):
        try:
            values = _object(path, number, line)
        except DataError as error:
            error.line = number
            tell(bad, error)
            found = True
            continue
        if values is not None:
            found = True
            yield Row(path=path, line=number, values=without_nulls(values))
    if not found:
        raise DataError(f"{path}: is empty; at least one row is needed")


def without_nulls(values: Mapping[str, Any]) -> dict[str, Any]:
    """A row's values; null means absent."""
    return {key: value for key, value in values.items() if value is not None}


def write_jsonl(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Write one object a line, compressed if the name says so. The file appears whole or not at all."""
    with whole_file(path) as out:
        for row in rows:
            out.write(json.dumps(row, ensure_ascii=False).encode() + b"\n")


@contextmanager
def whole_file(path: Path) -> Iterator[IO[bytes]]:
    """A file to write that takes the name `path` at the end, and only if all went well; compressed if `.gz`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, partial = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with open(handle, "wb") as plain:
            # No clock in the header: equal rows give equal files.
            out = gzip.GzipFile(fileobj=plain, mode="wb", filename="", mtime=0) if path.suffix == ".gz" else plain
            yield cast(IO[bytes], out)
            if out is not plain:
                out.close()
        # A temporary file is private; what replaces it is as readable as any other new file.
        os.chmod(partial, 0o666 & ~_umask())
        os.replace(partial, path)
    except BaseException:
        os.unlink(partial)
        raise


def finite(value: Any) -> Any:
    """`value` as JSON can hold it: a bound at infinity, say of an interval from one prompt, becomes null."""
    if isinstance(value, Mapping):
        return {key: finite(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [finite(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def dotted(values: Mapping[str, Any], prefix: str = "", *, estimates: bool = True) -> Iterator[tuple[str, Any]]:
    """`{"a": {"b": 1}}` as `("a.b", 1)`; with `estimates`, a mean with its interval and count is one value."""
    for key, value in values.items():
        name = f"{prefix}{key}"
        if estimates and isinstance(value, Mapping) and set(value) == {"mean", "low", "high", "n"}:
            yield name, "{mean} [{low}, {high}] n={n}".format(**{
                each: f"{x:.4g}" if isinstance(x, float) else x for each, x in value.items()})
        elif isinstance(value, Mapping) and value:
            yield from dotted(value, f"{name}.", estimates=estimates)
        else:
            yield name, value


def in_lines(values: Mapping[str, Any]) -> dict[str, str]:
    """Nested values by dotted names, each as one line of text, so that any record fits one table."""
    return {key: value if isinstance(value, str) else f"{value:.4g}" if isinstance(value, float)
            else json.dumps(value, ensure_ascii=False) for key, value in dotted(values)}


def conversation_row(conversation: Conversation) -> dict[str, Any]:
    """What `read_conversations` reads back as `conversation`."""
    return {"id": conversation.id, "messages": turn_rows(conversation.messages)}


def pair_row(pair: PreferencePair) -> dict[str, Any]:
    """What `read_pairs` reads back as `pair`."""
    answers = {"chosen": pair.chosen, "rejected": pair.rejected}
    return {**prompt_row(pair.prompt), **answers, "strength": pair.strength, "source": pair.source}


def comparison_row(comparison: Comparison) -> dict[str, Any]:
    """What `read_comparisons` reads back as `comparison`."""
    return {**prompt_row(comparison.prompt), "a": comparison.a, "b": comparison.b}


def thumb_row(thumb: Thumb) -> dict[str, Any]:
    """What `read_thumbs` reads back as `thumb`."""
    return {**prompt_row(thumb.prompt), "completion": thumb.answer, "label": thumb.good, "source": thumb.source}


def prompt_row(prompt: Prompt) -> dict[str, Any]:
    """What `read_prompts` reads back as `prompt`."""
    return {"id": prompt.id, "prompt": turn_rows(prompt.messages), "facts": dict(prompt.facts)}


def conversation_in(row: Row) -> tuple[Message, ...]:
    """A demonstration: the turns of `messages`, or `prompt` and an answer."""
    if "messages" in row.values:
        return row.ending(row.messages(row.values["messages"], "messages"), "assistant", "messages")
    given = [key for key in ANSWER_KEYS if key in row.values]
    if "prompt" not in row.values or len(given) != 1:
        found = ", ".join(map(repr, row.values)) or "nothing"
        raise row.wrong("messages", f"is missing; a demonstration has it, or 'prompt' and one of "
                                    f"{', '.join(map(repr, ANSWER_KEYS))}, found {found}")
    prompt, answer = row.prompted_answer(given[0])
    return (*prompt, Message(role="assistant", content=answer))


def pair_in(row: Row) -> PreferencePair:
    """A pair: `prompt`, `chosen`, `rejected`, or two conversations that differ in their last turn."""
    if "prompt" in row.values:
        turns, chosen = row.prompted_answer("chosen")
        _, rejected = row.prompted_answer("rejected")
    else:
        turns, chosen = row.answer("chosen")
        before_rejected, rejected = row.answer("rejected")
        if not turns:
            raise row.wrong("prompt", "is missing, and 'chosen' holds no turns before its answer")
        if before_rejected != turns:
            raise row.wrong("rejected", "differs from 'chosen' before its last turn; both must answer one prompt")
        row.ending(turns, "user", "chosen, without its last turn,")
    if chosen == rejected:
        raise row.wrong("chosen", "and 'rejected' are equal; a pair needs a better and a worse answer",
                        fault="identical")
    return PreferencePair(prompt=Prompt(id=row.id, messages=turns, facts=row.facts), chosen=chosen, rejected=rejected,
                          strength=strength_in(row), source=row.source)


def comparison_in(row: Row) -> Comparison:
    """What is to be judged: `prompt`, `a` and `b`."""
    turns, a = row.prompted_answer("a")
    _, b = row.prompted_answer("b")
    if a == b:
        raise row.wrong("a", "and 'b' are equal; there is nothing to compare", fault="identical")
    return Comparison(prompt=Prompt(id=row.id, messages=turns, facts=row.facts), a=a, b=b)


def thumb_in(row: Row) -> Thumb:
    """A thumb: `prompt`, an answer and `label`."""
    given = [key for key in ANSWER_KEYS if key in row.values]
    if len(given) != 1:
        raise row.wrong("completion", f"is missing; a thumb has 'prompt', 'label' and one of "
                                      f"{', '.join(map(repr, ANSWER_KEYS))}, found "
                                      f"{', '.join(map(repr, row.values)) or 'nothing'}")
    label = row.values.get("label")
    if not isinstance(label, bool):
        found = "nothing" if label is None else kind_of(label)
        raise row.wrong("label", f"must be true (a good answer) or false, found {found}")
    messages, answer = row.prompted_answer(given[0])
    return Thumb(prompt=Prompt(id=row.id, messages=messages, facts=row.facts), answer=answer, good=label,
                 source=row.source)


def strength_in(row: Row, key: str = "strength") -> float:
    """How clear a preference is; 1 where absent."""
    value = row.values.get(key, 1.0)
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise row.wrong(key, f"must be a number, found {kind_of(value)}")
    if not 0 < value <= 1:
        raise row.wrong(key, f"must be above 0 and at most 1, found {value}")
    return float(value)


def _object(path: Path, number: int, line: bytes) -> dict[str, Any] | None:
    """The object on a line; None where it is blank."""
    if len(line) > LONGEST_ROW:
        raise DataError(f"{path}:{number}: is longer than {LONGEST_ROW // 2**20} MiB; every line is to hold one object")
    try:
        text = line.decode("utf-8-sig" if number == 1 else "utf-8").strip()
        values = json.loads(text) if text else None
    except UnicodeDecodeError as error:
        raise DataError(f"{path}:{number}: is not UTF-8 at byte {error.start} of the line") from error
    except json.JSONDecodeError as error:
        raise DataError(f"{path}:{number}: is not JSON at column {error.colno}: {json_problem(error)}; "
                        "every line is to hold one whole object") from error
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}:{number}: cannot be read as JSON: {error}") from error
    if text and not isinstance(values, dict):
        raise DataError(f"{path}:{number}: must be an object, found {kind_of(values)}")
    return values


def _lines(path: Path, bad: Told | None = None) -> Iterator[bytes]:
    """The raw lines of a file, so that a wrong byte has a line number. The end of one that is too long is left out."""
    number = 0
    try:
        with open_bytes(path) as file:
            while line := file.readline(LONGEST_ROW + 1):
                number += 1
                yield line
                while len(line) > LONGEST_ROW and not line.endswith(b"\n"):
                    line = file.readline(LONGEST_ROW + 1)
    except (OSError, EOFError, zlib.error) as error:
        tell(bad if number else None, unreadable(path, error, behind=number), error)


def open_bytes(path: Path) -> IO[bytes]:
    """A file's bytes, unpacked where it is gzip, whatever its name says. DataError where there is no such file."""
    try:
        with open(path, "rb") as file:
            packed = file.read(2) == GZIP_MAGIC
        return cast(IO[bytes], gzip.open(path, "rb")) if packed or path.suffix == ".gz" else open(path, "rb")
    except FileNotFoundError as error:
        raise DataError(f"{path}: no such file") from error
    except IsADirectoryError as error:
        raise DataError(f"{path}: is a folder; a JSONL file is needed") from error
    except OSError as error:
        raise unreadable(path, error) from error


def unreadable(path: Path, error: Exception, *, behind: int = 0) -> DataError:
    """The error of a file that breaks off: `behind` lines or rows of it were read."""
    where = f"{path}:{behind + 1}: cannot be read from here on" if behind else f"{path}: cannot be read"
    return DataError(f"{where}: {getattr(error, 'strerror', None) or first_line(error)}")


def json_problem(error: json.JSONDecodeError) -> str:
    """What is wrong with a text; where is said beside it."""
    return error.msg.removesuffix(" starting at")


def first_line(error: Exception) -> str:
    """What a library says of an error, without the details below."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200].rstrip(".")


def tell(bad: Told | None, error: DataError, cause: Exception | None = None) -> None:
    """Tell `bad`, or raise where nobody listens."""
    if bad is not None:
        bad(error)
    elif cause is not None:
        raise error from cause
    else:
        raise error


def turn_rows(messages: Iterable[Message]) -> list[dict[str, str]]:
    """Turns as JSON has them."""
    return [{"role": message.role, "content": message.content} for message in messages]


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def shortly(value: object) -> str:
    """A found value for an error: its start where it is long."""
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def kind_of(value: object) -> str:
    """What JSON calls a value."""
    names = {dict: "an object", list: "a list", str: "text", bool: "true or false", type(None): "null"}
    return names.get(type(value), "a number")
