"""The folder of a registry: adapters come in, pointers move. Every change is an entry of the ledger first.

No model is loaded here, and no gate is run: a verdict arrives as a file.
"""

import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rlhflab.errors import RegistryError
from rlhflab.registry.ledger import Ledger, LedgerState, locked, read_ledger
from rlhflab.registry.records import (
    ACTIVE,
    ADAPTERS,
    CHANGES,
    LEDGER,
    PUBLIC_KEY,
    SIGNATURE,
    STATEMENT,
    WEIGHTS,
    Adapter,
    Entry,
    adapter_digest,
    checked_name,
    read_verdict,
    sha256_of,
)
from rlhflab.registry.sign import Signer, Verifier, can_sign, default_key, enveloped, sign_folder
from rlhflab.registry.state import State, state_of
from rlhflab.registry.statement import statement_of

STAGING = ".adding"
BETWEEN_READS = 0.05
"""Seconds after which what looked damaged is read once more."""


def now() -> str:
    """UTC to the microsecond, so that text sorts as time."""
    return datetime.now(UTC).isoformat(timespec="microseconds")


@dataclass(frozen=True, slots=True, kw_only=True)
class Added:
    """What became of an adapter that was added."""

    adapter: Adapter
    signed: bool
    unsigned_folder: str | None
    """Why the folder has no OpenSSF signature; None where it has one."""


