"""One self-contained HTML page about a data file, from the record of `rlhflab data check`. Nothing is judged here.

Rows of data are text nobody vouches for; `page.py` says what keeps them text.
"""

from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from rlhflab.analysis.figures import Figure, dot, draw, label, policy_axis, short, spoken, vertical
from rlhflab.analysis.page import render_page, write_page
from rlhflab.analysis.report import Tile
from rlhflab.analysis.report_data import estimate
from rlhflab.core.stats import Estimate

ORDER = ("fault", "look", "clean", "not run")
VERDICTS = {"fault": "worse", "look": "moved", "clean": "better", "not run": "unclear"}
"""The class of a verdict's cell."""


def write_data_page(record: Mapping[str, Any], path: Path) -> Path:
    """Write the page of a record and return its path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    return write_page(path, render_page("data_check.html.j2", page(record),
                                        filters={"held": held}))


def page(record: Mapping[str, Any]) -> dict[str, Any]:
    """What the template shows."""
    findings = worst_first(record["findings"])
    details = {finding["name"]: finding["details"] for finding in findings}
    names = ", ".join(Path(name).name for name in record["files"])
    return {"record": record, "title": "What is in the data", "name": names, "classes": VERDICTS,
            "lead": f"{', '.join(record['files'])}: {record['rows']:,} rows", "findings": findings,
            "headline": headline(findings), "tiles": tiles(record), "over": exceeded(record["limits"]),
            "to_look_at": [finding for finding in findings if finding["verdict"] in ("fault", "look")],
            "fault_figure": fault_figure(findings), "length_figures": length_figures(details.get("length_bias", {})),
            "budget_figure": budget_figure(details.get("length_budget", {})),
            "budget": details.get("length_budget", {}),
            "language_figure": language_figure(details.get("languages", {})),
            "secret_kinds": details.get("secrets", {}).get("kinds", {}),
            "suites": details.get("contamination", {}).get("suites", {})}


def worst_first(findings: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Faults before what is to be looked at, and what could not be run last; within them the larger share first."""
    return sorted(findings, key=lambda finding: (ORDER.index(finding["verdict"]),
                                                 -(finding["rate"] or {"mean": 0.0})["mean"]))


def rows_of_findings(record: Mapping[str, Any]) -> list[dict[str, str]]:
    """One row a check, for the terminal."""
    return [{"check": finding["name"], "verdict": finding["verdict"], "says": finding["says"]}
            for finding in worst_first(record["findings"])]


def next_words(record: Mapping[str, Any]) -> str:
    """What to do first."""
    worst = worst_first(record["findings"])[0]
    first = f" Then, {worst['name']}: {worst['next']}" if worst["next"] else ""
    return f"Next: open it in a browser.{first}"


