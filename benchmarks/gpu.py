"""Our DPO step beside TRL's DPOTrainer, and our sampling beside `transformers.generate`: a random 1B model on a GPU.

    python benchmarks/gpu.py [--out gpu.json] [--size 1b|tiny] [--device cuda|cpu]

Same base, same LoRA tensors (B not 0, no dropout), same rows in the same order, bf16 on a GPU. Writes one JSON object
and prints a table. Needs the extra `parity` (TRL 1.16). `--size tiny --device cpu` goes through all of it in seconds;
its numbers say nothing.
"""

import argparse
import gc
import json
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from contextlib import redirect_stdout
from itertools import pairwise
from pathlib import Path
from random import Random
from typing import Any, NamedTuple

import torch
from transformers import LlamaConfig

from rlhflab.config import DpoRun, Lora, Optimizer, make_run
from rlhflab.core.batch import PreferenceTree, TokenAnswer, Tree
from rlhflab.model.load import random_base
from rlhflab.model.shared import SharedModel
from rlhflab.model.tiny import SIZES as TINY
from rlhflab.model.tiny import byte_tokenizer
from rlhflab.rollout.engine import generate
from rlhflab.rollout.scoring import tree_logprobs
from rlhflab.runs.folder import environment
from rlhflab.train.dpo import train_dpo
from rlhflab.train.state import Schedule


class Size(NamedTuple):
    """A model and the work on it. Lengths in tokens; prompts and answers are drawn up to twice as short."""

    shape: dict[str, Any]
    batch: int
    steps: int
    prompt: int
    answer: int
    rows: int
    new_tokens: int
    micro_tokens: int


SIZES = {
    "1b": Size({"vocab_size": 49152, "hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16,
                "num_attention_heads": 32, "num_key_value_heads": 8, "max_position_embeddings": 4096,
                "bos_token_id": 1, "eos_token_id": 2, "tie_word_embeddings": True},
               batch=8, steps=8, prompt=512, answer=256, rows=64, new_tokens=128, micro_tokens=8192),
    "tiny": Size({**TINY, "tie_word_embeddings": True}, batch=2, steps=4, prompt=24, answer=12, rows=4, new_tokens=8,
                 micro_tokens=256)}
WARM = 2
"""Steps that are not timed: kernels are compiled in them."""
MEAN_ANSWER = 0.5
"""Of the longest, by the share of the vocabulary that ends an answer: random weights draw every token alike."""
BETA, RATE, SEED = 0.1, 1e-4, 0
"""The rate is low, so that with random weights a rounding does not grow from step to step until losses part."""


def main() -> None:
    options = parsed()
    device = options.device
    if device == "cuda" and not torch.cuda.is_available():
        print("benchmarks/gpu.py needs a CUDA GPU, and there is none; --device cpu --size tiny goes through all of it "
              "on a CPU", file=sys.stderr)
        raise SystemExit(2)
    warnings.simplefilter("ignore")
    size, began = SIZES[options.size], time.perf_counter()
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    rows = make_rows(size)
    peak = matmul_peak(size, device, dtype)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        ours = apart(device, lambda: our_dpo(size, rows, device, dtype, folder))
        theirs = apart(device, lambda: trl_dpo(size, rows, device, dtype, folder))
    work = dpo_flops(size, rows)
    for side in (ours, theirs):
        side["peak_share"] = side["pairs_per_second"] * work / peak["best"]
    result = {
        "size": options.size, "device": device, "dtype": str(dtype).removeprefix("torch."), "matmul_flops": peak,
        "dpo": {"ours": ours, "trl": theirs, **ratios(ours, theirs, "pairs_per_second"),
                "flops_per_pair": work, "same_work": same_work(ours, theirs, dtype)},
        "generate": generation(size, device, dtype), "seconds": time.perf_counter() - began, **environment()}
    options.out.write_text(json.dumps(result, indent=2) + "\n")
    print(table(result))
    print(f"Wrote {options.out}")


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=SIZES, default="1b")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--out", type=Path, default=Path("gpu.json"))
    return parser.parse_args()


