"""The report's figures as plotly JSON, one short function each. No reading and no HTML here.

Colours are written as CSS variables, `var(--sft)`: the page's script puts in the value of the light or dark theme
before it draws. Text that comes from data goes through `label`, since plotly reads a few tags in its text.
"""

import html
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from rlhflab.analysis.report_data import MODES, POLICIES, Answer, Measure, Point, ReportData
from rlhflab.core.stats import Estimate

POLICY_NAMES = {"base": "Base", "sft": "SFT", "dpo": "DPO", "ppo": "PPO"}
SYMBOLS = {"base": "circle", "sft": "square", "dpo": "diamond", "ppo": "triangle-up"}
"""A shape beside the colour, so that a policy is known without seeing colours."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """A drawing with its words: what stands above it and what a screen reader says in its place."""

    title: str
    note: str
    alt: str
    json: str
    height: int = 190
    """Pixels; the width is the page's."""


def label(text: str) -> str:
    """Text from data, safe inside plotly's ticks and hovers, and short enough to leave room for the drawing."""
    name = POLICY_NAMES.get(text, text.replace("_", " "))
    return html.escape(name if len(name) <= 24 else name[:23] + "…")


def colour(policy: str) -> str:
    """A policy has the same colour in every figure."""
    return f"var(--{policy})" if policy in (*POLICIES, "reward", "gold") else "var(--muted)"


def spoken(value: Estimate) -> str:
    """`0.412 [0.381, 0.443], n = 512`, with spaces that no line breaks at inside the brackets and the count."""
    known = math.isfinite(value.low) and math.isfinite(value.high)
    interval = f"[{short(value.low)},\u00a0{short(value.high)}]" if known else "(interval unknown)"
    return f"{short(value.mean)} {interval}, n\u00a0=\u00a0{value.n}"


def short(value: float) -> str:
    """Three decimals for rates, fewer for larger numbers, a real minus sign."""
    digits = 3 if abs(value) < 10 else 1
    return f"{value:.{digits}f}".replace("-", "\u2212")


def draw(traces: Sequence[Mapping[str, Any]], **layout: Any) -> str:
    """Figure JSON in the house style: transparent ground, thin grid, no legend, nothing to drag."""
    import plotly.graph_objects as graph  # takes most of a second, which other commands should not pay

    axis = {"gridcolor": "var(--grid)", "linecolor": "var(--line)", "zeroline": False, "fixedrange": True,
            "automargin": True, "title": {"standoff": 6}}
    figure = graph.Figure(data=list(traces), layout={"template": "none", "showlegend": False})
    figure.update_layout(paper_bgcolor="rgba(0,0,0,0)", plot_bgcolor="rgba(0,0,0,0)", dragmode=False,
                         font={"color": "var(--ink)", "size": 12, "family": "system-ui, sans-serif"},
                         margin={"l": 8, "r": 12, "t": 8, "b": 8}, hovermode="closest",
                         hoverlabel={"bgcolor": "var(--paper)", "bordercolor": "var(--line)",
                                     "font": {"color": "var(--ink)"}})
    figure.update_layout(layout)
    figure.update_xaxes(axis)
    figure.update_yaxes(axis)
    return str(figure.to_json(remove_uids=True))


def policy_axis(policies: Sequence[str]) -> dict[str, Any]:
    """Policies from top to bottom in order of training."""
    return {"tickmode": "array", "tickvals": list(range(len(policies))), "ticktext": [label(name) for name in policies],
            "range": [len(policies) - 0.5, -0.5], "showgrid": False}


def dot(value: Estimate, y: float, *, policy: str, hollow: bool = False, name: str = "") -> dict[str, Any]:
    """A mean with its interval, lying at height `y`."""
    finite = math.isfinite(value.low) and math.isfinite(value.high)
    symbol = SYMBOLS.get(policy, "circle") + ("-open" if hollow else "")
    ink = colour(policy)
    return {"type": "scatter", "mode": "markers", "x": [value.mean], "y": [y],
            "marker": {"color": ink, "symbol": symbol, "size": 10, "line": {"width": 2, "color": ink}},
            "error_x": {"type": "data", "symmetric": False, "visible": finite, "color": ink, "width": 3,
                        "thickness": 1.5, "array": [value.high - value.mean], "arrayminus": [value.mean - value.low]},
            "hovertemplate": f"{name}<br>{spoken(value)}<extra></extra>"}


