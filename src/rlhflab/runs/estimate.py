"""What a run will take, before it is run: steps, tokens, memory and time. Estimates, not measurements."""

import time
from typing import Any

import torch
from safetensors import safe_open
from transformers import AutoConfig, AutoTokenizer

from rlhflab.config import DpoRun, PpoRun, RewardRun, Run, SampledRun, SftRun
from rlhflab.core.batch import TokenAnswer, Tree
from rlhflab.data.chat import ChatFormat
from rlhflab.data.formats import read_pairs
from rlhflab.model.load import model_folder
from rlhflab.runs import sources
from rlhflab.runs.stages import check_choices
from rlhflab.scenarios import names, scenario
from rlhflab.train.ppo import has_critic
from rlhflab.train.preferences import objective
from rlhflab.train.state import Schedule

PASSES = {"sft": 2, "reward": 2, "dpo": 3, "ppo": 4, "best_of_n": 4, "online_dpo": 5}
"""Forward-sized passes a token costs: forward and backward, DPO's reference; with samples the writing, the reward,
policy and reference before the updates."""
UPDATES = {"ppo": 4, "best_of_n": 3, "online_dpo": 3}
"""Forward-sized passes of one update on a sampled token: PPO's two roles, or one; best of n reads few of them."""
USED_OF_PEAK = 0.6
"""Share of the matrix-multiply peak that training reaches."""
ACTIVATIONS = 34
"""Bytes kept for the backward pass, per token, layer and unit of width, at two bytes a number (Korthikanti et al. 2022,
arXiv:2205.05198, without the attention scores)."""


def describe_run(run: Run) -> dict[str, Any]:
    """The resolved run and an estimate of what it takes, without loading the model."""
    check_choices(run)
    folder, _ = model_folder(run.model)
    chat = ChatFormat(AutoTokenizer.from_pretrained(folder))
    lengths = [len(tree) for tree in _trees(run, chat)]
    config = AutoConfig.from_pretrained(folder)
    blocks, embeddings = _parameters(folder)
    steps = _steps(run, len(lengths))
    items = steps * run.batch
    tokens = items * sum(lengths) / len(lengths)
    passes: float = PASSES[run.kind] + UPDATES.get(run.kind, 0) * run.epochs
    bytes_each = torch.empty(0, dtype=getattr(torch, run.dtype)).element_size()
    adapted = min(run.lora.last_layers or config.num_hidden_layers, config.num_hidden_layers)
    adapter = 2 * run.lora.rank * adapted * 7 * config.hidden_size * 1.5
    trained = 2 if isinstance(run, PpoRun) and has_critic(run) else 1
    widest = max(run.micro_tokens, *lengths)
    kept = (1 if run.recompute else config.num_hidden_layers) * config.hidden_size * ACTIVATIONS * bytes_each / 2
    memory = (blocks + embeddings) * bytes_each + adapter * (16 * trained + 4 * trained) + kept * min(
        widest, run.batch * max(lengths))
    return {"kind": run.kind, "run": run.model_dump(mode="json"), "estimate": {
        "examples": len(lengths), "optimizer_steps": steps * _updates(run), "tokens": round(tokens),
        "memory_gb": round(memory / 1e9 + 0.5, 1),
        "minutes": round(tokens * 2 * blocks * passes / (USED_OF_PEAK * _matmul_peak(run.dtype)) / 60, 1)}}


def _trees(run: Run, chat: ChatFormat) -> list[Tree]:
    """The data as it will be packed; for pairs a scenario has yet to sample, its demonstrations stand in."""
    if isinstance(run, SampledRun):
        filler = (chat.end_id,) * (run.max_new_tokens // 2)
        return [Tree(prompt=chat.prompt(prompt), answers=(TokenAnswer(ids=filler),) * run.samples)
                for prompt in sources.prompts(run)]
    if isinstance(run, SftRun) or run.data in names():
        demonstrations = scenario(run.data).demonstrations(run.examples) if run.data in names() \
            else sources.conversations(run)
        return [sources.conversation_tree(chat, each) for each in demonstrations]
    if isinstance(run, DpoRun) and objective(run).on_thumbs:
        return [sources.thumb_tree(chat, group).tree for group in sources.group_by_prompt(sources.thumbs_of_file(run))]
    groups = sources.group_by_prompt(read_pairs(sources.file_of(run.data)))
    return [sources.preference_tree(chat, group).tree for group in groups]


def _steps(run: Run, examples: int) -> int:
    if isinstance(run, SampledRun):
        assert run.steps is not None
        return run.steps
    trained = examples - round(run.held_out * examples) if isinstance(run, RewardRun) else examples
    return len(Schedule.of(run, trained))


def _updates(run: Run) -> int:
    """Optimizer steps of a step."""
    return run.epochs * (run.minibatches if isinstance(run, PpoRun) else 1) if isinstance(run, SampledRun) else 1


def _parameters(folder: Any) -> tuple[int, int]:
    """(parameters of the blocks, of the embeddings), read from the headers of the weight files."""
    blocks = embeddings = 0
    for path in folder.glob("*.safetensors"):
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118
                size = 1
                for length in file.get_slice(name).get_shape():
                    size *= length
                if ".layers." in name:
                    blocks += size
                else:
                    embeddings += size
    return blocks, embeddings


def _matmul_peak(dtype: str) -> float:
    """Multiply-adds a second x 2 of this machine in `dtype`, measured for about a tenth of a second."""
    left, right = (torch.randn(1024, 1024, dtype=getattr(torch, dtype)) for _ in range(2))
    left @ right
    began, rounds = time.perf_counter(), 0
    while time.perf_counter() - began < 0.1:
        left @ right
        rounds += 1
    return rounds * 2 * 1024**3 / (time.perf_counter() - began)
