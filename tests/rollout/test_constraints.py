"""Prices rise while a mean is too low and fall when it is not; by hand, and through a checkpoint."""

import json
from collections.abc import Sequence
from typing import Any

import pytest

from rlhflab.config import Choice, Constraint, RewardSource
from rlhflab.data.types import Message, Prompt, Rollout, Score
from rlhflab.errors import ConfigError
from rlhflab.model.shared import SharedModel
from rlhflab.rollout.constraints import Constrained, Multiplier, constrained
from rlhflab.rollout.rewards import make_reward
from rlhflab.rollout.scoring import only_looking

PROMPT = Prompt(id="p", messages=(Message(role="user", content="?"),))
RULE = {"check": {"name": "max_words", "most": 2}, "at_least": 0.75, "rate": 2.0, "most": 1.2}


def rollouts_of(*texts: str) -> list[Rollout]:
    return [Rollout(prompt=PROMPT, prompt_ids=(1,), token_ids=(5, 2), logprobs=(0.0, 0.0), text=text, finish="stop",
                    seed=0) for text in texts]


def reward_of(model: SharedModel, *rules: dict[str, Any]) -> Constrained:
    reward = constrained(make_reward([RewardSource(name="words", most=4)], model, micro_tokens=64),
                         [Constraint(**rule) for rule in rules], model, micro_tokens=64)
    assert isinstance(reward, Constrained)
    return reward


def values(scores: Sequence[Score]) -> list[float | None]:
    return [score.value for score in scores]


def test_the_price_follows_the_mean_after_it_was_paid(llama: SharedModel) -> None:
    reward, answers = reward_of(llama, RULE), rollouts_of("a b", "a b c", "a b c", "a b c")
    assert values(reward(answers)) == [1, 1, 1, 1], "nothing is asked for yet"
    # A quarter passes: mu = 2 (.75 - .25) = 1, so passing is worth 1 - .75 and failing -.75.
    assert reward.multipliers[0].value == 1
    second = reward(answers)
    assert values(second) == [1.25, 0.25, 0.25, 0.25]
    assert second[0].terms == {"words": 1.0, "constraint.0.max_words": 0.25}
    assert reward.metrics == {"multiplier.constraint.0.max_words": 1.0, "mean.constraint.0.max_words": 0.25}
    assert reward.multipliers[0].value == 1.2, "2 would be over the most"
    reward(rollouts_of("a b"))
    assert reward.multipliers[0].value == pytest.approx(0.7), "all pass: 1.2 + 2 (.75 - 1)"
    for _ in range(3):
        reward(rollouts_of("a b"))
    assert reward.multipliers[0].value == 0, "never below"


def test_an_answer_that_the_check_says_nothing_of_is_neither_paid_nor_counted() -> None:
    def check(rollouts: Sequence[Rollout]) -> list[Score]:
        return [Score(value=None if r.text == "?" else float(r.text == "yes"), by="check") for r in rollouts]

    price = Multiplier(Constraint(check=Choice(name="words"), at_least=1.0, rate=1.0), check, name="c")
    price.value = 2.0
    scores = [Score(value=value, by="r") for value in (0.0, 1.0, None)]
    priced, mean = price(rollouts_of("?", "no", "yes"), scores)
    assert values(priced) == [0.0, 1 - 2 * 1.0, None] and mean == 0.5
    assert price.value == 2.5
    assert price(rollouts_of("?"), scores[:1])[1] is None and price.value == 2.5


def test_prices_go_through_a_checkpoint_and_only_looking_changes_none(llama: SharedModel) -> None:
    reward, again = reward_of(llama, RULE), reward_of(llama, RULE)
    answers = rollouts_of("a b c")
    reward(answers)
    for name, state in json.loads(json.dumps({k: v.state_dict() for k, v in reward.carried.items()})).items():
        again.carried[name].load_state_dict(state)
    with only_looking(again):
        assert values(again(answers)) == values(again(answers)) != [1]
    assert values(again(answers)) == values(reward(answers))


def test_without_constraints_a_reward_is_what_it_was(llama: SharedModel) -> None:
    reward = make_reward([RewardSource(name="words")], llama, micro_tokens=64)
    assert constrained(reward, [], llama, micro_tokens=64) is reward


@pytest.mark.parametrize(("check", "message"), [
    ({"name": "wrds"}, "constraints.0.check: no reward source is called 'wrds'"),
    ({"name": "words", "least": 1}, r"constraints\.0\.check\.least"),
    ({"name": "max_words", "most": 0}, r"reward\.check\.most")])
def test_a_check_that_cannot_be_made_is_named(llama: SharedModel, check: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        reward_of(llama, {**RULE, "check": check})
