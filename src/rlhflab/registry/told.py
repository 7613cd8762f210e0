"""What the files of other trainers beside an adapter tell of how it was made: TRL, LLaMA-Factory, axolotl.

Nobody here can check it, so each fact stays with the file that tells it and that file's sha256. Pickled files are never
opened. Only the keys named here are taken: a settings file may hold tokens and paths of somebody's machine.
"""

import json
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from rlhflab.errors import RegistryError
from rlhflab.registry.records import CONFIG, read_object, sha256_of

CHECKPOINT = re.compile(r"checkpoint-(\d+)")
LARGEST, LONGEST, MOST = 16 * 2**20, 300, 20
"""Bytes of a file that is read, characters of a text and entries of a list that are kept."""
FRONT, VERSION = re.compile(r"---\n(.*?)\n---\n", re.DOTALL), re.compile(r"^- (\w+):? v?(\d[\w.+-]*)$", re.MULTILINE)
AXOLOTL_VERSION = re.compile(r"axolotl version: `([^`\n]+)`")
SETTING = re.compile(r"^- (learning_rate|seed|num_epochs|training_steps|train_batch_size): (\S+)$", re.MULTILINE)
TRAINERS = {"trl": "TRL", "axolotl": "axolotl", "llama-factory": "LLaMA-Factory", "unsloth": "Unsloth"}
"""Tags of a model card that name a trainer."""
METHODS = ("sft", "dpo", "kto", "orpo", "cpo", "grpo", "rloo", "reward-trainer", "ppo")
LLAMA_FACTORY = {"method": "stage", "data": "dataset", "base": "model_name_or_path", "template": "template",
                 "learning_rate": "learning_rate", "epochs": "num_train_epochs", "planned_steps": "max_steps",
                 "batch": "per_device_train_batch_size", "accumulate": "gradient_accumulation_steps", "seed": "seed",
                 "beta": "pref_beta", "loss_type": "pref_loss", "max_length": "cutoff_len"}
AXOLOTL = {"method": "rl", "base": "base_model", "template": "chat_template", "learning_rate": "learning_rate",
           "epochs": "num_epochs", "planned_steps": "max_steps", "batch": "micro_batch_size",
           "accumulate": "gradient_accumulation_steps", "seed": "seed", "max_length": "sequence_len"}


def told_by(folder: Path) -> tuple[dict[str, Any], ...] | None:
    """For each file that is known: `file`, below the trainer's output folder, its `sha256`, and what it `says`.

    None where there is no such file. A file that cannot be read says so and is not a reason to stop.
    """
    told = [{"file": str(path.relative_to(_output(folder))), "sha256": sha256_of(path), "says": _read(path, read)}
            for path, read in _known(folder)]
    return tuple(each for each in told if each["says"]) or None


def _output(folder: Path) -> Path:
    """The trainer's output folder: above a checkpoint or an adapter of another name, else the adapter's own."""
    below = CHECKPOINT.fullmatch(folder.name) or (folder.parent / CONFIG).is_file()
    return folder.parent if below else folder


def _known(folder: Path) -> Iterator[tuple[Path, Callable[[Path], Mapping[str, Any]]]]:
    output = _output(folder)
    last = sorted((each for each in output.glob("checkpoint-*") if CHECKPOINT.fullmatch(each.name)),
                  key=lambda each: int(each.name.rpartition("-")[2]))[-1:]
    # TRL leaves the state of the whole run in its checkpoints alone.
    states = (each / "trainer_state.json" for each in (folder, output, *([] if folder != output else last)))
    yield from [(path, _trainer_state) for path in states if path.is_file()][:1]
    here = dict.fromkeys((folder, output))
    for name, read in (("README.md", _card), ("trainer_log.jsonl", _trainer_log), ("training_args.bin", _pickled)):
        yield from ((each / name, read) for each in here if (each / name).is_file())
    for each in here:
        yield from ((path, _settings) for path in sorted((*each.glob("*.yaml"), *each.glob("*.yml")))[:MOST])


def _read(path: Path, read: Callable[[Path], Mapping[str, Any]]) -> dict[str, Any]:
    if read is not _pickled and path.stat().st_size > LARGEST:
        return {"not_read": f"larger than {LARGEST >> 20} MiB"}
    try:
        says = read(path)
    except (RegistryError, OSError, ValueError, TypeError, AttributeError, yaml.YAMLError) as error:
        return {"not_read": _cut(" ".join(str(error).split()))}
    return {key: kept for key, value in says.items() if (kept := _kept(value)) is not None}


