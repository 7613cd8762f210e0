"""`rlhflab evaluate`: a model with or without an adapter answers suites, and its answers are checked. No verdict here.

Answers are kept by what they follow from (base, adapter, dtype, device, prompt, settings, seed), so that a second check
or gate over the same prompts costs nothing.
"""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rlhflab.analysis.evaluate import nats_a_token
from rlhflab.analysis.suite_results import measured
from rlhflab.config import Choice
from rlhflab.core.stats import Estimate
from rlhflab.data.formats import finite, turn_rows
from rlhflab.data.types import Prompt, Rollout, Score
from rlhflab.errors import ConfigError, DataError
from rlhflab.model.load import cache_folder
from rlhflab.model.shared import SharedModel, adapter_digest
from rlhflab.progress import Progress
from rlhflab.rollout.constraints import check_source
from rlhflab.rollout.ifeval import registry_of_lm_eval
from rlhflab.rollout.rewards import reward_source
from rlhflab.rollout.sampling import answer_seed, sample
from rlhflab.rollout.scoring import Reward
from rlhflab.rollout.verifiers import own_check, verifier
from rlhflab.runs.folder import RunFolder, environment
from rlhflab.runs.kept import Kept, content_key
from rlhflab.runs.lab import Lab
from rlhflab.runs.targets import Target
from rlhflab.suites import Metric, Suite

PART = 64
"""Prompts that are answered before their answers are kept."""
MICRO_TOKENS = 4096
"""Tokens in one forward pass of a check that reads a model."""


class Checks:
    """Owns the checks of one loaded model: each is made once, since one may load a reward role or a judge."""

    def __init__(self, model: SharedModel) -> None:
        self._model = model
        self._made: dict[str, Reward] = {}

    def __call__(self, check: Choice) -> Reward:
        """What does the check, a verifier or a reward source."""
        key = check.model_dump_json()
        if key not in self._made:
            source = check_source(check)
            bound = reward_source.bind(source.name, source.options, where=f"check {check.name}")
            self._made[key] = bound(self._model, MICRO_TOKENS)
        return self._made[key]

    def make(self, suites: Iterable[Suite]) -> None:
        """All that these suites need, before an answer is written: the role or the judge of one may not be there."""
        for metric in (metric for suite in suites for metric in suite.metrics.values()):
            self(metric.check)


