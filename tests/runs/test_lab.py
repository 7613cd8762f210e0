"""What a run's settings become on the machine it runs on."""

from rlhflab.config import make_run
from rlhflab.runs.lab import GPU_TOKENS, sized


def test_micro_batches_are_larger_on_a_gpu_unless_the_run_says_how_large() -> None:
    assert sized(make_run("sft", {}), "cpu").micro_tokens == 512
    assert sized(make_run("sft", {}), "cuda:0").micro_tokens == GPU_TOKENS
    assert sized(make_run("sft", {"micro_tokens": 512}), "cuda").micro_tokens == 512
