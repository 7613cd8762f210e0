"""Ours against a peer on the same work, in turn, each in a process of its own. Prints a Markdown table of ratios.

    python benchmarks/against_peers.py dpo | reward | ppo | generate | all [--json] [--write docs/performance.md]
    python benchmarks/against_peers.py scale [--task dpo]
    python benchmarks/against_peers.py recipe dpo --demo runs/demo-... [--out runs/recipe-dpo]

dpo, reward: TRL 1.16. ppo: TRL 1.12, the last with PPO. generate: transformers. The peers are installed once, with
pinned versions, into environments of their own. docs/performance.md says what is the same on both sides. Leave the
machine alone meanwhile: nothing here can tell what else it does.
"""

import argparse
import json
import os
import shlex
import sys
import tempfile
from pathlib import Path

from peers.compare import PEERS, Bench, Plan, measure
from peers.report import as_json, checks_table, table, write_page

PRECISIONS = ("fp32", "bf16")
DEFAULTS = {"dpo": "bf16", "reward": "bf16", "ppo": "fp32", "generate": "bf16"}
EVERYTHING = [Plan(task=task, precision=precision, our_precision=ours) for task, precision, ours in (
    ("dpo", "bf16", "bf16"), ("reward", "bf16", "bf16"), ("ppo", "fp32", "fp32"), ("ppo", "fp32", "bf16"),
    ("generate", "bf16", "bf16"), ("generate", "fp32", "fp32"))]


def main() -> None:
    options = parser().parse_args()
    cache = options.cache or Path(os.environ.get("RLHFLAB_CACHE", Path.home() / ".cache" / "rlhflab")) / "peers"
    if options.command == "recipe":
        from peers.recipe import run_recipe
        text = run_recipe(options.task, demo=options.demo, out=options.out, cache=cache, every=options.every)
    else:
        with tempfile.TemporaryDirectory(prefix="against-peers-") as temporary:
            bench = bench_of(options, options.work or Path(temporary), cache)
            if options.command == "scale":
                from peers.scale import scale_table
                text = scale_table(bench, options.task, options.precision or DEFAULTS[options.task])
            else:
                comparisons = measure(bench, plans_of(options))
                text = f"{table(comparisons)}\n\n{checks_table(comparisons)}"
                if options.json:
                    print(json.dumps(as_json(comparisons), indent=2))
    print(text, file=sys.stderr if getattr(options, "json", False) else sys.stdout)
    if options.write:
        from rlhflab.runs.folder import environment
        name = f"recipe {options.task}" if options.command == "recipe" else options.command
        write_page(options.write, name, text, environment(), shlex.join(["python", *sys.argv]))


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--cache", type=Path, help="folder of the peers' environments; default: ~/.cache/rlhflab/peers")
    commands = made.add_subparsers(dest="command", required=True)
    for name in (*PEERS, "all", "scale"):
        add_measuring(commands.add_parser(name), name)
    recipe = commands.add_parser("recipe")
    recipe.add_argument("task", choices=("dpo", "ppo"))
    recipe.add_argument("--demo", type=Path, required=True, help="folder of a finished demo: SFT policy, pairs, reward")
    recipe.add_argument("--out", type=Path, help="default: runs/recipe-TASK; goes on with what is there")
    recipe.add_argument("--every", type=int, default=4, help="optimizer steps between two saved policies")
    recipe.add_argument("--write", type=Path)
    return made


def add_measuring(command: argparse.ArgumentParser, name: str) -> None:
    command.add_argument("--model", default="smollm2-135m")
    command.add_argument("--rows", help="JSONL of pairs; default: hh_harmless beside the checkout, or the help desk's")
    command.add_argument("--pairs", type=int, default=16)
    command.add_argument("--episodes", type=int, default=32)
    command.add_argument("--answers", type=int, default=64, help="rows of generation")
    command.add_argument("--batch", type=int, default=8, help="pairs or episodes an optimizer step")
    command.add_argument("--peer-micro", type=int, help="pairs the peer reads at once; default: the batch, as TRL does")
    command.add_argument("--recompute", action="store_true", help="both sides recompute activations")
    command.add_argument("--work", type=Path, help="keep rows, adapters and results in this folder")
    command.add_argument("--write", type=Path, help="page whose place for this command is filled")
    if name == "scale":
        command.add_argument("--task", choices=("dpo", "reward"), default="dpo")
    if name != "all":
        command.add_argument("--precision", choices=PRECISIONS)
    if name != "scale":
        command.add_argument("--repetitions", type=int, default=3)
        command.add_argument("--json", action="store_true", help="print one JSON object on stdout, the table on stderr")
    if name in PEERS:
        command.add_argument("--our-precision", choices=PRECISIONS, help="ours, where it is to differ from the peer's")


def bench_of(options: argparse.Namespace, folder: Path, cache: Path) -> Bench:
    if options.pairs % options.batch or options.episodes % options.batch:
        raise SystemExit(f"--pairs {options.pairs} and --episodes {options.episodes} must be multiples of --batch "
                         f"{options.batch}, so that both sides take the same optimizer steps")
    return Bench(model=options.model, folder=folder.resolve(), cache=cache.resolve(), rows=options.rows,
                 counts={"dpo": options.pairs, "reward": options.pairs, "ppo": options.episodes,
                         "generate": options.answers},
                 batch=options.batch, peer_micro=options.peer_micro or options.batch, recompute=options.recompute,
                 repetitions=getattr(options, "repetitions", 1))


def plans_of(options: argparse.Namespace) -> list[Plan]:
    if options.command == "all":
        return EVERYTHING
    precision = options.precision or DEFAULTS[options.command]
    return [Plan(task=options.command, precision=precision, our_precision=options.our_precision or precision)]


if __name__ == "__main__":
    main()