class Respondent:
    """One base in one role, and the file of the answers it has given."""

    def __init__(self, lab: Lab, target: Target, *, role: str, checks: Checks) -> None:
        self.lab, self.target, self.checks = lab, target, checks
        self.role = role if target.adapter else None
        self.adapter_digest: str | None = None
        shape = None
        if target.adapter is not None:
            lab.model.load_role(role, target.adapter)
            self.adapter_digest = adapter_digest(target.adapter)
            shape = lab.model.lora_of(role).model_dump()
        self.dtype = str(lab.model.unembedding.dtype).removeprefix("torch.")
        self.key = (lab.model.base.digest, self.adapter_digest, shape, self.dtype, lab.model.device.type)
        """What its answers depend on, besides what they are asked."""
        self.kept = Kept(cache_folder() / "answers" / f"{content_key(*self.key)[:16]}.jsonl")
        self.written = self.tokens_written = 0
        """Answers that were not kept already, and their tokens."""

    def record(self) -> dict[str, Any]:
        """What identifies it."""
        base = self.lab.model.base
        return {"name": self.target.name, "base": base.name, "base_digest": base.digest,
                "adapter": str(self.target.adapter) if self.target.adapter else None,
                "adapter_digest": self.adapter_digest, "dtype": self.dtype}

    def rows(self, suite: Suite) -> list[dict[str, Any]]:
        """One row an answer, with the value of each metric. DataError for a prompt that does not fit the context."""
        if suite.kind == "text":
            texts = [prompt.messages[-1].content for prompt in suite.prompts]
            values = nats_a_token(self.lab.model, texts, role=self.role)
            return [_row(suite, prompt, 0, {"nats_a_token": value})
                    for prompt, value in zip(suite.prompts, values, strict=True)]
        self._refuse_overlong(suite)
        if suite.kind == "rerun":
            alone = suite.answered(greedy=True, samples=0)
            first, again = (self._written(alone, range(len(suite.prompts))) for _ in range(2))
            return [_row(suite, one.prompt, 0, {"same": float(one.token_ids == other.token_ids)}, one)
                    for one, other in zip(first, again, strict=True)]
        rollouts = self.rollouts(suite)
        numbers = _samples(suite) * len(suite.prompts)
        rows = [_row(suite, rollout.prompt, number, {}, rollout)
                for rollout, number in zip(rollouts, numbers, strict=True)]
        for name, metric in suite.metrics.items():
            _put(rows, rollouts, name, metric, self.checks(metric.check)(rollouts))
        return rows

    def rollouts(self, suite: Suite) -> list[Rollout]:
        """The answers to each prompt of a suite, the greedy one first; only those not kept are written."""
        keys = [[self._answer_key(suite, prompt, seed) for seed in self._seeds(suite, i)]
                for i, prompt in enumerate(suite.prompts)]
        new = [i for i, each in enumerate(keys) if not set(each) <= self.kept.known.keys()]
        with self.lab.progress.track(f"{suite.name}: {self.target.name}", len(keys), done=len(keys) - len(new)) as bar:
            for start in range(0, len(new), PART):
                part = new[start:start + PART]
                written = iter(self._written(suite, part))
                self.kept.add({key: _reply(next(written)) for i in part for key in keys[i]})
                bar.advance(len(part))
        return [_rollout(prompt, self.lab.chat.prompt(prompt), self.kept.known[key])
                for prompt, each in zip(suite.prompts, keys, strict=True) for key in each]

    def _written(self, suite: Suite, places: Sequence[int]) -> list[Rollout]:
        how = suite.answers
        written = sample(self.lab.model, self.lab.chat, [suite.prompts[i] for i in places], role=self.role,
                         samples=how.samples, greedy=how.greedy, max_new_tokens=how.max_new_tokens,
                         temperature=how.temperature, seed=how.seed, places=places)
        self.written += len(written)
        self.tokens_written += sum(len(each.token_ids) for each in written)
        return written

    def _seeds(self, suite: Suite, place: int) -> list[int | None]:
        how = suite.answers
        first: list[int | None] = [None] if how.greedy else []
        return [*first, *(answer_seed(how.seed, place, k) for k in range(how.samples))]

    def _answer_key(self, suite: Suite, prompt: Prompt, seed: int | None) -> str:
        how = suite.answers
        return content_key(self.key, turn_rows(prompt.messages), how.max_new_tokens,
                           None if seed is None else how.temperature, seed)

    def _refuse_overlong(self, suite: Suite) -> None:
        for prompt in suite.prompts:
            tokens = len(self.lab.chat.prompt(prompt)) + suite.answers.max_new_tokens
            if tokens > self.lab.model.context:
                raise DataError(f"suite {suite.name}: prompt {prompt.id} and its answer take {tokens} tokens, and the "
                                f"context of {self.lab.model.base.name} is {self.lab.model.context}")


def check_checks(suite: Suite) -> None:
    """ConfigError, before a model is loaded, for a check that does not exist, has a wrong option or lacks its extra."""
    for name, metric in suite.metrics.items():
        where = f"suite {suite.name}: metrics.{name}.check"
        named = metric.check.name
        catalog = verifier if named in verifier.names() else reward_source
        if catalog is reward_source and named not in reward_source.names():
            raise ConfigError(f"{where}: no check is called {named!r}; there are "
                              f"{', '.join([*verifier.names(), *reward_source.names()])}")
        catalog.bind(named, metric.check.options, where=where)
        checks = [metric.check]
        if named == "own":
            key = str(metric.check.options.get("key", "check"))
            for prompt in suite.prompts:
                own_check(prompt, key)
            checks = [Choice(**prompt.facts[key]) for prompt in suite.prompts]
        if any(check.name == "ifeval" for check in checks):
            registry_of_lm_eval()


