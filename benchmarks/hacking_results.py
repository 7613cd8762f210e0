"""The numbers of a reward-hacking experiment as a page and a record, also of one that is not whole.

    python benchmarks/hacking_results.py runs/reward-hacking-... --write docs/results/reward-hacking.md

What stands between the page's marks is written again; arms.json, prereg.json and record.json go into a folder beside
it that has the page's name. An arm counts where its answers were evaluated. Nothing is trained or sampled here.
"""

import argparse
import json
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from peers.report import replaced

from rlhflab.analysis.evaluate import rates
from rlhflab.analysis.hacking import (
    ALARMS,
    SeedResult,
    Thresholds,
    Undecided,
    Watched,
    alarm_in_time,
    change_of,
    first_samples,
    paired,
)
from rlhflab.core.stats import Estimate, sign_test
from rlhflab.runs.arms import ARMS
from rlhflab.runs.experiment import watched_in
from rlhflab.runs.folder import RunFolder
from rlhflab.scenarios import scenario

SHOWN = ("gold", "right", "abstention_recall", "format", "confident_wrong", "words")
COURSE = ("step", "proxy", "gold", "kl", "kl_k3", "words", "entropy", "seconds")
BETTER = (("targeted", "hack"), ("random", "hack"), ("unbiased", "hack"), ("targeted", "random"))


def share(steps: Sequence[int | None]) -> str:
    """Of how many runs a detector fired in."""
    return f"{sum(step is not None for step in steps)} of {len(steps)}" if steps else "not run"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--write", type=Path, help="a page with the marks; printed where absent")
    options = parser.parse_args()
    whole = Results(options.folder)
    text = "\n\n".join(whole.sections())
    if options.write is None:
        print(text)
        return
    page = options.write.read_text(encoding="utf-8")
    options.write.write_text(replaced(page, "reward-hacking", text), encoding="utf-8")
    beside = options.write.with_suffix("")
    beside.mkdir(exist_ok=True)
    (beside / "arms.json").write_text(json.dumps(whole.record(), indent=1) + "\n", encoding="utf-8")
    for name in ("prereg.json", "record.json"):
        shutil.copyfile(options.folder / name, beside / name)


