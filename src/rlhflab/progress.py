"""Words and progress on stderr: a bar on a terminal, a plain line every few seconds elsewhere. No torch here.

stdout stays free for what a command prints.
"""

import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TextIO

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bars


class Progress:
    """Says what is going on. Pass it down; whoever has a loop to show calls `track`."""

    def __init__(self, stream: TextIO | None = None, *, clock: Callable[[], float] = time.monotonic,
                 every: float = 10.0) -> None:
        """`every`: seconds between two plain lines of one loop."""
        self._console = Console(file=stream or sys.stderr, highlight=False, markup=False, emoji=False,
                                soft_wrap=True)
        self._clock = clock
        self._every = every
        self._bars: Bars | None = None

    def say(self, text: str) -> None:
        """Print one line, above the bars where there are some."""
        self._console.print(text)

    @contextmanager
    def track(self, label: str, total: int | None, *, done: int = 0) -> Iterator["Track"]:
        """Show a loop of `total` rounds: `with progress.track("dpo", 32) as bar: bar.advance(loss=0.61)`.

        `total`: None where nobody knows it, as of the rows of a file. `done`: rounds of an earlier process, which count
        as done but not for the rate. Ends with a line that holds the total time, whether all rounds were done or not.
        Loops may nest.
        """
        bars, outermost = self._bars, self._bars is None and self._console.is_terminal
        if outermost:
            bars = self._bars = Bars(
                TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn(),
                TextColumn("{task.fields[rate]}"), TimeRemainingColumn(),
                TextColumn("{task.fields[numbers]}", markup=False), console=self._console, transient=True)
            bars.start()
        track = Track(self, bars, label, total, done)
        try:
            yield track
        finally:
            track.finish()
            if outermost and bars is not None:
                bars.stop()
                self._bars = None


class Track:
    """One loop on show. Made by `Progress.track`."""

    def __init__(self, progress: Progress, bars: Bars | None, label: str, total: int | None,
                 done: int = 0) -> None:
        self.done, self._before, self._label, self._total, self._numbers = done, done, label, total, ""
        self._progress, self._bars = progress, bars
        self._started = self._said = progress._clock()
        self._bar = bars.add_task(label, total=total, completed=done, rate="", numbers="") if bars else None

    def advance(self, n: int = 1, **numbers: float | None) -> None:
        """`n` rounds are done; `numbers` stand beside the bar, None as a dash."""
        self.done += n
        self._numbers = "  ".join(f"{key} {'-' if value is None else format(value, '.4g')}"
                                  for key, value in numbers.items())
        now = self._progress._clock()
        if self._bars is not None and self._bar is not None:
            self._bars.update(self._bar, completed=self.done, rate=self._rate(now), numbers=self._numbers)
        elif now - self._said >= self._progress._every and (self._total is None or self.done < self._total):
            self._said = now
            rounds = 0 if self._total is None else self._total - self.done
            left = (now - self._started) / max(self.done - self._before, 1) * rounds
            self._say(f"{self._rate(now)}, {in_words(left)} left" if rounds else self._rate(now))

    def finish(self) -> None:
        """Take the bar away and say how long it took."""
        if self._bars is not None and self._bar is not None:
            self._bars.remove_task(self._bar)
        self._say(f"in {in_words(self._progress._clock() - self._started)}")

    def _say(self, timing: str) -> None:
        numbers = f"  {self._numbers}" if self._numbers else ""
        total = "" if self._total is None else f"/{self._total}"
        self._progress.say(f"{self._label}: {self.done}{total} {timing}{numbers}")

    def _rate(self, now: float) -> str:
        rate = (self.done - self._before) / max(now - self._started, 1e-9)
        return f"{rate:.3g}/s" if rate >= 1 else f"{1 / max(rate, 1e-9):.3g} s each"


def in_words(seconds: float) -> str:
    """`in_words(75)` is `1 min 15 s`."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s" if minutes else f"{rest} s"


def columns(rows: Sequence[Sequence[str]]) -> list[str]:
    """Rows of cells as lines whose columns stand under each other; the last column may be long."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
