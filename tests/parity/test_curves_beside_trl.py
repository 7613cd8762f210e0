"""DPO and reward training follow TRL 1.16 step by step: same LoRA tensors, same rows in the same order, fp32 on a CPU.

TRL tokenises, pads, loads its reference and takes its optimizer steps by itself. Its schedule is ours without warm-up
(linear from the first step); with warm-up it begins at a rate of 0, ours at 1/N. PPO cannot be compared: TRL has had no
PPO trainer since 1.13. Importing TRL takes about ten seconds.
"""

import importlib.util
from pathlib import Path
from typing import Any

import pytest
import torch

from conftest import moved_role
from rlhflab.config import DpoRun, Lora, RewardRun, make_run
from rlhflab.data.chat import ChatFormat
from rlhflab.data.types import Message, PreferencePair, Prompt
from rlhflab.model.shared import SharedModel
from rlhflab.runs.sources import preference_tree
from rlhflab.train.dpo import train_dpo
from rlhflab.train.reward import train_reward
from rlhflab.train.state import Schedule
from trl_peer import loss_curve, peft_model, scored_peft_model, trainer

pytestmark = pytest.mark.skipif(importlib.util.find_spec("trl") is None, reason="needs TRL: pip install -e '.[parity]'")

STEPS, BATCH = 8, 2
PAIRS = [PreferencePair(prompt=Prompt(id=f"p{i}", messages=(Message(role="user", content=f"say {chr(97 + i)}"),)),
                        chosen=chr(97 + i) * (1 + i % 3), rejected="no " * (1 + i % 4)) for i in range(STEPS * BATCH)]
SETTINGS: dict[str, Any] = {
    "dtype": "float32", "batch": BATCH, "seed": 3,
    "optimizer": {"learning_rate": 2e-3, "schedule": "linear", "warmup": 0.0, "max_grad_norm": 1e9}}
THEIRS: dict[str, Any] = {"per_device_train_batch_size": BATCH, "learning_rate": 2e-3, "max_grad_norm": 1e9,
                          "max_length": None}


@pytest.fixture
def model() -> SharedModel:
    made = SharedModel.load("tiny-llama", dtype="float32", device="cpu")
    moved_role(made, "policy", head="random")
    with torch.no_grad():
        for parameter in made.parameters("policy"):
            parameter.mul_(0.4)
    return made


def in_our_order() -> list[PreferencePair]:
    schedule = Schedule(items=len(PAIRS), batch=BATCH, epochs=1)
    return [PAIRS[i] for step in schedule.order(SETTINGS["seed"]) for i in step]


@pytest.mark.parametrize(("loss", "loss_type"), [("dpo", "sigmoid"), ("ipo_avg", "ipo")])
def test_dpo_follows_trl(model: SharedModel, tmp_path: Path, loss: str, loss_type: str) -> None:
    rows = [{"prompt": f"<|im_start|>user\n{pair.prompt.messages[0].content}<|im_end|>\n<|im_start|>assistant\n",
             "chosen": pair.chosen, "rejected": pair.rejected} for pair in in_our_order()]
    made = trainer("DPO", peft_model(model, "policy", tmp_path), rows, model.tokenizer, tmp_path, beta=0.3,
                   loss_type=[loss_type], **THEIRS)
    run = make_run("dpo", {**SETTINGS, "loss": {"name": loss, "beta": 0.3}})
    assert isinstance(run, DpoRun)
    model.add_role("reference", Lora(), copy_of="policy", trainable=False)
    chat = ChatFormat(model.tokenizer)
    steps = list(train_dpo(run, model, [preference_tree(chat, [pair]) for pair in PAIRS], reference="reference"))
    expected = loss_curve(made)
    ours = [step.metrics["loss"] for step in steps]
    assert ours == pytest.approx(expected, abs=1e-3) and len(ours) == STEPS
    assert max(expected) - min(expected) > 0.1, "a curve, not a line"


def test_reward_training_follows_trl(model: SharedModel, tmp_path: Path) -> None:
    chat = ChatFormat(model.tokenizer)
    rows = [{"chosen_ids": [*chat.prompt(pair.prompt), *chat.answer(pair.chosen)],
             "rejected_ids": [*chat.prompt(pair.prompt), *chat.answer(pair.rejected)]} for pair in in_our_order()]
    made = trainer("Reward", scored_peft_model(model, "policy", tmp_path), rows, model.tokenizer, tmp_path,
                   center_rewards_coefficient=0.01, **THEIRS)
    run = make_run("reward", {**SETTINGS, "head_learning_rate": 2e-3, "centering": 0.01})
    assert isinstance(run, RewardRun)
    steps = list(train_reward(run, model, [preference_tree(chat, [pair]) for pair in PAIRS], role="policy"))
    expected = loss_curve(made)
    ours = [step.metrics["loss"] for step in steps]
    assert ours == pytest.approx(expected, abs=1e-3) and len(ours) == STEPS
    assert max(expected) - min(expected) > 0.1, "a curve, not a line"
