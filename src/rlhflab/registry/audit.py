"""Whether a registry, or a bundle of one adapter, is what its ledger says. Reads everything, changes nothing."""

import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rlhflab.errors import RegistryError
from rlhflab.registry.ledger import Failure, LedgerState
from rlhflab.registry.records import (
    ACTIVE,
    ADAPTERS,
    BEFORE_ALL,
    CHANGES,
    HEAD_FILE,
    LEDGER,
    PUBLIC_KEY,
    SIGNATURE,
    STATEMENT,
    Adapter,
    sha256_of,
)
from rlhflab.registry.sign import STATEMENT_TYPE, Verifier, opened, signed_files
from rlhflab.registry.state import State, state_of
from rlhflab.registry.statement import statement_of
from rlhflab.registry.store import Registry

BUNDLE, SUMS = "bundle.json", "SHA256SUMS"
"""What a bundle has beside what a registry has."""


def verify(registry: Registry, name: str | None = None, *, key: Path | None = None,
           ends_with: str | None = None) -> dict[str, Any]:
    """Check every file, or those of one adapter or deployment, and the ledger, pointers and signatures.

    `key`: the public key as it was had from elsewhere; the registry's own where absent. `ends_with`: a ledger hash that
    was written down elsewhere, which the ledger must hold. RegistryError where `name` is unknown.
    """
    found = _verify(registry, name, key=key, ends_with=ends_with)
    # Another process may have written meanwhile, and what was read of before and after would not fit together.
    moved = not found["ok"] and registry.broken_key is None and registry.read().hash != found["ledger"]["hash"]
    return _verify(registry, name, key=key, ends_with=ends_with) if moved else found


def refuse_damaged(registry: Registry, adapter: Adapter) -> None:
    """RegistryError where a file of the adapter is not what was added, or the ledger is not whole."""
    found = verify(registry, adapter.digest)
    if not found["ok"]:
        first = found["failures"][0]
        raise RegistryError(f"{registry.folder / first['path']}: is damaged: expected {first['expected']}, found "
                            f"{first['found']}; nothing was done with it")


def _verify(registry: Registry, name: str | None, *, key: Path | None, ends_with: str | None) -> dict[str, Any]:
    if registry.broken_key is not None:
        return _result([Failure(path=PUBLIC_KEY, expected="a public key in PEM", found="something else")], checked=1)
    found = registry.read()
    state = state_of(found.entries)
    bundled = _bundled(registry.folder)
    chosen = list(state.adapters.values())
    if bundled is not None:
        chosen = [each for each in chosen if each.digest == bundled]
    if name is not None:
        bare = name in state.deployments and state.active(name) is None
        chosen = [] if bare or (found.failures and not state.adapters) else [state.find(name)]
    failures = [*found.failures, *_key_failures(registry, key), *_missing_hash(found, ends_with)]
    checked = 2 + registry.signed
    for adapter in chosen:
        checked += len(adapter.files)
        failures += _adapter_failures(registry, adapter, half=found.behind)
    if bundled is not None:
        checked += len(_sums(registry.folder))
        failures += _bundle_failures(registry.folder, bundled, state)
    elif not found.failures:
        if name is None:
            failures += _stray(registry.folder / ADAPTERS, set(state.adapters))
        deployments = [name] if name in state.deployments else [] if name else sorted(state.deployments)
        checked += len(deployments)
        failures += _pointer_failures(registry.folder, state, found, deployments, all_of_them=name is None)
    return _result(failures, checked=checked, entries=len(found.entries), hash=found.hash, signed=registry.signed,
                   unfinished=found.behind or found.torn > 0)


def _result(failures: Sequence[Failure], *, checked: int, entries: int = 0, hash: str | None = None,
            signed: bool | None = None, unfinished: bool = False) -> dict[str, Any]:
    """What `verify` returns; None for what could not be found out."""
    broken = [each for each in failures if each.path.partition(":")[0] in (LEDGER, HEAD_FILE, PUBLIC_KEY)]
    return {"ok": not failures, "checked": checked, "failures": [asdict(each) for each in failures],
            "ledger": {"ok": not broken, "entries": entries, "hash": hash, "signed": signed, "unfinished": unfinished}}


def _key_failures(registry: Registry, key: Path | None) -> Iterator[Failure]:
    """The key is the one the first entry names, and the one that whoever asks trusts."""
    own = registry.verifier.fingerprint if registry.verifier else None
    try:  # read once more, since a wrong key leaves no entry that counts
        with (registry.folder / LEDGER).open(encoding="utf-8") as file:
            named = json.loads(file.readline())["body"]["key"]
    except (ValueError, KeyError, TypeError):
        named = own  # the ledger's first line is broken, which is told already
    if named != own:
        yield Failure(path=PUBLIC_KEY, expected=named, found=own)
    if key is not None:
        try:
            trusted = Verifier(key.read_bytes(), where=str(key)).fingerprint
        except OSError as error:
            raise RegistryError(f"{key}: cannot be read ({error.strerror})") from error
        if trusted != own:
            yield Failure(path=PUBLIC_KEY, expected=trusted, found=own)


