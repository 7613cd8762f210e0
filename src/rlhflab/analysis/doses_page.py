"""The page of dose and response, from the record of `doses.py`. Nothing is computed here."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rlhflab.analysis.curves_page import horizontal
from rlhflab.analysis.figures import Figure, colour, draw, spoken
from rlhflab.analysis.hacking import PARTS
from rlhflab.analysis.page import plain, render_page, write_page
from rlhflab.analysis.report_data import estimate
from rlhflab.core.stats import Estimate

NOTES = (
    "Each dose is an experiment of its own: the same start, prompts, seeds, optimiser and steps; only the strength of "
    "the annotators' bias differs. Dose 1 is the bias as it was calibrated, dose 0 is none.",
    "Brackets are 95 % intervals over prompts, a prompt's answers of all seeds taken together; each holds for one "
    "dose. The trend is Page's test on ranks within prompts; the change for one unit of dose is the mean of each "
    "prompt's own straight line.",
    "The proxy of each dose is the reward learnt at that dose, in deviations of the start's scores by it: gains at two "
    "doses are by two rulers. A dose hacks where criteria 1 and 2 of its experiment are both met.")


def write_doses_page(record: Mapping[str, Any], path: Path) -> Path:
    """Write the page and return its path."""
    drawings = [figure for figure in (gains_figure(record, "gold", "Quality", "gold"),
                                      gains_figure(record, "proxy", "Reward", "deviations")) if figure]
    values = {"title": f"Dose and response: {plain(record['arm'])}", "name": str(record["arm"]), "record": record,
              "lead": f"{record['model']}, scenario {record['scenario']}, {len(record['doses'])} doses, "
                      f"{record['prompts']} prompts, {record['seeds']} seed{'s' if record['seeds'] > 1 else ''}",
              "drawings": drawings, "parts": list(PARTS), "notes": NOTES}
    return write_page(path, render_page("doses.html.j2", values, filters={"estimate": estimate}))


def gains_figure(record: Mapping[str, Any], key: str, title: str, unit: str) -> Figure | None:
    """The gain of one measure at every dose that has it; None where none has."""
    gains = {float(row["dose"]): gain for row in record["doses"] if (gain := estimate(row[key])) is not None}
    if not gains:
        return None
    ink = "gold" if key == "gold" else "reward"
    alt = "; ".join(f"dose {dose:g} {spoken(gain)}" for dose, gain in gains.items())
    return Figure(title=f"{title} by dose", note="Change from the start, with 95 % intervals.", height=260,
                  alt=f"Change of {title.lower()} from the start: {alt}",
                  json=draw([points(gains, ink=ink)], shapes=[horizontal(0)],
                            xaxis={"title": {"text": "dose of the annotators' bias"}, "rangemode": "tozero",
                                   "tickvals": list(gains)},
                            yaxis={"title": {"text": f"change, {unit}"}}))


def points(gains: Mapping[float, Estimate], *, ink: str) -> dict[str, Any]:
    """The gains with their intervals, joined in the order of the doses."""
    return {"type": "scatter", "mode": "lines+markers", "x": list(gains), "y": [gain.mean for gain in gains.values()],
            "line": {"color": colour(ink), "width": 2}, "marker": {"size": 8, "color": colour(ink)},
            "error_y": {"type": "data", "symmetric": False, "color": colour(ink), "width": 3, "thickness": 1.25,
                        "array": [gain.high - gain.mean for gain in gains.values()],
                        "arrayminus": [gain.mean - gain.low for gain in gains.values()]},
            "hovertext": [f"dose {dose:g}: {spoken(gain)}" for dose, gain in gains.items()],
            "hovertemplate": "%{hovertext}<extra></extra>"}
