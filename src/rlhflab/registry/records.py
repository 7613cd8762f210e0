"""What a registry writes down, with one spelling in JSON, and what is read from files that others wrote.

Nothing is changed here, and no signature is made or checked.
"""

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from rlhflab.data.formats import finite
from rlhflab.errors import RegistryError

WEIGHTS, CONFIG, HEAD, ROLE = "adapter_model.safetensors", "adapter_config.json", "head.safetensors", "rlhflab.json"
STATEMENT, SIGNATURE, TRANSCRIPTS = "statement.json", "model.sig", "transcripts.json"
LEDGER, HEAD_FILE, PUBLIC_KEY, ADAPTERS, ACTIVE = "ledger.jsonl", "HEAD", "key.pub", "adapters", "active"
BEFORE_ALL = "0" * 64
"""The hash before the first entry."""
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
DIGEST_LIKE = re.compile(r"[0-9a-f]{4,64}")
VERDICTS = ("pass", "fail", "inconclusive")
CHANGES = ("promote", "rollback")
"""Kinds of entries that move a deployment's pointer."""


def canonical(value: object) -> str:
    """JSON with one spelling: keys sorted, no spaces, not escaped, numbers as Python writes them, none infinite."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def sha256_of(path: Path) -> str:
    """sha256 of a file's bytes, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def adapter_digest(files: Mapping[str, str]) -> str:
    """What an adapter is called: sha256 of its weights. Where it has a head, sha256 of what `sha256sum` prints of the
    weights and the head, since heads may share an adapter.
    """
    if HEAD not in files:
        return files[WEIGHTS]
    return hashlib.sha256("".join(f"{files[name]}  {name}\n" for name in (WEIGHTS, HEAD)).encode()).hexdigest()


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One line of the ledger."""

    number: int
    """From 1."""
    at: str
    """UTC, ISO 8601, as the clock was found."""
    clock_went_back: bool
    """Whether `at` lies before that of the entry before. The order is that of the chain in any case."""
    kind: str
    by: str | None
    body: Mapping[str, Any]
    hash: str
    signature: str | None
    """Of `signed_text`; None in an unsigned registry."""

    @property
    def said(self) -> dict[str, Any]:
        """What the hash covers."""
        return {"number": self.number, "at": self.at, "clock_went_back": self.clock_went_back, "kind": self.kind,
                "by": self.by, "body": self.body}

    @property
    def line(self) -> str:
        """As it stands in the ledger."""
        return canonical({**self.said, "hash": self.hash, "signature": self.signature})

    @property
    def signed_text(self) -> bytes:
        """What an entry's signature covers."""
        return f"rlhflab entry\n{self.number}\n{self.hash}\n".encode()


def chained(previous: str, said: Mapping[str, Any]) -> str:
    """h_t = SHA256(h_{t-1} || canonical JSON of the entry), hashes as lower-case hex."""
    return hashlib.sha256((previous + canonical(said)).encode()).hexdigest()


def parse_entry(line: str) -> Entry:
    """The entry a line holds. ValueError where it is none, or spelt in another way than `canonical` does."""
    values = json.loads(line)
    entry = Entry(**values)
    if entry.line != line:
        raise ValueError("is not spelt canonically")
    return entry


@dataclass(frozen=True, slots=True, kw_only=True)
class LedgerHead:
    """Where the ledger ends, signed by itself, so that a ledger that was cut off is seen."""

    entries: int
    hash: str
    signature: str | None

    @property
    def signed_text(self) -> bytes:
        """What the head's signature covers; it cannot be had from the ledger."""
        return f"rlhflab head\n{self.entries}\n{self.hash}\n".encode()

    @property
    def text(self) -> str:
        """As it stands in its file."""
        return canonical(asdict(self)) + "\n"


def parse_head(text: str) -> LedgerHead:
    """The head a file holds; ValueError as `parse_entry`."""
    head = LedgerHead(**json.loads(text))
    if head.text != text:
        raise ValueError("is not spelt canonically")
    return head


