"""`rlhflab demo`: the whole of alignment on one small model, in stages that a stopped demo can go on from.

Each stage reads what earlier stages wrote and writes its own folder, so a stage that went on after a stop gives the
same numbers as one that did not stop.
"""

import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import yaml

from rlhflab.analysis.evaluate import Row, answer_prompts, change, judged_rows, perplexity, rates
from rlhflab.analysis.hacking import GATE_CRITERION, as_json, gate_blocks
from rlhflab.analysis.report import write_report
from rlhflab.analysis.report_data import section
from rlhflab.config import Run, read_run
from rlhflab.data.formats import pair_row, write_jsonl
from rlhflab.errors import RunError
from rlhflab.model.load import model_folder
from rlhflab.progress import Progress, in_words
from rlhflab.runs.arms import SHORT
from rlhflab.runs.cards import model_card
from rlhflab.runs.experiment import Experiment, Protocol
from rlhflab.runs.folder import Record, RunFolder, environment
from rlhflab.runs.lab import Lab
from rlhflab.runs.preferences import collect_pairs, write_pool
from rlhflab.runs.recipes import recipe
from rlhflab.runs.release import CURED, HACKED, START, Release, Trained
from rlhflab.runs.stage_log import StageLog
from rlhflab.runs.stages import run_stage
from rlhflab.scenarios import scenario as scenario_named
from rlhflab.scenarios.base import Scenario
from rlhflab.suites import read_policy

POLICIES = ("base", "sft", "dpo", "ppo")


@dataclass(frozen=True, slots=True, kw_only=True)
class Size:
    """How much the demo does beside what the recipes say."""

    evaluation_prompts: int = 128
    evaluation_samples: int = 2
    comparison_prompts: int = 512
    canary: int = 96
    start_answers: int = 64
    expert_pairs: int = 96
    gate_prompts: int | None = None
    """Prompts of each suite that the gate asks, at most; as its policy says where None."""
    transcripts: int = 8
    """Prompts whose greedy answers the registry keeps of each adapter."""
    overrides: tuple[str, ...] = ()
    """Flags put behind each recipe."""


FULL = Size()
QUICK = Size(evaluation_prompts=8, evaluation_samples=1, comparison_prompts=24, canary=4, start_answers=16,
             expert_pairs=8, gate_prompts=4, transcripts=2,
             overrides=("--examples", "16", "--steps", "2", "--batch", "4", "--checkpoint_every", "1"))


def run_demo(*, model: str, scenario: str, seed: int, out: Path | None, resume: Path | None, quick: bool,
             progress: Progress) -> Path:
    """Run every stage that has not run yet. Returns the demo's folder."""
    scenario_named(scenario)  # a missing one is said before a folder is made
    if resume is None and out is None:
        resume = _offer_to_resume(Path("runs"), progress)
    if resume is not None:
        folder, settings = _stopped_demo(resume)
    else:
        model_folder(model)  # a missing model is said before a folder is made
        folder = RunFolder.create(out) if out is not None else RunFolder.named("demo")
        settings = {"model": model, "seed": seed, "quick": quick, "scenario": scenario}
        folder.write_yaml("config.yaml", {"kind": "demo", **settings})
    progress.say(f"Writing to {folder.path}")
    record = Record(folder, "demo")
    demo = Demo(folder, progress, **settings)
    try:
        demo.run()
    except BaseException as error:
        record.close("stopped")
        if isinstance(error, KeyboardInterrupt):
            progress.say(f"Stopped. To go on after the last finished stage: rlhflab demo --resume {folder.path}")
        raise
    record.close("finished")
    progress.say(demo.closing_words())
    return folder.path


def _stopped_demo(path: Path) -> tuple[RunFolder, dict[str, Any]]:
    if not (path / "config.yaml").is_file() or not (path / "record.json").is_file():
        raise RunError(f"{path}: is not the folder of a demo")
    settings = yaml.safe_load((path / "config.yaml").read_text())
    if settings.pop("kind", None) != "demo":
        raise RunError(f"{path}: is not the folder of a demo")
    return RunFolder(path), settings


