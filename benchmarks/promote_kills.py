"""Promotions and rollbacks that are killed again and again, at random moments: the old state or the new one, always.

    python benchmarks/promote_kills.py [--kills 200] [--seed 0]

Each change is made by a process of its own, forked from this program, and ended by kill -9 at a moment drawn from the
length of such a change, half of them while it writes. After each kill, before anything is put right, `verify` has to
find all well, and the link that a server reads has to lead to the adapter that was active before or to the new one. The
next change has to work. Exit code 1 where any of it does not hold.
Needs no model. Signs where `cryptography` is installed.
"""

import argparse
import json
import os
import random
import signal
import struct
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rlhflab.registry.audit import verify
from rlhflab.registry.records import Adapter, BaseFacts
from rlhflab.registry.store import Registry

DEPLOYMENT = "prod"
SIZE = 2**16
"""Bytes of an adapter's weights."""


@dataclass(slots=True, kw_only=True)
class Outcome:
    """What was seen."""

    kills: int = 0
    seen: Counter[str] = field(default_factory=Counter)
    problems: list[str] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    """Of each change that was left alone."""


def new_registry(folder: Path) -> Registry:
    """Two adapters of one shape, the first of them active."""
    registry = Registry.init(folder / "registry", key=folder / "key.pem")
    for name, value in (("one", 1), ("two", 2)):
        header = json.dumps({"lora": {"dtype": "U8", "shape": [SIZE], "data_offsets": [0, SIZE]}}).encode()
        weights = struct.pack("<Q", len(header)) + header + bytes([value]) * SIZE

        def describe(digest: str, files: Any, name: str = name) -> Adapter:
            return Adapter(digest=digest, name=name, files=files, base=BaseFacts(name="base"), rank=4, alpha=8.0,
                           head=False)

        registry.add({"adapter_model.safetensors": weights, "adapter_config.json": b"{}"}, describe, by="benchmark")
    registry.promote("one", DEPLOYMENT, by="benchmark", gate=None, override="a start")
    return registry


def change(registry: Registry) -> Callable[[], object]:
    """The next change: to the adapter that is not active, forward or back."""
    state = registry.state()
    stack = state.deployment(DEPLOYMENT)
    if len(stack) > 4:
        return lambda: registry.rollback(DEPLOYMENT, by="benchmark", reason="a test")
    other = next(digest for digest in state.adapters if digest != stack[-1])
    return lambda: registry.promote(other, DEPLOYMENT, by="benchmark", gate=None, override="a test")


def in_a_process(work: Callable[[], object], moment: Callable[[float], bool] = lambda elapsed: False) -> int:
    """Do `work` in a fork of this process, killed at the `moment`; its exit code, less than 0 where it was killed."""
    process = os.fork()
    if not process:
        code = 70
        try:
            work()
            code = 0
        finally:
            os._exit(code)
    began = time.perf_counter()
    while not (ended := os.waitpid(process, os.WNOHANG))[0]:
        if moment(time.perf_counter() - began):
            os.kill(process, signal.SIGKILL)
            ended = os.waitpid(process, 0)
            break
        time.sleep(0.0002)
    return os.waitstatus_to_exitcode(ended[1])


def draw_moment(draw: random.Random, registry: Registry, seconds: float) -> Callable[[float], bool]:
    """Half of the moments from all of a change, half shortly after its entry began to be written."""
    limit = draw.uniform(0, seconds)
    if draw.random() < 0.5:
        return lambda elapsed: elapsed > limit
    ledger, delay, begun = registry.folder / "ledger.jsonl", draw.uniform(0, 0.3) * seconds, list[float]()
    size = ledger.stat().st_size

    def shortly_after(elapsed: float) -> bool:
        if not begun and ledger.stat().st_size > size:
            begun.append(elapsed)
        return bool(begun) and elapsed > begun[0] + delay

    return shortly_after


def look(registry: Registry, before: list[str], outcome: Outcome) -> None:
    """Whether the registry is in the old or in the new state, as it was left."""
    old = before[-1]
    found = verify(registry)
    stack = registry.state().deployment(DEPLOYMENT)
    new = stack != before
    active = (registry.folder / "active" / DEPLOYMENT).resolve().name
    if not found["ok"]:
        outcome.problems.append(f"kill {outcome.kills}: {found['failures'][0]}")
    if active not in ({old, stack[-1]} if new else {old}):
        outcome.problems.append(f"kill {outcome.kills}: the link leads to {active}, after {old} and {stack[-1]}")
    outcome.seen["the new state" if new else "the old state"] += 1
    outcome.seen["left unfinished"] += found["ledger"]["unfinished"]
    outcome.seen["entry written, link not yet moved"] += new and active == old != stack[-1]


def run(folder: Path, *, kills: int, seed: int) -> Outcome:
    """`kills` changes killed, each followed by one that is left alone."""
    registry, draw, outcome = new_registry(folder), random.Random(seed), Outcome()
    typical = 0.05
    while outcome.kills < kills and not outcome.problems:
        before = list(registry.state().deployment(DEPLOYMENT))
        code = in_a_process(change(registry), draw_moment(draw, registry, typical))
        if code == -signal.SIGKILL:
            outcome.kills += 1
            look(registry, before, outcome)
        elif code:
            outcome.problems.append(f"after kill {outcome.kills}: a change ended with {code}")
        began = time.perf_counter()
        if code := in_a_process(change(registry)):
            outcome.problems.append(f"after kill {outcome.kills}: the next change ended with {code}")
        outcome.seconds.append(time.perf_counter() - began)
        typical = sorted(outcome.seconds)[len(outcome.seconds) // 2]
        if not (found := verify(registry))["ok"] or found["ledger"]["unfinished"]:
            outcome.problems.append(f"after kill {outcome.kills}: the next change left {found}")
    return outcome


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        outcome = run(Path(folder), kills=options.kills, seed=options.seed)
    median = sorted(outcome.seconds)[len(outcome.seconds) // 2]
    print(f"{outcome.kills} kills: {dict(outcome.seen)}; a change takes {1000 * median:.1f} ms (median of "
          f"{len(outcome.seconds)})")
    if outcome.problems:
        sys.exit("\n".join(outcome.problems))


if __name__ == "__main__":
    main()
