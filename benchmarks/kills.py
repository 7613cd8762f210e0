"""Runs that are killed again and again, at random moments, beside the same run left alone: equal to the bit or not.

    python benchmarks/kills.py [--kills 300] [--kinds dpo reward ppo] [--seed 0]

The long version of tests/runs/test_resume.py, on a tiny model in fp32. Each process is a real one, forked from this
program, which has only imported the code, and ended by kill -9: half of them at a moment drawn from the length of the
whole run, half within 20 milliseconds from where a checkpoint begins to be written. Then `--resume`, until the run is
done. Compared are every byte of the roles and of the last checkpoint (adapters, heads, moments, random states, what is
carried from step to step), the summary, the samples and every logged number but the clock's. Exit code 1 where anything
differs or a run cannot go on; its folder is kept then.
"""

import argparse
import json
import mmap
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"  # a fork copies the thread that forks and no other

from rlhflab.cli import main as rlhflab_main
from rlhflab.model.shared import SharedModel
from rlhflab.runs import training  # noqa: F401 - imported once, before the first fork
from rlhflab.runs.folder import RunFolder
from rlhflab.runs.recipes import recipe
from rlhflab.train.checkpoint import Checkpoints

WORDS = ("one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve")
ROWS = [{"prompt": f"Say {word}.", "chosen": word, "rejected": f"No {word}, sorry."} for word in WORDS]
STEPS = 12
"""Of each run; the last one leaves a checkpoint."""
SHARED = ["--model", "tiny-llama", "--dtype", "float32", "--batch", "4", "--steps", str(STEPS),
          "--checkpoint_every", "2"]
PAIRS = ["--epochs", "4", "--probe_prompts", "2", "--probe_tokens", "4"]
LETTERS = {"name": "verifier", "check": {"name": "regex", "pattern": "[a-m]"}, "shaping": {"name": "standardise"}}
SAMPLES = ["--samples", "2", "--max_new_tokens", "6", "--reward", json.dumps([LETTERS])]
KINDS: dict[str, tuple[str, list[str]]] = {
    "dpo": ("dpo", [*PAIRS, "--lora.dropout", "0.1"]),
    "reward": ("reward", ["--epochs", "6"]),
    "ppo": ("ppo", [*SAMPLES, "--epochs", "2", "--minibatches", "2", "--critic_warmup", "2", "--kl_target", "0.01",
                    "--kl_horizon", "50"]),
    "kto": ("dpo", [*PAIRS, "--loss.name", "kto"]),
    "bco": ("dpo", [*PAIRS, "--loss.name", "bco"]),
    "ema": ("dpo", [*PAIRS, "--reference_ema.mix", "0.5", "--reference_ema.every", "3"]),
    "ensemble": ("reward", ["--epochs", "6", "--heads", "3"]),
    "rloo": ("ppo", [*SAMPLES, "--advantage.name", "rloo"]),
    "best_of_n": ("best_of_n", SAMPLES),
    "online_dpo": ("online_dpo", SAMPLES),
}
"""Kind of run and flags."""
PHASES = ("loading", "between steps", "writing a checkpoint", "after the last step")
LOADING, TRAINING, WRITING, ENDING = range(len(PHASES))


class Watched:
    """A process that runs a command, and the part of it that it is in."""

    def __init__(self, arguments: list[str], log: Path) -> None:
        self._shared = mmap.mmap(-1, 2)
        self._began = time.perf_counter()
        self._process = os.fork()
        if not self._process:
            self._run(arguments, log)

    @property
    def phase(self) -> int:
        return self._shared[0]

    @property
    def checkpoints(self) -> int:
        """How many it has begun to write."""
        return self._shared[1]

    def end(self, moment: Callable[["Watched", float], bool] = lambda process, seconds: False) -> int:
        """Wait until it ends, or kill it at the `moment`. Its exit code, less than 0 where it was killed."""
        while not (ended := os.waitpid(self._process, os.WNOHANG))[0]:
            if moment(self, time.perf_counter() - self._began):
                os.kill(self._process, signal.SIGKILL)
                ended = os.waitpid(self._process, 0)
                break
            time.sleep(0.0003)
        return os.waitstatus_to_exitcode(ended[1])

    def _run(self, arguments: list[str], log: Path) -> None:
        code = 70
        try:
            with log.open("w") as said:
                os.dup2(said.fileno(), 1)
                os.dup2(said.fileno(), 2)
            self._watch()
            code = rlhflab_main(arguments)
        finally:
            sys.stderr.flush()
            os._exit(code)

    def _watch(self) -> None:
        """Let the parts of a run say that they begin. The last checkpoint stays, since it is compared as well."""
        keep, append, save_role = Checkpoints.keep, RunFolder.append, SharedModel.save_role

        def watched_keep(checkpoints: Checkpoints, step: int, *rest: Any) -> None:
            if step % checkpoints.every == 0:
                self._shared[0], self._shared[1] = WRITING, self._shared[1] + 1
            keep(checkpoints, step, *rest)
            self._shared[0] = TRAINING

        def watched_append(folder: RunFolder, *row: Any) -> None:
            self._shared[0] = TRAINING
            append(folder, *row)

        def watched_save(model: SharedModel, role: str, folder: Path, *, alone: bool = False) -> None:
            if not alone:
                self._shared[0] = ENDING
            save_role(model, role, folder, alone=alone)

        Checkpoints.keep, Checkpoints.drop = watched_keep, lambda checkpoints: None
        RunFolder.append, SharedModel.save_role = watched_append, watched_save


