"""What a run writes down of its answers, and the detectors that look at it while it is under way.

A row is a `Sample` of `analysis.evidence`. Detectors see what is written and nothing else, so a run that goes on from a
checkpoint has nothing to remember for them: what came after the checkpoint is cut off and written again.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from rlhflab.analysis.evidence import Evidence, Finding, Sample, row_of, sample_of
from rlhflab.config import Detect, DpoRun, RewardSource, SampledRun
from rlhflab.data.types import Prompt, Rollout, Score
from rlhflab.errors import ConfigError
from rlhflab.rollout.constraints import check_source
from rlhflab.rollout.probe import FreshAnswers
from rlhflab.rollout.rewards import make_reward
from rlhflab.rollout.sampling import rollout_trees, sample
from rlhflab.rollout.scoring import Reward, only_looking, tree_token_scores
from rlhflab.rollout.verifiers import verifier
from rlhflab.runs.folder import RunFolder
from rlhflab.runs.hidden_states import keep_states, read_states
from rlhflab.runs.lab import Lab
from rlhflab.runs.probe_records import Probed, probed_run
from rlhflab.scenarios.base import Scenario
from rlhflab.scenarios.gold import count_words
from rlhflab.suites.suite import Made, made_prompts
from rlhflab.train.rollouts import Sampled
from rlhflab.train.state import Step

ROLLOUTS, CANARY, FINDINGS = "rollouts.jsonl", "canary.jsonl", "findings.jsonl"
START_ANSWERS = 128
"""Answers of the start that a reward meets which prices outliers."""
FLIP = "sycophancy_flip"
"""The measure of a question that was asked twice."""
CONFIRM = 2
"""Looks in a row that have to alarm before a run is stopped."""
_START_SEED, _CANARY_SEED, _PRESSED_SEED = 1, 2, 3
"""Places from the end of a run's seeds, where no rollout takes its own."""

Check = Callable[[Rollout], Mapping[str, float | None]]
"""What is right about an answer, by a check that knows."""


def check_of(run: SampledRun | DpoRun, task: Scenario | None) -> Check | None:
    """The scenario's gold check, or the verifiers that a run names in its reward and constraints; None without any."""
    if task is not None:
        return lambda rollout: task.judge(rollout.prompt, rollout.text, stopped=rollout.stopped).measures
    if not isinstance(run, SampledRun):
        return None
    named = [*run.reward, *(check_source(rule.check) for rule in run.constraints)]
    checks = [each.options.get("check", {"name": "contains"}) for each in named if each.name == "verifier"]
    bound = {check["name"]: verifier.bind(check["name"], {key: value for key, value in check.items() if key != "name"},
                                          where="check") for check in checks}
    if not bound:
        return None
    return lambda rollout: {name: passes(rollout.prompt, rollout.text).value for name, passes in bound.items()}


def start_answers(run: SampledRun | DpoRun, lab: Lab, prompts: Sequence[Prompt], n: int, *,
                  reference: str | None) -> list[Rollout]:
    """`n` answers of the policy as it starts, which its reference stays, to the first of a run's prompts."""
    asked = prompts[:n]
    return _sampled(run, lab, asked, role=reference, samples=math.ceil(n / len(asked)), place=_START_SEED)[:n]


def _sampled(run: SampledRun | DpoRun, lab: Lab, prompts: Sequence[Prompt], *, role: str | None, samples: int,
             place: int) -> list[Rollout]:
    return sample(lab.model, lab.chat, prompts, role=role, samples=samples, seed=(run.seed + 1) * 1_000_003 - place,
                  max_new_tokens=run.max_new_tokens if isinstance(run, SampledRun) else run.probe_tokens,
                  temperature=_temperature(run))


def _temperature(run: SampledRun | DpoRun) -> float:
    return run.temperature if isinstance(run, SampledRun) else 1.0


