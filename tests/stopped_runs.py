"""What a stopped run is compared by, and how to stop one where a test wants it."""

import json
from pathlib import Path
from typing import Any

import pytest

from rlhflab.train.checkpoint import Checkpoints


def outcome(run: Path) -> dict[str, Any]:
    """Every trained byte and every number but the clock's."""
    weights = {str(path.relative_to(run)): path.read_bytes() for path in sorted(run.glob("roles/*/*"))}
    metrics = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return {"weights": weights, "summary": json.loads((run / "summary.json").read_text()),
            "metrics": [{k: v for k, v in row.items() if k != "seconds"} for row in metrics],
            "hidden": {path.name: path.read_bytes() for path in sorted(run.glob("hidden/*"))},
            **{name: (run / name).read_text() for name in ("rollouts.jsonl", "canary.jsonl", "findings.jsonl")
               if (run / name).exists()}}


def stop_at(step: int, monkeypatch: pytest.MonkeyPatch) -> None:
    keep = Checkpoints.keep

    def stopping(self: Checkpoints, number: int, *rest: Any) -> None:
        keep(self, number, *rest)
        if number == step:
            raise KeyboardInterrupt

    monkeypatch.setattr(Checkpoints, "keep", stopping)
