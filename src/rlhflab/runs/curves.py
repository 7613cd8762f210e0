"""`rlhflab curves`: reward against quality over the distance from the start, from what a run's folder holds."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rlhflab.analysis.curves import Curve, curve_of, way_of_metrics, way_of_samples
from rlhflab.analysis.curves_page import write_curves_page
from rlhflab.analysis.evidence import Sample
from rlhflab.analysis.recorded import read_samples, value_of
from rlhflab.analysis.report_data import number, read_rows
from rlhflab.data.formats import finite
from rlhflab.errors import DataError, RunError
from rlhflab.runs.folder import RunFolder

AGAINST = ("gold", "twin")
"""What a reward is measured against where nobody says, the first that is known."""
FILES = ("canary.jsonl", "rollouts.jsonl")
"""The first in which proxy and measure are both known: fixed prompts at every step say more than changing ones."""


def draw_curves(path: Path, *, proxy: str = "reward", against: str | None = None) -> dict[str, Any]:
    """Write `curves.json` and `curves.html` into a run's folder; returns what the first holds.

    DataError or RunError where there is nothing to draw: no rollouts, a measure nobody recorded, too few prompts.
    """
    folder = RunFolder(path)
    if not any(folder.has(name) for name in (*FILES, "metrics.jsonl")):
        raise RunError(f"{path}: holds no {', '.join(FILES)} or metrics.jsonl; give the folder of a run, such as "
                       "runs/my-ppo")
    samples = {name: read_samples(path / name) for name in FILES}
    metrics = read_rows(path / "metrics.jsonl")
    kl = {int(row["step"]): value for row in metrics if "step" in row and (value := number(row.get("kl"))) is not None}
    curve, source = _curve(path, samples, metrics, kl, proxy, against)
    return write_curves(folder, [curve], name=path.resolve().name, lead=f"From {source}.", source=source)


def write_curves(folder: RunFolder, curves: Sequence[Curve], *, name: str, lead: str, **facts: Any) -> dict[str, Any]:
    """Write `curves.json` and `curves.html`; returns what the first holds, and where the second is."""
    found = {**facts, "curves": [curve.as_json() for curve in curves]}
    folder.write_json("curves.json", finite(found))
    page = write_curves_page(folder.path / "curves.html", curves, name=name, lead=lead)
    return {**found, "page": str(page)}


def _curve(path: Path, samples: Mapping[str, Sequence[Sample]], metrics: Sequence[Mapping[str, Any]],
           kl: Mapping[int, float], proxy: str, against: str | None) -> tuple[Curve, str]:
    """The curve, and the file it is from."""
    for name in FILES:
        held = [each for each in samples[name] if value_of(each, proxy) is not None]
        other = next((each for each in ([against] if against else AGAINST)
                      if any(value_of(sample, each) is not None for sample in held)), None)
        if other is not None:
            return curve_of(way_of_samples(held, (proxy, other), kl, pool=name != "canary.jsonl"), proxy, other), name
    if samples["rollouts.jsonl"] and not any(value_of(each, proxy) is not None for each in samples["rollouts.jsonl"]):
        raise DataError(f"{path / 'rollouts.jsonl'}: no rollout has a {proxy!r}, so there is nothing to draw")
    named = {"reward": "proxy"}.get(proxy, proxy)
    other = against or "gold"
    if not any(number(row.get(named)) is not None and number(row.get(other)) is not None for row in metrics):
        raise DataError(f"{path}: nothing on record has both {proxy!r} and {against or ' or '.join(AGAINST)}; what a "
                        "reward stands for is a scenario's gold check, a twin reward model, or another measure that "
                        "--against names")
    return curve_of(way_of_metrics(metrics, (named, other)), named, other), "metrics.jsonl"
