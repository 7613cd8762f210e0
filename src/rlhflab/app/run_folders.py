"""What the folders under `--runs` hold, read as text that nobody vouches for. Nothing is written, no model is loaded.

A missing or broken file is one sentence beside what could be read of the others.
"""

import json
import re
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import yaml

from rlhflab.analysis.figures import Figure, curve_figure
from rlhflab.analysis.report_data import Point, curves, estimate, number, read_json, read_rows, rows
from rlhflab.core.stats import Estimate
from rlhflab.data.formats import in_lines
from rlhflab.errors import DataError, LabError

T = TypeVar("T")
CONFIG, RECORD, SUMMARY, METRICS, REPORT, GATE = (
    "config.yaml", "record.json", "summary.json", "metrics.jsonl", "report.html", "gate.json")
KINDS = {GATE: "gate", "results.json": "evaluation", "drift.json": "drift", "comparison.json": "comparison",
         "curves.json": "curves", "doses.json": "dose response", "agreement.json": "agreement",
         "reward_report.json": "reward report"}
"""What a folder without a record is, by the file that only such a one has."""
MARKS = (CONFIG, RECORD, SUMMARY, METRICS, *KINDS)
INSIDE = {"roles", "checkpoints", "cards", "evaluation", "adapters", "hidden"}
"""Folders of a run that are no runs."""
DEEPEST, MOST, LARGEST = 3, 1000, 32 * 2**20
"""Folders below `--runs` that are looked into, runs that are listed, bytes of a file that are read."""
TAIL = 64 * 1024
"""Bytes at the end of a curve that a list reads."""
MOST_POINTS = 1000
SETTING = re.compile(r"^(kind|model|data):[ \t]+(\S.{0,300})$", re.MULTILINE)
TOLD_FIRST = ("loss", "accuracy", "gold", "proxy", "kl", "margin")
"""Metrics that are shown before others."""
COLOURS = {"sft": "sft", "dpo": "dpo", "ppo": "ppo", "reward": "reward"}


class Told(NamedTuple):
    """A thing that was read, or None and the sentence why not."""

    value: Any
    problem: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class RunRow:
    """A run in the list. None is what no file says."""

    name: str
    """Its path below `--runs`."""
    kind: str
    state: str | None
    started: str | None
    base: str | None
    data: str | None
    metrics: str | None
    report: bool
    gate: bool
    problem: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class RunPage:
    """A run by itself."""

    row: RunRow
    figures: Sequence[Figure]
    config: str | None
    summary: Mapping[str, str]
    record: Mapping[str, str]
    parts: Sequence[str]
    """Names of the runs inside it."""
    problems: Sequence[str]


@dataclass(frozen=True, slots=True, kw_only=True)
class GateRow:
    """One row of a gate."""

    suite: str
    metric: str
    test: str
    verdict: str
    weight: str
    """blocks, may block, or only warns."""
    reason: str
    candidate: float | None
    active: float | None
    change: Estimate | None
    margin: str | None
    n: int | None
    unscored: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Gate:
    """A gate's record, or why it cannot be read."""

    name: str
    verdict: str | None
    facts: Mapping[str, str | None]
    candidate_digest: str | None
    rows: Sequence[GateRow]
    problem: str | None

    @property
    def counts(self) -> str:
        """`3 pass, 1 fail`."""
        verdicts = [row.verdict for row in self.rows]
        return ", ".join(f"{verdicts.count(each)} {each}" for each in dict.fromkeys(verdicts)) or "no rows"


def told(read: Callable[[], T], what: object) -> Told:
    """What `read` gives, or one sentence: files of others may be broken in any way."""
    try:
        return Told(read(), None)
    except LabError as error:
        return Told(None, str(error))
    except (OSError, ValueError, TypeError, LookupError, AttributeError, ArithmeticError, RecursionError,
            yaml.YAMLError) as error:
        return Told(None, f"{what}: cannot be read: {type(error).__name__}: {' '.join(str(error).split())[:200]}")


def run_names(root: Path) -> list[str]:
    """Every run below `root`, by its path there, at most `MOST`. Links are not followed."""
    found: list[str] = []
    waiting = deque([(root, 0)])
    while waiting and len(found) < MOST:
        folder, depth = waiting.popleft()
        if depth and is_run(folder):
            found.append(folder.relative_to(root).as_posix())
        if depth < DEEPEST:
            waiting.extend((each, depth + 1) for each in _folders(folder))
    return found


