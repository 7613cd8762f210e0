"""The checks a run makes of itself: by hand, and seen to fail when what they check is broken."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch

from conftest import TREES, moved_role
from rlhflab.config import DpoRun, Lora, PpoRun, make_run
from rlhflab.core.batch import Batch, PreferenceTree, TokenAnswer, Tree
from rlhflab.data.chat import ChatFormat
from rlhflab.data.types import Message, Prompt, Score
from rlhflab.errors import RunError
from rlhflab.model.shared import SharedModel
from rlhflab.train.dpo import train_dpo
from rlhflab.train.guards import (
    batch_gap,
    end_token_share,
    reading_gap,
    refuse_batch_gap,
    refuse_reading_gap,
)
from rlhflab.train.ppo import train_ppo
from rlhflab.train.state import Saved, Step, random_state

END = 2


def test_the_share_of_trained_ends_by_hand() -> None:
    def tree(*answers: TokenAnswer) -> Tree:
        return Tree(prompt=(1,), answers=answers)

    assert end_token_share([tree(TokenAnswer(ids=(5, END))), tree(TokenAnswer(ids=(5, 6)))], END) == 0.5
    assert end_token_share([tree(TokenAnswer(ids=(5, END), scored=(True, False)))], END) == 0, "its loss is masked"
    two_turns = TokenAnswer(ids=(5, END, 7, 8, 9, END), scored=(True, True, False, False, True, True))
    cut = TokenAnswer(ids=(5, END, 7, 8, 9, END), scored=(True, True, False, False, True, False))
    assert end_token_share([tree(two_turns, cut)], END) == 0.75
    assert end_token_share([tree(TokenAnswer(ids=(END,), scored=(False,)))], END) == 0


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_scores_do_not_depend_on_their_batch(dtype: str) -> None:
    model = SharedModel.load("tiny-qwen", dtype=dtype, device="cpu")
    moved_role(model, "reward", head="random")
    gap = batch_gap(model, TREES, role="reward")
    assert gap["batch_gap_mean"] <= gap["batch_gap_max"] < (1e-5 if dtype == "float32" else 0.05)
    refuse_batch_gap(gap, sigma=1.0, dtype=model.unembedding.dtype)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_score_read_at_the_padded_end_of_its_row_is_refused(dtype: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = SharedModel.load("tiny-llama", dtype=dtype, device="cpu")
    moved_role(model, "reward", head="random")

    def at_the_rows_end(self: SharedModel, batch: Batch, role: str) -> torch.Tensor:
        width = batch.tokens.shape[1]
        row = torch.div(batch.last, width, rounding_mode="floor")
        return self._read_head(self.hidden(batch, role)[row * width + width - 1], role)

    monkeypatch.setattr(SharedModel, "outputs", at_the_rows_end)
    gap = batch_gap(model, TREES, role="reward")
    with pytest.raises(RunError, match=r"depends on what it is batched with.*batch_gap_m.*limit"):
        refuse_batch_gap(gap, sigma=1.0, dtype=model.unembedding.dtype)


def test_a_role_that_was_not_saved_as_it_is_is_refused(llama: SharedModel) -> None:
    moved_role(llama, "policy")
    llama.add_role("same", Lora(), copy_of="policy")
    gap = reading_gap(llama, TREES, "policy", "same")
    assert gap == {"reading_gap_max": 0.0, "reading_gap_mean": 0.0}
    refuse_reading_gap(gap, where="roles/policy")
    with torch.no_grad():
        llama.parameters("same")[0].add_(1e-3)
    gap = reading_gap(llama, TREES, "policy", "same")
    with pytest.raises(RunError, match=r"roles/policy: loaded again, this role reads the same answers otherwise"):
        refuse_reading_gap(gap, where="roles/policy")
    refuse_reading_gap({"reading_gap_max": 1e-3}, where="", limit=1e-3)
    with pytest.raises(RunError, match=r"reading_gap_max 0\.1, limit 0\.001"):
        refuse_reading_gap({"reading_gap_max": 0.1}, where="", limit=1e-3)


def test_the_head_is_part_of_what_is_compared(llama: SharedModel) -> None:
    moved_role(llama, "reward", head="random")
    llama.add_role("other", Lora(), copy_of="reward", head="zero")
    assert reading_gap(llama, TREES, "reward", "other")["reading_gap_max"] > 0.1


def at_step_one(tensors: dict[str, torch.Tensor] | None = None) -> Saved:
    carried = {"kl_coefficient": {"value": 0.05}, "constant_rewards": {"rollouts": 0.0, "score": 0.0}}
    return Saved(step=1, number=1, moved=True, carried=carried, tensors={**random_state(), **(tensors or {})})


def loops(model: SharedModel, saved: Saved | None) -> Iterator[Iterator[Step]]:
    """DPO and PPO against a reference that the policy has already left, as it has when a run goes on."""
    preferences = [PreferenceTree(tree=tree, chosen=(0,), rejected=(1,), strength=(1.0,)) for tree in TREES]
    shared = {"dtype": "float32", "batch": 2, "optimizer": {"learning_rate": 1e-3}}
    dpo = make_run("dpo", {**shared, "epochs": 1})
    ppo = make_run("ppo", {**shared, "epochs": 1, "steps": 2, "samples": 2, "max_new_tokens": 4})
    assert isinstance(dpo, DpoRun) and isinstance(ppo, PpoRun)
    yield train_dpo(dpo, model, preferences, reference=None, saved=saved)
    prompts = [Prompt(id=word, messages=(Message(role="user", content=word),)) for word in ("a", "bc")]
    yield train_ppo(ppo, model, prompts, chat=ChatFormat(model.tokenizer), reference=None, saved=saved,
                    reward=lambda rollouts: [Score(value=float(len(r.text)), by="length") for r in rollouts])


def test_a_run_that_goes_on_is_not_asked_to_be_at_its_start(llama: SharedModel) -> None:
    moved_role(llama, "policy")
    llama.add_role("value", Lora(), copy_of="policy", head="zero")
    for loop in loops(llama, None):
        with pytest.raises(RunError, match=r"KL\(policy, base\)"):
            next(loop)
    for loop in loops(llama, at_step_one()):
        step = next(loop)
        assert step.number == 2 and "start_kl" not in step.metrics and "first_change" not in step.metrics


def test_a_run_that_goes_on_may_stand_still(llama: SharedModel) -> None:
    llama.add_role("policy", Lora(rank=4))
    with torch.no_grad():
        for parameter in llama.parameters("policy"):
            parameter.zero_()  # no gradient can ever flow
    fresh: Any
    fresh, _ = loops(llama, None)
    with pytest.raises(RunError, match="no adapter weight moved"):
        next(fresh)
    resumed, _ = loops(llama, at_step_one())
    assert next(resumed).metrics["gradient_norm"] == 0


def test_a_fresh_run_notes_its_start_once(llama: SharedModel) -> None:
    llama.add_role("policy", Lora(rank=4))
    loop, _ = loops(llama, None)
    first, second = loop
    assert first.metrics["start_kl"] == 0 and 0 < first.metrics["first_change"] <= 1.1e-3
    assert "start_kl" not in second.metrics and "first_change" not in second.metrics


def test_a_true_reference_reads_the_same_bits_in_bf16_whatever_it_was_stored_with() -> None:
    model = SharedModel.load("tiny-llama", dtype="bfloat16", device="cpu")
    moved_role(model, "policy")
    model.add_role("reference", Lora(rank=4), copy_of="policy", trainable=False)
    lengths = (5, 40, 300, 7)  # stored together in one batch, over the width that other attention kernels read
    preferences = [PreferenceTree(tree=Tree(prompt=tuple(range(10, 10 + length)), answers=TREES[0].answers),
                                  chosen=(0,), rejected=(1,), strength=(1.0,)) for length in lengths]
    run = make_run("dpo", {"dtype": "bfloat16", "batch": 1, "optimizer": {"learning_rate": 1e-3}})
    assert isinstance(run, DpoRun)
    first = next(train_dpo(run, model, preferences, reference="reference"))
    assert first.metrics["start_kl"] == 0


def test_a_role_that_has_learnt_nothing_may_differ_by_what_moves_no_preference() -> None:
    refuse_batch_gap({"batch_gap_mean": 0.019}, sigma=0.05, dtype=torch.bfloat16)
    with pytest.raises(RunError, match=r"0\.021, limit 0\.02"):
        refuse_batch_gap({"batch_gap_mean": 0.021}, sigma=0.05, dtype=torch.bfloat16)
