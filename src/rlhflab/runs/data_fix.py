"""A cleaned copy of data files by what their checks found, and a list of every row that it touches and why.

Rows are left out, or lose their secrets; no text is mended otherwise and no label is changed. The files that were
checked stay as they are.
"""

import os
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlhflab.analysis.data_checks import DataFinding
from rlhflab.data.files import rows_of
from rlhflab.data.formats import write_jsonl
from rlhflab.data.survey.columns import Survey
from rlhflab.data.survey.secrets import redacted
from rlhflab.errors import DataError

Place = tuple[Path, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Fixed:
    """What became of the rows."""

    copies: Sequence[Path]
    """In the order of the files."""
    changes: Path
    """One JSON object a touched row: file, line, what, why."""
    kept: int
    dropped: Mapping[str, int]
    """Rows by the check that dropped them; a row that several name counts for each."""
    redacted: int

    def record(self) -> dict[str, Any]:
        """As JSON values."""
        return {"copies": [str(path) for path in self.copies], "changes": str(self.changes), "kept": self.kept,
                "dropped": dict(self.dropped), "redacted": self.redacted}

    def in_words(self) -> str:
        """One sentence."""
        dropped = ", ".join(f"{n:,} by {check}" for check, n in self.dropped.items()) or "none"
        return (f"Wrote {', '.join(map(str, self.copies))}: {self.kept:,} rows kept, dropped: {dropped}; secrets "
                f"removed in {self.redacted:,}. Each touched row is in {self.changes}.")


def fix_data(files: Sequence[Path], out: Path, seen: Survey, findings: Sequence[DataFinding]) -> Fixed:
    """Write the cleaned copy as JSONL to `out`, a file for one file and a folder for several.

    A line that gives several pairs is left out whole if one of them is. DataError where `out`, or the list beside it,
    exists.
    """
    targets = targets_of(files, out)
    listed = out / "changes.jsonl" if len(files) > 1 else out.with_name(f"{_stem(out)}.changes.jsonl")
    for path in (*targets, listed):
        if path.exists():
            raise DataError(f"{path}: exists already; name a new file with --fix")
    drops, redactions = what_to_touch(seen, findings)
    changes = list(_changes(seen, drops, redactions))
    kept = 0
    for path, target in zip(files, targets, strict=True):
        rows = _Kept(path, drops, redactions)
        write_jsonl(target, rows.values())
        kept += rows.count
    write_jsonl(listed, changes)
    return Fixed(copies=targets, changes=listed, kept=kept, redacted=len(redactions - drops.keys()),
                 dropped=dict(Counter(check for reasons in drops.values() for check in reasons).most_common()))


def targets_of(files: Sequence[Path], out: Path) -> list[Path]:
    """Where each file's copy goes."""
    if len(files) == 1:
        return [out]
    names = [f"{_stem(path)}.jsonl" for path in files]
    twice = [name for name, n in Counter(names).items() if n > 1]
    if twice:
        raise DataError(f"{out}: {twice[0]} would be the copy of two files; check them one after the other")
    return [out / name for name in names]


def what_to_touch(seen: Survey, findings: Sequence[DataFinding]) -> tuple[dict[Place, dict[str, str]], set[Place]]:
    """(why to drop each place, by check; places that lose secrets)."""
    drops: dict[Place, dict[str, str]] = defaultdict(dict)
    redactions: set[Place] = set()
    for finding in findings:
        for row, why in finding.drop.items():
            drops[_place(seen, row)][finding.name] = why
        redactions |= {_place(seen, row) for row in finding.redact}
    for bad in seen.bad:
        if bad.line is not None:
            drops[bad.path, bad.line][bad.fault] = bad.sentence
    return dict(drops), redactions


class _Kept:
    """The rows of a file that stay, and how many they were."""

    def __init__(self, path: Path, drops: Mapping[Place, Any], redactions: set[Place]) -> None:
        self.path, self.drops, self.redactions, self.count = path, drops, redactions, 0

    def values(self) -> Iterator[Mapping[str, Any]]:
        """Each row's values, without secrets where there were some."""
        for row in rows_of(self.path, bad=lambda error: None):
            place = self.path, row.line
            if place not in self.drops:
                self.count += 1
                yield without_secrets(row.values) if place in self.redactions else row.values


def without_secrets(value: Any) -> Any:
    """A JSON value with the secrets in its texts taken out; keys stay."""
    if isinstance(value, str):
        return redacted(value)
    if isinstance(value, Mapping):
        return {key: without_secrets(inner) for key, inner in value.items()}
    return [without_secrets(inner) for inner in value] if isinstance(value, list) else value


def _changes(seen: Survey, drops: Mapping[Place, Mapping[str, str]],
             redactions: set[Place]) -> Iterator[dict[str, Any]]:
    order = {path: place for place, path in enumerate(seen.files)}
    for path, line in sorted({*drops, *redactions}, key=lambda place: (order.get(place[0], -1), place[1])):
        reasons = drops.get((path, line))
        yield {"file": os.fspath(path), "line": line, "what": "dropped" if reasons else "secrets removed",
               "why": [{"check": check, "says": says} for check, says in reasons.items()] if reasons else
               [{"check": "secrets", "says": "keys, addresses or numbers were replaced by [removed: KIND]"}]}


def _place(seen: Survey, row: int) -> Place:
    return seen.files[seen.file[row]], int(seen.line[row])


def _stem(path: Path) -> str:
    return Path(path.name.removesuffix(".gz")).stem
