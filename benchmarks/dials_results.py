"""The numbers of an experiment with dials as a page and a record.

    python benchmarks/dials_results.py runs/dials-... --write docs/results/dials.md

What stands between the page's marks is written again; dials.json and record.json go into a folder beside it that has
the page's name. Nothing is trained or sampled here.
"""

import argparse
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from peers.report import replaced

from rlhflab.analysis.dials_page import bounds, verdict
from rlhflab.runs.folder import RunFolder


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--write", type=Path, help="a page with the marks; printed where absent")
    options = parser.parse_args()
    folder = RunFolder(options.folder)
    text = "\n\n".join(sections(folder.read_json("dials.json"), folder.read_json("record.json")))
    if options.write is None:
        print(text)
        return
    options.write.write_text(replaced(options.write.read_text(encoding="utf-8"), "dials", text), encoding="utf-8")
    beside = options.write.with_suffix("")
    beside.mkdir(exist_ok=True)
    for name in ("dials.json", "record.json"):
        shutil.copyfile(options.folder / name, beside / name)


def sections(found: Mapping[str, Any], made: Mapping[str, Any]) -> Iterator[str]:
    """The page's text, a part an axis."""
    asked = found["protocol"]
    names = [*asked["margins"], *asked["losses"]]
    versions = ", ".join(f"{name} {made['versions'][name]}" for name in ("torch", "transformers", "peft"))
    yield (f"{made['started'][:10]}, {made['machine']}, commit {made['commit']}, {versions}. {found['model']}, "
           f"scenario {found['scenario']}, seed {found['seed']}; {asked['pairs']} pairs an axis; "
           f"{asked['evaluation_prompts']} prompts x {asked['evaluation_samples']} samples at every strength.")
    if found["quick"]:
        yield "A quick pass through every part. Its numbers say nothing."
    yield "### Criteria\n\n" + table(["dial", "moves its axis one way", "other axes stay", "nothing lost", "bounds"], [
        [axis, *("holds" if result[key] else "fails" for key in ("moves", "stays", "keeps")),
         "; ".join(f"{row['measure']} {bounds(row)}" for row in result["bounds"])]
        for axis, result in found["axes"].items()])
    for axis, result in found["axes"].items():
        yield f"### {axis.capitalize()}, {result['says']}\n\n{verdict(result)}\n\n" + table(["strength", *names], [
            [f"{row['strength']:g}", *(cell(row["measures"][name]) for name in names)] for row in result["strengths"]])


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def cell(rate: Mapping[str, float] | None) -> str:
    return "-" if rate is None else f"{rate['mean']:.2f} [{rate['low']:.2f}, {rate['high']:.2f}], n = {rate['n']}"


if __name__ == "__main__":
    main()
