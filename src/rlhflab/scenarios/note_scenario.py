"""The note scenario: questions about a short note, its gold verdict and its annotators, for any list of families."""

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random

from rlhflab.data.types import Comparison, Conversation, Judgment, Prompt
from rlhflab.scenarios import annotators, answers, cards
from rlhflab.scenarios.annotators import Annotator
from rlhflab.scenarios.base import Measure, Split, Verdict
from rlhflab.scenarios.checks import MEASURES, verdict
from rlhflab.scenarios.gold import check
from rlhflab.scenarios.notes import Family, make_prompts
from rlhflab.scenarios.splits import every_other_open


@dataclass(frozen=True, slots=True, kw_only=True)
class NoteScenario:
    """Questions about short notes. A second domain is a second list of families."""

    name: str
    about: str
    """What the notes are about, for the data card."""
    families: tuple[Family, ...]
    measures: Sequence[Measure] = MEASURES
    max_new_tokens: int = 48
    annotator: Annotator = annotators.CALIBRATED

    def prompts(self, split: Split, n: int, *, seed: int = 0) -> list[Prompt]:
        """`n` prompts; entities, values and phrasings of the splits are disjoint."""
        return make_prompts(self.name, self.families, split, n, seed=seed)

    def comparison_prompts(self, n: int, *, seed: int = 0) -> list[Prompt]:
        """`n` `rl` prompts, every other one open."""
        return every_other_open(lambda count: self.prompts("rl", count, seed=seed), n)

    def demonstrations(self, n: int, *, seed: int = 0, mixed: float = 0.4) -> list[Conversation]:
        """`n` answers to `train` prompts; a share `mixed` of the answerable ones is confident or verbose."""
        return answers.demonstrations(self.prompts("train", n, seed=seed), answer=answers.demonstration,
                                      share_mixed=mixed, seed=seed)

    def judge(self, prompt: Prompt, answer: str, *, stopped: bool = True) -> Verdict:
        """The gold verdict. `stopped`: the answer ended by itself."""
        return verdict(prompt.facts, check(prompt.facts, answer, stopped=stopped))

    def annotate(self, comparison: Comparison, *, random: Random, dose: float = 0.0) -> Judgment:
        """One simulated annotator's judgment; `dose` scales the calibrated biases (0: unbiased, still noisy)."""
        return annotators.judgment(self.annotator, comparison, check=check, random=random, dose=dose)

    def data_card(self) -> str:
        """What the data is, in Markdown."""
        return cards.data_card(self.name, self.about, self.families)

    def annotator_card(self) -> str:
        """Who the annotators are and how they err, in Markdown."""
        return cards.annotator_card(self.annotator, self.prompts("rl", 400, seed=1), check=check,
                                    sample=answers.like_after_sft, passes="any value of the note or of the right kind")
