"""What vLLM needs beside an adapter folder to serve it: a settings file, a command, and the chat template.

vLLM is not run here. Its limits are those its documentation and its own checks name: LoRA and rsLoRA, no DoRA, no
biases, no modules_to_save, and a --max-lora-rank out of a fixed list. The lab writes no adapter with any of the rest.
"""

import re
import shlex
from pathlib import Path
from typing import Any

import yaml

from rlhflab.errors import ModelError
from rlhflab.model.load import model_folder

RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
"""What --max-lora-rank may be (MaxLoRARanks in vllm/config/lora.py)."""
ADAPTER, SETTINGS, SCRIPT, TEMPLATE = "adapter", "vllm.yaml", "serve.sh", "chat_template.jinja"


def allowed_rank(rank: int) -> int:
    """The smallest --max-lora-rank that holds `rank`. ModelError where none does."""
    if rank > RANKS[-1]:
        raise ModelError(f"--to vllm: the adapter has rank {rank}, and vLLM serves at most {RANKS[-1]}; fold it into "
                         "the weights: --to merged")
    return next(each for each in RANKS if each >= rank)


def write_preset(folder: Path, *, name: str, base: str, tokenizer: Any, rank: int) -> dict[str, Any]:
    """Write settings, command and chat template beside the adapter in `folder`; what they say.

    Paths of the folder's own files are relative, so that it can be moved; the base is a hub id or a path here.
    """
    served = re.sub(r"[^A-Za-z0-9._-]", "-", name)
    settings: dict[str, Any] = {"model": _base(base), "enable-lora": True, "max-lora-rank": allowed_rank(rank),
                                "lora-modules": [f"{served}={ADAPTER}"]}
    if tokenizer.chat_template:
        (folder / TEMPLATE).write_text(tokenizer.chat_template, encoding="utf-8")
        settings["chat-template"] = TEMPLATE
    (folder / SETTINGS).write_text(yaml.safe_dump(settings, sort_keys=False), encoding="utf-8")
    script = folder / SCRIPT
    script.write_text('#!/bin/sh\n# Serves the adapter as the model ' + served + ', and its base under its own name.\n'
                      'cd "$(dirname "$0")" || exit 1\n'
                      f'exec vllm serve {shlex.quote(settings["model"])} --config {SETTINGS} "$@"\n', encoding="utf-8")
    script.chmod(0o755)
    return {"served_as": served, "rank": rank, "max_lora_rank": settings["max-lora-rank"], "command": f"sh {SCRIPT}"}


def _base(name: str) -> str:
    folder, label = model_folder(name)
    return label if "/" in label and not Path(name).is_dir() else str(folder.resolve())
