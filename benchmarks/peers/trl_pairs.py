"""TRL's DPO and reward trainers: `python -m peers.trl_pairs job.json result.json`, in the environment `trl`."""

from contextlib import nullcontext
from typing import Any

import torch
import trl
from datasets import Dataset
from torch.utils.data import SequentialSampler

from peers.job import Facts, Job, Result, Stopwatch, read_rows, serve
from peers.sums import BETA, digest, dpo_loss, reward_loss
from peers.theirs import Saving, load_reward, policy_model, reward_model, settings, tokenizer_of


def dpo(job: Job) -> Result:
    """`trl.DPOTrainer`; its reference is the copy of the adapter it makes by itself."""
    policy = policy_model(job)
    watch = Stopwatch()
    rows = [{key: row[key] for key in ("prompt", "chosen", "rejected")} for row in read_rows(job.rows)]
    trainer = trl.DPOTrainer(model=policy, args=trl.DPOConfig(**settings(job), beta=BETA, max_length=None),
                             train_dataset=Dataset.from_list(rows), processing_class=tokenizer_of(job))
    saved, loss = train(trainer, job, watch)
    data = list(trainer.train_dataset)
    ids = [[each["prompt_ids"], each["chosen_ids"], each["rejected_ids"]] for each in data]
    exact = {"token ids": digest(ids), "scored tokens": sum(len(each[1]) + len(each[2]) for each in ids)}
    numbers, lists, rounded = last_loss(job, loss), {}, {}
    if job.check:
        batch = trainer.data_collator(data[:job.batch])
        rounded = {"summed log-prob of an answer, as training reads it": adapted_sums(trainer, batch, None)}
        in_fp32(trainer)
        start, end = (adapted_sums(trainer, batch, adapter) for adapter in ("ref", None))
        numbers["loss after the last step"] = dpo_loss(end, start)
        lists = {"summed log-prob of an answer before the first step": start,
                 "summed log-prob of an answer after the last step": end}
    return watch.result(len(rows), saved=saved, facts=Facts(exact=exact, numbers=numbers, lists=lists,
                                                                    rounded=rounded))


@torch.no_grad()
def adapted_sums(trainer: Any, batch: dict[str, torch.Tensor], adapter: str | None) -> list[float]:
    """Summed log-probs, chosen, rejected, chosen, ..., by the forward pass the trainer uses."""
    from trl.trainer.dpo_trainer import use_adapter

    labels = batch["input_ids"].masked_fill(batch["completion_mask"] == 0, -100)
    with use_adapter(trainer.model, adapter) if adapter else nullcontext():
        read = trainer.model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], labels=labels,
                             use_cache=False, fused_lm_head=True).log_probs
    return in_turn(read.sum(1))


def reward(job: Job) -> Result:
    """`trl.RewardTrainer` with an adapter and a trained score layer."""
    model = reward_model(job)
    tokenizer = tokenizer_of(job)
    watch = Stopwatch()
    rows = [{key: row[key] for key in ("prompt", "chosen", "rejected")} for row in read_rows(job.rows)]
    trainer = trl.RewardTrainer(model=model, args=trl.RewardConfig(**settings(job), max_length=None),
                                train_dataset=Dataset.from_list(rows), processing_class=tokenizer)
    saved, loss = train(trainer, job, watch)
    data = list(trainer.train_dataset)
    prompts = [tokenizer(row["prompt"]).input_ids for row in rows]
    ids = [[prompt, each["chosen_ids"][len(prompt):], each["rejected_ids"][len(prompt):]]
           for prompt, each in zip(prompts, data, strict=True)]
    exact = {"token ids": digest(ids), "scored tokens": sum(len(each[1]) + len(each[2]) for each in ids)}
    numbers, scores = last_loss(job, loss), {}
    if job.check:
        batch = trainer.data_collator(data[:job.batch])
        in_fp32(trainer)
        end = read_scores(trainer, batch)
        load_reward(trainer.model, job)
        numbers["loss after the last step"] = reward_loss(end)
        scores = {"score of an answer before the first step": read_scores(trainer, batch),
                  "score of an answer after the last step": end}
    return watch.result(len(rows), saved=saved, facts=Facts(exact=exact, numbers=numbers, scores=scores))


@torch.no_grad()
def read_scores(trainer: Any, batch: dict[str, torch.Tensor]) -> list[float]:
    """Scores, chosen, rejected, chosen, ..."""
    read = trainer.model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], use_cache=False)
    return in_turn(read.logits.squeeze(-1))


def last_loss(job: Job, loss: float) -> dict[str, float]:
    """The trainer's own loss of its last step; in bf16 that is rounded by some per cent, and not compared."""
    return {"loss of the last step": loss} if job.precision == "fp32" else {}


def in_fp32(trainer: Any) -> None:
    """The same weights, from now on read in fp32 and without autocast, which the model's forward is wrapped in."""
    trainer.accelerator.unwrap_model(trainer.model, keep_fp32_wrapper=False).float()


def in_turn(values: torch.Tensor) -> list[float]:
    """TRL reads all chosen, then all rejected answers."""
    listed: list[float] = torch.stack(values.float().chunk(2), dim=1).flatten().tolist()
    return listed


def train(trainer: Any, job: Job, watch: Stopwatch) -> tuple[list[tuple[int, float]], float]:
    """Train over the rows in their order; what was saved, and the loss of the last step."""
    trainer._get_train_sampler = lambda dataset=None: SequentialSampler(trainer.train_dataset)
    saving = Saving(job, watch, trainer.model)
    trainer.add_callback(saving)
    with watch:
        trainer.train()
    return saving.saved, [row["loss"] for row in trainer.state.log_history if "loss" in row][-1]


if __name__ == "__main__":
    serve({"dpo": dpo, "reward": reward})
