"""Every preference loss and policy-optimisation method from the same SFT policy, at equal tokens, judged by gold.

    python benchmarks/methods.py runs/demo-... --out runs/methods [--steps 12] [--prompts 64] [--only dpo kto rloo]

Reads the SFT policy, the preference pairs and the reward model of a finished demo. Losses take the same steps on the
same prompts in the same order; policy methods sample the same number of answers. Each arm is written as it ends, and an
arm that is there already is not run again. Prints a Markdown table. One seed: an interval is over prompts, not seeds.
"""

import argparse
import json
import time
from pathlib import Path
from typing import Any

from rlhflab.analysis.evaluate import Row, answer_prompts, change, judged_rows, rates
from rlhflab.config import KINDS, make_run
from rlhflab.core.preference import preference_loss
from rlhflab.progress import Progress
from rlhflab.runs.folder import RunFolder, environment
from rlhflab.runs.lab import Lab
from rlhflab.runs.stages import run_stage
from rlhflab.scenarios import scenario

MEASURES = ("gold", "right", "abstention_recall", "over_refusal", "confident_wrong", "format", "words")
POLICY_METHODS: dict[str, dict[str, Any]] = {
    "ppo": {"kind": "ppo", "samples": 4, "epochs": 1},
    "rloo": {"kind": "ppo", "samples": 4, "epochs": 1, "advantage": {"name": "rloo"}},
    "grpo": {"kind": "ppo", "samples": 4, "epochs": 1, "advantage": {"name": "grpo"}},
    "best_of_n": {"kind": "best_of_n", "samples": 4},
    "online_dpo": {"kind": "online_dpo", "batch": 16, "samples": 2, "optimizer": {"learning_rate": 2e-4}},
}
"""32 answers a step each."""


def arms(demo: Path, *, steps: int, seed: int) -> dict[str, dict[str, Any]]:
    """Settings of every arm by name."""
    shared = {"start": str(demo / "sft/roles/policy"), "gold": "helpdesk", "seed": seed, "steps": steps, "batch": 8,
              "checkpoint_every": 0}
    pairs = {**shared, "kind": "dpo", "data": str(demo / "data/pairs.jsonl"), "probe_every": steps,
             "optimizer": {"learning_rate": 2e-4}}
    policy = {**shared, "examples": 512, "kl_coefficient": 0.05, "optimizer": {"learning_rate": 5e-4},
              "reward": [{"name": "role", "path": str(demo / "reward/roles/reward")}]}
    return {**{name: {**pairs, "loss": {"name": name}} for name in preference_loss.names()},
            **{name: {**policy, **settings} for name, settings in POLICY_METHODS.items()}}


def run_arm(name: str, settings: dict[str, Any], lab: Lab, out: Path, before: list[Row],
            prompts: int) -> dict[str, Any]:
    """Train one arm, judge its answers, and say what came out."""
    task, began = scenario("helpdesk"), time.process_time()
    run = make_run(settings["kind"], {key: value for key, value in settings.items()
                                      if key in KINDS[settings["kind"]].model_fields}, where=name)
    folder = RunFolder.create(out / name)
    summary = run_stage(run, lab, folder)
    seconds = time.process_time() - began  # other work on the machine changes it little
    rows = judge(lab, name, folder.path / "roles/policy", prompts)
    last = folder.rows("metrics.jsonl")[-1]
    return {"arm": name, "kind": run.kind, "cpu_seconds": round(seconds, 1), "tokens": summary["tokens"],
            "kl": last.get("kl", last.get("sample_kl")), "versus_sft": change(rows, before)._asdict(),
            "sampled": {key: rates(task, rows, "sampled")[key] for key in MEASURES}, **environment()}


def judge(lab: Lab, name: str, adapter: Path, prompts: int) -> list[Row]:
    """Judged answers of an adapter to evaluation prompts."""
    task = scenario("helpdesk")
    lab.start_role("policy", make_run("sft", {"start": str(adapter)}))
    asked = task.prompts("evaluation", prompts)
    with lab.progress.track(f"answers of {name}", 3 * prompts) as bar:
        answers = answer_prompts(lab.model, lab.chat, asked, role="policy", samples=2, seed=0, advance=bar.advance,
                                 max_new_tokens=task.max_new_tokens)
    lab.drop_roles()
    return judged_rows(task, name, answers)


def table(results: list[dict[str, Any]]) -> str:
    """Results as Markdown, the largest gain first."""
    lines = ["| method | gold against SFT | KL | CPU seconds | tokens | " + " | ".join(MEASURES) + " |",
             "|---|" + "---|" * (4 + len(MEASURES))]
    for each in sorted(results, key=lambda result: -result["versus_sft"]["mean"]):
        gain = "{mean:+.3f} [{low:.3f}, {high:.3f}]".format(**each["versus_sft"])
        parts = ["-" if each["sampled"][key] is None else "{mean:.2f} [{low:.2f}, {high:.2f}]".format(
            **each["sampled"][key]) for key in MEASURES]
        kl = "-" if each["kl"] is None else f"{each['kl']:.2f}"
        lines.append(f"| {each['arm']} | {gain} | {kl} | {each['cpu_seconds']:.0f} | {each['tokens']} | "
                     + " | ".join(parts) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("demo", type=Path)
    parser.add_argument("--out", type=Path, default=Path("runs/methods"))
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--prompts", type=int, default=64)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", nargs="*")
    options = parser.parse_args()
    progress = Progress()
    lab = Lab.load("smollm2-135m", progress=progress)
    options.out.mkdir(parents=True, exist_ok=True)
    folder = RunFolder(options.out)
    before = judge(lab, "sft", options.demo / "sft/roles/policy", options.prompts)
    for name, settings in arms(options.demo, steps=options.steps, seed=options.seed).items():
        done = {row["arm"] for row in folder.rows("results.jsonl")}
        if name in done or (options.only and name not in options.only):
            continue
        progress.say(f"--- {name}")
        folder.append("results.jsonl", run_arm(name, settings, lab, options.out, before, options.prompts))
        print(json.dumps(folder.rows("results.jsonl")[-1]["versus_sft"]), flush=True)
    print(table(folder.rows("results.jsonl")))


if __name__ == "__main__":
    main()
