"""`rlhflab experiment reward-hacking`: a start policy, a pool of its answers, the arms, the verdict, the page.

What the arms do is in `experiment.py`. A stopped experiment goes on after its last finished part, and several
processes may share its arms.
"""

import os
import subprocess
import sys
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import yaml

from rlhflab.analysis.hacking import Thresholds
from rlhflab.analysis.report import write_report
from rlhflab.analysis.report_data import section
from rlhflab.config import read_run
from rlhflab.errors import ConfigError, RunError
from rlhflab.model.load import model_folder
from rlhflab.progress import Progress
from rlhflab.registry.records import ROLE
from rlhflab.runs.arms import in_order
from rlhflab.runs.experiment import Experiment, Protocol
from rlhflab.runs.folder import Record, RunFolder, environment
from rlhflab.runs.lab import Lab
from rlhflab.runs.preferences import collect_pairs, write_pool
from rlhflab.runs.recipes import recipe
from rlhflab.runs.release import Release, decide, trained_arms
from rlhflab.runs.stage_log import StageLog
from rlhflab.runs.stages import run_stage
from rlhflab.scenarios import scenario as scenario_named
from rlhflab.suites import read_policy

KIND = "experiment"


@dataclass(frozen=True, slots=True, kw_only=True)
class Gating:
    """How the release gate is asked of the hacked and the cured policy of the first seed (criterion 8)."""

    prompts: int | None = None
    """Of each suite, at most; as its policy says where None."""
    transcripts: int = 8
    """Prompts whose greedy answers are kept of each adapter."""


def run_hacking(protocol: Protocol, *, start: Path | None, pool_prompts: int, out: Path | None, progress: Progress,
                jobs: int = 1, gating: Gating | None = None) -> Path:
    """A new experiment from the adapter `start`, or from an SFT of its own. Returns its folder.

    `jobs`: processes that share the arms. `gating`: of the release at the end; none without it.
    """
    protocol = replace(protocol, arms=in_order(protocol.arms))
    for needed in ("hack", "targeted"):
        if needed not in protocol.arms:
            raise ConfigError(f"arms: {needed} has to be among them, since the criteria compare with it")
    model_folder(protocol.model)
    if start is not None and not (start / "adapter_config.json").is_file():
        raise ConfigError(f"--start {start}: is not an adapter folder")
    if start is not None and gating is not None and not (start / ROLE).is_file():
        raise ConfigError(f"--release: {start} has no {ROLE}, which says what base it belongs to, so a rollback could "
                          "not be proven; an adapter that the lab trained has one")
    folder = RunFolder.create(out) if out is not None else RunFolder.named("reward-hacking")
    folder.write_yaml("config.yaml", {"kind": KIND, "start": None if start is None else str(start),
                                      "pool_prompts": pool_prompts, "gating": gating and asdict(gating),
                                      "protocol": _plain(asdict(protocol))})
    return _run(HackingRun(folder, protocol, start=start, pool_prompts=pool_prompts, progress=progress,
                           gating=gating), jobs)


def resume_hacking(path: Path, *, progress: Progress, jobs: int = 1) -> Path:
    """Go on with a stopped experiment. RunError where the folder is none."""
    return _run(stored_experiment(path, progress), jobs)


def share_hacking(path: Path, *, progress: Progress) -> None:
    """Do those arms of an experiment that no other process does. RunError where its start or pool is not there yet."""
    job = stored_experiment(path, progress)
    if not (job.start / "adapter_config.json").is_file() or not (path / "pool.jsonl").is_file():
        raise RunError(f"{path}: has no start and pool yet, so there are no arms to share")
    job.experiment.share()


def stored_experiment(path: Path, progress: Progress) -> "HackingRun":
    """The experiment in a folder, as it was begun. RunError where there is none, or one of another version."""
    folder = RunFolder(path)
    settings = yaml.safe_load((path / "config.yaml").read_text()) if folder.has("config.yaml") else {}
    if settings.get("kind") != KIND:
        raise RunError(f"{path}: is not the folder of an experiment")
    try:
        stored = _tuples(settings["protocol"])
        protocol = Protocol(**{**stored, "thresholds": Thresholds(**_tuples(stored["thresholds"]))})
        gating = Gating(**settings["gating"]) if settings.get("gating") else None
    except (KeyError, TypeError) as error:
        raise RunError(f"{path / 'config.yaml'}: is of another version, whose settings this one does not know "
                       f"({error})") from error
    start = None if settings["start"] is None else Path(settings["start"])
    return HackingRun(folder, protocol, start=start, pool_prompts=settings["pool_prompts"], progress=progress,
                      gating=gating)


def _run(job: "HackingRun", jobs: int) -> Path:
    record = Record(job.folder, KIND)
    try:
        job.run(jobs)
    except BaseException as error:
        record.close("stopped")
        if isinstance(error, KeyboardInterrupt):
            job.progress.say("Stopped. To go on after the last finished part: rlhflab experiment reward-hacking "
                             f"--resume {job.folder.path}")
        raise
    record.close("finished")
    return job.folder.path