def measure_figure(data: ReportData, measure: Measure) -> Figure | None:
    """One measure for every policy, before and after each stage: greedy filled, sampled hollow."""
    policies = [name for name in data.policies if any(data.estimate(name, mode, measure.name) for mode in MODES)]
    found = [(place, policy, mode, value) for place, policy in enumerate(policies) for mode in MODES
             if (value := data.estimate(policy, mode, measure.name))]
    if not found:
        return None
    traces = [dot(value, place + (0.16 if mode == "sampled" else -0.16), policy=policy, hollow=mode == "sampled",
                  name=f"{label(policy)}, {mode}") for place, policy, mode, value in found]
    rate = all(0 <= value.mean <= 1 for *_, value in found)
    alt = "; ".join(f"{POLICY_NAMES.get(policy, policy)} {mode} {spoken(value)}" for _, policy, mode, value in found)
    better = f" {measure.better.capitalize()} is better." if measure.better in ("higher", "lower") else ""
    return Figure(title=measure.name.replace("_", " "), note=f"{measure.says.rstrip('.')}.{better}".lstrip(". "),
                  alt=f"{measure.name}: {alt}", height=70 + 34 * len(policies),
                  json=draw(traces, yaxis=policy_axis(policies), xaxis={"range": [-0.03, 1.03]} if rate else {}))


def gold_change_figure(changes: Mapping[str, tuple[str, Estimate]]) -> Figure:
    """Paired change of gold by policy; `changes` is policy -> (start, change). The line is no change."""
    traces = [dot(value, place, policy=policy, name=f"{label(policy)} against {label(start)}")
              for place, (policy, (start, value)) in enumerate(changes.items())]
    axis = policy_axis(list(changes))
    axis["ticktext"] = [f"{label(policy)} \u2212 {label(start)}" for policy, (start, _) in changes.items()]
    alt = "; ".join(f"{policy} against {start} {spoken(value)}" for policy, (start, value) in changes.items())
    return Figure(title="Change of gold on the same prompts", note="Right of the line is better.",
                  alt=f"Paired change of gold: {alt}", height=70 + 34 * len(changes),
                  json=draw(traces, yaxis=axis, shapes=[vertical(0)], xaxis={"rangemode": "tozero"}))


def vertical(x: float) -> dict[str, Any]:
    """A reference line over the whole height, in front of bars."""
    return {"type": "line", "x0": x, "x1": x, "yref": "paper", "y0": 0, "y1": 1,
            "line": {"color": "var(--ink)", "width": 1.25, "dash": "dash"}}


def curve_figure(name: str, points: Sequence[Point], *, policy: str) -> Figure:
    """One metric over the steps of a run."""
    first, last = points[0], points[-1]
    alt = (f"{name} over {len(points)} steps: {short(first.value)} at step {first.step:g}, "
           f"{short(last.value)} at step {last.step:g}")
    trace = line([point.step for point in points], [point.value for point in points], policy=policy)
    return Figure(title=name.replace("_", " "), note="", alt=alt, height=150,
                  json=draw([trace], xaxis={"nticks": 5}, yaxis={"nticks": 4}))


def line(x: Sequence[float], y: Sequence[float], *, policy: str, axis: str = "y", dots: bool = False,
         hover: str = "step %{x:g}: %{y:.4g}") -> dict[str, Any]:
    """Values joined in order; alone-standing or `dots` ones are marked, so that one point is not invisible."""
    marked = dots or len(x) < 12
    return {"type": "scatter", "mode": "lines+markers" if marked else "lines", "x": list(x), "y": list(y),
            "yaxis": axis, "line": {"color": colour(policy), "width": 2},
            "marker": {"size": 6, "symbol": SYMBOLS.get(policy, "circle")},
            "hovertemplate": f"{hover}<extra></extra>"}


def reward_and_gold_figures(curves: Mapping[str, Sequence[Point]],
                            alarms: Mapping[str, float] | None = None) -> list[Figure]:
    """What PPO was paid (proxy) above what it should have learnt (gold): over steps and over sqrt(KL).

    Two panels instead of two scales on one: where the curves would cross depends on the scales alone. `alarms`: the
    step at which each detector fired.
    """
    proxy, gold, kl = (dict(curves.get(name, ())) for name in ("proxy", "gold", "kl"))
    steps = sorted(set(proxy) & set(gold))
    if not steps:
        return []
    figures = [two_panels("Reward and gold over PPO steps", "PPO step", steps, proxy, gold, steps, alarms)]
    measured = [step for step in steps if step in kl]
    if len(measured) > 1:
        # A per-answer estimate of KL may fall below 0 early on; its root is then 0.
        distance = [math.sqrt(max(kl[step], 0.0)) for step in measured]
        figures.append(two_panels("Reward and gold over distance from the start", "√KL, √nats an answer",
                                  measured, proxy, gold, distance))
    return figures


