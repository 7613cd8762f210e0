"""The page of curves: a proxy and what it stands for over the distance from the start. No statistics here."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from rlhflab.analysis.curves import Curve, bounds, says, says_peak
from rlhflab.analysis.figures import Figure, colour, draw, label, short, spoken, vertical
from rlhflab.analysis.overoptimisation import Fit, Form, change
from rlhflab.analysis.page import render_page, write_page

DISTANCE = {"title": {"text": "\u221aKL from the start, \u221anats an answer"}, "rangemode": "tozero"}
SHAPES = ("circle", "square", "diamond", "triangle-up", "cross")
INKS = ("reward", "sft", "dpo", "ppo", "base")
NOTES: Mapping[Form, Sequence[str]] = {
    "best-of-n": (
        "Of n answers to a prompt the one with the highest proxy is taken. Each point is the expectation over all ways "
        "to draw n of the prompt's answers, so one pool serves every n.",
        "Rewards are in deviations of their scores over the whole pool. KL is its upper bound "
        "ln n \u2212 (n \u2212 1)/n, the same at each n whatever the reward."),
    "rl": (
        "Each point is the mean of the answers of some neighbouring steps, less that of the policy as it started.",
        "KL is the mean of log-prob less reference log-prob over whole answers, an estimate that may be off by some "
        "tenths of a nat."),
}
COMMON = ("Bars are 95 % intervals, clustered by prompt. They hold for one point each, not for all at once.",
          "The two part where the one has surely fallen from its best so far while the proxy is surely up, at two "
          "neighbouring points. A fit is read up to one and a half times the largest measured distance.")


def write_curves_page(target: Path, curves: Sequence[Curve], *, name: str, lead: str) -> Path:
    """Write the page and return its path."""
    return write_page(target, render_page("curves.html.j2", {
        "title": f"Reward against what it stands for: {name}", "name": name, "lead": lead, "curves": curves,
        "comparison": comparison(curves) if len(curves) > 1 else None, "notes": [*NOTES[curves[0].way.form], *COMMON],
    }, filters={"says": says, "drawings": drawings, "bounds": bounds, "peak": says_peak}))


def drawings(curve: Curve) -> list[Figure]:
    """One panel a measure, all over the same axis: two scales on one axis would cross where one likes."""
    return [panel(curve, name) for name in dict.fromkeys((curve.proxy, curve.against, *curve.way.series))]


def panel(curve: Curve, name: str) -> Figure:
    """The gain of one measure with its fit and the places that matter."""
    ink = "reward" if name == curve.proxy else "gold" if name == curve.against else "muted"
    distance = curve.way.distances()
    traces, shapes = [points(curve, name, ink=ink)], [horizontal(0)]
    notes = []
    if (fit := curve.fits[name]) is not None:
        traces.append(fitted(fit, float(distance.max()), ink=ink))
        if name == curve.against and fit.peak is not None and 0 < fit.peak.mean <= distance.max():
            shapes.append(vertical(fit.peak.mean))
            notes.append(mark("best, by the fit", fit.peak.mean, 1.0))
    if curve.parting is not None:
        shapes.append(vertical(float(distance[curve.parting.seen])))
        notes.append(mark("parted", float(distance[curve.parting.seen]), 0.08))
    gain = change(curve.way.series[name], len(distance) - 1)
    role = {"reward": "What was optimised.", "gold": "What it stands for."}.get(ink, "")
    return Figure(title=name, note=f"{role} Change from the start; the dotted line is the fit.".strip(), height=260,
                  alt=f"{name} over distance from the start: at the end {spoken(gain)}",
                  json=draw(traces, shapes=shapes, annotations=notes, xaxis=DISTANCE,
                            yaxis={"title": {"text": "change"}}))


def points(curve: Curve, name: str, *, ink: str, shape: str = "circle", shown: str = "") -> dict[str, Any]:
    """The gains with their intervals, joined in the order of the way."""
    series = curve.way.series[name]
    gains = [change(series, i) for i in range(len(curve.way.places))]
    gains[0] = gains[0]._replace(low=0.0, high=0.0)
    known = all(np.isfinite(gain.low) for gain in gains)
    what = "n =" if curve.way.form == "best-of-n" else "steps"
    return {"type": "scatter", "mode": "lines+markers", "x": curve.way.distances().tolist(),
            "y": [gain.mean for gain in gains], "line": {"color": colour(ink), "width": 2},
            "marker": {"size": 7, "symbol": shape, "color": colour(ink)}, "name": shown or label(name),
            "error_y": {"type": "data", "symmetric": False, "visible": known, "color": colour(ink), "width": 3,
                        "thickness": 1.25, "array": [gain.high - gain.mean for gain in gains] if known else [],
                        "arrayminus": [gain.mean - gain.low for gain in gains] if known else []},
            "hovertext": [f"{what} {label(place)}: {spoken(gain)}"
                          for place, gain in zip(curve.way.places, gains, strict=True)],
            "hovertemplate": "%{hovertext}<extra></extra>"}


def fitted(fit: Fit, furthest: float, *, ink: str) -> dict[str, Any]:
    """The fit up to the furthest point."""
    x = np.linspace(0, furthest, 60)
    return {"type": "scatter", "mode": "lines", "x": x.tolist(), "y": fit.coefficients.at(x, fit.form).tolist(),
            "line": {"color": colour(ink), "width": 1.5, "dash": "dot"}, "hoverinfo": "skip"}


def comparison(curves: Sequence[Curve]) -> Figure:
    """What each reward's choice does to one and the same measure."""
    against = curves[0].against
    shared = [curve for curve in curves if curve.against == against]
    traces = [points(curve, against, ink=INKS[i % len(INKS)], shape=SHAPES[i % len(SHAPES)], shown=label(curve.proxy))
              for i, curve in enumerate(shared)]
    ends = [change(curve.way.series[against], len(curve.way.places) - 1) for curve in shared]
    alt = "; ".join(f"by {curve.proxy} at the end {spoken(end)}" for curve, end in zip(shared, ends, strict=True))
    return Figure(title=f"{against}, chosen by each reward", note="Change from one answer drawn at random.", height=320,
                  alt=f"Change of {against}: {alt}",
                  json=draw(traces, shapes=[horizontal(0)], xaxis=DISTANCE, showlegend=True,
                            legend={"orientation": "h", "y": 1.02, "yanchor": "bottom"},
                            yaxis={"title": {"text": "change"}}))


def horizontal(y: float) -> dict[str, Any]:
    """A thin line over the whole width."""
    return {"type": "line", "xref": "paper", "x0": 0, "x1": 1, "y0": y, "y1": y,
            "line": {"color": "var(--line)", "width": 1}}


def mark(text: str, x: float, y: float) -> dict[str, Any]:
    """A word beside a vertical line."""
    return {"text": text, "x": x, "y": y, "yref": "paper", "showarrow": False, "xanchor": "left", "yanchor": "top",
            "xshift": 4, "font": {"size": 11, "color": "var(--muted)"}, "hovertext": short(x)}
