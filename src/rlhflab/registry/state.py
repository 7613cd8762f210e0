"""What the entries of a ledger add up to: adapters, what is active in each deployment, and what a name means.

Reads entries only; no files, no signatures.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from rlhflab.errors import RegistryError
from rlhflab.registry.records import CHANGES, DIGEST_LIKE, WEIGHTS, Adapter, Entry, adapter_of


@dataclass(slots=True, kw_only=True)
class State:
    """A registry as its ledger says it is."""

    adapters: dict[str, Adapter] = field(default_factory=dict)
    """By digest, in the order they were added."""
    deployments: dict[str, list[str]] = field(default_factory=dict)
    """Digests that were active one after the other and not rolled back; the last is active. Empty: the base alone."""
    shapes: dict[str, Mapping[str, object]] = field(default_factory=dict)
    """Of each deployment: base, rank and head of its first adapter."""

    @property
    def names(self) -> dict[str, str]:
        """Names of adapters by digest."""
        return {digest: adapter.name for digest, adapter in self.adapters.items()}

    def active(self, deployment: str) -> str | None:
        """Digest of the active adapter; None where the base answers alone."""
        stack = self.deployment(deployment)
        return stack[-1] if stack else None

    def deployment(self, name: str) -> list[str]:
        """The stack of a deployment. RegistryError where it is unknown."""
        if name not in self.deployments:
            known = ", ".join(sorted(self.deployments)) or "none yet"
            raise RegistryError(f"no deployment is called {name!r}; there are {known}")
        return self.deployments[name]

    def means(self, name: str) -> bool:
        """Whether `find` would look for it here: a name, a deployment, or the start of a digest."""
        return name in self.deployments or any(each.name == name or _begins(each, name)
                                               for each in self.adapters.values())

    def find(self, name: str) -> Adapter:
        """The adapter that a name, the start of a digest or a deployment means. RegistryError where none or several."""
        named = [each for each in self.adapters.values() if each.name == name]
        if named:
            return named[0]
        if name in self.deployments:
            if (active := self.active(name)) is None:
                raise RegistryError(f"{name}: no adapter is active in this deployment")
            return self.adapters[active]
        found = [each for each in self.adapters.values() if _begins(each, name)]
        if len(found) > 1:
            raise RegistryError(f"{name}: is the start of {len(found)} digests: "
                                f"{', '.join(each.digest[:len(name) + 8] for each in found)}; give more digits")
        if not found:
            known = ", ".join(each.name for each in self.adapters.values()) or "none yet"
            raise RegistryError(f"no adapter is called {name!r}, and no digest starts so; there are {known}")
        return found[0]


def _begins(adapter: Adapter, start: str) -> bool:
    return DIGEST_LIKE.fullmatch(start) is not None and any(
        digest.startswith(start) for digest in (adapter.digest, adapter.files[WEIGHTS]))


def state_of(entries: Iterable[Entry]) -> State:
    """What these entries add up to."""
    state = State()
    for entry in entries:
        if entry.kind == "add":
            adapter = adapter_of(entry.body)
            state.adapters[adapter.digest] = adapter
        elif entry.kind in CHANGES:
            name, digest = entry.body["deployment"], entry.body["digest"]
            stack = state.deployments.setdefault(name, [])
            if entry.kind == "promote":
                state.shapes.setdefault(name, state.adapters[digest].shape)
                stack.append(digest)
            else:
                del stack[_place(stack, digest) + 1:]
    return state


def _place(stack: Sequence[str], digest: str | None) -> int:
    """Where a rollback to `digest` leads: its last place below the top; -1 for the base."""
    if digest is None:
        return -1
    return max(place for place, each in enumerate(stack[:-1]) if each == digest)


def history(entries: Iterable[Entry], adapter: Adapter) -> list[Entry]:
    """The entries that concern an adapter: that it was added, activated, and given up."""
    return [entry for entry in entries if (entry.kind == "add" and entry.body["digest"] == adapter.digest) or (
        entry.kind in CHANGES and adapter.digest in (entry.body["digest"], entry.body["before"]))]
