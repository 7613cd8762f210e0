"""TRL's RewardTrainer on people's labels: `python -m peers.human_trl asked.json done.json`, where TRL is installed."""

import tempfile
import time
from collections.abc import Sequence
from typing import Any

import torch
import trl
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from peers.human import RATE, Piece, ordered, serve
from peers.theirs import DTYPES, PAD

SCORED = 16
"""Held-out pairs in one forward pass."""


def trl_side(piece: Piece) -> dict[str, Any]:
    """One epoch at TRL's own settings, with an adapter of our shape and a trained score layer."""
    with tempfile.TemporaryDirectory() as scratch:
        trainer = trainer_of(piece, scratch)
        began = time.perf_counter()
        trainer.train()
        seconds = time.perf_counter() - began
        chosen, rejected = scores(trainer)
    kept = {key: value for key, value in settings(piece, "").items() if key != "output_dir"}
    return piece.result(ordered(chosen, rejected), seconds, micro_pairs=piece.micro_pairs,
                        threads=torch.get_num_threads(), settings={
                            **kept, "learning_rate": trainer.args.learning_rate, "trl": trl.__version__})


class MeanOverPairs(trl.RewardTrainer):
    """Takes the step of the whole batch by micro-batches: its loss is a mean over pairs, so they weigh by their pairs.

    By itself the trainer weighs them alike, which differs in the last step of an epoch where one has fewer pairs.
    """

    def get_batch_samples(self, *asked: Any, **more: Any) -> tuple[list[Any], Any]:
        """The micro-batches of a step, whose pairs are counted."""
        samples, items = super().get_batch_samples(*asked, **more)
        self.pairs_of_step = sum(pairs_in(each) for each in samples)
        return samples, items

    def compute_loss(self, model: Any, inputs: Any, **more: Any) -> Any:
        """Of a micro-batch, by its share of the step's pairs; the trainer then divides by how many there are."""
        share = pairs_in(inputs) / self.pairs_of_step
        return super().compute_loss(model, inputs, **more) * share * self.current_gradient_accumulation_steps


def pairs_in(inputs: Any) -> int:
    """Pairs of a micro-batch, whose rows are all chosen and then all rejected answers."""
    return len(inputs["input_ids"]) // 2


def trainer_of(piece: Piece, folder: str) -> MeanOverPairs:
    """The trainer over the rows of a piece, which tokenises them itself; what it writes is under `folder`."""
    tokenizer = AutoTokenizer.from_pretrained(piece.model)
    if PAD in tokenizer.get_vocab():
        tokenizer.pad_token = PAD
    train, held_out = (Dataset.from_list([{key: row[key] for key in ("prompt", "chosen", "rejected")}
                                          for row in piece.rows(part)]) for part in ("train", "held_out"))
    return MeanOverPairs(model=adapted(piece), args=trl.RewardConfig(**settings(piece, folder)), train_dataset=train,
                         eval_dataset=held_out, processing_class=tokenizer)


def settings(piece: Piece, folder: str) -> dict[str, Any]:
    """TRL's defaults but for batch and precision, one epoch, quiet, and activations kept, which is faster."""
    rate = {"learning_rate": RATE} if piece.side == "trl-rate" else {}
    return {"output_dir": folder, "report_to": "none", "save_strategy": "no", "disable_tqdm": True, "logging_steps": 10,
            "use_cpu": piece.device == "cpu", "bf16": piece.precision == "bf16", "gradient_checkpointing": False,
            "num_train_epochs": 1, "per_device_train_batch_size": piece.micro_pairs,
            "gradient_accumulation_steps": piece.batch // piece.micro_pairs, "seed": piece.seed, "max_length": None,
            **rate}


def adapted(piece: Piece) -> Any:
    """The base as a sequence classifier of one class with a fresh adapter; what is trained is fp32."""
    torch.manual_seed(piece.seed)
    base = AutoModelForSequenceClassification.from_pretrained(piece.model, num_labels=1,
                                                              dtype=DTYPES[piece.precision])
    model = get_peft_model(base, LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", task_type="SEQ_CLS",
                                            modules_to_save=["score"]))
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    return model


@torch.no_grad()
def scores(trainer: Any) -> tuple[list[float], list[float]]:
    """Of the chosen and of the rejected answers of the held-out pairs, as the trainer itself tokenised them."""
    model, data = trainer.model.eval(), list(trainer.eval_dataset)
    chosen: list[float] = []
    rejected: list[float] = []
    for part in parts(data):
        batch = trainer.data_collator(part)
        read = model(input_ids=batch["input_ids"].to(model.device), use_cache=False,
                     attention_mask=batch["attention_mask"].to(model.device)).logits.squeeze(-1).float()
        first, second = read.chunk(2)  # all chosen answers, then all rejected ones
        chosen += first.tolist()
        rejected += second.tolist()
    return chosen, rejected


def parts(data: Sequence[Any]) -> list[Sequence[Any]]:
    return [data[start:start + SCORED] for start in range(0, len(data), SCORED)]


if __name__ == "__main__":
    serve({"trl": trl_side, "trl-rate": trl_side})
