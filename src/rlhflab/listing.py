"""What a run file may say and what the catalogues hold, as rows. torch only where a catalogue needs it."""

import types
from collections.abc import Iterator, Mapping
from importlib import import_module
from typing import Any, Literal, Union, get_args, get_origin

from pydantic.fields import FieldInfo

from rlhflab.catalog import Catalog
from rlhflab.config import KINDS, Choice, Settings
from rlhflab.errors import ConfigError
from rlhflab.presets import described, dotted, preset
from rlhflab.scenarios import names, scenario
from rlhflab.suites import shipped

CATALOGUES: Mapping[str, str] = {
    "losses": "rlhflab.core.preference:preference_loss",
    "advantages": "rlhflab.core.returns:advantage_estimator",
    "policy_losses": "rlhflab.core.losses:policy_loss",
    "rewards": "rlhflab.rollout.rewards:reward_source",
    "perturbations": "rlhflab.analysis.perturbations:perturbation",
    "detectors": "rlhflab.analysis.detectors:detector",
    "checks": "rlhflab.analysis.data_checks:data_check",
    "formats": "rlhflab.data.forms:data_format",
    "verifiers": "rlhflab.rollout.verifiers:verifier",
    "shapings": "rlhflab.rollout.shaping:reward_shaping",
    "engines": "rlhflab.rollout.engines:engine",
    "presets": "rlhflab.presets:preset",
}
"""Where each catalogue is, imported when it is asked for."""

BOUNDS = {"ge": ">=", "gt": ">", "le": "<=", "lt": "<"}


def overview() -> list[dict[str, Any]]:
    """Every name that `listing` takes."""
    kinds = [{"name": kind, "summary": _one_line(run.__doc__)} for kind, run in KINDS.items()]
    catalogues = [{"name": name, "summary": f"The catalogue of {name}."} for name in CATALOGUES]
    return [*kinds, *catalogues, {"name": "suites", "summary": "Prompts and checks that answers are measured by."},
            {"name": "scenarios", "summary": "Tasks that make and check their own data."}]


def listing(name: str) -> list[dict[str, Any]]:
    """The keys of a run file of kind `name`, or the entries of the catalogue `name`, as JSON values."""
    if name in KINDS:
        return list(_keys(KINDS[name](), ""))
    if name == "scenarios":
        return [{"name": each, "measures": [measure.name for measure in scenario(each).measures]} for each in names()]
    if name == "suites":
        return shipped()
    if name not in CATALOGUES:
        known = ", ".join(row["name"] for row in overview())
        raise ConfigError(f"nothing to list is called {name!r}; there are {known}")
    rows = [
        {"name": entry.name, "options": {key: _option(field) for key, field in entry.fields.items()},
         "needs": list(entry.needs), "admits": list(entry.admits), "source": entry.source, "summary": entry.summary}
        for entry in catalog_at(CATALOGUES[name]).entries()]
    return [ROWS[name](row) for row in rows] if name in ROWS else rows


def _preset_row(row: dict[str, Any]) -> dict[str, Any]:
    """A preset's row with the keys it sets as options, and with what it cannot set after the summary."""
    values = dotted(preset.entry(row["name"], where="presets").function().values)
    options = {key: {"type": type(value).__name__, "default": value, "range": None} for key, value in values.items()}
    return {**row, "options": options, "summary": described(row["name"])}


def _detector_row(row: dict[str, Any]) -> dict[str, Any]:
    """A detector's row with whether it works without knowing right answers."""
    gold_free = import_module("rlhflab.analysis.detectors").gold_free(row["needs"])
    return {"name": row["name"], "gold": "gold-free" if gold_free else "needs gold", **row}


ROWS = {"presets": _preset_row, "detectors": _detector_row}
"""Catalogues whose rows say something of their own."""


def catalog_at(where: str) -> Catalog[Any]:
    """The catalogue at `module:attribute`."""
    module, _, attribute = where.partition(":")
    catalog: Catalog[Any] = getattr(import_module(module), attribute)
    return catalog


def as_columns(rows: list[dict[str, Any]]) -> list[dict[str, str]]:
    """The rows with options and lists in words, for a table; empty columns are left out."""
    shown = [{key: _cell(value) for key, value in row.items()} for row in rows]
    return [{key: value for key, value in row.items() if any(other[key] for other in shown)} for row in shown]


def _cell(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{key}={shown(option['default'])}" for key, option in value.items())
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def _option(field: FieldInfo) -> dict[str, Any]:
    """Type, default and range of one option of a catalogue's entry."""
    default = field.default.model_dump() if isinstance(field.default, Choice) else field.default
    return {"type": _type_words(field.annotation), "default": default, "range": _range(field) or None}


def _keys(section: Settings, prefix: str) -> Iterator[dict[str, Any]]:
    """One row a key, sections unfolded into dotted keys."""
    for name, field in type(section).model_fields.items():
        value = getattr(section, name)
        if isinstance(value, Settings):
            yield from _keys(value, f"{prefix}{name}.")
        else:
            yield {"name": prefix + name, "type": _type(field), "default": shown(value),
                   "summary": _one_line(field.description)}


def _type(field: FieldInfo) -> str:
    """`int >= 1 | none`: the bounds stand by the type that they bound."""
    bounds = _range(field)
    bounded, optional, rest = _type_words(field.annotation).partition(" | none")
    return f"{bounded} {bounds}{optional}{rest}" if bounds else bounded + optional + rest


def _range(field: FieldInfo) -> str:
    """`>= 0 < 0.5`, or nothing."""
    return " ".join(f"{sign} {getattr(bound, key)}" for bound in field.metadata for key, sign in BOUNDS.items()
                    if getattr(bound, key, None) is not None)


def _type_words(annotation: Any) -> str:
    if get_origin(annotation) is Literal:
        return " | ".join(map(str, get_args(annotation)))
    if get_origin(annotation) in (Union, types.UnionType):
        return " | ".join(_type_words(part) for part in get_args(annotation))
    if get_args(annotation):
        return f"list of {_type_words(get_args(annotation)[0])}"
    if isinstance(annotation, type) and issubclass(annotation, Choice):
        return "{name, options}"
    if isinstance(annotation, type) and issubclass(annotation, Settings):
        return "{" + ", ".join(annotation.model_fields) + "}"
    return "none" if annotation is type(None) else str(getattr(annotation, "__name__", annotation))


def shown(value: Any) -> str:
    """A default as a run file would say it."""
    if isinstance(value, Choice):
        return shown(value.model_dump(exclude_none=True))
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{key}: {shown(inner)}" for key, inner in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(shown, value)) + "]"
    if value is None or isinstance(value, bool):
        return str(value).lower()
    return f"{value:g}" if isinstance(value, float) else str(value)


def _one_line(text: str | None) -> str:
    return " ".join((text or "").split())