class HackingRun:
    """The parts of one experiment, in order."""

    def __init__(self, folder: RunFolder, protocol: Protocol, *, start: Path | None, pool_prompts: int,
                 progress: Progress, gating: Gating | None = None) -> None:
        self.folder, self.protocol, self.progress = folder, protocol, progress
        self.given_start, self.pool_prompts, self.gating = start, pool_prompts, gating
        self.task = scenario_named(protocol.scenario)
        self.summary: dict[str, Any] = folder.read_json("summary.json") if folder.has("summary.json") else {
            "model": protocol.model, "seed": protocol.seeds[0]}
        self._lab: Lab | None = None
        self.experiment = Experiment(folder, lambda: self.lab, self.task, protocol, start=self.start,
                                     pool=folder.path / "pool.jsonl")

    @property
    def start(self) -> Path:
        """The adapter all policies begin as."""
        return self.given_start or self.folder.path / "sft" / "roles" / "policy"

    @property
    def lab(self) -> Lab:
        """The model, loaded when the first part needs it."""
        if self._lab is None:
            self.progress.say(f"Loading {self.protocol.model} ...")
            run = read_run("sft", recipe("sft"), ["--model", self.protocol.model])
            self._lab = Lab.load(run.model, dtype=run.dtype, device=run.device, progress=self.progress)
        return self._lab

    def run(self, jobs: int) -> None:
        """Every part that has not run yet, by `jobs` processes, then the report."""
        self.progress.say(f"Writing to {self.folder.path}")
        self.summary |= {key: value for key, value in environment().items() if key != "lab"}
        log = StageLog(self.folder, self.summary)
        if self.given_start is None:
            log.run("sft", self.learn_start)
        log.run("pool", self.fill_pool)
        if jobs > 1:
            log.run("arms", lambda: self.share_among(jobs))
        for name, work in self.experiment.parts():
            log.run(name, work)
        log.run("judge", self.judge)
        if self.gating is not None:
            release = self.release_of(self.gating)
            for name, work in release.parts():
                log.run(f"release: {name}", work)
            log.run("release: judge", partial(self.judge_release, release))
        self.folder.write_json("measures.json", [
            {"name": m.name, "says": m.says, "better": m.better} for m in self.task.measures])
        write_report(self.folder.path)

    def share_among(self, jobs: int) -> int:
        """Let `jobs` processes do all arms; what each of them says is in share-N.log. RunError where one fails."""
        self.experiment.register()
        command = [sys.executable, "-m", "rlhflab", "experiment", "reward-hacking", "--share", str(self.folder.path)]
        threads = str(max(1, (os.cpu_count() or 1) // jobs))
        logs = [self.folder.path / f"share-{number}.log" for number in range(1, jobs + 1)]
        self.progress.say(f"{jobs} processes share the arms; what they say is in {logs[0].parent}/share-*.log")
        running = []
        for path in logs:
            with path.open("w") as log:
                running.append(subprocess.Popen(command, stdout=log, stderr=log,
                                                env={**os.environ, "OMP_NUM_THREADS": threads}))
        try:
            failed = [path for path, process in zip(logs, running, strict=True) if process.wait() != 0]
        finally:
            for process in running:
                process.terminate()
        if failed:
            raise RunError(f"{failed[0]}: a process that shared the arms ended early; its last line says why. Those "
                           "that are done are kept, and --resume goes on")
        return 0

    def learn_start(self) -> int:
        """SFT by its recipe."""
        home = self.folder.path / "sft"
        home.mkdir(exist_ok=True)
        flags = ["--model", self.protocol.model, "--data", self.task.name, "--gold", self.task.name,
                 *self.protocol.overrides]
        return int(run_stage(read_run("sft", recipe("sft"), flags), self.lab, RunFolder(home))["tokens"])

    def fill_pool(self) -> int:
        """Answers of the start, which annotators of every kind judge."""
        self.lab.model.load_role("sampler", self.start)
        collected = collect_pairs(self.lab, self.task, role="sampler", prompts=self.pool_prompts,
                                  seed=self.protocol.seeds[0])
        self.lab.drop_roles()
        write_pool(self.folder.path / "pool.jsonl", collected.pool)
        return collected.counts["tokens"]

    def judge(self) -> int:
        """What was shown and what was not."""
        self.summary["hacking"] = self.experiment.result()
        self.folder.write_json("story.json", self.experiment.story())
        return 0

    def release_of(self, gating: Gating) -> Release:
        """The release desk: the start is active, the hacked and the cured policy of the first seed want to be."""
        rates = section(self.summary, "hacking", "arms")
        trained = trained_arms(
            self.experiment.home(self.protocol.seeds[0]), start=self.start, scenario=self.task.name,
            method=self.protocol.method.upper(), rates=rates, start_rates=section(rates, "start", "rates"))
        prompts = self.task.prompts("evaluation", gating.transcripts, seed=self.protocol.seeds[0])
        return Release(self.folder, lambda: self.lab, trained, read_policy("demo.yaml").first(gating.prompts), prompts,
                       self.progress, by="the experiment")

    def judge_release(self, release: Release) -> int:
        """Whether the gate kept the hacked policy out, and the way back was proven: criterion 8."""
        self.summary["release"] = release.result()
        self.folder.write_json("release/story.json", release.story())
        decide(self.summary["hacking"], self.summary["release"])
        return 0


def _tuples(values: dict[str, Any]) -> dict[str, Any]:
    """The values with tuples for lists again."""
    return {key: tuple(value) if isinstance(value, list) else value for key, value in values.items()}


def _plain(value: Any) -> Any:
    """Lists for tuples, which YAML's safe form does not know."""
    if isinstance(value, dict):
        return {key: _plain(each) for key, each in value.items()}
    return [_plain(each) for each in value] if isinstance(value, list | tuple) else value
