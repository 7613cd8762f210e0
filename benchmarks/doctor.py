"""Seconds and peak memory of `rlhflab data check` on a generated file of pairs. Prints one JSON object.

    python benchmarks/doctor.py [--pairs 100000] [--bytes 1700] [--model smollm2-135m] [--keep FILE]

Two runs, each in a process of its own: with tokens and without. Both look for near copies. The pairs are words drawn by
their frequency (Zipf) with a fixed seed, about `bytes` a row; 1 % of the rows are copies, 1 % near copies, and .1 %
hold an e-mail address, so the checks have something to find. Leave the machine alone meanwhile.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from random import Random
from typing import Any

LETTERS = "etaoinshrdlucmfwypvbgk"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=100_000)
    parser.add_argument("--bytes", type=int, default=1700)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--keep", type=Path, help="use this file, and write it if it is not there")
    parser.add_argument("--only", choices=["tokens", "no-tokens"])
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="doctor-") as temporary:
        path = options.keep or Path(temporary) / "pairs.jsonl"
        if not path.exists():
            generate(path, options.pairs, options.bytes)
        size = round(path.stat().st_size / 1e6)
        flags = {"tokens": ["--model", options.model], "no-tokens": ["--no-tokens"]}
        results = {name: measured([str(path), *more, "--out", str(Path(temporary) / "page.html")])
                   for name, more in flags.items() if options.only in (None, name)}
    from rlhflab.runs.folder import environment
    print(json.dumps({"megabytes": size, "runs": results, **environment()}, indent=2))


def measured(arguments: list[str]) -> dict[str, Any]:
    """Wall and processor seconds of one command, its peak memory, and what it found."""
    started = time.perf_counter()
    with tempfile.TemporaryFile("w+") as out:
        process = subprocess.Popen([sys.executable, "-m", "rlhflab", "data", "check", *arguments, "--json"], stdout=out)
        _, status, used = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - started
        if status:
            sys.exit("data check failed")
        out.seek(0)
        record = json.load(out)
    found = {row["name"]: row["count"] for row in record["findings"]}
    return {"rows": record["rows"], "seconds": round(seconds, 1),
            "processor_seconds": round(used.ru_utime + used.ru_stime, 1), "peak_gb": round(used.ru_maxrss / 2**20, 2),
            "found": {name: found[name] for name in ("duplicates", "near_duplicates", "secrets")}}


def generate(path: Path, pairs: int, size: int, *, seed: int = 0) -> None:
    """Write the file: about two fifths of a row are its prompt."""
    random = Random(seed)
    vocabulary = ["".join(random.choices(LETTERS, k=random.randint(2, 10))) for _ in range(40_000)]
    weights = [0.0]
    for rank in range(1, len(vocabulary) + 1):
        weights.append(weights[-1] + 1 / rank)
    cumulative = weights[1:]
    words = max(6, round((size - 60) / 7.2))
    previous: dict[str, str] = {}
    with path.open("w", encoding="utf-8") as file:
        for number in range(pairs):
            drawn = random.choices(vocabulary, cum_weights=cumulative, k=words)
            asked, better = words * 2 // 5, words * 7 // 10
            row = {"prompt": sentences(drawn[:asked]), "chosen": sentences(drawn[asked:better]),
                   "rejected": sentences(drawn[better:])}
            if number % 100 == 50:
                row = previous
            elif number % 100 == 51:
                row = {**previous, "prompt": previous["prompt"] + " Thanks."}
            elif number % 1000 == 7:
                row["chosen"] += f" Write to {vocabulary[number % 1000]}@{vocabulary[5]}.net."
            file.write(json.dumps(row) + "\n")
            previous = row


def sentences(words: list[str]) -> str:
    """Words with a capital and a full stop every twelve."""
    parts = [words[i:i + 12] for i in range(0, len(words), 12)]
    return " ".join(f"{' '.join(part).capitalize()}." for part in parts)


if __name__ == "__main__":
    main()
