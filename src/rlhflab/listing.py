"""What a run file may say and what the catalogues hold, as rows of text. torch only where a catalogue needs it."""

import types
from collections.abc import Iterator, Mapping
from importlib import import_module
from typing import Any, Literal, Union, get_args, get_origin

from pydantic.fields import FieldInfo

from rlhflab.catalog import Catalog
from rlhflab.config import KINDS, Choice, Settings
from rlhflab.errors import ConfigError
from rlhflab.scenarios import names, scenario

CATALOGUES: Mapping[str, str] = {
    "losses": "rlhflab.core.losses:preference_loss",
    "rewards": "rlhflab.rollout.rewards:reward_source",
}
"""Where each catalogue is; imported when it is asked for."""

BOUNDS = {"ge": ">=", "gt": ">", "le": "<=", "lt": "<"}


def overview() -> list[dict[str, str]]:
    """Every name that `rows_of` takes."""
    kinds = [{"name": kind, "description": _one_line(run.__doc__)} for kind, run in KINDS.items()]
    catalogues = [{"name": name, "description": f"The catalogue of {name}."} for name in CATALOGUES]
    return [*kinds, *catalogues, {"name": "scenarios", "description": "Tasks that make and check their own data."}]


def rows_of(name: str) -> list[dict[str, str]]:
    """The keys of a run file of kind `name`, or the entries of the catalogue `name`."""
    if name in KINDS:
        return list(_keys(KINDS[name](), ""))
    if name == "scenarios":
        return [{"name": each, "measures": ", ".join(measure.name for measure in scenario(each).measures)}
                for each in names()]
    if name not in CATALOGUES:
        known = ", ".join(row["name"] for row in overview())
        raise ConfigError(f"nothing to list is called {name!r}; there are {known}")
    module, _, attribute = CATALOGUES[name].partition(":")
    catalog: Catalog[Any] = getattr(import_module(module), attribute)
    return [{"name": entry, "options": options, "description": says} for entry, options, says in catalog.describe()]


def _keys(section: Settings, prefix: str) -> Iterator[dict[str, str]]:
    """One row a key, sections unfolded into dotted keys."""
    for name, field in type(section).model_fields.items():
        value = getattr(section, name)
        if isinstance(value, Settings):
            yield from _keys(value, f"{prefix}{name}.")
        else:
            yield {"name": prefix + name, "type": _type(field), "default": _shown(value),
                   "description": _one_line(field.description)}


def _type(field: FieldInfo) -> str:
    """`int >= 1 | none`: the bounds stand by the type that they bound."""
    bounds = "".join(f" {sign} {getattr(bound, key)}" for bound in field.metadata for key, sign in BOUNDS.items()
                     if getattr(bound, key, None) is not None)
    bounded, optional, _ = _type_words(field.annotation).partition(" | none")
    return bounded + bounds + optional


def _type_words(annotation: Any) -> str:
    if get_origin(annotation) is Literal:
        return " | ".join(map(str, get_args(annotation)))
    if get_origin(annotation) in (Union, types.UnionType):
        return " | ".join(_type_words(part) for part in get_args(annotation))
    if get_args(annotation):
        return f"list of {_type_words(get_args(annotation)[0])}"
    if isinstance(annotation, type) and issubclass(annotation, Choice):
        return "{name, options}"
    return "none" if annotation is type(None) else str(getattr(annotation, "__name__", annotation))


def _shown(value: Any) -> str:
    """A default as a run file would say it."""
    if isinstance(value, Choice):
        return "{" + ", ".join(f"{key}: {_shown(inner)}" for key, inner in value.model_dump().items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(_shown, value)) + "]"
    if value is None or isinstance(value, bool):
        return str(value).lower()
    return f"{value:g}" if isinstance(value, float) else str(value)


def _one_line(text: str | None) -> str:
    return " ".join((text or "").split())
