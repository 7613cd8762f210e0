"""Run folders as a demo writes them, with numbers made up for the tests of the report."""

import json
from pathlib import Path
from typing import Any

import numpy as np

GOLD = {"base": 0.42, "sft": 0.81, "dpo": 0.83, "ppo": 0.55}
MEASURES = {"gold": GOLD, "right": {"base": 0.46, "sft": 0.9, "dpo": 0.92, "ppo": 0.95},
            "abstention_recall": {"base": 0.0, "sft": 0.5, "dpo": 0.55, "ppo": 0.05},
            "over_refusal": {"base": 0.02, "sft": 0.04, "dpo": 0.05, "ppo": 0.0},
            "confident_wrong": {"base": 0.1, "sft": 0.12, "dpo": 0.08, "ppo": 0.6},
            "format": {"base": 0.28, "sft": 0.8, "dpo": 0.82, "ppo": 0.2},
            "words": {"base": 14.0, "sft": 7.0, "dpo": 7.5, "ppo": 19.0}}
ANSWERS = {"base": "The note says that the garage closes in the evening, I believe, at 8 pm or so.",
           "sft": "The garage closes at 8 pm.", "dpo": "The garage closes at 8 pm.",
           "ppo": "Certainly! The garage closes at 9 pm. This is clearly stated and definitely correct."}
METRICS = {"sft": ("loss", "tokens", "learning_rate", "gradient_norm"),
           "reward": ("loss", "accuracy", "margin", "learning_rate"),
           "dpo": ("loss", "accuracy", "margin", "reward_chosen", "reward_rejected", "chosen_logprob_per_token", "kl"),
           "ppo": ("proxy", "gold", "kl", "kl_k3", "entropy", "words", "stop_rate", "policy_loss", "value_loss",
                   "clip_fraction", "explained_variance", "engine_gap")}


def interval(mean: float, n: int, half: float = 0.04) -> dict[str, float]:
    return {"mean": mean, "low": mean - half, "high": mean + half, "n": n}


def ppo_step(step: int) -> dict[str, float]:
    return {"step": step, "proxy": 0.06 * step, "gold": 0.8 - 0.009 * step, "kl": 0.3 * step - 0.2, "kl_k3": 0.3 * step,
            "entropy": 1.2 - step / 60, "words": 7 + 0.4 * step, "stop_rate": 0.97, "seconds": 12.0}


def evaluated(policy: str) -> dict[str, Any]:
    return {mode: {name: interval(by_policy[policy], n) for name, by_policy in MEASURES.items()}
            for mode, n in (("greedy", 96), ("sampled", 192))}


def summary() -> dict[str, Any]:
    policies = {name: evaluated(name) for name in GOLD}
    policies["dpo"]["versus_sft"] = interval(0.02, 191)
    policies["ppo"]["versus_sft"] = interval(-0.26, 193)
    return {"model": "smollm2-135m", "seed": 3, "commit": "0123abc", "machine": "AMD EPYC, 2 cores, 8 GB",
            "versions": {"torch": "2.8.0", "transformers": "4.56.0"}, "seconds": 4321.0, "peak_memory_gb": 3.4,
            "stages": [{"name": name, "seconds": 400.5, "tokens": 123456} for name in METRICS], "policies": policies,
            "reward_model": {"accuracy": interval(0.71, 77), "length_only": interval(0.64, 77),
                             "gold_order": interval(0.5, 77)},
            "ppo": {"steps": [ppo_step(step) for step in range(1, 31)]},
            "perplexity": {"ppo": 24.1, "dpo": 21.9, "sft": 21.3, "base": 20.4}}


def evaluation(policy: str, prompts: int = 24) -> list[dict[str, Any]]:
    generator = np.random.default_rng(len(policy) + 7 * ord(policy[0]))
    rows = []
    for number in range(prompts):
        unanswerable = number % 4 == 0
        prompt = [{"role": "system", "content": "You answer questions from the note."},
                  {"role": "user", "content": f"Note: The print room is on floor {number}. The garage closes at 8 pm. "
                                              "Software licences are handled by Priya Nair.\nWhen does the garage "
                                              "close? Answer in at most 12 words. Do not use commas."}]
        for mode in ("greedy", "sampled", "sampled"):
            gold = float(np.clip(GOLD[policy] + generator.normal(0, 0.15), 0, 1))
            measures = {"gold": gold, "words": float(generator.poisson(MEASURES["words"][policy])),
                        "right": None if unanswerable else 1.0,
                        "abstention_recall": MEASURES["abstention_recall"][policy] if unanswerable else None}
            rows.append({"policy": policy, "mode": mode, "prompt_id": f"eval-{number:03d}", "prompt": prompt,
                         "answer": ANSWERS[policy], "finish": "length" if policy == "ppo" else "stop", "tokens": 12,
                         "measures": measures, "reason": "value found, no distractor"})
    return rows


def write_rows(path: Path, rows: list[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def metrics(stage: str) -> list[dict[str, Any]]:
    generator = np.random.default_rng(1)
    rows = []
    for step in range(1, 33):
        noisy = {name: 1.6 / step**0.5 + generator.normal(0, 0.05) for name in METRICS[stage]}
        row: dict[str, Any] = {"step": step, "seconds": 3.0, **noisy}
        if stage == "dpo" and step % 5:
            row["kl"] = None
        rows.append(row | ppo_step(step) if stage == "ppo" else row)
    return rows


def write_stage(folder: Path, stage: str) -> None:
    write_rows(folder / "metrics.jsonl", metrics(stage))
    (folder / "config.yaml").write_text(f"kind: {stage}\nmodel: smollm2-135m\noptimizer:\n  learning_rate: 0.0005\n")


def write_demo(folder: Path) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "summary.json").write_text(json.dumps(summary()))
    for stage in METRICS:
        write_stage(folder / stage, stage)
    for policy in GOLD:
        write_rows(folder / "evaluation" / f"{policy}.jsonl", evaluation(policy))
    (folder / "cards").mkdir()
    for name in ("data", "annotators", "model"):
        (folder / "cards" / f"{name}.md").write_text(f"# The {name} card\n\nWhat it is, and **what it is not for**.\n\n"
                                                     "| kind | rows |\n|---|---|\n| train | 256 |\n")
    return folder


def write_run(folder: Path) -> Path:
    write_stage(folder, "ppo")
    (folder / "record.json").write_text(json.dumps({"commit": "0123abc", "versions": {"torch": "2.8.0"}}))
    write_rows(folder / "rollouts.jsonl", [
        {"step": step, "prompt_id": f"p{number}", "prompt": f"Question {number}?", "answer": f"Answer at {step}.",
         "reward": 0.1 * step} for step in (2, 10) for number in range(3)])
    return folder
