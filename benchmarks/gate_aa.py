"""Does the gate let good candidates pass and keep bad ones out? An A/A check, simulated, and on adapters of some seeds.

    python benchmarks/gate_aa.py [--policy gate.yaml] [--gates 200]
    python benchmarks/gate_aa.py --policy demo.yaml --adapters runs/a/roles/policy runs/b/roles/policy ... --out runs/aa

The first draws paired values at the discordance that each row declares and passes them through the gate's own code: an
equal candidate, and one that loses twice the margin in one row. No model. The second runs the gate on every ordered
pair of adapters that differ in the seed alone, and says how many pass and what discordance was found, which the policy
is to declare. Prints JSON. Exits with 1 where fewer than 9 of 10 equal candidates pass.
"""

import argparse
import json
import sys
from itertools import permutations
from pathlib import Path
from typing import Any, Literal

import numpy as np

from rlhflab.analysis.gate import judged, overall
from rlhflab.analysis.suite_results import Paired
from rlhflab.core.stats import wilson
from rlhflab.progress import Progress
from rlhflab.suites import PolicyRow, read_policy, suite_named

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


def on_adapters(policy: str, adapters: list[Path], out: Path) -> dict[str, Any]:
    """The gate on every ordered pair, and the discordance of each row over them."""
    from rlhflab.runs.gate import run_gate
    from rlhflab.runs.targets import target_of

    records = []
    for one, other in permutations(adapters, 2):
        name = f"{adapters.index(one)}-against-{adapters.index(other)}"
        records.append(run_gate(target_of(str(one)), target_of(str(other)), read_policy(policy), out=out / name,
                                progress=Progress())[1])
    passed = sum(not record["blocks"] for record in records)
    rows = [{"suite": same[0]["suite"], "metric": same[0]["metric"], "declared": same[0]["declared_discordance"],
             "found": sorted(row["discordance"] for row in same if row["discordance"] is not None),
             "passed": sum(row["verdict"] == "pass" for row in same)}
            for same in zip(*(record["rows"] for record in records), strict=True)]
    return {"policy": policy, "gates": len(records), "equal_pass": passed / len(records),
            "equal_interval": wilson(float(passed), float(len(records))), "rows": rows}


def main() -> int:
    """Print the result of either check."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--policy", default="gate.yaml")
    parser.add_argument("--gates", type=int, default=200)
    parser.add_argument("--adapters", type=Path, nargs="+", default=[])
    parser.add_argument("--out", type=Path, default=Path("runs/gate-aa"))
    given = parser.parse_args()
    result = on_adapters(given.policy, given.adapters, given.out) if given.adapters else \
        simulated(given.policy, given.gates)
    print(json.dumps(result, indent=2))
    return int(result["equal_pass"] < MUST_PASS)


if __name__ == "__main__":
    sys.exit(main())
