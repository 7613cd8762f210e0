"""What the scores of one reward source go through before they are weighted and added.

An entry takes a reward and the policy's model, and returns a reward. Unscored stays unscored.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Annotated

from pydantic import Field
from scipy.special import expit

from rlhflab.catalog import Catalog
from rlhflab.data.chat import ChatFormat
from rlhflab.data.types import Message, Rollout, Score
from rlhflab.errors import ConfigError
from rlhflab.model.shared import SharedModel
from rlhflab.rollout.sampling import sample
from rlhflab.rollout.scoring import Reward

reward_shaping: Catalog[Callable[..., Reward]] = Catalog("reward shaping")


@reward_shaping("clip", source="OpenRLHF's reward clip range")
def clip(reward: Reward, model: SharedModel, *, low: float = -5.0, high: float = 5.0) -> Reward:
    """Scores below `low` become `low`, scores above `high` become `high`."""
    if low >= high:
        raise ConfigError(f"shaping.low: {low:g} is not below high, which is {high:g}")
    return lambda rollouts: [_with_value(score, lambda x: min(max(x, low), high)) for score in reward(rollouts)]


@reward_shaping("standardise", source="Welford 1962, Technometrics 4(3); running normalisation of OpenAI's baselines")
def standardise(reward: Reward, model: SharedModel, *, floor: Annotated[float, Field(gt=0)] = 1e-6) -> Reward:
    """Deviations from the mean of all scores of the run so far; `floor`: the least deviation divided by."""
    return Standardised(reward, floor)


class Standardised:
    """Scores by the running mean and deviation, those of this rollout included.

    They change from step to step, so they have to be carried through checkpoints.
    """

    def __init__(self, reward: Reward, floor: float) -> None:
        self.reward, self.floor = reward, floor
        self.count, self.mean, self.squares = 0, 0.0, 0.0

    def __call__(self, rollouts: Sequence[Rollout]) -> list[Score]:
        """Scores of the rollouts, after they were counted in."""
        scores = self.reward(rollouts)
        for value in (score.value for score in scores if score.value is not None):
            self.count += 1
            change = value - self.mean
            self.mean += change / self.count
            self.squares += change * (value - self.mean)
        deviation = max(math.sqrt(self.squares / max(1, self.count)), self.floor)
        return [_with_value(score, lambda x: (x - self.mean) / deviation) for score in scores]

    def state_dict(self) -> dict[str, float]:
        """Count, mean and sum of squared differences from it."""
        return {"count": float(self.count), "mean": self.mean, "squares": self.squares}

    def load_state_dict(self, state: Mapping[str, float]) -> None:
        """Put back what `state_dict` returned."""
        self.count, self.mean, self.squares = int(state["count"]), state["mean"], state["squares"]


@reward_shaping("par", needs=("reference",), source="PAR, arXiv:2502.18770")
def preference_as_reward(reward: Reward, model: SharedModel, *, samples: Annotated[int, Field(ge=1)] = 1,
                         max_new_tokens: Annotated[int, Field(ge=1)] = 64,
                         seed: Annotated[int, Field(ge=0)] = 0) -> Reward:
    """Mean of sigmoid(r - r_ref) over `samples` answers of the reference to the same prompt: in [0, 1].

    The chance, by Bradley-Terry, that an answer is preferred to one of the reference, which is the policy as it
    started. Its answers depend on the rollout's prompts and the seed alone, so that nothing has to be remembered
    between the steps.
    """
    chat = ChatFormat(model.tokenizer)

    def shaped(rollouts: Sequence[Rollout]) -> list[Score]:
        scores = reward(rollouts)
        prompts = {rollout.prompt.messages: rollout.prompt for rollout in rollouts}
        role = "reference" if "reference" in model.records else None  # without one the policy began as the base
        answers = sample(model, chat, list(prompts.values()), role=role, samples=samples,
                         max_new_tokens=max_new_tokens, seed=seed)
        of_prompt: dict[tuple[Message, ...], list[float]] = {messages: [] for messages in prompts}
        for answer, score in zip(answers, reward(answers), strict=True):
            if score.value is not None:
                of_prompt[answer.prompt.messages].append(score.value)
        return [_against(score, of_prompt[rollout.prompt.messages])
                for score, rollout in zip(scores, rollouts, strict=True)]

    return shaped


def _against(score: Score, references: Sequence[float]) -> Score:
    if score.value is not None and not references:
        return Score(value=None, by=score.by, reason="no answer of the reference could be scored")
    return _with_value(score, lambda x: float(expit([x - reference for reference in references]).mean()))


def _with_value(score: Score, change: Callable[[float], float]) -> Score:
    return score if score.value is None else replace(score, value=change(score.value))
