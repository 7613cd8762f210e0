"""Named parts of a long job, each done once, with what they took in `summary.json`, so that a stopped job goes on."""

import time
from collections.abc import Callable
from typing import Any

from rlhflab.runs.folder import RunFolder, peak_memory_gb


class StageLog:
    """Owns the `stages` of a summary and writes it after each of them."""

    def __init__(self, folder: RunFolder, summary: dict[str, Any]) -> None:
        """`summary` is filled in place; `folder` keeps it."""
        self.folder, self.summary = folder, summary
        summary.setdefault("stages", [])
        summary.setdefault("peak_memory_gb", 0.0)

    def run(self, name: str, work: Callable[[], int], *, clock: str = "seconds") -> None:
        """Do `work`, which returns the tokens it read or wrote, unless it was done; add its time up under `clock`."""
        if any(stage["name"] == name for stage in self.summary["stages"]):
            return
        began = time.perf_counter()
        tokens = work()
        seconds = time.perf_counter() - began
        self.summary["stages"].append({"name": name, "seconds": round(seconds, 2), "tokens": tokens})
        self.summary[clock] = round(self.summary.get(clock, 0.0) + seconds, 2)
        self.summary["peak_memory_gb"] = max(self.summary["peak_memory_gb"], round(peak_memory_gb(), 3))
        self.folder.write_json("summary.json", self.summary)
