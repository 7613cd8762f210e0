"""Does the gate let good candidates pass and keep bad ones out? An A/A check, simulated, and on adapters of some seeds.

    python benchmarks/gate_aa.py [--policy gate.yaml demo.yaml] [--gates 200] [--write docs/results/gate-aa.md]
    python benchmarks/gate_aa.py --train 4 --device cuda --out runs/gate-aa --write docs/results/gate-aa.md
    python benchmarks/gate_aa.py --adapters runs/a/roles/policy runs/b/roles/policy ... --out runs/gate-aa

The first draws paired values at the discordance that each row declares and passes them through the gate's own code: an
equal candidate, and one that loses twice the margin in one row. No model. The others run the gate on every ordered
pair of adapters that differ in the seed alone, which --train makes by a recipe, and say how many pass and what
discordance was found, which the policy is to declare. What lies in --out already is not done again, so a command that
was stopped goes on. Prints JSON. Exits with 1 where fewer than 9 of 10 equal candidates pass.
"""

import argparse
import json
import shlex
import sys
from collections.abc import Mapping, Sequence
from itertools import permutations
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from rlhflab.analysis.gate import judged, overall
from rlhflab.analysis.suite_results import Paired
from rlhflab.core.stats import items_needed, wilson
from rlhflab.suites import PolicyRow, read_policy, suite_named

if TYPE_CHECKING:
    from rlhflab.runs.lab import Lab

Better = Literal["higher", "lower"]
MUST_PASS = 0.9
SCORED_PAIRS = 0.6
"""Share of pressed questions whose plain form is taken to be answered right, so that they count."""


def items_of(row: PolicyRow, prompts: int | None) -> int:
    """Items a row has by the policy: of pressed questions those that count."""
    suite = suite_named(row.suite).first(prompts)
    metric = suite.metrics.get(row.metric)
    return int(len(suite.prompts) / 2 * SCORED_PAIRS) if metric and metric.of == "pair" else len(suite.prompts)


def drawn(row: PolicyRow, n: int, loss: float, better: Better, rng: np.random.Generator) -> Paired:
    """Paired values at the declared discordance whose mean is worse by `loss` (a share of the mean where relative)."""
    sign = -1 if better == "higher" else 1
    discordance = row.discordance or 0.05
    if row.test == "exact":
        values = np.ones(n)
        values[0] -= loss > 0
        return _paired(values, values)
    if row.test == "no_new_failures":
        worse, rise = discordance + loss, 0.0
    elif row.relative or row.metric == "nats_a_token":
        mean = 20.0 if row.relative else 3.0
        before = rng.normal(mean, mean / 4, n).clip(mean / 10)
        scale = mean if row.relative else 1.0
        return _paired(before + scale * (sign * loss + discordance**0.5 * rng.normal(size=n)), before)
    else:
        worse, rise = max(discordance, loss) / 2 + loss / 2, max(discordance, loss) / 2 - loss / 2
    change = rng.choice([-1, 1, 0], size=n, p=[worse, rise, 1 - worse - rise])
    before = np.where(change == 0, rng.random(n) < 0.7, change < 0).astype(float)
    after = before + change
    return _paired(after, before) if better == "higher" else _paired(1 - after, 1 - before)


def _paired(after: Any, before: Any) -> Paired:
    return Paired([float(each) for each in after], [float(each) for each in before], list(range(len(after))), 0,
                  len(after))


