"""Rewards are sums of sources, and an unscored answer is None, never 0."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from conftest import moved_role
from rlhflab.config import RewardSource
from rlhflab.data.types import Message, Prompt, Rollout
from rlhflab.errors import ConfigError
from rlhflab.model.shared import SharedModel
from rlhflab.rollout.rewards import make_reward
from rlhflab.rollout.sampling import answer_seed, rollout_trees

PROMPT = Prompt(id="p", messages=(Message(role="user", content="Say it."),))


def answered(text: str, *, ids: tuple[int, ...] = (50, 2), prompt: Prompt = PROMPT) -> Rollout:
    return Rollout(prompt=prompt, prompt_ids=(1, 40), token_ids=ids, logprobs=(0.0,) * len(ids), text=text,
                   finish="stop", seed=0)


def test_a_mixture_adds_its_weighted_sources(llama: SharedModel) -> None:
    reward = make_reward([RewardSource(name="words", most=2, weight=10.0),
                          RewardSource(name="callable", function="scorers:none_for_empty", weight=0.5)],
                         llama, micro_tokens=64)
    # "a b c": one word over two costs half; five characters
    assert [score.value for score in reward([answered("a b"), answered("a b c")])] == [10 + 1.5, 5 + 2.5]


def test_unscored_by_one_source_is_unscored_by_all(llama: SharedModel) -> None:
    reward = make_reward([RewardSource(name="words"),
                          RewardSource(name="callable", function="scorers:none_for_empty")],
                         llama, micro_tokens=64)
    assert reward([answered("")])[0].value is None


def test_a_role_scores_in_deviations_of_its_sft_samples(llama: SharedModel, tmp_path: Path) -> None:
    moved_role(llama, "reward", head="random")
    rollouts = [answered("x", ids=(50, 2)), answered("y", ids=(60, 61, 2))]
    raw = torch.tensor([s.value for s in make_reward([RewardSource(name="role")], llama, micro_tokens=64)(rollouts)])
    llama.records["reward"] = replace(llama.records["reward"], score_mean=2.0, score_std=0.5)
    llama.save_role("reward", tmp_path / "reward")
    llama.drop_role("reward")
    reward = make_reward([RewardSource(name="role", path=str(tmp_path / "reward"))], llama, micro_tokens=64)
    normalised = torch.tensor([score.value for score in reward(rollouts)])
    torch.testing.assert_close(normalised, (raw - 2.0) / 0.5, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(("source", "message"), [
    (RewardSource(name="nope"), "no reward source is called 'nope'"),
    (RewardSource(name="role"), "needs the path of its folder"),
    (RewardSource(name="callable", function="no.such:thing"), "not an importable module:name"),
])
def test_a_source_that_cannot_work_is_named(llama: SharedModel, source: RewardSource, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make_reward([source], llama, micro_tokens=64)


def test_answers_to_one_prompt_share_a_tree_and_keep_their_order() -> None:
    other = Prompt(id="q", messages=PROMPT.messages)
    trees = rollout_trees([answered("a"), answered("b", ids=(51, 2)), answered("c", prompt=other)])
    assert [[answer.ids for answer in tree.answers] for tree in trees] == [[(50, 2), (51, 2)], [(50, 2)]]


def test_seeds_of_neighbouring_answers_differ() -> None:
    seeds = {answer_seed(run, prompt, sample) for run in range(4) for prompt in range(50) for sample in range(4)}
    assert len(seeds) == 800 and all(0 <= seed < 2**63 for seed in seeds)