def two_panels(title: str, axis: str, steps: Sequence[float], proxy: Mapping[float, float],
               gold: Mapping[float, float], x: Sequence[float],
               alarms: Mapping[str, float] | None = None) -> Figure:
    """Proxy above gold on a shared horizontal axis, with the places of alarms by name."""
    traces = [line(x, [values[step] for step in steps], policy=policy, axis=y, dots=True, hover="%{x:.3g}: %{y:.3f}")
              for values, y, policy in ((proxy, "y2", "reward"), (gold, "y", "gold"))]
    alt = (f"{title}: proxy from {short(proxy[steps[0]])} to {short(proxy[steps[-1]])} sigma, "
           f"gold from {short(gold[steps[0]])} to {short(gold[steps[-1]])}, over {len(steps)} steps")
    alarms = alarms or {}
    fired = "; ".join(f"{name.replace('_', ' ')} at {step:g}" for name, step in alarms.items())
    told = f" Dashed, the alarms: {fired}." if fired else ""
    return Figure(title=title, note=f"Above: learnt reward, sigma of SFT samples. Below: gold.{told}",
                  alt=f"{alt}{f'; alarms: {fired}' if fired else ''}", height=320,
                  json=draw(traces, shapes=[vertical(step) for step in sorted(set(alarms.values()))],
                            xaxis={"title": {"text": axis}, "anchor": "y"},
                            yaxis={"domain": [0, 0.46], "title": {"text": "gold"}},
                            yaxis2={"domain": [0.54, 1], "title": {"text": "reward, sigma"}}))


def length_figures(answers: Sequence[Answer], policies: Sequence[str]) -> list[Figure]:
    """A histogram of words for each policy, all with the same bins and axes so that they compare by eye."""
    mode = "sampled" if any(answer.mode == "sampled" for answer in answers) else "greedy"
    words = {policy: [answer.words for answer in answers if answer.policy == policy and answer.mode == mode]
             for policy in policies}
    words = {policy: counts for policy, counts in words.items() if counts}
    longest = max((max(counts) for counts in words.values()), default=0)
    width = max(1, math.ceil((longest + 1) / 30))
    edges = np.arange(0, longest + 1 + width, width) - 0.5
    shares = {policy: np.histogram(counts, bins=edges)[0] / len(counts) for policy, counts in words.items()}
    highest = max((float(share.max()) for share in shares.values()), default=1.0)
    return [length_figure(policy, words[policy], share, edges, highest, mode) for policy, share in shares.items()]


def length_figure(policy: str, words: Sequence[float], share: Any, edges: Any, highest: float, mode: str) -> Figure:
    """Share of answers by number of words, with the median marked."""
    median = float(np.median(words))
    bars = {"type": "bar", "x": ((edges[:-1] + edges[1:]) / 2).tolist(), "y": share.tolist(),
            "marker": {"color": colour(policy)}, "hovertemplate": "%{x:g} words: %{y:.1%}<extra></extra>"}
    name = POLICY_NAMES.get(policy, policy)
    note = f"Median {median:g} words, n = {len(words)} {mode} answers."
    return Figure(title=name, note=note, alt=f"Lengths of {name} answers. {note}", height=170,
                  json=draw([bars], shapes=[vertical(median)], bargap=0.08,
                            xaxis={"range": [float(edges[0]), float(edges[-1])], "title": {"text": "words"}},
                            yaxis={"range": [0, highest * 1.08], "tickformat": ".0%", "nticks": 4}))


def perplexity_figure(perplexity: Mapping[str, float]) -> Figure:
    """Perplexity of one fixed text by policy. A rise says the language model forgot."""
    policies = list(perplexity)
    values = list(perplexity.values())
    bars = {"type": "bar", "orientation": "h", "x": values, "y": list(range(len(policies))), "width": 0.55,
            "marker": {"color": [colour(name) for name in policies]}, "text": [short(value) for value in values],
            "textposition": "inside", "insidetextfont": {"color": "var(--paper)"},
            "hovertemplate": "%{x:.3f}<extra></extra>"}
    alt = "; ".join(f"{POLICY_NAMES.get(name, name)} {short(value)}" for name, value in perplexity.items())
    note = "Lower is better; a rise is forgetting. One text, so no interval."
    return Figure(title="Perplexity of a fixed text", note=note, alt=f"Perplexity: {alt}",
                  height=70 + 34 * len(policies),
                  json=draw([bars], yaxis=policy_axis(policies), xaxis={"rangemode": "tozero"}))


def reward_model_figure(rates: Mapping[str, Estimate]) -> Figure:
    """How often the reward model orders a held-out pair as asked, beside a coin."""
    names = list(rates)
    traces = [dot(value, place, policy="reward", name=label(name)) for place, (name, value) in enumerate(rates.items())]
    alt = "; ".join(f"{name} {spoken(value)}" for name, value in rates.items())
    return Figure(title="Share of pairs ordered right", note="The dashed line is a coin.", alt=f"Reward model: {alt}",
                  height=70 + 34 * len(names),
                  json=draw(traces, yaxis=policy_axis(names), shapes=[vertical(0.5)], xaxis={"range": [-0.03, 1.03]}))
