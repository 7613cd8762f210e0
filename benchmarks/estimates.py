"""Memory and time that `--dry-run` estimates, beside those of the run itself. Prints a table and one JSON object.

    python benchmarks/estimates.py [--model smollm2-135m] [--kinds sft reward dpo ppo] [--steps 4] [--device cpu]

Each estimate and each run is a process of its own. Memory: largest resident memory, on a GPU that of the tensors. Time:
from the loaded model to the end of the run. Pairs are a scenario's demonstrations beside shortened ones, so that
nothing is sampled before the first step.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
import yaml

from rlhflab.cli import main as rlhflab
from rlhflab.config import KINDS, SampledRun
from rlhflab.data.formats import write_jsonl
from rlhflab.model.load import native_dtype
from rlhflab.runs.folder import environment, peak_memory_gb
from rlhflab.scenarios import scenario

EXAMPLES = 64


def main() -> None:
    if sys.argv[1:2] == ["--measured"]:
        measured(sys.argv[2], *map(Path, sys.argv[3:]))
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--dtype", choices=("auto", "bfloat16", "float32"), default="auto",
                        help="auto: bfloat16 where the device multiplies it natively")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=["sft", "reward", "dpo", "ppo"])
    parser.add_argument("--steps", type=int, default=4)
    options = parser.parse_args()
    if options.device == "auto":
        options.device = "cuda" if torch.cuda.is_available() else "cpu"
    print(f"{'':12} {'memory, GB':>24} {'seconds':>24}\n{'':12}" + f" {'estimate':>9} {'run':>7} {'ratio':>6}" * 2)
    rows = {}
    with tempfile.TemporaryDirectory() as scratch:
        for kind in options.kinds:
            rows[kind] = beside(kind, options, Path(scratch))
            print(f"{kind:12}" + "".join(f" {row['estimate']:9.2f} {row['run']:7.2f} {row['ratio']:6.2f}"
                                         for row in rows[kind].values()), flush=True)
    dtype = native_dtype(options.device) if options.dtype == "auto" else options.dtype
    print(json.dumps({"model": options.model, "dtype": dtype, "steps": options.steps, "kinds": rows,
                      **environment()}, indent=2))


def beside(kind: str, options: argparse.Namespace, folder: Path) -> dict[str, dict[str, float]]:
    """Estimate and run of a kind."""
    file = folder / f"{kind}.yaml"
    file.write_text(yaml.safe_dump(settings(kind, options, folder)))
    said = json.loads(process("-m", "rlhflab", "train", kind, str(file), "--dry-run", "--json"))["estimate"]
    done = json.loads(process(__file__, "--measured", kind, str(file), str(folder / kind)).splitlines()[-1])
    pairs = {"memory_gb": (said["memory_gb"], done["memory_gb"]), "seconds": (60 * said["minutes"], done["seconds"])}
    return {name: {"estimate": estimate, "run": run, "ratio": estimate / run}
            for name, (estimate, run) in pairs.items()}


def settings(kind: str, options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """A short run of a kind, on data of its own."""
    run: dict[str, Any] = {"kind": kind, "model": options.model, "dtype": options.dtype, "device": options.device,
                           "steps": options.steps}
    if issubclass(KINDS[kind], SampledRun):
        return {**run, "data": "helpdesk", "reward": [{"name": "words"}]}
    conversations = scenario("helpdesk").demonstrations(EXAMPLES)
    rows = [{"messages": [{"role": m.role, "content": m.content} for m in each.messages]} for each in conversations]
    if kind != "sft":
        rows = [{"prompt": row["messages"][:-1], "chosen": (text := row["messages"][-1]["content"]),
                 "rejected": text[:len(text) // 2]} for row in rows]
    write_jsonl(folder / f"{kind}.jsonl", rows)
    return {**run, "data": str(folder / f"{kind}.jsonl")}


def process(*arguments: str) -> str:
    """What a process of its own prints."""
    return subprocess.run([sys.executable, *arguments], check=True, stdout=subprocess.PIPE, text=True).stdout


def measured(kind: str, file: Path, out: Path) -> None:
    """Do a run, and print what it took."""
    if rlhflab(["train", kind, str(file), "--out", str(out), "--json"]):
        raise SystemExit(1)
    gpu = torch.cuda.is_available() and torch.cuda.max_memory_allocated() / 1e9
    print("\n" + json.dumps({"memory_gb": gpu or peak_memory_gb(),
                             "seconds": json.loads((out / "record.json").read_text())["seconds"]}))


if __name__ == "__main__":
    main()