def run_folder(root: Path, name: str) -> Path | None:
    """The run of that name. None for any other name, so that nothing outside of `root` is ever reached."""
    parts = name.split("/")
    if len(parts) > DEEPEST or any(part in ("", ".", "..") or "\\" in part or "\0" in part for part in parts):
        return None
    folder = root
    for part in parts:
        folder = next((each for each in _folders(folder) if each.name == part), root)
        if folder == root:
            return None
    return folder if is_run(folder) else None


def own_file(folder: Path, name: str) -> Path | None:
    """A file of a run that lies in its folder and is no link out of it."""
    path = folder / name
    return path if path.is_file() and not path.is_symlink() else None


def is_run(folder: Path) -> bool:
    """Whether a folder has a file that only runs have."""
    return any(own_file(folder, name) for name in MARKS)


def _folders(folder: Path) -> list[Path]:
    try:
        return sorted(each for each in folder.iterdir() if each.is_dir() and not each.is_symlink()
                      and not each.name.startswith(".") and each.name not in INSIDE)
    except OSError:
        return []


def run_rows(root: Path) -> list[RunRow]:
    """The list, newest first, each with the runs inside it behind it; last those that do not say when they began."""
    found = {name: run_row(root, root / name) for name in sorted(run_names(root))}

    def began(name: str) -> str:
        around = [name[:end] for end, letter in enumerate(name) if letter == "/"]
        outermost = next((found[each] for each in (*around, name) if each in found), found[name])
        return outermost.started or ""

    return [found[name] for name in sorted(found, key=began, reverse=True)]


def run_row(root: Path, folder: Path) -> RunRow:
    """What a list says of a run."""
    record, config, last = _object(folder, RECORD), _config(folder), told(lambda: _last_metrics(folder), folder)
    mark = next((name for name in KINDS if own_file(folder, name)), None)
    whole = mark is not None or own_file(folder, SUMMARY) is not None
    gate = _object(folder, mark) if mark else Told(None, None)
    said = {**(gate.value or {}), **(config.value or {}), **(record.value or {})}
    base = said.get("base")
    return RunRow(
        name=folder.relative_to(root).as_posix(),
        kind=_text(said.get("kind")) or (KINDS[mark] if mark else "not known"),
        state={"running": "running or killed"}.get(str(said.get("status")), _text(said.get("status")))
        or ("finished" if whole else None),
        started=_text(said.get("started") or said.get("at")),
        base=_text(base.get("name") if isinstance(base, Mapping) else base) or _text(said.get("model")),
        data=_text(said.get("data")), metrics=last.value, report=own_file(folder, REPORT) is not None,
        gate=mark == GATE, problem=record.problem or config.problem or gate.problem or last.problem)


def run_page(root: Path, folder: Path) -> RunPage:
    """All that a run's page shows."""
    row = run_row(root, folder)
    summary, record = _values(folder, SUMMARY), _values(folder, RECORD)
    config = told(lambda: _read(folder, CONFIG), folder / CONFIG)
    drawn = told(lambda: _figures(folder, COLOURS.get(row.kind, "sft")), folder / METRICS)
    problems = [each for each in (row.problem, summary.problem, record.problem, config.problem, drawn.problem) if each]
    return RunPage(row=row, figures=drawn.value or (), config=config.value, summary=summary.value or {},
                   record=record.value or {}, problems=list(dict.fromkeys(problems)),
                   parts=[name for name in run_names(root) if name.startswith(f"{row.name}/")])


def gates(root: Path) -> list[Gate]:
    """Every gate's record below `root`, newest first."""
    found = [gate(root, root / name) for name in run_names(root) if own_file(root / name, GATE)]
    return sorted(found, key=lambda each: (each.facts.get("at") or "", each.name), reverse=True)


def gate(root: Path, folder: Path) -> Gate:
    """One gate's record."""
    name, record = folder.relative_to(root).as_posix(), _object(folder, GATE)
    said = record.value or {}
    problem = record.problem
    if not problem and not isinstance(said.get("rows"), list):
        problem = f"{folder / GATE}: rows: must be a list of what was measured, found {type(said.get('rows')).__name__}"
    facts = {key: _text(said.get(key)) for key in ("candidate", "candidate_digest", "active", "active_digest", "base",
                                                   "base_digest", "dtype", "policy", "policy_digest", "confidence",
                                                   "at", "version")}
    return Gate(name=name, verdict=_text(said.get("verdict")), facts=facts, problem=problem,
                candidate_digest=facts["candidate_digest"], rows=[_gate_row(row) for row in rows(said, "rows")])


