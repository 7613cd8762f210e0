"""The ways to read a batch are measured beside each other on a tiny model, and one that fails does not end it."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "gpu_variants.py"
START = """
import sys
sys.path.insert(0, sys.argv.pop(1))
import gpu_variants
gpu_variants.WAYS["one row"] = {"columns": "eight"}
gpu_variants.main()
"""
"""The benchmark with a way that cannot work."""


def measured(tmp_path: Path, *arguments: str) -> dict[str, Any]:
    out = tmp_path / "variants.json"
    subprocess.run([sys.executable, "-c", START, str(SCRIPT.parent), "--device", "cpu", "--size", "tiny", "--out",
                    str(out), "--seconds", "3000", *arguments], capture_output=True, text=True, check=True)
    found: dict[str, Any] = json.loads(out.read_text())
    return found


def test_a_way_that_fails_is_written_down_and_the_next_is_compared_with_the_plain_one(tmp_path: Path) -> None:
    # A process of its own: about ten seconds.
    result = measured(tmp_path, "--only", "as it is", "one row", "one row, joint")
    plain, broken, joint = result["ways"].values()
    assert "TypeError" in broken["error"]
    assert plain["gradient_distance"] == 0 < joint["gradient_distance"] < 1e-4
    assert joint["losses"] == pytest.approx(plain["losses"], rel=1e-4)
    assert len(set(plain["losses"])) == len(plain["losses"]), "the policy moves"
    assert {"as it is"} <= set(result["profiles"]) and all(
        profile["top"][0]["milliseconds"] > 0 for profile in result["profiles"].values())


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_so() -> None:
    done = subprocess.run([sys.executable, str(SCRIPT)], capture_output=True, text=True, check=False)
    assert done.returncode == 2 and "needs a CUDA GPU" in done.stderr and len(done.stderr.splitlines()) == 1
