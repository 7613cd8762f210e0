"""Commands that decide on a release: evaluate, compare, gate."""

import json
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter
from cyclopts.validators import Number

from rlhflab.commands.shared import (
    DEFAULT_MODEL,
    Count,
    Folder,
    Json,
    Seed,
    print_table,
    print_value,
    quietly,
    registry_folder,
)

BLOCKED = 2
"""Exit code of `gate` for a candidate that does not pass; that of a mistake too, so that either stops a pipeline."""
Samples = Annotated[int, Parameter(validator=Number(gte=0))]


def evaluate_command(target: str = DEFAULT_MODEL, /, *suites: str, n: Count | None = None,
                     samples: Samples | None = None, seed: Seed | None = None, out: Path | None = None,
                     registry: Folder = None, as_json: Json = False) -> None:
    """Measure a model, or an adapter on it, by behaviour suites.

    Answers that were given before are kept and not written again.

    Args:
        target: MODEL, MODEL+ADAPTER, or an adapter that names its base: a folder of any trainer, a name in the
            registry, or DEPLOYMENT@active.
        suites: Names of `rlhflab list suites`, or folders with a suite.yaml; helpdesk where absent.
        n: Prompts of each suite, at most.
        samples: Answers a prompt beside the greedy one, where the suite is to be asked otherwise than it says.
        seed: Of these answers.
        out: The new folder; under runs/ where absent.
        registry: Where names of adapters are looked up; $RLHFLAB_REGISTRY, or registry here, where absent.
        as_json: Print the results as JSON.
    """
    from rlhflab.progress import Progress
    from rlhflab.runs.evaluating import evaluate
    from rlhflab.runs.targets import target_of
    from rlhflab.suites import suite_named

    changes = {key: value for key, value in (("samples", samples), ("seed", seed)) if value is not None}
    chosen = [suite_named(name).first(n).answered(**changes) for name in suites or ("helpdesk",)]
    named = target_of(target, registry=registry_folder(registry))
    folder = quietly(lambda: evaluate(named, chosen, out=out, progress=Progress()))
    results = json.loads((folder / "results.json").read_text())
    if as_json:
        print_value({"folder": str(folder), **results}, True)
        return
    print_value({suite: {metric: found["estimate"] for metric, found in metrics.items()}
                 for suite, metrics in results["suites"].items()}, False)
    print(f"Wrote {folder}. Next: rlhflab gate {target} --against ACTIVE --policy gate.yaml")


def compare_command(*targets: str, suite: str = "general", metric: str | None = None, judge: str | None = None,
                    model: str | None = None, n: Count | None = None, out: Path | None = None,
                    registry: Folder = None, as_json: Json = False) -> None:
    """Rank several adapters of one base by who gives the better answer to each prompt of a suite.

    The better answer is the one a judge prefers in both orders, or the one with the better value of a metric.

    Args:
        targets: Two or more of MODEL, MODEL+ADAPTER, or adapters: folders, names in the registry, or
            DEPLOYMENT@active.
        suite: A name of `rlhflab list suites`, or a folder with a suite.yaml.
        metric: The suite's metric that decides.
        judge: A model that decides instead, by name.
        model: The base of all of them, where it is not the one they name.
        n: Prompts, at most.
        out: The new folder; under runs/ where absent.
        registry: Where names of adapters are looked up; $RLHFLAB_REGISTRY, or registry here, where absent.
        as_json: Print the ranking as JSON.
    """
    from rlhflab.errors import ConfigError
    from rlhflab.progress import Progress
    from rlhflab.runs.comparing import compare
    from rlhflab.runs.targets import target_of
    from rlhflab.suites import suite_named

    if len(targets) < 2 or (metric is None) == (judge is None):
        raise ConfigError("compare: needs two or more models or adapters, and either --metric or --judge")
    asked = suite_named(suite).first(n)
    named = [target_of(each, model=model, registry=registry_folder(registry)) for each in targets]
    folder, record = quietly(lambda: compare(named, asked, metric=metric, judge=judge, out=out, progress=Progress()))
    if as_json:
        print_value({"folder": str(folder), **record}, True)
        return
    print_table([{"name": row["name"], "elo": "{mean:.0f} [{low:.0f}, {high:.0f}]".format(**row["elo"]),
                  "place": f"{row['best']}-{row['worst']}"} for row in record["ranking"]], False)
    print(f"Wrote {folder}. Next: read {folder / 'comparison.json'} for the win rates of each two")


def gate_command(candidate: str, /, *, against: str, policy: str = "gate.yaml", model: str | None = None,
                 out: Path | None = None, registry: Folder = None, as_json: Json = False) -> int:
    """Decide whether a candidate may replace the active model. Exit code 0: it may, 2: it may not.

    Args:
        candidate: MODEL, MODEL+ADAPTER, or an adapter: a folder of any trainer, or a name in the registry.
        against: The active model or adapter, of the same base, such as DEPLOYMENT@active.
        policy: A policy file, or one of those that come along: gate.yaml, demo.yaml.
        model: The base of both, where it is not the one they name.
        out: The new folder; under runs/ where absent.
        registry: Where names of adapters are looked up; $RLHFLAB_REGISTRY, or registry here, where absent.
        as_json: Print the record of the verdict as JSON.
    """
    from rlhflab.analysis.gate_files import power_words, verdict_cells
    from rlhflab.progress import Progress, columns
    from rlhflab.runs.gate import run_gate
    from rlhflab.runs.targets import target_of
    from rlhflab.suites import read_policy

    rules = read_policy(policy)
    one, other = (target_of(each, model=model, registry=registry_folder(registry)) for each in (candidate, against))
    folder, record = quietly(lambda: run_gate(one, other, rules, out=out, progress=Progress()))
    if as_json:
        print_value({"folder": str(folder), **record}, True)
    else:
        print("\n".join(columns(verdict_cells(record))))
        next_step = f"read {folder / 'gate.md'}" if record["blocks"] else f"release {candidate}"
        print(f"Wrote {folder}. The gate's verdict: {record['verdict']}; {power_words(record)}. Next: {next_step}")
    return BLOCKED if record["blocks"] else 0
