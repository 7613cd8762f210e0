"""Ways to read a batch on a GPU beside the way it is read now: seconds, share of the peak and equality of a DPO step.

    python benchmarks/gpu_variants.py [--out gpu-variants.json] [--seconds 200] [--only NAME ...]
                                      [--size 1b|tiny] [--device cuda|cpu]

The model, pairs and step of `benchmarks/gpu.py`, every step on the same pairs, so that few shapes are compiled. A way
that fails is written down with its error, and the next begins; none begins that may not end within `--seconds`. The
file is written anew after each, so that what was measured stays if the process is killed. `--size tiny --device cpu`
goes through all of it; its numbers say nothing.
"""

import argparse
import gc
import json
import os
import signal
import statistics
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from gpu import (
    RATE,
    SEED,
    SIZES,
    Size,
    dpo_flops,
    dpo_run,
    make_rows,
    matmul_peak,
    preference_tree,
    shared_model,
    synchronise,
)
from torch import Tensor
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from rlhflab.config import Lora, Optimizer
from rlhflab.core.batch import Batch, PreferenceTree
from rlhflab.core.returns import kl_k3
from rlhflab.model.shared import SharedModel
from rlhflab.runs.folder import environment
from rlhflab.train import dpo
from rlhflab.train.preferences import objective
from rlhflab.train.state import TrainState

WAYS: dict[str, dict[str, Any]] = {
    "as it is": {},
    "one row, compiled, logits compiled": {"columns": 512, "blocks": "compiled", "logits": "compiled"},
    "one row, joint": {"columns": 512, "blocks": "joint"},
    "one row": {"columns": 512},
    "logits compiled": {"logits": "compiled"},
    "compiled, logits compiled": {"blocks": "compiled", "logits": "compiled"}}
"""What `SharedModel.read_fast` is asked for, in the order of what is expected of it."""
WARM, TIMED = 3, 8
"""Steps of each way. Kernels are compiled in the first ones."""
RESERVE = 30.0
"""Seconds kept for the profile of the fastest way."""
KERNELS = 20


def main() -> None:
    options = parsed()
    if options.device == "cuda" and not torch.cuda.is_available():
        print("benchmarks/gpu_variants.py needs a CUDA GPU, and there is none; --device cpu --size tiny goes through "
              "all of it on a CPU", file=sys.stderr)
        raise SystemExit(2)
    warnings.simplefilter("ignore")
    began = time.perf_counter()
    bench = Bench(SIZES[options.size], options.device)
    result: dict[str, Any] = {
        "size": options.size, "device": options.device, "peak": bench.peak, "rows": len(bench.step),
        "tokens": sum(len(each.tree) for each in bench.step), "ways": {}, **environment()}
    for name in options.only or WAYS:
        left = options.seconds - RESERVE - (time.perf_counter() - began)
        result["ways"][name] = attempt(lambda name=name: bench.measure(WAYS[name]), left)  # type: ignore[misc]
        print(line(name, result["ways"][name]), file=sys.stderr, flush=True)
        write(options.out, compared(result))
    measured = {name: way for name, way in result["ways"].items() if "error" not in way}
    fastest = min(measured, key=lambda name: measured[name]["seconds"], default=None)
    for name in dict.fromkeys(name for name in (fastest, "as it is") if name in measured):
        left = options.seconds - (time.perf_counter() - began)
        result.setdefault("profiles", {})[name] = attempt(
            lambda name=name: bench.kernels(WAYS[name]), left)  # type: ignore[misc]
    result["seconds"] = time.perf_counter() - began
    write(options.out, compared(result))
    print("\n".join(line(name, way) for name, way in result["ways"].items()))
    for name, kernels in result.get("profiles", {}).items():
        print(f"\n{name}: milliseconds a step by kernel\n{kernel_table(kernels)}")
    print(f"Wrote {options.out}")


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=SIZES, default="1b")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--out", type=Path, default=Path("gpu-variants.json"))
    parser.add_argument("--seconds", type=float, default=200.0)
    parser.add_argument("--only", nargs="+", choices=WAYS, metavar="NAME", help=f"of {', '.join(WAYS)}")
    return parser.parse_args()


