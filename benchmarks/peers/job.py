"""What one process is to do and what it found, as JSON files between the parent and its workers. No torch here."""

import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

HERE = Path(__file__).parents[1]


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """The same for both sides, but for the precision."""

    task: str
    """dpo, reward, ppo or generate."""
    precision: str
    """fp32 or bf16."""
    model: str
    """A transformers folder."""
    roles: str
    """Folder of the adapters both sides start from: policy, reward."""
    rows: str
    """JSONL of `peers.prepare`."""
    batch: int = 8
    """Pairs or episodes an optimizer step."""
    peer_micro: int = 8
    """Pairs the peer reads in one forward pass."""
    learning_rate: float = 1e-4
    new_tokens: int = 48
    """Of PPO: of each answer. Of generation: of the longest."""
    temperature: float = 0.7
    """Of PPO's sampling: TRL's default."""
    stops: bool = False
    """Whether PPO's answers may end by themselves; else all have the full length."""
    recompute: bool = False
    """Both sides drop activations and compute them again."""
    check: bool = False
    """Also read, untimed, what is compared between the sides."""
    answers: str = ""
    """Of generation: where ours writes its answers, whose lengths the peer's have."""
    save_to: str = ""
    save_every: int = 0
    """Save the policy every so many optimizer steps, untimed; 0 for never."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    """Of our run file, over those that match the peer: a recipe of the project."""
    reward_mean: float = 0.0
    reward_std: float = 1.0
    """What a reward role's scores are standardised by."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """What both sides say of their work; compared name by name."""

    exact: Mapping[str, Any] = field(default_factory=dict)
    numbers: Mapping[str, float] = field(default_factory=dict)
    """Compared relative to the peer's."""
    lists: Mapping[str, list[float]] = field(default_factory=dict)
    """Of each number, relative to the peer's."""
    rounded: Mapping[str, list[float]] = field(default_factory=dict)
    """The same in fp32; in bf16, which moves a short answer's sum by per cents, only their total is compared."""
    scores: Mapping[str, list[float]] = field(default_factory=dict)
    """Of each number, relative to the root mean square of the peer's: a score has no zero of its own."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """What a process measured."""

    seconds: float
    items: int
    """Pairs, episodes or new tokens."""
    loaded_gb: float
    """Peak resident memory after imports and loading, GB ..."""
    peak_gb: float
    """... and at the end of the timed part."""
    gflop: float = 0.0
    """Operations the timed work needs (ours only)."""
    peak_gflops: float = 0.0
    """Of one matrix product, measured in this process (ours only)."""
    saved: list[tuple[int, float]] = field(default_factory=list)
    """(optimizer step, seconds so far) of each saved policy."""
    facts: Facts = field(default_factory=Facts)

    @property
    def rate(self) -> float:
        """Items a second."""
        return self.items / self.seconds


class Stopwatch:
    """Seconds of the timed part, without its pauses, and the memory at its end."""

    def __init__(self) -> None:
        self.loaded_gb = peak_gb()
        self.peak_gb = self.seconds = 0.0
        self._since = 0.0

    def __enter__(self) -> "Stopwatch":
        self._since = time.perf_counter()
        return self

    def __exit__(self, *problem: object) -> None:
        self.seconds += time.perf_counter() - self._since
        self.peak_gb = peak_gb()

    @property
    def now(self) -> float:
        """Seconds up to now."""
        return self.seconds + time.perf_counter() - self._since

    @contextmanager
    def paused(self) -> Iterator[None]:
        """What is done inside is not timed."""
        self.seconds = self.now
        try:
            yield
        finally:
            self._since = time.perf_counter()

    def result(self, items: int, **more: Any) -> Result:
        """What this watch says of `items`."""
        return Result(seconds=self.seconds, items=items, loaded_gb=self.loaded_gb, peak_gb=self.peak_gb, **more)


def peak_gb() -> float:
    """Largest resident memory of this process so far, GB."""
    unit = 1 if sys.platform == "darwin" else 1024  # bytes there, kibibytes elsewhere
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9


def read_rows(path: str) -> list[dict[str, Any]]:
    """The objects of a JSONL file."""
    with Path(path).open(encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def serve(tasks: Mapping[str, Callable[[Job], Result]]) -> None:
    """The main function of a worker: `python -m peers.MODULE job.json result.json`."""
    job = Job(**json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")))
    Path(sys.argv[2]).write_text(json.dumps(asdict(tasks[job.task](job))), encoding="utf-8")


def run_worker(python: Path, module: str, job: Job, folder: Path) -> Result:
    """`job` in a process of its own, whose words go to stderr. SystemExit names what failed."""
    asked, said = folder / f"{module}.job.json", folder / f"{module}.result.json"
    asked.write_text(json.dumps(asdict(job)), encoding="utf-8")
    said.unlink(missing_ok=True)
    run_module(python, module, asked, said)
    content = json.loads(said.read_text(encoding="utf-8"))
    return Result(**{**content, "facts": Facts(**content["facts"])})


def run_module(python: Path, module: str, *arguments: Path) -> None:
    """`python -m module arguments`. SystemExit names what failed."""
    path = os.pathsep.join(filter(None, (str(HERE), os.environ.get("PYTHONPATH"))))
    quiet = {"TRL_EXPERIMENTAL_SILENCE": "1", "TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1",
             "HF_DATASETS_DISABLE_PROGRESS_BARS": "1"}
    done = subprocess.run([str(python), "-m", module, *map(str, arguments)], stdout=sys.stderr,
                          env={**os.environ, **quiet, "PYTHONPATH": path})
    if done.returncode:
        raise SystemExit(f"{python} -m {module} {' '.join(map(str, arguments))}: ended with {done.returncode}; "
                         "what it said is above")
