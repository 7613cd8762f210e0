"""Rows with amounts of their own equal weights that were changed by hand; what does not fit is named."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from conftest import moved_role
from rlhflab.config import Lora
from rlhflab.errors import ModelError
from rlhflab.model.mixing import HELD, Mixer, drop_zeros, linear_layers, read_factors
from rlhflab.model.shared import ADAPTER, SharedModel


def folder_of(tmp_path: Path, name: str, lora: Lora, *, base: str = "tiny-llama", seed: int = 1) -> Path:
    model = SharedModel.load(base, dtype="float32", device="cpu")
    model.add_role(name, lora)
    with torch.no_grad():
        for i, parameter in enumerate(model.parameters(name)):
            noise = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(100 * seed + i))
            parameter.copy_(0.2 * noise)
    model.save_role(name, tmp_path / name)
    return tmp_path / name


def states(model: SharedModel, tokens: torch.Tensor) -> torch.Tensor:
    found: torch.Tensor = model.decoder(input_ids=tokens, use_cache=False).last_hidden_state
    return found


TOKENS = torch.randint(3, 300, (4, 9), generator=torch.Generator().manual_seed(0))


@torch.no_grad()
def test_each_row_equals_the_weights_set_by_hand(tiny: SharedModel, tmp_path: Path) -> None:
    shapes = {"a": Lora(rank=4, alpha=8), "b": Lora(rank=2, alpha=3, rslora=True), "c": Lora(rank=3, last_layers=1)}
    a, b, c = (read_factors(tiny, folder_of(tmp_path, name, lora, base=tiny.base.name, seed=seed), digest=name)
               for seed, (name, lora) in enumerate(shapes.items()))
    rows = [{a: 1.0}, {a: 0.3, b: -0.5}, {}, {b: 0.7, c: 1.5}]
    mixer = Mixer(tiny.decoder)
    mixer.aim_at(rows)
    with mixer.mixing():
        together = states(tiny, TOKENS)
    layers = linear_layers(tiny.decoder)
    before = {name: layer.weight.clone() for name, layer in layers.items()}
    for row, amounts in enumerate(rows):
        for name, layer in layers.items():
            layer.weight.copy_(before[name] + sum(
                amount * factors.layers[name].up.T @ factors.layers[name].down
                for factors, amount in amounts.items() if name in factors.layers))
        torch.testing.assert_close(together[row], states(tiny, TOKENS[row:row + 1])[0], atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_a_whole_adapter_is_the_role_it_was_saved_from(llama: SharedModel, tmp_path: Path) -> None:
    moved_role(llama, "policy")
    llama.save_role("policy", tmp_path / "policy")
    with llama.playing("policy"):
        right = states(llama, TOKENS)
    plain = SharedModel.load("tiny-llama", dtype="float32", device="cpu")
    mixer = Mixer(plain.decoder)
    mixer.aim_at([{read_factors(plain, tmp_path / "policy", digest="p"): 1.0}] * 4)
    with mixer.mixing():
        torch.testing.assert_close(states(plain, TOKENS), right, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_rows_of_the_base_alone_are_the_base_in_every_bit_and_layers_are_as_before(llama: SharedModel) -> None:
    before = states(llama, TOKENS)
    mixer = Mixer(llama.decoder)
    mixer.aim_at([{}] * 4)
    with mixer.mixing():
        assert torch.equal(states(llama, TOKENS), before)
    assert not any("forward" in vars(layer) for layer in linear_layers(llama.decoder).values())


def test_what_was_wanted_is_held_up_to_a_number(llama: SharedModel, tmp_path: Path) -> None:
    folder = folder_of(tmp_path, "a", Lora(rank=1))
    many = [read_factors(llama, folder, digest=str(i)) for i in range(HELD + 2)]
    mixer = Mixer(llama.decoder)
    for factors in many:
        mixer.aim_at([{factors: 1.0}])
    assert [factors.digest for factors in mixer.held] == [str(i) for i in reversed(range(2, HELD + 2))]
    mixer.aim_at([dict.fromkeys(many, 0.1)])
    assert set(mixer.held) == set(many), "what rows want is never left out"


def test_amounts_of_one_adapter_add_up_and_zeros_are_left_out(llama: SharedModel, tmp_path: Path) -> None:
    a, b = (read_factors(llama, folder_of(tmp_path, name, Lora(rank=1)), digest=name) for name in "ab")
    assert drop_zeros([(a, 0.25), (b, 0.0), (a, 0.5)]) == {a: 0.75}
    assert drop_zeros([(a, 1.0), (a, -1.0)]) == {}


def changed(folder: Path, name: str, tensor: torch.Tensor | None) -> Path:
    tensors = load_file(folder / ADAPTER)
    key = next(key for key in tensors if name in key)
    tensors = {each: value for each, value in tensors.items() if each != key} | (
        {} if tensor is None else {key: tensor})
    save_file(tensors, folder / ADAPTER)
    return folder


@pytest.mark.parametrize(("part", "tensor", "sentence"), [
    ("q_proj.lora_B", None, "has no lora_B"),
    ("q_proj.lora_A", torch.zeros(2, 65), r"q_proj has factors of \(2, 65\) and \(64, 2\); .* need \(2, 64\)"),
    ("q_proj.lora_A", torch.full((2, 64), torch.nan), "q_proj holds numbers that are not finite")])
def test_factors_that_do_not_fit_are_named(part: str, tensor: torch.Tensor | None, sentence: str, llama: SharedModel,
                                           tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=sentence):
        read_factors(llama, changed(folder_of(tmp_path, "a", Lora(rank=2)), part, tensor), digest="a")


def test_dora_other_bases_and_broken_files_are_refused(llama: SharedModel, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="is a DoRA adapter"):
        read_factors(llama, folder_of(tmp_path, "dora", Lora(rank=2, dora=True)), digest="d")
    with pytest.raises(ModelError, match=r"was trained on base weights tiny-qwen \([0-9a-f]{12}\), not on tiny-llama"):
        read_factors(llama, folder_of(tmp_path, "qwen", Lora(rank=2), base="tiny-qwen"), digest="q")
    folder = folder_of(tmp_path, "broken", Lora(rank=2))
    (folder / ADAPTER).write_bytes(b"no tensors")
    with pytest.raises(ModelError, match="cannot be read"):
        read_factors(llama, folder, digest="b")
    config = folder_of(tmp_path, "named", Lora(rank=2)) / "adapter_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"r": 3}))
    with pytest.raises(ModelError, match="rank 3 need"):
        read_factors(llama, config.parent, digest="n")