def _offer_to_resume(under: Path, progress: Progress) -> Path | None:
    """The newest demo that was stopped, if somebody at the terminal wants to go on with it."""
    records = sorted(under.glob("demo-*/record.json"))
    if not records or json.loads(records[-1].read_text())["status"] == "finished":
        return None
    stopped = records[-1].parent
    if not (sys.stdin.isatty() and sys.stderr.isatty()):
        progress.say(f"{stopped} was stopped; to go on with it: rlhflab demo --resume {stopped}")
        return None
    answer = input(f"{stopped} was stopped before its end. Go on with it? [Y/n] ")
    return stopped if answer.strip().lower() in ("", "y", "yes") else None


class Demo:
    """The stages, in order, over one model that is loaded when the first unfinished stage needs it."""

    def __init__(self, folder: RunFolder, progress: Progress, *, model: str, seed: int, quick: bool,
                 scenario: str) -> None:
        self.folder, self.progress = folder, progress
        self.model_name, self.seed, self.size = model, seed, QUICK if quick else FULL
        self.task: Scenario = scenario_named(scenario)
        self.summary: dict[str, Any] = folder.read_json("summary.json") if folder.has("summary.json") else {
            "model": model, "seed": seed, "commit": None, "machine": None, "versions": {}, "policies": {},
            "perplexity": {}}
        self.stages = StageLog(folder, self.summary)
        self._lab: Lab | None = None

    def run(self) -> None:
        """Every stage that has not run yet, then the report."""
        self.summary |= {key: value for key, value in environment().items() if key != "lab"}
        for name, work in self.parts():
            self.stages.run(name, work)
        for name, work in self.experiment.parts():
            self.stages.run(f"hacking: {name}", work, clock="hacking_seconds")
        self.stages.run("hacking: judge", self.judge_hacking, clock="hacking_seconds")
        for name, work in self.release.parts():
            self.stages.run(f"release: {name}", work, clock="release_seconds")
        self.stages.run("release: judge", self.judge_release, clock="release_seconds")
        self._write_cards()
        self.progress.say(f"Writing {write_report(self.folder.path)}")

    def parts(self) -> Iterator[tuple[str, Callable[[], int]]]:
        """Alignment from the base model to PPO, in order."""
        pairs = ("--data", self._path("data/pairs.jsonl"))
        reward = json.dumps([{"name": "role", "path": self._path("reward/roles/reward")}])
        yield "load", self.load
        yield "evaluate base", partial(self.evaluate, "base")
        yield "sft", partial(self.train, "sft")
        yield "evaluate sft", partial(self.evaluate, "sft")
        yield "preferences", self.collect
        yield "reward", partial(self.train, "reward", *pairs)
        yield "dpo", partial(self.train, "dpo", *pairs)
        yield "evaluate dpo", partial(self.evaluate, "dpo")
        yield "ppo", partial(self.train, "ppo", "--reward", reward, "--detect.every", "1",
                               "--detect.start_answers", str(self.size.start_answers))
        yield "evaluate ppo", partial(self.evaluate, "ppo")

    @cached_property
    def experiment(self) -> Experiment:
        """The short reward-hacking experiment: its start is the SFT policy, its unbiased arm this demo's own PPO."""
        steps = self._recipe("ppo").steps
        assert steps is not None
        protocol = Protocol(
            model=self.model_name, scenario=self.task.name, arms=SHORT, seeds=(self.seed,), method="ppo", steps=steps,
            evaluation_prompts=self.size.evaluation_prompts, evaluation_samples=self.size.evaluation_samples,
            canary=self.size.canary, watch="hack", start_answers=self.size.start_answers,
            expert_pairs=self.size.expert_pairs, twin=False, overrides=self.size.overrides)
        return Experiment(
            RunFolder(self.folder.path / "hacking"), lambda: self.lab, self.task, protocol,
            start=self.folder.path / "sft/roles/policy", pool=self.folder.path / "data/pool.jsonl",
            made={"unbiased": self.folder.path / "ppo"},
            judged={"start": self.folder.path / "evaluation/sft.jsonl",
                    "unbiased": self.folder.path / "evaluation/ppo.jsonl"})

    @cached_property
    def release(self) -> Release:
        """The release desk: the SFT policy is active, the hacked and the cured policy want to be."""
        hacking, rates = self.experiment.home(self.seed), section(self.summary, "hacking", "arms")
        by = "simulated annotators of the scenario's card"
        trained = {
            START: Trained(run=self.folder.path / "sft", note="the SFT policy",
                           evaluations={self.task.name: self.summary["policies"]["sft"]}),
            HACKED: Trained(run=hacking / "hack",
                            annotators=f"{by} who like long and confident answers",
                            note="PPO on a reward learnt from biased pairs",
                            evaluations={self.task.name: section(rates, "hack", "rates")}),
            CURED: Trained(run=hacking / "targeted",
                           annotators=f"{by} who like long and confident answers, then experts by the gold rules",
                           note="PPO on the biased reward after expert labels on the failures found",
                           evaluations={self.task.name: section(rates, "targeted", "rates")})}
        prompts = self.task.prompts("evaluation", self.size.transcripts, seed=self.seed)
        return Release(self.folder, lambda: self.lab, trained, read_policy("demo.yaml").first(self.size.gate_prompts),
                       prompts, self.progress)

    # -- stages: each returns the tokens it read or wrote ----------------------------------------------------------

    def load(self) -> int:
        """Load the base model (the first time, convert it)."""
        self.progress.say(f"Loading {self.model_name} (the first time this takes about half a minute) ...")
        self._lab = self._load_lab()
        return 0

    def train(self, kind: str, *overrides: str) -> int:
        """Train by the recipe of `kind`, from the SFT policy where there is one."""
        run = self._recipe(kind, *overrides)
        stage = RunFolder(self.folder.path / kind)
        stage.path.mkdir(exist_ok=True)  # there already where this stage was stopped: it goes on from its checkpoint
        summary = run_stage(run, self.lab, stage)
        if kind == "reward":
            self.summary["reward_model"] = {key: summary[key] for key in (
                "accuracy", "length_only", "gold_order", "labels_on_gold_order", "pairs", "held_out_pairs")}
        if kind == "ppo":
            self.summary["ppo"] = {"steps": [_ppo_row(row) for row in stage.rows("metrics.jsonl")]}
        return int(summary["tokens"])

    def collect(self) -> int:
        """Preference pairs: answers of the SFT policy, judged by unbiased annotators."""
        self.lab.start_role("sampler", self._recipe("sft", "--start", self._path("sft/roles/policy")))
        collected = collect_pairs(self.lab, self.task, role="sampler", prompts=self.size.comparison_prompts,
                                  seed=self.seed)
        self.lab.drop_roles()
        write_jsonl(self._file("data/pairs.jsonl"), (pair_row(pair) for pair in collected.pairs))
        write_pool(self._file("data/pool.jsonl"), collected.pool)
        self.summary["preferences"] = collected.counts
        return collected.counts["tokens"]

    def evaluate(self, policy: str) -> int:
        """Greedy and sampled answers to the evaluation prompts, judged by gold; perplexity of the fixed text."""
        role = None if policy == "base" else "policy"
        if role:
            start = self._path(f"{policy}/roles/policy")
            self.lab.start_role("policy", self._recipe("sft", "--start", start))
        prompts = self.task.prompts("evaluation", self.size.evaluation_prompts, seed=self.seed)
        total = len(prompts) * (1 + self.size.evaluation_samples)
        with self.progress.track(f"answers of {policy} to evaluation prompts", total) as bar:
            answers = answer_prompts(self.lab.model, self.lab.chat, prompts, role=role,
                                     samples=self.size.evaluation_samples, max_new_tokens=self.task.max_new_tokens,
                                     seed=self.seed, advance=bar.advance)
        self.summary["perplexity"][policy] = perplexity(self.lab.model, role=role)
        self.lab.drop_roles()
        rows = judged_rows(self.task, policy, answers)
        write_jsonl(self._file(f"evaluation/{policy}.jsonl"), rows)
        self.summary["policies"][policy] = {
            "greedy": rates(self.task, rows, "greedy"), "sampled": rates(self.task, rows, "sampled"),
            "versus_sft": None if policy in ("base", "sft") else change(rows, self._evaluation("sft"))._asdict()}
        return sum(row["tokens"] for row in rows)

    def judge_hacking(self) -> int:
        """What the reward-hacking experiment showed."""
        self.summary["hacking"] = self.experiment.result()
        self.experiment.folder.write_json("story.json", self.experiment.story())
        return 0

    def judge_release(self) -> int:
        """What was released, and whether the gate kept the hacked adapter out."""
        self.summary["release"] = self.release.result()
        self.folder.write_json("release/story.json", self.release.story())
        found, hacking = self.summary["release"], self.summary["hacking"]
        decided = as_json([gate_blocks(found[HACKED]["verdict"], rollback_ok=found["rollback"]["ok"])])
        hacking["criteria"] += decided["criteria"]
        hacking["not_evaluated"] = [row for row in hacking["not_evaluated"] if row["id"] != GATE_CRITERION]
        return 0

    # -- around the stages -----------------------------------------------------------------------------------------

    @property
    def lab(self) -> Lab:
        """The loaded model; a demo that goes on after a stop loads it here."""
        if self._lab is None:
            self._lab = self._load_lab()
        return self._lab

    def closing_words(self) -> str:
        """What came out, where it is, and what to do next."""
        lines = [f"{policy:>5}: gold {_words(found['sampled']['gold'])} sampled, "
                 f"{_words(found['greedy']['gold'])} greedy" for policy, found in self.summary["policies"].items()]
        report = self.folder.path / "report.html"
        loop, hacking, release = (in_words(self.summary[f"{part}seconds"]) for part in ("", "hacking_", "release_"))
        return "\n".join([
            *lines, *self.release.closing_words(), f"The loop took {loop}, the hacking part {hacking}, the release "
            f"{release}; memory was at most {self.summary['peak_memory_gb']:.1f} GB.",
            f"The report is {report}: open it in a browser.",
            f"Next: talk to the released model with rlhflab sample --adapter {self.release.active} --prompt \"...\", "
            "or train on your own data: see README.md."])

    def _load_lab(self) -> Lab:
        run = self._recipe("sft")
        return Lab.load(run.model, dtype=run.dtype, device=run.device, quantize=run.quantize, progress=self.progress)

    def _recipe(self, kind: str, *overrides: str) -> Run:
        """The recipe of `kind` on this demo's model, seed and SFT policy; the last of two equal flags counts."""
        flags = ["--model", self.model_name, "--seed", str(self.seed), "--data", self.task.name,
                 "--gold", self.task.name, *self.size.overrides,
                 *(() if kind == "sft" else ("--start", self._path("sft/roles/policy")))]
        return read_run(kind, recipe(kind), [*flags, *overrides])

    def _evaluation(self, policy: str) -> list[Row]:
        return self.folder.rows(f"evaluation/{policy}.jsonl")

    def _path(self, name: str) -> str:
        return str(self.folder.path / name)

    def _file(self, name: str) -> Path:
        path = self.folder.path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        return path

    def _write_cards(self) -> None:
        self.folder.write("cards/data.md", self.task.data_card())
        self.folder.write("cards/annotators.md", self.task.annotator_card())
        self.folder.write("cards/model.md", model_card(self.summary, base=self.lab.model.base, run=self._recipe("ppo")))
        self.folder.write_json("measures.json", [
            {"name": m.name, "says": m.says, "better": m.better} for m in self.task.measures])


def _ppo_row(row: dict[str, Any]) -> dict[str, Any]:
    return {key: row.get(key) for key in (
        "step", "proxy", "gold", "kl", "kl_k3", "entropy", "words", "stop_rate", "seconds")}


def _words(rate: dict[str, float]) -> str:
    return f"{rate['mean']:.2f} [{rate['low']:.2f}, {rate['high']:.2f}]"
