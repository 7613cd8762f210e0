"""Adapters as other tools make them read to 1e-5 as PEFT's own forward does, or are refused with a sentence."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from foreign_folders import IDS, peft_folder, their_logprobs
from rlhflab.errors import ModelError
from rlhflab.model.adapters import read_adapter, read_lora
from rlhflab.model.load import model_folder
from rlhflab.model.mixing import Mixer, read_factors
from rlhflab.model.shared import SharedModel

OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {}, "rslora": {"use_rslora": True}, "dora": {"use_dora": True},
    "all-linear": {"target_modules": "all-linear"},
    "expression": {"target_modules": r".*\.(layers\.0\..*q_proj|layers\.1\..*down_proj)"},
    "ranks": {"target_modules": "all-linear", "rank_pattern": {"q_proj": 2, r"layers\.1\..*up_proj": 7}},
    "scales": {"alpha_pattern": {"q_proj": 3}}, "one block": {"layers_to_transform": [0]},
    "ranks and scales of rsLoRA": {"use_rslora": True, "rank_pattern": {"q_proj": 2}, "alpha_pattern": {"v_proj": 5}},
    "ranks of DoRA": {"use_dora": True, "rank_pattern": {"q_proj": 2}},
    "left out": {"target_modules": ["q_proj", "up_proj"], "exclude_modules": r".*layers\.1\..*up_proj"},
}


def ours(model: SharedModel, role: str) -> torch.Tensor:
    with torch.no_grad(), model.playing(role):
        states = model.decoder(input_ids=IDS).last_hidden_state
        return torch.nn.functional.linear(states, model.unembedding).log_softmax(-1)


@pytest.mark.parametrize("name", list(OPTIONS))
def test_an_adapter_by_peft_reads_here_as_it_does_there_and_is_written_as_one_that_is_even(
        name: str, tmp_path: Path, llama: SharedModel) -> None:
    expected = their_logprobs(peft_folder(tmp_path / "theirs", **OPTIONS[name]))
    llama.load_role("policy", tmp_path / "theirs")
    torch.testing.assert_close(ours(llama, "policy"), expected, atol=1e-5, rtol=0)
    assert (expected - base_logprobs(llama)).abs().max() > 0.05
    llama.save_role("policy", tmp_path / "ours")
    config = json.loads((tmp_path / "ours" / "adapter_config.json").read_text())
    assert not config["rank_pattern"] and not config["alpha_pattern"] and not config["exclude_modules"]
    base = AutoModelForCausalLM.from_pretrained(model_folder("tiny-llama")[0], dtype=torch.float32)
    again = PeftModel.from_pretrained(base, tmp_path / "ours").eval()
    torch.testing.assert_close(their_logprobs(again), expected, atol=1e-5, rtol=0)


def test_an_uneven_adapter_is_served_as_it_reads(tmp_path: Path, llama: SharedModel) -> None:
    expected = their_logprobs(peft_folder(tmp_path / "it", **OPTIONS["ranks"]))
    mixer = Mixer(llama.decoder)
    mixer.aim_at([{read_factors(llama, tmp_path / "it", digest="it"): 1.0}] * len(IDS))
    with torch.no_grad(), mixer.mixing():
        states = llama.decoder(input_ids=IDS).last_hidden_state
    torch.testing.assert_close(torch.nn.functional.linear(states, llama.unembedding).log_softmax(-1), expected,
                               atol=1e-5, rtol=0)


def base_logprobs(model: SharedModel) -> torch.Tensor:
    with torch.no_grad():
        return model.base.model(input_ids=IDS).logits.log_softmax(-1)


def test_smaller_ranks_are_filled_up_and_scales_go_into_the_second_factor(tmp_path: Path) -> None:
    peft_folder(tmp_path / "it", rank_pattern={"q_proj": 2}, alpha_pattern={"q_proj": 12})
    lora, tensors = read_adapter(tmp_path / "it", layers=2)
    stored = load_file(tmp_path / "it" / "adapter_model.safetensors")
    up = "base_model.model.model.layers.0.self_attn.q_proj.lora_B.weight"
    # q_proj: 12 / 2 = 6, v_proj: 8 / 4 = 2; one of them is the scale of both
    factor = 6 / (lora.alpha / lora.rank)
    assert lora.rank == 4 and factor in (1, 3)
    assert torch.equal(tensors[up][:, :2], factor * stored[up]) and not tensors[up][:, 2:].any()
    assert read_lora(tmp_path / "it", layers=2) == lora


@pytest.mark.parametrize(("options", "sentence"), [
    ({"modules_to_save": ["lm_head"]}, "modules_to_save is set: whole layers are trained beside"),
    ({"bias": "lora_only"}, "bias is 'lora_only', and biases of the base are never trained here; let PEFT merge"),
    ({"use_dora": True, "layers_to_transform": [0]}, r"is DoRA and has no tensors for .*layers\.1\."),
    ({"target_modules": ["q_proj", "lm_head"], "rank_pattern": {"q_proj": 2}}, "lm_head is not a layer of the blocks"),
    ({"trainable_token_indices": [3, 5]}, "trainable_token_indices is set: rows of the embedding are trained"),
])
def test_what_would_be_computed_wrongly_is_refused(options: dict[str, Any], sentence: str, tmp_path: Path,
                                                   llama: SharedModel) -> None:
    peft_folder(tmp_path / "it", **options)
    with pytest.raises(ModelError, match=sentence):
        llama.load_role("policy", tmp_path / "it")
    assert not llama.records


def test_an_adapter_of_a_larger_base_does_not_fit(tmp_path: Path) -> None:
    peft_folder(tmp_path / "it", rank_pattern={"q_proj": 2})
    with pytest.raises(ModelError, match="are not those of LoRA on a base with 1 blocks"):
        read_adapter(tmp_path / "it", layers=1)


def test_pickled_weights_are_not_opened_and_the_sentence_says_how_to_convert_them(tmp_path: Path,
                                                                                  llama: SharedModel) -> None:
    peft_folder(tmp_path / "it")
    (tmp_path / "it" / "adapter_model.safetensors").rename(tmp_path / "it" / "adapter_model.bin")
    with pytest.raises(ModelError, match=r"adapter_model\.bin is pickled, and pickled files can run code"):
        llama.load_role("policy", tmp_path / "it")


def test_the_command_that_converts_pickled_weights_works(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from rlhflab.registry.sources import CONVERT

    peft_folder(tmp_path)
    stored = load_file(tmp_path / "adapter_model.safetensors")
    torch.save(stored, tmp_path / "adapter_model.bin")
    (tmp_path / "adapter_model.safetensors").unlink()
    monkeypatch.chdir(tmp_path)
    exec(CONVERT.partition('"')[2].rpartition('"')[0], {})
    again = load_file(tmp_path / "adapter_model.safetensors")
    assert stored.keys() == again.keys() and all(torch.equal(stored[name], again[name]) for name in stored)


def test_weights_in_half_precision_are_read_in_fp32(tmp_path: Path, llama: SharedModel) -> None:
    peft_folder(tmp_path / "it", rank_pattern={"q_proj": 2})
    path = tmp_path / "it" / "adapter_model.safetensors"
    save_file({name: tensor.bfloat16() for name, tensor in load_file(path).items()}, path)
    llama.load_role("policy", tmp_path / "it")
    assert all(parameter.dtype == torch.float32 for parameter in llama.parameters("policy"))
