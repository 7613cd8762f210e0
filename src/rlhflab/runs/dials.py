"""`rlhflab experiment dials`: a start in the middle, an adapter an axis, answers at every strength, a verdict, a page.

What is asked stands in recipes/dials.yaml, how an adapter is trained in recipes/dial-AXIS.yaml. A stopped experiment
goes on after its last finished part; each axis is trained and answered apart.
"""

import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Self

import yaml
from pydantic import Field, model_validator

from rlhflab.analysis.dials import dial_result
from rlhflab.analysis.dials_page import write_dials_page
from rlhflab.analysis.evaluate import Row, judged_rows
from rlhflab.config import Run, Settings, checked, read_run, read_yaml
from rlhflab.data.formats import conversation_row, pair_row, write_jsonl
from rlhflab.data.types import Prompt
from rlhflab.errors import ConfigError, RunError
from rlhflab.model.averaging import between_roles
from rlhflab.model.load import model_folder
from rlhflab.progress import Progress
from rlhflab.rollout.sampling import sample
from rlhflab.runs.folder import Record, RunFolder, environment
from rlhflab.runs.lab import Lab
from rlhflab.runs.recipes import recipe
from rlhflab.runs.stage_log import StageLog
from rlhflab.runs.stages import run_stage
from rlhflab.scenarios import scenario as scenario_named
from rlhflab.scenarios.base import Split
from rlhflab.scenarios.dials import AXES, demonstrations, measured, pairs, without_limit

KIND = "dials"
START = "start"
QUICK = {"demonstrations": 16, "pairs": 12, "strengths": [0, 0.5, 1], "evaluation_prompts": 8, "evaluation_samples": 1,
         "max_new_tokens": 16}
QUICK_FLAGS = ("--steps", "2", "--batch", "4")


class Protocol(Settings):
    """What recipes/dials.yaml says: sizes, and what counts as shown."""

    scenario: str = "helpdesk"
    demonstrations: int = Field(768, ge=1)
    """Of the start, every axis at either end by a coin."""
    pairs: int = Field(384, ge=1)
    """Of each axis, one a prompt."""
    strengths: tuple[float, ...] = (0.0, 0.25, 0.5, 0.75, 1.0, 1.25)
    """s of start + s (adapter - start), from 0 upwards."""
    evaluation_prompts: int = Field(256, ge=2)
    evaluation_samples: int = Field(2, ge=1)
    """Answers a prompt, at temperature 1."""
    max_new_tokens: int = Field(96, ge=1)
    margins: Mapping[str, float]
    """Axis to the largest change that another dial may cause, in the axis's unit."""
    losses: Mapping[str, float]
    """Measure of gold to the largest loss that any dial may cause."""

    @model_validator(mode="after")
    def _complete(self) -> Self:
        if set(self.margins) != set(AXES):
            raise ValueError(f"margins names {', '.join(self.margins)}; it needs {', '.join(AXES)}")
        if len(self.strengths) < 2 or self.strengths[0] != 0 or list(self.strengths) != sorted(set(self.strengths)):
            raise ValueError("strengths begin with 0 and rise")
        return self


def read_protocol(*, quick: bool, changes: Mapping[str, Any]) -> Protocol:
    """recipes/dials.yaml with what was asked differently. ConfigError names the file and the key."""
    path = recipe(KIND)
    content = read_yaml(path, what="recipe of an experiment")
    content.pop("kind", None)
    return checked(Protocol, {**content, **(QUICK if quick else {}), **changes}, where=str(path), what="dials recipe")


