"""What an adapter folder and the run folder around it say of themselves, whoever wrote them. Files are read, not run.

What nobody wrote down is None. Paths in a run file are looked up from where the command runs, as the run did.
"""

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import yaml
from safetensors import SafetensorError, safe_open

from rlhflab.data.formats import read_rows
from rlhflab.errors import DataError, RegistryError
from rlhflab.registry.records import (
    CONFIG,
    HEAD,
    ROLE,
    WEIGHTS,
    BaseFacts,
    Provenance,
    adapter_digest,
    read_object,
    sha256_of,
)

NEEDED, BESIDE = (WEIGHTS, CONFIG), (HEAD, ROLE, "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json",
                                     "chat_template.jinja")
"""Files that make an adapter, and those that are taken along where they are there."""
PICKLED = "adapter_model.bin"
CONVERT = ("where you trust it, convert it with python -c \"import torch; from safetensors.torch import save_file; "
           f"save_file(torch.load('{PICKLED}', weights_only=True), '{WEIGHTS}')\"")
JUDGES = ("source", "annotator")
"""Keys of a row that say who judged it."""
WHO = 20
"""Most names of annotators that are kept; data that names more is counted only."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """An adapter folder that was looked at."""

    files: Mapping[str, Path]
    config: Mapping[str, Any]
    role: Mapping[str, Any] | None
    """The lab's own record beside the adapter."""
    run: Path | None

    @property
    def folder(self) -> Path:
        """The adapter's own, which may lie below the one that was looked at."""
        return self.files[CONFIG].parent

    @property
    def rank(self) -> int:
        """Of the two factors."""
        return int(self.config["r"])

    @property
    def base(self) -> BaseFacts:
        """The base as the adapter's files name it."""
        role = self.role or {}
        tokenizer, template = self.files.get("tokenizer.json"), template_of(self.files)
        return BaseFacts(name=role.get("base") or self.config.get("base_model_name_or_path"),
                         digest=role.get("base_digest"), tokenizer=sha256_of(tokenizer) if tokenizer else None,
                         template=template)


def template_of(files: Mapping[str, Path]) -> str | None:
    """sha256 of the chat template among these files of a model or adapter; None where there is none."""
    if (path := files.get("chat_template.jinja")) is not None:
        return sha256_of(path)
    if (path := files.get("tokenizer_config.json")) is None:
        return None
    template = read_object(path).get("chat_template")
    return sha256(template.encode()).hexdigest() if isinstance(template, str) else None


def look_at(path: Path, *, role: str | None = None) -> Source:
    """The adapter in a folder, or the role of a run folder. RegistryError says what is missing or wrong."""
    folder = adapter_folder(path, role)
    if (lacks := lacking(folder)) is not None:
        raise RegistryError(lacks)
    config = read_object(folder / CONFIG)
    rank = config.get("r")
    if config.get("peft_type") != "LORA" or not isinstance(rank, int) or isinstance(rank, bool) or rank < 1:
        raise RegistryError(f"{folder / CONFIG}: must be of a LoRA adapter (peft_type LORA and a rank r of 1 or more), "
                            f"found peft_type {config.get('peft_type')!r} and r {rank!r}")
    files = {name: folder / name for name in (*NEEDED, *BESIDE) if (folder / name).is_file()}
    _check_tensors(files[WEIGHTS], "lora_")
    if HEAD in files:
        _check_tensors(files[HEAD], "weight")
    return Source(files=files, config=config, role=read_object(files[ROLE]) if ROLE in files else None,
                  run=_run_around(folder))


def _run_around(folder: Path) -> Path | None:
    """The run folder that a role's folder lies in."""
    roles = folder.resolve().parent
    return roles.parent if roles.name == "roles" and (roles.parent / "config.yaml").is_file() else None


def adapter_folder(path: Path, role: str | None = None) -> Path:
    """The folder with the adapter itself: `path`, a role of a run folder, or one that a trainer left below its output.

    Trainers leave checkpoint-N folders, and PEFT a folder for each adapter that is not called default. Where there are
    several and `path` is none itself, `role` has to name one. RegistryError says what there is to name.
    """
    if not path.is_dir():
        raise RegistryError(f"{path}: no such folder")
    run = path / "roles"
    below = run if run.is_dir() else path
    found = {each.name: each for each in sorted(below.glob("*"), key=_in_order)
             if each.is_dir() and (below == run or (each / CONFIG).is_file())}
    if role is None and ((path / CONFIG).is_file() or not found):
        return path
    chosen = role or (next(iter(found)) if len(found) == 1 else None)
    if chosen not in found:
        raise RegistryError(f"{path}: --role: must be one of {', '.join(found) or 'none that are there'}, found "
                            f"{role or 'none'}")
    return found[chosen]


def _in_order(path: Path) -> tuple[str, int]:
    """checkpoint-9 comes before checkpoint-10."""
    name, _, number = path.name.rpartition("-")
    return (name, int(number)) if number.isdecimal() else (path.name, 0)


def lacking(folder: Path) -> str | None:
    """What keeps a folder from being an adapter folder, as a sentence; None where it is one."""
    missing = next((name for name in NEEDED if not (folder / name).is_file()), None)
    if missing is None:
        return None
    pickled = f"; {PICKLED} is pickled, and pickled files can run code, so it is not opened: {CONVERT}" if (
        folder / PICKLED).is_file() else ""
    below = [each.parent.name for each in sorted(folder.glob(f"*/{CONFIG}"), key=lambda each: _in_order(each.parent))]
    named = f"; there are adapters in {', '.join(below)} below it" if below else ""
    return f"{folder}: is not an adapter folder: it has no {missing}{pickled}{named}"


