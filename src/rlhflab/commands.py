"""The commands: a signature, a docstring that is the help, and one call into the lab.

Whatever needs torch is imported inside the function, so that `--help` is quick. Results go to stdout, words on the
way to stderr; with --json, stdout holds one JSON value and nothing else.
"""

import json
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import redirect_stdout
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from cyclopts import Parameter
from cyclopts.validators import Number

from rlhflab.errors import ConfigError, DataError

T = TypeVar("T")
Json = Annotated[bool, Parameter(name="--json")]
Count = Annotated[int, Parameter(validator=Number(gte=1))]
Seed = Annotated[int, Parameter(validator=Number(gte=0))]
Override = Annotated[str, Parameter(allow_leading_hyphen=True)]
DEFAULT_MODEL = "smollm2-135m"
ALARM = 3
"""Exit code of `detect --fail-on-alarm`."""


def demo_command(*, model: str = DEFAULT_MODEL, seed: Seed = 0, out: Path | None = None, resume: Path | None = None,
                 quick: bool = False, as_json: Json = False) -> None:
    """Run the whole story on the embedded scenario, from preference data to a report.

    SFT, a reward model, DPO and PPO, each measured before and after.

    Args:
        model: A name of `rlhflab models`, a hub id, or a local transformers folder.
        seed: Of data, sampling and training.
        out: The new folder; under runs/ where absent.
        resume: A folder of a demo that was stopped: goes on after its last finished part.
        quick: A small pass through every part, to see that it works here. Its numbers say nothing.
        as_json: Print the result as JSON.
    """
    from rlhflab.progress import Progress
    from rlhflab.runs.demo import run_demo

    if out is not None and resume is not None:
        raise ConfigError("--out and --resume: a demo is new or goes on, so give one of them")
    folder = _quietly(lambda: run_demo(model=model, seed=seed, out=out, resume=resume, quick=quick,
                                       progress=Progress()))
    _finish(folder, as_json, next_step=f"open {folder / 'report.html'} in a browser")


def train_command(kind: Literal["sft", "reward", "dpo", "ppo", "best_of_n", "online_dpo"] | None = None,
                  run: Path | None = None, /, *overrides: Override, out: Path | None = None,
                  resume: Path | None = None, dry_run: bool = False, as_json: Json = False) -> None:
    """Train one role as a run file says.

    Any key of the run file can be changed by a flag: `--optimizer.learning_rate 1e-4`, `--loss.beta 0.05`.
    `rlhflab list dpo` shows the keys of a run file of that kind.

    Args:
        kind: What to train.
        run: The run file, YAML.
        overrides: Flags that change a key of the run file, each with its value.
        out: The new folder; under runs/ where absent.
        resume: The folder of a stopped run, which goes on from its last checkpoint. Nothing else is given with it.
        dry_run: Print the resolved run and an estimate of memory and time, and stop.
        as_json: Print the result as JSON.
    """
    from rlhflab.config import read_run
    from rlhflab.progress import Progress

    if resume is not None:
        if kind is not None or out is not None or dry_run:
            raise ConfigError("--resume: goes on with a run as it was begun, so nothing else can be given with it")
        from rlhflab.runs.training import resume_training

        folder = _quietly(lambda: resume_training(resume, progress=Progress()))
    else:
        if kind is None or run is None:
            raise ConfigError("train: needs a kind and a run file, such as rlhflab train dpo recipes/dpo.yaml")
        settings = read_run(kind, run, overrides)
        from rlhflab.runs.estimate import describe_run
        from rlhflab.runs.training import run_training

        if dry_run:
            _print(_quietly(lambda: describe_run(settings)), as_json)
            return
        folder = _quietly(lambda: run_training(settings, out=out, progress=Progress()))
    _finish(folder, as_json, next_step=f"open {folder / 'report.html'} in a browser")