def draw_moment(draw: random.Random, seconds: float) -> Callable[[Watched, float], bool]:
    """When the next process is to be killed, of a run that takes `seconds`."""
    if draw.random() < 0.5:
        limit = draw.uniform(0, seconds)
        return lambda process, elapsed: elapsed > limit
    number, delay = draw.randint(1, 4), draw.choice((0.0, draw.uniform(0, 0.02)))
    begun: list[float] = []

    def within_a_checkpoint(process: Watched, elapsed: float) -> bool:
        if not begun and process.checkpoints >= number:
            begun.append(elapsed)
        return bool(begun) and elapsed >= begun[0] + delay

    return within_a_checkpoint


def outcome(run: Path) -> dict[str, Any]:
    """Every byte and every number that has to be the same."""
    files = {str(path.relative_to(run)): path.read_bytes() for folder in ("roles", f"checkpoints/step-{STEPS}")
             for path in sorted((run / folder).rglob("*")) if path.is_file()}
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    rollouts = run / "rollouts.jsonl"
    return {**files, "summary.json": (run / "summary.json").read_bytes(),
            "rollouts.jsonl": rollouts.read_bytes() if rollouts.exists() else None,
            **{f"step {i}": {k: v for k, v in row.items() if k != "seconds"} for i, row in enumerate(rows, start=1)}}


class Endurance:
    """One kind of run, left alone once and then killed over and over."""

    def __init__(self, name: str, folder: Path, draw: random.Random) -> None:
        self.name, self.folder, self.draw = name, folder, draw
        self.kills = self.resumes = self.runs = 0
        self.hits: Counter[str] = Counter()
        self.differences: list[str] = []
        self.data = folder / "rows.jsonl"
        self.data.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
        began = time.perf_counter()
        if code := Watched(self._command("whole"), folder / "log.txt").end():
            raise SystemExit(f"{name}: left alone, it ended with {code}: {(folder / 'log.txt').read_text()}")
        self.seconds = time.perf_counter() - began
        self.whole = outcome(folder / "whole")

    def run_once(self, kills: int) -> None:
        """A run from its start to its end, killed `kills` times at most."""
        name = f"killed-{self.runs}"
        run, left = self.folder / name, kills
        self.runs += 1
        arguments = self._command(name)
        while True:
            process = Watched(arguments, self.folder / "log.txt")
            code = process.end(draw_moment(self.draw, self.seconds)) if left else process.end()
            if code == -signal.SIGKILL:
                left -= 1
                self.kills += 1
                self._note_hit(process, run)
            if (run / "summary.json").is_file():
                break
            if code != -signal.SIGKILL:
                self.differences.append(f"{name}: ended with {code}: {(self.folder / 'log.txt').read_text()[-300:]}")
                return
            if (run / "config.yaml").is_file():
                self.resumes += 1
                arguments = ["train", "--resume", str(run)]
            else:  # there is nothing to go on with yet
                shutil.rmtree(run, ignore_errors=True)
                arguments = self._command(name)
        found = outcome(run)
        differ = sorted(key for key in found.keys() | self.whole.keys() if found.get(key) != self.whole.get(key))
        self.differences += [f"{name}: {key}" for key in differ]
        if not differ:
            shutil.rmtree(run)

    def _note_hit(self, process: Watched, run: Path) -> None:
        self.hits[PHASES[process.phase]] += 1
        metrics, checkpoints = run / "metrics.jsonl", run / "checkpoints"
        written = metrics.read_bytes() if metrics.exists() else b""
        self.hits["left half a checkpoint"] += (checkpoints / ".unfinished").exists()
        self.hits["left two checkpoints"] += len(list(checkpoints.glob("step-*"))) > 1
        self.hits["left half a line"] += bool(written) and not written.endswith(b"\n")

    def _command(self, name: str) -> list[str]:
        kind, flags = KINDS[self.name]
        return ["train", kind, str(recipe(kind)), *SHARED, "--data", str(self.data), *flags,
                "--out", str(self.folder / name)]


@contextmanager
def scratch() -> Iterator[Path]:
    """A folder that is removed if all went well."""
    path = Path(tempfile.mkdtemp(prefix="kills-"))
    yield path
    shutil.rmtree(path)


def table(tried: list[Endurance]) -> str:
    """Markdown, one line a kind."""
    places = [*PHASES, "left half a checkpoint", "left two checkpoints", "left half a line"]
    lines = ["| kind | runs | kills | resumes | " + " | ".join(places) + " | differences |",
             "|---|" + "---|" * (4 + len(places))]
    for each in tried:
        counts = [each.runs, each.kills, each.resumes, *(each.hits[place] for place in places), len(each.differences)]
        lines.append(f"| {each.name} | " + " | ".join(map(str, counts)) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=300, help="in all, shared out evenly")
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=["dpo", "reward", "ppo"])
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    draw, tried = random.Random(options.seed), []
    with scratch() as folder:
        for i, name in enumerate(options.kinds):
            (folder / name).mkdir()
            tried.append(endurance := Endurance(name, folder / name, draw))
            share = options.kills // len(options.kinds) + (i < options.kills % len(options.kinds))
            while endurance.kills < share and not endurance.differences:
                endurance.run_once(share - endurance.kills)
                print(f"{name}: {endurance.kills} of {share} kills, {endurance.resumes} resumes, "
                      f"{len(endurance.differences)} differences", flush=True)
        print(table(tried))
        differences = [f"{each.name}/{difference}" for each in tried for difference in each.differences]
        if differences:
            raise SystemExit(f"in {folder}:\n" + "\n".join(differences))


if __name__ == "__main__":
    main()
