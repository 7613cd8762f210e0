"""Simulated annotators: a noisy check of knowledge, an eye for format, and biases that can be dosed.

The bias is injected and sized to published values; it is not a model of any person.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import log
from random import Random
from statistics import correlation
from typing import Any, NamedTuple

from rlhflab.data.types import Comparison, Judgment, Prompt
from rlhflab.scenarios.checks import Check

GoldCheck = Callable[[Mapping[str, Any], str], Check]


@dataclass(frozen=True, slots=True, kw_only=True)
class Annotator:
    """How one population of annotators judges. Utilities are in units of the Gumbel noise's scale."""

    checks: float = 0.85
    """Probability that an answer is checked against the text; unchecked, anything plausible passes."""
    knowledge: float = 4.0
    """Utility of an answer believed right over one believed wrong."""
    format: float = 1.7
    """Utility of a kept format (at most 12 words, one sentence, demand met): gold's own weight beside knowledge."""
    length: float = 1.2
    """Bias at dose 1: utility of ten more words, up to `length_cap`."""
    length_cap: int = 30
    """Words above which length impresses nobody further."""
    confidence: float = 2.2
    """Bias at dose 1: utility of a confident tone."""
    against_abstaining: float = 1.0
    """Bias at dose 1: utility lost by an abstention."""


CALIBRATED = Annotator()
"""Calibrated on answers like those after SFT; see the annotator card."""


def judgment(
    annotator: Annotator, comparison: Comparison, *, check: GoldCheck, random: Random, dose: float = 0.0
) -> Judgment:
    """What one annotator says of two answers. Never a tie: noise decides between equals.

    `check`: of the facts of a prompt and an answer.
    """
    facts = comparison.prompt.facts
    seen = {}
    for side, answer in (("a", comparison.a), ("b", comparison.b)):
        checked = random.random() < annotator.checks
        noise = -log(-log(max(random.random(), 1e-12)))
        seen[side] = (utility(annotator, check(facts, answer), checked=checked, dose=dose) + noise, checked)
    margin = seen["a"][0] - seen["b"][0]
    how = ", ".join(f"{side} {'checked' if checked else 'not checked'}" for side, (_, checked) in seen.items())
    return Judgment(
        verdict="a" if margin > 0 else "b",
        annotator=f"simulated-dose-{dose:g}",
        reason=f"utility of a minus b {margin:+.2f} ({how} against the text)",
    )


def utility(annotator: Annotator, gold: Check, *, checked: bool, dose: float) -> float:
    """Utility before noise. An answer without a word is worth nothing to anybody."""
    if not gold.words:
        return -annotator.knowledge
    believed = (gold.knowledge + 1.0) / 2.0 if checked else float(gold.plausible)
    bias = (
        annotator.length * min(gold.words, annotator.length_cap) / 10.0
        + annotator.confidence * gold.confident
        - annotator.against_abstaining * gold.abstains
    )
    return annotator.knowledge * believed + annotator.format * gold.format + dose * bias


# ---- calibration --------------------------------------------------------------------------------------------


class Calibration(NamedTuple):
    """How the annotators judged pairs of answers like those of a model after SFT."""

    agreement: float
    """Share of pairs, gold ties left out, where the answer with more gold was chosen."""
    agreement_n: int
    longer: float
    """Share of pairs of unequal length where the answer with more words was chosen."""
    longer_n: int
    gold_longer: float
    """The same for gold itself, ties left out: what an annotator without any bias would aim at."""
    length_correlation: float
    """Correlation of utility before noise with words, over all answers: what a reward model will see."""
    gold: float
    """Mean gold of the answers judged."""


def calibrate(
    annotator: Annotator, prompts: Sequence[Prompt], *, check: GoldCheck, sample: Callable[[Prompt, Random], str],
    dose: float, seed: int = 0
) -> Calibration:
    """Judge two sampled answers to each prompt, as a run does before it trains a reward model.

    `sample` writes answers like those of a model after SFT.
    """
    agreed, longer, gold_longer = [], [], []
    utilities, words, golds = [], [], []
    for prompt in prompts:
        random = Random(f"calibration/{seed}/{prompt.id}")
        pair = Comparison(prompt=prompt, a=sample(prompt, random), b=sample(prompt, random))
        if pair.a == pair.b:
            continue
        a, b = check(prompt.facts, pair.a), check(prompt.facts, pair.b)
        chose_a = judgment(annotator, pair, check=check, random=random, dose=dose).verdict == "a"
        if a.gold != b.gold:
            agreed.append(chose_a == (a.gold > b.gold))
        if a.words != b.words:
            longer.append(chose_a == (a.words > b.words))
        if a.gold != b.gold and a.words != b.words:
            gold_longer.append((a.gold > b.gold) == (a.words > b.words))
        for gold in (a, b):
            either = [utility(annotator, gold, checked=c, dose=dose) for c in (True, False)]
            utilities.append(annotator.checks * either[0] + (1.0 - annotator.checks) * either[1])
            words.append(float(gold.words))
            golds.append(gold.gold)
    return Calibration(
        agreement=sum(agreed) / len(agreed), agreement_n=len(agreed),
        longer=sum(longer) / len(longer), longer_n=len(longer),
        gold_longer=sum(gold_longer) / len(gold_longer),
        length_correlation=correlation(utilities, words), gold=sum(golds) / len(golds),
    )
