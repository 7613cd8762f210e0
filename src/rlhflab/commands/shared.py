"""What every command needs: types of arguments, quiet work, and results in words or as JSON."""

import json
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import redirect_stdout
from pathlib import Path
from typing import Annotated, Any, TypeVar

from cyclopts import Parameter
from cyclopts.validators import Number

from rlhflab.progress import columns

T = TypeVar("T")
Json = Annotated[bool, Parameter(name="--json")]
Count = Annotated[int, Parameter(validator=Number(gte=1))]
Seed = Annotated[int, Parameter(validator=Number(gte=0))]
Form = Annotated[str | None, Parameter(name="--from")]
"""The data format of a file."""
Override = Annotated[str, Parameter(allow_leading_hyphen=True)]
SEVERAL = Parameter(consume_multiple=True)
"""Of a flag that takes its values behind it: `--seeds 0 1 2`."""
Folder = Annotated[Path | None, Parameter(name="--registry")]
DEFAULT_MODEL = "smollm2-135m"
ALARM = 3
"""Exit code of `detect --fail-on-alarm` and `drift --fail-on-drift`."""


def quietly(work: Callable[[], T]) -> T:
    """Do `work`; what it or a library prints goes to stderr."""
    with redirect_stdout(sys.stderr):
        return work()


def registry_folder(given: Path | None) -> Path:
    """The registry that a command is about."""
    return given or Path(os.environ.get("RLHFLAB_REGISTRY") or "registry")


def finish(folder: Path, as_json: bool, *, next_step: str) -> None:
    """Say where a run is and what to do next."""
    if not as_json:
        print(f"Wrote {folder}. Next: {next_step}")
        return
    summary = folder / "summary.json"
    print_value({"folder": str(folder), "summary": json.loads(summary.read_text()) if summary.exists() else None}, True)


def print_value(value: Mapping[str, Any] | Sequence[Mapping[str, Any]], as_json: bool) -> None:
    """One JSON value, or one `key: value` line each with a blank line between records."""
    if as_json:
        from rlhflab.data.formats import finite

        print(json.dumps(finite(value), indent=2, ensure_ascii=False, allow_nan=False, default=str))
        return
    records = [value] if isinstance(value, Mapping) else value
    print("\n\n".join("\n".join(_lines(record)) for record in records))


def _lines(record: Mapping[str, Any], prefix: str = "") -> list[str]:
    lines = []
    for key, value in record.items():
        if isinstance(value, Mapping) and set(value) != {"mean", "low", "high", "n"}:
            lines += _lines(value, f"{prefix}{key}.")
        else:
            lines.append(f"{prefix}{key}: {_in_words(value)}")
    return lines


def _in_words(value: Any) -> str:
    if isinstance(value, Mapping):
        ends = {"low": float("-inf"), "high": float("inf")}  # which JSON writes as null
        known = {key: each for key, each in value.items() if each is not None}
        return "{mean:.3f} [{low:.3f}, {high:.3f}] n={n}".format(**(ends | known))
    return "-" if value is None else format(value, ".4g") if isinstance(value, float) else str(value)


def print_table(rows: Sequence[Mapping[str, Any]], as_json: bool) -> None:
    """Rows under each other in columns; the last column may be long."""
    if as_json:
        print_value(rows, True)
        return
    if not rows:
        print("none yet")
        return
    words = {"True": "yes", "False": "no", "None": "-"}
    print("\n".join(columns([[words.get(str(value), str(value)) for value in row.values()] for row in rows])))
