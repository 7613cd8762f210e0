"""The ledger: one line an entry, chained by hashes, only ever appended to, under a lock. What entries mean is not
known here.

An entry counts from the moment its whole line is in the file. What follows from it is done next, the head is written
last: a head one entry behind says that a process was stopped between the two, and the next one that writes goes on.
"""

import errno
import fcntl
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlhflab.data.formats import whole_file
from rlhflab.errors import RegistryError
from rlhflab.registry.records import (
    BEFORE_ALL,
    HEAD_FILE,
    LEDGER,
    Entry,
    LedgerHead,
    chained,
    parse_entry,
    parse_head,
)
from rlhflab.registry.sign import Signer, Verifier


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """Something that is not as the ledger says."""

    path: str
    """Within the registry; of a ledger's line, `ledger.jsonl:3`."""
    expected: str | None
    found: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class LedgerState:
    """A ledger as it was read."""

    entries: Sequence[Entry]
    """Up to the first that is broken."""
    failures: Sequence[Failure]
    torn: int
    """Bytes behind the last whole line: an entry that was never finished, and never counted."""
    behind: bool
    """Whether the head is one entry behind."""

    @property
    def hash(self) -> str:
        """Of the last entry."""
        return self.entries[-1].hash if self.entries else BEFORE_ALL


def read_ledger(folder: Path, verifier: Verifier | None) -> LedgerState:
    """Every entry of a registry's ledger, checked by chain and head, and by signature where a key is given."""
    try:
        whole, _, torn = (folder / LEDGER).read_bytes().rpartition(b"\n")
    except FileNotFoundError as error:
        raise RegistryError(f"{folder}: is not a registry: it has no {LEDGER}") from error
    entries: list[Entry] = []
    failures: list[Failure] = []
    for number, line in enumerate(whole.split(b"\n") if whole else [], start=1):
        problem = None
        try:
            entry = parse_entry(line.decode())
        except (ValueError, TypeError) as error:
            problem = Failure(path=f"{LEDGER}:{number}", expected="an entry in canonical JSON",
                              found=" ".join(str(error).split())[:100])
        else:
            problem = _entry_problem(entry, number, entries[-1].hash if entries else BEFORE_ALL, verifier)
        if problem is not None:
            failures.append(problem)
            break
        entries.append(entry)
    behind = False
    if not failures:
        behind, failures = _head_problems(folder, entries, verifier)
    return LedgerState(entries=entries, failures=failures, torn=len(torn), behind=behind)


def _entry_problem(entry: Entry, number: int, previous: str, verifier: Verifier | None) -> Failure | None:
    where, expected = f"{LEDGER}:{number}", chained(previous, entry.said)
    if entry.number != number:
        return Failure(path=where, expected=f"entry {number}", found=f"entry {entry.number}")
    if entry.hash != expected:
        return Failure(path=where, expected=expected, found=entry.hash)
    if verifier is None and entry.signature is not None:
        return Failure(path=where, expected="no signature", found="a signature")
    if verifier is not None and not verifier.verifies(entry.signed_text, entry.signature):
        return Failure(path=where, expected=f"a signature of key {verifier.fingerprint[:12]}", found=entry.signature)
    return None


def _head_problems(folder: Path, entries: Sequence[Entry],
                   verifier: Verifier | None) -> tuple[bool, list[Failure]]:
    """(whether the head is one entry behind, what is wrong with it)."""
    def wrong(expected: str, found: str | None) -> tuple[bool, list[Failure]]:
        return False, [Failure(path=HEAD_FILE, expected=expected, found=found)]

    path = folder / HEAD_FILE
    if not path.is_file():
        return (True, []) if len(entries) == 1 else wrong("a head", None)
    try:
        head = parse_head(path.read_bytes().decode())
    except (ValueError, TypeError) as error:
        return wrong("a head in canonical JSON", " ".join(str(error).split())[:100])
    if verifier is None and head.signature is not None:
        return wrong("no signature", "a signature")
    if verifier is not None and not verifier.verifies(head.signed_text, head.signature):
        return wrong(f"a signature of key {verifier.fingerprint[:12]}", head.signature)
    last = entries[-1].hash if entries else BEFORE_ALL
    if isinstance(head.entries, int) and head.entries > len(entries) and head.hash != last:
        return False, [Failure(path=LEDGER, expected=f"{head.entries} entries, as {HEAD_FILE} says",
                               found=f"{len(entries)}: it was cut off")]
    if head.entries not in (len(entries), len(entries) - 1) or head.entries < 1:
        return wrong(f"{len(entries)} entries", f"{head.entries} entries")
    if head.hash != entries[head.entries - 1].hash:
        return wrong(entries[head.entries - 1].hash, head.hash)
    return head.entries < len(entries), []


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """The one process that may write to the registry; others wait."""
    try:
        handle = os.open(folder / ".lock", os.O_RDWR | os.O_CREAT, 0o666)
    except OSError as error:
        raise RegistryError(f"{folder}: cannot be written to ({error.strerror}); nothing was changed") from error
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    except OSError as error:
        if error.errno not in (errno.EROFS, errno.EACCES, errno.EPERM):
            raise
        raise RegistryError(f"{error.filename or folder}: cannot be written to ({error.strerror})") from error
    finally:
        os.close(handle)


class Ledger:
    """Writes entries. Every call is made by who holds the lock."""

    def __init__(self, folder: Path, signer: Signer | None, clock: Callable[[], str]) -> None:
        self.folder, self._signer, self._clock = folder, signer, clock

    def append(self, state: LedgerState, kind: str, body: Mapping[str, Any], by: str | None,
               follow: Callable[[Entry], None]) -> Entry:
        """One more entry behind those of `state`; `follow` does what follows from it."""
        now = self._clock()
        said: dict[str, Any] = {
            "number": len(state.entries) + 1, "at": now, "kind": kind, "by": by, "body": body,
            "clock_went_back": bool(state.entries) and now < state.entries[-1].at}
        unsigned = Entry(**said, hash=chained(state.hash, said), signature=None)
        entry = unsigned if self._signer is None else Entry(
            **said, hash=unsigned.hash, signature=self._signer.sign(unsigned.signed_text))
        path = self.folder / LEDGER
        with path.open("ab") as file:
            file.truncate(file.tell() - state.torn)
            file.write(entry.line.encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())
        follow(entry)
        self.write_head(entry)
        return entry

    def write_head(self, entry: Entry) -> None:
        """Say that the ledger ends with this entry."""
        head = LedgerHead(entries=entry.number, hash=entry.hash, signature=None)
        if self._signer is not None:
            head = LedgerHead(entries=entry.number, hash=entry.hash, signature=self._signer.sign(head.signed_text))
        with whole_file(self.folder / HEAD_FILE) as out:
            out.write(head.text.encode())
            out.flush()
            os.fsync(out.fileno())
