"""`rlhflab detect`: the detectors over a run or a file of answers, after the fact."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rlhflab.analysis.detectors import Track, as_row, history
from rlhflab.errors import DataError
from rlhflab.runs.evidence_files import read_evidence
from rlhflab.runs.folder import RunFolder

FINDINGS = "findings.json"
ORDER = ("alarm", "unclear", "ok", "not run")


def detect(path: Path, *, start: Path | None = None, names: Sequence[str] | None = None,
           options: Mapping[str, Mapping[str, Any]] | None = None, every: int = 1, probes: Path | None = None,
           out: Path | None = None) -> dict[str, Any]:
    """What each detector says of a run's folder or a JSONL file at its latest step, and when it first fired.

    `start`, `probes`: as `read_evidence` takes them.

    The findings are also written to `out`, by default `findings.json` in a run's folder; a file's are only returned.
    Alarms come first, then what is unclear.
    """
    if not path.exists():
        raise DataError(f"{path}: no such run folder or file")
    evidence = read_evidence(path, start=start, probes=probes)
    tracks = sorted(history(evidence, names, every=every, options=options),
                    key=lambda track: (ORDER.index(track.latest.verdict), track.fired_at is None))
    result = {"source": str(path), "answers": len(evidence.rollouts),
              "step": max((track.latest.step for track in tracks if track.latest.step is not None), default=None),
              "detectors": [track_row(track) for track in tracks]}
    target = out or (path / FINDINGS if path.is_dir() else None)
    if target is not None:
        RunFolder(target.parent).write_json(target.name, result)
    return {**result, "written": str(target) if target else None}


def track_row(track: Track) -> dict[str, Any]:
    """The latest finding of a detector as JSON, with when it fired and what it said before."""
    before = [{"step": finding.step, "verdict": finding.verdict,
               "mean": as_row(finding)["effect"]["mean"] if finding.effect else None} for finding in track.findings]
    return {**as_row(track.latest), "gold_free": track.gold_free, "first_alarm": track.first_alarm,
            "fired_at": track.fired_at, "history": before}