def apart(device: str, work: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """What `work` says, with the largest memory of its own tensors on the GPU, GB; None on a CPU."""
    gc.collect()
    if device == "cpu":
        return {**work(), "peak_gb": None}
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    held = torch.cuda.memory_allocated()
    said = work()
    return {**said, "peak_gb": (torch.cuda.max_memory_allocated() - held) / 1e9}


def make_rows(size: Size) -> list[dict[str, str]]:
    """Preference pairs of random letters; the byte tokenizer makes a token of each."""
    random = Random(SEED)

    def text(longest: int) -> str:
        return "".join(random.choices("abcdefghijklmnopqrstuvwxyz ", k=random.randint(longest // 2, longest)))

    return [{"prompt": text(size.prompt), "chosen": text(size.answer), "rejected": text(size.answer)}
            for _ in range(size.batch * size.steps)]


def matmul_peak(size: Size, device: str, dtype: torch.dtype) -> dict[str, float]:
    """Operations a second of one product: of a block's own shape, and of the best shape tried."""
    width, inner = size.shape["hidden_size"], size.shape["intermediate_size"]
    square = 8192 if device == "cuda" else 256
    found = {f"{a}x{b}x{c}": product_rate(a, b, c, device, dtype)
             for a, b, c in ((size.micro_tokens, width, inner), (square, square, square))}
    return {**found, "best": max(found.values())}


def product_rate(a: int, b: int, c: int, device: str, dtype: torch.dtype) -> float:
    left, right = torch.randn(a, b, device=device, dtype=dtype), torch.randn(b, c, device=device, dtype=dtype)
    best = 0.0
    for _ in range(10):
        synchronise(device)
        began = time.perf_counter()
        for _ in range(5):
            left @ right
        synchronise(device)
        best = max(best, 5 * 2 * a * b * c / (time.perf_counter() - began))
    return best


def synchronise(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


# -- DPO -------------------------------------------------------------------------------------------------------------


def shared_model(size: Size, device: str, dtype: torch.dtype) -> SharedModel:
    return SharedModel(random_base(LlamaConfig(**size.shape), byte_tokenizer(), dtype=dtype, device=device, seed=SEED))


def our_dpo(size: Size, rows: Sequence[dict[str, str]], device: str, dtype: torch.dtype,
            folder: Path) -> dict[str, Any]:
    """Our loop. Leaves its adapter as it starts in `folder`, for the peer."""
    model = shared_model(size, device, dtype)
    model.add_role("policy", Lora())
    generator = torch.Generator().manual_seed(SEED)
    with torch.no_grad():
        for parameter in model.parameters("policy"):
            parameter.copy_(0.02 * torch.randn(parameter.shape, generator=generator))
    model.add_role("reference", Lora(), copy_of="policy", trainable=False)
    model.save_role("policy", folder / "policy")
    run = dpo_run(size)
    trees = [preference_tree(model.tokenizer, row) for row in rows]
    first = [trees[i].tree for i in next(Schedule.of(run, len(rows)).order(SEED))]
    chosen = sum(float(each[:len(tree.answers[0].ids)].sum()) for tree, each in zip(first, tree_logprobs(
        model, first, role="policy", micro_tokens=size.micro_tokens), strict=True)) / size.batch
    seconds, losses = [], []
    for step in train_dpo(run, model, trees, reference="reference"):
        seconds.append(step.seconds)
        losses.append(step.metrics["loss"])
    return measured(size, seconds, losses, chosen)


def dpo_run(size: Size) -> DpoRun:
    run = make_run("dpo", {
        "batch": size.batch, "micro_tokens": size.micro_tokens, "seed": SEED, "loss": {"name": "dpo", "beta": BETA},
        "optimizer": Optimizer(learning_rate=RATE, warmup=0.0).model_dump(), "max_length": 4096})
    assert isinstance(run, DpoRun)
    return run


def preference_tree(tokenizer: Any, row: dict[str, str]) -> PreferenceTree:
    prompt, chosen, rejected = (tuple(tokenizer(text)["input_ids"]) for text in (
        row["prompt"], row["chosen"] + tokenizer.eos_token, row["rejected"] + tokenizer.eos_token))
    return PreferenceTree(tree=Tree(prompt=prompt, answers=(TokenAnswer(ids=chosen), TokenAnswer(ids=rejected))),
                          chosen=(0,), rejected=(1,), strength=(1.0,))


def trl_dpo(size: Size, rows: Sequence[dict[str, str]], device: str, dtype: torch.dtype,
            folder: Path) -> dict[str, Any]:
    """TRL's trainer from the same weights, without recomputation of activations, which is its faster way."""
    from datasets import Dataset
    from peft import PeftModel
    from torch.utils.data import SequentialSampler
    from transformers import TrainerCallback
    from trl import DPOConfig, DPOTrainer

    class Clock(TrainerCallback):  # type: ignore[misc]
        def __init__(self) -> None:
            self.ends: list[float] = []

        def on_step_end(self, *_: Any, **__: Any) -> None:
            synchronise(device)
            self.ends.append(time.perf_counter())

        on_train_begin = on_step_end

    clock = Clock()
    base = random_base(LlamaConfig(**size.shape), byte_tokenizer(), dtype=dtype, device=device, seed=SEED).model
    base.set_attn_implementation("sdpa")
    in_our_order = [rows[i] for step in Schedule.of(dpo_run(size), len(rows)).order(SEED) for i in step]
    trainer = DPOTrainer(
        model=PeftModel.from_pretrained(base, str(folder / "policy"), is_trainable=True),
        args=DPOConfig(
            output_dir=str(folder / "trl"), per_device_train_batch_size=size.batch, num_train_epochs=1, beta=BETA,
            learning_rate=RATE, lr_scheduler_type="linear", warmup_steps=0, weight_decay=0.0, max_length=4096,
            bf16=device == "cuda", use_cpu=device == "cpu", gradient_checkpointing=False, report_to="none",
            save_strategy="no", logging_steps=1, disable_tqdm=True, seed=SEED),
        train_dataset=Dataset.from_list(in_our_order), processing_class=byte_tokenizer(), callbacks=[clock])
    trainer._get_train_sampler = lambda dataset=None: SequentialSampler(trainer.train_dataset)
    with redirect_stdout(sys.stderr):
        trainer.train()
    seconds = [after - before for before, after in pairwise(clock.ends)]
    logged = [{name: float(value) for name, value in row.items()} for row in trainer.state.log_history if "loss" in row]
    return measured(size, seconds, [row["loss"] for row in logged], logged[0]["logps/chosen"])


def measured(size: Size, seconds: Sequence[float], losses: Sequence[float | None], chosen: float) -> dict[str, Any]:
    """`chosen`: mean log-prob of the chosen answers of the first step, before it."""
    timed = sorted(seconds[WARM:])
    return {"pairs_per_second": size.batch / timed[len(timed) // 2], "seconds": [round(each, 4) for each in seconds],
            "losses": losses, "first_chosen": chosen}


def dpo_flops(size: Size, rows: Sequence[dict[str, str]]) -> float:
    """Operations a pair needs: policy forward and backward, reference forward; no weight gradients, no scores.

    The unembedding is read in policy and reference, and in the policy's backward pass.
    """
    shape = size.shape
    width, inner = shape["hidden_size"], shape["intermediate_size"]
    keys = width * shape["num_key_value_heads"] // shape["num_attention_heads"]
    block = 2 * width * width + 2 * width * keys + 3 * width * inner
    scored = [len(row["chosen"]) + len(row["rejected"]) + 2 for row in rows]
    tokens = [len(row["prompt"]) + answers for row, answers in zip(rows, scored, strict=True)]
    blocks = 2 * 3 * block * shape["num_hidden_layers"] * sum(tokens)
    return (blocks + 2 * 3 * width * shape["vocab_size"] * sum(scored)) / len(rows)


def ratios(ours: dict[str, Any], theirs: dict[str, Any], rate: str) -> dict[str, float | None]:
    """Speed: ours over the peer's. Memory: the peer's over ours."""
    memory = None if ours["peak_gb"] is None else theirs["peak_gb"] / ours["peak_gb"]
    return {"speed_ratio": ours[rate] / theirs[rate], "memory_ratio": memory}


def same_work(ours: dict[str, Any], theirs: dict[str, Any], dtype: torch.dtype) -> dict[str, Any]:
    """Whether both took the same steps: log-probs of the first answers, and the loss of the last step."""
    tolerance = 1e-3 if dtype == torch.float32 else 1e-2
    read = {"first log-prob of the chosen": lambda side: side["first_chosen"],
            "last loss": lambda side: side["losses"][-1]}
    checks = {name: {"ours": of(ours), "peer": of(theirs), "tolerance": tolerance} for name, of in read.items()}
    return {"ok": all(abs(check["ours"] - check["peer"]) <= tolerance * abs(check["peer"])
                      for check in checks.values()), "checks": checks}


# -- sampling ----------------------------------------------------------------------------------------------------------


def generation(size: Size, device: str, dtype: torch.dtype) -> dict[str, Any]:
    """Sampled tokens a second of the base, to answers of unequal length."""
    prompts = [tuple(byte_tokenizer()(row["prompt"])["input_ids"]) for row in make_rows(size)[:size.rows]]
    vocabulary = size.shape["vocab_size"]
    stops = list(range(2, 2 + max(1, round(vocabulary / (MEAN_ANSWER * size.new_tokens)))))
    ours = apart(device, lambda: our_sampling(size, prompts, stops, device, dtype))
    theirs = apart(device, lambda: their_sampling(size, prompts, stops, device, dtype))
    return {"ours": ours, "transformers": theirs, **ratios(ours, theirs, "tokens_per_second")}


def our_sampling(size: Size, prompts: Sequence[tuple[int, ...]], stops: Sequence[int], device: str,
                 dtype: torch.dtype) -> dict[str, Any]:
    model = shared_model(size, device, dtype)

    def sample(seed: int) -> list[int]:
        written = generate(model, prompts, role=None, seeds=[[seed * len(prompts) + i] for i in range(len(prompts))],
                           max_new_tokens=size.new_tokens, stop_ids=stops)
        return [len(answers[0].token_ids) for answers in written]

    return sampling_rate(sample, device)


def their_sampling(size: Size, prompts: Sequence[tuple[int, ...]], stops: Sequence[int], device: str,
                   dtype: torch.dtype) -> dict[str, Any]:
    model: Any = random_base(LlamaConfig(**size.shape), byte_tokenizer(), dtype=dtype, device=device, seed=SEED).model
    model.set_attn_implementation("sdpa")
    width = max(len(prompt) for prompt in prompts)
    ids = torch.tensor([[0] * (width - len(prompt)) + list(prompt) for prompt in prompts], device=device)
    mask = torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts], device=device)
    ends = torch.tensor(stops, device=device)

    def sample(seed: int) -> list[int]:
        torch.manual_seed(seed)
        written = model.generate(input_ids=ids, attention_mask=mask, do_sample=True, top_k=0, top_p=1.0,
                                 max_new_tokens=size.new_tokens, eos_token_id=list(stops), pad_token_id=0)[:, width:]
        stopped = torch.isin(written, ends)
        first = torch.where(stopped.any(-1), stopped.int().argmax(-1) + 1, written.shape[1])
        return [int(length) for length in first]

    return sampling_rate(sample, device)


def sampling_rate(sample: Callable[[int], list[int]], device: str, rounds: int = 3) -> dict[str, Any]:
    """Tokens of answers, without what is written behind an end, a second: the median round."""
    sample(0)
    rates, lengths = [], []
    for seed in range(1, rounds + 1):
        synchronise(device)
        began = time.perf_counter()
        lengths = sample(seed)
        synchronise(device)
        rates.append(sum(lengths) / (time.perf_counter() - began))
    return {"tokens_per_second": sorted(rates)[rounds // 2], "rates": rates, "mean_length": sum(lengths) / len(lengths)}


def table(result: dict[str, Any]) -> str:
    lines = [f"{'':24} {'ours':>12} {'peer':>12} {'ratio':>8}"]
    for part, peer, rate in (("dpo", "trl", "pairs_per_second"), ("generate", "transformers", "tokens_per_second")):
        each = result[part]
        names = [(rate, "speed_ratio"), ("peak_gb", "memory_ratio"), ("peak_share", None)]
        for name, ratio in names:
            if each["ours"].get(name) is not None:
                last = f"{each[ratio]:8.2f}" if ratio else ""
                lines.append(f"{part + ' ' + name:24} {each['ours'][name]:12.3f} {each[peer][name]:12.3f} {last}")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
