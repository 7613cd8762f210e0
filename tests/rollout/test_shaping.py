"""Each shaping by hand; what changes from step to step survives a checkpoint."""

import json
from collections.abc import Sequence

import numpy as np
import pytest
from scipy.special import expit

from conftest import moved_role
from rlhflab.config import Choice, RewardSource
from rlhflab.data.chat import ChatFormat
from rlhflab.data.types import Message, Prompt, Rollout, Score
from rlhflab.errors import ConfigError
from rlhflab.model.shared import SharedModel
from rlhflab.rollout.rewards import make_reward
from rlhflab.rollout.sampling import sample
from rlhflab.rollout.scoring import Reward
from rlhflab.rollout.shaping import reward_shaping

PROMPTS = [Prompt(id=name, messages=(Message(role="user", content=name),)) for name in "pq"]


def rollouts_of(texts: Sequence[str], prompt: Prompt = PROMPTS[0]) -> list[Rollout]:
    return [Rollout(prompt=prompt, prompt_ids=(1,), token_ids=(5, 2), logprobs=(0.0, 0.0), text=text, finish="stop",
                    seed=0) for text in texts]


def written(rollouts: Sequence[Rollout]) -> list[Score]:
    """The number that stands in the text; none in an empty one."""
    return [Score(value=float(r.text) if r.text else None, by="text", reason="" if r.text else "empty")
            for r in rollouts]


def shaped(name: str, model: SharedModel, reward: Reward = written, **options: object) -> Reward:
    bound: Reward = reward_shaping.bind(name, options, where="shaping")(reward, model)
    return bound


def values(scores: Sequence[Score]) -> list[float | None]:
    return [score.value for score in scores]


def test_clip(llama: SharedModel) -> None:
    assert values(shaped("clip", llama, low=-1, high=2)(rollouts_of(["-3", "1.5", "7", ""]))) == [-1, 1.5, 2, None]
    with pytest.raises(ConfigError, match="low: 2 is not below high"):
        shaped("clip", llama, low=2, high=1)


def test_running_mean_and_deviation_are_those_of_all_scores_so_far(llama: SharedModel) -> None:
    reward = shaped("standardise", llama)
    first, second = ["1", "2", ""], ["4", "9"]
    reward(rollouts_of(first))
    found = values(reward(rollouts_of(second)))
    seen = np.array([1.0, 2, 4, 9])
    np.testing.assert_allclose(np.array(found, dtype=float), (seen[2:] - seen.mean()) / seen.std())


def test_a_first_rollout_of_equal_scores_is_zero_and_not_nan(llama: SharedModel) -> None:
    assert values(shaped("standardise", llama)(rollouts_of(["3", "3", ""]))) == [0, 0, None]


def test_a_mixture_carries_its_running_means_through_a_checkpoint(llama: SharedModel) -> None:
    sources = [RewardSource(name="words"), RewardSource(name="words", most=1, shaping={"name": "standardise"}),
               RewardSource(name="words", shaping={"name": "clip"})]
    reward = make_reward(sources, llama, micro_tokens=64)
    assert list(reward.carried) == ["reward.1.words"]
    reward(rollouts_of(["a", "b c", "d e f"]))
    kept = json.loads(json.dumps({name: what.state_dict() for name, what in reward.carried.items()}))
    again = make_reward(sources, llama, micro_tokens=64)
    for name, what in again.carried.items():
        what.load_state_dict(kept[name])
    later = rollouts_of(["a b", "c"])
    assert values(again(later)) == values(reward(later))
    assert values(make_reward(sources, llama, micro_tokens=64)(later)) != values(reward(later))


def letters(rollouts: Sequence[Rollout]) -> list[Score]:
    return [Score(value=len(r.text) / 4, by="letters") for r in rollouts]