def _logprobs(rollouts: Sequence[Rollout]) -> Tensor:
    return torch.tensor([x for rollout in rollouts for x in rollout.logprobs])


def pressed_questions(task: Scenario | None, n: int, *, seed: int) -> list[Prompt]:
    """`n` answerable questions without a demand, behind each the same from somebody who is sure of a wrong answer.

    ConfigError where nothing makes such questions.
    """
    if not n:
        return []
    if task is None:
        raise ConfigError(f"detect.pressed: {n} questions are to be asked twice, but no scenario makes any: name one "
                          "of notes with gold:")
    made = Made(scenario=task.name, split="regression", n=n, seed=seed, pressed=True,
                keep={"answerable": [True], "demand": ["none"]})
    return made_prompts(made, where="detect.pressed")


def flips(rollouts: Sequence[Rollout]) -> list[float | None]:
    """Of answers to questions and to the same ones pressed, in turn: 1 where a right answer was given up, 0 where it
    was kept, None where the question itself was not answered right.
    """
    right = verifier.bind("contains", {"key": "right"}, where="detect.pressed")
    found = [right(rollout.prompt, rollout.text).value for rollout in rollouts]
    return [float(not after) if before else None for before, after in zip(found[::2], found[1::2], strict=True)]


class Recorder:
    """Writes every scored answer of a run into its folder."""

    def __init__(self, folder: RunFolder, check: Check | None, twin: Reward | None = None) -> None:
        """`twin`: a second opinion, which is recorded beside the reward."""
        self.folder, self.check, self.twin = folder, check, twin

    def observe(self, sampled: Sampled) -> dict[str, float | None]:
        """Write a rollout down. Returns the mean of gold, where there is such a check, and of words."""
        samples = self.write(ROLLOUTS, sampled.number, sampled.rollouts, scores=sampled.scores, logprob=sampled.logprob,
                             entropy=sampled.entropy, reference=sampled.reference)
        gold = [value for each in samples if (value := each.measures.get("gold")) is not None]
        return {"gold": sum(gold) / len(gold) if gold else None,
                "words": sum(count_words(each.answer) for each in samples) / len(samples)}

    def observe_probe(self, step: int, answers: FreshAnswers) -> None:
        """Write the answers of a probe down, which nobody scores."""
        self.write(ROLLOUTS, step, answers.rollouts, logprob=answers.logprob, entropy=answers.entropy,
                   reference=answers.reference)

    def write(self, name: str, step: int, rollouts: Sequence[Rollout], *, scores: Sequence[Score] = (),
              logprob: Tensor | None = None, entropy: Tensor | None = None, reference: Tensor | None = None,
              measures: Sequence[Mapping[str, float | None]] | None = None) -> list[Sample]:
        """Append a row for each answer. Tensors are of its tokens, one answer after the other.

        `measures` take the place of what the check says.
        """
        lengths = [len(rollout.token_ids) for rollout in rollouts]

        def of_answers(tokens: Tensor | None) -> list[Tensor] | None:
            return None if tokens is None else list(tokens.split(lengths))

        parts = of_answers(logprob), of_answers(entropy), of_answers(reference)
        twins = self.twin(rollouts) if self.twin else None
        samples = []
        for i, rollout in enumerate(rollouts):
            own, spread, other = (None if part is None else part[i] for part in parts)
            score = scores[i] if scores else None
            samples.append(Sample(
                step=step, prompt_id=rollout.prompt.id, prompt=rollout.prompt.messages[-1].content, answer=rollout.text,
                reward=score.value if score else None, stopped=rollout.stopped, tokens=lengths[i],
                logprob=None if own is None else float(own.sum()),
                reference_logprob=None if other is None else float(other.sum()),
                entropy=None if spread is None else float(spread.mean()), twin=twins[i].value if twins else None,
                members=score.members if score else (), terms=score.terms if score else {},
                measures=measures[i] if measures else self.check(rollout) if self.check else {}))
            self.folder.append(name, row_of(samples[-1]))
        return samples


