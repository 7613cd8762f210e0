"""`rlhflab data check`: reads the files once, runs every check on their columns, and compares with limits.

Nothing is judged here: the checks are in `analysis/data_checks`, what they read is in `data/survey`.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from rlhflab.analysis.data_checks import DataFinding, data_check
from rlhflab.analysis.data_checks.base import CannotSay
from rlhflab.data.chat import ChatFormat
from rlhflab.data.reading import Located, read_items
from rlhflab.data.splitting import prompt_of
from rlhflab.data.survey.columns import KINDS, BadRow, Look, Survey, survey
from rlhflab.data.survey.suites import Suite
from rlhflab.errors import ConfigError, DataError, ModelError
from rlhflab.progress import Progress
from rlhflab.scenarios import names, scenario
from rlhflab.suites import shipped, suite_named

SUITE_PROMPTS = 512
"""Prompts of a scenario's evaluation that are looked for, and of its regression suite."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Limit:
    """The largest rate that a check may find, and its options."""

    most: float | None = None
    options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """What a check of data is to do."""

    files: Sequence[Path]
    model: str | None
    """Counts tokens; None for no tokens."""
    max_length: int = 1024
    against: Sequence[str] = ()
    """Scenarios, behaviour suites, or files of prompts."""
    limits: Path | None = None
    form: str | None = None
    skip_bad: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Checked:
    """What was found."""

    survey: Survey
    findings: Sequence[DataFinding]
    limits: Sequence[Mapping[str, Any]]
    """check, limit, found (None where it could not run), exceeded."""
    record: Mapping[str, Any]
    """All of it as JSON values."""


def check_data(asked: Asked, *, progress: Progress) -> Checked:
    """Look at all files together; each is a split of its own where its rows name none.

    DataError at the first broken row unless `skip_bad`; rows with an empty text or two equal answers are findings, and
    never stop it. ConfigError for a limit of an unknown check.
    """
    limits = read_limits(asked.limits) if asked.limits else {}
    suites = tuple(suite_of(name) for name in asked.against)
    chat, problem = (None, "") if asked.model is None else chat_of(asked.model)
    bad: list[BadRow] = []
    with progress.track("reading", None) as track:
        look = Look(chat=chat, max_length=asked.max_length, suites=suites)
        seen = survey(_items(asked, bad, track.advance), look, bad=bad)
    seen = replace(seen, chat_problem=problem)
    if not seen.rows and not seen.bad:
        raise DataError(f"{asked.files[0]}: holds no row")
    findings = run_checks(seen, {name: limit.options for name, limit in limits.items()})
    kept = compared(findings, limits)
    return Checked(survey=seen, findings=findings, limits=kept, record=record_of(asked, seen, findings, kept))


def run_checks(seen: Survey, options: Mapping[str, Mapping[str, Any]]) -> list[DataFinding]:
    """What every check of the catalogue says; one that cannot be run says why."""
    found = []
    for entry in data_check.entries():
        check = data_check.bind(entry.name, options.get(entry.name, {}), where=entry.name)
        try:
            found.append(replace(check(seen), name=entry.name))
        except CannotSay as error:
            found.append(DataFinding(name=entry.name, verdict="not run", says=f"Not run: {error}."))
    return found


def read_limits(path: Path) -> dict[str, Limit]:
    """`duplicates: 0.01`, or `duplicates: {limit: 0.01, ...options}`. ConfigError names the file and the key."""
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ConfigError(f"{path}: no such file of limits") from error
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"{path}: cannot be read as YAML: {' '.join(str(error).split())}") from error
    if not isinstance(content, dict):
        raise ConfigError(f"{path}: limits are names of checks with numbers, found {type(content).__name__}")
    limits = {}
    for name, value in content.items():
        if name not in data_check.names():
            raise ConfigError(f"{path}: {name}: no such check; there are {', '.join(data_check.names())}")
        given = dict(value) if isinstance(value, dict) else {"limit": value}
        most = given.pop("limit", None)
        if (most is None and not given) or isinstance(most, bool) or not isinstance(most, int | float | None) or \
                (most is not None and not 0 <= most <= 1):
            raise ConfigError(f"{path}: {name}: a limit is a share from 0 to 1, found {most!r}")
        data_check.bind(name, given, where=f"{path}: {name}")
        limits[name] = Limit(most=most, options=given)
    return limits