class Bench:
    """A model with policy and reference, the pairs of one step, and what a step gives."""

    def __init__(self, size: Size, device: str) -> None:
        self.size, self.device = size, device
        dtype = torch.bfloat16 if device == "cuda" else torch.float32
        self.model: SharedModel = shared_model(size, device, dtype)
        self.model.add_role("policy", Lora())
        generator = torch.Generator().manual_seed(SEED)
        with torch.no_grad():
            for parameter in self.model.parameters("policy"):
                parameter.copy_(0.02 * torch.randn(parameter.shape, generator=generator))
        self.model.add_role("reference", Lora(), copy_of="policy", trainable=False)
        rows = make_rows(size)[:size.batch]
        self.step: list[PreferenceTree] = [preference_tree(self.model.tokenizer, row) for row in rows]
        self.work = dpo_flops(size, rows) * len(rows)
        self.peak = matmul_peak(size, device, dtype)
        self.start = [parameter.detach().clone() for parameter in self.model.parameters("policy")]
        self.gradients: dict[str, Tensor] = {}

    def measure(self, way: dict[str, Any]) -> dict[str, Any]:
        """Seconds of a step, share of the peak, and loss, log-probs and gradient before the first step."""
        seconds, losses, first = [], [], {}
        with self.reading(way):
            if self.device == "cuda":
                torch.cuda.reset_peak_memory_stats()
            for number, (state, spent) in enumerate(self.steps(WARM + TIMED)):
                seconds.append(spent)
                metrics = state.meter.read()
                losses.append(metrics["loss"])
                first = first or {"start_kl": metrics["start_kl"], "gradient_norm": metrics["gradient_norm"],
                                  "chosen": metrics["chosen_logprob_per_token"]}
                if number == 0:
                    self.gradients[json.dumps(way)] = self.gradient
        median = statistics.median(seconds[WARM:])
        return {"seconds": median, "low": min(seconds[WARM:]), "high": max(seconds[WARM:]), "first_seconds": seconds[0],
                "pairs_per_second": len(self.step) / median, "peak_share": self.work / median / self.peak["best"],
                "peak_gb": torch.cuda.max_memory_allocated() / 1e9 if self.device == "cuda" else None,
                "losses": losses, **first, **self.distance(way)}

    def distance(self, way: dict[str, Any]) -> dict[str, float | None]:
        """How far the first gradient is from that of the way it is read now, relative to its size."""
        plain = self.gradients.get(json.dumps(WAYS["as it is"]))
        found = self.gradients[json.dumps(way)]
        return {"gradient_distance": None if plain is None else float((found - plain).norm() / plain.norm())}

    def steps(self, count: int) -> Iterator[tuple[TrainState, float]]:
        """So many optimizer steps on the same pairs, from the start."""
        run = dpo_run(self.size)
        with torch.no_grad():
            for parameter, start in zip(self.model.parameters("policy"), self.start, strict=True):
                parameter.copy_(start)
        state = TrainState(Optimizer(learning_rate=RATE, warmup=0.0), [(self.model.parameters("policy"), RATE)],
                           total=2 * count)
        loss_of = objective(run).loss_of
        for _ in range(count):
            synchronise(self.device)
            began = time.perf_counter()
            dpo.learn_pairs(run, loss_of, self.model, self.step, self.reference, state, role="policy",
                            reference="reference", shelf=dpo.Shelf(room=0))
            if state.number == 0:
                self.gradient = torch.cat([p.grad.flatten() for p in self.model.parameters("policy")
                                           if p.grad is not None])
            state.optimize()
            synchronise(self.device)
            yield state, time.perf_counter() - began

    @torch.no_grad()
    def reference(self, items: Sequence[int], batch: Batch) -> Tensor:
        """Log-probs of the reference for a batch."""
        return self.model.logprobs(batch, "reference").logprob

    @contextmanager
    def reading(self, way: dict[str, Any]) -> Iterator[None]:
        """Read so inside the block, with a KL at the start that is measured and not refused."""
        refuse, dpo.refuse_wrong_reference = dpo.refuse_wrong_reference, measured_start  # type: ignore[assignment]
        self.model.read_fast(**way)
        try:
            yield
        finally:
            dpo.refuse_wrong_reference = refuse
            self.model.read_fast()
            for parameter in self.model.parameters("policy"):
                parameter.grad = None
            gc.collect()
            if self.device == "cuda":
                torch.cuda.empty_cache()

    def kernels(self, way: dict[str, Any], steps: int = 2) -> dict[str, Any]:
        """The kernels that take the most time, milliseconds a step, and how long the device works in all."""
        activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if self.device == "cuda" else [])]
        with self.reading(way):
            for _ in self.steps(WARM):
                pass
            began = time.perf_counter()
            with profile(activities=activities) as seen:
                for _ in self.steps(steps):
                    pass
            wall = time.perf_counter() - began
        own = "self_device_time_total" if self.device == "cuda" else "self_cpu_time_total"
        events = [each for each in seen.key_averages() if getattr(each, own) > 0 and not getattr(
            each, "is_user_annotation", False) and (self.device == "cpu" or each.device_type == DeviceType.CUDA)]
        events.sort(key=lambda each: -getattr(each, own))
        return {"milliseconds": sum(getattr(each, own) for each in events) / 1e3 / steps, "wall": 1e3 * wall / steps,
                "launches": sum(each.count for each in events) / steps,
                "top": [{"name": each.key[:120], "calls": each.count / steps,
                         "milliseconds": getattr(each, own) / 1e3 / steps} for each in events[:KERNELS]]}


