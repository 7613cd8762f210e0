"""Where a rollout's reward comes from: a reward role, a verifier, a judge, a server, any callable, or their mixture.

A reward takes text (through `Rollout`), so a reward model may have another tokenizer than the policy. An answer that
could not be scored has the value None, never 0.
"""

import importlib
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated

from pydantic import Field

from rlhflab.catalog import Catalog
from rlhflab.config import Choice, RewardSource
from rlhflab.data.chat import ChatFormat
from rlhflab.data.types import Rollout, Score
from rlhflab.errors import ConfigError
from rlhflab.model.shared import SharedModel
from rlhflab.rollout.http import http_reward
from rlhflab.rollout.judges import judge_reward
from rlhflab.rollout.reward_role import Combine, RoleReward, other_base
from rlhflab.rollout.scoring import Carried
from rlhflab.rollout.scoring import Reward as Reward
from rlhflab.rollout.shaping import reward_shaping
from rlhflab.rollout.verifiers import verifier
from rlhflab.scenarios import scenario

reward_source: Catalog[Callable[..., Reward]] = Catalog("reward source")
"""Entries take the policy's model and the micro-batch budget, and return a reward."""
CONTAINS = Choice(name="contains")

reward_source("http", needs=("a server",))(http_reward)
reward_source("judge", needs=("a judge model",), source="arXiv:2306.05685 section 3.4")(judge_reward)


@reward_source("role", needs=("reward role",), source="arXiv:2203.02155; combine: arXiv:2310.02743; "
               "length_correction: arXiv:2409.17407; outlier_weight: after arXiv:2510.13694")
def role_reward(policy: SharedModel, micro_tokens: int, *, path: str | None = None, role: str = "reward",
                model: str | None = None, combine: Combine = "mean",
                uwo_lambda: Annotated[float, Field(ge=0)] = 0.1, length_correction: bool = False,
                outlier_weight: Annotated[float, Field(ge=0)] = 0.0) -> Reward:
    """A trained reward role, in standard deviations of its scores on SFT samples. `path`: its folder.

    `model`: the base model it was trained on, by name, where that is not the policy's. `combine`: of an ensemble's
    members the mean, the least (wco), or the mean less `uwo_lambda` x their variance (uwo). `length_correction`: less
    what the role usually says of answers of the same length. `outlier_weight`: price of a state in which the role finds
    an answer that lies one limit beyond the limit of the start's answers.
    """
    scoring = policy if model is None else other_base(model, policy)
    if path is not None and role in scoring.records:
        raise ConfigError(f"reward: a role {role!r} is loaded already; give the one in {path} another name with role:")
    if role not in scoring.records:
        if path is None:
            raise ConfigError("reward: a role needs the path of its folder, such as runs/reward/roles/reward")
        scoring.load_role(role, Path(path), head="stored", share=True)
    if length_correction and not scoring.records[role].length_curve:
        raise ConfigError(f"reward: role {role!r} holds no length curve to correct by; train it again")
    return RoleReward(model=scoring, role=role, micro_tokens=micro_tokens, combine=combine, uwo_lambda=uwo_lambda,
                      length_correction=length_correction, outlier_weight=outlier_weight,
                      retold=None if scoring is policy else ChatFormat(scoring.tokenizer))


@reward_source("verifier", needs=("facts, for some",))
def verifier_reward(policy: SharedModel, micro_tokens: int, *, check: Choice = CONTAINS) -> Reward:
    """1 for an answer that passes a check, 0 for one that fails; `rlhflab list verifiers` shows the checks."""
    passes = verifier.bind(check.name, check.options, where="reward.check")
    return lambda rollouts: [passes(rollout.prompt, rollout.text) for rollout in rollouts]


@reward_source("gold", needs=("a scenario's facts",))
def gold_reward(policy: SharedModel, micro_tokens: int, *, scenario_name: str = "helpdesk",
                measure: str = "gold") -> Reward:
    """The scenario's own gold check, in [0, 1]: an oracle that real tasks do not have. `measure`: one part of it."""
    task = scenario(scenario_name)
    if measure not in (known := [each.name for each in task.measures]):
        raise ConfigError(f"gold: scenario {scenario_name} has no measure {measure!r}; it has {', '.join(known)}")

    def score(rollout: Rollout) -> Score:
        verdict = task.judge(rollout.prompt, rollout.text, stopped=rollout.stopped)
        return Score(value=verdict.measures[measure], by=f"gold:{scenario_name}", reason=verdict.reason)

    return lambda rollouts: [score(rollout) for rollout in rollouts]