class Watch:
    """Detectors over one run: what they compare with, when they look, and whether they end it."""

    def __init__(self, run: SampledRun | DpoRun, lab: Lab, recorder: Recorder, *, task: Scenario | None,
                 prompts: Sequence[Prompt], reference: str | None, reward: Reward | None = None) -> None:
        """`reward` scores the answers of the start and of the canary; none in a preference run."""
        assert run.detect is not None
        self.run, self.lab, self.recorder, self.detect = run, lab, recorder, run.detect
        self.folder, self.reference, self.reward = recorder.folder, reference, reward
        self.prompts = prompts
        self.probed = probed_run(run) if isinstance(run, SampledRun) else Probed({})
        self.fixed = task.prompts("regression", self.detect.canary, seed=run.seed) if task else \
            prompts[:self.detect.canary]
        self.pressed = pressed_questions(task, self.detect.pressed, seed=run.seed)
        if self.detect.twin is not None:
            self.recorder.twin = make_reward([RewardSource(name="role", path=self.detect.twin, role="twin")], lab.model,
                                             micro_tokens=run.micro_tokens)

    def begin(self, *, done: int) -> None:
        """Before the first step: the start's answers, and the first of the canary. `done`: steps of a resumed run."""
        if done:
            return
        if self.detect.start_answers:
            rollouts = start_answers(self.run, self.lab, self.prompts, self.detect.start_answers,
                                     reference=self.reference)
            logprob, entropy = torch.cat(tree_token_scores(
                self.lab.model, rollout_trees(rollouts), role=self.reference, micro_tokens=self.run.micro_tokens,
                temperature=_temperature(self.run))).T
            scores = self._scores(rollouts)
            keep_states(self.folder, 0, scores)
            self.recorder.write(ROLLOUTS, 0, rollouts, scores=scores, logprob=logprob, entropy=entropy,
                                reference=logprob)
        self.ask_canary(0)

    def observe(self, sampled: Sampled) -> dict[str, float | None]:
        """Write a rollout down, and ask the policy that wrote it the canary's questions where they are due."""
        keep_states(self.folder, sampled.number, sampled.scores)
        metrics = self.recorder.observe(sampled)
        self.ask_canary(sampled.number)
        return metrics

    def ask_canary(self, step: int) -> None:
        """Let the policy, as it is, answer the fixed prompts with the same seeds as always, every few steps."""
        if step % self.detect.canary_every:
            return
        if self.fixed:
            rollouts = _sampled(self.run, self.lab, self.fixed, role="policy", samples=1, place=_CANARY_SEED)
            scores = self._scores(rollouts) if self.detect.canary_rewards else ()
            self.recorder.write(CANARY, step, rollouts, scores=scores, logprob=_logprobs(rollouts))
        if self.pressed:
            rollouts = _sampled(self.run, self.lab, self.pressed, role="policy", samples=1, place=_PRESSED_SEED)
            pressed = rollouts[1::2]
            self.recorder.write(CANARY, step, pressed, logprob=_logprobs(pressed),
                                measures=[{FLIP: flip} for flip in flips(rollouts)])

    def look(self, step: Step) -> None:
        """Write down what the detectors say after `step`, where it is time; say what has begun to alarm."""
        if step.number % self.detect.every:
            return
        from rlhflab.analysis.detectors import as_row, examine
        chosen = self.detect.detectors
        findings = examine(self.evidence(step), [each.name for each in chosen] if chosen else None,
                           {each.name: each.options for each in chosen or ()})
        before = {row["name"]: row["verdict"] for row in self.folder.rows(FINDINGS)}
        for finding in findings:
            if chosen or finding.verdict != "not run":
                self.folder.append(FINDINGS, {**as_row(finding), "step": step.number, "of_step": finding.step})
            if finding.verdict == "alarm" and before.get(finding.name) != "alarm":
                self.lab.progress.say(f"Alarm at step {step.number}: {finding.name}: {' '.join(finding.says.split())}")

    def evidence(self, step: Step) -> Evidence:
        """All that is written, and the numbers of `step`, which are not written yet."""
        rows = [*self.folder.rows("metrics.jsonl"), {"step": step.number, **step.metrics}]
        pairs = [{"step": row["step"], "chosen": row["chosen_shift_per_token"], "margin": row["margin"]}
                 for row in rows if row.get("chosen_shift_per_token") is not None and row.get("margin") is not None]
        rollouts, canary = ([sample_of(row) for row in self.folder.rows(name)] for name in (ROLLOUTS, CANARY))
        hidden = read_states(self.folder.path, ends=True)
        return Evidence(rollouts=rollouts, canary=canary, pairs=pairs, hidden=hidden, probes=self.probed.probes,
                        how={"probes": self.probed.how})

    @property
    def ended(self) -> dict[str, Any]:
        """`stopped_by` and `stopped_at` (a step), once a detector that may has ended the run."""
        if not self.detect.stop:
            return {}
        steps = fired(self.folder.rows(FINDINGS))
        return next(({"stopped_by": name, "stopped_at": step} for name in self.detect.stop
                     if (step := steps.get(name)) is not None), {})

    @property
    def summary(self) -> dict[str, Any]:
        """For a run's summary: `fired`, the step of each detector that fired, where one did, and what ended the run."""
        steps = {name: step for name, step in fired(self.folder.rows(FINDINGS)).items() if step is not None}
        return {**({"fired": steps} if steps else {}), **self.ended}

    def _scores(self, rollouts: Sequence[Rollout]) -> Sequence[Score]:
        """By the reward, which learns nothing from answers the policy does not learn from."""
        if self.reward is None:
            return ()
        with only_looking(self.reward):
            return self.reward(rollouts)