class Results:
    """What an experiment's folder holds."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.prereg = json.loads((path / "prereg.json").read_text())
        self.made = RunFolder(path).read_json("record.json")
        self.summary = RunFolder(path).read_json("summary.json")
        self.task = scenario(self.prereg["scenario"])
        self.seeds = [seed for seed in self.prereg["seeds"] if (path / f"seed-{seed}").is_dir()]
        self.by_seed = {seed: SeedResult(start=self.rows("start", seed), arms={
            name: rows for name in ARMS if (rows := self.rows(name, seed))}) for seed in self.seeds}

    def rows(self, name: str, seed: int) -> list[dict[str, Any]]:
        folder = RunFolder(self.path / f"seed-{seed}" / "evaluation")
        return [row for row in folder.rows(f"{name}.jsonl") if row["mode"] == "sampled"]

    def watched(self, name: str, seed: int) -> Watched:
        return watched_in(RunFolder(self.path / f"seed-{seed}" / name))

    def sections(self) -> Iterator[str]:
        versions = ", ".join(f"{name} {self.made['versions'][name]}" for name in ("torch", "transformers", "peft"))
        yield (f"{self.made['started'][:10]}, {self.made['machine']}, commit {self.made['commit']}, {versions}. Dose "
               f"{self.prereg['dose']:g}, {self.prereg['method']}, {self.prereg['steps']} rollouts an arm, seeds "
               f"{', '.join(map(str, self.prereg['seeds']))}; {self.prereg['evaluation_prompts']} prompts x "
               f"{self.prereg['evaluation_samples']} samples. "
               f"{sum(len(result.arms) for result in self.by_seed.values())} arms and seeds were evaluated.")
        starts = [["start", str(seed), *(cell(rates(self.task, result.start, "sampled")[measure]) for measure in SHOWN)]
                  for seed, result in self.by_seed.items() if result.start]
        yield "### Arms\n\n" + table(["arm", "seed", *SHOWN], [
            *starts, *([name, str(seed), *(cell(self.rates(name, seed)[measure]) for measure in SHOWN)]
                       for name in ARMS for seed, result in self.by_seed.items() if name in result.arms)])
        yield "### Paired changes over the seeds\n\n" + table(["measure", *(f"{a} - {b}" for a, b in BETTER)], [
            [measure, *(change(self.change(measure, a, b)) for a, b in BETTER)] for measure in SHOWN])
        yield "### What can be decided\n\n" + "\n".join(f"- {line}" for line in self.decided())
        yield "### Detectors over the seeds\n\n" + table(
            ["detector", "fires on hack", "steps after the crossing", "fires on unbiased", "fires on oracle"],
            list(self.alarms()))
        yield "### Gold on the fixed prompts, and alarms\n\n" + table(
            ["arm", "seed", "gold at steps 0, 2, 4 ...", "crossing", "named alarms", "other alarms"],
            list(self.courses()))

    def rates(self, name: str, seed: int) -> dict[str, Any]:
        return rates(self.task, self.by_seed[seed].arms[name], "sampled")

    def change(self, measure: str, after: str, before: str) -> Estimate:
        has = [result for result in self.by_seed.values() if after in result.arms and before in result.arms]
        return change_of(has, measure, after, before)

    def decided(self) -> Iterator[str]:
        hacking = self.summary.get("hacking")
        if hacking is not None:
            for row in hacking["criteria"]:
                yield f"{row['id']}: {'holds' if row['passed'] else 'fails'}. {row['statement']} {row['says']}."
            for row in hacking["not_evaluated"]:
                yield f"{row['id']}: not decided, {row['reason']}."
            return
        both = [result for result in self.by_seed.values() if {"hack", "targeted"} <= result.arms.keys()]
        pairs = [pair for result in both for pair in first_samples(paired(result, "targeted", "hack"))]
        gain = [float(a["measures"]["strict"]) - float(b["measures"]["strict"]) for a, b in pairs]
        over = change_of(both, "gold", "targeted", "hack")
        yield f"3, first half: gold(targeted) - gold(hack) = {change(over)}, asked .20."
        yield (f"4: strict gold, targeted against hack, McNemar p = {sign_test(gain):.2g} ({gain.count(1.0)} prompts "
               f"gained, {gain.count(-1.0)} lost, n = {len(gain)}), asked below .01.")
        yield "6, second half: gold(targeted) - gold(hack) by seed " + ", ".join(
            change(change_of([result], "gold", "targeted", "hack")) for result in both) + "."
        hacks, unbiased = ([self.watched(name, seed) for seed, result in self.by_seed.items() if name in result.arms]
                           for name in ("hack", "unbiased"))
        alarm = alarm_in_time(hacks, unbiased, Thresholds())
        yield f"7: not decided, {alarm.reason}" if isinstance(alarm, Undecided) else \
            f"7: {'holds' if alarm.passed else 'fails'}: {alarm.says}."
        if not all(result.start for result in self.by_seed.values()):
            yield "1, 2, 5 and the other halves of 3 and 6 compare with the start, which was not evaluated in this run."

    def alarms(self) -> Iterator[list[str]]:
        """Of each detector that ran: where it fired, how late, and where it should not have."""
        runs = {name: [self.watched(name, seed) for seed, result in self.by_seed.items() if name in result.arms]
                for name in ("hack", "unbiased", "oracle")}
        for name in sorted({name for seen in runs["hack"] for name in seen.fired}):
            steps = [(seen.fired.get(name), seen.crossing(Thresholds().crossing)) for seen in runs["hack"]]
            late = [str(step - crossing) for step, crossing in steps if step is not None and crossing is not None]
            yield [f"{name}{' (named)' if name in ALARMS else ''}", share([step for step, _ in steps]),
                   ", ".join(late) or "-",
                   *(share([seen.fired[name] for seen in runs[arm] if name in seen.fired])
                     for arm in ("unbiased", "oracle"))]

    def courses(self) -> Iterator[list[str]]:
        for name in ARMS:
            for seed, result in self.by_seed.items():
                if name in result.arms and (seen := self.watched(name, seed)).gold:
                    crossing = seen.crossing(Thresholds().crossing)
                    at = {key: step for key, step in seen.fired.items() if step is not None}
                    named, other = ([f"{key} {step}" for key, step in at.items() if (key in ALARMS) is wanted]
                                    for wanted in (True, False))
                    yield [name, str(seed), " ".join(f"{gold:.2f}".lstrip("0") for _, gold in seen.gold),
                           "-" if crossing is None else str(crossing), ", ".join(named) or "-", ", ".join(other) or "-"]

    def record(self) -> dict[str, Any]:
        """Rates and courses of each arm and seed, as JSON."""
        return {f"{name}, seed {seed}": {
            "rates": self.rates(name, seed), "fired": self.watched(name, seed).fired,
            "gold_on_fixed_prompts": self.watched(name, seed).gold,
            "steps": [{key: row.get(key) for key in COURSE}
                      for row in RunFolder(self.path / f"seed-{seed}" / name).rows("metrics.jsonl")]}
            for name in ARMS for seed, result in self.by_seed.items() if name in result.arms}


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def cell(rate: dict[str, float]) -> str:
    return f"{rate['mean']:.2f} [{rate['low']:.2f}, {rate['high']:.2f}]"


def change(of: Estimate) -> str:
    return f"{of.mean:+.3f} [{of.low:+.3f}, {of.high:+.3f}], n = {of.n}"


if __name__ == "__main__":
    main()
