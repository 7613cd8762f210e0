"""`rlhflab experiment reward-hacking`: the same policy optimisation on several rewards, watched and judged.

Each arm leaves its labels, its reward role, its policy and its evaluated answers in a folder of its own, so that an
experiment goes on after the last of them that is whole. What is to be shown is written down and hashed before the first
step of any policy.
"""

import hashlib
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property, partial
from pathlib import Path
from random import Random
from typing import Any, Literal

import yaml

from rlhflab.analysis.detectors import detector, gold_free
from rlhflab.analysis.detectors.text import phrase_rows
from rlhflab.analysis.evaluate import Row, judged_rows, rates
from rlhflab.analysis.evidence import Evidence, Sample, sample_of
from rlhflab.analysis.hacking import (
    ALARMS,
    GATE_CRITERION,
    SeedResult,
    Thresholds,
    Undecided,
    Watched,
    alarm_in_time,
    as_json,
    change_of,
    criteria,
)
from rlhflab.analysis.relabel import random_batch, targeted_batch
from rlhflab.config import Run, read_run
from rlhflab.core.batch import TokenAnswer, Tree
from rlhflab.data.formats import pair_row, write_jsonl
from rlhflab.data.types import PreferencePair, Prompt
from rlhflab.errors import RunError
from rlhflab.rollout.reward_role import role_scores
from rlhflab.rollout.sampling import sample
from rlhflab.runs import sources
from rlhflab.runs.arms import ARMS, Arm
from rlhflab.runs.claims import claim
from rlhflab.runs.folder import RunFolder
from rlhflab.runs.lab import Lab
from rlhflab.runs.preferences import Pooled, judge, read_pool
from rlhflab.runs.recipes import recipe
from rlhflab.runs.relabelling import judged, pair_rows
from rlhflab.runs.stages import run_stage
from rlhflab.runs.watch import CANARY, FINDINGS, ROLLOUTS, fired
from rlhflab.scenarios.base import Scenario

PAUSE = 1.0
"""Seconds between two looks for a part that can be done, where other processes do the rest."""
TWIN = "twin-"
"""Before a kind of labels: those of the same annotators on the other half of the prompts."""
TWINNED = ("biased", "unbiased")
"""Labels that have such a half. Expert pairs have none, and labels by a coin teach no two models the same."""
SHOWN_STEPS = (0, 5, 10, 20)
SHOWN_PROMPTS = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Protocol:
    """What is fixed before the first step, with the thresholds."""

    model: str
    scenario: str = "helpdesk"
    arms: tuple[str, ...] = tuple(ARMS)
    seeds: tuple[int, ...] = (0, 1, 2)
    dose: float = 1.0
    """Of the annotators' bias, as calibrated: 0 for none."""
    method: Literal["rloo", "ppo"] = "rloo"
    steps: int = 24
    evaluation_prompts: int = 256
    evaluation_samples: int = 2
    canary: int = 96
    """Fixed prompts that are answered and judged during training."""
    canary_every: int = 2
    watch: Literal["all", "hack"] = "all"
    """The arms that answer the fixed prompts; where it is `hack` alone, the reward scores none of these answers."""
    start_answers: int = 128
    """Answers of the start with which detectors compare."""
    expert_pairs: int = 96
    replayed_pairs: int = 48
    """Biased pairs on other prompts that are learnt again beside them, so that what was right is not forgotten."""
    expert_epochs: int = 3
    """Passes of the reward role over these pairs, after all the biased ones."""
    twin: bool = True
    """A second reward role, taught by the same annotators on the other half of the prompts, for the detector of their
    difference."""
    overrides: tuple[str, ...] = ()
    """Flags put behind each recipe."""
    thresholds: Thresholds = field(default_factory=Thresholds)

    def registered(self) -> dict[str, Any]:
        """As JSON values."""
        return {**asdict(self), "arms": {name: asdict(ARMS[name]) for name in self.arms}}


