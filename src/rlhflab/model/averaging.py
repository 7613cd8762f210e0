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
from typing import Any, NamedTuple

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
    stored = _stored(folders)
    for folder in folders:
        if not (folder / HEAD).is_file():
            raise ModelError(f"{folder}: has no {HEAD}; only saved reward roles can be averaged")
    heads = [load_file(folder / HEAD)["weight"] for folder in folders]
    for folder, head in zip(folders, heads, strict=True):
        if head.shape != heads[0].shape:
            raise ModelError(f"{folder}: has another head than {folders[0]}")
    return _write_sum(stored, [1 / len(folders)] * len(folders), out, head=torch.stack(heads).mean(0),
                      record=_mean_record([each.record for each in stored]))


def between_roles(parent: Path, child: Path, strength: float, out: Path) -> Path:
    """Write the policy parent + strength x (child - parent) into the new folder `out`, which is returned.

    0 is the parent, 1 the child; beyond 1 goes on in the same direction. The line is straight in the weights, so also
    where the child began as a copy of the parent and both its factors have moved. ModelError as for `average_roles`.
    """
    if out.exists():
        raise ModelError(f"{out}: exists already")
    stored = _stored((parent, child))
    return _write_sum(stored, (1 - strength, strength), out, record=stored[0].record)


class _Stored(NamedTuple):
    """A saved role without its head."""

    config: dict[str, Any]
    record: RoleRecord
    adapter: dict[str, Tensor]


def _stored(folders: Sequence[Path]) -> list[_Stored]:
    """The roles in `folders`, which are of one base and adapt the same layers, else ModelError."""
    found = [_Stored(_config(folder), _record(folder), load_file(folder / ADAPTER)) for folder in folders]
    for folder, each in zip(folders, found, strict=True):
        if (each.record.base_digest, each.adapter.keys()) != (found[0].record.base_digest, found[0].adapter.keys()):
            raise ModelError(f"{folder}: has another base or other layers than {folders[0]}")
    return found


def _write_sum(roles: Sequence[_Stored], shares: Sequence[float], out: Path, *, record: RoleRecord,
               head: Tensor | None = None) -> Path:
    """One adapter whose product is the sum of `shares` x products, whole or not at all."""
    weights = [share * role.config["lora_alpha"] / (
        math.sqrt(role.config["r"]) if role.config.get("use_rslora") else role.config["r"])
        for share, role in zip(shares, roles, strict=True)]
    rank = sum(role.config["r"] for role in roles)
    unfinished = out.with_name(f".{out.name}.unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(parents=True)
    save_file({name: _beside(name, [role.adapter[name] for role in roles], weights) for name in roles[0].adapter},
              unfinished / ADAPTER)
    if head is not None:
        save_file({"weight": head}, unfinished / HEAD)
    config = {**roles[0].config, "r": rank, "lora_alpha": rank, "use_rslora": False}
    (unfinished / ADAPTER_CONFIG).write_text(json.dumps(config, indent=2, sort_keys=True))
    (unfinished / RECORD).write_text(json.dumps(asdict(record), indent=2))
    unfinished.rename(out)
    return out


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
