"""What detectors look at, and what they say. Records only: no model, no files, no statistics.

A sample of step 0 comes from the policy as it started; one of step t from the policy before its t-th update, as
`metrics.jsonl` counts them; in a preference run, whose samples are those of its probe, from the policy after it. A row
of `rollouts.jsonl` or `canary.jsonl` in a run's folder is one sample, by the names of its fields, without those that
are empty.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, Literal

from numpy.typing import NDArray

from rlhflab.core.stats import Estimate

Verdict = Literal["alarm", "ok", "unclear", "not run"]
Needs = Literal["rollouts", "rewards", "stops", "tokens", "log-probs", "reference log-probs", "entropies",
                "twin rewards", "members", "terms", "canary", "canary rewards", "hidden states", "probes",
                "pair log-probs"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """One sampled answer and what is known of it."""

    step: int
    prompt_id: str
    answer: str
    prompt: str = ""
    """The last turn that was answered."""
    reward: float | None = None
    """What the run learnt from, before its end rule and its KL term."""
    stopped: bool | None = None
    """Whether it ended by itself."""
    tokens: int | None = None
    logprob: float | None = None
    """Of the whole answer under the policy that wrote it, nats."""
    reference_logprob: float | None = None
    """Of the whole answer under the reference, nats."""
    entropy: float | None = None
    """Mean over its tokens of the entropy of their distributions, nats."""
    twin: float | None = None
    """Score of a second reward model, learnt from other data."""
    members: tuple[float, ...] = ()
    """Scores of an ensemble's members."""
    terms: Mapping[str, float] = field(default_factory=dict)
    """What each term added to the reward."""
    measures: Mapping[str, float | None] = field(default_factory=dict)
    """By a check that knows the right answer, such as a scenario's gold check."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """All that is known of a run up to its latest step. What is empty was not recorded."""

    rollouts: Sequence[Sample]
    """Training rollouts in order of their steps, those of the start first."""
    canary: Sequence[Sample] = ()
    """Answers to the same fixed prompts at some steps, with `measures`."""
    hidden: Mapping[int, NDArray[Any]] = field(default_factory=dict)
    """By step: the last hidden states of its first n rollouts, (n, d), in which the reward model scored them."""
    probes: Mapping[str, Sequence[float]] = field(default_factory=dict)
    """By perturbation: change of the reward model's score, in deviations of its scores, of each perturbed answer."""
    pairs: Sequence[Mapping[str, float]] = ()
    """By step, of a preference run: `step`, `chosen` (log-prob ratio a token of the chosen answers), `margin`."""
    how: Mapping[str, str] = field(default_factory=dict)
    """By need that is not met: how to come by it in this run, where more is known than `NEEDS` says of any."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """What one detector says of the latest step."""

    name: str
    verdict: Verdict
    says: str
    """One sentence with the numbers, for somebody who does not know the method."""
    step: int | None = None
    effect: Estimate | None = None
    """In `unit`, with interval and count."""
    unit: str = ""
    limit: str = ""
    """What would be an alarm."""
    examples: Sequence[str] = ()
    """Answers that show it: text that nobody vouches for."""
    next: str = ""
    """What to do about it."""


def row_of(sample: Sample) -> dict[str, Any]:
    """The sample as JSON can hold it, without what is empty but for an empty answer."""
    values = {field.name: getattr(sample, field.name) for field in fields(sample)}
    return {name: dict(value) if isinstance(value, Mapping) else value
            for name, value in values.items() if name == "answer" or value not in (None, "", (), {})}


def sample_of(row: Mapping[str, Any]) -> Sample:
    """What `row_of` wrote. Raises TypeError for a key that is no field."""
    return Sample(**{**row, "members": tuple(row.get("members", ()))})
