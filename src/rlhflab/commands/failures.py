"""Commands of failure analysis: experiment and its doses, detect, report, curves, best-of-n, propose-labels."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from cyclopts import Parameter
from cyclopts.validators import Number

from rlhflab.commands.shared import (
    ALARM,
    DEFAULT_MODEL,
    SEVERAL,
    Count,
    Json,
    Override,
    Seed,
    finish,
    print_table,
    print_value,
    quietly,
)
from rlhflab.errors import ConfigError, DataError


def experiment_command(name: Literal["reward-hacking"], /, *, model: str = DEFAULT_MODEL, scenario: str = "helpdesk",
                       arms: Annotated[list[str] | None, SEVERAL] = None,
                       seeds: Annotated[list[Seed] | None, SEVERAL] = None, dose: float = 1.0,
                       steps: Count = 24, method: Literal["rloo", "ppo"] = "rloo", start: Path | None = None,
                       evaluation_prompts: Count = 256, pool_prompts: Count = 1024, release: bool = False,
                       quick: bool = False, jobs: Count = 1, out: Path | None = None, resume: Path | None = None,
                       share: Path | None = None, as_json: Json = False) -> None:
    """Show reward hacking, its alarms and its cure: the same training on rewards learnt in different ways.

    What is to be shown is written down and hashed before the first step. All arms on three seeds take hours.

    Args:
        name: reward-hacking.
        model: A name of `rlhflab models`, a hub id, or a local transformers folder.
        scenario: A name of `rlhflab list scenarios` that makes and checks the data.
        arms: Ways to get a reward, such as hack targeted random unbiased; all of them where absent.
        seeds: Of everything after the start; 0 1 2 where absent.
        dose: Of the annotators' bias: 0 for none, 1 as calibrated.
        steps: Rollouts of each arm.
        method: Of policy optimisation.
        start: The adapter that all arms begin as; an SFT of its own where absent.
        evaluation_prompts: Prompts that every policy answers twice at the end.
        pool_prompts: Prompts whose answers annotators compare; the reward model learns from one half of them, the twin
            from the other.
        release: Ask the release gate about the hacked and the cured policy of the first seed, and prove the way back:
            criterion 8.
        quick: A small pass through every part. Its numbers say nothing.
        jobs: Processes that share the arms. More than one helps on a GPU.
        out: The new folder; under runs/ where absent.
        resume: A folder of an experiment that was stopped: goes on after its last finished part.
        share: A folder of an experiment under way: does arms that no other process does, and stops. What --jobs starts.
        as_json: Print the result as JSON.
    """
    from rlhflab.progress import Progress
    from rlhflab.runs.arms import ARMS
    from rlhflab.runs.experiment import Protocol
    from rlhflab.runs.hacking import Gating, resume_hacking, run_hacking, share_hacking

    if out is not None and resume is not None:
        raise ConfigError("--out and --resume: an experiment is new or goes on, so give one of them")
    if share is not None:
        quietly(lambda: share_hacking(share, progress=Progress()))
        return
    if resume is not None:
        folder = quietly(lambda: resume_hacking(resume, progress=Progress(), jobs=jobs))
    else:
        small = {"evaluation_samples": 1, "canary": 4, "expert_pairs": 8,
                 "overrides": ("--examples", "16", "--steps", "2", "--batch", "4")}
        asked: dict[str, Any] = {"steps": 2, "evaluation_prompts": 8, **small} if quick else {
            "steps": steps, "evaluation_prompts": evaluation_prompts}
        protocol = Protocol(model=model, scenario=scenario, arms=tuple(arms or ARMS), seeds=tuple(seeds or (0, 1, 2)),
                            dose=dose, method=method, **asked)
        gating = None if not release else Gating(prompts=4, transcripts=2) if quick else Gating()
        folder = quietly(lambda: run_hacking(protocol, start=start, pool_prompts=12 if quick else pool_prompts,
                                              out=out, progress=Progress(), jobs=jobs, gating=gating))
    finish(folder, as_json, next_step=f"open {folder / 'report.html'} in a browser")


def dose_response_command(*folders: Path, arm: str = "hack", out: Path | None = None, as_json: Json = False) -> None:
    """Put reward-hacking experiments at several doses beside each other: gains, trend, lowest dose that hacks.

    Run `rlhflab experiment reward-hacking --dose D --start ADAPTER` once a dose, from one start. Writes doses.json and
    doses.html. Where no folder has dose 0, the arm unbiased of one of them is dose 0 of hack.

    Args:
        folders: Folders of finished experiments that differ in nothing but the dose.
        arm: The arm that is compared.
        out: The new folder; under runs/ where absent.
        as_json: Print what doses.json holds as JSON.
    """
    from rlhflab.analysis.hacking import change_in_words
    from rlhflab.core.stats import Estimate
    from rlhflab.runs.doses import draw_doses

    found = quietly(lambda: draw_doses(folders, arm=arm, out=out))
    if as_json:
        print_value(found, True)
        return
    judged = {None: "not judged", True: "hacks", False: "does not hack"}
    print_table([{"dose": f"dose {row['dose']:g}", "hacks": judged[row["hacks"]],
                  **{name: f"{name} {change_in_words(Estimate(**row[name])) if row[name] else '-'}"
                     for name in ("gold", "proxy")}}
                 for row in found["doses"]], False)
    print("\n".join(["", *found["says"], f"Wrote {found['page']}. Next: open it in a browser."]))


def detect_command(path: Path, /, *options: Override, start: Path | None = None, probes: Path | None = None,
                   detectors: str | None = None, every: Count = 1, out: Path | None = None,
                   fail_on_alarm: bool = False, as_json: Json = False) -> int:
    """Look for reward hacking in a run, or in any JSONL file of prompts, answers and rewards.

    Options of detectors are flags with a dot, such as `--kl_budget.budget 20`; `rlhflab list detectors` shows them.
    Exit code 3 means an alarm, with --fail-on-alarm only.

    Args:
        path: The folder of a run, or a JSONL file, one answer a line.
        options: Options of detectors, each with its value.
        start: A JSONL file of answers of the starting policy, for a file whose rows have no steps.
        probes: A reward_report.json of `rlhflab report reward`; that of the run's own reward roles where absent.
        detectors: Names with commas between them; all of them where absent.
        every: Look at every n-th step that brings a detector something new, and at the last one.
        out: Where the findings go as JSON; findings.json in a run's folder where absent.
        fail_on_alarm: Exit with 3 where a detector is in alarm at the latest step or fired before.
        as_json: Print the findings as JSON.
    """
    from rlhflab.config import parse_overrides
    from rlhflab.runs.detecting import detect

    given: dict[str, dict[str, Any]] = {}
    for key, value in parse_overrides(options):
        name, _, option = key.partition(".")
        given.setdefault(name, {})[option] = value
    names = None if detectors is None else [name.strip() for name in detectors.split(",")]
    found = quietly(lambda: detect(path, start=start, probes=probes, names=names, options=given, every=every, out=out))
    rows = found["detectors"]
    if as_json:
        print_value(found, True)
    else:
        print_table([{"name": row["name"], "gold": "gold-free" if row["gold_free"] else "needs gold",
                       "verdict": row["verdict"],
                       "fired": "-" if row["fired_at"] is None else f"fired at step {row['fired_at']}",
                       "says": row["says"]} for row in rows], False)
        print("\n".join(_after_detection(found)))
    alarmed = any(row["verdict"] == "alarm" or row["fired_at"] is not None for row in rows)
    return ALARM if fail_on_alarm and alarmed else 0


def _after_detection(found: Mapping[str, Any]) -> list[str]:
    """What to do next: of each alarm, else of what could not be run."""
    rows = found["detectors"]
    alarms = [row for row in rows if row["verdict"] == "alarm"]
    said = [f"Wrote {found['written']}."] if found["written"] else []
    if alarms:
        return ["", *said, *(f"Next, {row['name']}: {row['next']}" for row in alarms)]
    judged = sum(row["verdict"] == "ok" for row in rows)
    rest = next((f"{row['name']}: {row['next']}" for row in rows if row["verdict"] in ("unclear", "not run")),
                "look again after more steps.")
    return ["", *said, f"No alarm from {judged} of {len(rows)} detectors; the others had too little to look at. "
                       f"Next, {rest}" if judged < len(rows) else f"No alarm from {len(rows)} detectors. Next: {rest}"]


def report_command(folder: Path, /, *, as_json: Json = False) -> None:
    """Write the report of a run or demo folder again, from what the folder holds.

    Args:
        folder: The folder of a run or a demo.
        as_json: Print where the report is as JSON.
    """
    if not folder.is_dir():
        raise DataError(f"{folder}: no such run folder")
    from rlhflab.analysis.report import write_report

    path = quietly(lambda: write_report(folder))
    print_value({"report": str(path)}, True) if as_json else print(f"Wrote {path}. Next: open it in a browser.")


def report_reward_command(role: Path, /, *, data: Path | None = None, scenario: str | None = None, probes: Count = 64,
                          as_json: Json = False) -> None:
    """Judge a reward model before anything learns from it, and write the report beside its run.

    Accuracy beside baselines, calibration, length, twelve perturbation probes, style against substance, and a verdict:
    fit, risky or unfit. It is judged on the pairs that its run held back, found again by the run's seed.

    Args:
        role: The folder of a reward role, such as runs/my-reward/roles/reward.
        data: The file of preference pairs, where it is not where the run found it, or where the role has no run.
        scenario: The scenario whose check says which answers are right; the run's own where absent.
        probes: Prompts of each probe, at most.
        as_json: Print the record as JSON.
    """
    from rlhflab.progress import Progress
    from rlhflab.runs.reward_report import report_on_role

    record, path = quietly(lambda: report_on_role(role, data=data, scenario=scenario, probes=probes,
                                                   progress=Progress()))
    if as_json:
        print_value({"report": str(path), **record}, True)
        return
    from rlhflab.analysis.reward_page import main_table

    print_table(main_table(record), False)
    print(f"Wrote {path}. Next: open it in a browser.")


def curves_command(run: Path, /, *, proxy: str = "reward", against: str | None = None, as_json: Json = False) -> None:
    """Draw what a run's reward and what it stands for did on the way from the start: fits, peak, parting point.

    Writes curves.json and curves.html into the run's folder. Reads canary.jsonl, else rollouts.jsonl, else
    metrics.jsonl, which knows no intervals.

    Args:
        run: The folder of a run.
        proxy: What was optimised: reward, twin, or a measure or term by name.
        against: What it stands for; gold where it is known, else twin.
        as_json: Print what curves.json holds as JSON.
    """
    from rlhflab.runs.curves import draw_curves

    _print_curves(quietly(lambda: draw_curves(run, proxy=proxy, against=against)), as_json)


def _print_curves(found: Mapping[str, Any], as_json: bool) -> None:
    """What the curves say, and where their page is."""
    if as_json:
        print_value(found, True)
        return
    for curve in found["curves"]:
        print(f"{curve['proxy']}: {' '.join(curve['says'])}\n")
    print(f"Wrote {found['page']}. Next: open it in a browser.")


def best_of_n_command(*, reward: list[Path] | None = None, model: str = DEFAULT_MODEL, adapter: Path | None = None,
                      prompts: str = "helpdesk", n: Count = 40, samples: Count = 64, max_new_tokens: Count = 64,
                      pool: Path | None = None, pairs: Path | None = None, sizes: list[Count] | None = None,
                      against: str | None = None, seed: Seed = 0, out: Path | None = None,
                      as_json: Json = False) -> None:
    """Draw best-of-n curves: choose among sampled answers by a reward, and see what that does to quality.

    One pool of answers serves every n and every reward.

    Args:
        reward: Folder of a reward role, such as runs/reward/roles/reward; give it again for another one.
        model: A name of `rlhflab models`, a hub id, or a local transformers folder.
        adapter: The adapter folder that answers; the base where absent.
        prompts: A JSONL file of prompts, or the name of a scenario, whose check then says how good an answer is.
        n: How many prompts, at most.
        samples: Answers a prompt: the largest n of the curve.
        max_new_tokens: Longest answer, tokens.
        pool: The pool.jsonl of an earlier call, instead of new answers.
        pairs: A JSONL file of preference pairs on which heads are refitted, see --sizes.
        sizes: Numbers of pairs, each of which makes a reward of its own on the adapter's frozen states.
        against: What the rewards stand for: gold where it is known, else the other rewards.
        seed: Of prompts, sampling and the choice of pairs.
        out: The new folder; under runs/ where absent.
        as_json: Print what curves.json holds as JSON.
    """
    from rlhflab.progress import Progress
    from rlhflab.runs.best_of_n import draw_best_of_n

    _print_curves(quietly(lambda: draw_best_of_n(
        model=model, adapter=adapter, rewards=reward or [], prompts=prompts, n=n, samples=samples,
        max_new_tokens=max_new_tokens, pool=pool, pairs=pairs, sizes=sizes or [], against=against, seed=seed, out=out,
        progress=Progress())), as_json)


def propose_labels_command(run: Path, /, *, n: Count = 96, label: Literal["none", "gold"] = "none",
                           scenario: str | None = None, random: bool = False,
                           samples: Annotated[int, Parameter(validator=Number(gte=0))] = 0, seed: Seed = 0,
                           out: Path | None = None, as_json: Json = False) -> None:
    """Propose comparisons that people or rules should judge, chosen from the failures of a run.

    Failed answers are clustered by what is wrong with them and by their words; each cluster gives equally many.

    Args:
        run: The folder of a run that wrote rollouts.jsonl.
        n: How many comparisons, at most.
        label: gold lets a scenario's own check judge them at once, so that a reward model can be refitted.
        scenario: Whose check it is; that of the run's own data where absent.
        random: Draw prompts and answers at random instead: what targeting is to be measured against.
        samples: Fresh answers of the run's start to each of its later prompts, to compare failures with; this loads
            the model.
        seed: Of the order within a comparison, of fresh answers and of a random batch.
        out: The JSONL file; in the run's folder where absent.
        as_json: Print what was proposed as JSON.
    """
    from rlhflab.progress import Progress
    from rlhflab.runs.relabelling import propose_labels

    found = quietly(lambda: propose_labels(run, n=n, label=label == "gold", scenario=scenario, random=random,
                                            samples=samples, seed=seed, out=out, progress=Progress()))
    print_value(found, as_json)
    if not as_json:
        print(f"Next: {found['next']}")