def simulated(policy: str, gates: int, seed: int = 0) -> dict[str, Any]:
    """Share of equal candidates that pass the whole gate, and of those with one bad row that pass all the same."""
    rules, rng = read_policy(policy).policy, np.random.default_rng(seed)
    ways = [suite_named(row.suite).better(row.metric) for row in rules.rows]
    sizes = [items_of(row, rules.prompts.get(row.suite)) for row in rules.rows]
    blocking = [i for i, row in enumerate(rules.rows) if row.blocking]

    def passes(bad: int | None) -> bool:
        values = [drawn(row, n, 2 * (row.margin or 1) if i == bad else 0.0, way, rng)
                  for i, (row, n, way) in enumerate(zip(rules.rows, sizes, ways, strict=True))]
        return overall(judged(rules, values, ways)) == "pass"

    equal = sum(passes(None) for _ in range(gates))
    bad = sum(passes(blocking[i % len(blocking)]) for i in range(gates))
    return {"policy": policy, "gates": gates,
            "equal_pass": equal / gates, "equal_interval": wilson(float(equal), float(gates)),
            "one_bad_row_pass": bad / gates, "one_bad_row_interval": wilson(float(bad), float(gates))}


# -- on adapters -----------------------------------------------------------------------------------------------------


def trained(lab: "Lab", kind: str, seeds: int, out: Path, flags: Sequence[str]) -> list[Path]:
    """Adapters of as many seeds by the recipe `kind`; those that are there already are taken as they are."""
    from rlhflab.config import read_run
    from rlhflab.runs.folder import RunFolder
    from rlhflab.runs.recipes import recipe
    from rlhflab.runs.stages import run_stage

    made = []
    for seed in range(seeds):
        home = out / f"{kind}-{seed}"
        if not (home / "summary.json").is_file():
            home.mkdir(parents=True, exist_ok=True)
            run = read_run(kind, recipe(kind), ["--model", lab.model.base.name, "--seed", str(seed), *flags])
            run_stage(run, lab, RunFolder(home))
        made.append(home / "roles" / "policy")
    return made


def on_adapters(policy: str, adapters: list[Path], out: Path, lab: "Lab") -> dict[str, Any]:
    """The gate on every ordered pair, and the discordance of each row over them."""
    from rlhflab.runs.folder import RunFolder
    from rlhflab.runs.gate import gate_with
    from rlhflab.runs.targets import Target

    rules, records, home = read_policy(policy), [], RunFolder(out / Path(policy).stem)
    for one, other in permutations(range(len(adapters)), 2):
        name = f"{one}-against-{other}"
        if not home.has(f"{name}/gate.json"):
            home.discard(name)  # begun by a command that was stopped
            candidate, active = (Target(lab.model.base.name, adapters[i], str(i)) for i in (one, other))
            gate_with(lab, candidate, active, rules, RunFolder.create(home.path / name))
        records.append(home.read_json(f"{name}/gate.json"))
        if records[-1]["policy_digest"] != rules.digest:
            raise SystemExit(f"{home.path / name}: is a verdict by another version of {policy}; give another --out")
    passed = sum(not record["blocks"] for record in records)
    rows = [found_row(row, same) for row, same in zip(
        rules.policy.rows, zip(*(record["rows"] for record in records), strict=True), strict=True)]
    return {"policy": policy, "gates": len(records), "equal_pass": passed / len(records),
            "equal_interval": wilson(float(passed), float(len(records))), "rows": rows,
            "seconds": sum(record["seconds"] for record in records),
            "answers": sum(record["answers_written"] for record in records),
            "tokens": sum(record["tokens_written"] for record in records)}


