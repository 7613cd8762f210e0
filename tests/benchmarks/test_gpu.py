"""The GPU benchmark goes through all of it on a tiny model, and says in one sentence where there is no GPU."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "gpu.py"


@pytest.mark.skipif(importlib.util.find_spec("trl") is None, reason="needs TRL: pip install -e '.[parity]'")
def test_both_sides_do_the_same_work_on_a_tiny_model(tmp_path: Path) -> None:
    # A process of its own that imports TRL: about ten seconds.
    out = tmp_path / "gpu.json"
    done = subprocess.run([sys.executable, str(SCRIPT), "--device", "cpu", "--size", "tiny", "--out", str(out)],
                          capture_output=True, text=True, check=True)
    result = json.loads(out.read_text())
    assert result["dpo"]["same_work"]["ok"], result["dpo"]["same_work"]
    assert len(set(result["dpo"]["ours"]["losses"])) == 4, "the policy moves"
    for part in ("dpo", "generate"):
        assert result[part]["speed_ratio"] > 0 and f"{part} " in done.stdout
    assert 0 < result["dpo"]["ours"]["peak_share"] < 1


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_so() -> None:
    done = subprocess.run([sys.executable, str(SCRIPT)], capture_output=True, text=True, check=False)
    assert done.returncode == 2 and "needs a CUDA GPU" in done.stderr and len(done.stderr.splitlines()) == 1
