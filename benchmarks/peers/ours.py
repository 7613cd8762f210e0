"""Our side of each task, by the library's own public loops: `python -m peers.ours job.json result.json`."""

import json
import math
import time
from collections.abc import Callable, Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import torch

from peers.job import Facts, Job, Result, Stopwatch, read_rows, serve
from peers.sums import digest, dpo_loss, reward_loss
from rlhflab.config import Lora, RewardSource, Run, make_run
from rlhflab.core.batch import PreferenceTree, TokenAnswer, Tree, pack
from rlhflab.core.logprobs import answer_sums
from rlhflab.data.chat import ChatFormat
from rlhflab.data.types import Message, PreferencePair, Prompt, Rollout
from rlhflab.model.shared import SharedModel
from rlhflab.rollout.engine import generate
from rlhflab.rollout.rewards import make_reward
from rlhflab.runs.sources import group_by_prompt, preference_tree
from rlhflab.train.dpo import train_dpo
from rlhflab.train.ppo import train_ppo
from rlhflab.train.reward import train_reward
from rlhflab.train.rollouts import Sampled
from rlhflab.train.state import Schedule, Step

DTYPES = {"fp32": "float32", "bf16": "bfloat16"}
NEVER = (-1,)
"""Stop tokens of answers that all have the full length."""
SHAPE = (2048, 576, 1536)
"""Rows, inputs and outputs of the product whose speed is the peak: a layer of the 135M model in training."""


def dpo(job: Job) -> Result:
    """DPO against a frozen copy of the start."""
    model, chat = load(job)
    start_policy(model, job)
    watch = Stopwatch()
    pairs = pairs_of(job, chat)
    run = our_run("dpo", job)
    loop = train_dpo(run, model, in_file_order(run, pairs), reference="reference")  # type: ignore[arg-type]
    losses, saved = follow(loop, model, job, watch)
    facts = shared_facts(job, pairs, losses)
    if job.check:
        first = [each.tree for each in pairs[:job.batch]]
        trained = logprob_sums(model, first, "policy")
        in_fp32(model)
        start, end = (logprob_sums(model, first, role) for role in ("reference", "policy"))
        facts = Facts(exact=facts.exact, numbers={**facts.numbers, "loss after the last step": dpo_loss(end, start)},
                      rounded={"summed log-prob of an answer, as training reads it": trained},
                      lists={"summed log-prob of an answer before the first step": start,
                             "summed log-prob of an answer after the last step": end})
    trees = [each.tree for each in pairs]
    return watch.result(len(pairs), saved=saved, facts=facts, peak_gflops=matmul_gflops(job.precision),
                        gflop=gflop(model, tokens_of(trees), scored_of(trees), forwards=2, backwards=1))


def reward(job: Job) -> Result:
    """A reward model from pairs (Bradley-Terry)."""
    model, chat = load(job)
    folder = Path(job.roles) / "reward"
    model.load_role("reward", folder, trainable=True, head="stored")
    watch = Stopwatch()
    pairs = pairs_of(job, chat)
    run = our_run("reward", job)
    losses, saved = follow(train_reward(run, model, in_file_order(run, pairs)), model, job, watch)  # type: ignore[arg-type]
    facts = shared_facts(job, pairs, losses)
    if job.check:
        first = [each.tree for each in pairs[:job.batch]]
        in_fp32(model)
        end = scores(model, first, "reward")
        model.load_role("start", folder, head="stored")
        facts = Facts(exact=facts.exact, numbers={**facts.numbers, "loss after the last step": reward_loss(end)},
                      scores={"score of an answer before the first step": scores(model, first, "start"),
                              "score of an answer after the last step": end})
    return watch.result(len(pairs), saved=saved, facts=facts, peak_gflops=matmul_gflops(job.precision),
                        gflop=gflop(model, tokens_of([each.tree for each in pairs]), 0, forwards=1, backwards=1))


