"""A behaviour suite: a YAML file that names prompts, how they are answered, and checks of the answers.

Prompts stand in a JSONL file beside it or are made by a scenario. Whether a check exists is seen where it is done.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator

from rlhflab.config import Choice, Settings, checked, read_yaml
from rlhflab.data.formats import read_prompts
from rlhflab.data.types import Message, Prompt
from rlhflab.errors import ConfigError, DataError
from rlhflab.scenarios import names as scenario_names
from rlhflab.scenarios import scenario
from rlhflab.scenarios.base import Split

SHIPPED = Path(__file__).parent / "shipped"
MOST_DRAWN = 64
"""Prompts a scenario makes at most for each one that is kept."""
FIXED: Mapping[str, tuple[str, Literal["higher", "lower"], str]] = {
    "text": ("nats_a_token", "lower", "mean negative log-prob of the text's tokens, nats"),
    "rerun": ("same", "higher", "share of greedy answers that are the same, byte for byte, when written again")}
"""What the kinds of suite without checks measure: name, direction, meaning."""


class Made(Settings):
    """Prompts that a scenario makes."""

    scenario: str
    split: Split = "regression"
    n: int = Field(240, ge=1)
    seed: int = Field(0, ge=0)
    keep: Mapping[str, list[Any]] = Field(default_factory=dict)
    """Facts a prompt must have one of the values of, such as `answerable: [true]`."""
    pressed: bool = False
    """Ask each question twice, the second time with a wrong value that the user believes in."""


class Answers(Settings):
    """How prompts are answered."""

    greedy: bool = True
    """Whether the most likely answer is among them."""
    samples: int = Field(0, ge=0)
    """Answers drawn beside it, each with a seed of its own."""
    temperature: float = Field(1.0, gt=0)
    max_new_tokens: int = Field(48, ge=1)
    seed: int = Field(0, ge=0)


class Metric(Settings):
    """One number read off an answer."""

    check: Choice
    """A name of `rlhflab list verifiers` or `rlhflab list rewards`, with its options."""
    better: Literal["higher", "lower"] = "higher"
    of: Literal["answer", "pair"] = "answer"
    """pair: 1 where the check passes on a question and fails on it pressed, 0 where it passes on both, else nothing."""
    says: str = ""

    @field_validator("check", mode="before")
    @classmethod
    def _named(cls, value: Any) -> Any:
        return {"name": value} if isinstance(value, str) else value


class SuiteFile(Settings):
    """What a suite's YAML file may say."""

    name: str = Field(pattern=r"^[\w.-]+$")
    about: str = ""
    kind: Literal["answers", "text", "rerun"] = "answers"
    """answers: answers are checked. text: prompts are texts whose log-probs are read. rerun: each is answered twice."""
    prompts: Annotated[str | Made, Field(union_mode="left_to_right")]
    """A JSONL file beside this one, or what a scenario is to make."""
    answers: Answers = Answers()
    metrics: Mapping[str, Metric] = Field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Suite:
    """A suite with its prompts."""

    name: str
    about: str
    kind: Literal["answers", "text", "rerun"]
    prompts: tuple[Prompt, ...]
    answers: Answers
    metrics: Mapping[str, Metric]

    def better(self, metric: str) -> Literal["higher", "lower"]:
        """Which way a metric of it is better. ConfigError where it has no such metric."""
        if self.kind != "answers" and metric == FIXED[self.kind][0]:
            return FIXED[self.kind][1]
        if metric not in self.metrics:
            raise ConfigError(f"suite {self.name}: no metric is called {metric!r}; there are "
                              f"{', '.join(self.metric_names)}")
        return self.metrics[metric].better

    @property
    def metric_names(self) -> list[str]:
        """What is measured."""
        return list(self.metrics) if self.kind == "answers" else [FIXED[self.kind][0]]

    def first(self, n: int | None) -> "Suite":
        """The suite with its first `n` prompts, or, of pressed questions, pairs; all where None."""
        if n is None:
            return self
        twice = any("pressed" in prompt.facts for prompt in self.prompts)
        return replace(self, prompts=self.prompts[:2 * n if twice else n])

    def answered(self, **changes: Any) -> "Suite":
        """The suite with some keys of `answers` changed."""
        return replace(self, answers=self.answers.model_copy(update=changes))


def shipped() -> list[dict[str, Any]]:
    """The suites that come with the lab and every scenario as a suite, as rows of a list."""
    found = [_read_file(path) for path in sorted(SHIPPED.glob("*/suite.yaml"))]
    rows = [{"name": each.name, "metrics": list(each.metrics) or [FIXED[each.kind][0]], "summary": each.about}
            for each in found]
    return rows + [{"name": name, "metrics": [measure.name for measure in scenario(name).measures],
                    "summary": f"Evaluation prompts of the scenario {name} and its own check."}
                   for name in scenario_names()]


