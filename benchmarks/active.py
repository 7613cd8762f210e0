"""Which comparisons to label next: three ways to choose beside drawing at random, at equal labels, on real preferences.

    python benchmarks/active.py [--sets hh_harmless_test ...] [--seeds 10] [--write docs/results/active-selection.md]

Labels that people gave are hidden and shown when asked for. A bag-of-words Bradley-Terry model learns from those shown;
what is measured is its accuracy on prompts that nobody could choose from. Every way starts from the same few random
labels of a seed. No model, no GPU: minutes on one core.
"""

import argparse
import json
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from peers.report import write_page

from rlhflab.analysis.bag_of_words import Vocabulary, fit_preferences
from rlhflab.analysis.selection import (
    PENALTY,
    STRATEGIES,
    TAUGHT,
    Label,
    Pool,
    differences,
    ensemble,
    select,
    towards_preferred,
)
from rlhflab.core.stats import Estimate, mean_interval, paired_change
from rlhflab.data.forms import winner
from rlhflab.runs.comparisons import read_judged

DATA = Path(__file__).parents[2] / "shared" / "data" / "preferences"
SETS = ("tldr_comparisons", "hh_harmless_test", "qa_feedback", "oasst_en_100")
BUDGETS = (50, 100, 200, 400)
"""Labels after each round; the first are drawn at random for every way."""
MOST = 2000
"""Comparisons of a set, at most: drawn once, by prompt."""
TEST = 0.4
"""Share of the prompts that is kept to measure on."""


class Problem(NamedTuple):
    """A set as numbers: what is chosen from, and what is measured on."""

    labels: list[Label]
    features: Any
    texts: Any
    test_features: Any
    """Towards the side that people preferred."""


def main() -> None:
    options = parsed()
    found: dict[str, dict[str, dict[int, list[list[float]]]]] = {}
    for name in options.sets:
        labels = labels_of(DATA / name / "pairs.jsonl")
        for seed in range(options.seeds):
            problem = split(labels, seed)
            for by in STRATEGIES:
                for budget, right in trial(problem, by, options.budgets, seed).items():
                    found.setdefault(name, {}).setdefault(by, {}).setdefault(budget, []).append(right)
        print(f"{name}: {len(labels)} comparisons, {options.seeds} seeds", file=sys.stderr, flush=True)
    text = table(found)
    print(text)
    if options.json:
        options.json.write_text(json.dumps({name: {by: {budget: [float(np.mean(right)) for right in seeds]
                                                        for budget, seeds in budgets.items()}
                                                   for by, budgets in ways.items()} for name, ways in found.items()}))
    if options.write:
        from rlhflab.runs.folder import environment
        write_page(options.write, "active", text, environment(), shlex.join(["python", *sys.argv]))


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sets", nargs="+", choices=SETS, default=list(SETS))
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--budgets", nargs="+", type=int, default=list(BUDGETS))
    parser.add_argument("--write", type=Path, help="page whose place for this table is filled")
    parser.add_argument("--json", type=Path, help="accuracy of each seed")
    return parser.parse_args()


def labels_of(path: Path) -> list[Label]:
    """What people took a side on, of at most `MOST` comparisons."""
    rows = [Label(row.comparison, won == "a") for row in read_judged(path, skip_bad=True)
            if (won := winner(row)) is not None]
    by_prompt: dict[str, list[Label]] = {}
    for row in rows:
        by_prompt.setdefault(repr(row.comparison.prompt.messages), []).append(row)
    order = np.random.default_rng(0).permutation(sorted(by_prompt))
    return [row for prompt in order for row in by_prompt[prompt]][:MOST]


def split(labels: Sequence[Label], seed: int) -> Problem:
    """A pool and a test set that share no prompt. Words are those of the pool, which are known before any label."""
    prompts = sorted({repr(label.comparison.prompt.messages) for label in labels})
    apart = set(np.random.default_rng(1000 + seed).permutation(prompts)[:round(TEST * len(prompts))])
    pool, test = ([label for label in labels if (repr(label.comparison.prompt.messages) in apart) == kept]
                  for kept in (False, True))
    vocabulary = Vocabulary.of([text for label in pool for text in (label.comparison.a, label.comparison.b)])
    whole = ["\n".join([label.comparison.prompt.messages[-1].content, label.comparison.a, label.comparison.b])
             for label in pool]
    unseen = towards_preferred(differences(vocabulary, [label.comparison for label in test]), test)
    return Problem(pool, differences(vocabulary, [label.comparison for label in pool]),
                   Vocabulary.of(whole).tf_idf(whole), unseen)


def trial(problem: Problem, by: Any, budgets: Sequence[int], seed: int) -> dict[int, list[float]]:
    """By number of labels, whether each test comparison is ordered right; equal scores are half right."""
    known: list[int] = np.random.default_rng(seed).permutation(len(problem.labels))[:budgets[0]].tolist()
    found: dict[int, list[float]] = {}
    for i, budget in enumerate(budgets):
        if budget > len(problem.labels):
            break
        if i:
            known += chosen(problem, known, by, budget - len(known), seed + i)
        labels = [problem.labels[k] for k in known]
        weights = fit_preferences(towards_preferred(problem.features[known], labels), penalty=PENALTY)
        found[budget] = (0.5 + 0.5 * np.sign(np.round(problem.test_features @ weights, 9))).tolist()
    return found


def chosen(problem: Problem, known: Sequence[int], by: Any, n: int, seed: int) -> list[int]:
    """What a way asks for next."""
    left = np.setdiff1d(np.arange(len(problem.labels)), known)
    fits = ensemble(problem.features[known], [problem.labels[k] for k in known], members=8, seed=seed) \
        if by in TAUGHT else []
    unseen = problem.features[left]
    gaps = np.stack([unseen @ weights for weights in fits]) if fits else np.zeros((0, len(left)))
    picked = select(Pool(gaps, problem.texts[left], problem.texts[list(known)]), n, by, seed=seed)
    return [int(left[place]) for place in picked]


def table(found: Mapping[str, Mapping[str, Mapping[int, Sequence[Sequence[float]]]]]) -> str:
    """Accuracy by random choice, and each way's paired change from it, over seeds."""
    ways = [by for by in STRATEGIES if by != "random"]
    lines = ["| set | labels | random | " + " | ".join(f"{by.replace('_', ' ')} less random" for by in ways) + " |",
             "|---|---|---|" + "---|" * len(ways)]
    better = worse = 0
    for name, of_way in found.items():
        for budget, base in of_way["random"].items():
            if budget == min(of_way["random"]):
                continue
            means = [float(np.mean(right)) for right in base]
            cells = []
            for by in ways:
                change = paired_change([float(np.mean(right)) for right in of_way[by][budget]], means)
                cells.append(said(change, sign=True))
                better, worse = better + (change.low > 0), worse + (change.high < 0)
            lines.append(f"| {name} | {budget} | {said(mean_interval(means))} | " + " | ".join(cells) + " |")
    asked = sum(len(of_way["random"]) - 1 for of_way in found.values()) * len(ways)
    lines += ["", f"Of {asked} comparisons with random choice, {better} have an interval above 0 and {worse} one "
                  f"below; about {asked * 0.025:.1f} of each would by chance."]
    return "\n".join(lines)


def said(value: Estimate, *, sign: bool = False) -> str:
    plus = "+" if sign else ""
    return f"{value.mean:{plus}.3f} [{value.low:{plus}.3f}, {value.high:{plus}.3f}]"


if __name__ == "__main__":
    main()