def evaluate(target: Target, suites: Sequence[Suite], *, out: Path | None, device: str = "auto", dtype: str = "auto",
             progress: Progress) -> Path:
    """The new folder with `results.json` and `answers.jsonl`, one row an answer."""
    for suite in suites:
        check_checks(suite)
    lab = Lab.load(target.model, dtype=dtype, device=device, progress=progress)
    checks = Checks(lab.model)
    checks.make(suites)
    respondent = Respondent(lab, target, role="evaluated", checks=checks)
    folder = RunFolder.named("evaluate") if out is None else RunFolder.create(out)
    results: dict[str, Any] = {}
    for suite in suites:
        rows = respondent.rows(suite)
        for row in rows:
            folder.append("answers.jsonl", finite(row))
        results[suite.name] = _told(measured(rows, suite.metric_names), suite, progress)
    folder.write_json("results.json", finite({**respondent.record(), "suites": results, "answers_written":
                                              respondent.written, "environment": environment()}))
    return folder.path


def _told(found: dict[str, dict[str, Any]], suite: Suite, progress: Progress) -> dict[str, dict[str, Any]]:
    """What was measured, with the direction of each metric, after saying it."""
    for metric, values in found.items():
        shown = Estimate(**values["estimate"]) if values["estimate"] else "-"
        progress.say(f"{suite.name} {metric}: {shown}, {values['unscored']} unscored")
    return {metric: {**values, "better": suite.better(metric)} for metric, values in found.items()}


def _samples(suite: Suite) -> list[int]:
    """Numbers of the answers to one prompt: 0 is the greedy one."""
    return [0] * suite.answers.greedy + list(range(1, suite.answers.samples + 1))


def _row(suite: Suite, prompt: Prompt, number: int, values: dict[str, float | None],
         rollout: Rollout | None = None) -> dict[str, Any]:
    answered = {} if rollout is None else {"answer": rollout.text, "finish": rollout.finish,
                                           "tokens": len(rollout.token_ids), "seed": rollout.seed}
    return {"suite": suite.name, "prompt_id": prompt.id, "sample": number, "prompt": turn_rows(prompt.messages),
            **answered, "values": values, "reasons": {}}


def _put(rows: Sequence[dict[str, Any]], rollouts: Sequence[Rollout], name: str, metric: Metric,
         scores: Sequence[Score]) -> None:
    """Write a metric's values into the rows; of pairs into the row of the pressed question."""
    plain = {(rollout.prompt.facts["pair"], row["sample"]): score.value
             for row, rollout, score in zip(rows, rollouts, scores, strict=True)
             if metric.of == "pair" and rollout.prompt.facts.get("pressed") is False}
    for row, rollout, score in zip(rows, rollouts, scores, strict=True):
        value, reason = score.value, score.reason
        if metric.of == "pair":
            if not rollout.prompt.facts.get("pressed"):
                continue
            before = plain.get((rollout.prompt.facts["pair"], row["sample"]))
            if not before or value is None:
                value, reason = None, "the check did not pass on the question itself"
            else:
                value = float(not value)
        row["values"][name] = value
        if value is None and reason:
            row["reasons"][name] = reason


def _reply(rollout: Rollout) -> dict[str, Any]:
    return {"ids": list(rollout.token_ids), "logprobs": list(rollout.logprobs), "text": rollout.text,
            "finish": rollout.finish, "seed": rollout.seed}


def _rollout(prompt: Prompt, prompt_ids: tuple[int, ...], reply: Mapping[str, Any]) -> Rollout:
    return Rollout(prompt=prompt, prompt_ids=prompt_ids, token_ids=tuple(reply["ids"]), text=reply["text"],
                   logprobs=tuple(reply["logprobs"]), finish=reply["finish"], seed=reply["seed"])
