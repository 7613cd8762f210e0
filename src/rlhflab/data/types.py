"""The records of the lab. Text and numbers only: no tensors, no tokenizer, no files."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from rlhflab.errors import RunError

Role = Literal["system", "user", "assistant"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Message:
    """One turn of a conversation."""

    role: Role
    content: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Prompt:
    """What the model is asked: the turns up to, and without, the answer."""

    id: str
    messages: tuple[Message, ...]
    facts: Mapping[str, Any] = field(default_factory=dict)
    """What a scenario or verifier needs to check an answer (JSON values). Never shown to the model."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Conversation:
    """A demonstration for SFT: every assistant turn is learnt, the last turn is the assistant's."""

    id: str
    messages: tuple[Message, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class PreferencePair:
    """Two answers to one prompt, one of them preferred."""

    prompt: Prompt
    chosen: str
    rejected: str
    strength: float = 1.0
    """How clear the preference is, in (0, 1]; scales the reward model's margin."""
    source: str = ""
    """Who preferred: an annotator, a rule, a file."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Thumb:
    """One answer and whether somebody found it good. Nobody compared it with another answer."""

    prompt: Prompt
    answer: str
    good: bool
    source: str = ""
    """Who said so: an annotator, a rule, a file."""


def thumbs_of(pair: PreferencePair) -> tuple[Thumb, Thumb]:
    """The chosen answer as a good one, the rejected answer as a bad one."""
    return (Thumb(prompt=pair.prompt, answer=pair.chosen, good=True, source=pair.source),
            Thumb(prompt=pair.prompt, answer=pair.rejected, good=False, source=pair.source))


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """Two answers to one prompt that somebody is to judge. `a` and `b` carry no order of merit."""

    prompt: Prompt
    a: str
    b: str


Verdict = Literal["a", "b", "tie", "both_bad", "skip"]
"""`a` and `b` name the comparison's answers, whichever side they were shown on."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Judgment:
    """What one annotator said of one comparison. Raw: never edited."""

    verdict: Verdict
    annotator: str
    reason: str = ""
    shown_first: Literal["a", "b"] | None = None
    """The answer on the left or on top; None where nobody wrote it down."""
    strength: float = 1.0
    """How clear the preference is, in (0, 1]."""
    tags: tuple[str, ...] = ()
    """Problems that the annotator saw."""
    seconds: float | None = None
    """Spent on it."""
    at: str | None = None
    """When, ISO 8601, UTC."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Judged:
    """A comparison with everything that was said of it. Pairs are derived from it by a rule that is recorded."""

    comparison: Comparison
    judgments: tuple[Judgment, ...] = ()
    meta: Mapping[str, Any] = field(default_factory=dict)
    """What else the source tells (JSON values)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Score:
    """A number somebody gave an answer. `value` is None where nothing could be scored, never 0.

    RunError for NaN or infinity, so that neither goes into a mean, a cap or, at the next step, every weight.
    """

    value: float | None
    by: str
    reason: str = ""
    members: tuple[float, ...] = ()
    """What each member of an ensemble said."""
    terms: Mapping[str, float] = field(default_factory=dict)
    """What each term of a sum added to the value."""
    state: Any = field(default=None, compare=False, repr=False)
    """The hidden state that a reward role read its score from: NumPy, (d,), float16. None elsewhere."""

    def __post_init__(self) -> None:
        if self.value is not None and not math.isfinite(self.value):
            raise RunError(f"{self.by}: scored an answer {self.value}; a score is a finite number, or None where there "
                           "is none")


@dataclass(frozen=True, slots=True, kw_only=True)
class Rollout:
    """One sampled answer."""

    prompt: Prompt
    prompt_ids: tuple[int, ...]
    token_ids: tuple[int, ...]
    """The answer's tokens, with the end-of-turn token where it stopped by itself."""
    logprobs: tuple[float, ...]
    """Engine log-prob of each token of `token_ids`, nats, at the sampling temperature."""
    text: str
    """The answer without its end-of-turn token."""
    finish: Literal["stop", "length"]
    seed: int | None
    """None for the most likely answer."""

    @property
    def stopped(self) -> bool:
        """Whether the answer ended by itself."""
        return self.finish == "stop"
