"""Evidence for detectors from files: a run's folder, or anybody's JSONL of prompts, answers and rewards. No torch.

One row is one sample. Keys are those of `Sample`, or what other libraries call them (`ALIASES`).
"""

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from rlhflab.analysis.evidence import Evidence, Sample
from rlhflab.analysis.report_data import number
from rlhflab.analysis.report_data import read_rows as read_run_rows
from rlhflab.analysis.reward_report import evidence_probes
from rlhflab.data.formats import Row, read_rows
from rlhflab.errors import DataError, RunError
from rlhflab.runs.hidden_states import read_states
from rlhflab.runs.probe_records import probed_folder, read_report

ALIASES: Mapping[str, tuple[str, ...]] = {
    "step": ("step", "global_step", "iteration", "training_step"),
    "prompt": ("prompt", "query", "question", "instruction", "input", "problem"),
    "prompt_id": ("prompt_id",),
    "answer": ("answer", "completion", "response", "output", "generated_text", "generation", "text"),
    "reward": ("reward", "score", "rewards"),
    "stopped": ("stopped", "finish", "finish_reason", "stop_reason"),
    "tokens": ("tokens", "num_tokens", "completion_length", "response_length"),
    "logprob": ("logprob", "logprobs", "log_prob"),
    "reference_logprob": ("reference_logprob", "ref_logprob", "ref_logprobs", "ref_log_prob"),
    "entropy": ("entropy",),
    "twin": ("twin",),
    "members": ("members",),
    "terms": ("terms",),
    "measures": ("measures",),
}
"""Keys of each field, the first that is there counts."""
STOPPED = frozenset({"stop", "stopped", "eos", "end_turn", "stop_sequence"})
CUT_OFF = frozenset({"length", "max_tokens", "max_length", "max_new_tokens"})


def read_evidence(path: Path, *, start: Path | None = None, probes: Path | None = None) -> Evidence:
    """What a run's folder or a JSONL file holds for detectors.

    `start`: a file of answers of the starting policy, which count as step 0; rows of a file without steps are then step
    1. `probes`: a report of `rlhflab report reward`, in place of those stored beside a run's reward roles. DataError
    names file, line and key; RunError says what a folder lacks.
    """
    if path.is_dir():
        if start is not None:
            raise DataError(f"--start: {path} is a run, which knows its own start; --start goes with a file of answers")
        return _of_folder(path, probes)
    rows = _with_steps(path, read_rows(path), otherwise=0 if start is None else 1)
    first = [replace(sample, step=0) for sample in map(_sample, read_rows(start))] if start else []
    return Evidence(rollouts=sorted([*first, *rows], key=lambda sample: sample.step),
                    probes=evidence_probes(read_report(probes)) if probes else {})


def _of_folder(folder: Path, probes: Path | None) -> Evidence:
    """What a run recorded while it trained, and what is known of its reward roles."""
    rollouts, canary = (_with_steps(path, _run_rows(path), otherwise=0)
                        for path in (folder / "rollouts.jsonl", folder / "canary.jsonl"))
    pairs = _pairs(folder / "metrics.jsonl")
    if not (rollouts or canary or pairs):
        few = folder / "samples.jsonl"
        raise RunError(
            f"{folder}: holds no rollouts.jsonl, no canary.jsonl and no metrics of a run on preference pairs, so there "
            "is nothing for a detector to look at: it is no finished run, of a kind that samples nothing, or by a "
            "version that did not record its rollouts"
            + (f"; rlhflab detect {few} looks at the few answers it kept" if few.is_file() else ""))
    probed = probed_folder(folder, probes)
    return Evidence(rollouts=rollouts, canary=canary, pairs=pairs, hidden=read_states(folder), probes=probed.probes,
                    how={"probes": probed.how})


def _run_rows(path: Path) -> list[Row]:
    """Rows of a file that a run may still be writing; a run leaves out what is empty, an empty answer too."""
    return [Row(path=path, line=line, values={"answer": "", **{key: x for key, x in row.items() if x is not None}})
            for line, row in enumerate(read_run_rows(path), start=1)]


def _pairs(path: Path) -> list[Mapping[str, float]]:
    """What a run on preference pairs logged of its chosen answers."""
    found: list[Mapping[str, float]] = []
    for row in read_run_rows(path):
        values = {key: number(row.get(name)) for key, name in (
            ("step", "step"), ("chosen", "chosen_shift_per_token"), ("margin", "margin"))}
        if None not in values.values():
            found.append({key: value for key, value in values.items() if value is not None})
    return found


