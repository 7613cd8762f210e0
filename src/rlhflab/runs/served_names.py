"""What a model's name means to the server: the base, a folder's adapter, one of the registry, or what is active now.

A pointer is read from the ledger at each request, which is read anew only after it changed, so a promotion counts at
once. Files are looked at, weights are not loaded. No torch here.
"""

import math
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from rlhflab.errors import ConfigError, RegistryError
from rlhflab.registry.records import CONFIG, HEAD, LEDGER, WEIGHTS, Adapter, BaseFacts, checked_name, sha256_of
from rlhflab.registry.sources import folder_digest, look_at, provenance
from rlhflab.registry.state import State
from rlhflab.registry.store import Registry
from rlhflab.runs.requests import Refused, Request, ServedModel

ACTIVE = "@active"
READ = (WEIGHTS, CONFIG)
"""Files whose change would change what an adapter says."""
MOST_MIXED = 8
"""Adapters of one mixture."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Known:
    """An adapter as it is known by name."""

    name: str
    digest: str
    folder: Path
    files: tuple[tuple[str, str], ...]
    """What is read of it, and the sha256 that each must have."""
    parents: tuple[str, ...] | None
    """Digests; None where nobody wrote them down."""
    problem: str | None = None
    """Why it cannot be served on this base."""



class Names:
    """Names of one base, of adapters in folders, and of a registry."""

    def __init__(self, base: BaseFacts, *, folders: Mapping[str, Path], registry: Registry | None) -> None:
        """ConfigError or RegistryError for a folder that cannot be served, and for a name that is taken."""
        self.base, self.registry = base, registry
        assert base.name is not None and base.digest is not None
        self._base_name, self._base_digest = base.name, base.digest
        self._stamp: tuple[int, ...] | None = None
        self._state = State()
        self._lock = threading.Lock()
        self.folders: dict[str, Known] = {}
        taken = {base.name, *(each.name for each in self._registered().adapters.values())}
        for name, path in folders.items():
            if checked_name(name, flag="--adapter") in taken:
                raise ConfigError(f"--adapter {name}: is the name of the base or of an adapter in the registry; give "
                                  "another one")
            self.folders[name] = self._in_folder(name, path)
            if (problem := self.folders[name].problem) is not None:
                raise ConfigError(f"--adapter {name}: {problem}")
        self._parents_in_folders = [parent for path in folders.values() if (parent := self._start_of(path))]

    # -- what there is ---------------------------------------------------------------------------------------------

    def served(self) -> list[ServedModel]:
        """Every name that can be asked."""
        state = self._registered()
        models = [ServedModel(name=self._base_name, kind="base", digest=self._base_digest, parent=None,
                              parent_name=None, parent_recorded=False)]
        registered = [self._of_registry(each) for each in state.adapters.values()]
        models += [self._told(known.name, "adapter", known) for known in (*self.folders.values(), *registered)
                   if known.problem is None]
        for deployment in state.deployments:
            active = self._active(deployment, state)
            if active is None or active.problem is None:
                models.append(self._told(deployment + ACTIVE, "active", active))
        return models

    def _told(self, name: str, kind: Literal["adapter", "active"], known: Known | None) -> ServedModel:
        if known is None:
            return ServedModel(name=name, kind="active", digest=self._base_digest, parent=None, parent_name=None,
                               parent_recorded=False)
        parents, parent_name = known.parents or (self._base_digest,), None
        if not known.parents:
            parent_name = self._base_name
        elif (found := self._by_digest(parents[0])) is not None and found not in self._parents_in_folders:
            parent_name = found.name
        one = len(parents) == 1
        return ServedModel(name=name, kind=kind, digest=known.digest, parent=parents[0] if one else None,
                           parent_name=parent_name if one else None, parent_recorded=known.parents is not None)

    # -- what a request means --------------------------------------------------------------------------------------

    def parts(self, request: Request) -> list[tuple[Known, float]]:
        """The adapters that a request wants on top of the base, and how much of each. Refused says what cannot be.

        base + parent + s (child - parent) = base + (1 - s) parent + s child; of a mixture, with the weights w,
        base + (1 - sum of w) parent + sum of w child.
        """
        named = self.find(request.model, param="model")
        if not request.mixture:
            if named is None and request.strength != 1:
                raise Refused(f"strength: {request.model} is the base, which has no change to scale", param="strength")
            return [] if named is None else self._scaled({named: request.strength}, param="strength")
        if request.strength != 1:
            raise Refused("strength and mixture: give one of them; a mixture has a weight for each model",
                          param="strength")
        if len(request.mixture) > MOST_MIXED:
            raise Refused(f"mixture: holds {len(request.mixture)} models, at most {MOST_MIXED} can be mixed",
                          param="mixture")
        weights: dict[Known, float] = {}
        for name, weight in request.mixture.items():
            known = self.find(name, param="mixture")
            if known is None:
                raise Refused(f"mixture: {name} is the base, which has no change to mix in", param="mixture")
            weights[known] = weights.get(known, 0.0) + weight
        parts = self._scaled(weights, param="mixture")
        if named is not None and named not in weights and named.digest != self._parent(next(iter(weights)), "mixture"):
            raise Refused(f"model: {request.model} is not in the mixture, nor what it stands on; name the base, the "
                          "common parent, or a model of the mixture", param="model")
        return parts

    def _scaled(self, weights: Mapping[Known, float], *, param: str) -> list[tuple[Known, float]]:
        if len(weights) == 1 and all(weight == 1 for weight in weights.values()):
            return [(known, 1.0) for known in weights]  # whole, whatever it started from
        parents = {known.name: self._parent(known, param) for known in weights}
        if len(set(parents.values())) > 1:
            (first, one), (second, other), *_ = {parent: name for name, parent in parents.items()}.items()
            raise Refused(f"mixture: {one} started from {self._short(first)} and {other} from {self._short(second)}; "
                          "only models with the same parent can be mixed", param=param)
        parent = next(iter(parents.values()))
        rest = 1 - math.fsum(weights.values())
        below: list[tuple[Known, float]] = []
        if parent is not None and abs(rest) > 1e-9:
            known = self._by_digest(parent)
            assert known is not None
            below = [(known, rest)]
        return [*below, *((known, weight) for known, weight in weights.items() if weight)]

    def _parent(self, known: Known, param: str) -> str | None:
        """Digest of the adapter that the change is measured from; None for the base. Refused where it is not here."""
        parents = known.parents or ()
        if len(parents) > 1:
            raise Refused(f"{param}: {known.name} was made of {len(parents)} adapters "
                          f"({', '.join(each[:12] for each in parents)}), so there is no one parent to measure its "
                          "change from", param=param)
        if not parents:
            return None
        found = self._by_digest(parents[0])
        if found is None:
            raise Refused(f"{param}: {known.name} started from {parents[0][:12]}, which is neither in the registry nor "
                          "among the folders that are served, so its change cannot be measured", param=param)
        if found.problem is not None:
            raise Refused(f"{param}: the parent of {known.name}: {found.problem}", param=param)
        return parents[0]

    def _short(self, digest: str | None) -> str:
        return f"the base {self._base_name}" if digest is None else digest[:12]

    def find(self, name: str, *, param: str) -> Known | None:
        """The adapter that a name means; None for the base. Refused where there is none, or it does not fit."""
        if name == self._base_name:
            return None
        known = self.folders.get(name)
        if known is None:
            state = self._registered()
            if name.endswith(ACTIVE) and (deployment := name.removesuffix(ACTIVE)) in state.deployments:
                known = self._active(deployment, state)
                if known is None:
                    return None
            else:
                found = next((each for each in state.adapters.values() if name in (each.name, each.digest)), None)
                if found is None:
                    raise Refused(f"{param}: no model is called {_quoted(name)}; GET /v1/models says which there are",
                                  status=404, param=param, code="model_not_found")
                known = self._of_registry(found)
        if known.problem is not None:
            raise Refused(f"{param}: {known.problem}", param=param)
        return known

    # -- folders and registry --------------------------------------------------------------------------------------

    def _registered(self) -> State:
        """The registry as it is now. Refused where it is damaged."""
        if self.registry is None:
            return self._state
        with self._lock:
            try:
                found = (self.registry.folder / LEDGER).stat()
                stamp = (found.st_ino, found.st_size, found.st_mtime_ns)
                if stamp != self._stamp:
                    self._state, self._stamp = self.registry.state(), stamp
            except (RegistryError, OSError) as error:
                raise Refused(f"the registry cannot be read: {error}", status=503) from error
            return self._state

    def _active(self, deployment: str, state: State) -> Known | None:
        digest = state.active(deployment)
        return None if digest is None else self._of_registry(state.adapters[digest])

    def _of_registry(self, adapter: Adapter) -> Known:
        assert self.registry is not None
        return Known(name=adapter.name, digest=adapter.digest, folder=self.registry.path_of(adapter),
                     files=tuple((each, adapter.files[each]) for each in READ), parents=adapter.made.parents,
                     problem=self._misfit(adapter.name, adapter.base, head=adapter.head))

    def _in_folder(self, name: str, path: Path) -> Known:
        source = look_at(path)
        folder = source.files[WEIGHTS].parent
        return Known(name=name, digest=folder_digest(folder), folder=folder,
                     files=tuple((each, sha256_of(source.files[each])) for each in READ),
                     parents=provenance(source.run).parents if source.run else None,
                     problem=self._misfit(str(path), source.base, head=HEAD in source.files))

    def _start_of(self, path: Path) -> Known | None:
        """What the run of an adapter started from, where that folder is still there."""
        run = look_at(path).run
        start = (provenance(run).config or {}).get("start") if run else None
        try:
            return self._in_folder(Path(start).name, Path(start)) if start else None
        except RegistryError:  # it is gone, which only matters to who asks for a strength
            return None

    def _by_digest(self, digest: str) -> Known | None:
        own = next((known for known in (*self.folders.values(), *self._parents_in_folders)
                    if known.digest == digest), None)
        registered = None if own else self._registered().adapters.get(digest)
        return own or (self._of_registry(registered) if registered else None)

    def _misfit(self, name: str, base: BaseFacts, *, head: bool) -> str | None:
        if head:
            return f"{name} has a head, so it scores answers and writes none"
        for what in ("digest", "tokenizer", "template"):
            theirs, ours = getattr(base, what), getattr(self.base, what)
            if theirs and ours and theirs != ours:
                words = {"digest": "base weights", "tokenizer": "a tokenizer", "template": "a chat template"}[what]
                return f"{name} belongs to {words} {theirs}, and {self._base_name} has {ours}"
        return None


def _quoted(name: str) -> str:
    return repr(name if len(name) <= 80 else name[:80] + "...")
