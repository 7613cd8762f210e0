"""From raw outputs of a head to a score: standardised, corrected, combined; the same after a role was stored."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from conftest import TREES, moved_role
from rlhflab.config import Lora, RewardSource
from rlhflab.core.batch import TokenAnswer, Tree, pack
from rlhflab.core.outliers import fit_cloud
from rlhflab.data.chat import ChatFormat
from rlhflab.data.types import Message, Prompt, Rollout
from rlhflab.errors import ConfigError, RunError
from rlhflab.model.load import model_folder
from rlhflab.model.shared import RoleRecord, SharedModel
from rlhflab.rollout.reward_role import COMBINE, combined, role_scores, scaled, standardised, token_counts
from rlhflab.rollout.rewards import make_reward
from rlhflab.rollout.scoring import score_members

RECORD = RoleRecord(base="b", base_digest="d", head=True)
OUTPUTS = torch.tensor([[1.0, 10.0], [3.0, 30.0], [2.0, 50.0]])
TOKENS = torch.tensor([2.0, 4.0, 6.0])


def test_members_are_standardised_one_by_one_and_then_combined() -> None:
    record = scaled(RECORD, OUTPUTS, TOKENS)
    assert record.member_means == (2.0, 30.0) and record.member_stds == pytest.approx(OUTPUTS.std(0, unbiased=False))
    high, half = 1.5**0.5, 1.5**0.5 / 2  # -1, 0, 1 have the deviation sqrt(2/3); so have -20, 0, 20 by 20 times
    members = torch.tensor([[-high, -high], [high, 0], [0, high]])
    torch.testing.assert_close(standardised(record, OUTPUTS), members, atol=1e-5, rtol=1e-5)
    for combine, expected in (("mean", [-2 * half, half, half]), ("wco", [-2 * half, 0, 0]),
                              ("uwo", [-2 * half, half - 0.5 * half**2, half - 0.5 * half**2])):
        got = combined(record, OUTPUTS, TOKENS, combine=combine, uwo_lambda=0.5)  # type: ignore[arg-type]
        torch.testing.assert_close(got, torch.tensor(expected), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("combine", list(COMBINE))
def test_an_ensemble_of_one_is_the_plain_head(combine: str) -> None:
    record = scaled(RECORD, OUTPUTS[:, :1], TOKENS)
    assert (record.score_mean, record.member_means) == (2.0, ())
    got = combined(record, OUTPUTS[:, :1], TOKENS, combine=combine)  # type: ignore[arg-type]
    torch.testing.assert_close(got, (OUTPUTS[:, 0] - record.score_mean) / record.score_std)


def test_the_length_correction_takes_a_line_in_length_away_and_holds_it_at_the_ends() -> None:
    tokens = torch.arange(2.0, 12.0)
    outputs = torch.stack([3 * tokens, 7 + 2 * tokens], dim=1)
    record = scaled(RECORD, outputs, tokens)
    torch.testing.assert_close(combined(record, outputs, tokens, length_correction=True), torch.zeros(10),
                               atol=1e-5, rtol=0)
    # an answer far longer than any seen is compared with the longest seen: 3 x 100 against 3 x 11
    beyond = combined(record, torch.tensor([[300.0, 207.0]]), torch.tensor([100.0]), length_correction=True)
    assert beyond.item() == pytest.approx((100 - 11) / float(tokens.std(unbiased=False)), rel=1e-4)


@pytest.mark.parametrize("outputs", [1, 3])
@pytest.mark.parametrize("correction", [False, True])
def test_a_stored_role_scores_as_before(outputs: int, correction: bool, llama: SharedModel, tmp_path: Path) -> None:
    moved_role(llama, "reward")
    llama.set_head("reward", torch.randn(outputs, llama.width, generator=torch.Generator().manual_seed(1)))
    raw = torch.cat(score_members(llama, TREES, role="reward", micro_tokens=64))
    llama.records["reward"] = replace(scaled(llama.records["reward"], raw, token_counts(TREES)), temperature=0.7)
    before, record = scores_of(llama, correction), llama.records["reward"]
    llama.save_role("reward", tmp_path / "reward")
    llama.drop_role("reward")
    llama.load_role("reward", tmp_path / "reward", head="stored")
    assert torch.equal(scores_of(llama, correction), before) and llama.records["reward"] == record


def scores_of(model: SharedModel, correction: bool) -> torch.Tensor:
    return torch.cat(role_scores(model, TREES, role="reward", micro_tokens=64, combine="uwo",
                                 length_correction=correction))


def test_a_head_of_many_outputs_is_many_heads(llama: SharedModel) -> None:
    llama.add_role("reward", Lora(rank=2), head="random", outputs=3)
    members = llama.outputs(pack(TREES), "reward")
    (weight,) = (p.detach().clone() for p in llama.head_parameters("reward"))
    for k in range(3):
        llama.set_head("reward", weight[k:k + 1])
        torch.testing.assert_close(llama.score(pack(TREES), "reward"), members[:, k])


def test_a_record_written_before_these_fields_still_loads(llama: SharedModel, tmp_path: Path) -> None:
    moved_role(llama, "reward", head="random")
    llama.save_role("reward", tmp_path / "reward")
    (tmp_path / "reward" / "rlhflab.json").write_text(
        f'{{"base": "tiny-llama", "base_digest": "{llama.base.digest}", "head": true, "score_mean": 1.0, '
        '"score_std": 2.0}')
    llama.load_role("old", tmp_path / "reward", head="stored")
    assert llama.records["old"].length_curve == () and llama.records["old"].temperature is None
    with pytest.raises(ConfigError, match="holds no length curve"):
        make_reward([RewardSource(name="role", role="old", length_correction=True)], llama, micro_tokens=64)


@pytest.fixture
def foreign(tmp_path: Path) -> str:
    """The Qwen-like model with a byte tokenizer whose ids run the other way round."""
    folder = tmp_path / "foreign"
    shutil.copytree(model_folder("tiny-qwen")[0], folder)
    content = json.loads((folder / "tokenizer.json").read_text())
    vocabulary = content["model"]["vocab"]
    special = [each["content"] for each in content["added_tokens"]]
    for token, i in vocabulary.items():
        if token not in special:
            vocabulary[token] = len(vocabulary) + len(special) - 1 - i
    (folder / "tokenizer.json").write_text(json.dumps(content))
    return str(folder)


def test_policy_and_reward_model_may_have_other_architectures_and_tokenizers(
        llama: SharedModel, foreign: str, tmp_path: Path) -> None:
    other = SharedModel.load(foreign, dtype="float32", device="cpu")
    moved_role(other, "reward", head="random")
    other.save_role("reward", tmp_path / "reward")
    prompts = [Prompt(id=text, messages=(Message(role="user", content=text),)) for text in ("Hi", "Why?")]
    ours, theirs = ChatFormat(llama.tokenizer), ChatFormat(other.tokenizer)
    assert theirs.answer("yes") != ours.answer("yes") and theirs.text(theirs.answer("yes")) == "yes"
    rollouts = [Rollout(prompt=prompt, prompt_ids=ours.prompt(prompt), token_ids=ours.answer(text)[:3 + stopped],
                        logprobs=(0.0,) * (3 + stopped), text=text, finish="stop" if stopped else "length", seed=0)
                for prompt, text, stopped in ((prompts[0], "yes", True), (prompts[1], "yes", True),
                                              (prompts[1], "yes", False), (prompts[0], "no!", True))]
    reward = make_reward([RewardSource(name="role", path=str(tmp_path / "reward"), model=foreign)], llama,
                         micro_tokens=64)
    got = [score.value for score in reward(rollouts)]
    for rollout, value in zip(rollouts, got, strict=True):
        ids = theirs.answer(rollout.text)[:None if rollout.stopped else -1]
        alone = pack([Tree(prompt=theirs.prompt(rollout.prompt), answers=(TokenAnswer(ids=ids),))])
        assert value == pytest.approx(float(other.score(alone, "reward").detach()), abs=1e-4)
    assert abs(got[1] - got[2]) > 1e-3, "an answer that was cut off has no end of turn"
    assert "reward" not in llama.records, "it is another model, beside the policy's"


def test_what_another_reward_model_cannot_read_whole_is_unscored(llama: SharedModel, tmp_path: Path) -> None:
    other = SharedModel.load("tiny-qwen", dtype="float32", device="cpu")
    moved_role(other, "reward", head="random")
    other.save_role("reward", tmp_path / "reward")
    prompt, chat = Prompt(id="p", messages=(Message(role="user", content="Hi"),)), ChatFormat(other.tokenizer)
    rollouts = [Rollout(prompt=prompt, prompt_ids=(1,), token_ids=(5, 2), logprobs=(0.0, 0.0), text=text, finish="stop",
                        seed=0) for text in ("yes", "x" * other.context, "no")]
    reward = make_reward([RewardSource(name="role", path=str(tmp_path / "reward"), model="tiny-qwen")], llama,
                         micro_tokens=64)
    first, second, third = reward(rollouts)
    length, most = len(chat.prompt(prompt)) + other.context + 1, other.context
    assert second.value is None
    assert second.reason == f"prompt and answer have {length} tokens, and the reward model reads {most} at most"
    assert [first.value, third.value] == [score.value for score in reward([rollouts[0], rollouts[2]])]
    assert first.value is not None and first.value != third.value
    assert reward(rollouts[1:2])[0].value is None, "and where nothing fits"


def test_an_outlier_pays_by_how_far_it_lies_beyond_the_start_and_a_common_answer_does_not(llama: SharedModel) -> None:
    moved_role(llama, "reward", head="random")
    plain, priced = (make_reward([RewardSource(name="role", outlier_weight=weight)], llama, micro_tokens=64)
                     for weight in (0.0, 2.0))
    prompt = Prompt(id="p", messages=(Message(role="user", content="Hi"),))
    draw = torch.Generator().manual_seed(0)
    words = torch.randint(50, 60, (40, 3), generator=draw).tolist()
    rollouts = [Rollout(prompt=prompt, prompt_ids=(1, 40), token_ids=(*word, 2), logprobs=(0.0,) * 4, text="x",
                        finish="stop", seed=0) for word in words]
    odd = replace(rollouts[0], token_ids=(200,) * 20, logprobs=(0.0,) * 20)
    with pytest.raises(RunError, match="role:reward: outlier_weight needs the answers of the start"):
        priced(rollouts)
    assert not plain.unmet and len(priced.unmet) == 1
    priced.meet(rollouts)
    states = [llama.outputs_and_states(pack([Tree(prompt=r.prompt_ids, answers=(TokenAnswer(ids=r.token_ids),))]),
                                       "reward")[1].detach().numpy() for r in (*rollouts, odd)]
    cloud = fit_cloud(np.concatenate(states[:40]))
    off = [a.value - b.value for a, b in zip(plain([*rollouts, odd]), priced([*rollouts, odd]), strict=True)]
    assert off == pytest.approx((2 * cloud.excess(np.concatenate(states))).tolist(), abs=1e-3)
    assert off[-1] > 0.5 and sum(x == 0 for x in off[:40]) >= 38


def test_an_ensemble_says_what_its_members_say(llama: SharedModel) -> None:
    moved_role(llama, "reward")
    llama.set_head("reward", torch.randn(2, llama.width, generator=torch.Generator().manual_seed(1)))
    llama.records["reward"] = replace(llama.records["reward"], member_means=(1.0, 2.0), member_stds=(2.0, 4.0))
    prompt = Prompt(id="p", messages=(Message(role="user", content="Hi"),))
    rollout = Rollout(prompt=prompt, prompt_ids=(1, 40), token_ids=(50, 2), logprobs=(0.0,) * 2, text="x",
                      finish="stop", seed=0)
    raw = llama.outputs(pack([Tree(prompt=(1, 40), answers=(TokenAnswer(ids=(50, 2)),))]), "reward")[0].tolist()
    (score,) = make_reward([RewardSource(name="role", combine="wco"), RewardSource(name="words", weight=2.0)], llama,
                           micro_tokens=64)([rollout])
    assert score.members == pytest.approx(((raw[0] - 1) / 2, (raw[1] - 2) / 4), abs=1e-5)
    assert score.terms == pytest.approx({"role:reward": min(score.members), "words": 2.0}, abs=1e-5)
