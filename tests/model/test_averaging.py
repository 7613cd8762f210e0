"""The average of roles has the mean of their products; the product of their mean factors is something else."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from conftest import TREES, moved_role
from rlhflab.cli import main
from rlhflab.config import Lora
from rlhflab.core.batch import pack
from rlhflab.errors import ModelError
from rlhflab.model.averaging import average_roles, between_roles
from rlhflab.model.shared import ADAPTER, ADAPTER_CONFIG, HEAD, SharedModel


@pytest.fixture
def folders(llama: SharedModel, tmp_path: Path) -> list[Path]:
    """Three reward roles of different rank, scale and head."""
    for seed, (rank, alpha) in enumerate(((4, 8), (2, 6), (4, 4)), start=1):
        name = f"m{seed}"
        llama.add_role(name, Lora(rank=rank, alpha=alpha), head="random", seed=seed)
        with torch.no_grad():
            for parameter in llama.parameters(name):
                parameter.copy_(0.2 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(seed)))
        llama.records[name] = replace(llama.records[name], score_mean=float(seed), score_std=2.0 * seed,
                                      temperature=1.0)
        llama.save_role(name, tmp_path / name)
    return [tmp_path / f"m{seed}" for seed in (1, 2, 3)]


def product(layer: torch.nn.Module, role: str) -> torch.Tensor:
    """Scale x B A of a role on one layer."""
    return layer.scaling[role] * layer.lora_B[role].weight @ layer.lora_A[role].weight  # type: ignore[index, operator, union-attr]


def test_every_layer_has_the_mean_of_the_products(llama: SharedModel, folders: list[Path], tmp_path: Path) -> None:
    average_roles(folders, tmp_path / "mean")
    llama.load_role("mean", tmp_path / "mean", head="stored")
    naive = 0
    for layer in (m for m in llama.decoder.modules() if hasattr(m, "lora_A")):
        members = [product(layer, name) for name in ("m1", "m2", "m3")]
        torch.testing.assert_close(product(layer, "mean"), torch.stack(members).mean(0), atol=1e-5, rtol=1e-4)
        # Trap: m1 and m3 have one rank, so their factors can be averaged; that is not the mean of the products.
        down = (layer.lora_A["m1"].weight + layer.lora_A["m3"].weight) / 2
        up = sum(layer.scaling[name] * layer.lora_B[name].weight for name in ("m1", "m3")) / 2
        naive += not torch.allclose(up @ down, (members[0] + members[2]) / 2, atol=1e-2)
    assert naive == 14, "7 layers in each of 2 blocks"
    x = torch.randn(5, llama.width, generator=torch.Generator().manual_seed(0))
    layer = llama.decoder.layers[1].self_attn.q_proj
    hidden = {}
    for role in (None, "m1", "m2", "m3", "mean"):
        with llama.playing(role):
            hidden[role] = layer(x) - (hidden[None] if role else 0)
    torch.testing.assert_close(hidden["mean"], (hidden["m1"] + hidden["m2"] + hidden["m3"]) / 3, atol=1e-5, rtol=1e-4)


def test_heads_and_scales_are_averaged_and_what_was_fitted_on_a_member_is_left(
        llama: SharedModel, folders: list[Path], tmp_path: Path) -> None:
    average_roles(folders, tmp_path / "mean")
    heads = torch.stack([load_file(folder / HEAD)["weight"] for folder in folders])
    torch.testing.assert_close(load_file(tmp_path / "mean" / HEAD)["weight"], heads.mean(0))
    llama.load_role("mean", tmp_path / "mean", head="stored")
    record = llama.records["mean"]
    assert (record.score_mean, record.score_std, record.temperature, record.length_curve) == (2.0, 4.0, None, ())
    assert llama.score(pack(TREES), "mean").isfinite().all()


def test_the_average_of_a_role_with_itself_is_that_role(
        llama: SharedModel, folders: list[Path], tmp_path: Path) -> None:
    average_roles([folders[1], folders[1]], tmp_path / "same")
    llama.load_role("same", tmp_path / "same", head="stored")
    torch.testing.assert_close(llama.score(pack(TREES), "same"), llama.score(pack(TREES), "m2"), atol=1e-5, rtol=1e-4)


def test_rank_stabilised_scales_are_read(llama: SharedModel, folders: list[Path], tmp_path: Path) -> None:
    config = json.loads((folders[0] / ADAPTER_CONFIG).read_text())
    (folders[0] / ADAPTER_CONFIG).write_text(json.dumps(config | {"use_rslora": True}))  # alpha / sqrt(rank) = 8 / 2
    average_roles([folders[0], folders[0]], tmp_path / "same")
    name = next(name for name in load_file(folders[0] / ADAPTER) if "lora_B" in name)
    half = load_file(tmp_path / "same" / ADAPTER)[name][:, :4]
    torch.testing.assert_close(half, load_file(folders[0] / ADAPTER)[name] * 4 / 2)
    assert json.loads((tmp_path / "same" / ADAPTER_CONFIG).read_text())["use_rslora"] is False


def test_what_cannot_be_averaged_is_named(llama: SharedModel, folders: list[Path], tmp_path: Path) -> None:
    qwen = SharedModel.load("tiny-qwen", dtype="float32", device="cpu")
    moved_role(qwen, "reward", head="random")
    qwen.save_role("reward", tmp_path / "qwen")
    llama.set_head("m1", torch.zeros(3, llama.width))
    llama.save_role("m1", tmp_path / "three")
    moved_role(llama, "policy")
    llama.save_role("policy", tmp_path / "policy")
    for other, sentence in (("qwen", "has another base"), ("three", "another head"), ("policy", "has no head"),
                            ("nowhere", "has no adapter_model.safetensors")):
        with pytest.raises(ModelError, match=sentence):
            average_roles([folders[0], tmp_path / other], tmp_path / "out")
    with pytest.raises(ModelError, match="exists already"):
        average_roles(folders, tmp_path / "m1")
    with pytest.raises(ModelError, match="at least two"):
        average_roles(folders[:1], tmp_path / "out")
    config = json.loads((folders[0] / ADAPTER_CONFIG).read_text())
    (folders[0] / ADAPTER_CONFIG).write_text(json.dumps(config | {"use_dora": True}))
    with pytest.raises(ModelError, match="use_dora is set"):
        average_roles(folders, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_command(folders: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "mean"
    assert main(["average-roles", *map(str, folders), "--out", str(out)]) == 0
    assert f"Wrote {out}" in capsys.readouterr().out
    assert main(["average-roles", *map(str, folders), "--out", str(out)]) == 2
    assert "exists already" in capsys.readouterr().err


def test_a_point_between_two_policies_has_the_products_of_both_by_its_strength(llama: SharedModel,
                                                                              tmp_path: Path) -> None:
    weights = {}
    for seed, name in enumerate(("parent", "child"), start=1):
        moved_role(llama, name, seed=seed)
        llama.save_role(name, tmp_path / name)
        weights[name] = llama.merged_weights(name)
    for strength in (0.0, 0.25, 1.0, 1.25):
        folder = between_roles(tmp_path / "parent", tmp_path / "child", strength, tmp_path / f"at-{strength}")
        llama.load_role("turned", folder)
        for name, weight in llama.merged_weights("turned").items():
            parent, child = weights["parent"][name], weights["child"][name]
            torch.testing.assert_close(weight, parent + strength * (child - parent), rtol=1e-4, atol=1e-5)
        llama.drop_role("turned")


def test_a_point_between_adapters_of_different_bases_is_refused(llama: SharedModel, tmp_path: Path) -> None:
    for model, name in ((llama, "llama"), (SharedModel.load("tiny-qwen", dtype="float32", device="cpu"), "qwen")):
        moved_role(model, "policy")
        model.save_role("policy", tmp_path / name)
    with pytest.raises(ModelError, match="has another base"):
        between_roles(tmp_path / "llama", tmp_path / "qwen", 0.5, tmp_path / "out")
    assert not (tmp_path / "out").exists()
