"""Which adapter a name on the command line means: a folder of any trainer, a name in a registry, or what is active.

Loads no model, and knows no names of models: what is no adapter here is for others to look up.
"""

from dataclasses import dataclass
from pathlib import Path

from rlhflab.registry.audit import refuse_damaged
from rlhflab.registry.records import CONFIG, LEDGER
from rlhflab.registry.sources import adapter_folder, base_named
from rlhflab.registry.store import Registry

ACTIVE = "@active"
"""What follows the name of a deployment."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NamedAdapter:
    """What a name turned out to mean."""

    name: str
    folder: Path | None
    """Of the adapter; None for a deployment that has gone back to the base."""
    base: str | None
    """The base as the adapter's record or files name it."""


def named_adapter(text: str, *, registry: Path) -> NamedAdapter | None:
    """The adapter `text` names; None where it names none. A folder goes before a name in the registry.

    RegistryError for a folder with several adapters, an unknown deployment, a start of several digests, and for an
    adapter of the registry whose files are not what was added.
    """
    if Path(text).is_dir():
        folder = adapter_folder(Path(text))
        return NamedAdapter(name=str(folder), folder=folder, base=base_named(folder)) if (
            folder / CONFIG).is_file() else None
    if not text.endswith(ACTIVE) and not (registry / LEDGER).is_file():
        return None
    place = Registry(registry)
    state = place.state()
    if text.endswith(ACTIVE):
        digest = state.active(text.removesuffix(ACTIVE))
        if digest is None:
            return NamedAdapter(name=text, folder=None, base=None)
        adapter = state.adapters[digest]
    elif state.means(text):
        adapter = state.find(text)
    else:
        return None
    refuse_damaged(place, adapter)
    return NamedAdapter(name=f"{text} ({adapter.digest[:12]})", folder=place.path_of(adapter), base=adapter.base.name)
