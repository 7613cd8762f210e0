"""Tokens a second of writing answers of unequal length, ours beside `transformers.generate`. Prints one JSON object.

    python benchmarks/decoding.py [--rows 64] [--answers 192] [--only ours|folded|transformers]

Prompts of 64 tokens with 4 answers each, of 16 to 128 new tokens. Both sides write
the same number of tokens for the same answer; ours in one call of `--answers` answers, transformers in batches of
`--rows`, where a batch lasts as long as its longest answer. Each part runs once to warm up with few tokens, then
`repetitions` times.
"""

import argparse
import json
import random
import statistics
import time
from collections.abc import Callable

import torch

from rlhflab.config import Lora
from rlhflab.model.shared import SharedModel
from rlhflab.rollout.engine import generate
from rlhflab.runs.folder import environment, peak_memory_gb

PROMPT, SAMPLES, SHORTEST, LONGEST = 64, 4, 16, 128


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--rows", type=int, default=64)
    parser.add_argument("--answers", type=int, default=192)
    parser.add_argument("--repetitions", type=int, default=2)
    parser.add_argument("--only", choices=["ours", "folded", "transformers"])
    options = parser.parse_args()
    model = SharedModel.load(options.model, dtype=options.dtype)
    model.add_role("policy", Lora())
    with torch.no_grad():
        for parameter in model.parameters("policy"):
            parameter.add_(0.01 * torch.randn(parameter.shape))
    draws = random.Random(0)
    prompts = [[draws.randrange(10, model.unembedding.shape[0]) for _ in range(PROMPT)]
               for _ in range(options.answers // SAMPLES)]
    limits = [[draws.randint(SHORTEST, LONGEST) for _ in range(SAMPLES)] for _ in prompts]
    parts: dict[str, Callable[[int], object]] = {
        "ours": lambda most: ours(model, prompts, limits, options.rows, most, fold=False),
        "folded": lambda most: ours(model, prompts, limits, options.rows, most, fold=True),
        "transformers": lambda most: theirs(model, prompts, limits, options.rows, most)}
    results = {name: rates(work, sum(map(sum, limits)), options.repetitions)
               for name, work in parts.items() if options.only in (None, name)}
    print(json.dumps({"tokens_per_second": results, "rows": options.rows, "answers": options.answers,
                      "peak_memory_gb": round(peak_memory_gb(), 2), **environment()}, indent=2))


def rates(work: Callable[[int], object], tokens: int, repetitions: int) -> dict[str, float]:
    work(4)
    seconds = []
    for _ in range(repetitions):
        began = time.perf_counter()
        work(LONGEST)
        seconds.append(time.perf_counter() - began)
    return {"median": round(tokens / statistics.median(seconds), 1), "low": round(tokens / max(seconds), 1),
            "high": round(tokens / min(seconds), 1)}


def ours(model: SharedModel, prompts: list[list[int]], limits: list[list[int]], rows: int, most: int, *,
         fold: bool) -> None:
    seeds = [[4 * i + k for k in range(SAMPLES)] for i in range(len(prompts))]
    answers = generate(model, prompts, role="policy", seeds=seeds, stop_ids=[], rows=rows, fold=fold,
                       max_new_tokens=[[min(most, limit) for limit in each] for each in limits])
    assert [[len(answer.token_ids) for answer in each] for each in answers] == \
        [[min(most, limit) for limit in each] for each in limits]


@torch.no_grad()
def theirs(model: SharedModel, prompts: list[list[int]], limits: list[list[int]], rows: int, most: int) -> None:
    """A batch writes until its longest answer is done; the adapter plays as it does in ours, unfolded."""
    each = [(prompt, min(most, limit)) for prompt, own in zip(prompts, limits, strict=True) for limit in own]
    for start in range(0, len(each), rows):
        batch = each[start:start + rows]
        longest = max(limit for _, limit in batch)
        tokens = torch.tensor([prompt for prompt, _ in batch], device=model.device)
        model.base.model.config._attn_implementation = "sdpa"
        with model.playing("policy"):
            model.base.model.generate(tokens, attention_mask=torch.ones_like(tokens), do_sample=True, top_k=0,
                                      max_new_tokens=longest, min_new_tokens=longest, pad_token_id=0)
        model.base.model.config._attn_implementation = "rlhflab"


if __name__ == "__main__":
    main()
