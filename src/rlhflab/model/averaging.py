"""Sums of saved adapters: the mean of reward roles (WARM, arXiv:2401.12187), and points on a line through two policies.

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
from rlhflab.model.adapters import ADAPTER_CONFIG
from rlhflab.model.shared import ADAPTER, HEAD, RECORD, RoleRecord, read_record

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
    records = [_record(folder) for folder in folders]
    for folder in folders:
        if not (folder / HEAD).is_file():
            raise ModelError(f"{folder}: has no {HEAD}; only saved reward roles can be averaged")
    heads = [load_file(folder / HEAD)["weight"] for folder in folders]
    for folder, head in zip(folders, heads, strict=True):
        if head.shape != heads[0].shape:
            raise ModelError(f"{folder}: has another head than {folders[0]}")
    _write_sum(folders, [1 / len(folders)] * len(folders), out, record=_mean_record(records),
               head=torch.stack(heads).mean(0))
    return out


def between_roles(parent: Path, child: Path, strength: float, out: Path) -> Path:
    """Write the policy parent + strength x (child - parent) into the new folder `out`, which is returned.

    0 is the parent, 1 the child; beyond 1 goes on in the same direction. The line is straight in the weights, so also
    where the child began as a copy of the parent and both its factors have moved. ModelError as for `average_roles`.
    """
    if out.exists():
        raise ModelError(f"{out}: exists already")
    _write_sum((parent, child), (1 - strength, strength), out, record=_record(parent), head=None)
    return out


def _write_sum(folders: Sequence[Path], shares: Sequence[float], out: Path, *, record: RoleRecord,
               head: Tensor | None) -> None:
    """One adapter whose product is the sum of `shares` x products, whole or not at all."""
    configs = [_config(folder) for folder in folders]
    adapters = [load_file(folder / ADAPTER) for folder in folders]
    bases = [_record(folder).base_digest for folder in folders]
    for folder, adapter, base in zip(folders, adapters, bases, strict=True):
        if (base, adapter.keys()) != (bases[0], adapters[0].keys()):
            raise ModelError(f"{folder}: has another base or other layers than {folders[0]}")
    weights = [share * config["lora_alpha"] / (math.sqrt(config["r"]) if config.get("use_rslora") else config["r"])
               for share, config in zip(shares, configs, strict=True)]
    rank = sum(config["r"] for config in configs)
    unfinished = out.with_name(f".{out.name}.unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(parents=True)
    save_file({name: _beside(name, [adapter[name] for adapter in adapters], weights) for name in adapters[0]},
              unfinished / ADAPTER)
    if head is not None:
        save_file({"weight": head}, unfinished / HEAD)
    config = {**configs[0], "r": rank, "lora_alpha": rank, "use_rslora": False}
    (unfinished / ADAPTER_CONFIG).write_text(json.dumps(config, indent=2, sort_keys=True))
    (unfinished / RECORD).write_text(json.dumps(asdict(record), indent=2))
    unfinished.rename(out)


def _beside(name: str, matrices: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
    """A factors (r, in) one under the other; B factors (out, r), each times its weight, next to each other."""
    if "lora_A" in name:
        return torch.cat(list(matrices), dim=0)
    return torch.cat([matrix * weight for matrix, weight in zip(matrices, weights, strict=True)], dim=1)


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
    for name in (ADAPTER, ADAPTER_CONFIG):
        if not (folder / name).is_file():
            raise ModelError(f"{folder}: has no {name}; only saved roles can be added up")
    config: dict[str, Any] = json.loads((folder / ADAPTER_CONFIG).read_text())
    for feature in NOT_LINEAR:
        if config.get(feature):
            raise ModelError(f"{folder}: {feature} is set; only plain LoRA adapters can be added up")
    return config


def _record(folder: Path) -> RoleRecord:
    record = read_record(folder)
    if record is None:
        raise ModelError(f"{folder}: has no {RECORD}, which names the base weights it belongs to")
    return record