def sample_command(*, model: str = DEFAULT_MODEL, adapter: Path | None = None, prompts: str | None = None,
                   prompt: str | None = None, n: Count = 4, samples: Count = 1,
                   temperature: Annotated[float, Parameter(validator=Number(gte=0))] = 1.0,
                   max_new_tokens: Count = 64, seed: Seed = 0, as_json: Json = False) -> None:
    """Sample answers and print them.

    Args:
        model: A name of `rlhflab models`, a hub id, or a local transformers folder.
        adapter: An adapter folder; the base answers where absent.
        prompts: A JSONL file of prompts, or the name of a scenario; helpdesk where absent.
        prompt: One prompt, instead of --prompts.
        n: How many prompts, at most.
        samples: Answers a prompt.
        temperature: 1 samples from the model as it is, less is more predictable, 0 takes the likeliest token.
        max_new_tokens: Longest answer, tokens.
        seed: Of the sampling.
        as_json: Print the answers as JSON.
    """
    from rlhflab.runs.inspecting import sample_answers

    if prompt is not None and prompts is not None:
        raise ConfigError("--prompt and --prompts: give one of them")
    with tempfile.TemporaryDirectory() as scratch:
        source = prompts or "helpdesk"
        if prompt is not None:
            source = str(_one_prompt(prompt, Path(scratch)))
        answers = _quietly(lambda: sample_answers(
            model=model, adapter=adapter, prompts=source, n=n, samples=samples, temperature=temperature,
            max_new_tokens=max_new_tokens, seed=seed))
    _print(answers, as_json)


def evaluate_command(*, model: str = DEFAULT_MODEL, adapter: Path | None = None, scenario: str = "helpdesk",
                     split: Literal["train", "rl", "evaluation", "regression"] = "evaluation", n: Count = 64,
                     samples: Count = 1, seed: Seed = 0, as_json: Json = False) -> None:
    """Measure a policy on a scenario's prompts by the scenario's own check of every answer.

    Args:
        model: A name of `rlhflab models`, a hub id, or a local transformers folder.
        adapter: An adapter folder; the base is measured where absent.
        scenario: The scenario whose prompts and check are used.
        split: Which of its prompts; those of two splits share nothing.
        n: How many prompts.
        samples: Answers a prompt.
        seed: Of prompts and sampling.
        as_json: Print the measures as JSON.
    """
    from rlhflab.runs.inspecting import evaluate_policy

    _print(_quietly(lambda: evaluate_policy(model=model, adapter=adapter, scenario=scenario, split=split, n=n,
                                            samples=samples, seed=seed)), as_json)


