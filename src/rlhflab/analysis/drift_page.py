"""One self-contained HTML file about drift, from the records of `drift.py`. Nothing is computed here.

Names of sides and categories are text nobody vouches for; `page.py` says what keeps them text. No answer is shown.
"""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rlhflab.analysis.drift import VERDICTS
from rlhflab.analysis.figures import Figure, dot, draw, label, line, policy_axis, short, spoken, vertical
from rlhflab.analysis.page import render_page, write_page
from rlhflab.analysis.report_data import estimate
from rlhflab.core.stats import Estimate

NAMES = {"text": "Text", "text_over_prompts": "Text (over prompts)", "embedding": "Embedding",
         "embedding_over_prompts": "Embedding (over prompts)", "length": "Length",
         "length_distribution": "Length (distribution)", "declines": "Declines", "outcome": "Outcome",
         "reward": "Reward", "kl_forward": "Token KL (forward)", "kl_reverse": "Token KL (reverse)",
         "jsd": "Token JSD"}
MOST = 8.0
"""Margins that the figure is wide to each side."""
CLASSES = {"changed": "worse", "too few to say": "unclear", "no difference found": "unclear", "equivalent": "better"}
NOTES = (
    "Changed: p, adjusted over all measures, is below the level, and the change is not within the margin. Equivalent: "
    "the whole interval for equivalence lies within the margin that was named beforehand (two one-sided tests at 5 %, "
    "or the upper bound of a distance). No difference found: neither, although a change as large as the margin would "
    "have been found with a chance of .8. Too few to say: it would not have been.",
    "A permutation moves answers between the sides within a prompt only, so that prompts may differ as they like. p is "
    "adjusted by Holm, which bounds the chance of any false alarm among all measures, however they hang together: "
    "one false alarm holds up a release.",
    "Text is a squared distance by the share of equal characters, or tokens, at the same places. Within prompts it "
    "compares answers to the same prompt; over prompts it finds what many answers share, such as an opening. 0 is "
    "expected where nothing changed, so that it may be negative.",
    "The bands of the stability index are a convention for large samples. With few prompts chance alone reaches them; "
    "what chance gives in 95 of 100 cases stands beside it, and the verdict is that of the permutations.",
    "Token divergences are 0 only between equal models, so that they are tested against the margin, not against 0.",
    "Brackets are 95 % intervals over prompts, for one number each. n counts prompts.")


def says(record: Mapping[str, Any]) -> str:
    """The verdict in a sentence."""
    found: dict[str, list[str]] = {}
    for row in record["measures"]:
        found.setdefault(row["verdict"], []).append(name_of(row["name"]))
    parts = " ".join(f"{verdict.capitalize()}: {', '.join(found[verdict])}."
                     for verdict in VERDICTS if verdict in found)
    head = {"changed": "The answers have changed", "too few to say": "There are too few prompts to say",
            "no difference found": "No difference was found, which is not to say that there is none",
            "equivalent": "The answers are equivalent within the margins"}[record["verdict"]]
    return f"{head} ({record['prompts']} prompts). {parts}"


def name_of(name: str) -> str:
    """A measure in words."""
    return NAMES.get(name, f"Outcome ({name.removeprefix('outcome:')})")


def main_table(record: Mapping[str, Any]) -> list[dict[str, str]]:
    """Every measure as a row, for the terminal."""
    rows = []
    for row in record["measures"]:
        effect = estimate(row["effect"])
        assert effect is not None
        rows.append({"measure": name_of(row["name"]), "verdict": verdict_of(row), "p": p_of(row),
                     "effect": f"{spoken(effect)} {row['unit']}".replace("\u00a0", " "),
                     "margin": f"margin {short(row['margin'])}"})
    return rows


def verdict_of(row: Mapping[str, Any]) -> str:
    """The verdict, with how many prompts it would take."""
    needed = f" (about {row['needed']} prompts needed)" if row["needed"] else ""
    return f"{row['verdict']}{needed}"


def p_of(row: Mapping[str, Any]) -> str:
    """The adjusted p."""
    return f"p {row['p_adjusted']:.2g}" if row["p_adjusted"] >= 1e-4 else "p < .0001"


def write_drift_page(record: Mapping[str, Any], path: Path) -> Path:
    """Write the page of a comparison and return its path."""
    values = {"title": "Drift", "name": f"{record['baseline']} to {record['current']}",
              "lead": f"{record['baseline']} ({record['baseline_answers']} answers) to {record['current']} "
                      f"({record['current_answers']} answers), on {record['prompts']} prompts that both answered",
              "record": record, "remarks": record["notes"], "says": says(record),
              "drawing": margins_figure(record["measures"]), "notes": NOTES,
              "shares": [row for row in record["measures"] if "shares" in row["detail"]], "charts": (), "history": None}
    return write_page(path, render_page("drift.html.j2", values, filters=FILTERS))


