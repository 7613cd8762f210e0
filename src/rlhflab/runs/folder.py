"""A run's folder: whole by itself, appended to line by line, replaced file by file."""

import json
import os
import platform
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import psutil
import yaml

from rlhflab import __version__
from rlhflab.errors import RunError

PACKAGES = ("torch", "transformers", "peft", "tokenizers", "safetensors", "numpy", "scipy", "pydantic", "plotly")


class RunFolder:
    """Owns one folder under `runs/`."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @classmethod
    def create(cls, path: Path) -> "RunFolder":
        """A new folder. RunError if it is there already: a run never writes over another."""
        try:
            path.mkdir(parents=True)
        except FileExistsError as error:
            raise _taken(path) from error
        return cls(path)

    @staticmethod
    def refuse_taken(out: Path | None) -> None:
        """RunError where the folder is there already: for those who work long before they create it."""
        if out is not None and out.exists():
            raise _taken(out)

    @classmethod
    def named(cls, name: str, *, under: Path = Path("runs")) -> "RunFolder":
        """A new folder `name-YYYYMMDD-HHMMSS`; a second one in the same second gets a number behind it."""
        stamp = f"{name}-{datetime.now():%Y%m%d-%H%M%S}"
        number = 1
        while True:
            try:
                return cls.create(under / (stamp if number == 1 else f"{stamp}-{number}"))
            except RunError:
                number += 1

    def write(self, name: str, text: str) -> None:
        """The file `name`, replaced in one go."""
        self.write_bytes(name, text.encode())

    def write_bytes(self, name: str, content: bytes) -> None:
        """The same of what is no text."""
        path = self.path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        unfinished = path.with_name(f".{path.name}.unfinished")
        with unfinished.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        unfinished.replace(path)

    def write_json(self, name: str, value: object) -> None:
        """`value` as indented JSON."""
        self.write(name, json.dumps(value, indent=2, ensure_ascii=False) + "\n")

    def write_yaml(self, name: str, value: object) -> None:
        """`value` as YAML, keys in their own order."""
        self.write(name, yaml.safe_dump(value, sort_keys=False, allow_unicode=True))

    def append(self, name: str, row: Mapping[str, Any]) -> None:
        """One more line of a JSONL file."""
        with (self.path / name).open("a", encoding="utf-8") as file:
            file.write(json.dumps(row, ensure_ascii=False) + "\n")

    def rows(self, name: str) -> list[dict[str, Any]]:
        """The rows of a JSONL file; none where it is missing. A last line cut off by a kill does not count."""
        path = self.path / name
        whole, _, _ = path.read_text(encoding="utf-8").rpartition("\n") if path.is_file() else ("", "", "")
        # Not splitlines: an answer may hold one of Unicode's own line separators, which JSON leaves as they are.
        return [json.loads(line) for line in whole.split("\n") if line]

    def cut(self, name: str, keep: Callable[[dict[str, Any]], bool]) -> None:
        """Leave in a JSONL file only the rows to `keep`, in one go."""
        if self.has(name):
            kept = [row for row in self.rows(name) if keep(row)]
            self.write(name, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in kept))

    def read_json(self, name: str) -> Any:
        """What `write_json` wrote."""
        return json.loads((self.path / name).read_text(encoding="utf-8"))

    def discard(self, name: str) -> None:
        """Remove a folder an unfinished run left here, to be made again."""
        shutil.rmtree(self.path / name, ignore_errors=True)

    def has(self, name: str) -> bool:
        """Whether the file is there."""
        return (self.path / name).is_file()


class Record:
    """The `record.json` of a run: who made it, from what, and how it ended."""

    def __init__(self, folder: RunFolder, kind: str, **facts: Any) -> None:
        self._folder, self._began = folder, time.perf_counter()
        self._facts = {"kind": kind, "status": "running", "started": _now(), **environment(), **facts}
        folder.write_json("record.json", self._facts)

    def close(self, status: str) -> None:
        """`finished` or `stopped`."""
        self._facts |= {"status": status, "ended": _now(), "seconds": round(time.perf_counter() - self._began, 1)}
        self._folder.write_json("record.json", self._facts)


def _taken(path: Path) -> RunError:
    return RunError(f"{path}: exists already; give another --out, or remove it yourself")


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def environment() -> dict[str, Any]:
    """Code, machine and versions a result depends on."""
    return {"lab": __version__, "commit": _commit(), "machine": _machine(), "versions": _versions()}


def peak_memory_gb() -> float:
    """Largest resident memory of this process so far, GB."""
    unit = 1 if sys.platform == "darwin" else 1024  # bytes there, kibibytes elsewhere
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def _commit() -> str | None:
    """The source tree's commit, with `+` where it has been changed since; None outside a checkout."""
    try:
        here = Path(__file__).parent
        head = subprocess.run(["git", "rev-parse", "HEAD"], cwd=here, capture_output=True, text=True, check=True)
        changed = subprocess.run(["git", "status", "--porcelain", "--untracked-files=no"], cwd=here,
                                 capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return head.stdout.strip() + ("+" if changed.stdout.strip() else "")


def _machine() -> str:
    import torch  # here, since folders are also written where there is no torch

    name = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.is_file():
        names = [line.partition(":")[2].strip() for line in info.read_text().splitlines()
                 if line.startswith("model name")]
        name = names[0] if names else name
    gpu = f", {torch.cuda.get_device_name()}" if torch.cuda.is_available() else ""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return f"{name}, {cores} cores, {psutil.virtual_memory().total / 1e9:.0f} GB{gpu}"
