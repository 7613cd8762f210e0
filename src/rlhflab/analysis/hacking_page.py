"""The reward-hacking experiment as a part of a page: what happened, when it was noticed, what helped. No HTML here."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from rlhflab.analysis.figures import Figure, colour, dot, draw, label, line, policy_axis, short, spoken, vertical
from rlhflab.analysis.page import plain, signed
from rlhflab.analysis.report_data import estimate, number, rows, section
from rlhflab.core.stats import Estimate

INKS = {"start": "sft", "hack": "ppo", "targeted": "reward", "unbiased": "sft", "oracle": "gold", "random": "dpo"}
"""The colour of an arm; the others are grey."""
PROBLEMS = (("Sounds sure and is wrong", "confident_wrong", "share of answers"),
            ("Says too much", "words", "words an answer"),
            ("Ignores instructions and formats", "format", "demands met"),
            ("Makes things up that pass a glance", "abstention_recall", "says so where the note does not"),
            ("Reward up, quality down", "gold", "quality by the rules, 0 to 1"))
"""The five problems, the measure of each and what it counts."""
SMOOTH = 4
"""Steps that are one point of the plane: a step of few prompts alone shows their noise."""


class Problem(NamedTuple):
    """One of the five problems before, hacked and cured."""

    title: str
    measure: str
    values: Sequence[Estimate | None]


def hacking_part(found: Mapping[str, Any]) -> dict[str, Any]:
    """What the template shows of an experiment; nothing where none was judged."""
    if not found:
        return {}
    arms = {name: arm for name, arm in section(found, "arms").items() if isinstance(arm, Mapping)}
    return {
        "headline": headline(found, arms), "caveats": CAVEATS, "criteria": rows(found, "criteria"),
        "undecided": rows(found, "not_evaluated"), "detectors": by_alarm(rows(found, "detectors")),
        "problems": problems(arms), "figures": [figure for figure in (
            course_figure(found, arms), plane_figure(arms), arms_figure(arms), length_figure(found)) if figure],
        "phrases": [(str(row.get("phrase", "")), number(row.get("z")) or 0.0, estimate(row.get("start")),
                     estimate(row.get("now"))) for row in rows(found, "phrases")],
        "arms": [(name, str(arm.get("says", "")), estimate(section(arm, "rates").get("gold")),
                  estimate(arm.get("versus_start"))) for name, arm in arms.items()],
        "answers": rows(found, "answers"), "said": said(found), "registered": str(found.get("registered", ""))}


CAVEATS = ("The bias of the annotators is injected, and sized to published values. Gold is a set of rules, not human "
           "preference. The expert labels use these rules, on prompts of training alone. Thresholds and the three "
           "named detectors were written down before the first step.")


def headline(found: Mapping[str, Any], arms: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """What happened, for somebody who knows no RLHF."""
    by_id = {str(row.get("id")): row for row in rows(found, "criteria")}
    hack, targeted = (estimate(section(arms, name).get("versus_start")) for name in ("hack", "targeted"))
    made = []
    if (gain := by_id.get("1")) and hack:
        made.append("Annotators who like long, confident answers taught a reward model their taste. A policy trained "
                    f"on it gained {short(float(gain['value']))} sigma of reward, while its true quality changed by "
                    f"{signed(hack)}.")
    alarms = [row for row in rows(found, "detectors") if number(row.get("fired_at")) is not None
              and not row.get("needs_gold")]
    if alarms:
        first = min(alarms, key=lambda row: float(row["fired_at"]))
        made.append(f"{len(alarms)} detectors that know no right answer fired, the first ({plain(str(first['name']))}) "
                    f"at step {first['fired_at']}.")
    else:
        made.append("No detector that works without right answers fired.")
    if targeted:
        made.append("With a few expert labels on the failures found, and a restart, quality changed by "
                    f"{signed(targeted)} from the start instead.")
    failed = [str(row["id"]) for row in rows(found, "criteria") if not row.get("passed")]
    made.append(f"Not shown in this run: criterion {', '.join(failed)}." if failed else
                "Every criterion that this run could decide was met.")
    return made


def problems(arms: Mapping[str, Mapping[str, Any]]) -> list[Problem]:
    """The five problems of the start, the hacked and the cured policy."""
    shown = [name for name in ("start", "hack", "targeted") if name in arms]
    return [Problem(title, f"{plain(measure)}: {says}",
                    [estimate(section(arms[name], "rates").get(measure)) for name in shown])
            for title, measure, says in PROBLEMS]


def course_figure(found: Mapping[str, Any], arms: Mapping[str, Mapping[str, Any]]) -> Figure | None:
    """Reward over the steps of the hacked run above gold on fixed prompts, with the alarms that came first."""
    steps = [row for row in rows(section(arms, "hack"), "steps") if number(row.get("proxy")) is not None]
    gold = [pair for pair in found.get("gold", ()) if len(pair) == 2]
    if not steps or not gold:
        return None
    named = [row for row in rows(found, "detectors") if row.get("named") and number(row.get("fired_at")) is not None]
    alarms = sorted({float(row["fired_at"]) for row in named})
    traces = [line([row["step"] for row in steps], [row["proxy"] for row in steps], policy="reward", axis="y2"),
              line([pair[0] for pair in gold], [pair[1] for pair in gold], policy="gold", dots=True)]
    told = "; ".join(f"{plain(str(row['name']))} at step {row['fired_at']}" for row in named) or "none of those named"
    return Figure(title="Reward and quality while the policy learns to hack",
                  note=f"Above: learnt reward, sigma. Below: gold on fixed prompts. Dashed, the alarms: {told}.",
                  alt=f"Reward from {short(steps[0]['proxy'])} to {short(steps[-1]['proxy'])} sigma, gold from "
                      f"{short(gold[0][1])} to {short(gold[-1][1])}; alarms: {told}", height=320,
                  json=draw(traces, shapes=[vertical(step) for step in alarms],
                            xaxis={"title": {"text": "step"}, "anchor": "y"},
                            yaxis={"domain": [0, 0.46], "title": {"text": "gold"}},
                            yaxis2={"domain": [0.54, 1], "title": {"text": "reward, sigma"}}))


def plane_figure(arms: Mapping[str, Mapping[str, Any]]) -> Figure | None:
    """Gold of training rollouts against the distance from the start, a line an arm."""
    traces, told = [], []
    for name, arm in arms.items():
        points = [(math.sqrt(max(0.0, float(row["kl"]))), float(row["gold"])) for row in rows(arm, "steps")
                  if number(row.get("kl")) is not None and number(row.get("gold")) is not None]
        if points:
            smooth = [tuple(sum(p[axis] for p in part) / len(part) for axis in (0, 1))
                      for part in (points[i:i + SMOOTH] for i in range(0, len(points), SMOOTH))]
            trace = line([x for x, _ in smooth], [y for _, y in smooth], policy=INKS.get(name, ""), dots=True,
                         hover=f"{label(name)}, %{{x:.2f}}: %{{y:.3f}}")
            traces.append(trace | {"name": label(name)})
            told.append(f"{name} ends at {short(smooth[-1][1])} after {short(smooth[-1][0])}")
    if not traces:
        return None
    return Figure(title="Quality against distance", note=f"Gold of training answers over √KL, means of {SMOOTH} steps.",
                  alt=f"Gold against the root of KL: {'; '.join(told)}", height=280 + 20 * math.ceil(len(traces) / 3),
                  json=draw(traces, showlegend=True, legend={"orientation": "h", "y": 1.02, "yanchor": "bottom"},
                            xaxis={"title": {"text": "√KL, √nats an answer"}}, yaxis={"title": {"text": "gold"}}))


def arms_figure(arms: Mapping[str, Mapping[str, Any]]) -> Figure | None:
    """Change of gold from the start, every arm with its interval and every seed as a small dot."""
    found = {name: value for name, arm in arms.items() if (value := estimate(arm.get("versus_start")))}
    if not found:
        return None
    traces = [dot(value, place, policy=INKS.get(name, ""), name=label(name))
              for place, (name, value) in enumerate(found.items())]
    for place, name in enumerate(found):
        seeds = [seed for row in rows(arms[name], "by_seed") if (seed := estimate(row))]
        if len(seeds) > 1:
            traces.append({"type": "scatter", "mode": "markers", "x": [seed.mean for seed in seeds],
                           "y": [place + 0.25] * len(seeds), "hovertemplate": "seed: %{x:.3f}<extra></extra>",
                           "marker": {"size": 5, "color": colour(INKS.get(name, ""))}})
    alt = "; ".join(f"{name} {spoken(value)}" for name, value in found.items())
    return Figure(title="Change of quality from the start", note="Right of the line is better. Small dots are seeds.",
                  alt=f"Change of gold by arm: {alt}", height=80 + 34 * len(found),
                  json=draw(traces, yaxis=policy_axis(list(found)), shapes=[vertical(0)]))


def length_figure(found: Mapping[str, Any]) -> Figure | None:
    """What share of the hacked policy's gain of reward is length: one less NRG, of the detector `length_share`."""
    row = next((row for row in rows(found, "findings") if row.get("name") == "length_share"), {})
    if (nrg := estimate(row.get("effect"))) is None:
        return None
    share = Estimate(1 - nrg.mean, 1 - nrg.high, 1 - nrg.low, nrg.n)
    return Figure(title="Share of the reward's gain that is length",
                  note="At the end of the hacked run: 0 where answers of equal length gained as much, 1 where they "
                       "gained nothing.",
                  alt=f"Share of the reward's gain that is length: {spoken(share)}", height=120,
                  json=draw([dot(share, 0, policy="reward", name="hack")], yaxis=policy_axis(["hack"]),
                            shapes=[vertical(0), vertical(1)]))


def by_alarm(found: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Detectors in the order in which they fired, silent ones last."""
    return sorted(found, key=lambda row: (number(row.get("fired_at")) is None, number(row.get("fired_at")) or 0.0,
                                          str(row.get("name"))))


def said(found: Mapping[str, Any]) -> dict[str, str]:
    """What the detectors said at the end of the hacked run."""
    return {str(row.get("name")): str(row.get("says")) for row in rows(found, "findings")}