def _with_steps(path: Path, rows: Iterable[Row], *, otherwise: int) -> list[Sample]:
    """The rows as samples in the order of their steps; `otherwise` is the step of rows that all have none."""
    rows = list(rows)
    missing = next((row for row in rows if _given(row, "step") is None), None)
    if missing is not None and (with_one := next((row for row in rows if _given(row, "step")), None)):
        raise missing.wrong("step", f"is missing, while line {with_one.line} has one; all rows are to have it, or none")
    samples = [_sample(row) for row in rows]
    if missing is not None:
        samples = [replace(sample, step=otherwise) for sample in samples]
    return sorted(samples, key=lambda sample: sample.step)


def _given(row: Row, field: str) -> tuple[str, Any] | None:
    """(key, value) of a field of the row, None where it has none."""
    return next(((key, row.values[key]) for key in ALIASES[field] if key in row.values), None)


def _sample(row: Row) -> Sample:
    """A row as a sample; its step is 0 where it has none."""
    found = {field: READ[field](row, *given) for field in READ if (given := _given(row, field)) is not None}
    if "answer" not in found and "messages" in row.values:
        turns = row.values["messages"]
        found["answer"] = _last_turn(row, "messages", turns)
        found |= {"prompt": _last_turn(row, "messages", turns[:-1]), "prompt_id": json.dumps(turns[:-1])}
    for field in ("answer", "prompt"):
        if field not in found and not (field == "prompt" and "prompt_id" in found):
            names = ", ".join(repr(key) for key in ALIASES[field])
            raise row.wrong(field, f"is missing; it may also be called one of {names}, found "
                                   f"{', '.join(map(repr, row.values)) or 'nothing'}")
    prompt = _given(row, "prompt")
    return Sample(**{"step": 0, "prompt_id": "" if prompt is None else _identity(prompt[1]), **found})


def _identity(prompt: Any) -> str:
    """Equal for equal prompts."""
    return prompt if isinstance(prompt, str) else json.dumps(prompt, sort_keys=True)


def _last_turn(row: Row, key: str, value: Any) -> str:
    """Text, or the content of the last of some messages."""
    if isinstance(value, str):
        return value
    last = value[-1] if isinstance(value, list) and value else None
    if not isinstance(last, dict) or not isinstance(last.get("content"), str):
        raise row.wrong(key, "must be text, or a list of messages whose last one has a text as its content")
    return str(last["content"])


def _step(row: Row, key: str, value: Any) -> int:
    step = _number(row, key, value)
    if step < 0 or step != int(step):
        raise row.wrong(key, f"must be a whole number from 0 on, found {value}")
    return int(step)


def _number(row: Row, key: str, value: Any) -> float:
    """A number, NaN and infinity too: what to make of those, detectors say."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise row.wrong(key, f"must be a number, found {json.dumps(value)[:40]}")
    return float(value)


def _sum(row: Row, key: str, value: Any) -> float:
    """A number, or the sum of one a token."""
    return sum(_number(row, key, each) for each in value) if isinstance(value, list) else _number(row, key, value)


def _count(row: Row, key: str, value: Any) -> int:
    """A count, or the length of a list of what is counted."""
    return len(value) if isinstance(value, list) else _step(row, key, value)


def _stopped(row: Row, key: str, value: Any) -> bool | None:
    """Whether the answer ended by itself, from true or false or from the words that engines have for it."""
    if isinstance(value, bool):
        return value
    word = str(value).lower()
    return True if word in STOPPED else False if word in CUT_OFF else None


def _numbers(row: Row, key: str, value: Any) -> tuple[float, ...]:
    if not isinstance(value, list):
        raise row.wrong(key, "must be a list of numbers")
    return tuple(_number(row, f"{key}[{place}]", each) for place, each in enumerate(value))


def _named(row: Row, key: str, value: Any) -> dict[str, float]:
    """Numbers by name; true and false are 1 and 0, and what is null is left out."""
    if not isinstance(value, dict):
        raise row.wrong(key, "must be an object of numbers by name")
    return {str(name): float(each) if isinstance(each, bool) else _number(row, f"{key}.{name}", each)
            for name, each in value.items() if each is not None}


READ: Mapping[str, Callable[[Row, str, Any], Any]] = {
    "step": _step, "prompt": _last_turn, "prompt_id": lambda row, key, value: _identity(value), "answer": _last_turn,
    "reward": _number, "stopped": _stopped, "tokens": _count, "logprob": _sum, "reference_logprob": _sum,
    "entropy": _number, "twin": _number, "members": _numbers, "terms": _named, "measures": _named}
"""How each field is read."""