def _missing_hash(found: LedgerState, hash: str | None) -> Iterator[Failure]:
    if hash is not None and hash not in {each.hash for each in found.entries}:
        yield Failure(path=LEDGER, expected=f"an entry with hash {hash}", found="none: the ledger was replaced or cut")


def _adapter_failures(registry: Registry, adapter: Adapter, *, half: bool) -> Iterator[Failure]:
    """Files that are missing, changed or strange, and signatures that are not the key's."""
    folder, where = registry.path_of(adapter), f"{ADAPTERS}/{adapter.digest}"
    if half and not folder.is_dir():
        folder = registry.half_added(adapter.digest)
    for name, digest in sorted(adapter.files.items()):
        path = folder / name
        found = sha256_of(path) if path.is_file() else None
        if found != digest:
            yield Failure(path=f"{where}/{name}", expected=digest, found=found)
    for path in sorted(folder.glob("**/*")) if folder.is_dir() else ():
        if (inside := path.relative_to(folder).as_posix()) not in adapter.files:
            yield Failure(path=f"{where}/{inside}", expected=None, found="a file that was not added")
    plain = {name: digest for name, digest in adapter.files.items() if name not in (STATEMENT, SIGNATURE)}
    if (folder / STATEMENT).is_file() and _statement(folder / STATEMENT, registry.verifier) != _as_json(
            statement_of(adapter), plain):
        yield Failure(path=f"{where}/{STATEMENT}", expected="the statement of the ledger's record",
                      found="another one, or none that the key signed")
    if registry.verifier is not None and SIGNATURE in adapter.files:
        covered = signed_files(folder / SIGNATURE, registry.verifier)
        if covered != {name: digest for name, digest in adapter.files.items() if name != SIGNATURE}:
            yield Failure(path=f"{where}/{SIGNATURE}", expected="the key's signature of the files that were added",
                          found="another one, or of other files")


def _statement(path: Path, verifier: Verifier | None) -> dict[str, Any] | None:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        return None
    if not isinstance(value, dict):
        return None
    return opened(value, verifier) if verifier else value if value.get("_type") == STATEMENT_TYPE else None


def _as_json(statement: Mapping[str, Any], files: Mapping[str, str]) -> Any:
    """The statement as it was when it was written, before its own file and the signature were there."""
    subject = [each for each in statement["subject"] if each["name"] in files]
    return json.loads(json.dumps({**statement, "subject": subject}))


def _stray(folder: Path, known: set[str]) -> Iterator[Failure]:
    for path in sorted(folder.glob("[!.]*")):
        if path.name not in known:
            yield Failure(path=f"{ADAPTERS}/{path.name}", expected=None, found="a folder that no entry added")


def _pointer_failures(folder: Path, state: State, found: LedgerState, deployments: list[str], *,
                      all_of_them: bool) -> Iterator[Failure]:
    last = found.entries[-1] if found.entries else None
    for name in deployments:
        digest = state.active(name)
        target = _target(folder / ACTIVE / name)
        allowed = {_link(digest)}
        if found.behind and last is not None and last.kind in CHANGES and last.body["deployment"] == name:
            allowed.add(_link(last.body["before"]))  # the entry counts, and its link is set by who writes next
        if target not in allowed:
            yield Failure(path=f"{ACTIVE}/{name}", expected=_link(digest), found=target)
    if all_of_them:
        for path in sorted((folder / ACTIVE).glob("[!.]*")):
            if path.name not in state.deployments:
                yield Failure(path=f"{ACTIVE}/{path.name}", expected=None, found=_target(path))


def _target(link: Path) -> str | None:
    return os.readlink(link) if link.is_symlink() else "no link" if link.exists() else None


def _link(digest: str | None) -> str | None:
    return None if digest is None else f"../{ADAPTERS}/{digest}"


def _bundled(folder: Path) -> str | None:
    """The adapter that a bundle holds; None for a whole registry."""
    path = folder / BUNDLE
    if not path.is_file():
        return None
    try:
        return str(json.loads(path.read_text(encoding="utf-8"))["adapter"])
    except (ValueError, KeyError, TypeError):
        return BEFORE_ALL  # which no adapter is called, so that the failure is named


def _sums(folder: Path) -> dict[str, str]:
    """Names and digests of a bundle's list."""
    try:
        text = (folder / SUMS).read_text(encoding="utf-8")
    except (OSError, ValueError):
        return {}
    return {found[2]: found[1] for found in re.finditer(r"^([0-9a-f]{64})  (.+)$", text, re.MULTILINE)}


def _bundle_failures(folder: Path, digest: str, state: State) -> Iterator[Failure]:
    """What a bundle says of its files. Its list is signed by nobody, and holds what is only words."""
    if digest not in state.adapters:
        yield Failure(path=BUNDLE, expected="an adapter that the ledger holds", found=digest)
    sums = _sums(folder)
    here = {path.relative_to(folder).as_posix() for path in folder.glob("**/*") if path.is_file()} - {SUMS}
    for name in sorted(here | set(sums)):
        found = sha256_of(folder / name) if name in here else None
        if found != sums.get(name):
            yield Failure(path=name if name in sums else f"{name} in {SUMS}", expected=sums.get(name), found=found)
