"""Samples from the rows of `rollouts.jsonl` and `canary.jsonl`, and one measure of a sample by name."""

import math
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from rlhflab.analysis.evidence import Sample
from rlhflab.analysis.report_data import read_rows
from rlhflab.errors import DataError

NUMBERS = ("reward", "logprob", "reference_logprob", "entropy", "twin")
TABLES = ("terms", "measures")
KNOWN = {field.name for field in fields(Sample)}


def read_samples(path: Path) -> list[Sample]:
    """The samples of a file, none where it is missing. DataError names file, line and key of what cannot be used."""
    return [_sample(row, f"{path}:{line}") for line, row in enumerate(read_rows(path), start=1)]


def value_of(sample: Sample, name: str) -> float | None:
    """`reward`, `twin`, or one of the sample's measures or terms by its name; None where it has none."""
    if name in NUMBERS:
        found: float | None = getattr(sample, name)
        return found
    return sample.measures.get(name, sample.terms.get(name))


def _sample(row: Mapping[str, Any], where: str) -> Sample:
    kept = {key: value for key, value in row.items() if key in KNOWN and value is not None}
    for key in ("step", "prompt_id", "answer"):
        if key not in kept:
            raise DataError(f"{where}: {key!r} is missing; a sample has step, prompt_id and answer")
    if isinstance(kept["step"], bool) or not isinstance(kept["step"], int) or kept["step"] < 0:
        raise DataError(f"{where}: 'step' must be a whole number from 0 on, found {kept['step']!r}")
    for key in ("prompt_id", "answer", "prompt"):
        if not isinstance(kept.get(key, ""), str):
            raise DataError(f"{where}: {key!r} must be text, found {kept[key]!r}")
    for key in NUMBERS:
        if key in kept:
            kept[key] = _number(kept[key], key, where)
    for key in TABLES:
        if not isinstance(kept.get(key, {}), dict):
            raise DataError(f"{where}: {key!r} must be an object, found {kept[key]!r}")
        kept[key] = {name: None if value is None else _number(value, f"{key}.{name}", where)
                     for name, value in kept.get(key, {}).items()}
    members = kept.get("members", [])
    if not isinstance(members, list):
        raise DataError(f"{where}: 'members' must be a list, found {members!r}")
    kept["members"] = tuple(_number(value, "members", where) for value in members)
    return Sample(**kept)


def _number(value: Any, key: str, where: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise DataError(f"{where}: {key!r} must be a finite number, found {value!r}")
    return float(value)
