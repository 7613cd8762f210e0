"""Between the lab's `Lora` settings and PEFT's configuration, both ways. No tensors here."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from peft import LoraConfig

from rlhflab.config import Lora
from rlhflab.errors import ModelError

ADAPTER_CONFIG = "adapter_config.json"
UNSUPPORTED = ("rank_pattern", "alpha_pattern", "modules_to_save", "lora_bias", "fan_in_fan_out", "use_qalora",
               "trainable_token_indices", "target_parameters", "exclude_modules", "layer_replication",
               "alora_invocation_tokens")
"""Settings of PEFT's under which an adapter is not the product of two matrices on whole layers of the base."""
LEAVE_THE_BASE = (None, True, False, "gaussian", "eva", "orthogonal")
"""Ways to initialise an adapter that do not change the base weights it stands on."""


def peft_config(lora: Lora, *, base: str, linear: Sequence[str], layers: int) -> LoraConfig:
    """PEFT's form of `lora` for a base with `layers` blocks whose linear layers are called `linear`."""
    if lora.last_layers is not None and lora.last_layers > layers:
        raise ModelError(f"lora.last_layers: {lora.last_layers} blocks are asked for, and {base} has {layers}")
    some = None if lora.last_layers is None else list(range(layers - lora.last_layers, layers))
    return LoraConfig(r=lora.rank, lora_alpha=lora.alpha,  # type: ignore[arg-type]
                      lora_dropout=lora.dropout, use_rslora=lora.rslora, use_dora=lora.dora,
                      target_modules=list(linear) if lora.targets == "all-linear" else lora.targets,
                      layers_to_transform=some, layers_pattern=None if some is None else "layers",
                      base_model_name_or_path=base, task_type="CAUSAL_LM")


def lora_of(config: Mapping[str, Any], *, layers: int, where: str) -> Lora:
    """`Lora` of PEFT's configuration, which another tool may have written. ModelError names `where` and the key."""
    for key in UNSUPPORTED:
        if config.get(key):
            raise ModelError(f"{where}: {key} is set; only adapters with one rank and scale on whole linear layers "
                             "can be loaded (LoRA, rsLoRA, DoRA)")
    if config.get("init_lora_weights") not in LEAVE_THE_BASE:
        raise ModelError(f"{where}: init_lora_weights is {config['init_lora_weights']!r}, which changes the base "
                         "weights; convert the adapter to plain LoRA first")
    if config.get("bias", "none") != "none":
        raise ModelError(f"{where}: bias is {config['bias']!r}, and biases of the base are never trained here")
    try:
        targets = config["target_modules"]
        return Lora(rank=config["r"], alpha=config["lora_alpha"], dropout=config.get("lora_dropout", 0.0),
                    rslora=config.get("use_rslora", False), dora=config.get("use_dora", False),
                    targets=targets if isinstance(targets, str) else sorted(targets),
                    last_layers=_last_layers(config.get("layers_to_transform"), layers, where))
    except (KeyError, TypeError, ValueError) as error:
        raise ModelError(f"{where}: is not a LoRA configuration: {' '.join(repr(error).split())}") from error


def scaling(lora: Lora) -> float:
    """What the product of the two factors is multiplied by."""
    return lora.alpha / (lora.rank**0.5 if lora.rslora else lora.rank)


def read_lora(folder: Path, *, layers: int) -> Lora:
    """`Lora` of an adapter folder. Dropout is a matter of the run that trained it, and left out."""
    path = folder / ADAPTER_CONFIG
    try:
        config = json.loads(path.read_text())
    except ValueError as error:
        raise ModelError(f"{path}: is not a LoRA configuration: {error!r}") from error
    if not isinstance(config, dict):
        raise ModelError(f"{path}: is not a LoRA configuration: it holds no keys")
    return lora_of(config, layers=layers, where=str(path)).model_copy(update={"dropout": 0.0})


def _last_layers(chosen: int | Sequence[int] | None, layers: int, where: str) -> int | None:
    if chosen is None or chosen == []:
        return None
    blocks = sorted({chosen} if isinstance(chosen, int) else set(chosen))
    if blocks != list(range(layers - len(blocks), layers)):
        raise ModelError(f"{where}: layers_to_transform is {blocks}; only an adapter on all {layers} blocks or on the "
                         "last ones can be loaded")
    return len(blocks)
