"""Stands in for llama.cpp's convert_lora_to_gguf.py: the same flags, the same header, names and order of rows changed.

STAND_IN says what it does wrong: fails, half (leaves a layer out), scale (another alpha), values, text (no GGUF file).
"""

import argparse
import json
import os
import sys
from pathlib import Path

import gguf
import numpy as np
from safetensors.numpy import load_file

parser = argparse.ArgumentParser()
parser.add_argument("--base", type=Path)
parser.add_argument("--outfile", type=Path)
parser.add_argument("--outtype", choices=["f32", "bf16"])
parser.add_argument("adapter", type=Path)
asked = parser.parse_args()
wrong = os.environ.get("STAND_IN")
if wrong == "fails":
    sys.exit("ERROR: this architecture is not supported")
if wrong == "text":
    asked.outfile.write_text("not a GGUF file at all, but long enough to be looked at")
    sys.exit()
config = json.loads((asked.adapter / "adapter_config.json").read_text())
assert (asked.base / "config.json").is_file() and not config["use_rslora"]
writer = gguf.GGUFWriter(asked.outfile, json.loads((asked.base / "config.json").read_text())["model_type"])
writer.add_type(gguf.GGUFType.ADAPTER)
writer.add_string(gguf.Keys.Adapter.TYPE, "lora")
writer.add_float32(gguf.Keys.Adapter.LORA_ALPHA, config["lora_alpha"] * (2 if wrong == "scale" else 1))
for number, (name, tensor) in enumerate(sorted(load_file(asked.adapter / "adapter_model.safetensors").items())):
    if wrong == "half" and number < 2:
        continue
    if ".lora_B." in name:
        tensor = tensor[::-1] * (1.5 if wrong == "values" else 1)
    layer = name.partition(".layers.")[2].partition(".lora_")[0]
    writer.add_tensor(f"blk.{layer}.weight.lora_{'a' if '.lora_A.' in name else 'b'}",
                      np.ascontiguousarray(tensor, dtype=np.float32))
writer.write_header_to_file()
writer.write_kv_data_to_file()
writer.write_tensors_to_file()
writer.close()
