"""An adapter as a GGUF file for llama.cpp, by llama.cpp's own converter. No copy of that converter here.

It runs as a program of its own, without a shell. What it wrote is read again and compared with what it was given.
"""

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGUFReader, dequantize
from safetensors.numpy import load_file

from rlhflab.config import Lora
from rlhflab.errors import ConfigError, RunError
from rlhflab.model.adapters import ADAPTER, ADAPTER_CONFIG, scaling
from rlhflab.model.load import model_folder

SCRIPT, HOME = "convert_lora_to_gguf.py", "LLAMA_CPP"
RESULT = "adapter.gguf"
KINDS = {"float32": "f32", "bfloat16": "bf16"}
LARGEST_GAP = {"float32": 1e-5, "bfloat16": 1e-2}
"""Of the norm of a matrix, relative: what the chosen format rounds away."""
LONGEST = 600
"""Seconds the converter may take."""


def converter_of(given: Path | None) -> Path:
    """The converter in the folder or file `given`, or in $LLAMA_CPP. ConfigError says where to get it."""
    named = given or (Path(os.environ[HOME]) if os.environ.get(HOME) else None)
    script = named / SCRIPT if named is not None and named.is_dir() else named
    if script is None or not script.is_file():
        found = "" if script is None else f", and there is no {script}"
        raise ConfigError(f"--to gguf-lora: needs llama.cpp's {SCRIPT}{found}; get llama.cpp from "
                          f"https://github.com/ggml-org/llama.cpp and give its folder with --converter or in ${HOME}")
    return script


def write_gguf(folder: Path, *, lora: Lora, base: str, script: Path, dtype: str) -> dict[str, Any]:
    """Convert the adapter in `folder`/adapter to `folder`/adapter.gguf; what was found in it.

    RunError where the converter fails, or its result is not the adapter. llama.cpp multiplies by alpha / rank, so the
    alpha of rsLoRA is written as what gives the same scale.
    """
    adapter, alpha = folder / "adapter", scaling(lora) * lora.rank
    path = adapter / ADAPTER_CONFIG
    path.write_text(json.dumps({**json.loads(path.read_text()), "lora_alpha": alpha, "use_rslora": False}, indent=2))
    _run([sys.executable, str(script.resolve()), "--base", str(model_folder(base)[0].resolve()), "--outtype",
          KINDS[dtype], "--outfile", str((folder / RESULT).resolve()), str(adapter.resolve())], script)
    return {"file": RESULT, "converter": script.name, **_checked(folder / RESULT, adapter / ADAPTER, alpha, dtype)}


def _run(command: Sequence[str], script: Path) -> None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=LONGEST, check=False)
    except subprocess.TimeoutExpired as error:
        raise RunError(f"{script}: was stopped after {LONGEST} seconds") from error
    if done.returncode != 0:
        last = next((line for line in reversed((done.stderr or done.stdout).splitlines()) if line.strip()), "nothing")
        raise RunError(f"{script}: ended with {done.returncode} and said: {last.strip()}")


def _checked(path: Path, adapter: Path, alpha: float, dtype: str) -> dict[str, Any]:
    """Architecture and number of matrices of a GGUF file. RunError where header or tensors are not the adapter's.

    The converter renames layers, and orders the rows of some in another way; neither changes the norms of the two
    matrices of a layer, which are compared.
    """
    try:
        reader = GGUFReader(path)
        header = {key: reader.fields[key].contents() if key in reader.fields else None for key in (
            "general.type", "adapter.type", "adapter.lora.alpha", "general.architecture")}
        found = {tensor.name: dequantize(tensor.data, tensor.tensor_type) for tensor in reader.tensors}
    except (OSError, ValueError, KeyError, IndexError) as error:
        raise RunError(f"{path.name}: the converter's result is not a GGUF file: {error}") from error
    wanted = {"general.type": "adapter", "adapter.type": "lora", "adapter.lora.alpha": float(np.float32(alpha))}
    wrong = next((key for key, value in wanted.items() if header[key] != value), None)
    if wrong is not None:
        raise RunError(f"{path.name}: {wrong} is {header[wrong]!r}, and should be {wanted[wrong]!r}")
    given = _norms({name.replace(".lora_A.weight", ".lora_a").replace(".lora_B.weight", ".lora_b"): tensor
                    for name, tensor in load_file(adapter).items()})
    written = _norms(found)
    if len(given) != len(written) or not np.allclose(given, written, rtol=LARGEST_GAP[dtype], atol=0):
        raise RunError(f"{path.name}: its {len(written)} layers are not the {len(given)} of the adapter, or their "
                       "matrices have other norms")
    return {"architecture": header["general.architecture"], "alpha": alpha, "layers": len(written)}


def _norms(tensors: dict[str, Any]) -> Any:
    """(n, 2): the norms of A and B of each layer, in the order of A's. NaN where a layer lacks one of them."""
    layers = {name.rpartition(".")[0] for name in tensors}
    norms = [[float(np.linalg.norm(tensors[f"{layer}.{factor}"].astype(np.float64))) if f"{layer}.{factor}" in tensors
              else np.nan for factor in ("lora_a", "lora_b")] for layer in layers]
    return np.array(sorted(norms)).reshape(-1, 2)
