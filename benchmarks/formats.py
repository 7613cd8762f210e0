"""How much memory and time a million preference pairs take on their way from one kind of file to the next.

    python benchmarks/formats.py --pairs 1000000 --json formats.json

Each step runs in a process of its own, whose peak resident memory the system counts: the rows of a JSONL file read one
after the other, then written as Parquet, from there as CSV, as a JSON list and as JSONL again, which has to equal the
first file. No model and no network. The bound that `--limit` sets, in MiB, makes the exit code 1 where a step is above.
"""

import argparse
import filecmp
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from rlhflab.data.converting import convert
from rlhflab.data.formats import pair_row, write_jsonl
from rlhflab.data.reading import read_items
from rlhflab.data.types import Message, PreferencePair, Prompt

NOTE = ("The note says that the parcel left on Monday, so it should be there by Thursday at the latest; if not, ask "
        "again and name the number on the receipt.")
WORDS = NOTE.split()
STEPS = (("read", "first.jsonl", None), ("convert", "first.jsonl", "second.parquet"),
         ("convert", "second.parquet", "third.csv"), ("convert", "third.csv", "fourth.json"),
         ("convert", "fourth.json", "last.jsonl"))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pairs", type=int, default=1_000_000)
    parser.add_argument("--limit", type=int, default=1024, help="MiB that no step may exceed")
    parser.add_argument("--json", type=Path, help="where the figures go; only on the screen where absent")
    parser.add_argument("--step", nargs=2, type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.step:
        print(json.dumps(step(*options.step)))
        return 0
    with tempfile.TemporaryDirectory() as folder:
        figures = measure(Path(folder), options.pairs)
    if options.json:
        options.json.write_text(json.dumps(figures, indent=2) + "\n")
    return int(any(figure["peak_mib"] > options.limit for figure in figures["steps"]))


def measure(folder: Path, count: int) -> dict:
    write_jsonl(folder / "first.jsonl", (pair_row(pair(number)) for number in range(count)))
    figures = {"pairs": count, "python": sys.version.split()[0], "steps": []}
    for work, source, target in STEPS:
        done = subprocess.run([sys.executable, __file__, "--step", str(folder / source), str(folder / (target or "-"))],
                              capture_output=True, text=True, check=True)
        figure = {"work": work, "from": Path(source).suffix, "to": Path(target).suffix if target else None,
                  "mib": round((folder / source).stat().st_size / 2**20), **json.loads(done.stdout)}
        figures["steps"].append(figure)
        print(f"{work} {source} {target or ''}: {figure['rows']:,} rows, {figure['rows_per_second']:,.0f} rows/s, "
              f"peak {figure['peak_mib']:,.0f} MiB, source {figure['mib']:,} MiB", flush=True)
    figures["equal_at_the_end"] = filecmp.cmp(folder / "first.jsonl", folder / "last.jsonl", shallow=False)
    print(f"equal at the end: {figures['equal_at_the_end']}")
    return figures


def pair(number: int) -> PreferencePair:
    """A pair that no other equals, of about 300 characters."""
    at = number % len(WORDS)
    turned = " ".join(WORDS[at:] + WORDS[:at])
    return PreferencePair(prompt=Prompt(id=f"pair-{number}", messages=(
        Message(role="user", content=f"Where is parcel {number}?"),)), chosen=f"{number}: {turned}",
        rejected=f"{turned} {number}", source=f"w{number % 97}", strength=0.5)


def step(source: Path, target: Path) -> dict:
    started = time.perf_counter()
    rows = sum(1 for _ in read_items(source)) if target.name == "-" else convert(source, target).rows
    seconds = time.perf_counter() - started
    return {"rows": rows, "seconds": round(seconds, 2), "rows_per_second": round(rows / seconds),
            "peak_mib": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)}


if __name__ == "__main__":
    sys.exit(main())
