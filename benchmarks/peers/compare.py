"""Ours and the peer in turn on the same rows: what each subcommand that measures is made of."""

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from peers.checks import Check, compare
from peers.install import environment
from peers.job import Job, Result, run_module, run_worker
from peers.report import Comparison

PEERS = {"dpo": ("trl", "peers.trl_pairs"), "reward": ("trl", "peers.trl_pairs"), "ppo": ("trl_ppo", "peers.trl_ppo"),
         "generate": ("trl", "peers.hf_generate")}
"""Environment and module of each task's peer."""
LENGTHS = {"dpo": (256, 128), "reward": (256, 128), "ppo": (64, 48), "generate": (256, 128)}
"""Longest prompt and answer, tokens."""
NEW_TOKENS = {"ppo": 48, "generate": 128}
RATES = {"dpo": 1e-4, "reward": 1e-4, "ppo": 1e-5}


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """One row of the table that is to be measured."""

    task: str
    precision: str
    our_precision: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Bench:
    """Where and on what everything is run."""

    model: str
    folder: Path
    """For jobs, rows, adapters and results."""
    cache: Path
    """For the peers' environments."""
    rows: str | None
    counts: dict[str, int]
    """Rows of each task."""
    batch: int
    peer_micro: int
    recompute: bool
    repetitions: int

    def job(self, task: str, *, lengths: tuple[int, int] | None = None) -> Job:
        """A job of `task` on freshly prepared rows."""
        prompt, answer = lengths or LENGTHS[task]
        count = self.counts[task]
        folder = self.folder / f"{task}-{count}-{prompt}-{answer}"
        folder.mkdir(parents=True, exist_ok=True)
        asked, done = folder / "order.json", folder / "prepared.json"
        asked.write_text(json.dumps({"model": self.model, "folder": str(folder), "count": count, "rows": self.rows,
                                     "prompt_tokens": prompt, "answer_tokens": answer}))
        run_module(Path(sys.executable), "peers.prepare", asked, done)
        made = json.loads(done.read_text())
        return Job(task=task, precision="fp32", model=made["model"], roles=made["roles"], rows=made["rows"],
                   batch=self.batch, peer_micro=self.peer_micro, learning_rate=RATES.get(task, 0.0),
                   new_tokens=NEW_TOKENS.get(task, 0), recompute=self.recompute, answers=str(folder / "answers.json"))

    def ours(self, job: Job) -> Result:
        """Our side of a job."""
        return said("ours", job, run_worker(Path(sys.executable), "peers.ours", job, Path(job.rows).parent))

    def peer(self, job: Job) -> Result:
        """The peer's side."""
        name, module = PEERS[job.task]
        return said("peer", job, run_worker(environment(name, self.cache), module, job, Path(job.rows).parent))


def measure(bench: Bench, plans: Sequence[Plan]) -> list[Comparison]:
    """Each plan `repetitions` times, ours and the peer in turn. Rows of one peer and precision share the peer's run."""
    for task in dict.fromkeys(plan.task for plan in plans):
        environment(PEERS[task][0], bench.cache)
    jobs = {task: bench.job(task) for task in dict.fromkeys(plan.task for plan in plans)}
    ours: dict[Plan, list[Result]] = {plan: [] for plan in plans}
    peer: dict[Plan, list[Result]] = {plan: [] for plan in plans}
    checks: dict[Plan, dict[str, Check]] = {}
    for repetition in range(bench.repetitions):
        runs: dict[Any, Result] = {}
        for plan in plans:
            job = replace(jobs[plan.task], check=repetition == 0)
            ours[plan].append(bench.ours(replace(job, precision=plan.our_precision)))
            # Generation's peer takes its lengths from our answers, so its run belongs to ours.
            key = plan if plan.task == "generate" else (plan.task, plan.precision)
            if key not in runs:
                runs[key] = bench.peer(replace(job, precision=plan.precision))
            peer[plan].append(runs[key])
        if repetition == 0:
            checks = {plan: compare(ours[plan][0].facts, peer[plan][0].facts, precision=coarser(plan))
                      for plan in plans}
    return [Comparison(task=plan.task, precision=plan.precision, our_precision=plan.our_precision, ours=ours[plan],
                       peer=peer[plan], checks=checks[plan]) for plan in plans]


def coarser(plan: Plan) -> str:
    """The precision that decides how far two sides may lie apart."""
    return "bf16" if "bf16" in (plan.precision, plan.our_precision) else "fp32"


def said(side: str, job: Job, result: Result) -> Result:
    """The result, told on stderr."""
    print(f"{job.task} {job.precision}, {side}: {result.rate:.3g} a second, {result.seconds:.1f} s, "
          f"{result.peak_gb:.2f} GB", file=sys.stderr, flush=True)
    return result
