"""One self-contained HTML file about behaviour dials, from the record of `dials.py`. Nothing is computed here.

Answers are text nobody vouches for; `page.py` says what keeps them text.
"""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rlhflab.analysis.figures import Figure, draw, short, spoken
from rlhflab.analysis.page import render_page, write_page
from rlhflab.analysis.report_data import estimate
from rlhflab.core.stats import Estimate

CAVEATS = (
    "The measures are rules on words, not human judgement: a polite answer in other words counts as neither polite nor "
    "rude. Pairs and start are written by rules too, and the measures know the words of those rules.",
    "Criteria and margins were written down in the recipe before the run. Brackets are 95 % intervals, paired "
    "bootstraps over prompts for changes; each holds for one number, not for all of them at once.",
    "Strengths beyond 1 go on in the direction of training, where nothing was trained.")
INKS = {"tone": "var(--ppo)", "verbosity": "var(--dpo)", "clarity": "var(--sft)", "right": "var(--gold)",
        "format": "var(--muted)"}
SYMBOLS = {"tone": "circle", "verbosity": "square", "clarity": "diamond", "right": "triangle-up", "format": "x"}
"""A shape beside the colour, so that a measure is known without seeing colours."""


def write_dials_page(record: Mapping[str, Any], path: Path) -> Path:
    """Write the page of an experiment and return its path."""
    dials = [{**found, "figure": dial_figure(found, record["protocol"]), "verdict": verdict(found),
              "examples": record["examples"][axis]} for axis, found in record["axes"].items()]
    values = {"title": "Behaviour dials", "name": str(record["model"]), "dials": dials, "caveats": CAVEATS,
              "lead": f"{record['model']}, scenario {record['scenario']}, seed {record['seed']}",
              "quick": record["quick"], "names": [*record["protocol"]["margins"], *record["protocol"]["losses"]]}
    return write_page(path, render_page("dials.html.j2", values, filters={"estimate": estimate}))


def verdict(found: Mapping[str, Any]) -> str:
    """What holds and what does not, in a sentence or three."""
    whole = estimate(found["end_to_end"])
    assert whole is not None
    falls = [f"{step['from']:g} to {step['to']:g}" for step in found["steps"] if step["change"]["high"] < 0]
    moves = "It moves its axis one way" if found["moves"] else (
        f"It does not move its axis one way: it falls from {', '.join(falls)}" if falls else
        "It is not shown to move its axis")
    said = [f"{moves} (from end to end {spoken(whole)})."]
    for row in found["bounds"]:
        if not row["holds"]:
            said.append(f"{row['measure']} is not shown to stay within {bounds(row)} at "
                        f"{', '.join(f'{strength:g}' for strength in row['outside_at'])}.".capitalize())
    if found["stays"] and found["keeps"]:
        said.append("The other axes stay within their margins, and right and format lose no more than allowed.")
    return " ".join(said)


def bounds(row: Mapping[str, Any]) -> str:
    """`-0.150 to 0.150`, or `a loss of 0.100`."""
    low = float(row["low"])
    return f"a loss of {short(-low)}" if row["high"] is None else f"{short(low)} to {short(float(row['high']))}"


def dial_figure(found: Mapping[str, Any], protocol: Mapping[str, Any]) -> Figure:
    """Change of every measure from the start over the dial's strength, in units of its margin; the band is +-1."""
    scales = {**protocol["margins"], **protocol["losses"]}
    axis = str(found["axis"])
    traces = [measure_line(name, found["strengths"], scales[name], own=name == axis) for name in scales]
    strengths = [row["strength"] for row in found["strengths"]]
    band = {"type": "rect", "xref": "paper", "x0": 0, "x1": 1, "y0": -1, "y1": 1, "layer": "below",
            "fillcolor": "var(--grid)", "opacity": 0.5, "line": {"width": 0}}
    last = {name: estimate(found["strengths"][-1]["changes"][name]) for name in scales}
    told = "; ".join(f"{name} {spoken(value)}" for name, value in last.items() if value)
    return Figure(
        title=f"The dial of {axis}: {found['says']}", height=320,
        note=f"Change from the start in units of each measure's margin; within the band is within it. The margin of "
             f"{axis} itself, the thick line, is {scales[axis]:g} ({found['unit']}).",
        alt=f"Changes at strength {strengths[-1]:g}: {told}",
        json=draw(traces, shapes=[band], showlegend=True, legend={"orientation": "h", "y": 1.14},
                  xaxis={"title": {"text": "strength"}, "tickvals": strengths},
                  yaxis={"title": {"text": "margins"}}))


def measure_line(name: str, strengths: Sequence[Mapping[str, Any]], scale: float, *, own: bool) -> dict[str, Any]:
    """One measure's changes with their intervals."""
    values = [estimate(row["changes"][name]) or Estimate(math.nan, math.nan, math.nan, 0) for row in strengths]
    return {"type": "scatter", "mode": "lines+markers", "name": name, "x": [row["strength"] for row in strengths],
            "y": [_known(value.mean / scale) for value in values],
            "line": {"color": INKS.get(name, "var(--muted)"), "width": 3.5 if own else 1.5},
            "marker": {"size": 9 if own else 6, "symbol": SYMBOLS.get(name, "circle")},
            "error_y": {"type": "data", "symmetric": False, "thickness": 1.25, "width": 3,
                        "array": [_known((value.high - value.mean) / scale) for value in values],
                        "arrayminus": [_known((value.mean - value.low) / scale) for value in values]},
            "text": [spoken(value) for value in values],
            "hovertemplate": f"{name} at %{{x:g}}: %{{text}}<extra></extra>"}


def _known(value: float) -> float | None:
    return value if math.isfinite(value) else None
