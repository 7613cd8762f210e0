"""One self-contained HTML file about a reward model, from the record of `reward_report.py`. Nothing is judged here.

Prompts and answers are text nobody vouches for; `page.py` says what keeps them text.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rlhflab.analysis.figures import (
    Figure,
    dot,
    draw,
    label,
    policy_axis,
    reward_model_figure,
    short,
    spoken,
    vertical,
)
from rlhflab.analysis.page import plain, render_page, write_page
from rlhflab.analysis.report import Tile
from rlhflab.analysis.report_data import estimate
from rlhflab.analysis.reward_probes import FEWEST
from rlhflab.analysis.verdict import plus
from rlhflab.core.stats import Estimate

RATES = {"accuracy": "reward model", "bag_of_words": "bag of words", "length_only": "length alone",
         "gold_order": "reward model, by gold", "labels_on_gold_order": "labels, by gold"}
LENGTHS = {"raw": "correlation with length, all answers",
           "within_prompt": "correlation with length, within a prompt",
           "longer_by_scores": "longer answer scores higher", "longer_by_labels": "longer answer was preferred"}
ADVANTAGES = {"over_length": "reward model less length alone", "over_words": "reward model less bag of words"}
HEADLINES = {"fit": "Fit: nothing measured here speaks against learning from it.",
             "risky": "Risky: learn from it only with the weaknesses below in view.",
             "unfit": "Unfit: a policy that learns from it would learn its weaknesses."}


def write_reward_page(record: Mapping[str, Any], path: Path) -> Path:
    """Write the page of a record and return its path."""
    filters: dict[str, Callable[..., Any]] = {"plus": plus, "estimate": estimate, "expected": expected}
    return write_page(path, render_page("reward_report.html.j2", page(record), filters=filters))


def page(record: Mapping[str, Any]) -> dict[str, Any]:
    """What the template shows."""
    rates = {words: found for key, words in RATES.items() if (found := estimate(record[key]))}
    ordered = {**rates, **{words: found for key, words in ADVANTAGES.items() if (found := estimate(record[key]))}}
    lengths = {words: found for key, words in LENGTHS.items() if (found := estimate(record["length"][key]))}
    probes = worst_first(record["probes"])
    facts = {key: record[key] for key in ("role", "model", "data", "seed", "scenario", "training_pairs", "pairs",
                                          "prompts", "answers") if record.get(key) is not None}
    return {"record": record, "title": "What a reward model's scores are worth", "name": str(record.get("role", "")),
            "lead": f"{record.get('role', '')} on {record['pairs']} held-out pairs of {record['prompts']} prompts",
            "headline": HEADLINES[record["verdict"]], "tiles": tiles(record), "ordered": ordered, "lengths": lengths,
            "rates_figure": reward_model_figure(rates), "gap_figure": gap_figure(record["calibration"]["by_gap"]),
            "reliability_figure": reliability_figure(record["calibration"]["reliability"]), "facts": facts,
            "probe_figure": probe_figure(probes), "probes": probes, "fewest": FEWEST,
            "style_figure": style_figure(record["style"]) if record["style"] else None,
            "examples": [probe for probe in probes if probe["result"] in ("fail", "unclear")
                         and probe["example"]]}


def tiles(record: Mapping[str, Any]) -> list[Tile]:
    """The few numbers to remember."""
    made = [rate_tile("Accuracy", record["accuracy"])]
    if record["noise_ceiling"]:
        made.append(Tile("Noise ceiling", short(record["noise_ceiling"]["accuracy"]),
                         f"two opinions agree in {record['noise_ceiling']['agreement']:.2f} of the cases"))
    made += [rate_tile("Length alone", record["length_only"]), rate_tile("Bag of words", record["bag_of_words"])]
    if record["length"]["within_prompt"]:
        made.append(rate_tile("Score and length, within a prompt", record["length"]["within_prompt"]))
    if record["style"]:
        made.append(rate_tile("Hard accuracy", record["style"]["hard"]))
    results = [probe["result"] for probe in record["probes"]]
    return [*made, Tile("Probes passed", f"{results.count('pass')} of {len(results)}",
                        f"{results.count('fail')} failed, {results.count('unclear')} unclear, "
                        f"{results.count('too few')} on too few answers")]


def rate_tile(name: str, value: Mapping[str, Any]) -> Tile:
    """An estimate as a tile."""
    found = estimate(value)
    assert found is not None
    mean, _, rest = spoken(found).partition(" ")
    return Tile(name, mean, rest)


def worst_first(probes: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Failures before what is unclear, and what passed last."""
    return sorted(probes, key=lambda probe: ("fail", "unclear", "too few", "pass").index(probe["result"]))


def expected(probe: Mapping[str, Any]) -> str:
    """What a good reward model does, in words."""
    limit = probe["must_drop"]
    return "must not rise" if limit is None else f"must drop by {limit:g}" if limit else "must drop"