def run_dials(*, model: str, seed: int, axes: Sequence[str], start: Path | None, device: str, quick: bool,
              changes: Mapping[str, Any], out: Path | None, progress: Progress) -> Path:
    """A new experiment from the adapter `start`, or from an SFT of its own. Returns its folder."""
    for axis in axes:
        if axis not in AXES:
            raise ConfigError(f"--axes: no axis is called {axis!r}; there are {', '.join(AXES)}")
    if start is not None and not (start / "adapter_config.json").is_file():
        raise ConfigError(f"--start {start}: is not an adapter folder")
    protocol = read_protocol(quick=quick, changes=changes)
    model_folder(model)  # a missing model is said before a folder is made
    folder = RunFolder.create(out) if out is not None else RunFolder.named(KIND)
    settings: dict[str, Any] = {"model": model, "seed": seed, "axes": list(axes) or list(AXES), "device": device,
                                "quick": quick, "start": None if start is None else str(start)}
    folder.write_yaml("config.yaml", {"kind": KIND, **settings, "protocol": protocol.model_dump(mode="json")})
    return _run(DialsRun(folder, protocol, progress, **settings))


def resume_dials(path: Path, *, progress: Progress) -> Path:
    """Go on with a stopped experiment. RunError where the folder is none."""
    folder = RunFolder(path)
    settings = yaml.safe_load((path / "config.yaml").read_text()) if folder.has("config.yaml") else {}
    if settings.pop("kind", None) != KIND:
        raise RunError(f"{path}: is not the folder of an experiment with dials")
    protocol = checked(Protocol, settings.pop("protocol"), where=str(path / "config.yaml"), what="dials recipe")
    return _run(DialsRun(folder, protocol, progress, **settings))


def _run(job: "DialsRun") -> Path:
    record = Record(job.folder, KIND)
    try:
        job.run()
    except BaseException as error:
        record.close("stopped")
        if isinstance(error, KeyboardInterrupt):
            job.progress.say("Stopped. To go on after the last finished part: rlhflab experiment dials "
                             f"--resume {job.folder.path}")
        raise
    record.close("finished")
    return job.folder.path


