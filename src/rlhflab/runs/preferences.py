"""On-policy preference pairs: a role answers, simulated annotators judge."""

from collections.abc import Iterable, Sequence
from itertools import combinations
from pathlib import Path
from random import Random
from typing import NamedTuple

from rlhflab.data.formats import Row, prompt_row, read_rows, write_jsonl
from rlhflab.data.types import Comparison, PreferencePair, Prompt, Rollout
from rlhflab.rollout.sampling import sample
from rlhflab.runs.lab import Lab
from rlhflab.scenarios.base import Scenario

SAMPLES = 4
"""Answers a prompt; each two distinct ones are compared."""


OPINIONS = 3
"""Annotators who judge each comparison, each on their own; those who disagree make opposite pairs."""


class Pooled(NamedTuple):
    """The distinct answers to one prompt that can be compared."""

    prompt: Prompt
    answers: tuple[str, ...]


class Collected(NamedTuple):
    """Pairs and what they were made from."""

    pairs: list[PreferencePair]
    pool: list[Pooled]
    counts: dict[str, int]
    """Prompts, answers, answers cut off, comparisons, ties, pairs, tokens."""


def collect_pairs(lab: Lab, task: Scenario, *, role: str | None, prompts: int, seed: int,
                  dose: float = 0.0) -> Collected:
    """Sample from `role` on prompts to compare and let annotators at bias `dose` judge. Ties make no pair."""
    asked = task.comparison_prompts(prompts, seed=seed)
    with lab.progress.track("sampling answers to compare", prompts * SAMPLES) as bar:
        rollouts = sample(lab.model, lab.chat, asked, role=role, samples=SAMPLES, max_new_tokens=task.max_new_tokens,
                          seed=seed, advance=bar.advance)
    pool = pooled(rollouts)
    judged = judge(task, pool, seed=seed, dose=dose)
    return Collected(judged.pairs, pool, {
        "prompts": prompts, "answers": len(rollouts), "answers_cut_off": sum(not r.stopped for r in rollouts),
        "comparisons": judged.comparisons, "ties": judged.ties, "pairs": len(judged.pairs),
        "tokens": sum(len(r.token_ids) for r in rollouts)})


def pooled(rollouts: Sequence[Rollout]) -> list[Pooled]:
    """The answers by prompt, without empty ones and repeats. Annotators read text, cut off or not."""
    groups = [rollouts[i:i + SAMPLES] for i in range(0, len(rollouts), SAMPLES)]
    return [Pooled(group[0].prompt, tuple(dict.fromkeys(r.text for r in group if r.text.strip()))) for group in groups]


class JudgedPool(NamedTuple):
    """What annotators made of a pool."""

    pairs: list[PreferencePair]
    comparisons: int
    ties: int


def judge(task: Scenario, pool: Iterable[Pooled], *, seed: int, dose: float = 0.0) -> JudgedPool:
    """Annotators at bias `dose` judge every two answers to a prompt; the same pool can be judged again by others."""
    random = Random(f"annotators-{seed}")
    comparisons = [Comparison(prompt=each.prompt, a=a, b=b) for each in pool for a, b in combinations(each.answers, 2)]
    judged = [(c, task.annotate(c, random=random, dose=dose)) for c in comparisons for _ in range(OPINIONS)]
    pairs = [PreferencePair(prompt=c.prompt, chosen=c.a if j.verdict == "a" else c.b,
                            rejected=c.b if j.verdict == "a" else c.a, source=j.annotator)
             for c, j in judged if j.verdict in ("a", "b")]
    return JudgedPool(pairs, len(comparisons), len(judged) - len(pairs))


def write_pool(path: Path, pool: Iterable[Pooled]) -> None:
    """One row a prompt, whole or not at all."""
    write_jsonl(path, ({**prompt_row(each.prompt), "answers": list(each.answers)} for each in pool))


def read_pool(path: Path) -> list[Pooled]:
    """What `write_pool` wrote. DataError names file, line and key."""
    return [Pooled(Prompt(id=row.id, messages=row.prompt(), facts=row.facts), _answers(row)) for row in read_rows(path)]


def _answers(row: Row) -> tuple[str, ...]:
    answers = row.values.get("answers")
    if not isinstance(answers, list) or not all(isinstance(answer, str) for answer in answers):
        raise row.wrong("answers", "must be a list of texts")
    return tuple(answers)
