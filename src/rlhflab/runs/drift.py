"""`rlhflab drift`: whether answers to the same prompts have changed, and charts of that over releases.

Files of answers are compared without torch; `drift_models.py` is loaded where a model or a server has to answer.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rlhflab.analysis.drift import ALPHA, Reply, drift_record, release_charts
from rlhflab.analysis.drift_page import write_drift_page, write_history_page
from rlhflab.data.formats import write_jsonl
from rlhflab.data.types import Prompt
from rlhflab.errors import ConfigError, DataError
from rlhflab.progress import Progress
from rlhflab.runs.drift_sources import (
    Source,
    answer_rows,
    prompt_key,
    prompts_named,
    read_replies,
    source_of,
)
from rlhflab.runs.folder import RunFolder

SIDES = ("baseline", "current")
DEFAULT_PROMPTS = "helpdesk"


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """How sides that answer now are asked, and how both are compared."""

    model: str | None = None
    """The base of adapters, and what embeds answers; files alone need none."""
    default_model: str = "smollm2-135m"
    prompts: str | None = None
    n: int | None = None
    samples: int = 4
    max_new_tokens: int = 64
    temperature: float = 1.0
    token_env: str | None = None
    outcomes: tuple[str, ...] = ()
    margins: Mapping[str, float] = field(default_factory=dict)
    alpha: float = ALPHA
    seed: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Side:
    """A source with its answers."""

    source: Source
    replies: Sequence[Reply]
    prompts: Sequence[Prompt]


def find_drift(baseline: Source, current: Source, asked: Asked, *, out: Path | None = None,
               progress: Progress) -> dict[str, Any]:
    """Compare two sides, and write `drift.json`, `drift.html` and what was answered now into a new folder."""
    RunFolder.refuse_taken(out)
    sides = _read(baseline, current, asked, progress)
    with_model = asked.model is not None or "adapter" in {baseline.kind, current.kind}
    asked = replace(asked, model=_base_of(asked, baseline, current)) if with_model else asked
    models = _models(asked, progress) if with_model else None
    prompts = _asked_prompts(sides, asked)
    for name, source in zip(SIDES, (baseline, current), strict=True):
        if models is not None and source.kind == "adapter":
            models.hold(source, name)  # both before the first answer: one may be of another base
    for name, source in zip(SIDES, (baseline, current), strict=True):
        if name not in sides:
            sides[name] = _answered(source, name, prompts, asked, models, progress)
    replies = [sides[name].replies for name in SIDES]
    divergence = None
    if models is not None:
        known = _known_prompts(sides)
        if baseline.kind == current.kind == "adapter":
            divergence = models.divergences(*replies, known)
        replies = [models.with_states(side, known) for side in replies]
    progress.say(f"Comparing {' and '.join(str(len(side)) for side in replies)} answers ...")
    record = drift_record(*replies, names=(baseline.label, current.label), margins=asked.margins, alpha=asked.alpha,
                          token_divergence=divergence, seed=asked.seed)
    record = {"kind": "drift", "at": datetime.now(UTC).isoformat(timespec="seconds"), **record,
              "asked": _as_asked(asked)}
    folder = RunFolder.create(out) if out is not None else RunFolder.named("drift")
    for name in SIDES:
        if sides[name].source.kind != "file":
            write_jsonl(folder.path / f"{name}.jsonl", answer_rows(
                sides[name].replies, prompts, at=record["at"], source=sides[name].source.label))
    folder.write_json("drift.json", record)
    return {**record, "folder": str(folder.path), "page": str(write_drift_page(record, folder.path / "drift.html"))}


def keep_answers(source: Source, asked: Asked, *, out: Path | None = None, progress: Progress) -> Path:
    """Write what one side answers now to a file that later answers can be compared with."""
    if source.kind == "file":
        raise ConfigError(f"{source.name}: is a file of answers already; give a second side to compare it with")
    RunFolder.refuse_taken(out)
    prompts = _asked_prompts({}, asked)
    asked = replace(asked, model=_base_of(asked, source))
    models = None
    if source.kind == "adapter":
        models = _models(asked, progress)
        models.hold(source, SIDES[0])
    side = _answered(source, SIDES[0], prompts, asked, models, progress)
    folder = RunFolder.create(out) if out is not None else RunFolder.named("answers")
    path = folder.path / "answers.jsonl"
    write_jsonl(path, answer_rows(side.replies, prompts, source=source.label,
                                  at=datetime.now(UTC).isoformat(timespec="seconds")))
    return path


def chart_history(paths: Sequence[Path], *, out: Path | None = None) -> dict[str, Any]:
    """Charts over the records of `drift.json` files, in the order they were measured in."""
    records = sorted(map(read_record, paths), key=lambda record: str(record["at"]))
    charts = release_charts(records)
    folder = RunFolder.create(out) if out is not None else RunFolder.named("drift-history")
    folder.write_json("history.json", charts)
    return {**charts, "folder": str(folder.path),
            "page": str(write_history_page(charts, folder.path / "history.html"))}


def read_record(path: Path) -> dict[str, Any]:
    """A `drift.json`. DataError where it is none."""
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise DataError(f"{path}: no such file") from error
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: is no drift.json of rlhflab drift: {error}") from error
    wanted = {"at": str, "baseline": str, "current": str, "measures": list}
    wrong = next((key for key, kind in wanted.items() if not isinstance(record, dict)
                  or not isinstance(record.get(key), kind)), None)
    if wrong is None:
        wrong = next(("measures" for row in record["measures"] if not isinstance(row, dict)
                      or not {"name", "z", "signed"} <= row.keys()), None)
    if wrong is not None:
        raise DataError(f"{path}: is no drift.json of rlhflab drift: {wrong!r} is missing or not what it should be")
    return dict(record)


# -- the two sides ---------------------------------------------------------------------------------------------------


def _read(baseline: Source, current: Source, asked: Asked, progress: Progress) -> dict[str, Side]:
    """The sides that are files."""
    sides: dict[str, Side] = {}
    for name, source in zip(SIDES, (baseline, current), strict=True):
        if source.kind == "file":
            replies, prompts = read_replies(source, outcomes=asked.outcomes)
            progress.say(f"{source.label}: {len(replies)} answers to {len({r.prompt for r in replies})} prompts")
            sides[name] = Side(source=source, replies=replies, prompts=prompts)
    return sides


def _asked_prompts(sides: Mapping[str, Side], asked: Asked) -> list[Prompt]:
    """What a side that answers now is asked: --prompts, else the prompts of the file it is compared with."""
    if asked.prompts is not None or not sides:
        return prompts_named(asked.prompts or DEFAULT_PROMPTS, asked.n, seed=asked.seed)
    if len(sides) == len(SIDES):
        return []
    (side,) = sides.values()
    if not side.prompts:
        raise DataError(f"{side.source.name}: its rows name prompts by id only, which nobody can ask again; give the "
                        "prompts with --prompts")
    return list(side.prompts)[:asked.n]


def _known_prompts(sides: Mapping[str, Side]) -> list[Prompt]:
    """The prompts of both sides. DataError where an answer's prompt has no text, which a model has to read."""
    known = {prompt_key(prompt.messages): prompt for side in sides.values() for prompt in side.prompts}
    for side in sides.values():
        if any(reply.prompt not in known for reply in side.replies):
            raise DataError(f"{side.source.name}: has rows that name their prompt by id only; a model that embeds "
                            "answers has to read it, so leave --model out")
    return list(known.values())


