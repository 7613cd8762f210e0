"""Adapters from elsewhere with several ranks, several scales, or only some layers, as one that has one of each.

A layer's product stays what it was: a smaller rank is filled up with zeros, another scale goes into B, and a layer that
has no factors gets zeros. Works on names and tensors; knows no model, and reads no files.
"""

import re
from collections.abc import Mapping
from typing import Any

import torch
from peft.utils.other import get_pattern_key
from torch import Tensor

from rlhflab.config import Lora
from rlhflab.errors import ModelError

UNEVEN = ("rank_pattern", "alpha_pattern", "exclude_modules")
"""Settings of PEFT's under which layers differ from each other."""
PLACE = re.compile(r"(.*\.layers\.)(\d+)\.(.+)")
PREFIX = "base_model.model."
"""Of names in a file; patterns are matched with what follows it."""


def evened(config: Mapping[str, Any], tensors: Mapping[str, Tensor], *, layers: int,
           where: str) -> tuple[Lora, dict[str, Tensor]]:
    """(shape, tensors) of the adapter that `config` and `tensors` are of, even over a base of `layers` blocks.

    ModelError names `where` for what has no such form: DoRA on some layers only, layers outside of the blocks.
    """
    paths = sorted(name.removesuffix(".lora_A.weight") for name in tensors if name.endswith(".lora_A.weight"))
    places = {path: _place(path, where) for path in paths}
    if not paths or max(int(block) for _, block, _ in places.values()) >= layers:
        raise ModelError(f"{where}: its tensors are not those of LoRA on a base with {layers} blocks")
    chosen = config.get("layers_to_transform")
    outside = [path for path in paths if chosen and int(places[path][1]) not in (
        [chosen] if isinstance(chosen, int) else chosen)]
    if outside:
        raise ModelError(f"{where}: layers_to_transform is {chosen}, and there are tensors for {outside[0]}")
    scales = {path: _scale(config, tensors, path, where) for path in paths}
    rank, scale = max(len(tensors[f"{path}.lora_A.weight"]) for path in paths), scales[paths[0]]
    even: dict[str, Tensor] = {}
    for path in paths:
        even |= _filled(path, tensors, rank, scales[path] / scale)
    first = min(int(block) for _, block, _ in places.values())
    whole = {f"{before}{block}.{name}": path for path, (before, _, name) in places.items()
             for block in range(first, layers)}
    missing = sorted(whole.keys() - set(paths))
    if missing and config.get("use_dora"):
        raise ModelError(f"{where}: is DoRA and has no tensors for {missing[0]}; only LoRA on some layers can be "
                         "filled up with zeros")
    for path in missing:
        even |= {f"{path}.{factor}.weight": torch.zeros_like(even[f"{whole[path]}.{factor}.weight"])
                 for factor in ("lora_A", "lora_B")}
    lora = Lora(rank=rank, alpha=scale * rank, dora=bool(config.get("use_dora")),
                last_layers=layers - first if first else None,
                targets=sorted({name.rpartition(".")[2] for _, _, name in places.values()}))
    return lora, even


def _place(path: str, where: str) -> tuple[str, str, str]:
    """(what goes before the number of the block, the number, the layer's name in it)."""
    found = PLACE.fullmatch(path)
    if found is None:
        raise ModelError(f"{where}: {path} is not a layer of the blocks; only those can be adapted")
    return found[1], found[2], found[3]


def _scale(config: Mapping[str, Any], tensors: Mapping[str, Tensor], path: str, where: str) -> float:
    """What a layer's product is multiplied by, as PEFT has it of the patterns."""
    name, found = path.removeprefix(PREFIX), len(tensors[f"{path}.lora_A.weight"])
    rank, alpha = (patterns.get(get_pattern_key(list(patterns), name), config[otherwise])
                   for patterns, otherwise in ((config.get("rank_pattern") or {}, "r"),
                                               (config.get("alpha_pattern") or {}, "lora_alpha")))
    if rank != found:
        raise ModelError(f"{where}: {path} has rank {found}, and r and rank_pattern say {rank}")
    return float(alpha / (rank**0.5 if config.get("use_rslora") else rank))


def _filled(path: str, tensors: Mapping[str, Tensor], rank: int, factor: float) -> dict[str, Tensor]:
    """A layer's tensors with `rank` ranks, the added ones 0, and B times `factor`."""
    down, up = (tensors[f"{path}.{name}.weight"].float() for name in ("lora_A", "lora_B"))
    more = rank - len(down)
    filled = {f"{path}.lora_A.weight": torch.nn.functional.pad(down, (0, 0, 0, more)),
              f"{path}.lora_B.weight": torch.nn.functional.pad(up * factor, (0, more))}
    magnitude = f"{path}.lora_magnitude_vector"
    return filled | ({magnitude: tensors[magnitude]} if magnitude in tensors else {})
