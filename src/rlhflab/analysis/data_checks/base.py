"""The catalogue of data checks, what one finds, and how one says it. No check here."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from rlhflab.catalog import Catalog
from rlhflab.core.stats import Estimate, wilson
from rlhflab.data.survey.columns import Survey
from rlhflab.errors import LabError

Verdict = Literal["fault", "look", "clean", "not run"]
Rows = NDArray[np.int64]
SHOWN = 5
"""Examples of a finding."""


class Example(NamedTuple):
    """A row that shows it."""

    where: str
    """`pairs.jsonl:12`, or several of them."""
    text: str
    """Opening words of its prompt, or what is wrong with it; never a whole secret. Text that nobody vouches for."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DataFinding:
    """What one check says of the data."""

    verdict: Verdict
    """fault: rows to be mended or left out. look: a property that training will learn from. clean: neither."""
    says: str
    """The numbers in a sentence or two, for somebody who does not know the method."""
    name: str = ""
    """Of the catalogue; filled in by whoever runs the check."""
    count: int | None = None
    rate: Estimate | None = None
    """With a 95 % interval."""
    of: str = "rows"
    """What the rate is a share of."""
    limited: float | None = None
    """What a limit is compared with: the rate, or for a bias how far it goes to either side."""
    examples: Sequence[Example] = ()
    next: str = ""
    """What to do about it."""
    drop: Mapping[int, str] = field(default_factory=dict)
    """Rows that a cleaned copy leaves out, and why."""
    redact: Sequence[int] = ()
    """Rows in which a cleaned copy takes secrets out."""
    details: Mapping[str, Any] = field(default_factory=dict)
    """Tables and histograms behind the sentence, as JSON values."""


data_check: Catalog[Callable[..., DataFinding]] = Catalog("check")
"""`needs`: tokens, near (signatures), suites, splits, or an extra package."""


class CannotSay(LabError):
    """What a check raises where it cannot be run: why, and what is needed. Its finding is `not run`."""


def share(count: float, n: int) -> Estimate:
    """A rate of independent rows with its Wilson interval."""
    return Estimate(count / n, *wilson(float(count), float(n)), n)


def told(rate: Estimate) -> str:
    """`2.1 % [1.4, 3.0]`."""
    mean, low, high = (f"{100 * each:.1f}" if each >= 0.01 or each < 5e-6 else f"{100 * each:.2g}" for each in rate[:3])
    return f"{mean} % [{low}, {high}]"


def fault(rows: Sequence[int] | Rows, n: int, *, what: str, examples: Sequence[Example], next_step: str,
          of: str = "rows", **more: Any) -> DataFinding:
    """A finding that is clean where no row is concerned. `what`: `hold two equal answers`. CannotSay without rows."""
    if n == 0:
        raise CannotSay(f"there are no {of} to look at")
    count = len(rows)
    rate = share(count, n)
    if count == 0:
        return DataFinding(verdict="clean", says=f"None of {n:,} {of} {what}.", count=0, rate=rate, of=of, limited=0.0,
                           **{**more, "drop": {}, "redact": ()})
    return DataFinding(verdict="fault", says=f"{count:,} of {n:,} {of} {what}: {told(rate)}.", count=count, rate=rate,
                       of=of, limited=rate.mean, examples=examples[:SHOWN], next=next_step, **more)


def examples(survey: Survey, rows: Iterable[int]) -> list[Example]:
    """The first few rows, by their opening words."""
    return [Example(survey.place(int(row)), survey.excerpt[int(row)]) for row in islice(rows, SHOWN)]


def comparison_keys(survey: Survey) -> tuple[NDArray[np.uint64], NDArray[np.int8]]:
    """(number of each row's prompt and answers whichever comes first, label as if the answer of the lower hash did)."""
    low, high = survey.answers.min(axis=1), survey.answers.max(axis=1)
    turned = np.where(survey.answers[:, 0] <= survey.answers[:, 1], 1, -1).astype(np.int8)
    thumbs = survey.of("thumb")
    keys = np.zeros(survey.rows, dtype=np.uint64)
    for part in (survey.kind.astype(np.uint64), survey.prompt, low, high):
        keys = combined(keys, part)
    return keys, np.asarray(np.where(thumbs, survey.label, survey.label * turned), dtype=np.int8)


def combined(keys: NDArray[np.uint64], part: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """One number for two, in this order."""
    keys = (keys ^ part) * np.uint64(0x9E3779B97F4A7C15)
    return keys ^ (keys >> np.uint64(29))


def grouped(keys: NDArray[Any]) -> list[Rows]:
    """Rows that share a key, for each key that more than one has, in the order of the first of them."""
    order = np.argsort(keys, kind="stable")
    cuts = np.flatnonzero(keys[order][1:] != keys[order][:-1]) + 1
    groups = [group for group in np.split(order, cuts) if group.size > 1]
    return sorted(groups, key=lambda group: int(group[0]))
