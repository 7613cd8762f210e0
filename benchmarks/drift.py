"""Drift on real answers: four versions of two served models on fixed prompts, and silence where nothing changed.

    python benchmarks/drift.py --write docs/results/drift.md      two to ten minutes on one core, no model

`pairs` compares every two versions on each set; `halves` splits the prompts of one version at random, pairs the halves
and looks for a change that is not there, `--splits` times over the versions; `declines` counts how often the rule for
answers that decline says what the set's own column says. Numbers only: no answer is shown.
"""

import argparse
import csv
import shlex
import sys
from collections.abc import Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

from rlhflab.analysis.behaviour import declines
from rlhflab.analysis.drift import Reply, draw_halves, drift_record
from rlhflab.core.stats import wilson
from rlhflab.runs.drift_sources import Source, read_replies

SETS = {"SENSITIVEQ_EVAL": "Response Rate", "LEETCODE_EASY_EVAL": "Directly Usable"}
"""File and its own category of an answer."""
PARTS = ("pairs", "halves", "declines")


def main() -> None:
    options = parsed()
    versions = {name: read_versions(options.data / f"{name}.csv", outcome) for name, outcome in SETS.items()}
    made = {"pairs": lambda: pairs_table(versions), "halves": lambda: halves_table(versions, options.splits),
            "declines": lambda: declines_table(versions)}
    for part in options.parts:
        print(text := made[part](), flush=True)
        if options.write:
            from peers.report import write_page

            from rlhflab.runs.folder import environment as machine
            write_page(options.write, part, text, machine(), shlex.join(["python", *sys.argv]))


def parsed() -> argparse.Namespace:
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    made.add_argument("--splits", type=int, default=200, help="random halves, over the versions of a set in turn")
    made.add_argument("--data", type=Path, default=Path(__file__).parents[2] / "shared" / "data" / "drift")
    made.add_argument("--write", type=Path, help="page whose places for these tables are filled")
    return made.parse_args()


def read_versions(path: Path, outcome: str) -> dict[str, list[Reply]]:
    """By version, its answers, oldest name first within a model."""
    with path.open(encoding="utf-8", newline="") as file:
        names = sorted({row["model"] for row in csv.DictReader(file)})
    return {name.rpartition("/")[2]: read_replies(
        Source(name=str(path), kind="file", only=("model", name)), outcomes=(outcome,))[0] for name in names}


# -- every two versions ----------------------------------------------------------------------------------------------


def pairs_table(versions: Mapping[str, Mapping[str, Sequence[Reply]]]) -> str:
    """A row a measure of each pair: p by Holm over the measures of a pair, effect, verdict."""
    lines = ["| set | baseline | current | prompts | measure | p, adjusted | change | margin | verdict |",
             "|---" * 9 + "|"]
    for name, sides in versions.items():
        for before, after in combinations(sides, 2):
            record = drift_record(sides[before], sides[after])
            lines += [f"| {name} | {before} | {after} | {record['prompts']} | {measure_cells(row)} |"
                      for row in record["measures"]]
    return "\n".join(lines)


def measure_cells(row: Mapping[str, Any]) -> str:
    needed = f" ({row['needed']} prompts needed)" if row["needed"] else ""
    p = f"{row['p_adjusted']:.4f}" + (" exact" if row["exact"] else "")
    return (f"{row['name'].replace('_', ' ')} | {p} | {said(row['effect'])} {row['unit']} | {row['margin']:.3g} | "
            f"{row['verdict']}{needed}")


def said(effect: Mapping[str, float]) -> str:
    return f"{effect['mean']:.3f} [{effect['low']:.3f}, {effect['high']:.3f}]"


# -- where nothing changed -------------------------------------------------------------------------------------------


def halves_table(versions: Mapping[str, Mapping[str, Sequence[Reply]]], splits: int) -> str:
    """False alarms over random halves: of any measure by Holm, and of each measure alone at .05."""
    lines = ["| set | prompts a half | splits | any measure, Holm at .05 | " + "a measure alone at .05 |",
             "|---" * 5 + "|"]
    for name, sides in versions.items():
        records = [drift_record(*draw_halves(list(sides.values())[i % len(sides)], seed=i), seed=i)
                   for i in range(splits)]
        any_found = sum(any(row["difference_found"] for row in record["measures"]) for record in records)
        alone: dict[str, int] = {}
        for record in records:
            for row in record["measures"]:
                alone[row["name"]] = alone.get(row["name"], 0) + (row["p"] < 0.05)
        each = "; ".join(f"{measure.replace('_', ' ')} {rate(count, splits)}" for measure, count in alone.items())
        sizes = sorted({record["prompts"] for record in records})
        lines.append(f"| {name} | {' or '.join(map(str, sizes))} | {splits} | {rate(any_found, splits)} | {each} |")
    return "\n".join(lines)


def rate(count: int, n: int) -> str:
    low, high = wilson(float(count), float(n))
    return f"{count / n:.3f} [{low:.3f}, {high:.3f}]"


# -- the rule for answers that decline -------------------------------------------------------------------------------


def declines_table(versions: Mapping[str, Mapping[str, Sequence[Reply]]]) -> str:
    """Beside the column of the set, where 1 is an answer that responds."""
    replies = [reply for side in versions["SENSITIVEQ_EVAL"].values() for reply in side]
    counts = {(label, said_so): sum(reply.outcomes["Response Rate"] == label and declines(reply.text) is said_so
                                    for reply in replies) for label in "01" for said_so in (True, False)}
    right = counts["0", True] + counts["1", False]
    return "\n".join(["| column | rule: declines | rule: answers |", "|---|---|---|",
                      f"| does not respond | {counts['0', True]} | {counts['0', False]} |",
                      f"| responds | {counts['1', True]} | {counts['1', False]} |", "",
                      f"Same in {rate(right, len(replies))} of {len(replies)} answers."])


if __name__ == "__main__":
    main()
