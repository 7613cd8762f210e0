"""What a command is asked to read: a model by name, or an adapter on its base. Nothing is loaded here."""

from pathlib import Path
from typing import NamedTuple

from rlhflab.errors import ModelError, RegistryError
from rlhflab.model.load import model_folder, weights_digest
from rlhflab.registry.naming import NamedAdapter, named_adapter
from rlhflab.registry.records import CONFIG, WEIGHTS

REGISTRY = Path("registry")
"""Where names of adapters are looked up, if nothing else is said."""


class Target(NamedTuple):
    """What is evaluated."""

    model: str
    adapter: Path | None
    label: str | None = None

    @property
    def name(self) -> str:
        """As a report calls it."""
        return self.label or (str(self.adapter) if self.adapter else self.model)


def target_of(text: str, *, model: str | None = None, registry: Path = REGISTRY) -> Target:
    """`MODEL`, `MODEL+ADAPTER`, or an adapter, whose base is `model` or the one it names itself.

    An adapter is a folder, a name or the start of a digest in the registry, or `DEPLOYMENT@active`. RegistryError or
    ModelError where it is unknown or does not say its base.
    """
    base, _, adapter = text.rpartition("+")
    if not base or Path(text).exists():
        found = named_adapter(text, registry=registry)
        return Target(text, None) if found is None else _on_base(found, model)
    found = named_adapter(adapter, registry=registry)
    if found is None:
        raise ModelError(f"{text}: {adapter} is not an adapter folder: it needs {CONFIG} and {WEIGHTS}; and no "
                         f"adapter of the registry {registry} has that name")
    return _on_base(found, base)


def _on_base(found: NamedAdapter, model: str | None) -> Target:
    base = model or found.base
    if base is None and found.folder is None:
        raise RegistryError(f"{found.name}: no adapter is active in this deployment, so its base answers alone; name "
                            "that with --model")
    if base is None:
        raise ModelError(f"{found.name}: does not say which base it was trained on; name it with --model")
    return Target(base, found.folder, found.name)


def refuse_other_base(candidate: Target, active: Target) -> None:
    """Two names may mean the same weights; their digests count. An adapter's own record is checked as it loads."""
    if candidate.model == active.model:
        return
    digests = [weights_digest(model_folder(each.model)[0]) for each in (candidate, active)]
    if digests[0] != digests[1]:
        raise ModelError(f"{candidate.name}: is of base {candidate.model} ({digests[0][:12]}), and {active.name} of "
                         f"{active.model} ({digests[1][:12]}); only models of one base are compared")
