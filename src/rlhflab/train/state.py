"""What every loop shares: the order of the data, the optimizer step and the numbers of a step. No method here."""

import math
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor, nn

from rlhflab.config import Optimizer, Run
from rlhflab.core.batch import micro_batches
from rlhflab.errors import RunError
from rlhflab.rollout.scoring import Carried
from rlhflab.train.memory import MicroLimit

T = TypeVar("T")


class Step(NamedTuple):
    """One optimizer step (for PPO: one rollout with its steps), as the caller logs it."""

    number: int
    metrics: dict[str, float | None]
    """None where nothing could be measured."""
    seconds: float
    state: "TrainState"
    """As it is after the step, for a checkpoint."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Saved:
    """What a loop needs beside the weights to go on where it was."""

    step: int
    """Steps of the loop that are done."""
    number: int
    """Optimizer steps taken."""
    moved: bool
    """Whether an adapter weight has been seen to move, which is checked once."""
    tensors: Mapping[str, Tensor]
    """Optimizer moments and random states."""
    carried: Mapping[str, Mapping[str, float]]


class Meter:
    """Means with counts. Values stay on the device until `read`, which makes one transfer."""

    def __init__(self) -> None:
        self._sums: defaultdict[str, Tensor | float] = defaultdict(float)
        self._counts: defaultdict[str, int] = defaultdict(int)

    def note(self, metrics: Mapping[str, Tensor]) -> None:
        """Add every element of each tensor to its mean."""
        for name, values in metrics.items():
            self._sums[name] = self._sums[name] + values.detach().sum()
            self._counts[name] += values.numel()

    def read(self) -> dict[str, float | None]:
        """The means so far, None where there was nothing to average; starts afresh."""
        if not self._sums:
            return {}
        totals = [torch.as_tensor(total).float() for total in self._sums.values()]
        device = next((total.device for total in totals if total.device.type != "cpu"), torch.device("cpu"))
        sums = torch.stack([total.to(device) for total in totals]).tolist()
        means = {name: total / self._counts[name] if self._counts[name] else None
                 for name, total in zip(self._sums, sums, strict=True)}
        self._sums.clear()
        self._counts.clear()
        return means

    def copy(self) -> "Meter":
        """Another meter with the same content."""
        other = Meter()
        other._sums.update(self._sums)
        other._counts.update(self._counts)
        return other


@dataclass(frozen=True, slots=True, kw_only=True)
class Schedule:
    """Which items each optimizer step is on: a new seeded order every epoch, the last short step included."""

    items: int
    batch: int
    epochs: int
    steps: int | None = None
    """At most so many."""

    @classmethod
    def of(cls, run: Run, items: int) -> "Schedule":
        """That of a run over `items` examples."""
        return cls(items=items, batch=run.batch, epochs=run.epochs, steps=run.steps)

    def __len__(self) -> int:
        """Steps in all."""
        whole = self.epochs * math.ceil(self.items / self.batch)
        return whole if self.steps is None else min(self.steps, whole)

    def order(self, seed: int, *, done: int = 0) -> Iterator[list[int]]:
        """Item numbers of each step, without the first `done` steps."""
        yield from islice(self._epochs(seed), done, len(self))

    def past(self, seed: int, done: int) -> Iterator[list[int]]:
        """Item numbers of each of the first `done` steps that belongs to the first epoch."""
        yield from islice(self._epochs(seed), min(done, math.ceil(self.items / self.batch)))

    def _epochs(self, seed: int) -> Iterator[list[int]]:
        for epoch in range(self.epochs):
            generator = torch.Generator().manual_seed(seed * 1_000_003 + epoch)
            order = torch.randperm(self.items, generator=generator).tolist()
            for start in range(0, self.items, self.batch):
                yield order[start:start + self.batch]


def learning_rate_factor(settings: Optimizer, step: int, total: int) -> float:
    """Share of the learning rate at step 0, 1, ...: rises from 1/N over N warm-up steps, then decays."""
    warmup = round(settings.warmup * total)
    if step < warmup:
        return (step + 1) / warmup
    left = (total - step) / max(1, total - warmup)
    if settings.schedule == "constant":
        return 1.0
    shape = left if settings.schedule == "linear" else 0.5 * (1 - math.cos(math.pi * left))
    return settings.final_share + (1 - settings.final_share) * shape


class TrainState:
    """Owns the optimizer, the schedule and the meter of one trained role or more."""

    def __init__(self, settings: Optimizer, groups: Sequence[tuple[list[nn.Parameter], float]], *, total: int,
                 may_have_nothing_to_learn: bool = False, saved: Saved | None = None) -> None:
        """`groups`: parameters with their learning rate. Each group is clipped by itself. `saved`: go on from there.

        The first group has to move at the first step, or, where it `may_have_nothing_to_learn` (all answers of a
        rollout equally good), at the first step with a gradient.
        """
        self._may_have_nothing_to_learn = may_have_nothing_to_learn
        self._seen_to_move = False
        self.settings = settings
        self.total = total
        self.meter = Meter()
        self.number = 0
        """Optimizer steps taken."""
        self._groups = [(parameters, rate) for parameters, rate in groups if parameters]
        self._optimizer = torch.optim.AdamW(
            [{"params": parameters, "lr": rate, "peak": rate} for parameters, rate in self._groups],
            betas=(settings.beta1, settings.beta2), eps=settings.epsilon, weight_decay=settings.weight_decay,
            fused=all(p.is_cuda for parameters, _ in self._groups for p in parameters) or None)
        self._limit = MicroLimit()
        self._carried: dict[str, Carried] = {"micro_batches": self._limit}
        self._saved = saved
        self.done = 0 if saved is None else saved.step
        """Steps of the loop that were done when this state was made."""
        if saved is not None:
            self._restore(saved)
        self._started = time.perf_counter()

    def carry(self, name: str, what: Carried) -> None:
        """Keep `what` in checkpoints too; it is put back at once where there is a checkpoint."""
        self._carried[name] = what
        if self._saved is not None:
            what.load_state_dict(self._saved.carried[name])

    def capture(self, step: int) -> Saved:
        """All but the weights, after step number `step` of the loop. Moments are the optimizer's own tensors."""
        moments = {f"optimizer.{i}.{name}": value for i, values in self._optimizer.state_dict()["state"].items()
                   for name, value in values.items()}
        return Saved(step=step, number=self.number, moved=self._seen_to_move, tensors={**moments, **random_state()},
                     carried={name: what.state_dict() for name, what in self._carried.items()})

    def _restore(self, saved: Saved) -> None:
        moments: defaultdict[int, dict[str, Tensor]] = defaultdict(dict)
        for key, value in saved.tensors.items():
            kind, _, rest = key.partition(".")
            if kind == "optimizer":
                number, _, name = rest.partition(".")
                moments[int(number)][name] = value
        content: dict[str, Any] = self._optimizer.state_dict()
        self._optimizer.load_state_dict({**content, "state": dict(moments)})
        set_random_state(saved.tensors)
        self.number, self._seen_to_move = saved.number, saved.moved
        self._limit.load_state_dict(saved.carried.get("micro_batches", {}))

    def accumulate(self, lengths: Sequence[int], learn: Callable[[list[int]], T], *, micro_tokens: int) -> list[T]:
        """Add up the gradients of an optimizer step: `learn` does forward and backward of each micro-batch.

        It is told the items' numbers; `lengths` are theirs in tokens. Returns what `learn` returned.
        """
        return self.within_memory(lengths, lambda groups: [learn(group) for group in groups], micro_tokens=micro_tokens)

    def within_memory(self, lengths: Sequence[int], work: Callable[[list[list[int]]], T], *, micro_tokens: int) -> T:
        """`work` on the items of an optimizer step in micro-batches: one pass over them, or several.

        Where the device runs out of memory, the step is done again from its start, in micro-batches of half the size,
        and so are those that follow: gradients, metrics and random state are put back, so that the result is that of a
        run with the smaller size. RunError where a single item does not fit.
        """
        meter, random = self.meter.copy(), random_state()
        while True:
            groups = micro_batches(lengths, self._limit.of(micro_tokens))
            try:
                return work(groups)
            except torch.OutOfMemoryError as error:
                self._limit.halve(groups, lengths, error)
            # Behind the block the error is gone, and with it the frames that hold the tensors.
            self.forget_gradients()
            self.meter = meter.copy()
            set_random_state(random)
            torch.cuda.empty_cache()

    def note(self, metrics: Mapping[str, Tensor]) -> None:
        """Metrics of one forward pass."""
        self.meter.note(metrics)

    def optimize(self) -> None:
        """Clip, step, forget the gradients. RunError if nothing moved at the first step although it should have."""
        factor = learning_rate_factor(self.settings, self.number, self.total)
        for group in self._optimizer.param_groups:
            group["lr"] = group["peak"] * factor
        norms = [torch.nn.utils.clip_grad_norm_(parameters, self.settings.max_grad_norm)
                 for parameters, _ in self._groups]
        before = None if self._seen_to_move else [parameter.detach().clone() for parameter in self._groups[0][0]]
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
        self.number += 1
        if before is not None:
            self._refuse_standstill(before, float(norms[0]))
        self.note({"gradient_norm": norms[0], "learning_rate": torch.tensor(self._groups[0][1] * factor)})

    def forget_gradients(self) -> None:
        """Take no step on what was accumulated."""
        self._optimizer.zero_grad(set_to_none=True)

    def finish_step(self, extra: Mapping[str, float | None] | None = None) -> Step:
        """The numbers noted since the last call."""
        now = time.perf_counter()
        seconds, self._started = now - self._started, now
        return Step(self.number, {**self.meter.read(), **(extra or {}), **self._limit.news()}, seconds, self)

    def _refuse_standstill(self, before: list[Tensor], norm: float) -> None:
        if norm == 0 and self._may_have_nothing_to_learn:
            return
        self._seen_to_move = True
        parameters, rate = self._groups[0]
        change = max(float((new.detach() - old).abs().max()) for old, new in zip(before, parameters, strict=True))
        if not math.isfinite(norm):
            raise RunError("the gradient of the first step is not finite; lower the learning rate or use float32")
        self.note({"first_change": torch.tensor(change)})
        if rate > 0 and (norm == 0 or change == 0):
            raise RunError(f"no adapter weight moved in the first step (gradient norm {norm:g}, learning rate "
                           f"{rate:g}); nothing would be learnt: check that the data "
                           "has scored tokens and the role is trainable")


def random_state() -> dict[str, Tensor]:
    """State of the global random generators, which draw dropout; sampling and data order have seeds of their own."""
    state = {"random.cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        state["random.cuda"] = torch.cuda.get_rng_state()
    return state


def set_random_state(state: Mapping[str, Tensor]) -> None:
    """Put back what `random_state` returned."""
    torch.set_rng_state(state["random.cpu"])
    if "random.cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["random.cuda"])
