"""What a run's settings become on the machine it runs on."""

import pytest
import torch

from rlhflab.config import make_run
from rlhflab.model.load import native_dtype
from rlhflab.runs.lab import GPU_TOKENS, settled


def test_micro_batches_are_larger_on_a_gpu_unless_the_run_says_how_large() -> None:
    assert settled(make_run("sft", {}), "cpu").micro_tokens == 512
    assert settled(make_run("sft", {}), "cuda:0").micro_tokens == GPU_TOKENS
    assert settled(make_run("sft", {"micro_tokens": 512}), "cuda").micro_tokens == 512


@pytest.mark.parametrize(("native", "chosen"), [(True, "bfloat16"), (False, "float32")])
def test_a_cpu_that_only_imitates_bf16_gets_fp32(native: bool, chosen: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: native)
    assert native_dtype("cpu") == settled(make_run("dpo", {}), "cpu").dtype == chosen
    assert settled(make_run("dpo", {"dtype": "bfloat16"}), "cpu").dtype == "bfloat16"
    assert native_dtype("cuda") == "bfloat16"
