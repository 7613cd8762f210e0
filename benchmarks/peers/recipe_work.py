"""The parts of `peers.recipe` that load our model: rows from a demo, and the judging of saved policies."""

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import torch

from peers.job import read_rows
from peers.ours import logprob_sums, prompt_of
from peers.prepare import ids_of
from rlhflab.analysis.evaluate import answer_prompts, judged_rows, rates
from rlhflab.config import make_run
from rlhflab.core.batch import TokenAnswer, Tree
from rlhflab.data.chat import ChatFormat
from rlhflab.data.formats import read_pairs
from rlhflab.data.types import PreferencePair, Prompt
from rlhflab.model.load import model_folder
from rlhflab.model.shared import read_record
from rlhflab.progress import Progress
from rlhflab.runs.lab import Lab
from rlhflab.runs.stages import split_by_prompt
from rlhflab.scenarios import scenario

MODEL, TASK = "smollm2-135m", "helpdesk"
PROMPTS, HELD_OUT = 64, 0.2


def prepare(order: dict[str, Any]) -> dict[str, Any]:
    """Rows and roles of a demo as the workers read them; what a job is made of."""
    folder, demo = Path(order["folder"]), Path(order["demo"])
    lab = Lab.load(MODEL, progress=Progress())
    roles = folder / "roles"
    shutil.rmtree(roles, ignore_errors=True)
    shutil.copytree(demo / "sft" / "roles" / "policy", roles / "policy")
    content: dict[str, Any] = {"model": str(model_folder(MODEL)[0]), "roles": str(roles),
                               "rows": str(folder / "rows.jsonl")}
    if order["task"] == "dpo":
        train, held_out = split_by_prompt(read_pairs(demo / "data" / "pairs.jsonl"), share=HELD_OUT, seed=0)
        write_rows(folder / "held_out.jsonl", [pair_row(lab.chat, pair) for pair in held_out])
        write_rows(folder / "rows.jsonl", [pair_row(lab.chat, pair) for pair in train])
    else:
        shutil.copytree(demo / "reward" / "roles" / "reward", roles / "reward")
        record = read_record(roles / "reward")
        assert record is not None
        content |= {"reward_mean": record.score_mean, "reward_std": record.score_std}
        write_rows(folder / "rows.jsonl", [prompt_row(lab.chat, prompt)
                                           for prompt in scenario(TASK).prompts("rl", order["count"])])
    return content


def pair_row(chat: ChatFormat, pair: PreferencePair) -> dict[str, Any]:
    """A pair as a row of the workers."""
    return {**prompt_row(chat, pair.prompt), "chosen": pair.chosen, "rejected": pair.rejected}


def prompt_row(chat: ChatFormat, prompt: Prompt) -> dict[str, Any]:
    """A prompt as a row of the workers."""
    text = chat.tokenizer.decode(chat.prompt(prompt))
    assert tuple(ids_of(chat, text)) == chat.prompt(prompt), f"row {prompt.id}: tokenised otherwise as one text"
    return {"id": prompt.id, "messages": [{"role": m.role, "content": m.content} for m in prompt.messages],
            "prompt": text, "facts": dict(prompt.facts)}


def write_rows(path: Path, rows: list[dict[str, Any]]) -> None:
    """One object a line."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def judge(order: dict[str, Any]) -> dict[str, Any]:
    """Quality of the policies of a side, written after each one."""
    folder = Path(order["folder"])
    path = folder / f"{order['side']}.quality.json"
    quality: dict[str, float] = json.loads(path.read_text()) if path.is_file() else {}
    lab = Lab.load(MODEL, progress=Progress())
    for step in order["steps"]:
        if str(step) in quality:
            continue
        saved = folder / order["side"] / f"step-{step}"
        lab.start_role("policy", make_run("sft", {"start": str(saved)}))
        quality[str(step)] = accuracy(lab, folder) if order["task"] == "dpo" else gold(lab)
        lab.drop_roles()
        path.write_text(json.dumps(quality))
    return {}


def accuracy(lab: Lab, folder: Path) -> float:
    """Share of held-out pairs whose chosen answer the policy has made more likely, against its start."""
    lab.model.load_role("reference", folder / "roles" / "policy")
    right = []
    for row in read_rows(str(folder / "held_out.jsonl")):
        tree = Tree(prompt=lab.chat.prompt(prompt_of(row)), answers=tuple(
            TokenAnswer(ids=lab.chat.answer(row[side])) for side in ("chosen", "rejected")))
        policy, reference = (torch.tensor(logprob_sums(lab.model, [tree], role)) for role in ("policy", "reference"))
        shift = policy - reference
        right.append(float(shift[0] > shift[1]))
    return sum(right) / len(right)


def gold(lab: Lab) -> float:
    """Mean gold of sampled answers to evaluation prompts."""
    task = scenario(TASK)
    asked = task.prompts("evaluation", PROMPTS)
    answers = answer_prompts(lab.model, lab.chat, asked, role="policy", samples=2, seed=0,
                             advance=lambda answers: None, max_new_tokens=task.max_new_tokens)
    found = rates(task, judged_rows(task, "policy", answers), "sampled")["gold"]
    assert found is not None
    return found["mean"]


if __name__ == "__main__":
    asked, done = map(Path, sys.argv[1:])
    order = json.loads(asked.read_text())
    done.write_text(json.dumps({"prepare": prepare, "judge": judge}[order["do"]](order)))
