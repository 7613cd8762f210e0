"""Seconds of training until the project's recipe is as good as the peer's at its end.

Both sides start from the SFT policy of a finished demo and see the same rows. The peer runs at the settings of the
recipe that TRL has too, to the end. Policies are saved on the way, untimed, and judged afterwards by one process: DPO
by its accuracy on held-out pairs, PPO by gold of sampled answers. Each finished piece is kept in the folder, and what
is there is not done again.
"""

import json
import shutil
import sys
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import yaml

from peers.compare import PEERS
from peers.install import environment
from peers.job import Facts, Job, Result, run_module, run_worker

RECIPES = Path(__file__).parents[2] / "recipes"
OURS = ("data", "start", "kind", "model", "examples", "gold")
"""Keys of a recipe that say where from, which the job says here."""
ANSWER = 40
"""Longest answer of PPO, tokens: that of `PpoRun`."""


def run_recipe(task: str, *, demo: Path, out: Path | None, cache: Path, every: int) -> str:
    """Run or go on; the outcome as Markdown."""
    folder = (out or Path("runs") / f"recipe-{task}").resolve()
    folder.mkdir(parents=True, exist_ok=True)
    name, module = PEERS[task]
    python = environment(name, cache.resolve())
    recipe = {key: value for key, value in yaml.safe_load((RECIPES / f"{task}.yaml").read_text()).items()
              if key not in OURS}
    if not (folder / "prepared.json").is_file():
        episodes = recipe["steps"] * recipe["batch"] * recipe.get("samples", 1)
        run_module(Path(sys.executable), "peers.recipe_work", *order(folder, {
            "do": "prepare", "task": task, "demo": str(demo.resolve()), "folder": str(folder), "count": episodes}))
        (folder / "order.done.json").rename(folder / "prepared.json")
    made = json.loads((folder / "prepared.json").read_text())
    jobs = {side: Job(**made, task=task, save_every=every, save_to=str(folder / side), **settings)
            for side, settings in sides(task, recipe).items()}
    results = {side: kept(folder, side, jobs[side], python if side == "peer" else Path(sys.executable),
                          module if side == "peer" else "peers.ours") for side in jobs}
    for side, result in results.items():
        judge(folder, task, side, result, demo)
    quality = {side: json.loads((folder / f"{side}.quality.json").read_text()) for side in results}
    return outcome(task, results, quality)


def sides(task: str, recipe: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Ours by the recipe; the peer at the same batch and rate. TRL's PPO has one answer a prompt and runs in fp32."""
    batch, rate = recipe["batch"] * recipe.get("samples", 1), recipe["optimizer"]["learning_rate"]
    micro = min(batch, 8)
    peer = {"batch": batch, "peer_micro": micro, "learning_rate": rate, "new_tokens": ANSWER, "temperature": 1.0,
            "stops": True}
    return {"peer": {**peer, "precision": "fp32" if task == "ppo" else "bf16"},
            "ours": {**peer, "precision": "bf16", "batch": recipe["batch"], "settings": dict(recipe)}}


def kept(folder: Path, side: str, job: Job, python: Path, module: str) -> Result:
    """The result of a side: what is in the folder, or a new run."""
    path = folder / f"{side}.result.json"
    if not path.is_file():
        shutil.rmtree(job.save_to, ignore_errors=True)  # of a run that was stopped
        Path(job.save_to).mkdir()
        result = run_worker(python, module, job, folder)
        path.write_text(json.dumps(asdict(result)))
    content = json.loads(path.read_text())
    return Result(**{**content, "facts": Facts(**content["facts"])})


def judge(folder: Path, task: str, side: str, result: Result, demo: Path) -> None:
    """Quality of each saved policy, in a file; those that are there are not judged again."""
    run_module(Path(sys.executable), "peers.recipe_work", *order(folder, {
        "do": "judge", "task": task, "demo": str(demo.resolve()), "folder": str(folder), "side": side,
        "steps": [step for step, _ in result.saved]}))


def order(folder: Path, content: Mapping[str, Any]) -> tuple[Path, Path]:
    """Files that tell a process what to do and where to say that it is done."""
    asked = folder / "order.json"
    asked.write_text(json.dumps(content))
    return asked, folder / "order.done.json"


def outcome(task: str, results: Mapping[str, Result], quality: Mapping[str, Mapping[str, float]]) -> str:
    """Seconds of the peer to its end, ours to the first policy that is as good, and their ratio."""
    measure = {"dpo": "accuracy on held-out pairs", "ppo": "gold, sampled"}[task]
    lines = [f"| {task} | step | seconds | {measure} |", "|---|---|---|---|"]
    for side, result in results.items():
        lines += [f"| {side} | {step} | {seconds:.0f} | {quality[side][str(step)]:.3f} |"
                  for step, seconds in result.saved]
    last, needed = results["peer"].saved[-1]
    goal = quality["peer"][str(last)]
    reached = next((seconds for step, seconds in results["ours"].saved if quality["ours"][str(step)] >= goal), None)
    if reached is None:
        return "\n".join([*lines, "", f"Ours does not reach the peer's {goal:.3f}."])
    return "\n".join([*lines, "", f"The peer ends at {goal:.3f} after {needed:.0f} s; ours is there after "
                                  f"{reached:.0f} s: {needed / reached:.1f} times as fast. One seed."])
