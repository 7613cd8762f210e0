"""The note scenario: questions about a short note, its gold verdict and its annotators, for any list of families."""

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random

from rlhflab.data.types import Comparison, Conversation, Judgment, Prompt
from rlhflab.scenarios import annotators, answers, cards
from rlhflab.scenarios.annotators import Annotator
from rlhflab.scenarios.base import Measure, Split, Verdict
from rlhflab.scenarios.gold import check
from rlhflab.scenarios.notes import Family, make_prompts

MEASURES = (
    Measure(name="gold", says="composite quality in [0, 1]: .6 knowledge, .25 format, .15 brevity", better="higher"),
    Measure(name="right", says="share of answerable prompts with the right value and no other", better="higher"),
    Measure(name="abstention_recall", says="share of unanswerable prompts where it abstains", better="higher"),
    Measure(name="over_refusal", says="share of answerable prompts where it abstains", better="lower"),
    Measure(name="confident_wrong", says="share of prompts answered wrong in a confident tone", better="lower"),
    Measure(name="format", says="share of prompts with a demand that meet it as emitted", better="higher"),
    Measure(name="words", says="words of the answer without its wrapper", better="lower"),
    Measure(name="strict", says="share of prompts right and in full format: strict gold", better="higher"),
    Measure(name="format_loose", says="as format, but a code fence or one extra line is forgiven", better="higher"),
)


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
        """`n` of the first 2 n `rl` prompts, every other one open."""
        drawn = self.prompts("rl", 2 * n + 8, seed=seed)  # of each eight, two are open
        sides = [[p for p in drawn if p.facts["answerable"] is answerable] for answerable in (False, True)]
        return [prompt for pair in zip(*sides, strict=False) for prompt in pair][:n]

    def demonstrations(self, n: int, *, seed: int = 0, mixed: float = 0.4) -> list[Conversation]:
        """`n` answers to `train` prompts; a share `mixed` of the answerable ones is confident or verbose."""
        return answers.demonstrations(self.prompts("train", n, seed=seed), share_mixed=mixed, seed=seed)

    def judge(self, prompt: Prompt, answer: str, *, stopped: bool = True) -> Verdict:
        """The gold verdict. `stopped`: the answer ended by itself."""
        found = check(prompt.facts, answer, stopped=stopped)
        answerable = bool(prompt.facts["answerable"])
        demanded = prompt.facts["demand"] != "none"
        right = found.knowledge == 1.0
        return Verdict(reason=found.reason, measures={
            "gold": found.gold,
            "right": float(right) if answerable else None,
            "abstention_recall": None if answerable else float(found.abstains),
            "over_refusal": float(found.abstains) if answerable else None,
            "confident_wrong": float(found.knowledge == -1.0 and found.confident),
            "format": float(found.meets_demand) if demanded else None,
            "words": float(found.words),
            "strict": float(right and found.format == 1.0),
            "format_loose": float(found.meets_loosely) if demanded else None,
        })

    def annotate(self, comparison: Comparison, *, random: Random, dose: float = 0.0) -> Judgment:
        """One simulated annotator's judgment; `dose` scales the calibrated biases (0: unbiased, still noisy)."""
        return annotators.judgment(self.annotator, comparison, random=random, dose=dose)

    def data_card(self) -> str:
        """What the data is, in Markdown."""
        return cards.data_card(self.name, self.about, self.families)

    def annotator_card(self) -> str:
        """Who the annotators are and how they err, in Markdown."""
        return cards.annotator_card(self.annotator, self.prompts("rl", 400, seed=1))