class DialsRun:
    """The parts of one experiment, in order."""

    def __init__(self, folder: RunFolder, protocol: Protocol, progress: Progress, *, model: str, seed: int,
                 axes: Sequence[str], device: str, quick: bool, start: str | None) -> None:
        self.folder, self.protocol, self.progress = folder, protocol, progress
        self.model, self.seed, self.axes, self.device, self.quick = model, seed, tuple(axes), device, quick
        self.start = Path(start) if start is not None else folder.path / "sft" / "roles" / "policy"
        self.given_start = start is not None
        self.task = scenario_named(protocol.scenario)
        self.summary: dict[str, Any] = folder.read_json("summary.json") if folder.has("summary.json") else {
            "model": model, "seed": seed}

    @cached_property
    def lab(self) -> Lab:
        """The model, loaded when the first part needs it."""
        self.progress.say(f"Loading {self.model} ...")
        return Lab.load(self.model, device=self.device, progress=self.progress)

    def run(self) -> None:
        """Every part that has not run yet, then the page."""
        self.progress.say(f"Writing to {self.folder.path}")
        self.summary |= {key: value for key, value in environment().items() if key != "lab"}
        log = StageLog(self.folder, self.summary)
        for name, work in self.parts():
            log.run(name, work)
        result = self.result()
        self.summary["dials"] = result["verdicts"]
        self.folder.write_json("summary.json", self.summary)
        self.folder.write_json("dials.json", result)
        write_dials_page(result, self.folder.path / "dials.html")

    def parts(self) -> Iterator[tuple[str, Callable[[], int]]]:
        """Start, its answers, then axis by axis an adapter and its answers."""
        if not self.given_start:
            yield "sft", self.learn_start
        yield "answers of start", partial(self.answer, START, 0.0)
        for axis in self.axes:
            yield f"{axis}: train", partial(self.train, axis)
            for strength in self.protocol.strengths[1:]:
                yield f"{axis}: answers at {strength:g}", partial(self.answer, axis, strength)

    def learn_start(self) -> int:
        """SFT on right answers in every style."""
        asked = self.prompts("train", self.protocol.demonstrations)
        data = self._file("sft.jsonl")
        write_jsonl(data, map(conversation_row, demonstrations(asked, seed=self.seed)))
        return self._stage("sft", self._recipe("sft", "--data", str(data)))

    def train(self, axis: str) -> int:
        """The adapter of one axis, on pairs made by its rule."""
        asked = self.prompts("rl", self.protocol.pairs)
        data = self._file(f"pairs/{axis}.jsonl")
        write_jsonl(data, map(pair_row, pairs(axis, asked, seed=self.seed)))
        return self._stage(axis, self._recipe(f"dial-{axis}", "--data", str(data), "--start", str(self.start)))

    def answer(self, axis: str, strength: float) -> int:
        """Answers to the evaluation prompts with the dial at this strength, measured."""
        name = _name(axis, strength)
        adapter, passing = self.start, self.folder.path / ".turned"
        if axis != START:
            shutil.rmtree(passing, ignore_errors=True)
            adapter = between_roles(self.start, self.folder.path / axis / "roles" / "policy", strength, passing)
        self.lab.model.load_role("policy", adapter)
        shutil.rmtree(passing, ignore_errors=True)
        asked = self.prompts("evaluation", self.protocol.evaluation_prompts)
        samples = self.protocol.evaluation_samples
        with self.progress.track(f"answers of {name}", len(asked) * samples) as bar:
            rollouts = sample(self.lab.model, self.lab.chat, asked, role="policy", seed=self.seed, samples=samples,
                              max_new_tokens=self.protocol.max_new_tokens, advance=bar.advance)
        self.lab.drop_roles()
        rows = judged_rows(self.task, name, {"sampled": rollouts})
        for row, rollout in zip(rows, rollouts, strict=True):
            row["measures"] |= measured(rollout.prompt, rollout.text)
        write_jsonl(self._file(f"answers/{name}.jsonl"), rows)
        return sum(len(rollout.token_ids) for rollout in rollouts)

    def result(self) -> dict[str, Any]:
        """What every dial did, the criteria and an example of each, as JSON."""
        margins, losses = self.protocol.margins, self.protocol.losses
        results = {axis: dial_result(axis, self.answers(axis), margins=margins, losses=losses) for axis in self.axes}
        return {"model": self.model, "seed": self.seed, "scenario": self.task.name, "quick": self.quick,
                "machine": self.summary["machine"], "commit": self.summary["commit"],
                "versions": self.summary["versions"], "protocol": self.protocol.model_dump(mode="json"),
                "verdicts": {axis: {key: found[key] for key in ("moves", "stays", "keeps")}
                             for axis, found in results.items()},
                "axes": results, "examples": {axis: self.example(axis) for axis in self.axes}}

    def example(self, axis: str) -> list[dict[str, Any]]:
        """The first sampled answer to the first evaluation prompt at each strength: taken, not chosen."""
        return [{"strength": strength, "prompt": rows[0]["prompt"][-1]["content"], "answer": rows[0]["answer"]}
                for strength, rows in self.answers(axis).items()]

    def answers(self, axis: str) -> dict[float, list[Row]]:
        """The measured answers at each strength; those of the start at 0."""
        names = {strength: _name(axis if strength else START, strength) for strength in self.protocol.strengths}
        return {strength: self.folder.rows(f"answers/{name}.jsonl") for strength, name in names.items()}

    def prompts(self, split: Split, n: int) -> list[Prompt]:
        """Prompts of the scenario without their limit on words."""
        return [without_limit(prompt) for prompt in self.task.prompts(split, n, seed=self.seed)]

    def _stage(self, name: str, run: Run) -> int:
        home = RunFolder(self.folder.path / name)
        home.path.mkdir(exist_ok=True)  # there already where this stage was stopped: it goes on from its checkpoint
        return int(run_stage(run, self.lab, home)["tokens"])

    def _recipe(self, name: str, *flags: str) -> Run:
        """The recipe on this experiment's model, seed and device; the last of two equal flags counts."""
        own = ["--model", self.model, "--seed", str(self.seed), "--device", self.device, "--gold", self.task.name]
        return read_run(None, recipe(name), [*own, *(QUICK_FLAGS if self.quick else ()), *flags])

    def _file(self, name: str) -> Path:
        path = self.folder.path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        return path


def _name(axis: str, strength: float) -> str:
    return START if axis == START else f"{axis}-{strength:g}"
