"""An exported adapter works in plain transformers and PEFT, folded in or not, and how exactly is measured."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

from conftest import TREES
from rlhflab.cli import main
from rlhflab.config import Lora
from rlhflab.core.batch import pack
from rlhflab.data.chat import ChatFormat
from rlhflab.model.load import model_folder, weights_digest
from rlhflab.model.plain import plain_logprobs
from rlhflab.model.shared import SharedModel
from rlhflab.registry.sources import base_named
from slow_twins import plain_logprobs as twin_logprobs

IDS = torch.tensor([[1, 50, 60, 70, 2]])


def adapter_folder(folder: Path, name: str = "tiny-llama", **settings: Any) -> tuple[Path, torch.Tensor]:
    """A stored adapter that differs from the base, and the logits it gives in plain PEFT."""
    model = SharedModel.load(name, dtype="float32", device="cpu")
    head = settings.pop("head", "none")
    model.add_role("policy", Lora(rank=4, alpha=8, **settings), head=head)
    with torch.no_grad():
        for parameter in model.parameters("policy"):
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
    model.save_role("policy", folder)
    base = AutoModelForCausalLM.from_pretrained(model_folder(name)[0], dtype=torch.float32)
    with torch.no_grad():
        return folder, PeftModel.from_pretrained(base, folder)(input_ids=IDS).logits


def exported(capsys: pytest.CaptureFixture[str], *arguments: object) -> dict[str, Any]:
    assert main(["export", *map(str, arguments), "--json"]) == 0
    report: dict[str, Any] = json.loads(capsys.readouterr().out)
    return report


@pytest.mark.parametrize("name", ["tiny-llama", "tiny-qwen"])
@pytest.mark.parametrize("settings", [{}, {"rslora": True, "last_layers": 1}, {"dora": True}])
def test_a_merged_model_needs_no_adapter(name: str, settings: dict[str, Any], tmp_path: Path,
                                         capsys: pytest.CaptureFixture[str]) -> None:
    adapter, expected = adapter_folder(tmp_path / "policy", name, **settings)
    out = tmp_path / "merged"
    report = exported(capsys, adapter, "--out", out, "--to", "merged")
    with torch.no_grad():
        logits = AutoModelForCausalLM.from_pretrained(out, dtype=torch.float32)(input_ids=IDS).logits
    torch.testing.assert_close(logits, expected, atol=1e-4, rtol=1e-4)
    assert {key: report[key] for key in ("kind", "base", "base_digest", "dtype")} == {
        "kind": "merged model", "base": name, "dtype": "float32", "base_digest": weights_digest(model_folder(name)[0])}
    assert 0 <= report["deviation"]["mean"] <= report["deviation"]["max"] < 1e-4 and report["deviation"]["tokens"] > 50
    assert json.loads((out / "export.json").read_text()) == {k: v for k, v in report.items() if k != "folder"}
    ours, theirs = (AutoTokenizer.from_pretrained(path).chat_template for path in (out, model_folder(name)[0]))
    assert ours == theirs
    assert not list(out.glob("*.bin")) and not list(tmp_path.glob(".*"))


def test_a_merged_model_is_a_base_to_train_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    adapter, _ = adapter_folder(tmp_path / "policy")
    exported(capsys, adapter, "--out", tmp_path / "merged", "--to", "merged")
    merged = SharedModel.load(str(tmp_path / "merged"), dtype="float32", device="cpu")
    model = SharedModel.load("tiny-llama", dtype="float32", device="cpu")
    model.load_role("policy", adapter)
    ours, theirs = merged.logprobs(pack(TREES), None), model.logprobs(pack(TREES), "policy")
    torch.testing.assert_close(ours.logprob, theirs.logprob, atol=1e-4, rtol=1e-4)
    assert ChatFormat(merged.tokenizer).end_id == ChatFormat(model.tokenizer).end_id


@pytest.mark.parametrize("settings", [{}, {"dora": True}, {"head": "random"}])
def test_an_exported_adapter_gives_equal_logits_in_plain_peft(settings: dict[str, Any], tmp_path: Path,
                                                              capsys: pytest.CaptureFixture[str]) -> None:
    adapter, expected = adapter_folder(tmp_path / "policy", **settings)
    report = exported(capsys, adapter, "--out", tmp_path / "out")
    base = AutoModelForCausalLM.from_pretrained(model_folder("tiny-llama")[0], dtype=torch.float32)
    with torch.no_grad():
        logits = PeftModel.from_pretrained(base, tmp_path / "out")(input_ids=IDS).logits
    torch.testing.assert_close(logits, expected, atol=1e-5, rtol=1e-5)
    assert report["kind"] == "adapter" and report["deviation"]["max"] < 1e-4


def test_merging_in_bf16_says_that_it_is_lossy_and_by_how_much(tmp_path: Path,
                                                               capsys: pytest.CaptureFixture[str]) -> None:
    adapter, _ = adapter_folder(tmp_path / "policy")
    assert main(["export", str(adapter), "--out", str(tmp_path / "out"), "--to", "merged", "--dtype", "bfloat16"]) == 0
    said = capsys.readouterr().out
    report = json.loads((tmp_path / "out" / "export.json").read_text())
    assert "lossy" in said and f"at most {report['deviation']['max']:.2g}" in said
    assert report["deviation"]["max"] > 1e-3
    weights = AutoModelForCausalLM.from_pretrained(tmp_path / "out").state_dict()
    assert weights["model.layers.0.mlp.up_proj.weight"].dtype == torch.bfloat16


def test_a_wrong_merge_is_refused_and_leaves_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str],
                                                     monkeypatch: pytest.MonkeyPatch) -> None:
    adapter, _ = adapter_folder(tmp_path / "policy")
    merged_weights = SharedModel.merged_weights
    monkeypatch.setattr(SharedModel, "merged_weights", lambda self, role: {
        name: 1.01 * weight for name, weight in merged_weights(self, role).items()})
    assert main(["export", str(adapter), "--out", str(tmp_path / "out"), "--to", "merged"]) == 2
    assert "gives other log-probs than the adapter" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["policy"]


def test_what_cannot_be_exported_is_one_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    adapter, _ = adapter_folder(tmp_path / "reward", head="random")
    for arguments, sentence in [
            ([adapter, "--out", tmp_path], f"{tmp_path}: exists already"),
            ([adapter, "--out", tmp_path / "out", "--to", "merged"], "has a head beside it, which a language model"),
            ([adapter, "--out", tmp_path / "out", "--model", "tiny-qwen"], "was trained on base weights tiny-llama"),
            ([tmp_path / "none", "--out", tmp_path / "out"], "is no adapter; export needs one"),
            ([adapter, "--out", tmp_path / "out", "--to", "vllm"], "has a head beside it")]:
        assert main(["export", *map(str, arguments)]) == 2
        assert sentence in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_the_base_of_an_adapter_from_elsewhere_is_the_one_its_config_names(tmp_path: Path) -> None:
    adapter, _ = adapter_folder(tmp_path / "policy")
    (adapter / "rlhflab.json").unlink()
    assert base_named(adapter) == "tiny-llama"


def test_plain_logprobs_are_those_of_the_twin(llama: SharedModel) -> None:
    plain = AutoModelForCausalLM.from_pretrained(model_folder("tiny-llama")[0], dtype=torch.float32)
    torch.testing.assert_close(plain_logprobs(plain, TREES[:2]), torch.cat(
        [each for tree in TREES[:2] for each in twin_logprobs(llama, tree, None)]), atol=1e-5, rtol=1e-5)