def main_table(record: Mapping[str, Any]) -> list[dict[str, str]]:
    """The verdict and the main numbers as rows, for the terminal."""
    rows = [{"what": "verdict", "value": record["verdict"].upper(), "note": ""}]
    rows += [{"what": "", "value": reason["level"], "note": reason["says"]} for reason in record["reasons"]]
    rates = {**{words: record[key] for key, words in RATES.items()},
             **{words: record["length"][key] for key, words in LENGTHS.items()}}
    if record["style"]:
        rates |= {f"style matrix, {key}": record["style"][key] for key in ("easy", "normal", "hard")}
    rows += [{"what": name, "value": short(found.mean), "note": spoken(found).partition(" ")[2].replace("\u00a0", " ")}
             for name, value in rates.items() if (found := estimate(value))]
    if record["noise_ceiling"]:
        rows.append({"what": "noise ceiling", "value": short(record["noise_ceiling"]["accuracy"]), "note": ""})
    found_calibration = record["calibration"]
    rows.append({"what": "calibration error", "value": short(found_calibration["ece"]),
                 "note": f"temperature {found_calibration['temperature']:.2f}"})
    for probe in worst_first(record["probes"]):
        change = estimate(probe["change"])
        note = "" if change is None else f"change {plus(change.mean)}, preferred {short(probe['preferred']['mean'])}, "
        rows.append({"what": f"probe {plain(probe['name'])}", "value": probe["result"],
                     "note": f"{note}n = {probe['n']}; {expected(probe)}"})
    return rows


# -- figures -------------------------------------------------------------------------------------------------------


def upright(value: Estimate, x: float, name: str) -> dict[str, Any]:
    """A mean with its interval, standing at `x`."""
    lying = dot(value, x, policy="reward", name=name)
    return {**lying, "x": lying["y"], "y": lying["x"], "error_y": lying["error_x"], "error_x": {"visible": False}}


def reliability_figure(bins: Sequence[Mapping[str, Any]]) -> Figure:
    """How often it is right where it is so sure; on the line it is as sure as it should be."""
    known = [(each["confidence"], found) for each in bins if (found := estimate(each["accuracy"]))]
    diagonal = {"type": "scatter", "mode": "lines", "x": [0.5, 1], "y": [0.5, 1], "hoverinfo": "skip",
                "line": {"color": "var(--muted)", "dash": "dash", "width": 1.25}}
    alt = "; ".join(f"confidence {short(x)}: right {spoken(found)}" for x, found in known)
    return Figure(title="Reliability", note="Share right against confidence. Below the dashed line it is too sure.",
                  alt=f"Reliability: {alt}", height=260,
                  json=draw([diagonal, *(upright(found, x, f"confidence {short(x)}") for x, found in known)],
                            xaxis={"range": [0.48, 1.02], "title": {"text": "confidence"}},
                            yaxis={"range": [-0.03, 1.03], "title": {"text": "share right"}}))


def gap_figure(bins: Sequence[Mapping[str, Any]]) -> Figure:
    """Accuracy by the distance of the two scores: it should rise from left to right."""
    known = [(each["low"], each["high"], found) for each in bins if (found := estimate(each["accuracy"]))]
    names = [f"{low:.2f} to {high:.2f}" for low, high, _ in known]
    alt = "; ".join(f"distance {name}: {spoken(found)}" for name, (*_, found) in zip(names, known, strict=True))
    return Figure(title="Accuracy by distance of the scores", alt=f"Accuracy by distance: {alt}", height=260,
                  note="Equal shares of the pairs; further apart should be righter.",
                  json=draw([upright(found, i, names[i]) for i, (*_, found) in enumerate(known)],
                            xaxis={"tickmode": "array", "tickvals": list(range(len(names))), "ticktext": names,
                                   "title": {"text": "distance"}},
                            yaxis={"range": [-0.03, 1.03], "title": {"text": "share right"}}))


def probe_figure(probes: Sequence[Mapping[str, Any]]) -> Figure | None:
    """Mean change of the score by each probe."""
    known = [(probe, found) for probe in probes if (found := estimate(probe["change"]))]
    if not known:
        return None
    colours = {"pass": "var(--good)", "fail": "var(--bad)"}
    traces = []
    for place, (probe, found) in enumerate(known):
        trace, ink = dot(found, place, policy="reward", name=label(probe["name"])), colours.get(probe["result"])
        if ink:
            trace["marker"] = {**trace["marker"], "color": ink, "line": {"width": 2, "color": ink},
                               "symbol": "circle" if probe["result"] == "pass" else "x"}
            trace["error_x"] = {**trace["error_x"], "color": ink}
        traces.append(trace)
    alt = "; ".join(f"{plain(probe['name'])} {spoken(found)}, {probe['result']}" for probe, found in known)
    return Figure(title="Change of the score", note="In deviations. Crosses failed; right of the line is preferred.",
                  alt=f"Change of the score by probe: {alt}", height=70 + 30 * len(known),
                  json=draw(traces, yaxis=policy_axis([probe["name"] for probe, _ in known]), shapes=[vertical(0)]))


def style_figure(style: Mapping[str, Any]) -> Figure:
    """Easy, normal and hard accuracy beside a coin."""
    rates = {name: found for name in ("easy", "normal", "hard") if (found := estimate(style[name]))}
    drawn = reward_model_figure(rates)
    alt = "; ".join(f"{name} {spoken(value)}" for name, value in rates.items())
    return Figure(title="Right answer above the wrong one", note="Hard: the wrong one has the more elaborate style. "
                  "The dashed line is a coin.", alt=f"Style against substance: {alt}", height=drawn.height,
                  json=drawn.json)
