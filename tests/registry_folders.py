"""Adapters without a model and registries on them, for tests of what needs no weights that work."""

import json
import struct
from pathlib import Path
from typing import Any

from rlhflab.registry.records import HEAD, Adapter, BaseFacts
from rlhflab.registry.sources import look_at
from rlhflab.registry.store import Added, Registry

BASE = "b" * 64


def tensors(name: str, value: int) -> bytes:
    """A safetensors file with one byte in it."""
    header = json.dumps({name: {"dtype": "U8", "shape": [1], "data_offsets": [0, 1]}}).encode()
    return struct.pack("<Q", len(header)) + header + bytes([value])


def adapter_folder(path: Path, value: int = 1, *, rank: int = 4, head: int | None = None, **config: Any) -> Path:
    """A folder as PEFT writes it; `value` makes its weights differ from those of others."""
    path.mkdir(parents=True)
    (path / "adapter_model.safetensors").write_bytes(tensors("base_model.model.lora_A.weight", value))
    (path / "adapter_config.json").write_text(json.dumps({
        "peft_type": "LORA", "r": rank, "lora_alpha": 8, "base_model_name_or_path": "a-base", **config}))
    if head is not None:
        (path / HEAD).write_bytes(tensors("weight", head))
    return path


def take_in(registry: Registry, folder: Path, name: str, *, base: str | None = BASE) -> Added:
    """Add a folder without looking for its base."""
    source = look_at(folder)

    def describe(digest: str, files: Any) -> Adapter:
        return Adapter(digest=digest, name=name, files=files, base=BaseFacts(name="a-base", digest=base),
                       rank=source.rank, alpha=8, head=HEAD in source.files)

    return registry.add(source.files, describe, by="anna")


def registry_of(tmp_path: Path, *names: str, signed: bool = True, **options: Any) -> Registry:
    """A registry in `tmp_path/registry` with an adapter of each name."""
    registry = Registry.init(tmp_path / "registry", key=tmp_path / "key.pem", signed=signed, by="anna", **options)
    for value, name in enumerate(names, start=1):
        take_in(registry, adapter_folder(tmp_path / "trained" / name, value), name)
    return registry


def promote(registry: Registry, name: str, deployment: str = "prod") -> None:
    """Without a gate."""
    registry.promote(name, deployment, by="anna", gate=None, override="a test")


def everything(folder: Path) -> dict[str, Any]:
    """Every file's bytes and every link's target, but the lock's."""
    return {str(path.relative_to(folder)): path.readlink() if path.is_symlink() else path.read_bytes()
            for path in sorted(folder.glob("**/*")) if (path.is_file() or path.is_symlink()) and path.name != ".lock"}
