"""Cost against length, batch and number of pairs, ours and the peer's: one repetition each, told as a table."""

from collections.abc import Sequence
from dataclasses import replace

from peers.compare import Bench
from peers.job import Job, Result

LENGTHS = ((64, 32), (128, 64), (256, 128), (512, 256))
"""Longest prompt and answer, tokens."""
BATCHES = (2, 4, 8, 16)
PAIRS = (8, 16, 32, 64)


def scale_table(bench: Bench, task: str, precision: str) -> str:
    """Seconds a pair and peak memory of both sides, one thing changed at a time."""
    lines = [f"| {task}, {precision} | ours, s a pair | peer, s a pair | speed, ours / peer | ours, GB | peer, GB |",
             "|---" * 6 + "|"]
    for words, bench_of_it, job in variants(bench, task, precision):
        lines.append(row(words, bench_of_it.ours(job), bench_of_it.peer(job)))
    return "\n".join(lines)


def variants(bench: Bench, task: str, precision: str) -> Sequence[tuple[str, Bench, Job]]:
    """(what is changed, the bench, the job). Rows of other lengths are prepared as they come up."""
    made = []
    for lengths in LENGTHS:
        made.append((f"prompt {lengths[0]}, answer {lengths[1]} tokens", bench,
                     replace(bench.job(task, lengths=lengths), precision=precision)))
    for batch in BATCHES:
        # As many pairs as the largest batch, so that the rows are the same; TRL drops no pair of a whole batch.
        wide = replace(bench, batch=batch, peer_micro=batch, counts={**bench.counts, task: max(BATCHES)})
        made.append((f"batch {batch}", wide, replace(wide.job(task), precision=precision)))
    for pairs in PAIRS:
        long = replace(bench, counts={**bench.counts, task: pairs})
        made.append((f"{pairs} pairs", long, replace(long.job(task), precision=precision)))
    return made


def row(words: str, ours: Result, peer: Result) -> str:
    """One line of the table."""
    return (f"| {words} | {1 / ours.rate:.2f} | {1 / peer.rate:.2f} | {ours.rate / peer.rate:.2f} | "
            f"{ours.peak_gb:.2f} | {peer.peak_gb:.2f} |")