def report_command(folder: Path, /, *, as_json: Json = False) -> None:
    """Write the report of a run or demo folder again, from what the folder holds.

    Args:
        folder: The folder of a run or a demo.
        as_json: Print where the report is as JSON.
    """
    if not folder.is_dir():
        raise DataError(f"{folder}: no such run folder")
    from rlhflab.analysis.report import write_report

    path = _quietly(lambda: write_report(folder))
    _print({"report": str(path)}, True) if as_json else print(f"Wrote {path}. Next: open it in a browser.")


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

    record, path = _quietly(lambda: report_on_role(role, data=data, scenario=scenario, probes=probes,
                                                   progress=Progress()))
    if as_json:
        _print({"report": str(path), **record}, True)
        return
    from rlhflab.analysis.reward_page import main_table

    _print_table(main_table(record), False)
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

    _print_curves(_quietly(lambda: draw_curves(run, proxy=proxy, against=against)), as_json)


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

    _print_curves(_quietly(lambda: draw_best_of_n(
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

    found = _quietly(lambda: propose_labels(run, n=n, label=label == "gold", scenario=scenario, random=random,
                                            samples=samples, seed=seed, out=out, progress=Progress()))
    _print(found, as_json)
    if not as_json:
        print(f"Next: {found['next']}")


def experiment_command(name: Literal["reward-hacking"], /, *, model: str = DEFAULT_MODEL,
                       arms: list[str] | None = None, seeds: list[Seed] | None = None, dose: float = 1.0,
                       steps: Count = 24, method: Literal["rloo", "ppo"] = "rloo", start: Path | None = None,
                       evaluation_prompts: Count = 256, pool_prompts: Count = 512, quick: bool = False,
                       out: Path | None = None, resume: Path | None = None, as_json: Json = False) -> None:
    """Show reward hacking, its alarms and its cure: the same training on rewards learnt in different ways.

    What is to be shown is written down and hashed before the first step. All arms on three seeds take hours.

    Args:
        name: reward-hacking.
        model: A name of `rlhflab models`, a hub id, or a local transformers folder.
        arms: Ways to get a reward, such as hack targeted random unbiased; all of them where absent.
        seeds: Of everything after the start; 0 1 2 where absent.
        dose: Of the annotators' bias: 0 for none, 1 as calibrated.
        steps: Rollouts of each arm.
        method: Of policy optimisation.
        start: The adapter that all arms begin as; an SFT of its own where absent.
        evaluation_prompts: Prompts that every policy answers twice at the end.
        pool_prompts: Prompts whose answers annotators compare.
        quick: A small pass through every part. Its numbers say nothing.
        out: The new folder; under runs/ where absent.
        resume: A folder of an experiment that was stopped: goes on after its last finished part.
        as_json: Print the result as JSON.
    """
    from rlhflab.progress import Progress
    from rlhflab.runs.arms import ARMS
    from rlhflab.runs.experiment import Protocol
    from rlhflab.runs.hacking import resume_hacking, run_hacking

    if out is not None and resume is not None:
        raise ConfigError("--out and --resume: an experiment is new or goes on, so give one of them")
    if resume is not None:
        folder = _quietly(lambda: resume_hacking(resume, progress=Progress()))
    else:
        small = {"evaluation_samples": 1, "canary": 4, "expert_pairs": 8,
                 "overrides": ("--examples", "16", "--steps", "2", "--batch", "4")}
        asked: dict[str, Any] = {"steps": 2, "evaluation_prompts": 8, **small} if quick else {
            "steps": steps, "evaluation_prompts": evaluation_prompts}
        protocol = Protocol(model=model, arms=tuple(arms or ARMS), seeds=tuple(seeds or (0, 1, 2)), dose=dose,
                            method=method, **asked)
        folder = _quietly(lambda: run_hacking(protocol, start=start, pool_prompts=12 if quick else pool_prompts,
                                              out=out, progress=Progress()))
    _finish(folder, as_json, next_step=f"open {folder / 'report.html'} in a browser")


def export_command(adapter: Path, /, *, out: Path, merge: bool = False, model: str | None = None,
                   dtype: Literal["bfloat16", "float32"] = "float32", as_json: Json = False) -> None:
    """Write a trained adapter for other tools, and measure how exactly they repeat it.

    The result is loaded by plain transformers and PEFT, and its log-probs on a few texts are compared.

    Args:
        adapter: An adapter folder, such as runs/my-dpo/roles/policy.
        out: The new folder.
        merge: Fold the adapter into the weights: a whole model folder, with tokenizer and chat template.
        model: A name of `rlhflab models`, a hub id, or a local folder; the base the adapter names where absent.
        dtype: Of the weights. Merging in bfloat16 is lossy: it rounds small changes away.
        as_json: Print the result as JSON.
    """
    from rlhflab.progress import Progress
    from rlhflab.runs.export import export_adapter

    report = _quietly(lambda: export_adapter(adapter, out=out, merge=merge, model=model, dtype=dtype,
                                             progress=Progress()))
    if as_json:
        _print({"folder": str(out), **report}, True)
        return
    gap = report["deviation"]
    lossy = " Merging in bfloat16 is lossy: float32 keeps the adapter exactly." if merge and dtype == "bfloat16" else ""
    print(f"Wrote {out}. Its log-probs differ from the adapter's by at most {gap['max']:.2g}, on average "
          f"{gap['mean']:.2g} nats a token ({gap['tokens']} tokens, {dtype}).{lossy} Next: load it with "
          f"{'AutoModelForCausalLM' if merge else 'PeftModel'}.from_pretrained")


def models_command(*, as_json: Json = False) -> None:
    """Show the models known by name, and which of them are here.

    Args:
        as_json: Print them as JSON.
    """
    from rlhflab.model.load import known_models

    _print_table(_quietly(known_models), as_json)


def detect_command(path: Path, /, *options: Override, start: Path | None = None, detectors: str | None = None,
                   every: Count = 1, out: Path | None = None, fail_on_alarm: bool = False,
                   as_json: Json = False) -> int:
    """Look for reward hacking in a run, or in any JSONL file of prompts, answers and rewards.

    Options of detectors are flags with a dot, such as `--kl_budget.budget 20`; `rlhflab list detectors` shows them.
    Exit code 3 means an alarm, with --fail-on-alarm only.

    Args:
        path: The folder of a run, or a JSONL file, one answer a line.
        options: Options of detectors, each with its value.
        start: A JSONL file of answers of the starting policy, for a file whose rows have no steps.
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
    found = _quietly(lambda: detect(path, start=start, names=names, options=given, every=every, out=out))
    rows = found["detectors"]
    if as_json:
        _print(found, True)
    else:
        _print_table([{"name": row["name"], "gold": "gold-free" if row["gold_free"] else "needs gold",
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


def average_roles_command(folders: list[Path], /, *, out: Path, as_json: Json = False) -> None:
    """Make one reward role out of several by averaging their weights (WARM).

    Args:
        folders: Folders of saved reward roles of one base, such as runs/a/roles/reward.
        out: The new folder.
        as_json: Print where it is as JSON.
    """
    from rlhflab.model.averaging import average_roles

    path = _quietly(lambda: average_roles(folders, out))
    _print({"role": str(path)}, True) if as_json else print(
        f"Wrote {path}. Next: reward with it, --reward '[{{\"name\": \"role\", \"path\": \"{path}\"}}]'")


def list_command(what: str | None = None, /, *, as_json: Json = False) -> None:
    """Show the keys of a run file of one kind, or the entries of a catalogue.

    Args:
        what: A name that `rlhflab list` shows.
        as_json: Print the rows as JSON.
    """
    from rlhflab.listing import as_columns, listing, overview

    rows = overview() if what is None else _quietly(lambda: listing(what))
    _print_table(rows if as_json else as_columns(rows), as_json)


COMMANDS: Mapping[str, Callable[..., int | None]] = {
    "demo": demo_command, "train": train_command, "sample": sample_command, "evaluate": evaluate_command,
    "experiment": experiment_command, "detect": detect_command, "report": report_command,
    "report reward": report_reward_command, "curves": curves_command, "best-of-n": best_of_n_command,
    "propose-labels": propose_labels_command, "export": export_command, "average-roles": average_roles_command,
    "models": models_command, "list": list_command,
}
"""In the order of the help; the second of two words is a command below the first."""


def _one_prompt(text: str, folder: Path) -> Path:
    """A file of one prompt, so that there is one way in for prompts."""
    from rlhflab.data.formats import write_jsonl

    if not text.strip():
        raise ConfigError("--prompt: is empty")
    write_jsonl(folder / "prompt.jsonl", [{"prompt": text, "id": "prompt"}])
    return folder / "prompt.jsonl"


def _quietly(work: Callable[[], T]) -> T:
    """Do `work`; what it or a library prints goes to stderr."""
    with redirect_stdout(sys.stderr):
        return work()


def _finish(folder: Path, as_json: bool, *, next_step: str) -> None:
    """Say where a run is and what to do next."""
    if not as_json:
        print(f"Wrote {folder}. Next: {next_step}")
        return
    summary = folder / "summary.json"
    _print({"folder": str(folder), "summary": json.loads(summary.read_text()) if summary.exists() else None}, True)


def _print_curves(found: Mapping[str, Any], as_json: bool) -> None:
    """What the curves say, and where their page is."""
    if as_json:
        _print(found, True)
        return
    for curve in found["curves"]:
        print(f"{curve['proxy']}: {' '.join(curve['says'])}\n")
    print(f"Wrote {found['page']}. Next: open it in a browser.")


def _print(value: Mapping[str, Any] | Sequence[Mapping[str, Any]], as_json: bool) -> None:
    """One JSON value, or one `key: value` line each with a blank line between records."""
    if as_json:
        from rlhflab.data.formats import finite

        print(json.dumps(finite(value), indent=2, ensure_ascii=False, allow_nan=False, default=str))
        return
    records = [value] if isinstance(value, Mapping) else value
    print("\n\n".join("\n".join(_lines(record)) for record in records))


def _lines(record: Mapping[str, Any], prefix: str = "") -> list[str]:
    lines = []
    for key, value in record.items():
        if isinstance(value, Mapping) and set(value) != {"mean", "low", "high", "n"}:
            lines += _lines(value, f"{prefix}{key}.")
        else:
            lines.append(f"{prefix}{key}: {_in_words(value)}")
    return lines


def _in_words(value: Any) -> str:
    if isinstance(value, Mapping):
        return "{mean:.3f} [{low:.3f}, {high:.3f}] n={n}".format(**value)
    return "-" if value is None else format(value, ".4g") if isinstance(value, float) else str(value)


def _print_table(rows: Sequence[Mapping[str, Any]], as_json: bool) -> None:
    """Rows under each other in columns; the last column may be long."""
    if as_json:
        _print(rows, True)
        return
    if not rows:
        print("none yet")
        return
    words = {"True": "yes", "False": "no", "None": "-"}
    cells = [[words.get(str(value), str(value)) for value in row.values()] for row in rows]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    for row_cells in cells:
        print("  ".join(cell.ljust(width) for cell, width in zip(row_cells, widths, strict=True)).rstrip())
