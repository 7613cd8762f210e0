"""The report about a demo or a training run, one self-contained HTML file.

Answers, prompts and cards are text nobody vouches for: the page escapes all of it, and markdown is read without HTML
and without images.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from rlhflab.analysis import figures
from rlhflab.analysis.figures import POLICY_NAMES, Figure, short, spoken
from rlhflab.analysis.hacking_page import hacking_part
from rlhflab.analysis.page import markdown, render_page, write_page
from rlhflab.analysis.release_page import release_part
from rlhflab.analysis.report_data import (
    MODES,
    POLICIES,
    START_OF,
    Answer,
    Change,
    Measure,
    ReportData,
    estimate,
    gold_change,
    load,
    number,
    paired_changes,
    ppo_alarms,
    ppo_curves,
    rows,
    section,
    side_by_side,
)
from rlhflab.analysis.verdict import verdict
from rlhflab.core.stats import Estimate
from rlhflab.data.formats import in_lines

CARD_TITLES = {"data": "Data card", "annotators": "Annotator card", "model": "Model card"}
REWARD_RATES = {"accuracy": "reward model", "length_only": "length alone", "gold_order": "reward model, by gold"}
STAGE_TITLES = {"sft": "SFT", "reward": "Reward model", "dpo": "DPO", "ppo": "PPO"}
READINGS = {"better": "better", "worse": "worse", "moved": "moved", "unclear": "unclear: interval includes 0"}
ANSWERS_NOTE = "Greedy answers to prompts drawn at random by the run's seed, each with what the gold rules say of it."
ANSWERS_NOTE_RUN = "Samples of the first and last sampled step, to prompts drawn at random by the seed."


class Tile(NamedTuple):
    """A key figure: what it is, the number, and what qualifies it."""

    name: str
    value: str
    note: str


class Curves(NamedTuple):
    """A stage's section: its figures and its settings."""

    title: str
    figures: Sequence[Figure]
    config: str


def write_report(folder: Path) -> Path:
    """Write `folder/report.html` from what the folder holds and return its path.

    The file appears whole or not at all. Raises RunError for a folder that is no demo and no run, DataError for a
    broken file in it.
    """
    return write_page(folder / "report.html", render(load(folder)))


def render(data: ReportData) -> str:
    """The whole page."""
    return render_page("report.html.j2", page(data), filters={
        "policy": policy_name, "markdown": markdown, "clock": clock, "judged": judged,
        "thousands": thousands, "stage": stage_name})


def page(data: ReportData) -> dict[str, Any]:
    """What the template shows: every value is empty where the folder has nothing to say of it."""
    changes, ppo = paired_changes(data), ppo_curves(data)
    perplexity = by_training({name: y for name, value in section(data.summary, "perplexity").items()
                              if (y := number(value)) is not None})
    rates = {REWARD_RATES.get(name, name): found for name, value in section(data.summary, "reward_model").items()
             if (found := estimate(value))}
    return {
        "data": data, "name": data.name, "title": title(data), "lead": lead(data), "missing": missing(data),
        "readings": READINGS, "answers_note": ANSWERS_NOTE_RUN if data.single_run else ANSWERS_NOTE,
        "verdict": verdict(data, changes, ppo), "tiles": tiles(data),
        "gold_figures": gold_figures(data, changes), "measure_rows": measure_rows(data), "changes": changes,
        "modes": MODES, "reward_gold": figures.reward_and_gold_figures(ppo, ppo_alarms(data)),
        "stages": stage_sections(data),
        "lengths": [] if data.single_run else figures.length_figures(data.answers, data.policies),
        "prompts": side_by_side(data), "perplexity": perplexity,
        "perplexity_figure": figures.perplexity_figure(perplexity) if perplexity else None,
        "rates": rates, "rates_figure": figures.reward_model_figure(rates) if rates else None,
        "cards": {CARD_TITLES[name]: text for name, text in data.cards.items()}, "facts": facts(data),
        "durations": rows(data.summary, "stages"), "policy_ids": POLICIES, "hacking": hacking_part(data.hacking),
        "release": release_part(data.release),
    }


def title(data: ReportData) -> str:
    """The page's heading."""
    if data.single_run:
        return f"Run {data.name}"
    if data.is_experiment:
        return f"Reward hacking in {data.summary.get('model') or 'a model'}"
    return f"What alignment changed in {data.summary.get('model') or 'a model'}"