class Registry:
    """One folder with a ledger. Made by `init`; opened for reading and writing alike."""

    def __init__(self, folder: Path, *, key: Path | None = None, clock: Callable[[], str] = now) -> None:
        self.folder, self._key, self._clock = folder, key or default_key(), clock
        public = folder / PUBLIC_KEY
        self.verifier: Verifier | None = None
        self.broken_key: RegistryError | None = None
        """Why the registry's public key cannot be read; nothing but that is then told of the registry."""
        try:
            self.verifier = Verifier(public.read_bytes(), where=str(public)) if public.is_file() else None
        except RegistryError as error:
            self.broken_key = error

    @classmethod
    def init(cls, folder: Path, *, key: Path | None = None, signed: bool | None = None, by: str | None = None,
             clock: Callable[[], str] = now) -> "Registry":
        """A new registry. `signed` None signs where `cryptography` is installed."""
        if by is not None:
            _refuse_nobody(by)
        if (folder / LEDGER).exists():
            raise RegistryError(f"{folder}: is a registry already")
        signer = Signer.make(key or default_key()) if (can_sign() if signed is None else signed) else None
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise RegistryError(f"{folder}: cannot be made ({error.strerror})") from error
        with locked(folder):
            if (folder / LEDGER).exists():
                raise RegistryError(f"{folder}: is a registry already")
            for name in (ADAPTERS, ACTIVE):
                (folder / name).mkdir(exist_ok=True)
            (folder / PUBLIC_KEY).unlink(missing_ok=True)
            if signer is not None:
                (folder / PUBLIC_KEY).write_bytes(signer.verifier.pem)
            body = {"format": 1, "key": signer.verifier.fingerprint if signer else None}
            Ledger(folder, signer, clock).append(LedgerState(entries=[], failures=[], torn=0, behind=False), "init",
                                                 body, by, lambda entry: None)
        return cls(folder, key=key, clock=clock)

    @property
    def signed(self) -> bool:
        """Whether entries carry signatures."""
        return self.verifier is not None

    # -- reading ---------------------------------------------------------------------------------------------------

    def read(self) -> LedgerState:
        """The ledger as it is, damaged or not."""
        if self.broken_key is not None:
            raise self.broken_key
        found = read_ledger(self.folder, self.verifier)
        if found.failures:  # or a process wrote between the reading of ledger and head
            time.sleep(BETWEEN_READS)
            found = read_ledger(self.folder, self.verifier)
        return found

    def entries(self) -> list[Entry]:
        """Every entry. RegistryError names the first that is damaged."""
        return list(self._sound().entries)

    def state(self) -> State:
        """What the ledger adds up to."""
        return state_of(self._sound().entries)

    def path_of(self, adapter: Adapter) -> Path:
        """The adapter's folder, which PEFT loads as it is."""
        return self.folder / ADAPTERS / adapter.digest

    def _sound(self) -> LedgerState:
        found = self.read()
        if found.failures:
            first = found.failures[0]
            raise RegistryError(f"{self.folder / first.path}: is damaged: expected {first.expected}, found "
                                f"{first.found}; nothing is done until rlhflab registry verify finds all well")
        return found

    # -- writing ---------------------------------------------------------------------------------------------------

    def add(self, files: Mapping[str, Path | bytes], describe: Callable[[str, Mapping[str, str]], Adapter], *,
            by: str) -> Added:
        """Take an adapter in: copies of `files`, a statement and signatures. `describe` makes its record of digest and
        file digests. RegistryError where it is here already, or its name is.
        """
        with self._writing(by) as (ledger, found):
            staging = self.folder / ADAPTERS / STAGING
            shutil.rmtree(staging, ignore_errors=True)  # left by a process that was killed here
            try:
                adapter, why = self._staged(staging, files, describe, state_of(found.entries))
            except BaseException:
                shutil.rmtree(staging, ignore_errors=True)
                raise
            ledger.append(found, "add", adapter.row(), by, self._follow)
            shutil.rmtree(staging, ignore_errors=True)
        return Added(adapter=adapter, signed=self.signed, unsigned_folder=why)

    def _staged(self, staging: Path, files: Mapping[str, Path | bytes],
                describe: Callable[[str, Mapping[str, str]], Adapter], state: State) -> tuple[Adapter, str | None]:
        """(the adapter, why its folder has no OpenSSF signature), all of its files written but not yet counted."""
        staging.mkdir()
        digests = _copied(files, staging / "new")
        adapter = describe(adapter_digest(digests), digests)
        _refuse_known(adapter, state)
        folder = (staging / "new").rename(self.half_added(adapter.digest))
        signer = self._signer()
        (folder / STATEMENT).write_text(enveloped(statement_of(adapter), signer), encoding="utf-8")
        why = sign_folder(folder, signer) if signer else "the registry is unsigned"
        more = {name: sha256_of(folder / name) for name in (STATEMENT, SIGNATURE) if (folder / name).is_file()}
        return replace(adapter, files={**adapter.files, **more}), why

    def promote(self, name: str, deployment: str, *, by: str, gate: Path | None, override: str | None) -> Entry:
        """Make an adapter the active one of a deployment.

        RegistryError where base, rank or head differ from what it serves, the gate did not pass and nobody overrides
        it, or a file is not what was added.
        """
        checked_name(deployment, flag="--to")
        with self._writing(by) as (ledger, found):
            state = state_of(found.entries)
            adapter = state.find(name)
            before = state.active(deployment) if deployment in state.deployments else None
            if before == adapter.digest:
                raise RegistryError(f"{adapter.name} ({before[:12]}) is active in {deployment} already")
            _refuse_other_shape(adapter, deployment, state)
            verdict = None if gate is None else read_verdict(gate)
            problem = _gate_problem(verdict, gate, adapter, state.adapters.get(before or ""))
            if problem is not None and not override:
                raise RegistryError(f"{adapter.name} is not promoted to {deployment}: {problem}; --override REASON "
                                    "promotes it all the same, and is recorded")
            self._refuse_damaged(adapter)
            return ledger.append(found, "promote", {
                "deployment": deployment, "digest": adapter.digest, "before": before, "gate": verdict,
                "override": {"reason": override, "of": problem} if problem else None}, by, self._follow)

    def rollback(self, deployment: str, *, by: str, reason: str | None, to: str | None = None) -> Entry:
        """Go back to what was active before, or further back to `to`; "base" for no adapter at all."""
        with self._writing(by) as (ledger, found):
            state = state_of(found.entries)
            stack = state.deployment(deployment)
            if not stack:
                raise RegistryError(f"{deployment}: no adapter is active, so there is nothing to go back from")
            if to is None and len(stack) == 1:
                raise RegistryError(f"{deployment}: nothing was active before {stack[0][:12]}; --to base takes the "
                                    "adapter off")
            target = None if to == "base" else stack[-2] if to is None else state.find(to).digest
            if target is not None:
                if target not in stack[:-1]:
                    raise RegistryError(f"{deployment}: {target[:12]} was not active before; promote goes forward")
                self._refuse_damaged(state.adapters[target])
            return ledger.append(found, "rollback", {"deployment": deployment, "digest": target, "before": stack[-1],
                                                     "reason": reason}, by, self._follow)

    @contextmanager
    def _writing(self, by: str) -> Iterator[tuple[Ledger, LedgerState]]:
        """(ledger, its state), with the lock held and what a stopped process left done."""
        _refuse_nobody(by)
        if not (self.folder / LEDGER).is_file():
            raise RegistryError(f"{self.folder}: is not a registry; rlhflab registry init makes one")
        with locked(self.folder):
            found = self._sound()
            ledger = Ledger(self.folder, self._signer(), self._clock)
            if found.behind:
                self._follow(found.entries[-1])
                ledger.write_head(found.entries[-1])
            yield ledger, found

    def _signer(self) -> Signer | None:
        if self.verifier is None:
            return None
        signer = Signer(self._key)
        if signer.verifier.fingerprint != self.verifier.fingerprint:
            raise RegistryError(f"{self._key}: is another key ({signer.verifier.fingerprint[:12]}) than the registry's "
                                f"({self.verifier.fingerprint[:12]}); give its file with --key or RLHFLAB_REGISTRY_KEY")
        return signer

    def _follow(self, entry: Entry) -> None:
        """Do what follows from an entry; doing it twice does no harm."""
        if entry.kind == "add":
            half = self.half_added(entry.body["digest"])
            if half.is_dir():
                half.rename(self.folder / ADAPTERS / entry.body["digest"])
        elif entry.kind in CHANGES:
            _point(self.folder / ACTIVE / entry.body["deployment"], entry.body["digest"])

    def half_added(self, digest: str) -> Path:
        """Where an adapter lies until its entry is written."""
        return self.folder / ADAPTERS / STAGING / digest

    def _refuse_damaged(self, adapter: Adapter) -> None:
        for name, digest in adapter.files.items():
            path = self.path_of(adapter) / name
            found = sha256_of(path) if path.is_file() else "nothing"
            if found != digest:
                raise RegistryError(f"{path}: is not what was added: expected {digest}, found {found}; nothing was "
                                    "changed")