def exceeded(limits: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The limits that the data does not keep."""
    return [limit for limit in limits if limit["exceeded"]]


def headline(findings: Sequence[Mapping[str, Any]]) -> str:
    """What was found, in a sentence."""
    found = {verdict: sum(finding["verdict"] == verdict for finding in findings) for verdict in ORDER}
    ran = len(findings) - found["not run"]
    faults = f"{count(found['fault'], 'check')} found rows to mend or leave out" if found["fault"] else \
        "No row has to be mended or left out"
    look = f", {found['look']} found something to know before training" if found["look"] else ""
    return f"{faults}{look}; {found['clean']} of {ran} found nothing."


def count(n: int, what: str) -> str:
    """`1 check`, `2 checks`."""
    return f"{n:,} {what}{'' if n == 1 else 's'}"


def tiles(record: Mapping[str, Any]) -> list[Tile]:
    """The few numbers to remember."""
    made = [Tile("Rows", f"{record['rows']:,}", ", ".join(f"{n:,} {count_word(kind, n)}"
                                                          for kind, n in record["kinds"].items())),
            Tile("Different prompts", f"{record['prompts']:,}",
                 f"{record['rows'] / max(record['prompts'], 1):.1f} rows each on average")]
    if record["skipped"]:
        made.append(Tile("Rows beside them", f"{record['skipped']:,}", "that are broken, empty or identical"))
    by_name = {finding["name"]: finding for finding in record["findings"]}
    for name, words in (("length_bias", "Longer answer chosen"), ("label_noise", "Judgments that are wrong"),
                        ("position_bias", "First answer chosen")):
        rate = estimate((by_name.get(name) or {}).get("rate"))
        if rate is not None:
            mean, _, rest = spoken(rate).partition(" ")
            made.append(Tile(words, mean, rest))
    return made


def count_word(kind: str, n: int) -> str:
    """A kind of row in the number it needs."""
    return kind if n == 1 else f"{kind}s"


# -- figures -------------------------------------------------------------------------------------------------------


def fault_figure(findings: Sequence[Mapping[str, Any]]) -> Figure | None:
    """The share of rows that each check found at fault, of those that found any."""
    rates = {finding["name"]: rate for finding in findings
             if finding["verdict"] == "fault" and (rate := estimate(finding["rate"]))}
    if not rates:
        return None
    names = list(rates)
    bars = {"type": "bar", "orientation": "h", "y": list(range(len(names))), "width": 0.6,
            "x": [rate.mean for rate in rates.values()], "marker": {"color": "var(--bad)"},
            "error_x": {"type": "data", "symmetric": False, "color": "var(--ink)", "thickness": 1.25, "width": 3,
                        "array": [rate.high - rate.mean for rate in rates.values()],
                        "arrayminus": [rate.mean - rate.low for rate in rates.values()]},
            "text": [spoken(rate) for rate in rates.values()], "textposition": "none",
            "hovertemplate": "%{text}<extra></extra>"}
    alt = "; ".join(f"{name.replace('_', ' ')} {spoken(rate)}" for name, rate in rates.items())
    return Figure(title="Rows to mend or leave out", note="Share found by each check, with 95 % intervals.",
                  alt=f"Share of rows at fault: {alt}", height=64 + 32 * len(names),
                  json=draw([bars], yaxis=policy_axis(names), xaxis={"rangemode": "tozero", "tickformat": ".1%"}))


def length_figures(details: Mapping[str, Any]) -> list[Figure]:
    """Lengths of chosen and rejected answers, and how often the longer one is chosen by how much longer it is."""
    if not details:
        return []
    edges, sides = details["histogram"]["edges"], {"chosen": "var(--dpo)", "rejected": "var(--sft)"}
    middle = [(low + high) / 2 for low, high in pairwise(edges)]
    traces = [{"type": "scatter", "mode": "lines", "x": middle, "y": details["histogram"][side],
               "line": {"color": ink, "width": 2, "shape": "hvh", "dash": "solid" if side == "chosen" else "dot"},
               "hovertemplate": f"{side}, about %{{x:.0f}} characters: %{{y:.1%}}<extra></extra>"}
              for side, ink in sides.items()]
    medians = "; ".join(f"median {side} {median:g} characters"
                        for side, median in zip(sides, details["medians"], strict=True))
    drawn = Figure(title="Lengths of answers", height=230, alt=f"Histogram of lengths: {medians}",
                   note=f"Chosen: full orange line. Rejected: dotted blue line. {medians.capitalize()}. The last bin "
                        "holds all longer ones.",
                   json=draw(traces, xaxis={"title": {"text": "characters"}, "rangemode": "tozero"},
                             yaxis={"tickformat": ".0%", "rangemode": "tozero", "nticks": 4}))
    return [drawn, difference_figure(details["by_difference"])]


def difference_figure(parts: Sequence[Mapping[str, Any]]) -> Figure:
    """How often the longer answer is chosen, for equal shares of the pairs by how much longer it is."""
    known = [(f"{times(part['low'])} to {times(part['high'])} times", found) for part in parts
             if (found := estimate(part["longer_chosen"]))]
    traces = [dot(found, place, policy="reward", name=label(name)) for place, (name, found) in enumerate(known)]
    alt = "; ".join(f"{name} as long: {spoken(found)}" for name, found in known)
    return Figure(title="Longer answer chosen",
                  note="By how many times as long as the other it is; equal shares of the pairs. The dashed line is a "
                       "coin.", alt=f"Longer answer chosen: {alt}", height=70 + 32 * len(known),
                  json=draw(traces, shapes=[vertical(0.5)], yaxis=policy_axis([name for name, _ in known]),
                            xaxis={"range": [-0.03, 1.03]}))


def held(text: str) -> str:
    """A sentence whose per cents stay with their numbers at the end of a line."""
    return text.replace(" %", "\u00a0%")


def times(ratio: float) -> str:
    """`1.3`, `19`, `1,350`."""
    return f"{ratio:.1f}" if ratio < 9.95 else f"{ratio:,.0f}"


def budget_figure(details: Mapping[str, Any]) -> Figure | None:
    """Share of rows that do not fit, by max_length."""
    rows = details.get("budgets", [])
    if not any(row["rows dropped"] for row in rows):
        return None
    names = [f"{row['max_length']:,}" for row in rows]
    bars = {"type": "bar", "x": names, "y": [row["share"] for row in rows], "marker": {"color": "var(--reward)"},
            "width": 0.6, "hovertemplate": "max_length %{x}: %{y:.1%} of the rows do not fit<extra></extra>"}
    alt = "; ".join(f"{name}: {short(row['share'])}" for name, row in zip(names, rows, strict=True))
    return Figure(title="Rows that do not fit", note="By max_length, tokens of prompt and longer answer.",
                  alt=f"Share of rows that do not fit, by max_length: {alt}", height=220,
                  json=draw([bars], xaxis={"type": "category", "title": {"text": "max_length"}},
                            yaxis={"tickformat": ".0%", "rangemode": "tozero", "nticks": 4}))


def language_figure(details: Mapping[str, Any]) -> Figure | None:
    """Sampled rows by language, where there is more than one."""
    counts = details.get("languages", {})
    if len(counts) < 2:
        return None
    names, total = list(counts), details["told"]
    rates = [Estimate(n / total, n / total, n / total, total) for n in counts.values()]
    bars = {"type": "bar", "orientation": "h", "y": list(range(len(names))), "x": [rate.mean for rate in rates],
            "width": 0.6, "marker": {"color": "var(--reward)"}, "text": [f"{n:,} rows" for n in counts.values()],
            "textposition": "none", "hovertemplate": "%{text}<extra></extra>"}
    alt = "; ".join(f"{name} {n} of {total}" for name, n in counts.items())
    return Figure(title="Languages", note=f"Of {total:,} sampled rows whose language can be told.",
                  alt=f"Languages: {alt}", height=64 + 26 * len(names),
                  json=draw([bars], yaxis=policy_axis(names), xaxis={"rangemode": "tozero", "tickformat": ".0%"}))
