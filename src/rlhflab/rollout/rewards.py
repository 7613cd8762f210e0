"""Where a rollout's reward comes from: a reward role, a verifier, any callable, or a weighted mixture of them.

A reward takes text (through `Rollout`), so a reward model may have another tokenizer than the policy. An answer that
could not be scored has the value None, never 0.
"""

import importlib
from collections.abc import Callable, Sequence
from pathlib import Path

from rlhflab.catalog import Catalog
from rlhflab.config import RewardSource
from rlhflab.data.types import Rollout, Score
from rlhflab.errors import ConfigError
from rlhflab.model.shared import SharedModel
from rlhflab.rollout.sampling import rollout_trees
from rlhflab.rollout.scoring import score_trees
from rlhflab.scenarios import scenario

Reward = Callable[[Sequence[Rollout]], list[Score]]
reward_source: Catalog[Callable[..., Reward]] = Catalog("reward source")
"""Entries take the model and the micro-batch budget, and return a reward."""


@reward_source("role")
def role_reward(model: SharedModel, micro_tokens: int, *, path: str | None = None, role: str = "reward") -> Reward:
    """A trained reward role, in standard deviations of its scores on SFT samples. `path`: its folder."""
    if role not in model.records:
        if path is None:
            raise ConfigError("reward: a role needs the path of its folder, such as runs/reward/roles/reward")
        model.load_role(role, Path(path), head="stored")

    def score(rollouts: Sequence[Rollout]) -> list[Score]:
        record = model.records[role]
        raw = [float(x) for tree in score_trees(model, rollout_trees(rollouts), role=role, micro_tokens=micro_tokens)
               for x in tree]
        return [Score(value=(x - record.score_mean) / record.score_std, by=f"role:{role}") for x in raw]

    return score


@reward_source("gold")
def gold_reward(model: SharedModel, micro_tokens: int, *, scenario_name: str = "helpdesk") -> Reward:
    """The scenario's own gold check, in [0, 1]: an oracle that real tasks do not have."""
    task = scenario(scenario_name)
    return lambda rollouts: [Score(value=task.judge(r.prompt, r.text, stopped=r.stopped).gold,
                                   by=f"gold:{scenario_name}") for r in rollouts]


@reward_source("words")
def words_reward(model: SharedModel, micro_tokens: int, *, most: int = 12) -> Reward:
    """1 for an answer of at most `most` words, less by 1/most for every word above, at least 0."""
    return lambda rollouts: [Score(value=max(0.0, 1 - max(0, len(r.text.split()) - most) / most), by="words")
                             for r in rollouts]


@reward_source("callable")
def callable_reward(model: SharedModel, micro_tokens: int, *, function: str = "") -> Reward:
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


def make_reward(sources: Sequence[RewardSource], model: SharedModel, *, micro_tokens: int) -> Reward:
    """The weighted sum of `sources`. Unscored by one source is unscored."""
    terms = [(source.weight, reward_source.bind(source.name, source.options, where=f"reward.{i}")(model, micro_tokens))
             for i, source in enumerate(sources)]

    def score(rollouts: Sequence[Rollout]) -> list[Score]:
        columns = [(weight, term(rollouts)) for weight, term in terms]
        return [_weighted([(weight, column[i]) for weight, column in columns]) for i in range(len(rollouts))]

    return score


def _weighted(terms: Sequence[tuple[float, Score]]) -> Score:
    missing = next((score for _, score in terms if score.value is None), None)
    if missing is not None:
        return missing
    return Score(value=sum(weight * score.value for weight, score in terms if score.value is not None),
                 by=" + ".join(score.by for _, score in terms))
