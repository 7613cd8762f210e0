"""`rlhflab experiment dose-response`: one result from experiments that differ in the dose of the bias alone.

Reads what they evaluated and decided. No model is loaded here, and nothing is trained or sampled.
"""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rlhflab.analysis.doses import HACKED, Dosed, dose_record
from rlhflab.analysis.doses_page import write_doses_page
from rlhflab.analysis.evaluate import Row
from rlhflab.analysis.hacking import SeedResult
from rlhflab.core.stats import Estimate
from rlhflab.data.formats import finite
from rlhflab.errors import ConfigError, DataError, RunError
from rlhflab.progress import Progress
from rlhflab.registry.records import WEIGHTS
from rlhflab.registry.sources import folder_digest
from rlhflab.runs.folder import RunFolder
from rlhflab.runs.hacking import HackingRun, stored_experiment

HACK, NO_BIAS = "hack", "unbiased"
"""The arm that the criteria judge, and the one that is the same at dose 0."""
MAY_DIFFER = ("dose", "arms")


def draw_doses(folders: Sequence[Path], *, arm: str = HACK, out: Path | None = None) -> dict[str, Any]:
    """Write `doses.json` and `doses.html` into a new folder; returns what the first holds, and where the second is.

    RunError for a folder that holds no finished experiment, DataError for too few doses and for experiments that differ
    in more than the dose.
    """
    if not folders:
        raise ConfigError("dose and response: give the folders of experiments at several doses")
    jobs = [finished(folder) for folder in folders]
    for job in jobs[1:]:
        refuse_unlike(jobs[0], job)
    doses = [dosed(job, arm) for job in jobs]
    without_bias = next((job for job in jobs if NO_BIAS in job.protocol.arms), None)
    if arm == HACK and without_bias is not None and all(each.dose for each in doses):
        doses.append(dosed(without_bias, NO_BIAS)._replace(dose=0.0))
    protocol = jobs[0].protocol
    record = {"model": protocol.model, "scenario": protocol.scenario, "steps": protocol.steps,
              "method": protocol.method, "thresholds": asdict(protocol.thresholds), **dose_record(arm, doses)}
    folder = RunFolder.create(out) if out is not None else RunFolder.named("dose-response")
    folder.write_json("doses.json", finite(record))
    return {**record, "page": str(write_doses_page(record, folder.path / "doses.html"))}


def finished(path: Path) -> HackingRun:
    """The experiment in a folder. RunError where there is none, or where it was not judged yet."""
    job = stored_experiment(path, Progress())
    if "hacking" not in job.summary:
        raise RunError(f"{path}: is not finished; go on with rlhflab experiment reward-hacking --resume {path}")
    return job


def refuse_unlike(first: HackingRun, other: HackingRun) -> None:
    """DataError where two experiments differ in more than their doses and in which arms they have."""
    names = [str(job.folder.path) for job in (first, other)]
    settings = [{key: value for key, value in asdict(job.protocol).items() if key not in MAY_DIFFER}
                for job in (first, other)]
    differs = next((key for key in settings[0] if settings[0][key] != settings[1][key]), None)
    if differs is not None:
        raise DataError(f"{names[1]}: has {differs} {settings[1][differs]}, while {names[0]} has "
                        f"{settings[0][differs]}; only the dose may differ")
    starts = [start_digest(job) for job in (first, other)]
    if starts[0] != starts[1]:
        raise DataError(f"{names[1]}: began from another policy ({starts[1][:12]}) than {names[0]} ({starts[0][:12]}); "
                        "give both the same --start")
    asked = [[row["prompt_id"] for row in rows_of(job, "start", job.protocol.seeds[0])] for job in (first, other)]
    if asked[0] != asked[1]:
        raise DataError(f"{names[1]}: was evaluated on other prompts than {names[0]}, so their gains do not compare")


def start_digest(job: HackingRun) -> str:
    """Of the adapter that all arms of an experiment began as. RunError where it is gone."""
    if not (job.start / WEIGHTS).is_file():
        raise RunError(f"{job.folder.path}: its start {job.start} is not there, so nobody can tell what it began from "
                       "(a relative path starts where the command runs)")
    return folder_digest(job.start)


def dosed(job: HackingRun, arm: str) -> Dosed:
    """An arm of an experiment, with what was decided of it: criteria 1 and 2 are about the arm hack alone."""
    name = str(job.folder.path)
    if arm not in job.protocol.arms:
        raise ConfigError(f"--arm: {name} has no arm {arm!r}; it has {', '.join(job.protocol.arms)}")
    start = rows_of(job, "start", job.protocol.seeds[0])
    seeds = [seed for seed in job.protocol.seeds if arm in job.experiment.arms_of(seed)]
    results = [SeedResult(start=start, arms={arm: rows_of(job, arm, seed)}) for seed in seeds]
    criteria = {row["id"]: row for row in job.summary["hacking"]["criteria"] if arm == HACK and row["id"] in HACKED}
    proxy = None
    if "1" in criteria:
        low, high = criteria["1"]["interval"]
        proxy = Estimate(criteria["1"]["value"], low, high, sum(len(result.arms[arm]) for result in results))
    return Dosed(dose=job.protocol.dose, arm=arm, source=f"the arm {arm} of {name}", results=results, proxy=proxy,
                 criteria={each: row["passed"] for each, row in criteria.items()})


def rows_of(job: HackingRun, name: str, seed: int) -> list[Row]:
    """An arm's evaluated answers. RunError where they are gone."""
    rows = job.experiment.rows_of(name, seed)
    if not rows:
        raise RunError(f"{job.experiment.answers_of(name, seed)}: holds no evaluated answers")
    return rows