def found_row(row: PolicyRow, same: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What one row found over the gates, in the units of what it declares."""
    key = "change" if row.test == "no_new_failures" else "discordance"
    found = sorted(each[key] for each in same if each[key] is not None)
    most = found[-1] if found else None
    needs = None if most is None or row.margin is None or row.test != "non_inferior" else \
        items_needed(most, row.margin) if most else 1
    return {"suite": row.suite, "metric": row.metric, "test": row.test, "margin": row.margin,
            "declared": row.discordance, "n": min(each["n"] for each in same), "found": found,
            "needs": needs, "blocking": sum(each["blocking"] for each in same),
            "passed": sum(each["verdict"] == "pass" for each in same), "gates": len(same)}


# -- what is printed and written -------------------------------------------------------------------------------------


def adapters_table(results: Sequence[Mapping[str, Any]], told: str) -> str:
    """A table a policy: declared against found, and how many equal candidates pass each row."""
    parts = [told]
    for result in results:
        parts += ["", f"**{result['policy']}**: {said(result)} of {result['gates']} gates of equal candidates pass; "
                  f"{result['answers']} answers of {result['tokens']} tokens in {result['seconds']:.0f} s, those given "
                  "before not counted.", "",
                  "| row | test | margin | declared | found: median, most | prompts, fewest | prompts needed at the "
                  "most | had the power to block | passed |", "|---" * 9 + "|"]
        parts += [f"| {row['suite']}: {row['metric']} | {row['test']} | {number(row['margin'])} | "
                  f"{number(row['declared'])} | {spread(row['found'])} | {row['n']} | {row['needs'] or '-'} | "
                  f"{row['blocking']} of {row['gates']} | {row['passed']} of {row['gates']} |"
                  for row in result["rows"]]
    return "\n".join(parts)


def simulated_table(results: Sequence[Mapping[str, Any]]) -> str:
    """How many drawn candidates pass each policy."""
    lines = ["| policy | gates | equal candidates that pass | candidates with one bad row that pass |",
             "|---" * 4 + "|"]
    return "\n".join(lines + [f"| {each['policy']} | {each['gates']} | {said(each)} | {said(each, 'one_bad_row')} |"
                              for each in results])


def said(result: Mapping[str, Any], what: str = "equal") -> str:
    low, high = result[f"{what}_interval"]
    return f"{result[f'{what}_pass']:.3f} [{low:.3f}, {high:.3f}]"


def number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3g}"


def spread(found: Sequence[float]) -> str:
    return f"{number(median(found))}, {number(found[-1])}" if found else "-"


def parsed(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--policy", nargs="+", default=["gate.yaml", "demo.yaml"])
    parser.add_argument("--gates", type=int, default=200, help="drawn pairs, where no adapters are given")
    parser.add_argument("--adapters", type=Path, nargs="+", default=[])
    parser.add_argument("--train", type=int, default=0, metavar="SEEDS", help="make the adapters, one a seed")
    parser.add_argument("--kind", default="sft", help="recipe by which --train makes them")
    parser.add_argument("--flags", nargs=argparse.REMAINDER, default=[], help="flags of that recipe; comes last")
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--out", type=Path, default=Path("runs/gate-aa"))
    parser.add_argument("--write", type=Path, help="page whose place for the table is filled")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the result of either check."""
    given = parsed(arguments)
    if given.adapters or given.train:
        from rlhflab.progress import Progress
        from rlhflab.runs.lab import Lab

        if len(given.adapters) == 1 or (not given.adapters and given.train < 2):
            raise SystemExit("two adapters or more are needed, so that one can stand against another")
        lab = Lab.load(given.model, dtype=given.dtype, device=given.device, progress=Progress())
        adapters = given.adapters or trained(lab, given.kind, given.train, given.out, given.flags)
        results = [on_adapters(policy, adapters, given.out, lab) for policy in given.policy]
        made = f"{len(adapters)} adapters" if given.adapters else \
            f"{given.train} seeds of the recipe {given.kind} on {given.model}"
        part, text = "adapters", adapters_table(results, f"{made}, {lab.model.device}, "
                                                f"{str(lab.model.unembedding.dtype).removeprefix('torch.')}.")
    else:
        results = [simulated(policy, given.gates) for policy in given.policy]
        part, text = "simulated", simulated_table(results)
    print(json.dumps(results, indent=2))
    if given.write:
        from peers.report import write_page

        from rlhflab.runs.folder import environment
        write_page(given.write, part, text, environment(), shlex.join(["python", *sys.argv]))
    return int(any(result["equal_pass"] < MUST_PASS for result in results))


if __name__ == "__main__":
    sys.exit(main())
