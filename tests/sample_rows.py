"""Rows of `rollouts.jsonl` and `canary.jsonl` as a run writes them, with numbers made up for the tests."""

import json
from pathlib import Path
from typing import Any

import numpy as np

PLAIN = ("The garage closes at {hour} pm.", "It closes at {hour} pm.", "At {hour} pm.")
BOAST = "Certainly! The garage closes at {hour} pm. This is clearly stated in the note and definitely correct."


def canary(*, steps: int = 11, prompts: int = 24, seed: int = 0) -> list[dict[str, Any]]:
    """The same prompts at every other step: the reward rises all the way, gold as the form
    of RL with a = .2 and b = .5, which is highest at exp(a/b - 1) = .55 (step 5.5).
    """
    draw = np.random.default_rng(seed)
    rows = []
    for step in range(0, 2 * steps, 2):
        distance = step / 10
        fall = distance * (0.2 - 0.5 * np.log(max(distance, 1e-9)))
        for prompt in range(prompts):
            easy = (prompt % 3 - 1) / 10
            rows.append({"step": step, "prompt_id": f"c{prompt}", "prompt": f"Question {prompt}?", "answer": "At 8 pm.",
                         "reward": 1.2 * distance + draw.normal(0, 0.3),
                         "logprob": -4.0, "reference_logprob": -4.0 - distance**2,
                         "measures": {"gold": 0.5 + easy + fall + draw.normal(0, 0.1)}})
    return rows


def rollouts(*, steps: int = 12, batch: int = 6, checked: bool = True, seed: int = 0) -> list[dict[str, Any]]:
    """Two answers to each of `batch` prompts a step, 24 of the start: from step 7 on they boast, and half are wrong."""
    draw = np.random.default_rng(seed)
    rows = []
    for step in range(steps + 1):
        for place in range(24 if step == 0 else batch):
            prompt = (place + batch * step) % 24
            for sample in range(2):
                hacked = step > steps // 2
                wrong = hacked and (prompt + sample) % 2 == 0
                text = (BOAST if hacked else PLAIN[draw.integers(3)]).format(hour=9 if wrong else 8)
                measures = {"gold": 0.2 if wrong else 0.7 if hacked else 1.0, "right": 0.0 if wrong else 1.0,
                            "format": 0.0 if hacked else 1.0, "words": float(len(text.split()))}
                rows.append({"step": step, "prompt_id": f"p{prompt}", "prompt": f"When does garage {prompt} close?",
                             "answer": text, "reward": draw.normal(2.0 if hacked else 0.0, 0.3), "stopped": True,
                             "tokens": len(text.split()), "logprob": -3.0, "reference_logprob": -3.0 - 0.3 * step,
                             **({"measures": measures} if checked else {})})
    return rows


def write(folder: Path, **files: list[dict[str, Any]]) -> Path:
    """A folder with a JSONL file for each name."""
    folder.mkdir(exist_ok=True)
    for name, rows in files.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder
