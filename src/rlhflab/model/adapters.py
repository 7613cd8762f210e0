"""Between the lab's `Lora` settings and PEFT's configuration, both ways, and the adapter folders that others wrote."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from peft import LoraConfig
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from rlhflab.config import Lora
from rlhflab.errors import ModelError
from rlhflab.model.uneven import UNEVEN, evened

ADAPTER, ADAPTER_CONFIG = "adapter_model.safetensors", "adapter_config.json"
MERGE = "let PEFT merge it into its base (merge_and_unload), and load the whole model"
UNSUPPORTED = {
    "modules_to_save": f"whole layers are trained beside the LoRA factors; {MERGE}",
    "trainable_token_indices": f"rows of the embedding are trained beside the LoRA factors; {MERGE}",
    "lora_bias": f"the adapter has biases of its own; {MERGE}",
    "layer_replication": f"the adapter stands on a base with repeated blocks; {MERGE}",
    **dict.fromkeys(("fan_in_fan_out", "use_qalora", "target_parameters", "alora_invocation_tokens", "use_bdlora",
                     "arrow_config", "monteclora_config", "kasa_config"),
                    "only adapters that are the product of two matrices on whole linear layers can be loaded (LoRA, "
                    "rsLoRA, DoRA)")}
"""Settings of PEFT's under which an adapter is not the product of two matrices on whole layers of the base, and why."""
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
    refuse_unsupported(config, where=where)
    try:
        targets = config["target_modules"]
        return Lora(rank=config["r"], alpha=config["lora_alpha"], dropout=config.get("lora_dropout", 0.0),
                    rslora=config.get("use_rslora", False), dora=config.get("use_dora", False),
                    targets=targets if isinstance(targets, str) else sorted(targets),
                    last_layers=_last_layers(config.get("layers_to_transform"), layers, where))
    except (KeyError, TypeError, ValueError) as error:
        raise ModelError(f"{where}: is not a LoRA configuration: {' '.join(repr(error).split())}") from error


def refuse_unsupported(config: Mapping[str, Any], *, where: str) -> None:
    """ModelError where the lab would compute something else than PEFT does, with what can be done instead."""
    for key, why in UNSUPPORTED.items():
        if config.get(key):
            raise ModelError(f"{where}: {key} is set: {why}")
    if config.get("init_lora_weights", True) not in LEAVE_THE_BASE:
        raise ModelError(f"{where}: init_lora_weights is {config['init_lora_weights']!r}, which changes the base "
                         "weights; convert the adapter to plain LoRA first")
    if config.get("bias", "none") != "none":
        raise ModelError(f"{where}: bias is {config['bias']!r}, and biases of the base are never trained here; {MERGE}")


def scaling(lora: Lora) -> float:
    """What the product of the two factors is multiplied by."""
    return lora.alpha / (lora.rank**0.5 if lora.rslora else lora.rank)


def read_adapter(folder: Path, *, layers: int, device: str = "cpu") -> tuple[Lora, dict[str, Tensor]]:
    """(shape, tensors) of an adapter folder for a base with `layers` blocks, whoever wrote it.

    Dropout is a matter of the run that trained it, and left out. ModelError where a file or a form is not supported.
    """
    config, where = read_config(folder), str(folder / ADAPTER_CONFIG)
    try:
        tensors = load_file(folder / ADAPTER, device=device)
    except (SafetensorError, OSError) as error:
        raise ModelError(f"{folder / ADAPTER}: cannot be read: {' '.join(str(error).split())}") from error
    if not _is_even(config, layers):
        refuse_unsupported(config, where=where)
        return evened(config, tensors, layers=layers, where=where)
    return lora_of(config, layers=layers, where=where).model_copy(update={"dropout": 0.0}), tensors


def read_lora(folder: Path, *, layers: int) -> Lora:
    """`Lora` of an adapter folder, as `read_adapter` has it; reads the tensors only where it depends on them."""
    config = read_config(folder)
    if not _is_even(config, layers):
        return read_adapter(folder, layers=layers)[0]
    return lora_of(config, layers=layers, where=str(folder / ADAPTER_CONFIG)).model_copy(update={"dropout": 0.0})


def read_config(folder: Path) -> dict[str, Any]:
    """PEFT's configuration in an adapter folder."""
    path = folder / ADAPTER_CONFIG
    try:
        config = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise ModelError(f"{path}: is not a LoRA configuration: {error!r}") from error
    if not isinstance(config, dict):
        raise ModelError(f"{path}: is not a LoRA configuration: it holds no keys")
    return config


def _is_even(config: Mapping[str, Any], layers: int) -> bool:
    """Whether one rank and one scale hold on the same layers of all blocks, or of the last ones."""
    blocks = _blocks(config.get("layers_to_transform"))
    return not any(config.get(key) for key in UNEVEN) and (not blocks or _are_last(blocks, layers))


def _last_layers(chosen: int | Sequence[int] | None, layers: int, where: str) -> int | None:
    blocks = _blocks(chosen)
    if blocks and not _are_last(blocks, layers):
        raise ModelError(f"{where}: layers_to_transform is {blocks}; only an adapter on all {layers} blocks or on the "
                         "last ones can be loaded")
    return len(blocks) or None


def _blocks(chosen: int | Sequence[int] | None) -> list[int]:
    return [] if chosen is None else sorted({chosen} if isinstance(chosen, int) else set(chosen))


def _are_last(blocks: Sequence[int], layers: int) -> bool:
    return list(blocks) == list(range(layers - len(blocks), layers))