def _kept(value: Any) -> Any:
    """A number, a short text, or a short list of texts; None for anything else."""
    if isinstance(value, bool) or value is None:
        return None
    if isinstance(value, int | float):
        return value if math.isfinite(value) else None
    if isinstance(value, str):
        return _cut(value) or None
    if isinstance(value, Mapping):
        return {_cut(str(key)): _cut(str(each)) for key, each in list(value.items())[:MOST]} or None
    if isinstance(value, Sequence):
        return [_cut(str(each)) for each in value[:MOST]] or None
    return None


def _cut(text: str) -> str:
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}..."


def _pickled(path: Path) -> Mapping[str, Any]:
    return {"not_read": "pickled, and pickled files can run code; never opened"}


def _trainer_state(path: Path) -> Mapping[str, Any]:
    """Of transformers' Trainer, which TRL, LLaMA-Factory and axolotl all are."""
    state = read_object(path)
    return {"steps": state.get("global_step"), "planned_steps": state.get("max_steps"), "epochs": state.get("epoch"),
            "batch": state.get("train_batch_size"), "best": state.get("best_model_checkpoint"),
            **_logged(state.get("log_history") or [], rate="learning_rate")}


def _trainer_log(path: Path) -> Mapping[str, Any]:
    """Of LLaMA-Factory: a row a logged step."""
    rows = [row for line in path.read_text(encoding="utf-8").splitlines() if line.strip()
            and isinstance(row := json.loads(line), dict)]
    last = next((row for row in reversed(rows) if "current_steps" in row), {})
    return {"trainer": "LLaMA-Factory", "steps": last.get("current_steps"), "planned_steps": last.get("total_steps"),
            "epochs": last.get("epoch"), **_logged(rows, rate="lr")} if last else {}


def _logged(rows: Sequence[Any], *, rate: str) -> dict[str, Any]:
    """The highest learning rate that was logged, and the last losses."""
    rows = [row for row in rows if isinstance(row, dict)]
    rates = [row[rate] for row in rows if isinstance(row.get(rate), int | float)]
    return {"learning_rate": max(rates, default=None), **{key: next(
        (row[key] for row in reversed(rows) if key in row), None) for key in ("loss", "eval_loss")}}


def _card(path: Path) -> Mapping[str, Any]:
    """Of a model card: its front matter, the settings the Trainer lists, and versions of packages."""
    text = path.read_text(encoding="utf-8", errors="replace")
    found = FRONT.match(text)
    front = (yaml.safe_load(found[1]) if found else None) or {}
    tags = [str(tag) for tag in front.get("tags") or []]
    versions = {name.lower(): version for name, version in VERSION.findall(text.partition("### Framework versions")[2])}
    trainer = next((TRAINERS[tag] for tag in ("axolotl", "llama-factory", "trl", "unsloth") if tag in tags), None)
    axolotl = AXOLOTL_VERSION.search(text)
    if axolotl is not None:
        trainer, versions["axolotl"] = TRAINERS["axolotl"], axolotl[1]
    return {"trainer": trainer, "trainer_version": versions.get((trainer or "").lower()),
            "base": front.get("base_model"), "data": _names(front.get("datasets")),
            "method": next((tag for tag in tags if tag in METHODS), None),
            **{name: _number(value) for name, value in SETTING.findall(text)}, "versions": versions}


def _settings(path: Path) -> Mapping[str, Any]:
    """Of a settings file of LLaMA-Factory or axolotl; nothing of another."""
    values = yaml.safe_load(path.read_text(encoding="utf-8"))
    if not isinstance(values, dict):
        return {}
    if {"stage", "finetuning_type"} <= values.keys():
        return {"trainer": "LLaMA-Factory", **_picked(values, LLAMA_FACTORY),
                "data": _names(str(values.get("dataset") or "").split(","))}
    if {"base_model", "datasets"} <= values.keys():
        return {"trainer": "axolotl", "data": _names(values["datasets"]), **_picked(values, AXOLOTL)}
    return {}


def _picked(values: Mapping[str, Any], keys: Mapping[str, str]) -> dict[str, Any]:
    return {ours: _number(values[theirs]) for ours, theirs in keys.items() if values.get(theirs) is not None}


def _names(value: Any) -> list[str]:
    """Names of data sets, however they are listed."""
    each = value if isinstance(value, list) else [value]
    names = (one.get("path") if isinstance(one, dict) else one for one in each)
    return [str(name).strip() for name in names if name]


def _number(value: Any) -> Any:
    """A number that YAML took for text, as a number: 1e-5 is text to it."""
    try:
        return float(value) if isinstance(value, str) and value[:1].isdigit() else value
    except ValueError:
        return value