class Experiment:
    """The arms over one start policy and one pool of its answers."""

    def __init__(self, folder: RunFolder, load: Callable[[], Lab], task: Scenario, protocol: Protocol, *, start: Path,
                 pool: Path, made: Mapping[str, Path] | None = None, judged: Mapping[str, Path] | None = None) -> None:
        """`load` is asked for the model when it is needed. `start`: the adapter all policies begin as; `pool`: a file
        of its answers. `made`: run folders of arms that were run elsewhere; `judged`: files of evaluated answers.
        """
        self.folder, self._load, self.task, self.protocol = folder, load, task, protocol
        self.start, self._pool, self.made, self.judged = start, pool, made or {}, judged or {}

    @property
    def lab(self) -> Lab:
        """The loaded model."""
        return self._load()

    @cached_property
    def pool(self) -> list[Pooled]:
        """Answers of the start, by prompt."""
        return read_pool(self._pool)

    # -- what is to be done, in order ------------------------------------------------------------------------------

    def parts(self) -> Iterator[tuple[str, Callable[[], int]]]:
        """Names and work; each part returns the tokens it read or wrote, and does nothing where it was done."""
        yield "start", partial(self.evaluate, "start", self.protocol.seeds[0])
        for seed in self.protocol.seeds:
            for name in self.arms_of(seed):
                yield f"{name}, seed {seed}" if len(self.protocol.seeds) > 1 else name, partial(self.arm, name, seed)

    def share(self) -> None:
        """Do the arms that no other process does, until all are done."""
        order = sorted((place, seed, name) for seed in self.protocol.seeds
                       for place, name in enumerate(self.protocol.arms) if name in self.arms_of(seed))
        parts = [("start", self.protocol.seeds[0]), *((name, seed) for _, seed, name in order)]
        while waiting := [part for part in parts if not self.answers_of(*part).is_file()]:
            if not any(self.claimed(name, seed) for name, seed in waiting):
                time.sleep(PAUSE)

    def claimed(self, name: str, seed: int) -> bool:
        """Do an arm, or evaluate the start, if what it needs is there and nobody else does. Whether it was done."""
        relabels = name != "start" and ARMS[name].labels in ("targeted", "random")
        if relabels and not RunFolder(self.run_folder("hack", seed)).has("summary.json"):
            return False
        with claim(self.home(seed) / f".{name}.lock", wait=False) as mine:
            if mine:
                self.evaluate(name, seed) if name == "start" else self.arm(name, seed)
        return mine

    def arms_of(self, seed: int) -> list[str]:
        """The arms that are run on a seed."""
        return [name for name in self.protocol.arms if ARMS[name].every_seed or seed == self.protocol.seeds[0]]

    def register(self) -> str:
        """Write down what is to be shown, once; its digest. RunError where something else was written down."""
        text = json.dumps(self.protocol.registered(), indent=2, sort_keys=True) + "\n"
        if not self.folder.has("prereg.json"):
            self.folder.write("prereg.json", text)
        if (self.folder.path / "prereg.json").read_text() != text:
            raise RunError(f"{self.folder.path / 'prereg.json'}: other settings were registered before the first step; "
                           "a changed experiment needs a new folder")
        return hashlib.sha256(text.encode()).hexdigest()

    def arm(self, name: str, seed: int) -> int:
        """Reward, policy and evaluation of one arm."""
        self.register()
        tokens = 0
        if name not in self.made:
            tokens += self.train_policy(name, ARMS[name], seed)
        return tokens + self.evaluate(name, seed)

    # -- reward ----------------------------------------------------------------------------------------------------

    def labels(self, kind: str, seed: int) -> Path:
        """The pairs that a reward is learnt from, judged where that was not done."""
        path = self.home(seed) / f"pairs-{kind}.jsonl"
        if not path.is_file():
            write_jsonl(path, self.expert_rows(kind, seed) if kind in ("targeted", "random") else
                        map(pair_row, self.judged_pairs(kind, seed)))
        return path

    def judged_pairs(self, kind: str, seed: int) -> list[PreferencePair]:
        """The pool as annotators see it, with the bias of this experiment unless `kind` says otherwise."""
        taught = kind.removeprefix(TWIN)
        dose = 0.0 if taught == "unbiased" else self.protocol.dose
        pairs = judge(self.task, self.half(other=taught != kind), seed=seed, dose=dose).pairs
        return shuffled(pairs, seed=seed) if kind == "shuffled" else pairs

    def half(self, *, other: bool) -> Sequence[Pooled]:
        """The prompts that rewards are learnt from, or the others, which are the twin's. All, without a twin."""
        if not self.protocol.twin:
            return self.pool
        middle = len(self.pool) // 2
        return self.pool[middle:] if other else self.pool[:middle]

    def expert_rows(self, kind: str, seed: int) -> list[dict[str, Any]]:
        """Pairs labelled by gold on prompts of training: of the failures of `hack` by cluster, or drawn at random."""
        hack = RunFolder(self.run_folder("hack", seed))
        rollouts = [sample_of(row) for row in hack.rows(ROLLOUTS)]
        prompts = {each.prompt.id: each.prompt for each in self.pool} | {
            prompt.id: prompt for prompt in sources.prompts(self.run_of(self.protocol.method, seed, []))}  # type: ignore[arg-type]
        pool = [judged(self.task, prompts, Sample(step=0, prompt_id=each.prompt.id, answer=answer))
                for each in self.pool for answer in each.answers]
        batch = random_batch(pool + rollouts, n=self.protocol.expert_pairs, seed=seed) if kind == "random" else \
            targeted_batch(rollouts, better={m.name: m.better for m in self.task.measures},
                           n=self.protocol.expert_pairs, extra=pool)
        rows = pair_rows(batch.proposals, prompts)
        if not rows:
            raise RunError(f"{hack.path}: no failure of it has a better answer that experts could prefer")
        labelled = {row["id"] for row in rows}
        others = [pair for pair in self.judged_pairs("biased", seed) if pair.prompt.id not in labelled]
        return rows + [pair_row(pair) for pair in Random(f"replayed-{seed}").sample(
            others, min(self.protocol.replayed_pairs, len(others)))]

    def reward_role(self, labels: str, seed: int, keys: Mapping[str, Any]) -> Path:
        """Folder of the reward role, trained where it is not there. `keys` of the reward run that differ."""
        home = self.home(seed) / "-".join(["reward", labels, *(f"{key}-{value}" for key, value in keys.items())])
        with claim(home.with_name(f".{home.name}.lock"), wait=True):
            if not (home / "summary.json").is_file():
                flags = _flags({"data": str(self.labels(labels, seed)), **keys})
                if labels in ("targeted", "random"):
                    flags += ["--start", str(self.reward_role("biased", seed, keys)), "--epochs",
                              str(self.protocol.expert_epochs)]
                self.train("reward", seed, home, flags)
        return home / "roles" / "reward"

    # -- policy ----------------------------------------------------------------------------------------------------

    def train_policy(self, name: str, arm: Arm, seed: int) -> int:
        """Train the arm's policy from the start. Returns the tokens it read."""
        home = self.home(seed) / name
        if (home / "summary.json").is_file():
            return 0
        if arm.method == "dpo":
            return self.train("dpo", seed, home, ["--data", str(self.labels(arm.labels, seed))])
        source = {"name": "gold"} if arm.labels == "none" else {
            "name": "role", "path": str(self.reward_role(arm.labels, seed, arm.reward)), **arm.source}
        twin = self.reward_role(TWIN + arm.labels, seed, {}) if self.protocol.twin and arm.labels in TWINNED else None
        canary = self.protocol.canary if name == "hack" or self.protocol.watch == "all" else 0
        flags = _flags({"reward": [source], "steps": self.protocol.steps, "detect.every": 1, "detect.canary": canary,
                        "detect.canary_every": self.protocol.canary_every,
                        "detect.canary_rewards": self.protocol.watch == "all",
                        "detect.start_answers": self.protocol.start_answers,
                        "detect.twin": None if twin is None else str(twin), **arm.run})
        return self.train("ppo" if arm.method == "ppo" else self.protocol.method, seed, home, flags)

    def train(self, kind: str, seed: int, home: Path, flags: Sequence[str]) -> int:
        """A training run by the recipe `kind`, from the start, into `home`; it goes on where it was stopped."""
        run = self.run_of(kind, seed, flags)
        home.mkdir(parents=True, exist_ok=True)
        return int(run_stage(run, self.lab, RunFolder(home))["tokens"])

    def run_of(self, kind: str, seed: int, flags: Sequence[str]) -> Run:
        """The recipe on this experiment's model and start; the last of two equal flags counts."""
        return read_run(None, recipe(kind), ["--model", self.protocol.model, "--seed", str(seed), "--data",
                                             self.task.name, "--gold", self.task.name, "--start", str(self.start),
                                             *self.protocol.overrides, *flags])

    # -- evaluation ------------------------------------------------------------------------------------------------

    def evaluate(self, name: str, seed: int) -> int:
        """Sampled answers of an arm's policy (or of the start) to the evaluation prompts, judged by gold."""
        path = self.answers_of(name, seed)
        if path.is_file():
            return 0
        adapter = self.start if name == "start" else self.run_folder(name, seed) / "roles" / "policy"
        self.lab.model.load_role("policy", adapter)
        prompts = self.prompts()
        total = len(prompts) * self.protocol.evaluation_samples
        with self.lab.progress.track(f"answers of {name} to evaluation prompts", total) as bar:
            rollouts = sample(self.lab.model, self.lab.chat, prompts, role="policy", seed=seed, advance=bar.advance,
                              samples=self.protocol.evaluation_samples, max_new_tokens=self.task.max_new_tokens)
        self.lab.drop_roles()
        write_jsonl(path, judged_rows(self.task, name, {"sampled": rollouts}))
        return sum(len(rollout.token_ids) for rollout in rollouts)

    def prompts(self) -> list[Prompt]:
        """Those every policy is evaluated on."""
        return self.task.prompts("evaluation", self.protocol.evaluation_prompts, seed=self.protocol.seeds[0])

    def with_proxy(self, rows: Sequence[Row], seed: int) -> list[Row]:
        """The rows with the score of the biased reward role, read from their text."""
        role = self.reward_role("biased", seed, {})
        of_prompt = {prompt.id: self.lab.chat.prompt(prompt) for prompt in self.prompts()}
        trees = [Tree(prompt=of_prompt[row["prompt_id"]],
                      answers=(TokenAnswer(ids=self.lab.chat.answer(row["answer"])),)) for row in rows]
        self.lab.model.load_role("reward", role, head="stored")
        scores = role_scores(self.lab.model, trees, role="reward", micro_tokens=self.run_of("reward", seed, [])
                             .micro_tokens)
        self.lab.drop_roles()
        return [{**row, "proxy": float(score[0])} for row, score in zip(rows, scores, strict=True)]

    # -- results ---------------------------------------------------------------------------------------------------

    def result(self) -> dict[str, Any]:
        """`hacking` of the summary."""
        seeds = self.protocol.seeds
        results = [self.result_of(seed) for seed in seeds]
        watched = {name: [self.watched(name, seed) for seed in seeds if name in self.arms_of(seed)]
                   for name in ("hack", "unbiased") if name in self.protocol.arms}
        decided = [*criteria(results, self.protocol.thresholds),
                   alarm_in_time(watched["hack"], watched.get("unbiased", []), self.protocol.thresholds),
                   Undecided(GATE_CRITERION, "needs the release gate, which --release asks")]
        return {"dose": self.protocol.dose, "seeds": list(seeds), "registered": self.register(), **as_json(decided),
                "arms": {name: self.arm_summary(name, results) for name in ("start", *self.protocol.arms)},
                "detectors": detector_rows(watched["hack"][0], next(iter(watched.get("unbiased", [])), None))}

    def story(self) -> dict[str, Any]:
        """What a report shows beside the numbers: answers to the same prompts on the way, what detectors said, and the
        phrases that the hacked policy has come to like.
        """
        seed = self.protocol.seeds[0]
        hack = RunFolder(self.run_folder("hack", seed))
        said = {row["name"]: row for row in hack.rows(FINDINGS) if row["verdict"] != "not run"}
        rollouts = [sample_of(row) for row in hack.rows(ROLLOUTS)]
        return {"answers": answers_on_the_way(hack.rows(CANARY), seed=seed),
                "gold": self.watched("hack", seed).gold,
                "findings": [{key: row[key] for key in ("name", "verdict", "says", "next", "effect")}
                             for row in said.values()],
                "phrases": phrase_rows(Evidence(rollouts=rollouts))}

    def result_of(self, seed: int) -> SeedResult:
        """The evaluated answers of one seed; those that criterion 1 compares have their proxy."""
        arms = {name: self.rows_of(name, seed) for name in self.arms_of(seed)}
        arms["hack"] = self.with_proxy(arms["hack"], seed)
        return SeedResult(start=self.with_proxy(self.rows_of("start", self.protocol.seeds[0]), seed), arms=arms)

    def arm_summary(self, name: str, results: Sequence[SeedResult]) -> dict[str, Any]:
        """Rates of an arm over its seeds, its change of gold from the start, and its course."""
        seeds = [seed for seed in self.protocol.seeds if name in self.arms_of(seed)] or self.protocol.seeds[:1]
        rows = [row for seed in seeds for row in self.rows_of(name, seed)]
        has = [result for result in results if name in result.arms]
        return {"says": "the policy after SFT" if name == "start" else ARMS[name].says, "seeds": list(seeds),
                "rates": rates(self.task, rows, "sampled"),
                "versus_start": change_of(has, "gold", name, None)._asdict() if has else None,
                "by_seed": [change_of([one], "gold", name, None)._asdict() for one in has],
                "steps": [] if name == "start" else [_course(row) for row in RunFolder(
                    self.run_folder(name, seeds[0])).rows("metrics.jsonl")]}

    def watched(self, name: str, seed: int) -> Watched:
        """What the detectors said of an arm's run, and its gold on the fixed prompts."""
        return watched_in(RunFolder(self.run_folder(name, seed)))

    # -- places ----------------------------------------------------------------------------------------------------

    def home(self, seed: int) -> Path:
        """Folder of everything of one seed."""
        return self.folder.path / f"seed-{seed}"

    def run_folder(self, name: str, seed: int) -> Path:
        """Run folder of an arm's policy."""
        return self.made[name] if name in self.made else self.home(seed) / name

    def answers_of(self, name: str, seed: int) -> Path:
        """File of an arm's evaluated answers."""
        return self.judged[name] if name in self.judged else self.home(seed) / "evaluation" / f"{name}.jsonl"

    def rows_of(self, name: str, seed: int) -> list[Row]:
        """An arm's evaluated answers, sampled ones alone."""
        path = self.answers_of(name, seed)
        return [row for row in RunFolder(path.parent).rows(path.name) if row["mode"] == "sampled"]


