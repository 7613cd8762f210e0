"""The shared layout equals plain padded-free forwards, and every trap of sharing a base between roles is closed."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from conftest import TREES, moved_role
from rlhflab.config import Lora
from rlhflab.core.batch import TokenAnswer, Tree, pack
from rlhflab.errors import ModelError
from rlhflab.model.load import model_folder
from rlhflab.model.shared import ADAPTER, HEAD, RECORD, SharedModel
from slow_twins import plain_logprobs, plain_scores

Gradients = Callable[[SharedModel, str], list[torch.Tensor]]


def test_logprobs_of_shared_prompts_equal_plain_forwards_and_so_do_gradients(
        tiny: SharedModel, gradients: Gradients) -> None:
    moved_role(tiny, "policy")
    fast = tiny.logprobs(pack(TREES), "policy", temperature=0.8).logprob
    plain = torch.cat([logprob for tree in TREES for logprob in plain_logprobs(tiny, tree, "policy", temperature=0.8)])
    torch.testing.assert_close(fast, plain, atol=1e-4, rtol=1e-4)
    (fast * torch.linspace(-1, 1, len(fast))).sum().backward()
    by_fast = gradients(tiny, "policy")
    (plain * torch.linspace(-1, 1, len(plain))).sum().backward()
    for ours, theirs in zip(by_fast, gradients(tiny, "policy"), strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("name", ["tiny-llama", "tiny-qwen"])
def test_in_bf16_shared_prompts_equal_plain_forwards_within_its_rounding(name: str, gradients: Gradients) -> None:
    model = SharedModel.load(name, dtype="bfloat16", device="cpu")
    moved_role(model, "policy")
    fast = model.logprobs(pack(TREES), "policy").logprob
    plain = torch.cat([logprob for tree in TREES for logprob in plain_logprobs(model, tree, "policy")])
    assert (fast - plain).abs().mean() < 0.05
    fast.sum().backward()
    by_fast = torch.cat([g.flatten() for g in gradients(model, "policy")])
    plain.sum().backward()
    by_plain = torch.cat([g.flatten() for g in gradients(model, "policy")])
    assert torch.nn.functional.cosine_similarity(by_fast, by_plain, dim=0) > 0.995
    assert by_fast.dtype == torch.float32, "adapter gradients and weights stay fp32 under a bf16 base"


def test_scores_do_not_depend_on_batch_or_order(tiny: SharedModel) -> None:
    moved_role(tiny, "reward", head="random")
    together = tiny.score(pack(TREES), "reward")
    backwards = tiny.score(pack(TREES[::-1]), "reward")
    alone = torch.cat([plain_scores(tiny, tree, "reward") for tree in TREES])
    torch.testing.assert_close(together, alone, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(backwards, torch.cat([plain_scores(tiny, tree, "reward") for tree in TREES[::-1]]),
                               atol=1e-4, rtol=1e-4)


def test_values_are_read_before_each_scored_token(llama: SharedModel) -> None:
    moved_role(llama, "value", head="random")
    tree = Tree(prompt=(1, 50), answers=(TokenAnswer(ids=(60, 2)),))
    values = llama.values(pack([tree]), "value")
    # The value before token i is the score of what was written up to then.
    before_second = llama.score(pack([Tree(prompt=(1,), answers=(TokenAnswer(ids=(50, 60)),))]), "value")
    torch.testing.assert_close(values[1], before_second[0], atol=1e-5, rtol=1e-5)


def test_a_fresh_role_is_the_base(tiny: SharedModel) -> None:
    tiny.add_role("policy", Lora(rank=4))
    torch.testing.assert_close(tiny.logprobs(pack(TREES), "policy").logprob, tiny.logprobs(pack(TREES), None).logprob)


def test_a_copy_of_a_role_is_that_role_and_not_the_base(tiny: SharedModel) -> None:
    # Trap: "adapter disabled" is the base, not the fine-tuned model a policy started from.
    moved_role(tiny, "policy")
    tiny.add_role("reference", Lora(), copy_of="policy", trainable=False)
    policy, reference, base = (tiny.logprobs(pack(TREES), role).logprob for role in ("policy", "reference", None))
    torch.testing.assert_close(policy, reference)
    assert (policy - base).abs().max() > 0.1


def test_using_a_role_changes_no_flag_and_only_the_role_in_use_gets_gradients(tiny: SharedModel) -> None:
    # Trap: PEFT's set_adapter would freeze the policy and let the reference train.
    moved_role(tiny, "policy")
    tiny.add_role("reference", Lora(), copy_of="policy", trainable=False)
    moved_role(tiny, "value", head="zero", seed=3)
    for role in ("reference", None, "policy"):
        loss = tiny.logprobs(pack(TREES), role).logprob.sum()
    loss.backward()
    assert all(p.requires_grad and p.grad is not None for p in tiny.parameters("policy"))
    assert not any(p.requires_grad for p in tiny.parameters("reference"))
    assert all(p.grad is None for role in ("reference", "value") for p in tiny.parameters(role))
    assert all(p.grad is None for p in tiny.base.model.parameters() if not p.requires_grad)


def test_recomputed_activations_give_the_gradient_of_the_role_of_the_forward_pass(
        tiny: SharedModel, gradients: Gradients) -> None:
    # Trap: an adapter switched between forward and backward gives a silently wrong gradient.
    moved_role(tiny, "policy")
    moved_role(tiny, "reference", seed=7, trainable=False)
    tiny.logprobs(pack(TREES), "policy").logprob.sum().backward()
    expected = gradients(tiny, "policy")
    tiny.recompute_activations(True)
    loss = tiny.logprobs(pack(TREES), "policy").logprob.sum()
    tiny.logprobs(pack(TREES), "reference")
    loss.backward()
    for ours, theirs in zip(gradients(tiny, "policy"), expected, strict=True):
        torch.testing.assert_close(ours, theirs)


def test_training_a_role_never_writes_to_the_base(llama: SharedModel) -> None:
    before = {name: p.clone() for name, p in llama.base.model.named_parameters() if "lora" not in name}
    llama.add_role("policy", Lora(rank=4))
    optimizer = torch.optim.AdamW(llama.parameters("policy"), lr=1e-2)
    llama.logprobs(pack(TREES), "policy").logprob.sum().backward()
    optimizer.step()
    after = {name.replace(".base_layer", ""): parameter
             for name, parameter in llama.base.model.named_parameters() if "lora" not in name}
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_lora_in_bf16_products_equals_pefts_own_forward_in_fp32(tiny: SharedModel) -> None:
    moved_role(tiny, "policy")
    layer = tiny.decoder.layers[0].mlp.down_proj
    x = torch.randn(5, layer.in_features)
    with tiny.playing("policy"):
        ours = layer(x)
    layer.set_adapter("policy")
    theirs = type(layer).forward(layer, x)
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", ["tiny-llama", "tiny-qwen"])
def test_a_saved_role_loads_with_plain_peft_and_gives_equal_logits(name: str, tmp_path: Path) -> None:
    model = SharedModel.load(name, dtype="float32", device="cpu")
    moved_role(model, "policy")
    model.save_role("policy", tmp_path / "policy")
    plain = PeftModel.from_pretrained(
        AutoModelForCausalLM.from_pretrained(model_folder(name)[0], dtype=torch.float32), tmp_path / "policy")
    ids = torch.tensor([[1, 50, 60, 70, 2]])
    with torch.no_grad(), model.playing("policy"):
        ours = torch.nn.functional.linear(model.decoder(input_ids=ids).last_hidden_state, model.unembedding)
        theirs = plain(input_ids=ids).logits
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)


def test_a_saved_role_names_its_base_by_digest_and_no_path(llama: SharedModel, tmp_path: Path) -> None:
    moved_role(llama, "reward", head="random")
    llama.save_role("reward", tmp_path / "reward")
    record = json.loads((tmp_path / "reward" / RECORD).read_text())
    assert (record["base"], record["base_digest"]) == ("tiny-llama", llama.base.digest)
    text = "".join(path.read_text() for path in (tmp_path / "reward").glob("*.json"))
    assert str(tmp_path) not in text and str(Path.home()) not in text


def test_a_reward_role_comes_back_with_its_head(llama: SharedModel, tmp_path: Path) -> None:
    moved_role(llama, "reward", head="random")
    expected = llama.score(pack(TREES), "reward")
    llama.save_role("reward", tmp_path / "reward")
    llama.drop_role("reward")
    llama.load_role("reward", tmp_path / "reward", head="stored")
    torch.testing.assert_close(llama.score(pack(TREES), "reward"), expected)


def test_a_missing_head_a_foreign_base_and_a_missing_adapter_are_refused(llama: SharedModel, tmp_path: Path) -> None:
    moved_role(llama, "reward", head="random")
    llama.save_role("reward", tmp_path / "reward")
    qwen = SharedModel.load("tiny-qwen", dtype="float32", device="cpu")
    with pytest.raises(ModelError, match="was trained on base weights tiny-llama"):
        qwen.load_role("reward", tmp_path / "reward", head="stored")
    (tmp_path / "reward" / HEAD).unlink()
    with pytest.raises(ModelError, match=r"has no head\.safetensors"):
        llama.load_role("again", tmp_path / "reward", head="stored")
    with pytest.raises(ModelError, match="is not an adapter folder"):
        llama.load_role("again", tmp_path)


def test_two_savings_of_a_role_are_equal_byte_for_byte(llama: SharedModel, tmp_path: Path) -> None:
    moved_role(llama, "policy")
    for name in ("a", "b"):
        llama.save_role("policy", tmp_path / name)
    for path in (tmp_path / "a").iterdir():
        assert path.read_bytes() == (tmp_path / "b" / path.name).read_bytes()


def test_a_role_that_cannot_be_loaded_leaves_nothing_behind(llama: SharedModel, tmp_path: Path) -> None:
    moved_role(llama, "reward", head="random")
    llama.save_role("reward", tmp_path / "reward")
    whole = load_file(tmp_path / "reward" / ADAPTER)
    save_file(dict(list(whole.items())[1:]), tmp_path / "reward" / ADAPTER)
    with pytest.raises(ModelError, match=r"role again: tensor .* is missing from its file"):
        llama.load_role("again", tmp_path / "reward", head="stored")
    assert list(llama.records) == ["reward"]
    save_file(whole, tmp_path / "reward" / ADAPTER)
    llama.load_role("again", tmp_path / "reward", head="stored")
    assert torch.equal(llama.score(pack(TREES), "again"), llama.score(pack(TREES), "reward"))
