"""Rewards are sums of sources, and an unscored answer is None, never 0."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from conftest import moved_role
from rlhflab.config import RewardSource
from rlhflab.data.types import Message, Prompt, Rollout
from rlhflab.errors import ConfigError, RunError
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


def test_each_term_is_capped_before_its_weight(llama: SharedModel) -> None:
    lengths = {"name": "callable", "function": "scorers:none_for_empty"}
    reward = make_reward([RewardSource(**lengths, cap=3.0, weight=2.0), RewardSource(**lengths, cap=1.5, weight=-1.0),
                          RewardSource(**lengths, shaping={"name": "clip", "low": -9, "high": 4}, cap=5.0)],
                         llama, micro_tokens=64)
    # lengths 2 and 5: 2 min(2, 3) - min(2, 1.5) + 2, and 2 min(5, 3) - 1.5 + min(5, 4)
    assert [score.value for score in reward([answered("ab"), answered("abcde")])] == [4 - 1.5 + 2, 6 - 1.5 + 4]
    low = make_reward([RewardSource(name="callable", function="scorers:minus_ten", cap=2.0)], llama, micro_tokens=64)
    assert low([answered("ab")])[0].value == -2


def test_a_verifier_is_a_reward(llama: SharedModel) -> None:
    prompt = replace(PROMPT, facts={"value": 8})
    reward = make_reward([RewardSource(name="verifier", check={"name": "contains"}),
                          RewardSource(name="verifier", check={"name": "max_words", "most": 2}, weight=0.5)],
                         llama, micro_tokens=64)
    scores = reward([answered("8 pm", prompt=prompt), answered("at 9 pm", prompt=prompt), answered("8")])
    assert [score.value for score in scores] == [1.5, 0, None]
    assert scores[0].by == "contains + max_words" and scores[2].reason == "row p has no 'value' in its facts"


@pytest.mark.parametrize("function", ["nan", "infinite"])
@pytest.mark.parametrize("shaping", [None, {"name": "clip"}, {"name": "standardise"}])
def test_a_score_that_is_no_number_stops_the_run_whatever_it_goes_through(
        function: str, shaping: dict[str, str] | None, llama: SharedModel) -> None:
    reward = make_reward([RewardSource(name="words"), RewardSource(
        name="callable", function=f"scorers:{function}", shaping=shaping, cap=1.0)], llama, micro_tokens=64)
    with pytest.raises(RunError, match=rf"scorers:{function}: scored an answer (nan|inf); a score is a finite number"):
        reward([answered("a")])


def test_two_reward_roles_have_to_have_two_names(llama: SharedModel, tmp_path: Path) -> None:
    # Trap: the second would silently score with the weights of the first.
    for name, seed in (("a", 1), ("b", 2)):
        moved_role(llama, name, seed=seed)
        llama.set_head(name, torch.randn(1, llama.width, generator=torch.Generator().manual_seed(seed)))
        llama.save_role(name, tmp_path / name)
        llama.drop_role(name)
    sources = [RewardSource(name="role", path=str(tmp_path / name)) for name in "ab"]
    with pytest.raises(ConfigError, match="a role 'reward' is loaded already"):
        make_reward(sources, llama, micro_tokens=64)
    llama.drop_role("reward")
    both = make_reward([sources[0], RewardSource(name="role", role="second", path=str(tmp_path / "b"))], llama,
                       micro_tokens=64)([answered("x")])[0]
    each = [make_reward([RewardSource(name="role", role=role)], llama, micro_tokens=64)([answered("x")])[0].value
            for role in ("reward", "second")]
    assert both.value == pytest.approx(sum(each)) and each[0] != each[1] and both.by == "role:reward + role:second"


@pytest.mark.parametrize(("source", "message"), [
    (RewardSource(name="verifier", check={"name": "nope"}), r"reward\.check: no verifier is called 'nope'"),
    (RewardSource(name="role", path="x", combine="max"), r"reward\.0\.combine"),
    (RewardSource(name="role", path="x", uwo_lambda=-1), r"reward\.0\.uwo_lambda"),
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