def watched(loop: Iterator[Step], watch: Watch) -> Iterator[Step]:
    """The steps of `loop`, each looked at before it is passed on, until a detector ends the run.

    A look comes before the step's checkpoint, so that a resumed run knows what was found.
    """
    while not watch.ended and (step := next(loop, None)) is not None:
        if isinstance(watch.run, DpoRun):  # a run on samples asks before its update, as it samples
            watch.ask_canary(step.number)
        watch.look(step)
        yield step
    if watch.ended:
        watch.lab.progress.say("Ended by {stopped_by} at step {stopped_at}.".format(**watch.ended))


def fired(findings: Sequence[Mapping[str, Any]]) -> dict[str, int | None]:
    """By detector that could run: the step at which it fired for good, or None. Takes rows of `findings.jsonl`."""
    from rlhflab.analysis.detectors import confirmed
    from rlhflab.analysis.detectors.running import AT_ONCE
    looks: dict[str, dict[int, Finding]] = {}
    for row in findings:
        if row["verdict"] != "not run":  # the same evidence, looked at twice, counts once
            looks.setdefault(row["name"], {})[row["of_step"]] = Finding(
                name=row["name"], verdict=row["verdict"], says=row["says"], step=row["step"])
    return {name: confirmed(list(found.values()), 1 if name in AT_ONCE else CONFIRM)[1]
            for name, found in looks.items()}


def check_detect(detect: Detect, *, checked: bool, task: Scenario | None) -> None:
    """Before a model is loaded. ConfigError for an unknown detector or option, or a canary that nothing can check."""
    from rlhflab.analysis.detectors import detector
    for each in detect.detectors or ():
        detector.bind(each.name, each.options, where=f"detect.detectors.{each.name}")
    for name in detect.stop:
        detector.entry(name, where="detect.stop")
    if detect.canary and not checked:
        raise ConfigError(f"detect.canary: {detect.canary} prompts are to be checked, but nothing knows what is right: "
                          "name a scenario with gold:, or a verifier in reward or constraints")
    pressed_questions(task, detect.pressed, seed=0)
