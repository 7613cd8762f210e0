"""One self-contained HTML file about annotators, from the record of `agreement.py`. Nothing is computed here.

Names of annotators are text nobody vouches for; `page.py` says what keeps them text.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rlhflab.analysis.figures import Figure, dot, draw, label, policy_axis, short, spoken, vertical
from rlhflab.analysis.page import render_page, write_page
from rlhflab.analysis.report import Tile
from rlhflab.analysis.report_data import estimate
from rlhflab.analysis.reward_page import rate_tile

MEASURES = {"raw": "same verdict, any two opinions", "cohen_kappa": "Cohen's kappa, pairs of annotators",
            "fleiss_kappa": "Fleiss' kappa", "alpha_nominal": "Krippendorff's alpha, nominal",
            "alpha_ordinal": "Krippendorff's alpha, ordinal", "alpha_interval": "Krippendorff's alpha, with strengths"}
NOISE = {"agreement_on_sides": "same side, any two opinions that take one",
         "flipped": "flipped labels, by agreement", "flipped_dawid_skene": "flipped labels, by Dawid and Skene",
         "majority_flipped": "flipped majority labels, by Dawid and Skene"}
HABITS = {"first_preferred": "the answer shown first was preferred",
          "longer_preferred": "the longer answer was preferred"}
COLUMNS = {"reliability": "Reliability", "agrees_with_others": "Agrees with the others",
           "first_preferred": "Prefers the first", "longer_preferred": "Prefers the longer"}
DRAWN = 30
"""Annotators in the figure, at most, the busiest; the table has all."""
CONFUSED = 12
"""Annotators whose confusion is shown, the busiest."""
NOTES = (
    "Kappa and alpha are 1 where all agree and 0 where they agree as often as chance would have them. Cohen's is the "
    "mean over pairs of annotators that share ten comparisons or more; the others take any number of opinions a "
    "comparison.",
    "Flipped labels by agreement: two people who each err with probability e take the same side with A = e\u00b2 + "
    "(1 \u2212 e)\u00b2. A bias that they share raises A, and hides in it.",
    "Reliability is the expected share of an annotator's verdicts that are the truth by the model of Dawid and Skene "
    "(1979), on comparisons that others judged too. The model takes what reliable annotators say for the truth. "
    "Agreement with the others needs no model.",
    "Brackets are 95 % intervals, clustered by comparison: bootstrap for agreement, Fleiss' kappa and alpha; jackknife "
    "for Cohen's kappa and the model. They hold for one number each, not for all at once.")


def write_agreement_page(record: Mapping[str, Any], path: Path) -> Path:
    """Write the page of a record and return its path."""
    return write_page(path, render_page("agreement.html.j2", page(record), filters={"estimate": estimate}))


def page(record: Mapping[str, Any]) -> dict[str, Any]:
    """What the template shows."""
    shown = record["annotators"]
    return {"record": record, "title": "How far annotators agree", "name": str(record["data"]),
            "lead": f"{record['data']}: {record['opinions']} opinions of {len(shown)} annotators on "
                    f"{record['judged']} comparisons, {record['judged_twice']} of them with two or more",
            "tiles": tiles(record), "measures": known(record["agreement"], MEASURES),
            "noise": known(record["noise"], NOISE), "habits": known(record["habits"], HABITS),
            "drawing": reliability_figure(shown[:DRAWN]) if any(row["reliability"] for row in shown) else None,
            "columns": COLUMNS, "confused": [row for row in shown[:CONFUSED] if row["reliability"]],
            "drawn": min(DRAWN, len(shown)), "notes": NOTES}


def known(values: Mapping[str, Any], names: Mapping[str, str]) -> dict[str, Any]:
    """The estimates that there are, by their words."""
    return {words: found for key, words in names.items() if (found := estimate(values[key]))}


def tiles(record: Mapping[str, Any]) -> list[Tile]:
    """The few numbers to remember."""
    habits = record["habits"]
    parts = {"Krippendorff's alpha": record["agreement"]["alpha_nominal"], "Flipped labels": record["noise"]["flipped"],
             "First answer preferred": habits["first_preferred"], "Longer answer preferred": habits["longer_preferred"]}
    made = [rate_tile(name, value) for name, value in parts.items() if value]
    if record["noise"]["noise_ceiling"]:
        made.insert(2, Tile("Noise ceiling", short(record["noise"]["noise_ceiling"]["accuracy"]),
                            "what a perfect reward model would reach on single labels"))
    if seconds := habits["seconds"]:
        made.append(Tile("Seconds an opinion", f"{seconds['median']:.0f}",
                         f"half between {seconds['quarter']:.0f} and {seconds['three_quarters']:.0f}, "
                         f"n = {seconds['n']}"))
    return made


def reliability_figure(rows: Sequence[Mapping[str, Any]]) -> Figure:
    """Each annotator's reliability with its interval, the busiest on top."""
    found = [(row["name"], value) for row in rows if (value := estimate(row["reliability"]))]
    traces = [dot(value, place, policy="gold", name=label(name)) for place, (name, value) in enumerate(found)]
    axis = policy_axis([name for name, _ in found])
    return Figure(title="Reliability", note="Expected share of true verdicts; the dashed line is a half.",
                  alt="Reliability: " + "; ".join(f"{name} {spoken(value)}" for name, value in found),
                  height=70 + 24 * len(found),
                  json=draw(traces, yaxis=axis, shapes=[vertical(0.5)], xaxis={"range": [-0.03, 1.03]}))


def main_table(record: Mapping[str, Any]) -> list[dict[str, str]]:
    """The main numbers and the least reliable annotators as rows, for the terminal."""
    rates = {**known(record["agreement"], MEASURES), **known(record["noise"], NOISE),
             **known(record["habits"], HABITS)}
    for name, judge in record["judges"].items():
        if judge:
            rates |= {f"{name}: with the majority of people": estimate(judge["agreement"])}
            rates |= {f"{name}: kappa": estimate(judge["kappa"])} if judge["kappa"] else {}
    rows = [row(words, value) for words, value in rates.items()]
    if ceiling := record["noise"]["noise_ceiling"]:
        rows.append({"what": "noise ceiling", "value": short(ceiling["accuracy"]), "note": ""})
    if seconds := record["habits"]["seconds"]:
        rows.append({"what": "seconds an opinion, median", "value": f"{seconds['median']:.1f}",
                     "note": f"n={seconds['n']}"})
    least = sorted((each for each in record["annotators"] if each["reliability"]),
                   key=lambda each: each["reliability"]["high"] or 0.0)
    return rows + [row(f"reliability of {each['name']}", estimate(each["reliability"])) for each in least[:5]]


def row(words: str, value: Any) -> dict[str, str]:
    """An estimate as a row."""
    mean, _, rest = spoken(value).replace("\u00a0", " ").partition(" ")
    return {"what": words, "value": mean, "note": rest}
