"""Matrix operations of a PPO step whose rollout is learnt from once, when roles read it once and when twice.

    python benchmarks/ppo_reads.py [--prompts 8] [--new-tokens 48] [--layers 30]

Counted, not timed: torch's own counter over a step of the 135M model's shape with one and with two blocks, since every
block costs the same. The products of attention scores are left out. Prints one JSON object.
"""

import argparse
import json
from collections.abc import Sequence
from functools import partial
from math import prod
from typing import Any
from unittest.mock import patch

import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import LlamaConfig

from rlhflab.config import Lora, make_run
from rlhflab.data.chat import ChatFormat
from rlhflab.data.types import Message, Prompt, Rollout, Score
from rlhflab.model.load import random_base
from rlhflab.model.shared import SharedModel
from rlhflab.model.tiny import byte_tokenizer
from rlhflab.rollout.sampling import rollout_trees, sample
from rlhflab.rollout.scoring import score_trees
from rlhflab.train.ppo import Learner, train_ppo
from rlhflab.train.rollouts import Reading, ScoredRollout, read_rollout

SHAPE = {"vocab_size": 49152, "hidden_size": 576, "intermediate_size": 1536, "num_attention_heads": 9,
         "num_key_value_heads": 3, "max_position_embeddings": 2048, "bos_token_id": 1, "eos_token_id": 2,
         "tie_word_embeddings": True}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompts", type=int, default=8)
    parser.add_argument("--new-tokens", type=int, default=48)
    parser.add_argument("--layers", type=int, default=30)
    options = parser.parse_args()
    one, two = (step(layers, options.prompts, options.new_tokens) for layers in (1, 2))
    found = {part: (one[part] + (options.layers - 1) * (two[part] - one[part])) / 1e9 for part in one}
    each = {part: round(value / options.prompts, 1) for part, value in found.items()}
    learning = {way: round(each[way] - each["sampling"], 1) for way in ("once", "twice")}
    print(json.dumps({
        "gflop_an_episode": each, "reading_and_learning": learning,
        "saved": {"of reading and learning": round(1 - learning["once"] / learning["twice"], 3),
                  "of a step with reward and sampling": round(1 - (each["once"] + each["reward"]) / (
                      each["twice"] + each["reward"]), 3)}}, indent=2))


def step(layers: int, prompts: int, new_tokens: int) -> dict[str, float]:
    """Operations of a whole step either way, of its sampling and of a reward role that reads the answers."""
    asked = [Prompt(id=str(i), messages=(Message(role="user", content="how late is it, please?"),))
             for i in range(prompts)]
    found: dict[str, float] = {}
    for way in ("once", "twice"):
        model = SharedModel(random_base(LlamaConfig(**SHAPE, num_hidden_layers=layers), byte_tokenizer(),
                                        dtype=torch.float32))
        for role in ("policy", "value", "reward"):
            model.add_role(role, Lora(), head="none" if role == "policy" else "zero")
        chat = ChatFormat(model.tokenizer)
        run: Any = make_run("ppo", {"epochs": 1, "batch": prompts, "samples": 1, "steps": 1, "dtype": "float32",
                                    "max_new_tokens": new_tokens})
        loop = train_ppo(run, model, asked, chat=chat, reward=constant, reference=None)
        with patch.object(Learner, "read", Learner.read if way == "once" else read_twice):
            found[way] = counted(lambda loop=loop: next(loop))  # type: ignore[misc]
    answer = partial(sample, model, chat, asked, role="policy", samples=1, max_new_tokens=new_tokens, seed=0)
    found["sampling"] = counted(answer)
    trees = rollout_trees(answer())
    found["reward"] = counted(lambda: score_trees(model, trees, role="reward", micro_tokens=512))
    return found


def read_twice(self: Learner, scored: ScoredRollout) -> Reading:
    return read_rollout(self.run, self.model, scored, role=self.role, reference=self.reference)


def constant(rollouts: Sequence[Rollout]) -> list[Score]:
    return [Score(value=float(i % 2), by="constant") for i in range(len(rollouts))]


def counted(work: Any) -> float:
    """Operations of the products of `work`, a multiplication and an addition as two."""
    def of_linear(x: Sequence[int], weight: Sequence[int], *_: Any, **__: Any) -> int:
        return 2 * prod(x) * weight[0]

    def of_addition(into: Sequence[int], left: Sequence[int], right: Sequence[int], *_: Any, **__: Any) -> int:
        return 2 * left[0] * left[1] * right[1]

    counter = FlopCounterMode(display=False, custom_mapping={
        torch.ops.mkldnn._linear_pointwise: of_linear, torch.ops.aten.addmm_: of_addition})
    with counter:
        work()
    by_kernel = counter.get_flop_counts()["Global"]
    return float(sum(flops for kernel, flops in by_kernel.items()
                     if not any(name in str(kernel) for name in ("bmm", "attention"))))


if __name__ == "__main__":
    main()
