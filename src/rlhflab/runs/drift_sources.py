"""The two sides of `rlhflab drift`: files of answers, and adapters and servers that answer now.

Files are read without torch. Nothing is compared here.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from rlhflab.analysis.drift import Reply
from rlhflab.data.files import kind_of_file, rows_of
from rlhflab.data.formats import Row, kind_of, read_prompts, turn_rows
from rlhflab.data.types import Message, Prompt
from rlhflab.errors import ConfigError, DataError
from rlhflab.registry.naming import NamedAdapter, named_adapter
from rlhflab.registry.records import CONFIG
from rlhflab.runs.evidence_files import ALIASES
from rlhflab.scenarios import names, scenario

ANSWERS = ("answers", "completions", "responses", "samples")
"""Keys of a list of answers."""
BASE = "base"
"""The side that is the model without an adapter."""
TABLES = (".csv", ".tsv", ".parquet")
Kind = Literal["file", "adapter", "server"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """One side, as named by the user."""

    name: str
    kind: Kind
    only: tuple[str, str] | None = None
    """Column and value of the rows that count."""
    served_as: str | None = None
    adapter: NamedAdapter | None = None
    """What is loaded where an adapter answers; None for the base."""

    @property
    def base(self) -> str | None:
        """The base that the adapter names."""
        return None if self.adapter is None else self.adapter.base

    @property
    def folder(self) -> Path | None:
        """Of the adapter; None where the base answers alone."""
        return None if self.adapter is None else self.adapter.folder

    @property
    def label(self) -> str:
        """What the side is called: the name, and what tells it from the other one."""
        return " ".join([self.adapter.name if self.adapter else self.name,
                         *([f"({self.only[0]} {self.only[1]})"] if self.only else []),
                         *([f"({self.served_as})"] if self.served_as else [])])


def source_of(name: str, *, where: str, only: str | None = None, served_as: str | None = None,
              registry: Path = Path("registry")) -> Source:
    """What kind of side a name is. One clear error where it is none, or where a flag does not go with it."""
    adapter = None
    if "://" in name:
        kind: Kind = "server"
    elif name == BASE or (not Path(name).is_file() and (adapter := named_adapter(name, registry=registry)) is not None):
        kind = "adapter"
    elif Path(name).is_dir():
        raise DataError(f"{name}: is a folder without {CONFIG}; a side is a file of answers, an adapter by folder or "
                        f"by its name in the registry, {BASE}, or the address of a server")
    else:
        kind = "file"
    if kind == "server" and not served_as:
        raise ConfigError(f"{where}: an address needs --served-as, the model's name there")
    if only is not None and kind != "file":
        raise ConfigError(f"--{where}-rows: goes with a file of answers, and {name} is none")
    return Source(name=name, kind=kind, only=_only(only, where), adapter=adapter,
                  served_as=served_as if kind == "server" else None)


def _only(text: str | None, where: str) -> tuple[str, str] | None:
    if text is None:
        return None
    column, sign, value = text.partition("=")
    if not (column and sign):
        raise ConfigError(f"--{where}-rows: must be COLUMN=VALUE, found {text!r}")
    return column, value


# -- files -----------------------------------------------------------------------------------------------------------


def read_replies(source: Source, *, outcomes: Sequence[str] = ()) -> tuple[list[Reply], list[Prompt]]:
    """The answers of a file, and its prompts, each once where its text is known.

    A row has a prompt and an answer, or a list of answers, under the names that `rlhflab detect` knows too; further
    columns are `reward` and the `outcomes`. DataError names file, line and key.
    """
    path, replies, prompts = Path(source.name), list[Reply](), dict[str, Prompt]()
    table, seen = kind_of_file(path).endswith(TABLES), set[str]()
    for row in rows_of(path):
        seen.add(str(row.values.get(source.only[0]))) if source.only else None
        if source.only and str(row.values.get(source.only[0])) != source.only[1]:
            continue
        key, prompt = _prompt(row)
        if prompt is not None:
            prompts.setdefault(key, prompt)
        replies += [Reply(prompt=key, text=text, reward=_reward(row), outcomes=_outcomes(row, outcomes))
                    for text in _answers(row, table)]
    if source.only and not replies:
        raise DataError(f"{path}: no row has {source.only[0]} {source.only[1]!r}; there are "
                        f"{', '.join(sorted(seen)[:8])}")
    return replies, list(prompts.values())


def prompt_key(messages: Sequence[Message]) -> str:
    """Equal where the turns are; of a single user turn its text, so that files of text and of turns match."""
    if len(messages) == 1 and messages[0].role == "user":
        return messages[0].content
    return json.dumps(turn_rows(messages), ensure_ascii=False)


def _prompt(row: Row) -> tuple[str, Prompt | None]:
    key = next((key for key in (*ALIASES["prompt"], "messages") if key in row.values), None)
    if key is not None:
        messages = row.prompt(key)
        return prompt_key(messages), Prompt(id=row.id, messages=messages)
    name = row.values.get("prompt_id", row.values.get("id"))
    if name is None:
        raise row.wrong("prompt", f"is missing; a row of answers has one of {', '.join(ALIASES['prompt'])}, or a "
                                  f"prompt_id, found {', '.join(map(repr, row.values)) or 'nothing'}")
    return f"id {name}", None


def _answers(row: Row, table: bool) -> list[str]:
    """The texts of a row, which may be empty: a table cannot tell an empty cell from none."""
    key = next((key for key in (*ANSWERS, *ALIASES["answer"]) if key in row.values), None)
    if key is None:
        if table:
            return [""]
        raise row.wrong("answer", f"is missing; a row of answers has one of {', '.join(ALIASES['answer'])}, or a list "
                                  f"under {', '.join(ANSWERS)}, found {', '.join(map(repr, row.values)) or 'nothing'}")
    value = row.values[key]
    texts = value if isinstance(value, list) and key in ANSWERS else [value]
    for text in texts:
        if not isinstance(text, str):
            raise row.wrong(key, f"must be text, found {kind_of(text)}")
    return texts


def _reward(row: Row) -> float | None:
    key = next((key for key in ALIASES["reward"] if key in row.values), None)
    if key is None:
        return None
    value = row.values[key]
    try:
        number = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError):
        number = math.nan
    if not math.isfinite(number):
        raise row.wrong(key, f"must be a finite number, found {value!r}")
    return number


def _outcomes(row: Row, wanted: Sequence[str]) -> Mapping[str, str]:
    for name in wanted:
        if name not in row.values:
            raise row.wrong(name, "is missing; --outcome names a column that every row has")
    return {name: str(row.values[name]) for name in wanted}


def prompts_named(name: str, n: int | None, *, seed: int) -> list[Prompt]:
    """The first prompts of a file, or a scenario's evaluation prompts (64 where nothing is said)."""
    if name in names():
        return scenario(name).prompts("evaluation", n or 64, seed=seed)
    return read_prompts(Path(name))[:n]


def answer_rows(replies: Sequence[Reply], prompts: Sequence[Prompt], **facts: Any) -> list[dict[str, Any]]:
    """What `read_replies` reads back, one answer a row."""
    turns = {prompt_key(prompt.messages): turn_rows(prompt.messages) for prompt in prompts}
    return [{"prompt": turns[reply.prompt], "answer": reply.text, **facts} for reply in replies]
