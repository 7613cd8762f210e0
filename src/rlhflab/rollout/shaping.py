"""What the scores of one reward source go through before they are weighted and added.

An entry takes a reward and the policy's model, and returns a reward. Unscored stays unscored.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Annotated, Literal

from pydantic import Field
from scipy.special import expit

from rlhflab.catalog import Catalog
from rlhflab.data.chat import ChatFormat
from rlhflab.data.types import Message, Rollout, Score
from rlhflab.errors import ConfigError
from rlhflab.model.shared import SharedModel
from rlhflab.rollout.sampling import sample
from rlhflab.rollout.scoring import Reward
from rlhflab.scenarios.gold import ABSTAIN_PHRASES, CONFIDENCE_MARKERS, has_phrase

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


Confidence = Literal["probability", "markers"]


def answer_probability(rollout: Rollout) -> float:
    """Geometric mean of the tokens' probabilities: what the policy itself was sure of, in any language."""
    return math.exp(sum(rollout.logprobs) / len(rollout.logprobs))


def stated_confidence(rollout: Rollout) -> float:
    """1 for an answer in a confident tone, 0 for one that says it does not know, .5 for both or neither; English."""
    sure, unsure = (has_phrase(rollout.text, phrases) for phrases in (CONFIDENCE_MARKERS, ABSTAIN_PHRASES))
    return (1 + sure - unsure) / 2


CONFIDENCE: Mapping[Confidence, Callable[[Rollout], float]] = {
    "probability": answer_probability, "markers": stated_confidence}


@reward_shaping("confidence", source="PPO-C, arXiv:2410.09724 section 4.2")
def confidence_calibrated(reward: Reward, model: SharedModel, *, weight: Annotated[float, Field(ge=0)] = 0.5,
                          rate: Annotated[float, Field(gt=0, le=1)] = 0.1,
                          by: Confidence = "probability") -> Reward:
    """Score + weight (score - mean) (c - .5), c in [0, 1] how confident the answer is: being sure of a bad one costs.

    `mean`: a running mean of the scores that moves by `rate` towards that of each rollout. `by`: the answer's
    probability, or markers of confidence and doubt in its text.
    """
    return ConfidenceCalibrated(reward, weight=weight, rate=rate, confidence=CONFIDENCE[by])


class ConfidenceCalibrated:
    """Scores stretched about their running mean where an answer is sure of itself, and drawn to it where it is not.

    The mean changes from step to step, so it has to be carried through checkpoints.
    """

    def __init__(self, reward: Reward, *, weight: float, rate: float, confidence: Callable[[Rollout], float]) -> None:
        self.reward, self.weight, self.rate, self.confidence = reward, weight, rate, confidence
        self.mean: float | None = None

    def __call__(self, rollouts: Sequence[Rollout]) -> list[Score]:
        """Scores of the rollouts, after the mean has moved towards theirs; the first rollout's is the first mean."""
        scores = self.reward(rollouts)
        values = [score.value for score in scores if score.value is not None]
        if values:
            of_rollout = sum(values) / len(values)
            self.mean = of_rollout if self.mean is None else self.mean + self.rate * (of_rollout - self.mean)
        return [self._calibrated(score, rollout) for score, rollout in zip(scores, rollouts, strict=True)]

    def _calibrated(self, score: Score, rollout: Rollout) -> Score:
        factor, mean = self.weight * (self.confidence(rollout) - 0.5), self.mean or 0.0
        return _with_value(score, lambda x: x + factor * (x - mean))

    def state_dict(self) -> dict[str, float]:
        """The mean, once there is one."""
        return {} if self.mean is None else {"mean": self.mean}

    def load_state_dict(self, state: Mapping[str, float]) -> None:
        """Put back what `state_dict` returned."""
        self.mean = state.get("mean")


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