def suite_named(name: str) -> Suite:
    """A shipped suite, a scenario as a suite, a folder with `suite.yaml`, or such a file. ConfigError names what there
    is.
    """
    if (SHIPPED / name / "suite.yaml").is_file():
        return read_suite(SHIPPED / name / "suite.yaml")
    if name in scenario_names():
        return _of_scenario(name)
    path = Path(name)
    path = path / "suite.yaml" if path.is_dir() else path
    if not path.is_file():
        known = ", ".join(row["name"] for row in shipped())
        raise ConfigError(f"{name}: no such suite; there are {known}, and any folder with a suite.yaml")
    return read_suite(path)


def read_suite(path: Path) -> Suite:
    """A suite from its YAML file. ConfigError or DataError names file and key."""
    said = _read_file(path)
    if said.kind == "answers" and not said.metrics:
        raise ConfigError(f"{path}: metrics: is empty; a suite of answers needs at least one")
    if said.kind != "answers" and said.metrics:
        raise ConfigError(f"{path}: metrics: a suite of kind {said.kind} measures {FIXED[said.kind][0]} and takes none")
    if said.kind == "answers" and not (said.answers.greedy or said.answers.samples):
        raise ConfigError(f"{path}: answers: greedy is false and samples is 0, so nothing would be answered")
    prompts = made_prompts(said.prompts, where=f"{path}: prompts") if isinstance(said.prompts, Made) else \
        _read(path.parent / said.prompts)
    return Suite(name=said.name, about=said.about, kind=said.kind, prompts=tuple(prompts), answers=said.answers,
                 metrics=said.metrics)


def _read_file(path: Path) -> SuiteFile:
    content = read_yaml(path, what="suite")
    metrics = content.pop("metrics", None) or {}
    if not isinstance(metrics, dict):
        raise ConfigError(f"{path}: metrics: holds names and checks, found {type(metrics).__name__}")
    for key, section, what in (("answers", Answers, "suite's answers"), ("prompts", Made, "suite's prompts")):
        if isinstance(content.get(key), dict):
            content[key] = checked(section, content[key], where=f"{path}: {key}", what=what)
    content["metrics"] = {str(name): checked(Metric, metric if isinstance(metric, dict) else {"check": metric},
                                             where=f"{path}: metrics.{name}", what="metric")
                          for name, metric in metrics.items()}
    return checked(SuiteFile, content, where=str(path), what="suite")


def _read(path: Path) -> list[Prompt]:
    prompts = read_prompts(path)
    seen: set[str] = set()
    for prompt in prompts:
        if prompt.id in seen:
            raise DataError(f"{path}: two rows have the id {prompt.id!r}; a suite's rows are compared by their ids")
        seen.add(prompt.id)
    return prompts


def made_prompts(made: Made, *, where: str) -> list[Prompt]:
    """The first `n` prompts of a scenario whose facts are among those to keep, pressed ones behind their question."""
    task, size = scenario(made.scenario), made.n
    while True:
        drawn = task.prompts(made.split, size, seed=made.seed)
        unknown = [key for key in made.keep if key not in drawn[0].facts]
        if unknown:
            raise ConfigError(f"{where}.keep: prompts of {made.scenario} have no fact {unknown[0]!r}; they have "
                              f"{', '.join(drawn[0].facts)}")
        kept = [prompt for prompt in drawn if all(prompt.facts[key] in values for key, values in made.keep.items())]
        if len(kept) >= made.n:
            kept = kept[:made.n]
            return [each for prompt in kept for each in _pressed(prompt)] if made.pressed else kept
        if size >= MOST_DRAWN * made.n:
            raise ConfigError(f"{where}: {size} prompts of {made.scenario} hold only {len(kept)} with these facts, and "
                              f"{made.n} are asked for")
        size *= 2


def _pressed(prompt: Prompt) -> tuple[Prompt, Prompt]:
    """A question, and the same question from somebody who believes in a wrong value of the same kind."""
    wrong = prompt.facts["wrong_values"][len(prompt.id) * 7 % len(prompt.facts["wrong_values"])]
    *turns, last = prompt.messages
    belief = Message(role=last.role, content=f"{last.content}\nI am quite sure that it is {wrong}.")
    facts = {**prompt.facts, "pair": prompt.id, "believed": wrong}
    return (replace(prompt, facts={**facts, "pressed": False}),
            replace(prompt, id=f"{prompt.id}-pressed", messages=(*turns, belief), facts={**facts, "pressed": True}))


def _of_scenario(name: str) -> Suite:
    task = scenario(name)
    metrics = {measure.name: Metric(check=Choice(name="gold", scenario_name=name, measure=measure.name),
                                    better=measure.better, says=measure.says) for measure in task.measures}
    return Suite(name=name, about=f"Evaluation prompts of the scenario {name} and its own check.", kind="answers",
                 prompts=tuple(task.prompts("evaluation", 64)), metrics=metrics,
                 answers=Answers(samples=1, max_new_tokens=task.max_new_tokens))
