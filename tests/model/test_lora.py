"""Every kind of adapter equals PEFT's own forward, stands beside others, is stacked and folded without a difference."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM

from conftest import TREES
from rlhflab.config import Lora
from rlhflab.core.batch import pack
from rlhflab.errors import ModelError
from rlhflab.model.load import model_folder
from rlhflab.model.roles import lora_layers
from rlhflab.model.shared import SharedModel
from slow_twins import plain_logprobs

IDS = torch.tensor([[1, 50, 60, 70, 2]])
SHAPES = {
    "plain": Lora(rank=4, alpha=8), "rslora": Lora(rank=4, alpha=8, rslora=True),
    "dora": Lora(rank=4, alpha=8, dora=True), "both": Lora(rank=4, alpha=8, rslora=True, dora=True),
    "last": Lora(rank=4, alpha=8, rslora=True, last_layers=1),
    "few": Lora(rank=2, alpha=6, targets=["q_proj", "up_proj"]),
}


def moved(model: SharedModel, name: str, lora: Lora, *, seed: int = 1, **options: Any) -> None:
    """A role of shape `lora` whose every tensor differs from its start."""
    model.add_role(name, lora, seed=seed, **options)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters(name):
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator))


def logprobs(model: SharedModel, role: str | None) -> torch.Tensor:
    with torch.no_grad():
        return model.logprobs(pack(TREES), role).logprob


def plain_logits(name: str, folder: Path) -> torch.Tensor:
    """What plain transformers and PEFT compute from an adapter folder."""
    base = AutoModelForCausalLM.from_pretrained(model_folder(name)[0], dtype=torch.float32)
    with torch.no_grad():
        logits: torch.Tensor = PeftModel.from_pretrained(base, folder)(input_ids=IDS).logits
    return logits


def our_logits(model: SharedModel, role: str) -> torch.Tensor:
    with torch.no_grad(), model.playing(role):
        return torch.nn.functional.linear(model.decoder(input_ids=IDS).last_hidden_state, model.unembedding)


@pytest.mark.parametrize("shape", ["plain", "rslora", "dora", "both"])
@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_our_forward_equals_pefts_forward_and_backward(tiny: SharedModel, shape: str, dropout: float) -> None:
    moved(tiny, "policy", SHAPES[shape].model_copy(update={"dropout": dropout}))
    for layer in (tiny.decoder.layers[0].self_attn.q_proj, tiny.decoder.layers[1].mlp.down_proj):
        layer.set_adapter("policy")
        if layer.base_layer.bias is not None:
            torch.nn.init.normal_(layer.base_layer.bias)  # Qwen's are 0 in a random model
        x = torch.randn(2, 5, layer.in_features, generator=torch.Generator().manual_seed(3))
        weights = torch.linspace(-1, 1, layer.out_features)
        results = []
        for forward in (layer, lambda x, layer=layer: type(layer).forward(layer, x)):
            given = x.clone().requires_grad_()
            torch.manual_seed(5)  # of the dropout
            with tiny.playing("policy"):
                out = forward(given)
            parameters = [p for name, p in layer.named_parameters() if ".policy" in name]
            results.append([out, *torch.autograd.grad((out * weights).sum(), [given, *parameters])])
        assert len(results[0]) == (5 if "dora" in shape or shape == "both" else 4)
        for ours, theirs in zip(*results, strict=True):
            torch.testing.assert_close(ours, theirs, atol=2e-5, rtol=1e-5)


def test_rank_stabilised_scaling_by_hand(llama: SharedModel) -> None:
    moved(llama, "policy", Lora(rank=4, alpha=8, rslora=True))
    layer = llama.decoder.layers[0].mlp.up_proj
    x = torch.randn(3, layer.in_features)
    with llama.playing("policy"):
        added = layer(x) - layer.base_layer(x)
    down, up = layer.lora_A["policy"].weight, layer.lora_B["policy"].weight
    torch.testing.assert_close(added, 4.0 * x @ down.T @ up.T, atol=1e-4, rtol=1e-4)  # 8 / sqrt(4), not 8 / 4


def test_in_bf16_a_gain_near_one_is_not_rounded_before_it_is_used() -> None:
    model = SharedModel.load("tiny-llama", dtype="bfloat16", device="cpu")
    model.add_role("policy", SHAPES["dora"])
    layer = model.decoder.layers[0].mlp.up_proj
    with torch.no_grad():
        layer.lora_magnitude_vector["policy"].weight.mul_(1.005)  # bf16 knows 1 and 1.0078, and nothing between
        x = torch.randn(256, layer.in_features, generator=torch.Generator().manual_seed(0)).bfloat16()
        with model.playing("policy"):
            base, out = layer.base_layer(x).float(), layer(x).float()
    assert float((base * out).sum() / (base * base).sum()) == pytest.approx(1.005, abs=1e-3)


@pytest.mark.parametrize("shape", list(SHAPES))
def test_shared_prompts_equal_plain_forwards_for_every_shape(tiny: SharedModel, shape: str) -> None:
    moved(tiny, "policy", SHAPES[shape])
    plain = torch.cat([each for tree in TREES for each in plain_logprobs(tiny, tree, "policy")])
    torch.testing.assert_close(tiny.logprobs(pack(TREES), "policy").logprob, plain, atol=1e-4, rtol=1e-4)
    assert (logprobs(tiny, "policy") - logprobs(tiny, None)).abs().max() > 0.05


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("shape", list(SHAPES))
def test_a_fresh_role_of_any_shape_is_the_base_to_the_bit(shape: str, dtype: str) -> None:
    model = SharedModel.load("tiny-qwen", dtype=dtype, device="cpu")
    model.add_role("policy", SHAPES[shape])
    assert torch.equal(logprobs(model, "policy"), logprobs(model, None))
    assert all(parameter.dtype == torch.float32 for parameter in model.parameters("policy"))


def test_the_writing_cache_of_a_dora_role_changes_nothing(llama: SharedModel) -> None:
    moved(llama, "policy", SHAPES["dora"])
    expected = our_logits(llama, "policy")
    with llama.writing("policy"):
        for _ in range(2):
            states = llama.decoder(input_ids=IDS).last_hidden_state
            assert torch.equal(torch.nn.functional.linear(states, llama.unembedding), expected)


def test_only_the_last_layers_are_adapted(tiny: SharedModel) -> None:
    tiny.add_role("policy", Lora(rank=4, last_layers=1))
    assert {name.partition("layers.")[2][0] for name in tiny.adapter("policy")} == {"1"}
    with pytest.raises(ModelError, match=r"last_layers: 3 blocks are asked for, and tiny-\w+ has 2"):
        tiny.add_role("more", Lora(last_layers=3))


def test_roles_of_different_shapes_stand_side_by_side(tiny: SharedModel, tmp_path: Path) -> None:
    for first in (["policy", "reward", "value"], ["value", "reward", "policy"]):
        alone = {}
        shapes = {"policy": SHAPES["last"], "reward": SHAPES["plain"], "value": SHAPES["dora"]}
        for name in first:
            moved(tiny, name, shapes[name])
            alone[name] = logprobs(tiny, name)
            tiny.drop_role(name)
        for name in first:
            moved(tiny, name, shapes[name])
        for name in first:
            assert torch.equal(logprobs(tiny, name), alone[name])
            assert tiny.lora_of(name).last_layers == shapes[name].last_layers
        for name in first:
            tiny.drop_role(name)


def test_a_plain_role_may_have_the_name_of_a_dora_role_that_was_dropped(llama: SharedModel) -> None:
    moved(llama, "policy", SHAPES["dora"])
    llama.drop_role("policy")
    moved(llama, "policy", SHAPES["plain"])
    assert not any("magnitude" in name for name in llama.adapter("policy"))


def test_dropout_acts_in_training_and_never_on_what_is_read(llama: SharedModel) -> None:
    moved(llama, "policy", Lora(rank=4, dropout=0.5))
    assert torch.equal(logprobs(llama, "policy"), logprobs(llama, "policy"))
    first, second = (llama.logprobs(pack(TREES), "policy").logprob for _ in range(2))
    assert not torch.equal(first, second)


@pytest.mark.parametrize("name", ["tiny-llama", "tiny-qwen"])
@pytest.mark.parametrize("shape", list(SHAPES))
def test_a_saved_role_of_any_shape_works_in_plain_peft_and_comes_back(name: str, shape: str, tmp_path: Path) -> None:
    model = SharedModel.load(name, dtype="float32", device="cpu")
    moved(model, "policy", SHAPES[shape])
    model.save_role("policy", tmp_path / "policy")
    torch.testing.assert_close(our_logits(model, "policy"), plain_logits(name, tmp_path / "policy"),
                               atol=1e-4, rtol=1e-4)
    model.load_role("again", tmp_path / "policy")
    assert torch.equal(logprobs(model, "again"), logprobs(model, "policy"))
    stored, asked = model.lora_of("again"), SHAPES[shape]
    assert stored.model_dump(exclude={"targets"}) == asked.model_dump(exclude={"targets"})
    assert len(lora_layers(model.base.model, "again")) == len(lora_layers(model.base.model, "policy"))


@pytest.mark.parametrize("options", [
    {"use_rslora": True, "layers_to_transform": [1], "target_modules": ["q_proj", "v_proj"]},
    {"use_dora": True, "target_modules": "all-linear"},
    {"layers_to_transform": 1, "target_modules": ["down_proj"], "init_lora_weights": "gaussian"},
    {"target_modules": r".*\.(q|k)_proj"},
])
def test_an_adapter_that_another_tool_wrote_gives_its_logits(options: dict[str, Any], tmp_path: Path) -> None:
    base = AutoModelForCausalLM.from_pretrained(model_folder("tiny-llama")[0], dtype=torch.float32)
    config = LoraConfig(r=3, lora_alpha=5, lora_dropout=0.1, task_type="CAUSAL_LM", **options)
    theirs: Any = get_peft_model(base, config)
    with torch.no_grad():
        for parameter in theirs.parameters():
            if parameter.requires_grad:
                parameter.add_(0.2 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(2)))
    theirs.save_pretrained(tmp_path / "theirs")
    model = SharedModel.load("tiny-llama", dtype="float32", device="cpu")
    model.load_role("policy", tmp_path / "theirs")
    with torch.no_grad():
        expected = theirs.eval()(input_ids=IDS).logits
    torch.testing.assert_close(our_logits(model, "policy"), expected, atol=1e-4, rtol=1e-4)
    model.save_role("policy", tmp_path / "ours")
    torch.testing.assert_close(plain_logits("tiny-llama", tmp_path / "ours"), expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(("key", "value", "sentence"), [
    ("rank_pattern", {"q_proj": 8}, "layers.0.self_attn.q_proj has rank 4, and r and rank_pattern say 8"),
    ("lora_bias", True, "lora_bias is set: the adapter has biases of its own; let PEFT merge it into its base"),
    ("modules_to_save", ["lm_head"], "modules_to_save is set: whole layers are trained beside the LoRA factors"),
    ("trainable_token_indices", [3], "trainable_token_indices is set: rows of the embedding are trained"),
    ("target_parameters", ["w"], "target_parameters is set: only adapters that are the product of two matrices"),
    ("init_lora_weights", "pissa", "init_lora_weights is 'pissa', which changes the base weights"),
    ("bias", "all", "bias is 'all'"),
    ("layers_to_transform", [0], r"layers_to_transform is \[0\], and there are tensors for .*layers\.1\."),
    ("r", None, "is not a LoRA configuration"),
    ("target_modules", ["no_such"], "cannot be adapted so: Target modules"),
    ("target_modules", ["embed_tokens"], "embed_tokens is not a linear layer of the blocks"),
    ("target_modules", ["q_proj", "lm_head"], "lm_head is not a linear layer of the blocks"),
])
def test_what_cannot_be_loaded_is_one_sentence(key: str, value: object, sentence: str, tmp_path: Path) -> None:
    model = SharedModel.load("tiny-llama", dtype="float32", device="cpu")
    moved(model, "policy", SHAPES["plain"])
    model.save_role("policy", tmp_path / "policy")
    path = tmp_path / "policy" / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), key: value}))
    with pytest.raises(ModelError, match=sentence):
        model.load_role("again", tmp_path / "policy")


def test_a_missing_tensor_is_named_and_not_left_at_random(llama: SharedModel, tmp_path: Path) -> None:
    moved(llama, "policy", SHAPES["last"])
    llama.save_role("policy", tmp_path / "policy")
    path = tmp_path / "policy" / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "layers_to_transform": None, "layers_pattern": None}))
    with pytest.raises(ModelError, match=r"tensor base_model\.model\.model\.layers\.0\..* is missing"):
        llama.load_role("again", tmp_path / "policy")


@pytest.mark.parametrize("above", ["plain", "rslora", "last", "few"])
@pytest.mark.parametrize("below", ["plain", "last", "few"])
def test_a_stacked_role_is_saved_as_one_adapter_with_equal_logprobs(below: str, above: str, tmp_path: Path) -> None:
    model = SharedModel.load("tiny-qwen", dtype="float32", device="cpu")
    moved(model, "start", SHAPES[below], trainable=False)
    model.add_role("policy", SHAPES[above], on="start")
    assert torch.equal(logprobs(model, "policy"), logprobs(model, "start")), "it starts as what it stands on"
    with torch.no_grad():
        for parameter in model.parameters("policy"):
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(9)))
    model.save_role("policy", tmp_path / "policy")
    assert set(model.records) == {"start", "policy"}
    torch.testing.assert_close(our_logits(model, "policy"), plain_logits("tiny-qwen", tmp_path / "policy"),
                               atol=1e-4, rtol=1e-4)
    model.load_role("again", tmp_path / "policy")
    torch.testing.assert_close(logprobs(model, "again"), logprobs(model, "policy"), atol=1e-5, rtol=1e-5)
    lora = model.lora_of("again")
    assert (lora.rank, lora.rslora) == (SHAPES[below].rank + SHAPES[above].rank, False)


def test_a_stacked_role_trains_its_own_part_alone(tiny: SharedModel) -> None:
    moved(tiny, "start", SHAPES["plain"], trainable=False)
    tiny.add_role("policy", SHAPES["rslora"], on="start")
    tiny.add_role("reference", Lora(), copy_of="policy", trainable=False)
    before = {key: tensor.clone() for key, tensor in tiny.adapter("start").items()}
    reference = logprobs(tiny, "reference")
    assert torch.equal(reference, logprobs(tiny, "start"))
    optimizer = torch.optim.AdamW(tiny.parameters("policy"), lr=1e-2)
    for _ in range(2):
        tiny.logprobs(pack(TREES), "policy").logprob.sum().backward()
        optimizer.step()
    assert all(torch.equal(before[key], tensor) for key, tensor in tiny.adapter("start").items())
    assert all(parameter.grad is None for role in ("start", "reference") for parameter in tiny.parameters(role))
    assert torch.equal(logprobs(tiny, "reference"), reference)
    assert (logprobs(tiny, "policy") - reference).abs().max() > 1e-3


def test_a_stacked_role_is_restored_on_top_of_what_it_stands_on(llama: SharedModel, tmp_path: Path) -> None:
    moved(llama, "start", SHAPES["plain"], trainable=False)
    moved(llama, "policy", SHAPES["rslora"], on="start", seed=4)
    expected = logprobs(llama, "policy")
    llama.save_role("policy", tmp_path / "policy", alone=True)
    with torch.no_grad():
        for parameter in llama.parameters("policy"):
            parameter.zero_()
    llama.restore_role("policy", tmp_path / "policy")
    assert torch.equal(logprobs(llama, "policy"), expected)


def test_what_a_role_stands_on_cannot_be_dropped_and_dora_cannot_be_stacked(llama: SharedModel) -> None:
    moved(llama, "start", SHAPES["plain"])
    llama.add_role("policy", SHAPES["plain"], on="start")
    with pytest.raises(ModelError, match="role start cannot be dropped: policy stands on it"):
        llama.drop_role("start")
    with pytest.raises(ModelError, match="a DoRA adapter cannot be stacked"):
        llama.add_role("another", SHAPES["dora"], on="start")
    moved(llama, "dora", SHAPES["dora"])
    with pytest.raises(ModelError, match="a DoRA adapter cannot be stacked"):
        llama.add_role("another", SHAPES["plain"], on="dora")
    assert "another" not in llama.records


@pytest.mark.parametrize("shape", list(SHAPES))
def test_merged_weights_give_the_roles_logits_and_the_base_is_not_written(tiny: SharedModel, shape: str) -> None:
    before = {name: p.clone() for name, p in tiny.base.model.named_parameters()}
    moved(tiny, "policy", SHAPES[shape])
    merged = tiny.merged_weights("policy")
    after = {name.replace(".base_layer", ""): parameter
             for name, parameter in tiny.base.model.named_parameters() if "lora_" not in name}
    assert all(torch.equal(before[name], after[name]) for name in before)
    plain = AutoModelForCausalLM.from_pretrained(model_folder(tiny.base.name)[0], dtype=torch.float32)
    assert not plain.load_state_dict(merged, strict=False).unexpected_keys
    with torch.no_grad():
        torch.testing.assert_close(plain(input_ids=IDS).logits, our_logits(tiny, "policy"), atol=1e-4, rtol=1e-4)