def _check_tensors(path: Path, part: str) -> None:
    try:
        with safe_open(path, framework="numpy") as file:
            names = list(file.keys())
    except (SafetensorError, OSError) as error:
        raise RegistryError(f"{path}: is not a safetensors file: {' '.join(str(error).split())}") from error
    if not any(part in name for name in names):
        raise RegistryError(f"{path}: has no tensor whose name holds {part!r}, found {len(names)} others")


def base_named(folder: Path) -> str | None:
    """The base that the files of an adapter folder name; None where they name none."""
    for name, key in ((ROLE, "base"), (CONFIG, "base_model_name_or_path")):
        found = read_object(folder / name).get(key) if (folder / name).is_file() else None
        if found:
            return str(found)
    return None


def provenance(run: Path) -> Provenance:
    """What a run folder of this lab holds about how its roles came to be."""
    config, record = _settings_of(run), _object(run / "record.json")
    folders = _adapters_in(config)
    data = _data_of(config, record)
    taught = [each for key, folder in folders.items() if key.startswith(("reward.", "constraints."))
              for each in _taught(folder, key.removesuffix("path"), frozenset())]
    parents = tuple(folder_digest(path) for key, path in folders.items() if key == "start")
    rewards = config.get("reward")
    return Provenance(
        data=(*data, *taught), annotators=_rule(data), config=config, commit=record.get("commit"),
        evaluations=_object(run / "summary.json") or None,
        rewards=tuple(_reward(each, folders.get(f"reward.{i}.path")) for i, each in enumerate(rewards))
        if isinstance(rewards, list) else None,
        seeds=(config["seed"],) if isinstance(config.get("seed"), int) else None,
        parents=None if config.get("start") and not parents else parents,
        run={key: record.get(key) for key in ("kind", "status", "started", "ended", "lab", "machine", "versions")})


def _settings_of(run: Path) -> dict[str, Any]:
    try:
        config = yaml.safe_load((run / "config.yaml").read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise RegistryError(f"{run / 'config.yaml'}: cannot be read: {' '.join(str(error).split())}") from error
    if not isinstance(config, dict):
        raise RegistryError(f"{run / 'config.yaml'}: must hold keys and values, found {type(config).__name__}")
    return config


def _object(path: Path) -> dict[str, Any]:
    return read_object(path) if path.is_file() else {}


def _adapters_in(config: Mapping[str, Any]) -> dict[str, Path]:
    """The adapter folders that settings name, by dotted key."""
    return {key: Path(value) for key, value in _leaves(config) if isinstance(value, str) and value
            and (Path(value) / WEIGHTS).is_file()}


def _data_of(config: Mapping[str, Any], record: Mapping[str, Any]) -> tuple[dict[str, Any], ...]:
    read = {each["key"]: each["sha256"] for each in record.get("data") or ()}
    return tuple(_data(key, name, read.get(key)) for key, name in data_settings(config))


def _taught(folder: Path, key: str, seen: frozenset[Path]) -> Iterator[dict[str, Any]]:
    """The data that a reward role learnt from, and the roles it began as: a policy's ledger entry alone tells of it."""
    run = _run_around(folder)
    if run is None or run in seen:
        return
    config = _settings_of(run)
    yield from ({**each, "key": f"{key}{each['key']}"} for each in _data_of(config, _object(run / "record.json")))
    if (start := _adapters_in(config).get("start")) is not None:
        yield from _taught(start, f"{key}start.", seen | {run})


def folder_digest(folder: Path) -> str:
    """What the adapter in a folder would be called in a registry."""
    return adapter_digest({name: sha256_of(folder / name) for name in (WEIGHTS, HEAD) if (folder / name).is_file()})


def _leaves(value: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted keys and values of nested settings."""
    pairs = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else None
    if pairs is None:
        yield prefix, value
        return
    for key, inner in pairs:
        yield from _leaves(inner, f"{prefix}.{key}" if prefix else str(key))


def data_settings(config: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Dotted key and value of each setting that names data: a file or a scenario."""
    return ((key, str(value)) for key, value in _leaves(config) if key == "data" or key.endswith(".data"))


def _data(key: str, name: str, read: str | None) -> dict[str, Any]:
    """What is known of some data. `read`: the digest that the run wrote down, which counts if the file is another."""
    path = Path(name)
    unknown = {"sha256": read, "rows": None, "judged_by": None}
    facts = data_facts(path) if path.is_file() else unknown
    return {"key": key, "name": name, **(facts if read in (None, facts["sha256"]) else unknown)}


def data_facts(path: Path) -> dict[str, Any]:
    """sha256 of a data file, its rows, and how many rows each annotator judged, where the rows say so."""
    who: Counter[str] = Counter()
    rows: int | None = 0
    try:
        for row in read_rows(path):
            rows = (rows or 0) + 1
            who.update(str(row.values[key]) for key in JUDGES if row.values.get(key))
    except DataError:  # another format, whose rows are not looked into
        rows = None
    return {"sha256": sha256_of(path), "rows": rows,
            "judged_by": dict(sorted(who.items())) if rows and 0 < len(who) <= WHO else None}


def _reward(source: Any, folder: Path | None) -> dict[str, Any]:
    return {"source": source, "adapter": folder_digest(folder) if folder else None}


def _rule(data: tuple[Mapping[str, Any], ...]) -> str | None:
    """Only of data that a scenario makes: files do not say by which rule people judged."""
    made = [each["name"] for each in data if not (Path(each["name"]).exists() or Path(each["name"]).suffix
                                                  or "/" in each["name"])]
    return f"data made by the scenario {made[0]}, with the simulated annotators of its card" if made else None