def _refuse_nobody(by: str) -> None:
    if not by.strip() or not by.isprintable():
        raise RegistryError(f"--by: must be the name of who does it, found {by!r}")


def _copied(files: Mapping[str, Path | bytes], folder: Path) -> dict[str, str]:
    """Copy into a new folder; sha256 of each copy, so that what is recorded is what is kept."""
    folder.mkdir()
    for name, source in files.items():
        if isinstance(source, bytes):
            (folder / name).write_bytes(source)
        else:
            shutil.copyfile(source, folder / name)
    return {name: sha256_of(folder / name) for name in files}


def _refuse_known(adapter: Adapter, state: State) -> None:
    here = state.adapters.get(adapter.digest)
    if here is not None:
        differ = next((name for name, digest in adapter.files.items() if here.files.get(name) != digest), None)
        other = "" if differ is None else (f", with another {differ} ({here.files.get(differ, 'none')[:12]}, not "
                                           f"{adapter.files[differ][:12]})")
        raise RegistryError(f"this adapter is in the registry already, as {here.name} ({adapter.digest[:12]}){other}")
    taken = next((each for each in state.adapters.values() if each.name == adapter.name), None)
    if taken is not None:
        raise RegistryError(f"--name: {adapter.name} is taken by {taken.digest[:12]}; give another one")


def _refuse_other_shape(adapter: Adapter, deployment: str, state: State) -> None:
    """What a deployment serves has one base, one rank, and a head or none."""
    fixed = state.shapes.get(deployment)
    if fixed is None:
        return
    first = next(each for each in state.adapters.values() if each.shape == fixed)
    for key, found in adapter.shape.items():
        if found != fixed[key]:
            raise RegistryError(f"{deployment} serves adapters of {key} {fixed[key]}, such as {first.digest}, and "
                                f"{adapter.digest} has {key} {found}; it needs a deployment of its own")


def _gate_problem(verdict: Mapping[str, Any] | None, path: Path | None, adapter: Adapter,
                  before: Adapter | None) -> str | None:
    """Why a verdict does not let an adapter through. One about another adapter is an error that nothing overrides."""
    if verdict is None:
        return "there is no verdict of a gate (--gate)"
    if verdict["candidate_digest"] not in _digests(adapter):
        raise RegistryError(f"{path}: candidate_digest: judges {verdict['candidate_digest']}, not {adapter.digest}")
    if verdict["verdict"] != "pass":
        return f"the gate says {verdict['verdict']} ({path})"
    against = verdict.get("active_digest")
    allowed = {None, "base", adapter.base.digest, adapter.base.name} if before is None else _digests(before)
    if against not in allowed:
        active = before.digest if before else "no adapter"
        return f"the gate compared it with {against}, and {active} is active ({path})"
    return None


def _digests(adapter: Adapter) -> set[str | None]:
    """What a gate may call an adapter: by its digest, or by that of its weights."""
    return {adapter.digest, adapter.files[WEIGHTS]}


def _point(link: Path, digest: str | None) -> None:
    """Let a deployment's link lead to another adapter, in one go."""
    if digest is None:
        link.unlink(missing_ok=True)
        return
    new = link.with_name(f".{link.name}.new")
    new.unlink(missing_ok=True)
    new.symlink_to(Path("..") / ADAPTERS / digest)
    os.replace(new, link)
