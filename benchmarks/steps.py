"""Seconds and tokens a second of the parts every method is made of, on this machine. Prints one JSON object.

    python benchmarks/steps.py [--model smollm2-135m] [--repetitions 3]

Each part is run once to warm up, then `repetitions` times; median, lowest and highest are printed. No thresholds: this
measures, it does not judge.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable, Sequence
from functools import partial

import torch

from rlhflab.config import Lora
from rlhflab.core.batch import Batch, pack
from rlhflab.data.chat import ChatFormat
from rlhflab.data.types import Prompt
from rlhflab.model import attention
from rlhflab.model.shared import SharedModel
from rlhflab.progress import Progress
from rlhflab.rollout.sampling import sample
from rlhflab.runs.folder import environment, peak_memory_gb
from rlhflab.runs.sources import conversation_tree
from rlhflab.scenarios import scenario

ROWS = (24, 64, 128)


def measure(name: str, work: Callable[[], int], repetitions: int) -> dict[str, float]:
    """Tokens a second of `work`, which returns the tokens it processed."""
    work()
    rates = []
    with Progress().track(name, repetitions) as bar:
        for _ in range(repetitions):
            began = time.perf_counter()
            tokens = work()
            rates.append(tokens / (time.perf_counter() - began))
            bar.advance(1, tokens_a_second=rates[-1])
    return {"median": round(statistics.median(rates), 1), "low": round(min(rates), 1), "high": round(max(rates), 1)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--repetitions", type=int, default=3)
    options = parser.parse_args()
    model = SharedModel.load(options.model)
    model.add_role("policy", Lora())
    chat, task = ChatFormat(model.tokenizer), scenario("helpdesk")
    batch = pack([conversation_tree(chat, each) for each in task.demonstrations(16)]).to(model.device)
    parts: dict[str, Callable[[], int]] = {
        "forward": lambda: forward(model, batch),
        "forward and backward": lambda: step(model, batch),
        "forward and backward, torch's attention": lambda: with_torch_attention(model, batch)}
    for rows in ROWS:
        parts[f"generate {rows} rows"] = partial(generate, model, chat, task.prompts("evaluation", rows // 4))
    results = {name: measure(name, work, options.repetitions) for name, work in parts.items()}
    print(json.dumps({"tokens_per_second": results, "peak_memory_gb": round(peak_memory_gb(), 2), **environment()},
                     indent=2))


def forward(model: SharedModel, batch: Batch) -> int:
    with torch.no_grad():
        model.logprobs(batch, "policy")
    return int((batch.branch >= 0).sum())


def step(model: SharedModel, batch: Batch) -> int:
    (-model.logprobs(batch, "policy").logprob.mean()).backward()
    return int((batch.branch >= 0).sum())


def with_torch_attention(model: SharedModel, batch: Batch) -> int:
    attention.SHORT, kept = 0, attention.SHORT
    try:
        return step(model, batch)
    finally:
        attention.SHORT = kept


def generate(model: SharedModel, chat: ChatFormat, prompts: Sequence[Prompt]) -> int:
    answers = sample(model, chat, prompts, role="policy", samples=4, max_new_tokens=32)
    return sum(len(answer.token_ids) for answer in answers)


if __name__ == "__main__":
    main()
