"""Exports for llama.cpp and vLLM hold the adapter, or say why there is none. A stand-in plays llama.cpp's converter.

Where $LLAMA_CPP names a copy of llama.cpp, its own converter is run too.
"""

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from gguf import GGUFReader
from safetensors.numpy import load_file

from foreign_folders import peft_folder
from rlhflab.cli import main
from rlhflab.runs.export_vllm import allowed_rank

STAND_IN = Path(__file__).parents[1] / "stand_in_converter.py"


@pytest.fixture
def rough(tmp_path: Path) -> Path:
    """An rsLoRA adapter of two ranks by PEFT."""
    peft_folder(tmp_path / "theirs", named="tiny-llama", use_rslora=True, rank_pattern={"q_proj": 2})
    return tmp_path / "theirs"


def failed(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    assert main(["export", *map(str, arguments)]) == 2
    return capsys.readouterr().err


def exported(capsys: pytest.CaptureFixture[str], *arguments: object) -> dict[str, Any]:
    assert main(["export", *map(str, arguments), "--json"]) == 0
    report: dict[str, Any] = json.loads(capsys.readouterr().out)
    return report


@pytest.mark.parametrize("how", ["flag", "folder", "environment"])
def test_llama_cpps_converter_is_found_and_gets_a_plain_adapter_of_the_same_scale(
        how: str, rough: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str],
        monkeypatch: pytest.MonkeyPatch) -> None:
    home = tmp_path / "llama.cpp"
    home.mkdir()
    shutil.copy(STAND_IN, home / "convert_lora_to_gguf.py")
    monkeypatch.delenv("LLAMA_CPP", raising=False)
    if how == "environment":
        monkeypatch.setenv("LLAMA_CPP", str(home))
    flag = [] if how == "environment" else ["--converter", home if how == "folder" else STAND_IN]
    report = exported(capsys, rough, "--to", "gguf-lora", "--out", tmp_path / "out", *flag)
    found = report["gguf"]
    reader = GGUFReader(tmp_path / "out" / found["file"])
    # rsLoRA: 8 / sqrt(2) for q_proj, 8 / sqrt(4) = 4 for v_proj; the first of them, times rank 4, is the alpha
    assert found["alpha"] == pytest.approx(4 * 8 / 2**0.5) and found["layers"] == 4 and len(reader.tensors) == 8
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["adapter.gguf", "export.json"]
    assert report["deviation"]["max"] < 1e-4


@pytest.mark.parametrize(("wrong", "sentence"), [
    ("fails", "stand_in_converter.py: ended with 1 and said: ERROR: this architecture is not supported"),
    ("text", "the converter's result is not a GGUF file"), ("half", "its 3 layers are not the 4 of the adapter"),
    ("scale", "adapter.lora.alpha is "), ("values", "or their matrices have other norms")])
def test_what_a_converter_does_wrong_is_found_and_nothing_is_left(
        wrong: str, sentence: str, rough: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str],
        monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STAND_IN", wrong)
    assert sentence in failed(capsys, rough, "--to", "gguf-lora", "--out", tmp_path / "out", "--converter", STAND_IN)
    assert [path.name for path in tmp_path.iterdir()] == ["theirs"]


