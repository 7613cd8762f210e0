"""A reward run of every kind ends with a role that scores the same elsewhere, and says what its scores are worth."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from rlhflab.analysis.reward_quality import opinions
from rlhflab.cli import main
from rlhflab.config import Lora, RewardSource
from rlhflab.core.batch import TokenAnswer, Tree
from rlhflab.data.chat import ChatFormat
from rlhflab.data.types import Message, PreferencePair, Prompt, Rollout
from rlhflab.model.shared import ADAPTER, HEAD, SharedModel
from rlhflab.rollout.reward_role import role_scores, standardised
from rlhflab.rollout.rewards import make_reward
from rlhflab.rollout.scoring import score_members
from rlhflab.runs.recipes import recipe
from rlhflab.train.checkpoint import Checkpoints
from rlhflab.train.reward import LENGTH, QUALITY

WORDS = [f"{first}{second}" for first in "abcdef" for second in "uvwxyz"]
PAIRS = [{"prompt": f"Say {word}.", "chosen": word * (1 + i % 3), "rejected": "n" * (1 + i % 5)}
         for i, word in enumerate(WORDS)]
KINDS: dict[str, list[str]] = {
    "plain": [], "ensemble": ["--heads", "3"], "length head": ["--length_head", "true"],
    "frozen": ["--features", "frozen"], "frozen ensemble": ["--features", "frozen", "--heads", "2"]}


def train(folder: Path, *flags: str, rows: list[dict[str, Any]] | None = None) -> dict[str, Any]:
    """Run a reward run over the pairs into `folder / run`; its summary."""
    (folder / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows or PAIRS))
    settings = ["--model", "tiny-llama", "--dtype", "float32", "--batch", "8", "--epochs", "1", *flags]
    assert main(["train", "reward", str(recipe("reward")), *settings, "--data", str(folder / "pairs.jsonl"),
                 "--out", str(folder / "run")]) == 0
    summary: dict[str, Any] = json.loads((folder / "run" / "summary.json").read_text())
    return summary


def prompt_of(row: dict[str, Any]) -> Prompt:
    return Prompt(id="p", messages=(Message(role="user", content=row["prompt"]),))


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_head_is_stored_and_scores_as_a_reward(kind: str, tmp_path: Path, llama: SharedModel) -> None:
    summary = train(tmp_path, *KINDS[kind])
    path = tmp_path / "run" / "roles" / "reward"
    members = {"ensemble": 3, "frozen ensemble": 2}.get(kind, 1)
    assert load_file(path / HEAD)["weight"].shape == (members, llama.width), "a length head is dropped"
    chat = ChatFormat(llama.tokenizer)
    rollouts = [Rollout(prompt=prompt_of(row), prompt_ids=chat.prompt(prompt_of(row)), logprobs=(), finish="stop",
                        token_ids=chat.answer(row["chosen"]), text=row["chosen"], seed=0) for row in PAIRS]
    for options in ({}, {"combine": "wco"}, {"combine": "uwo", "uwo_lambda": 0.5}, {"length_correction": True}):
        source = RewardSource(name="role", path=str(path), **options)
        scores = [score.value for score in make_reward([source], llama, micro_tokens=512)(rollouts)]
        trees = [Tree(prompt=r.prompt_ids, answers=(TokenAnswer(ids=r.token_ids),)) for r in rollouts]
        again = torch.cat(role_scores(llama, trees, role="reward", micro_tokens=64, **options))  # type: ignore[arg-type]
        assert scores == pytest.approx(again.tolist(), abs=1e-4)
        llama.drop_role("reward")
    assert summary["calibration"]["n"] == summary["held_out_pairs"] == 7
    assert 0 <= summary["calibration"]["ece"] <= 1 and summary["calibration"]["temperature"] > 0
    assert abs(summary["length"]["correlation_corrected"]) < 0.1
    assert summary["noise_ceiling"] is None, "nobody judged a comparison twice"
    assert json.loads((path / "rlhflab.json").read_text())["temperature"] == summary["calibration"]["temperature"]
    rows = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    assert len(rows) == (1 if "frozen" in kind else 4) and json.loads(rows[0])["tokens"] > 0


def test_scores_on_the_sft_answers_have_mean_zero_and_deviation_one(tmp_path: Path, llama: SharedModel) -> None:
    train(tmp_path, "--heads", "2")
    llama.load_role("reward", tmp_path / "run" / "roles" / "reward", head="stored")
    chat = ChatFormat(llama.tokenizer)
    trees = [Tree(prompt=chat.prompt(prompt_of(row)), answers=tuple(
        TokenAnswer(ids=chat.answer(row[side])) for side in ("chosen", "rejected"))) for row in PAIRS]
    members = standardised(llama.records["reward"],
                           torch.cat(score_members(llama, trees, role="reward", micro_tokens=512)))
    torch.testing.assert_close(members.mean(0), torch.zeros(2), atol=1e-3, rtol=0)
    torch.testing.assert_close(members.std(0, unbiased=False), torch.ones(2), atol=1e-3, rtol=0)


@pytest.mark.parametrize("flags", [["--features", "frozen"], ["--heads", "3", "--optimizer.learning_rate", "0"]])
def test_a_role_starts_as_the_adapter_it_is_given_and_without_learning_it_stays_so(
        flags: list[str], tmp_path: Path, llama: SharedModel) -> None:
    llama.add_role("sft", Lora(rank=2), seed=4)
    with torch.no_grad():
        for parameter in llama.parameters("sft"):
            parameter.copy_(0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(4)))
    llama.save_role("sft", tmp_path / "sft")
    train(tmp_path, *flags, "--start", str(tmp_path / "sft"))
    stored = load_file(tmp_path / "run" / "roles" / "reward" / ADAPTER)
    for name, tensor in load_file(tmp_path / "sft" / ADAPTER).items():
        assert torch.equal(stored[name], tensor)


def test_what_is_left_of_a_length_head_is_the_quality(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Checkpoints, "drop", lambda self: None)
    train(tmp_path, "--length_head", "true", "--steps", "2", "--checkpoint_every", "2")
    both = load_file(tmp_path / "run" / "checkpoints" / "step-2" / "roles" / "reward" / HEAD)["weight"]
    left = load_file(tmp_path / "run" / "roles" / "reward" / HEAD)["weight"]
    assert torch.equal(left, both[QUALITY:QUALITY + 1]) and not torch.equal(both[QUALITY], both[LENGTH])


def test_opinions_on_one_comparison_are_recognised_in_any_order() -> None:
    prompt = Prompt(id="p", messages=(Message(role="user", content="?"),))
    (one, yes), (same, no), (other, _) = opinions([
        PreferencePair(prompt=prompt, chosen=chosen, rejected=rejected)
        for chosen, rejected in (("a", "b"), ("b", "a"), ("a", "c"))])
    assert one == same != other and yes != no


def test_the_noise_ceiling_stands_in_the_summary_where_opinions_repeat(tmp_path: Path) -> None:
    flipped = [{**row, "chosen": row["rejected"], "rejected": row["chosen"]} for row in PAIRS[::4]]
    summary = train(tmp_path, "--steps", "1", rows=[*PAIRS, *PAIRS, *flipped])
    # 27 comparisons with two equal opinions, 9 with two equal and one other: (27 + 9 x 1) / (27 + 9 x 3)
    assert summary["noise_ceiling"]["comparisons"] == 36
    assert summary["noise_ceiling"]["agreement"] == pytest.approx(36 / 54)
    assert summary["noise_ceiling"]["accuracy"] == pytest.approx(0.5 + (36 / 54 * 2 - 1) ** 0.5 / 2)


def test_a_run_that_starts_from_a_reward_role_goes_on_with_its_head(tmp_path: Path) -> None:
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in PAIRS))
    flags = ["train", "reward", str(recipe("reward")), "--model", "tiny-llama", "--dtype", "float32", "--data",
             str(tmp_path / "pairs.jsonl"), "--batch", "4"]
    assert main([*flags, "--steps", "3", "--out", str(tmp_path / "first")]) == 0
    first = tmp_path / "first" / "roles" / "reward"
    assert main([*flags, "--steps", "1", "--start", str(first), "--head_learning_rate", "0",
                 "--optimizer.learning_rate", "0", "--out", str(tmp_path / "second")]) == 0
    second = tmp_path / "second" / "roles" / "reward"
    assert torch.equal(load_file(first / HEAD)["weight"], load_file(second / HEAD)["weight"])