@reward_source("stopped")
def stopped_reward(policy: SharedModel, micro_tokens: int) -> Reward:
    """1 for an answer that ended by itself, 0 for one that was cut off."""
    return lambda rollouts: [Score(value=float(r.stopped), by="stopped") for r in rollouts]


@reward_source("length")
def length_reward(policy: SharedModel, micro_tokens: int) -> Reward:
    """The number of words: to measure by, not to learn from."""
    return lambda rollouts: [Score(value=float(len(r.text.split())), by="length") for r in rollouts]


@reward_source("words")
def words_reward(policy: SharedModel, micro_tokens: int, *, most: Annotated[int, Field(ge=1)] = 12) -> Reward:
    """1 for an answer of at most `most` words, less by 1/most for every word above, at least 0."""
    return lambda rollouts: [Score(value=max(0.0, 1 - max(0, len(r.text.split()) - most) / most), by="words")
                             for r in rollouts]


@reward_source("callable", needs=("an importable function",))
def callable_reward(policy: SharedModel, micro_tokens: int, *, function: str = "") -> Reward:
    """Any Python function `module:name` from a prompt's messages and an answer's text to a number or None."""
    module, _, name = function.partition(":")
    try:
        score_one = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise ConfigError(f"reward.function: {function!r} is not an importable module:name ({error})") from error

    def score(rollouts: Sequence[Rollout]) -> list[Score]:
        values = [score_one([{"role": m.role, "content": m.content} for m in r.prompt.messages], r.text)
                  for r in rollouts]
        return [Score(value=None if value is None else float(value), by=function) for value in values]

    return score


# -- the mixture ---------------------------------------------------------------------------------------------------


def make_reward(sources: Sequence[RewardSource], model: SharedModel, *, micro_tokens: int) -> "Mixture":
    """The weighted sum of `sources`, each shaped and capped. ConfigError names the source that cannot be made."""
    carried: dict[str, Carried] = {}
    terms, unmet = [], []
    for i, source in enumerate(sources):
        term: Reward = reward_source.bind(source.name, source.options, where=f"reward.{i}")(model, micro_tokens)
        if isinstance(term, RoleReward) and term.outlier_weight:
            unmet.append(term)
        if source.shaping is not None:
            shaping = reward_shaping.bind(source.shaping.name, source.shaping.options, where=f"reward.{i}.shaping")
            term = shaping(term, model)
        if isinstance(term, Carried):
            carried[f"reward.{i}.{source.name}"] = term
        terms.append((source, term))
    return Mixture(terms, carried, unmet)


class Mixture:
    """The weighted sum of terms. Unscored by one term is unscored."""

    def __init__(self, terms: Sequence[tuple[RewardSource, Reward]], carried: Mapping[str, Carried],
                 unmet: Sequence[RoleReward] = ()) -> None:
        self.terms = terms
        self.carried = carried
        """Terms that change from step to step; a loop keeps them in its checkpoints by `TrainState.carry`."""
        self.unmet = unmet
        """Terms that have to meet the start's answers before they score any."""

    def __call__(self, rollouts: Sequence[Rollout]) -> list[Score]:
        """One score a rollout, in order."""
        columns = [term(rollouts) for _, term in self.terms]
        return [self._sum(scores) for scores in zip(*columns, strict=True)]

    def meet(self, answers: Sequence[Rollout]) -> None:
        """Show the start's answers to the terms that have to meet them."""
        for term in self.unmet:
            term.meet(answers)

    def _sum(self, scores: Sequence[Score]) -> Score:
        total = 0.0
        terms: dict[str, float] = {}
        for (source, _), score in zip(self.terms, scores, strict=True):
            if score.value is None:
                return score
            cap = math.inf if source.cap is None else source.cap
            added = source.weight * min(max(score.value, -cap), cap)
            total += added
            terms[score.by if score.by not in terms else f"{score.by} ({len(terms) + 1})"] = added
        return Score(value=total, by=" + ".join(score.by for score in scores), terms=terms if len(terms) > 1 else {},
                     members=next((score.members for score in scores if score.members), ()),
                     state=next((score.state for score in scores if score.state is not None), None))
