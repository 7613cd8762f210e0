"""On-policy preference pairs: a role answers, simulated annotators judge."""

from collections.abc import Sequence
from itertools import combinations
from random import Random
from typing import NamedTuple

from rlhflab.data.types import Comparison, PreferencePair, Rollout
from rlhflab.rollout.sampling import sample
from rlhflab.runs.lab import Lab
from rlhflab.scenarios.base import Scenario

SAMPLES = 4
"""Answers a prompt; each two distinct ones are compared."""


OPINIONS = 3
"""Annotators who judge each comparison, each on their own; those who disagree make opposite pairs."""


class Collected(NamedTuple):
    """Pairs and what they were made from."""

    pairs: list[PreferencePair]
    rollouts: list[Rollout]
    counts: dict[str, int]
    """Prompts, answers, answers cut off, comparisons, ties, pairs, tokens."""


def collect_pairs(lab: Lab, task: Scenario, *, role: str | None, prompts: int, seed: int,
                  dose: float = 0.0) -> Collected:
    """Sample from `role` on `rl` prompts and let annotators at bias `dose` judge. Ties make no pair."""
    asked = task.prompts("rl", prompts, seed=seed)
    with lab.progress.track("sampling answers to compare", prompts * SAMPLES) as bar:
        rollouts = sample(lab.model, lab.chat, asked, role=role, samples=SAMPLES, max_new_tokens=task.max_new_tokens,
                          seed=seed, advance=bar.advance)
    comparisons = [pair for i in range(0, len(rollouts), SAMPLES) for pair in compare(rollouts[i:i + SAMPLES])]
    random = Random(f"annotators-{seed}")
    judged = [(c, task.annotate(c, random=random, dose=dose)) for c in comparisons for _ in range(OPINIONS)]
    pairs = [PreferencePair(prompt=c.prompt, chosen=c.a if j.verdict == "a" else c.b,
                            rejected=c.b if j.verdict == "a" else c.a, source=j.annotator)
             for c, j in judged if j.verdict in ("a", "b")]
    return Collected(pairs, rollouts, {
        "prompts": prompts, "answers": len(rollouts), "answers_cut_off": sum(not r.stopped for r in rollouts),
        "comparisons": len(comparisons), "ties": len(judged) - len(pairs), "pairs": len(pairs),
        "tokens": sum(len(r.token_ids) for r in rollouts)})


def compare(answers: Sequence[Rollout]) -> list[Comparison]:
    """Every two distinct answers to one prompt. Annotators read text, cut off or not."""
    texts = list(dict.fromkeys(answer.text for answer in answers if answer.text.strip()))
    return [Comparison(prompt=answers[0].prompt, a=a, b=b) for a, b in combinations(texts, 2)]