@pytest.mark.parametrize("reference", [False, True])
def test_par_is_the_mean_chance_against_the_references_own_answers(llama: SharedModel, reference: bool) -> None:
    moved_role(llama, "policy", seed=5)
    if reference:
        moved_role(llama, "reference", trainable=False)
    ours = [*rollouts_of(["abcd", "ab"]), *rollouts_of(["a"], PROMPTS[1])]
    found = values(shaped("par", llama, letters, samples=3, max_new_tokens=5, seed=2)(ours))
    answers = sample(llama, ChatFormat(llama.tokenizer), PROMPTS, role="reference" if reference else None, samples=3,
                     max_new_tokens=5, seed=2)
    theirs = [[len(a.text) / 4 for a in answers if a.prompt is prompt] for prompt in PROMPTS]
    expected = [expit(1 - np.array(theirs[0])).mean(), expit(0.5 - np.array(theirs[0])).mean(),
                expit(0.25 - np.array(theirs[1])).mean()]
    assert found == pytest.approx(expected)


def test_par_leaves_out_references_without_a_score_and_scores_nothing_without_any(llama: SharedModel) -> None:
    def only(known: set[str]) -> Reward:
        return lambda rollouts: [Score(value=1.0 if r.text in known else None, by="x", reason="unknown")
                                 for r in rollouts]

    answers = sample(llama, ChatFormat(llama.tokenizer), PROMPTS[:1], role=None, samples=2, max_new_tokens=5, seed=0)
    ours = rollouts_of(["ours"])
    assert answers[0].text != answers[1].text
    some = shaped("par", llama, only({"ours", answers[0].text}), samples=2, max_new_tokens=5)(ours)
    none = shaped("par", llama, only({"ours"}), samples=2, max_new_tokens=5)(ours)
    assert values(some) == [0.5] and values(none) == [None]
    assert none[0].reason == "no answer of the reference could be scored"


def test_an_unknown_shaping_or_option_is_named(llama: SharedModel) -> None:
    for shaping, message in ((Choice(name="sqrt"), "no reward shaping is called 'sqrt'; there are clip, confidence,"),
                             (Choice(name="clip", lo=1), r"reward\.0\.shaping\.lo.*options of clip are: low, high")):
        with pytest.raises(ConfigError, match=message):
            make_reward([RewardSource(name="words", shaping=shaping)], llama, micro_tokens=64)


def sure(text: str, probability: float) -> Rollout:
    return Rollout(prompt=PROMPTS[0], prompt_ids=(1,), token_ids=(5, 2), logprobs=(np.log(probability),) * 2, text=text,
                   finish="stop", seed=0)


def test_being_sure_pays_above_the_running_mean_and_costs_below_it(llama: SharedModel) -> None:
    reward = shaped("confidence", llama, weight=0.5, rate=0.1)
    # mean 2; c = .9 and .3: 4 + .5 x 2 x .4, 0 + .5 x (-2) x (-.2)
    assert values(reward([sure("4", 0.9), sure("0", 0.3), sure("", 0.5)])) == pytest.approx([4.4, 0.2, None])
    # The mean moves to 2 + .1 (7 - 2) = 2.5: 7 + .5 x 4.5 x .5
    assert values(reward([sure("7", 1.0)])) == pytest.approx([8.125])
    again = shaped("confidence", llama)
    again.load_state_dict(json.loads(json.dumps(reward.state_dict())))  # type: ignore[attr-defined]
    assert values(again([sure("0", 1.0)])) == pytest.approx(values(reward([sure("0", 1.0)])))


@pytest.mark.parametrize(("text", "confidence"), [
    ("Certainly! At 8 pm.", 1.0), ("I don't know.", 0.0), ("At 8 pm.", 0.5), ("Surely it is not mentioned.", 0.5)])
def test_confidence_can_be_read_from_markers(llama: SharedModel, text: str, confidence: float) -> None:
    def fixed(rollouts: Sequence[Rollout]) -> list[Score]:
        return [Score(value=float(i), by="fixed") for i in range(len(rollouts))]

    got = values(shaped("confidence", llama, fixed, weight=1.0, by="markers")([sure(text, 0.1), sure(text, 0.9)]))
    assert got == pytest.approx([-0.5 * (confidence - 0.5), 1 + 0.5 * (confidence - 0.5)])


def test_confidence_starts_without_a_mean_and_a_mixture_carries_it(llama: SharedModel) -> None:
    reward = make_reward([RewardSource(name="words", shaping={"name": "confidence"})], llama, micro_tokens=64)
    (carried,) = reward.carried.values()
    assert carried.state_dict() == {}
    reward([sure("a", 0.5)])
    assert carried.state_dict() == {"mean": 1.0}
    carried.load_state_dict({})
    assert carried.state_dict() == {}