def ppo(job: Job) -> Result:
    """PPO against a reward role; every answer has the full length."""
    model, chat = load(job)
    roles = Path(job.roles)
    run = our_run("ppo", job)
    start_policy(model, job)
    model.load_role("value", roles / "reward", trainable=True, head="stored")
    pay = make_reward([RewardSource(name="role", path=str(roles / "reward"))], model,  # type: ignore[call-arg]
                      micro_tokens=run.micro_tokens)
    watch = Stopwatch()
    rows = read_rows(job.rows)
    prompts = [prompt_of(row) for row in rows]
    if not job.stops:
        chat.stop_ids = NEVER
    seen: list[Rollout] = []

    def observe(sampled: Sampled) -> dict[str, float | None]:
        seen.extend(sampled.rollouts)
        return {}

    loop = train_ppo(run, model, prompts, chat=chat, reward=pay, reference="reference",  # type: ignore[arg-type]
                     observe=observe)
    _, saved = follow(loop, model, job, watch)
    new = sum(len(rollout.token_ids) for rollout in seen)
    tokens = new + sum(len(rollout.prompt_ids) for rollout in seen)
    facts = Facts(exact={"prompt token ids": digest(sorted(list(rollout.prompt_ids) for rollout in seen)),
                         "episodes": len(seen), "new tokens": new})
    if job.check:
        given = [Tree(prompt=chat.prompt(prompt), answers=(TokenAnswer(ids=chat.answer(row["chosen"])),))
                 for prompt, row in zip(prompts, rows, strict=True)][:job.batch]
        facts = Facts(exact=facts.exact, scores={"reward of a given answer": scores(model, given, "reward")},
                      rounded={"summed log-prob of a given answer": logprob_sums(model, given, "reference")})
    return watch.result(len(seen), saved=saved, facts=facts, peak_gflops=matmul_gflops(job.precision), gflop=
                        # with logits: sampling, reference and policy; without: reward and value
                        gflop(model, tokens, new, forwards=3, backwards=1)
                        + gflop(model, tokens, 0, forwards=2, backwards=1))


def write(job: Job) -> Result:
    """Sampled answers that end where a line does, so that no length is known beforehand."""
    model, chat = load(job)
    model.load_role("policy", Path(job.roles) / "policy")
    watch = Stopwatch()
    prompts = [chat.prompt(prompt_of(row)) for row in read_rows(job.rows)]
    ends = line_ends(chat)
    with watch:
        written = generate(model, prompts, role="policy", seeds=[[i] for i in range(len(prompts))],
                           max_new_tokens=job.new_tokens, stop_ids=ends)
    answers = [each for (each,) in written]
    Path(job.answers).write_text(json.dumps([answer.token_ids for answer in answers]))
    lengths = [len(answer.token_ids) for answer in answers]
    facts = Facts(exact={"prompt token ids": digest([list(prompt) for prompt in prompts]), "new tokens": sum(lengths),
                         "new tokens of each row": digest(lengths)},
                  rounded={"summed log-prob of an answer of ours": [sum(answer.logprobs) for answer in answers]})
    return watch.result(sum(lengths), facts=facts, peak_gflops=matmul_gflops(job.precision), gflop=gflop(
        model, sum(map(len, prompts)) + sum(lengths), sum(lengths), forwards=1, backwards=0))


# -- what the tasks share ------------------------------------------------------------------------------------------


def load(job: Job) -> tuple[SharedModel, ChatFormat]:
    """The base in the job's precision, on the CPU."""
    model = SharedModel.load(job.model, dtype=DTYPES[job.precision], device="cpu")
    model.recompute_activations(job.recompute)
    return model, ChatFormat(model.tokenizer)


def start_policy(model: SharedModel, job: Job) -> None:
    """The saved policy, and its frozen copy."""
    model.load_role("policy", Path(job.roles) / "policy", trainable=True)
    model.add_role("reference", Lora(), copy_of="policy", trainable=False)


def our_run(kind: str, job: Job) -> Run:
    """TRL's settings, at a constant rate and without clipping, or the recipe that the job brings."""
    if job.settings:
        return make_run(kind, {**job.settings, "dtype": DTYPES[job.precision]})
    steps = len(read_rows(job.rows)) // job.batch
    rate: dict[str, Any] = {"learning_rate": job.learning_rate, "schedule": "constant", "max_grad_norm": math.inf}
    rates = {"reward": {"head_learning_rate": job.learning_rate},
             "ppo": {"value_learning_rate": job.learning_rate, "value_adapter_learning_rate": job.learning_rate,
                     "max_new_tokens": job.new_tokens, "temperature": job.temperature, "steps": steps}}
    return make_run(kind, {"preset": f"trl-{kind}", "batch": job.batch, "epochs": 1, "dtype": DTYPES[job.precision],
                           "recompute": job.recompute, "optimizer": rate, **rates.get(kind, {})})


def follow(loop: Iterator[Step], model: SharedModel, job: Job, watch: Stopwatch) -> tuple[list[float], list[Any]]:
    """Time a loop to its end; the loss of each step, and (step, seconds) of each saved policy."""
    losses, saved = [], []
    with watch:
        for step in loop:
            losses.append(step.metrics.get("loss") or math.nan)
            if job.save_every and step.number % job.save_every == 0:
                with watch.paused():
                    saved.append((step.number, watch.seconds))
                    model.save_role("policy", Path(job.save_to) / f"step-{step.number}")
    return losses, saved


