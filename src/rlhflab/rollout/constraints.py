"""Constraints on the mean of checks, each with a multiplier that rises until the constraint holds.

max E[r] subject to E[c_i] >= theta_i, by dual ascent on the Lagrangian r + sum of mu_i (c_i - theta_i) (Moskovitz et
al. 2023, arXiv:2310.04373). No loss here: an answer's price is part of its reward.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace

from rlhflab.config import Choice, Constraint
from rlhflab.data.types import Rollout, Score
from rlhflab.model.shared import SharedModel
from rlhflab.rollout.rewards import Mixture, reward_source
from rlhflab.rollout.scoring import Carried, Reward
from rlhflab.rollout.verifiers import verifier


def check_source(check: Choice) -> Choice:
    """The reward source that does a check, which may be named by its verifier alone."""
    return Choice(name="verifier", check=check.model_dump()) if check.name in verifier.names() else check


class Multiplier:
    """The price of one constraint. It changes from rollout to rollout, so it is carried through checkpoints."""

    def __init__(self, rule: Constraint, check: Reward, *, name: str) -> None:
        self.rule, self.check, self.name = rule, check, name
        self.value = 0.0

    def __call__(self, rollouts: Sequence[Rollout], scores: Sequence[Score]) -> tuple[list[Score], float | None]:
        """The scores with the price as it is, and the mean of the check; then the price follows that mean.

        An answer of which the check says nothing is neither paid nor counted.
        """
        checked = [score.value for score in self.check(rollouts)]
        priced = [self._priced(score, value) for score, value in zip(scores, checked, strict=True)]
        found = [value for value in checked if value is not None]
        if not found:
            return priced, None
        mean = sum(found) / len(found)
        self.value = min(max(self.value + self.rule.rate * (self.rule.at_least - mean), 0.0), self.rule.most)
        return priced, mean

    def _priced(self, score: Score, checked: float | None) -> Score:
        if score.value is None or checked is None:
            return score
        price = self.value * (checked - self.rule.at_least)
        return replace(score, value=score.value + price,
                       terms={**(score.terms or {score.by: score.value}), self.name: price})

    def state_dict(self) -> dict[str, float]:
        """The price."""
        return {"value": self.value}

    def load_state_dict(self, state: Mapping[str, float]) -> None:
        """Put back what `state_dict` returned."""
        self.value = state["value"]


class Constrained:
    """A reward under constraints."""

    def __init__(self, reward: Mixture, multipliers: Sequence[Multiplier]) -> None:
        self.reward, self.multipliers = reward, multipliers
        self.metrics: dict[str, float | None] = {}
        """Of the last rollout: the prices in its scores, and the means of the checks."""

    @property
    def carried(self) -> Mapping[str, Carried]:
        """What changes from step to step."""
        return {**self.reward.carried, **{each.name: each for each in self.multipliers}}

    def __call__(self, rollouts: Sequence[Rollout]) -> list[Score]:
        """One score a rollout, in order, with its prices."""
        scores = self.reward(rollouts)
        for each in self.multipliers:
            self.metrics[f"multiplier.{each.name}"] = each.value
            scores, self.metrics[f"mean.{each.name}"] = each(rollouts, scores)
        return scores


def constrained(reward: Mixture, rules: Sequence[Constraint], model: SharedModel, *,
                micro_tokens: int) -> Mixture | Constrained:
    """`reward` under the constraints of a run, if it has any. ConfigError names the check that cannot be made."""
    multipliers = []
    for i, rule in enumerate(rules):
        source = check_source(rule.check)
        check = reward_source.bind(source.name, source.options, where=f"constraints.{i}.check")(model, micro_tokens)
        multipliers.append(Multiplier(rule, check, name=f"constraint.{i}.{rule.check.name}"))
    return Constrained(reward, multipliers) if multipliers else reward