def lead(data: ReportData) -> str:
    """The line below the heading: what was run, where, from which seed and commit."""
    told = {name: str(data.summary[name]) for name in ("model", "seed", "commit", "machine") if data.summary.get(name)
            is not None}
    return ", ".join(value if name in ("model", "machine") else f"{name} {value}" for name, value in told.items())


def missing(data: ReportData) -> list[str]:
    """What an unfinished demo lacks."""
    stages = [STAGE_TITLES[name] for name in data.missing_stages]
    return stages + [f"evaluation of {POLICY_NAMES[name]}" for name in data.unevaluated]


def tiles(data: ReportData) -> list[Tile]:
    """The few numbers to remember: gold of every policy, PPO's distance, time and memory."""
    made = []
    for policy in data.policies:
        mode = "sampled" if data.estimate(policy, "sampled", "gold") else "greedy"
        if (gold := data.estimate(policy, mode, "gold")) is not None:
            interval = spoken(gold).partition(" ")[2]
            made.append(Tile(f"Gold, {policy_name(policy)}", short(gold.mean), f"{interval}, {mode}"))
    kl = ppo_curves(data).get("kl", ())
    if kl:
        made.append(Tile("KL at the end of PPO", f"{kl[-1].value:.2f}", "nats an answer"))
    memory = number(data.summary.get("peak_memory_gb"))
    if (seconds := number(data.summary.get("seconds"))) is not None:
        made.append(Tile("Duration", clock(seconds), "" if memory is None else f"peak memory {memory:.1f} GB"))
    return made


def gold_figures(data: ReportData, changes: Sequence[Change]) -> list[Figure]:
    """The paired change of gold first, then each measure for every policy."""
    gold = {policy: (START_OF[policy], change) for policy in START_OF if (change := gold_change(policy, changes))}
    made = [figures.gold_change_figure(gold)] if gold else []
    return made + [found for measure in data.measures if (found := figures.measure_figure(data, measure))]


def measure_rows(data: ReportData) -> list[tuple[Measure, str, list[Estimate | None]]]:
    """The table of every number: a row for a measure and a mode, a column for a policy."""
    made = [(measure, mode, [data.estimate(policy, mode, measure.name) for policy in data.policies])
            for measure in data.measures for mode in MODES]
    return [row for row in made if any(row[2])]


def stage_sections(data: ReportData) -> list[Curves]:
    """Every metric of every stage, with the settings it ran with."""
    return [Curves(STAGE_TITLES.get(stage.name, stage.name), [
        figures.curve_figure(name, points, policy=stage.name if stage.name in STAGE_TITLES else "sft")
        for name, points in stage.curves.items()], stage.config) for stage in data.stages]


def facts(data: ReportData) -> dict[str, str]:
    """Machine, versions and seeds: what somebody needs to run it again."""
    if data.single_run:
        return dict(data.stages[0].facts)
    keep = ("model", "seed", "commit", "machine", "seconds", "peak_memory_gb", "versions")
    return in_lines({name: data.summary[name] for name in keep if data.summary.get(name) is not None})


def by_training(values: Mapping[str, float]) -> dict[str, float]:
    """The same numbers in order of training, unknown policies last."""
    return {name: values[name] for name in (*POLICIES, *values) if name in values}


def policy_name(policy: str) -> str:
    """`sft` is written SFT; a name of the user's stays as it is."""
    return POLICY_NAMES.get(policy, policy)


def stage_name(stage: object) -> str:
    """`reward` is the reward model's stage."""
    return STAGE_TITLES.get(str(stage), str(stage))


def judged(answer: Answer) -> str:
    """What the gold rules (or the run's score) made of an answer, with the reason."""
    value = next((f"{name} {short(answer.measures[name])}" for name in ("gold", "score") if name in answer.measures),
                 "not scored")
    cut = "cut off at the length limit" if answer.finish == "length" else ""
    return "; ".join(filter(None, [value, cut, answer.reason]))


def thousands(value: Any) -> str:
    """`1,234,567`, a dash for no number."""
    found = number(value)
    return "\u2013" if found is None else f"{found:,.0f}"


def clock(seconds: Any) -> str:
    """`1 h 04 min`, `3 min 20 s` or `12.4 s`; a dash for no number."""
    value = number(seconds)
    if value is None:
        return "\u2013"
    if value < 60:
        return f"{value:.1f} s"
    minutes, rest = divmod(round(value), 60)
    return f"{minutes} min {rest:02d} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"
