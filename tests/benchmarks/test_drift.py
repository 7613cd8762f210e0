"""`benchmarks/drift.py`: its tables, from made-up versions. The real numbers are the benchmark's own work."""

import csv
import importlib
import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))
bench = importlib.import_module("drift")


@pytest.fixture
def versions(tmp_path):
    """Twelve prompts, which the new version declines."""
    path = tmp_path / "SENSITIVEQ_EVAL.csv"
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["model", "query", "answer", "Response Rate"])
        for i in range(12):
            writer.writerow(["maker/new", f"q{i}", f"I cannot help with {i}.", 0])
            writer.writerow(["maker/old", f"q{i}", f"Here is {i}, I hope it helps.", int(i > 0)])
    return {"SENSITIVEQ_EVAL": bench.read_versions(path, "Response Rate")}


def test_every_two_versions_have_a_row_a_measure(versions):
    lines = bench.pairs_table(versions).splitlines()
    assert len(lines) == 2 + 7 and all("| new | old | 12 |" in line for line in lines[2:])
    declines = next(line for line in lines if "| declines |" in line)
    assert "-1.000 [" in declines and "| changed |" in declines and "exact" in declines
    assert not any("I hope" in line for line in lines), "numbers only"


def test_halves_count_false_alarms_with_their_interval(versions):
    text = bench.halves_table(versions, 4)
    assert "| SENSITIVEQ_EVAL | 6 | 4 | 0.000 [0.000, 0.490] |" in text and "declines 0.000 [0.000, 0.490]" in text


def test_the_rule_is_counted_beside_the_column_of_the_set(versions):
    text = bench.declines_table(versions)
    assert "| does not respond | 12 | 1 |" in text and "| responds | 0 | 11 |" in text
    assert "Same in 0.958 [" in text and "of 24 answers" in text
