"""What a scenario is: prompts, a gold check, demonstrations and annotators. No model, no tensors.

A second scenario is a second file beside `helpdesk.py` that defines one `Scenario` and registers it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from random import Random
from typing import Literal, Protocol

from rlhflab.data.types import Comparison, Conversation, Judgment, Prompt

Split = Literal["train", "rl", "evaluation", "regression"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Measure:
    """One number read off an answer, and which way is better."""

    name: str
    says: str
    """One line for the report, with its unit."""
    better: Literal["higher", "lower"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """Gold verdict on one answer. A measure that does not apply to the prompt is None, never 0."""

    measures: Mapping[str, float | None]
    reason: str
    """In words: what was right or wrong with the answer."""

    @property
    def gold(self) -> float:
        """The composite quality, in [0, 1]."""
        value = self.measures["gold"]
        assert value is not None
        return value


class Scenario(Protocol):
    """A task with a known right answer, so that quality can be measured beside the reward."""

    @property
    def name(self) -> str:
        """As `data:` of a run file gives it."""
        ...

    @property
    def measures(self) -> Sequence[Measure]:
        """What is read off an answer, `gold` first."""
        ...

    @property
    def max_new_tokens(self) -> int:
        """Longest answer to sample, tokens."""
        ...

    def prompts(self, split: Split, n: int, *, seed: int = 0) -> list[Prompt]:
        """`n` prompts; entities, values and phrasings of the splits are disjoint."""
        ...

    def comparison_prompts(self, n: int, *, seed: int = 0) -> list[Prompt]:
        """`n` `rl` prompts whose answers are to be compared, every other one open, that is without an answer in what
        it gives. Preferences on these decide whether a policy goes on to say that it does not know.
        """
        ...

    def demonstrations(self, n: int, *, seed: int = 0, mixed: float = 0.4) -> list[Conversation]:
        """`n` answers to `train` prompts; a share `mixed` of the answerable ones is confident or verbose."""
        ...

    def judge(self, prompt: Prompt, answer: str, *, stopped: bool = True) -> Verdict:
        """The gold verdict. `stopped`: the answer ended by itself."""
        ...

    def annotate(self, comparison: Comparison, *, random: Random, dose: float = 0.0) -> Judgment:
        """One simulated annotator's judgment; `dose` scales the calibrated biases (0: unbiased, still noisy)."""
        ...

    def data_card(self) -> str:
        """What the data is, in Markdown."""
        ...

    def annotator_card(self) -> str:
        """Who the annotators are and how they err, in Markdown."""
        ...