def measured_start(policy: Tensor, reference: Tensor, **_: Any) -> dict[str, Tensor]:
    """The KL of each token before the first step."""
    return {"start_kl": kl_k3(policy, reference)}


def attempt(work: Callable[[], dict[str, Any]], seconds: float) -> dict[str, Any]:
    """What `work` says, or the error it ended with; it has so many seconds."""
    if seconds <= 0:
        return {"error": "no time was left"}

    def late(*_: Any) -> None:
        raise TimeoutError(f"not done within {seconds:.0f} seconds")

    signal.signal(signal.SIGALRM, late)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        return work()
    except Exception as error:
        torch._dynamo.reset()
        return {"error": f"{type(error).__name__}: {error}"[:4000], "trace": traceback.format_exc()[-4000:]}
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)


def compared(result: dict[str, Any]) -> dict[str, Any]:
    """The result with each way's speed relative to the way it is read now."""
    plain = result["ways"].get("as it is", {}).get("seconds")
    for way in result["ways"].values():
        if plain is not None and "seconds" in way:
            way["times_as_fast"] = plain / way["seconds"]
    return result


def write(path: Path, result: dict[str, Any]) -> None:
    unfinished = path.with_suffix(".unfinished")
    unfinished.write_text(json.dumps(result, indent=2) + "\n")
    os.replace(unfinished, path)


def line(name: str, way: dict[str, Any]) -> str:
    if "error" in way:
        return f"{name:36} {way['error'].splitlines()[0][:80]}"
    distance = "" if way["gradient_distance"] is None else f"gradient off by {way['gradient_distance']:.4f}"
    return (f"{name:36} {1e3 * way['seconds']:8.1f} ms  {way['peak_share']:6.3f} of the peak  first "
            f"{way['first_seconds']:5.1f} s  {distance}")


def kernel_table(kernels: dict[str, Any]) -> str:
    if "error" in kernels:
        return str(kernels["error"])
    head = f"{kernels['milliseconds']:8.1f} of {kernels['wall']:.1f} in {kernels['launches']:.0f} kernels"
    return "\n".join([head, *(f"{each['milliseconds']:8.2f} {each['calls']:7.0f}  {each['name']}"
                              for each in kernels["top"])])


if __name__ == "__main__":
    main()