def compared(findings: Sequence[DataFinding], limits: Mapping[str, Limit]) -> list[dict[str, Any]]:
    """Each limit beside what was found. A check that could not run does not keep its limit."""
    found = {finding.name: finding.limited for finding in findings}
    return [{"check": name, "limit": limit.most, "found": found[name],
             "exceeded": found[name] is None or found[name] > limit.most}  # type: ignore[operator]
            for name, limit in limits.items() if limit.most is not None]


def suite_of(name: str) -> Suite:
    """The prompts of a scenario's evaluation and regression, of a behaviour suite, or of a file; else DataError."""
    if name in names():
        task = scenario(name)
        prompts = [*task.prompts("evaluation", SUITE_PROMPTS), *task.prompts("regression", SUITE_PROMPTS)]
        return Suite.of(name, list(dict.fromkeys(prompt.messages[-1].content for prompt in prompts)))
    path, known = Path(name), [row["name"] for row in shipped()]
    if name in known or (path / "suite.yaml").is_file() or path.suffix in (".yaml", ".yml"):
        asked = dict.fromkeys(prompt.messages[-1].content for prompt in suite_named(name).prompts)
    elif path.exists():
        asked = dict.fromkeys(prompt_of(located.item)[-1].content for located in read_items(name))
    else:
        raise DataError(f"{name}: is neither a file nor a scenario or suite; there are {', '.join(known)}")
    return Suite.of(path.name, list(asked))


def chat_of(model: str) -> tuple[ChatFormat | None, str]:
    """The chat format of a model, without its weights, or why it can write no conversation."""
    from transformers import AutoTokenizer

    from rlhflab.model.load import model_folder

    folder, _ = model_folder(model)
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder)
    except (OSError, ValueError, KeyError) as error:
        raise ModelError(f"{model}: has no tokenizer that transformers can load: "
                         f"{' '.join(str(error).split())}") from error
    try:
        return ChatFormat(tokenizer), ""
    except ModelError as error:
        return None, str(error)


def _items(asked: Asked, bad: list[BadRow], advance: Any) -> Iterator[Located]:
    for path in asked.files:
        def tell(error: DataError, path: Path = path) -> None:
            if error.fault == "broken" and not asked.skip_bad:
                raise DataError(f"{error}; --skip-bad goes on and counts such rows") from error
            bad.append(BadRow(path, error.line, error.fault, str(error).removeprefix(f"{path}:{error.line}: ")))

        for located in read_items(path, form=asked.form, bad=tell):
            yield located
            advance()


def record_of(asked: Asked, seen: Survey, findings: Sequence[DataFinding],
              limits: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What `--json` prints and the page shows. Rows to drop are numbers of rows, so they stay out of it."""
    kinds = np.bincount(seen.kind, minlength=len(KINDS))
    return {
        "files": [str(path) for path in asked.files], "rows": seen.rows, "skipped": len(seen.bad),
        "kinds": {kind: int(n) for kind, n in zip(KINDS, kinds, strict=True) if n},
        "prompts": int(np.unique(seen.prompt).size), "splits": list(seen.splits), "model": asked.model,
        "max_length": asked.max_length if asked.model else None, "limits": list(limits),
        "findings": [{
            "name": finding.name, "verdict": finding.verdict, "says": finding.says, "count": finding.count,
            "rate": finding.rate._asdict() if finding.rate else None, "of": finding.of, "limited": finding.limited,
            "examples": [example._asdict() for example in finding.examples], "next": finding.next,
            "details": dict(finding.details)} for finding in findings]}