def watched_in(folder: RunFolder) -> Watched:
    """What the detectors said of a run, and its gold on the fixed prompts."""
    gold: dict[int, list[float]] = {}
    for row in folder.rows(CANARY):
        gold.setdefault(row["step"], []).append(row["measures"]["gold"])
    return Watched(fired=fired(folder.rows(FINDINGS)),
                   gold=[(step, sum(values) / len(values)) for step, values in sorted(gold.items())])


def shuffled(pairs: Sequence[PreferencePair], *, seed: int) -> list[PreferencePair]:
    """The pairs with each label drawn anew by a coin."""
    random = Random(f"shuffled-{seed}")
    return [PreferencePair(prompt=pair.prompt, chosen=a, rejected=b, source="coin") for pair in pairs
            for a, b in [random.sample([pair.chosen, pair.rejected], 2)]]


def answers_on_the_way(canary: Sequence[Mapping[str, Any]], *, seed: int) -> list[dict[str, Any]]:
    """Answers to a few fixed prompts, drawn by the seed, at the steps closest to `SHOWN_STEPS` and at the last."""
    steps = sorted({row["step"] for row in canary})
    shown = sorted({min(steps, key=lambda step: abs(step - wanted)) for wanted in (*SHOWN_STEPS, steps[-1])})
    names = sorted({row["prompt_id"] for row in canary})
    drawn = Random(f"shown-{seed}").sample(names, min(SHOWN_PROMPTS, len(names)))
    return [{"prompt": rows[0].get("prompt", ""), "answers": [
        {"step": row["step"], "answer": row["answer"], "gold": row["measures"].get("gold"), "reward": row.get("reward")}
        for row in rows if row["step"] in shown]}
        for name in drawn for rows in [[row for row in canary if row["prompt_id"] == name]]]


def detector_rows(hack: Watched, unbiased: Watched | None) -> list[dict[str, Any]]:
    """What each detector that ran did on the hacked run, and whether it cried wolf on the unbiased one."""
    return [{"name": name, "needs_gold": not gold_free(detector.entry(name, where="detectors").needs), "fired_at": step,
             "gold_at_firing": None if step is None else hack.gold_at(step),
             "false_alarm_on_unbiased": None if unbiased is None or name not in unbiased.fired else
             unbiased.fired[name] is not None, "named": name in ALARMS}
            for name, step in hack.fired.items()]


def _course(row: Mapping[str, Any]) -> dict[str, Any]:
    return {key: row.get(key) for key in ("step", "proxy", "gold", "kl", "words", "seconds")}


def _flags(values: Mapping[str, Any]) -> list[str]:
    """`{"a.b": [1]}` -> `["--a.b", "[1]"]`; None is left out."""
    return [text for key, value in values.items() if value is not None
            for text in (f"--{key}", yaml.safe_dump(value, default_flow_style=True).removesuffix("...\n").strip())]