@dataclass(frozen=True, slots=True, kw_only=True)
class BaseFacts:
    """The frozen model an adapter belongs to, as far as it is known."""

    name: str | None = None
    digest: str | None = None
    """sha256 over the weight files."""
    tokenizer: str | None = None
    """sha256 of tokenizer.json."""
    template: str | None = None
    """sha256 of the chat template's text."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Provenance:
    """What made an adapter, as far as it is known; None for what is not."""

    data: tuple[Mapping[str, Any], ...] | None = None
    """Key of the run file, name, sha256 as the run wrote it down, else as it was found (None where nobody knows it),
    and who judged. Of reward roles and what they began as too, with the key of the role in front.
    """
    annotators: str | None = None
    """The rule by which annotators judged."""
    rewards: tuple[Mapping[str, Any], ...] | None = None
    """Reward sources; of a role also its digest."""
    config: Mapping[str, Any] | None = None
    commit: str | None = None
    seeds: tuple[int, ...] | None = None
    parents: tuple[str, ...] | None = None
    """Digests of the adapters it started from; empty for one that started from the base."""
    evaluations: Mapping[str, Any] | None = None
    run: Mapping[str, Any] | None = None
    """Kind, status, times, machine and versions."""
    told: tuple[Mapping[str, Any], ...] | None = None
    """Of an adapter that another trainer made: file, sha256, and what that file says. Nobody checked it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Adapter:
    """One adapter of the registry."""

    digest: str
    name: str
    files: Mapping[str, str]
    """sha256 of every file of its folder."""
    base: BaseFacts
    rank: int
    alpha: float | None
    head: bool
    made: Provenance = field(default_factory=Provenance)
    note: str | None = None

    def row(self) -> dict[str, Any]:
        """As JSON, with what is infinite as null."""
        row: dict[str, Any] = finite(asdict(self))
        return row

    @property
    def shape(self) -> dict[str, Any]:
        """What the adapters of one deployment have in common."""
        return {"base": self.base.digest or self.base.name, "rank": self.rank, "head": self.head}


def adapter_of(row: Mapping[str, Any]) -> Adapter:
    """What `Adapter.row` wrote."""
    made: dict[str, Any] = {key: tuple(value) if isinstance(value, list) else value
                            for key, value in row["made"].items()}
    return Adapter(**{**row, "base": BaseFacts(**row["base"]), "made": Provenance(**made)})


def checked_name(name: str, *, flag: str) -> str:
    """A name that is a file name, and no start of a digest."""
    if not NAME.fullmatch(name):
        raise RegistryError(f"{flag}: {name!r} must be letters, digits, '.', '_' and '-', at most 64, the first a "
                            "letter or a digit")
    if DIGEST_LIKE.fullmatch(name):
        raise RegistryError(f"{flag}: {name!r} could be the start of a digest; take a name with another letter in it")
    return name


def read_object(path: Path) -> dict[str, Any]:
    """A JSON file that holds one object. RegistryError where it does not."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise RegistryError(f"{path}: no such file") from error
    except (OSError, ValueError) as error:
        raise RegistryError(f"{path}: cannot be read as JSON: {' '.join(str(error).split())}") from error
    if not isinstance(value, dict):
        raise RegistryError(f"{path}: must hold one JSON object, found {type(value).__name__}")
    return value


def read_verdict(path: Path) -> dict[str, Any]:
    """A gate's verdict, with the digest of the file it came in. RegistryError names the key that is wrong."""
    verdict = read_object(path)
    if verdict.get("verdict") not in VERDICTS:
        raise RegistryError(f"{path}: verdict: must be one of {', '.join(VERDICTS)}, found {verdict.get('verdict')!r}")
    if not isinstance(verdict.get("candidate_digest"), str):
        raise RegistryError(f"{path}: candidate_digest: must be the digest of the adapter that was judged, found "
                            f"{verdict.get('candidate_digest')!r}")
    if not isinstance(verdict.get("rows"), list):
        raise RegistryError(f"{path}: rows: must be a list of what was measured, found "
                            f"{type(verdict.get('rows')).__name__}")
    kept: dict[str, Any] = finite({**verdict, "file_sha256": sha256_of(path)})
    return kept