FILTERS = {"estimate": estimate, "measure": lambda row: name_of(row["name"]), "verdict": verdict_of, "adjusted": p_of,
           "tone": lambda row: CLASSES[row["verdict"]]}


def margins_figure(rows: Sequence[Mapping[str, Any]]) -> Figure:
    """Every effect with its interval in units of its margin."""
    effects = {name_of(row["name"]): scaled(row) for row in rows}
    traces = [dot(value, place, policy="reward" if row["verdict"] == "changed" else "gold", name=label(name))
              for place, (row, (name, value)) in enumerate(zip(rows, effects.items(), strict=True))]
    return Figure(title="Changes in units of their margins", note=f"Between the dashed lines is within the margin; "
                  f"what lies beyond {MOST:g} margins stands at the edge.", height=80 + 28 * len(rows),
                  alt="Changes in margins: " + "; ".join(f"{name} {spoken(each)}" for name, each in effects.items()),
                  json=draw(traces, yaxis=policy_axis(list(effects)), shapes=[vertical(-1), vertical(1)],
                            xaxis={"range": [-MOST - 0.5, MOST + 0.5], "title": {"text": "margins"}}))


def scaled(row: Mapping[str, Any]) -> Estimate:
    """The effect in margins, at most so many."""
    effect = estimate(row["effect"])
    assert effect is not None
    mean, low, high = (max(-MOST, min(MOST, value / row["margin"])) for value in effect[:3])
    known = math.isfinite(effect.low)
    return Estimate(mean, low if known else -math.inf, high if known else math.inf, effect.n)


# -- over releases ---------------------------------------------------------------------------------------------------


def history_says(charts: Mapping[str, Any]) -> str:
    """What the charts say, with how often they would say it by chance."""
    named = ", ".join(f"{name_of(chart['measure'])}, {chart['side']}, at "
                      f"{charts['releases'][chart['crossed']]}" for chart in charts["charts"] if chart["alarm"])
    shared = (" All of them were compared with the same baseline, whose own scatter they share: take the rate for a "
              "lower bound." if charts["shared_baseline"] else "")
    return (f"{f'In alarm: {named}.' if named else 'No chart is in alarm.'} A chart alarms falsely once in "
            f"{charts['average_run_length']:.0f} releases on average; within these {len(charts['releases'])} with a "
            f"chance of {charts['false_alarm_chance']:.2g}, any of {len(charts['charts'])} charts with at most "
            f"{charts['any_false_alarm_chance']:.2g}.{shared}")


def chart_table(charts: Mapping[str, Any]) -> list[dict[str, str]]:
    """Every chart as a row, for the terminal."""
    return [{"measure": name_of(chart["measure"]), "side": chart["side"],
             "verdict": "alarm" if chart["alarm"] else "ok",
             "chart": " ".join(f"{level:.1f}" for level in chart["chart"]), "limit": f"limit {charts['h']:g}"}
            for chart in charts["charts"]]


def write_history_page(charts: Mapping[str, Any], path: Path) -> Path:
    """Write the page of charts over releases and return its path."""
    values = {"title": "Drift over releases", "name": f"{len(charts['releases'])} releases",
              "lead": " to ".join((charts["releases"][0], charts["releases"][-1])), "record": None, "remarks": (),
              "says": history_says(charts), "drawing": None, "notes": (), "shares": (), "history": charts,
              "charts": [chart_figure(chart, charts["h"]) for chart in charts["charts"]]}
    return write_page(path, render_page("drift.html.j2", values, filters={
        **FILTERS, "chart_rows": chart_table}))


def chart_figure(chart: Mapping[str, Any], limit: float) -> Figure:
    """One chart, with its limit."""
    levels = chart["chart"]
    name = f"{name_of(chart['measure'])}, {chart['side']}"
    bound = {"type": "line", "xref": "paper", "x0": 0, "x1": 1, "y0": limit, "y1": limit,
             "line": {"color": "var(--ink)", "width": 1.25, "dash": "dash"}}
    trace = line(list(range(1, len(levels) + 1)), levels, policy="reward" if chart["alarm"] else "gold", dots=True,
                 hover="release %{x}: %{y:.2f}")
    return Figure(title=name, note="In alarm." if chart["alarm"] else "", height=150,
                  alt=f"{name}: " + ", ".join(short(level) for level in levels) + f"; limit {limit:g}",
                  json=draw([trace], shapes=[bound], xaxis={"nticks": 6, "title": {"text": "release"}},
                            yaxis={"range": [0, max(limit * 1.2, *(level * 1.1 for level in levels))]}))
