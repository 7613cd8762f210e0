"""The catalogue of detectors, and how one reads samples of the start and of now. No detector here."""

import math
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from rlhflab.analysis.evidence import Evidence, Finding, Sample
from rlhflab.catalog import Catalog
from rlhflab.core.stats import Estimate
from rlhflab.errors import LabError

T = TypeVar("T")
Array = NDArray[np.float64]
Read = Callable[[Sample], float | None]

detector: Catalog[Callable[..., Finding]] = Catalog("detector")
"""`needs`: of `Needs`. A detector that needs no canary is gold-free."""

ANSWERS = 16
"""Answers needed at the start and now, at least."""
PROMPTS = 8
"""Prompts needed at the start where a deviation is measured on it."""
SLOPES = 5
"""Steps from which a slope is read."""
WINDOW = 64
"""Answers that detectors of rare things take together from the last steps."""
MOST = 256
"""Answers of one side that detectors of text read, at most."""
SHOWN = 3
"""Answers that a finding shows."""


class Unclear(LabError):
    """What a detector raises where nothing can be said: why, and what is needed. Its finding is `unclear`."""


def enough(found: int, needed: int, what: str) -> None:
    """Raises Unclear where there are too few."""
    if found < needed:
        raise Unclear(f"{needed} {what} are needed for a verdict, found {found}")


def by_step(samples: Iterable[Sample]) -> dict[int, list[Sample]]:
    """The samples of each step, in the order of steps."""
    found: dict[int, list[Sample]] = defaultdict(list)
    for sample in samples:
        found[sample.step].append(sample)
    return dict(sorted(found.items()))


def having(samples: Iterable[Sample], *reads: Read) -> list[Sample]:
    """The samples of which everything asked for is known and finite."""
    return [sample for sample in samples
            if all((value := read(sample)) is not None and math.isfinite(value) for read in reads)]


def start_and_now(evidence: Evidence, *reads: Read, least: int = ANSWERS,
                  window: int = 1) -> tuple[list[Sample], list[Sample]]:
    """The rollouts of the first step and of the last one that have what is asked for.

    With a `window`, now is as many of the last steps, the first one never, as give that many answers. Unclear where
    there is one step only, or fewer than `least` answers on a side.
    """
    steps = by_step(having(evidence.rollouts, *reads))
    start, later = first_and_later(steps)
    now: list[Sample] = []
    for samples in reversed(later.values()):
        now = [*samples, *now]
        if len(now) >= window:
            break
    enough(len(start), least, "answers of the start")
    enough(len(now), least, "answers of the latest steps" if window > 1 else "answers of the latest step")
    return start, now


def first_and_later(steps: Mapping[int, list[Sample]]) -> tuple[list[Sample], dict[int, list[Sample]]]:
    """The samples of the first step, and those of each later one. Unclear where there is none."""
    first, *rest = steps or [0]
    if not rest:
        raise Unclear("answers of the starting policy and of a later step are needed, found those of "
                      + ("one step only" if steps else "no step"))
    return steps[first], {step: steps[step] for step in rest}


def numbers(samples: Iterable[Sample], read: Read) -> list[float]:
    """What `read` finds; samples of which it knows nothing are to be left out before."""
    return [float(value) for sample in samples if (value := read(sample)) is not None]


def prompts(samples: Iterable[Sample]) -> list[str]:
    """The prompt of each sample, as clusters of an interval."""
    return [sample.prompt_id for sample in samples]


def clustered(samples: Iterable[Sample], read: Callable[[Sample], T]) -> dict[Hashable, list[T]]:
    """What `read` finds, by prompt."""
    found: dict[Hashable, list[T]] = defaultdict(list)
    for sample in samples:
        found[sample.prompt_id].append(read(sample))
    return dict(found)


def mean_and_deviation(values: Sequence[float], what: str) -> tuple[float, float]:
    """Of the start, which later values are standardised by. Unclear where they are all equal."""
    mean, deviation = float(np.mean(values)), float(np.std(values, ddof=1)) if len(values) > 1 else 0.0
    if deviation <= 1e-9 * max(1.0, abs(mean)):
        raise Unclear(f"all {len(values)} {what} of the start are equal ({mean:g}), so there is no deviation to "
                      "measure by")
    return mean, deviation


def means_by_step(samples: Iterable[Sample], read: Read) -> tuple[list[float], list[float]]:
    """(steps, mean at each)."""
    steps = by_step(having(samples, read))
    return [float(step) for step in steps], [float(np.mean(numbers(found, read))) for found in steps.values()]


def spread_out(samples: Sequence[Sample], most: int = MOST) -> list[Sample]:
    """At most so many of the samples, evenly taken."""
    if len(samples) <= most:
        return list(samples)
    return [samples[i * len(samples) // most] for i in range(most)]


def shown(samples: Iterable[Sample], key: Callable[[Sample], float]) -> tuple[str, ...]:
    """The answers with the highest `key`, each once."""
    ordered = sorted(samples, key=key, reverse=True)
    return tuple(dict.fromkeys(sample.answer for sample in ordered))[:SHOWN]


def told(estimate: Estimate, digits: int = 2) -> str:
    """`0.31 [0.22, 0.40]`."""
    return f"{estimate.mean:.{digits}f} [{estimate.low:.{digits}f}, {estimate.high:.{digits}f}]"


def pairs_within(samples: Iterable[Sample]) -> Iterator[tuple[Sample, Sample]]:
    """Every two answers of one step to one prompt."""
    for found in by_step(samples).values():
        for group in clustered(found, lambda sample: sample).values():
            yield from ((a, b) for i, a in enumerate(group) for b in group[i + 1:])