def pairs_of(job: Job, chat: ChatFormat) -> list[PreferenceTree]:
    """One tree a row; a recipe has all pairs of a prompt in one."""
    pairs = [PreferencePair(prompt=prompt_of(row), chosen=row["chosen"], rejected=row["rejected"])
             for row in read_rows(job.rows)]
    groups = group_by_prompt(pairs) if job.settings else [[pair] for pair in pairs]
    return [preference_tree(chat, group) for group in groups]


def prompt_of(row: dict[str, Any]) -> Prompt:
    """The prompt of a row."""
    return Prompt(id=row["id"], messages=tuple(Message(**message) for message in row["messages"]),
                  facts=row.get("facts", {}))


def in_file_order(run: Run, items: Sequence[PreferenceTree]) -> list[PreferenceTree]:
    """The items so placed that the run's shuffled order is theirs in the first epoch."""
    one_epoch = Schedule(items=len(items), batch=run.batch, epochs=1)
    placed = dict(zip(chain.from_iterable(one_epoch.order(run.seed)), items, strict=True))
    return [placed[i] for i in range(len(items))]


def shared_facts(job: Job, pairs: Sequence[PreferenceTree], losses: Sequence[float]) -> Facts:
    """What was read, and in fp32 the trainer's own loss of its last step; in bf16 that is rounded by some per cent."""
    ids = [[list(each.tree.prompt), *(list(answer.ids) for answer in each.tree.answers)] for each in pairs]
    return Facts(exact={"token ids": digest(ids), "scored tokens": scored_of([each.tree for each in pairs])},
                 numbers={"loss of the last step": losses[-1]} if job.precision == "fp32" else {})


def in_fp32(model: SharedModel) -> None:
    """The same weights, from now on read in fp32: a loss is a difference, which bf16 would round by some per cent."""
    model.base.model.float()


@torch.no_grad()
def logprob_sums(model: SharedModel, trees: Sequence[Tree], role: str) -> list[float]:
    """Summed log-prob of each answer."""
    batch = pack(trees)
    sums: list[float] = answer_sums(model.logprobs(batch, role).logprob, batch.owner, batch.answers).tolist()
    return sums


@torch.no_grad()
def scores(model: SharedModel, trees: Sequence[Tree], role: str) -> list[float]:
    """Raw score of each answer."""
    read: list[float] = model.score(pack(trees), role).tolist()
    return read


def line_ends(chat: ChatFormat) -> tuple[int, ...]:
    """Tokens that end a line or a turn."""
    tokenizer = chat.tokenizer
    texts = tokenizer.batch_decode([[i] for i in range(len(tokenizer))])
    return tuple(sorted({*chat.stop_ids, *(i for i, text in enumerate(texts) if "\n" in text)}))


def tokens_of(trees: Sequence[Tree]) -> int:
    """Tokens of some trees, each prompt once."""
    return sum(map(len, trees))


def scored_of(trees: Sequence[Tree]) -> int:
    """Their scored tokens."""
    return sum(tree.scored_tokens for tree in trees)


def gflop(model: SharedModel, tokens: int, scored: int, *, forwards: int, backwards: int) -> float:
    """Multiply-adds x 2 that the method needs, each role read by itself: 10^9 operations.

    A forward pass costs 2 a weight and token, and so does the gradient of the inputs; the frozen weights have no other
    gradient, the adapter's have. The output matrix is read at scored tokens only. Attention scores and whatever is
    computed twice to save memory do not count.
    """
    blocks: Any = model.decoder.layers
    weights = [(name, p.numel()) for name, p in blocks.named_parameters() if p.ndim == 2]
    adapter = 0 if not model.records else sum(p.numel() for p in model.parameters(next(iter(model.records))))
    base = sum(size for name, size in weights if "lora_" not in name)
    each = 2 * (tokens * (base + adapter) + scored * model.unembedding.numel())
    return (each * (forwards + backwards) + 2 * tokens * adapter * backwards) / 1e9


def matmul_gflops(precision: str, seconds: float = 0.3, windows: int = 5) -> float:
    """The fastest of some windows of one matrix product at the model's own shape, GFLOP/s."""
    rows, inputs, outputs = SHAPE
    left, right = torch.randn(rows, inputs), torch.randn(inputs, outputs)
    if precision == "bf16":
        left, right = left.bfloat16(), right.bfloat16()

    def window() -> float:
        began, rounds = time.perf_counter(), 0
        while (spent := time.perf_counter() - began) < seconds:
            left @ right
            rounds += 1
        return rounds * 2 * rows * inputs * outputs / spent / 1e9

    return max(window() for _ in range(windows))


TASKS: dict[str, Callable[[Job], Result]] = {"dpo": dpo, "reward": reward, "ppo": ppo, "generate": write}

if __name__ == "__main__":
    serve(TASKS)