def _values(folder: Path, name: str) -> Told:
    """The nested values of a file by dotted names, each in one line."""
    return told(lambda: in_lines(_sound(folder, name)), folder / name)


def _gate_row(row: Mapping[str, Any]) -> GateRow:
    n, unscored = number(row.get("n")), number(row.get("unscored"))
    margin = number(row.get("margin"))
    change = estimate({"mean": row.get("change"), "low": row.get("low"), "high": row.get("high"), "n": row.get("n")})
    return GateRow(
        suite=_text(row.get("suite")) or "not named", metric=_text(row.get("metric")) or "not named",
        test=(_text(row.get("test")) or "not named").replace("_", " "), verdict=_text(row.get("verdict")) or "none",
        weight="blocks" if row.get("blocks") is True else "may block" if row.get("blocking") is True else "only warns",
        reason=_text(row.get("reason"), most=2000) or "none was given", candidate=number(row.get("candidate")),
        active=number(row.get("active")), change=change, n=None if n is None else int(n),
        unscored=None if unscored is None else int(unscored),
        margin=None if margin is None else f"{margin:.0%}" if row.get("relative") is True else f"{margin:g}")


def _object(folder: Path, name: str) -> Told:
    """A file that holds one JSON object; an empty one where there is no file."""
    return told(lambda: _sound(folder, name), folder / name)


def _sound(folder: Path, name: str) -> dict[str, Any]:
    _check_size(folder, name)
    value = read_json(folder / name, None) if own_file(folder, name) else {}
    if not isinstance(value, dict):
        raise DataError(f"{folder / name}: must hold one JSON object, found {type(value).__name__}")
    return value


def _config(folder: Path) -> Told:
    """What a list shows of a run's settings: reading all of them could take as long as whoever wrote them likes."""
    def read() -> dict[str, Any]:
        return {key: yaml.safe_load(value) for key, value in SETTING.findall(_read(folder, CONFIG) or "")}

    return told(read, folder / CONFIG)


def _read(folder: Path, name: str) -> str | None:
    _check_size(folder, name)
    path = own_file(folder, name)
    return path.read_text(encoding="utf-8") if path else None


def _check_size(folder: Path, name: str) -> None:
    path = own_file(folder, name)
    if path and (size := path.stat().st_size) > LARGEST:
        raise DataError(f"{path}: has {size} bytes; a page reads at most {LARGEST}")


def _last_metrics(folder: Path) -> str | None:
    """`step 32: loss 0.412, accuracy 0.710`, of the last whole line."""
    path = own_file(folder, METRICS)
    if path is None:
        return None
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - TAIL))
        whole = file.read().rpartition(b"\n")[0]
    row = told(lambda: json.loads(whole.rpartition(b"\n")[2] or b"{}"), path).value
    if not isinstance(row, dict):
        raise DataError(f"{path}: its last line must be an object in JSON")
    found = {name: points[-1] for name, points in curves([row]).items()}
    names = [name for name in TOLD_FIRST if name in found][:3] or list(found)[:3]
    step = number(row.get("step"))
    return ("" if step is None or not names else f"step {step:g}: ") + ", ".join(
        f"{name.replace('_', ' ')} {found[name].value:.4g}" for name in names) or None


def _figures(folder: Path, policy: str) -> list[Figure]:
    """Each metric over the steps."""
    _check_size(folder, METRICS)
    if not own_file(folder, METRICS):
        return []
    found = curves(read_rows(folder / METRICS))
    return [curve_figure(name, list(_thinned(found[name])), policy=policy)
            for name in dict.fromkeys((*TOLD_FIRST, *found)) if name in found]


def _thinned(points: Sequence[Point]) -> Iterator[Point]:
    """At most about `MOST_POINTS`, the first and the last among them."""
    every = -(-len(points) // MOST_POINTS)
    yield from points[:-1:every]
    yield points[-1]


def _text(value: Any, *, most: int = 300) -> str | None:
    """A plain value, or a list of them, as one line; None where it is missing or has parts of its own."""
    if isinstance(value, list | tuple):
        value = ", ".join(str(each) for each in value[:20] if isinstance(each, str | int | float))
    if value is None or value == "" or isinstance(value, Mapping):
        return None
    text = " ".join(str(value).split())
    return text if len(text) <= most else f"{text[:most]}..."
