"""From measured repetitions to the JSON object, the Markdown table and the page it stands on. Nothing is run here."""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from peers.checks import Check
from peers.job import Result

NOTES = {"ppo": "TRL trains its critic in full, ours is an adapter",
         "generate": "the peer's adapter is merged, and its rows stop at the length of ours"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """One row of the table: the same task on both sides, repeated in turn."""

    task: str
    precision: str
    """Of the peer."""
    our_precision: str
    ours: Sequence[Result]
    peer: Sequence[Result]
    checks: Mapping[str, Check]

    @property
    def named_precision(self) -> str:
        """Both, where they differ."""
        same = self.precision == self.our_precision
        return self.precision if same else f"{self.precision}, ours {self.our_precision}"

    @property
    def ok(self) -> bool:
        """Whether both sides did the same work; nothing checked is nothing shown."""
        return bool(self.checks) and all(check.ok for check in self.checks.values())

    def speed_ratios(self) -> list[float]:
        """Ours over the peer's, of each repetition."""
        return [ours.rate / peer.rate for ours, peer in zip(self.ours, self.peer, strict=True)]

    def memory_ratios(self) -> list[float]:
        """The peer's over ours."""
        return [peer.peak_gb / ours.peak_gb for ours, peer in zip(self.ours, self.peer, strict=True)]

    def peak_share(self) -> float:
        """Median share of the matrix-multiply peak that ours reaches."""
        return statistics.median(each.gflop / each.seconds / each.peak_gflops for each in self.ours)


def spread(values: Sequence[float]) -> dict[str, float]:
    """Median, lowest and highest."""
    return {"median": round(statistics.median(values), 4), "low": round(min(values), 4), "high": round(max(values), 4)}


def entry(comparison: Comparison) -> dict[str, Any]:
    """A comparison as JSON."""
    return {"precision": comparison.named_precision, "repetitions": len(comparison.ours),
            "speed_ratio": spread(comparison.speed_ratios()), "memory_ratio": spread(comparison.memory_ratios()),
            "peak_share": round(comparison.peak_share(), 4),
            "same_work": {"ok": comparison.ok,
                          "checks": {name: check._asdict() for name, check in comparison.checks.items()}}}


def as_json(comparisons: Sequence[Comparison]) -> dict[str, Any]:
    """By task. Of two comparisons of a task the first counts: at the same precision on both sides."""
    content: dict[str, Any] = {}
    for comparison in comparisons:
        content.setdefault(comparison.task, entry(comparison))
    return content


def table(comparisons: Sequence[Comparison]) -> str:
    """The comparisons as Markdown, with what each side takes for imports and the model alone, and what was checked."""
    lines = ["| | precision | ours, a second | peer, a second | speed, ours / peer | memory, ours (loaded) | "
             "memory, peer (loaded) | memory, peer / ours | share of peak | same work |", "|---" * 10 + "|"]
    for each in comparisons:
        rates = [statistics.median(result.rate for result in side) for side in (each.ours, each.peer)]
        lines.append("| " + " | ".join([
            each.task, each.named_precision, *(f"{rate:.3g} {UNITS[each.task]}" for rate in rates),
            _said(spread(each.speed_ratios())), memory(each.ours), memory(each.peer),
            _said(spread(each.memory_ratios())), f"{each.peak_share():.0%}", "yes" if each.ok else "NO"]) + " |")
    peaks = {each.our_precision: statistics.median(result.peak_gflops for result in each.ours) for each in comparisons}
    lines += ["", "Peak of one product of 2048 x 576 x 1536: "
              + ", ".join(f"{peak:.0f} GFLOP/s {precision}" for precision, peak in peaks.items()) + "."]
    lines += [f"{task}: {NOTES[task]}." for task in dict.fromkeys(each.task for each in comparisons) if task in NOTES]
    return "\n".join(lines)


def checks_table(comparisons: Sequence[Comparison]) -> str:
    """Every check as Markdown."""
    lines = ["| | check | ours | peer | tolerance | |", "|---" * 6 + "|"]
    for each in comparisons:
        lines += [f"| {each.task}, {each.named_precision} | {name} | {_number(check.ours)} | {_number(check.peer)} | "
                  f"{check.tolerance:.3g} | {'ok' if check.ok else 'DIFFERS'} |" for name, check in each.checks.items()]
    return "\n".join(lines)


UNITS = {"dpo": "pairs", "reward": "pairs", "ppo": "episodes", "generate": "tokens"}


def memory(results: Sequence[Result]) -> str:
    """Median peak, and in brackets what imports and the model alone take, GB."""
    peak, loaded = (statistics.median(getattr(result, name) for result in results) for name in ("peak_gb", "loaded_gb"))
    return f"{peak:.2f} ({loaded:.2f}) GB"


def write_page(path: Path, name: str, text: str, environment: Mapping[str, Any], command: str) -> None:
    """Put `text`, with date, commit, machine and command, in the place `name` of the page, else at its end."""
    versions = ", ".join(f"{package} {version}" for package, version in environment["versions"].items())
    filled = "\n".join([f"{datetime.now(UTC):%Y-%m-%d}, commit {environment['commit']}, {environment['machine']}; "
                        f"{versions}.", "", f"`{command}`", "", text])
    page = path.read_text(encoding="utf-8") if path.is_file() else "# Performance\n"
    unfinished = path.with_name(f".{path.name}.unfinished")
    unfinished.write_text(replaced(page, name, filled), encoding="utf-8")
    unfinished.replace(path)


def replaced(page: str, name: str, text: str) -> str:
    """The page with `text` between the marks of `name`."""
    opening, closing = f"<!-- measured: {name} -->", f"<!-- end: {name} -->"
    block = f"{opening}\n{text}\n{closing}"
    before, found, rest = page.partition(opening)
    if not found:
        return f"{page.rstrip()}\n\n{block}\n"
    _, ended, after = rest.partition(closing)
    if not ended:
        raise SystemExit(f"the page has {opening} without {closing}; put that back, or take both away")
    return before + block + after


def _said(values: Mapping[str, float]) -> str:
    return "{median:.2f} [{low:.2f}, {high:.2f}]".format(**values)


def _number(value: Any) -> str:
    return f"{value:.6g}" if isinstance(value, float) else str(value)
