"""A registry as its page shows it: adapters, deployments and entries, in words. Reads the ledger, changes nothing.

Whether the files are what the ledger says is `registry/audit.py`, which is asked only on demand.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from rlhflab.app.lineage import Graph, active_in, lineage
from rlhflab.app.run_folders import Gate
from rlhflab.registry.cards import change_log, model_card, reasons, says
from rlhflab.registry.ledger import LedgerState
from rlhflab.registry.records import CHANGES, WEIGHTS, Adapter, Entry
from rlhflab.registry.state import State, history, state_of
from rlhflab.registry.store import Registry


class Named(NamedTuple):
    """An adapter by name."""

    name: str
    digest: str
    here: bool
    """Whether the registry has it."""


class Judged(NamedTuple):
    """What a gate said of an adapter."""

    verdict: str
    where: str
    """In words."""
    gate: str | None
    """The gate's run folder, where it is among the runs."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AdapterRow:
    """An adapter in the table."""

    adapter: Adapter
    parents: Sequence[Named] | None
    """None where nobody wrote them down."""
    judged: Judged | None
    active: Sequence[str]


@dataclass(frozen=True, slots=True, kw_only=True)
class EntryRow:
    """An entry of the ledger, in words."""

    entry: Entry
    says: str
    reasons: Sequence[str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Deployment:
    """A pointer: what it leads to, and how it came there."""

    name: str
    active: Named | None
    """None: the base answers alone."""
    before: Sequence[Named]
    """What a rollback would go to, the next one first."""
    moves: Sequence[EntryRow]


@dataclass(frozen=True, slots=True, kw_only=True)
class Overview:
    """All that the registry's page shows."""

    adapters: Sequence[AdapterRow]
    graph: Graph
    deployments: Sequence[Deployment]
    entries: Sequence[EntryRow]
    """Newest first."""
    hash: str
    signed: bool
    failures: Sequence[str]
    """Where the chain is broken; what follows from there is not shown."""
    unfinished: bool


class Card(NamedTuple):
    """An adapter's own page."""

    row: AdapterRow
    card: str
    """Markdown."""
    changes: str
    """Markdown."""


def overview(folder: Path, gates: Sequence[Gate]) -> Overview:
    """The registry in `folder`. RegistryError where it is none; a damaged one is shown as far as its chain holds."""
    registry = Registry(folder)
    found = registry.read()
    state = state_of(found.entries)
    names = state.names
    return Overview(
        adapters=[_row(adapter, state, found, gates) for adapter in state.adapters.values()], graph=lineage(state),
        deployments=[_deployment(name, state, found, names) for name in sorted(state.deployments)],
        entries=[_entry(entry, names) for entry in reversed(found.entries)], hash=found.hash, signed=registry.signed,
        failures=failure_words([{"path": each.path, "expected": each.expected, "found": each.found}
                                for each in found.failures]), unfinished=found.behind or found.torn > 0)


def card_of(folder: Path, digest: str, gates: Sequence[Gate]) -> Card | None:
    """One adapter's card and the log of what became of it; None where the registry has no such digest."""
    registry = Registry(folder)
    found = registry.read()
    state = state_of(found.entries)
    adapter = state.adapters.get(digest)
    return None if adapter is None else Card(
        _row(adapter, state, found, gates), model_card(adapter, state, signed=registry.signed),
        change_log(adapter, history(found.entries, adapter)))


def failure_words(failures: Sequence[Mapping[str, Any]]) -> list[str]:
    """What is not as the ledger says, a sentence each."""
    return [f"{each['path']}: expected {each['expected'] or 'nothing'}, found {each['found'] or 'nothing'}"
            for each in failures]


def _row(adapter: Adapter, state: State, found: LedgerState, gates: Sequence[Gate]) -> AdapterRow:
    parents = adapter.made.parents
    return AdapterRow(adapter=adapter, judged=_judged(adapter, found.entries, gates),
                      active=active_in(state, adapter.digest),
                      parents=None if parents is None else [_named(each, state) for each in parents])


def _judged(adapter: Adapter, entries: Sequence[Entry], gates: Sequence[Gate]) -> Judged | None:
    """The newest gate among the runs that judged it, else the verdict that came with its last promotion."""
    names = {adapter.digest, adapter.files[WEIGHTS]}
    for each in gates:  # newest first
        if each.candidate_digest in names and each.verdict:
            return Judged(each.verdict, f"against {each.facts['active'] or 'the base'}", each.name)
    for entry in reversed(entries):
        if entry.kind == "promote" and entry.body["digest"] == adapter.digest and entry.body.get("gate"):
            return Judged(str(entry.body["gate"]["verdict"]), f"in entry {entry.number} of the ledger", None)
    return None


def _deployment(name: str, state: State, found: LedgerState, names: Mapping[str, str]) -> Deployment:
    named = [_named(each, state) for each in state.deployments[name]]
    return Deployment(name=name, active=named[-1] if named else None, before=named[-2::-1], moves=[
        _entry(entry, names) for entry in found.entries if entry.kind in CHANGES and entry.body["deployment"] == name])


def _named(digest: str, state: State) -> Named:
    here = state.adapters.get(digest)
    return Named(here.name if here else digest[:12], digest, here is not None)


def _entry(entry: Entry, names: Mapping[str, str]) -> EntryRow:
    return EntryRow(entry=entry, says=says(entry, names=names), reasons=list(reasons(entry, names=names)))