def test_without_a_converter_the_sentence_says_where_it_is_to_be_had(
        rough: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LLAMA_CPP", raising=False)
    said = failed(capsys, rough, "--to", "gguf-lora", "--out", tmp_path / "out")
    assert "https://github.com/ggml-org/llama.cpp" in said and "--converter or in $LLAMA_CPP" in said
    said = failed(capsys, rough, "--to", "gguf-lora", "--out", tmp_path / "out", "--converter", tmp_path)
    assert f"there is no {tmp_path / 'convert_lora_to_gguf.py'}" in said


@pytest.mark.skipif(not os.environ.get("LLAMA_CPP"), reason="needs llama.cpp: set LLAMA_CPP to its folder")
@pytest.mark.parametrize("base", ["tiny-llama", "tiny-qwen"])
def test_llama_cpps_own_converter_writes_the_matrices_of_the_adapter(base: str, tmp_path: Path,
                                                                     capsys: pytest.CaptureFixture[str]) -> None:
    peft_folder(tmp_path / "it", base=base, named=base, target_modules=["v_proj", "down_proj"])
    exported(capsys, tmp_path / "it", "--to", "gguf-lora", "--out", tmp_path / "out")
    written = {each.name: each.data for each in GGUFReader(tmp_path / "out" / "adapter.gguf").tensors}
    given = load_file(tmp_path / "it" / "adapter_model.safetensors")
    for ours, theirs in (("self_attn.v_proj", "attn_v"), ("mlp.down_proj", "ffn_down")):
        for factor in "AB":
            name = f"base_model.model.model.layers.1.{ours}.lora_{factor}.weight"
            assert np.array_equal(written[f"blk.1.{theirs}.weight.lora_{factor.lower()}"], given[name])


def test_a_preset_for_vllm_names_the_adapter_its_rank_and_the_template(rough: Path, tmp_path: Path,
                                                                       capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["export", str(rough), "--to", "vllm", "--out", str(tmp_path / "my helper")]) == 0
    assert "Rank 4 is served with --max-lora-rank 8" in capsys.readouterr().out
    settings = yaml.safe_load((tmp_path / "my helper" / "vllm.yaml").read_text())
    model = settings.pop("model")
    assert settings == {"enable-lora": True, "max-lora-rank": 8, "lora-modules": ["my-helper=adapter"],
                        "chat-template": "chat_template.jinja"}
    config = json.loads((tmp_path / "my helper" / "adapter" / "adapter_config.json").read_text())
    assert (config["r"], config["rank_pattern"], config["modules_to_save"], config["bias"]) == (4, {}, None, "none")
    assert Path(model).is_absolute() and (Path(model) / "config.json").is_file()
    assert "<|im_start|>" in (tmp_path / "my helper" / "chat_template.jinja").read_text()


def test_the_script_starts_vllm_in_its_own_folder_wherever_it_is_called(rough: Path, tmp_path: Path,
                                                                        capsys: pytest.CaptureFixture[str]) -> None:
    exported(capsys, rough, "--to", "vllm", "--out", tmp_path / "out")
    (tmp_path / "vllm").write_text('#!/bin/sh\npwd\necho "$@"\n')
    (tmp_path / "vllm").chmod(0o755)
    said = subprocess.run(["sh", tmp_path / "out" / "serve.sh", "--port", "8001"], capture_output=True, text=True,
                          check=True, env={"PATH": f"{tmp_path}:{os.environ['PATH']}"}, cwd="/").stdout.splitlines()
    model = yaml.safe_load((tmp_path / "out" / "vllm.yaml").read_text())["model"]
    assert said == [str(tmp_path / "out"), f"serve {model} --config vllm.yaml --port 8001"]


def test_the_rank_limit_is_the_next_one_vllm_takes() -> None:
    assert [allowed_rank(rank) for rank in (1, 2, 8, 9, 257, 512)] == [1, 8, 8, 16, 320, 512]


@pytest.mark.parametrize(("options", "to", "sentence"), [
    ({"use_dora": True}, "vllm", "the adapter is DoRA, which vLLM cannot apply; fold it into the weights: --to merged"),
    ({"use_dora": True}, "gguf-lora", "the adapter is DoRA, which llama.cpp cannot apply"),
    ({"r": 513}, "vllm", "has rank 513, and vLLM serves at most 512")])
def test_what_a_server_cannot_apply_is_refused(options: dict[str, Any], to: str, sentence: str, tmp_path: Path,
                                               capsys: pytest.CaptureFixture[str]) -> None:
    peft_folder(tmp_path / "it", named="tiny-llama", **options)
    more = ["--converter", STAND_IN] if to == "gguf-lora" else []
    assert sentence in failed(capsys, tmp_path / "it", "--to", to, "--out", tmp_path / "out", *more)
    assert not (tmp_path / "out").exists()
