"""Weight-averaged reward models (WARM, Rame et al. 2024, arXiv:2401.12187): many saved reward roles become one.

Works on folders and needs no base model. An adapter is a product B A, and the mean of products is not the product of
means, so the factors are not averaged: their ranks are put side by side.
"""

import json
import math
import shutil
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from rlhflab.errors import ModelError
from rlhflab.model.adapters import ADAPTER, ADAPTER_CONFIG
from rlhflab.model.shared import HEAD, RECORD, RoleRecord, read_record

NOT_LINEAR = ("use_dora", "rank_pattern", "alpha_pattern", "modules_to_save")
"""What an adapter's configuration may not ask for: it would not be alpha / rank x B A on every layer."""


def average_roles(folders: Sequence[Path], out: Path) -> Path:
    """Write the mean of the reward roles in `folders` into the new folder `out`, which is returned.

    With M roles of scale s_m, B = [s_1 B_1, ..., s_M B_M] / M and A = [A_1; ...; A_M] have the product
    mean(s_m B_m A_m); the rank is the sum of the ranks. Heads are averaged, and so are mean and deviation of the
    scores, which is exact only as far as a score is linear in the weights. Length curve and temperature are not kept.
    ModelError if the roles are not of one base, layers and head.
    """
    if len(folders) < 2:
        raise ModelError("an average needs at least two role folders")
    if out.exists():
        raise ModelError(f"{out}: exists already")
    configs = [_config(folder) for folder in folders]
    records = [_record(folder) for folder in folders]
    adapters = [load_file(folder / ADAPTER) for folder in folders]
    heads = [load_file(folder / HEAD)["weight"] for folder in folders]
    for folder, adapter, head, record in zip(folders, adapters, heads, records, strict=True):
        if (record.base_digest, adapter.keys(), head.shape) != (
                records[0].base_digest, adapters[0].keys(), heads[0].shape):
            raise ModelError(f"{folder}: has another base, other layers or another head than {folders[0]}")
    scales = [config["lora_alpha"] / (math.sqrt(config["r"]) if config.get("use_rslora") else config["r"])
              for config in configs]
    rank = sum(config["r"] for config in configs)
    unfinished = out.with_name(f".{out.name}.unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(parents=True)
    save_file({name: _beside(name, [adapter[name] for adapter in adapters], scales) for name in adapters[0]},
              unfinished / ADAPTER)
    save_file({"weight": torch.stack(heads).mean(0)}, unfinished / HEAD)
    config = {**configs[0], "r": rank, "lora_alpha": rank, "use_rslora": False}
    (unfinished / ADAPTER_CONFIG).write_text(json.dumps(config, indent=2, sort_keys=True))
    (unfinished / RECORD).write_text(json.dumps(asdict(_mean_record(records)), indent=2))
    unfinished.rename(out)
    return out


def _beside(name: str, matrices: Sequence[Tensor], scales: Sequence[float]) -> Tensor:
    """A factors (r, in) one under the other; B factors (out, r), each with its scale / M, next to each other."""
    if "lora_A" in name:
        return torch.cat(list(matrices), dim=0)
    return torch.cat([matrix * (scale / len(matrices)) for matrix, scale in zip(matrices, scales, strict=True)], dim=1)


def _mean_record(records: Sequence[RoleRecord]) -> RoleRecord:
    def mean(values: Sequence[float]) -> float:
        return sum(values) / len(values)

    return replace(
        records[0], length_curve=(), temperature=None,
        score_mean=mean([record.score_mean for record in records]),
        score_std=mean([record.score_std for record in records]),
        member_means=tuple(map(mean, zip(*(record.member_means for record in records), strict=True))),
        member_stds=tuple(map(mean, zip(*(record.member_stds for record in records), strict=True))))


def _config(folder: Path) -> dict[str, Any]:
    for name in (ADAPTER, ADAPTER_CONFIG, HEAD):
        if not (folder / name).is_file():
            raise ModelError(f"{folder}: has no {name}; only saved reward roles can be averaged")
    config: dict[str, Any] = json.loads((folder / ADAPTER_CONFIG).read_text())
    for feature in NOT_LINEAR:
        if config.get(feature):
            raise ModelError(f"{folder}: {feature} is set; only plain LoRA adapters can be averaged")
    return config


def _record(folder: Path) -> RoleRecord:
    record = read_record(folder)
    if record is None:
        raise ModelError(f"{folder}: has no {RECORD}, which names the base weights it belongs to")
    return record