def _answered(source: Source, side: str, prompts: Sequence[Prompt], asked: Asked, models: Any,
              progress: Progress) -> Side:
    """A side that answers now. Each side has seeds of its own, since equal seeds would tie the answers together."""
    seed = 2 * asked.seed + SIDES.index(side)
    if source.kind == "adapter":
        replies = models.answer(side, prompts, samples=asked.samples, seed=seed)
    else:
        from rlhflab.runs.drift_models import ask_server

        replies = ask_server(source, prompts, samples=asked.samples, max_new_tokens=asked.max_new_tokens,
                             temperature=asked.temperature, token_env=asked.token_env, seed=seed, progress=progress)
    return Side(source=source, replies=replies, prompts=prompts)


def _base_of(asked: Asked, *sources: Source) -> str:
    """--model, else the base that an adapter names."""
    return asked.model or next((source.base for source in sources if source.base), asked.default_model)


def _models(asked: Asked, progress: Progress) -> Any:
    from rlhflab.runs.drift_models import Models

    assert asked.model is not None
    return Models(asked.model, max_new_tokens=asked.max_new_tokens,
                  temperature=asked.temperature, progress=progress)


def _as_asked(asked: Asked) -> dict[str, Any]:
    """What the record keeps of how it was asked."""
    return {key: getattr(asked, key) for key in ("model", "prompts", "samples", "max_new_tokens", "temperature")}


def sides_of(baseline: str, current: str | None, *, rows: tuple[str | None, str | None] = (None, None),
             served_as: Sequence[str] = (), registry: Path = Path("registry")) -> tuple[Source, Source | None]:
    """Both sides by name. One file with two --...-rows is both; one --served-as is that of both sides."""
    if len(served_as) > len(SIDES):
        raise ConfigError(f"--served-as: at most one a side, found {len(served_as)}")
    if current is None and all(rows):
        current = baseline
    served = [served_as[0], served_as[-1]] if served_as else [None, None]
    first = source_of(baseline, where=SIDES[0], only=rows[0], served_as=served[0], registry=registry)
    second = None if current is None else source_of(current, where=SIDES[1], only=rows[1], served_as=served[1],
                                                    registry=registry)
    if served_as and "server" not in {first.kind, second.kind if second else None}:
        raise ConfigError("--served-as: goes with a side that is an address, and none is")
    if second is not None and first == second and first.kind == "file":
        raise ConfigError(f"{baseline}: is on both sides; tell them apart with --baseline-rows and --current-rows")
    return first, second
