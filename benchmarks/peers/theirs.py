"""What the workers of the peers share: TRL's settings and its models, from the same tensors as ours."""

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import transformers
from peft import LoraConfig, PeftModel, get_peft_model, set_peft_model_state_dict
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer, TrainerCallback

from peers.job import Job, Stopwatch

warnings.simplefilter("ignore")
transformers.logging.set_verbosity_error()
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
PAD = "<|endoftext|>"
"""Not the end of a turn, which SmolLM2 pads with: what reads a score at the last token that is no padding would read it
one token early."""


def settings(job: Job) -> dict[str, Any]:
    """Of TRL's configurations: as ours, and quiet. Activations are kept unless the job says otherwise."""
    return {"output_dir": str(Path(job.rows).parent / "trl"), "report_to": "none", "save_strategy": "no",
            "disable_tqdm": True, "use_cpu": True, "bf16": job.precision == "bf16",
            "gradient_checkpointing": job.recompute, "logging_steps": 1, "learning_rate": job.learning_rate,
            "lr_scheduler_type": "constant", "warmup_steps": 0, "weight_decay": 0.0, "num_train_epochs": 1, "seed": 0,
            "max_grad_norm": 1e9, "per_device_train_batch_size": job.peer_micro,
            "gradient_accumulation_steps": job.batch // job.peer_micro}


def tokenizer_of(job: Job) -> Any:
    """The model's tokenizer, padding with `PAD`."""
    tokenizer = AutoTokenizer.from_pretrained(job.model)
    tokenizer.pad_token = PAD
    return tokenizer


def policy_model(job: Job, *, trainable: bool = True) -> Any:
    """The base with the saved policy as its PEFT adapter."""
    base = AutoModelForCausalLM.from_pretrained(job.model, dtype=DTYPES[job.precision])
    return PeftModel.from_pretrained(base, str(Path(job.roles) / "policy"), is_trainable=trainable)


def reward_model(job: Job) -> Any:
    """The base as a sequence classifier of one class, with the saved reward role as its adapter and score layer."""
    base = AutoModelForSequenceClassification.from_pretrained(job.model, dtype=DTYPES[job.precision], num_labels=1)
    config = LoraConfig.from_pretrained(str(Path(job.roles) / "reward"))
    config.task_type, config.inference_mode, config.modules_to_save = "SEQ_CLS", False, ["score"]
    model = get_peft_model(base, config)
    for parameter in model.parameters():  # as PEFT does with the adapter: what is trained is fp32
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    load_reward(model, job)
    return model


def load_reward(model: Any, job: Job) -> None:
    """Put the tensors of the saved reward role into the model."""
    folder = Path(job.roles) / "reward"
    head = load_file(folder / "head.safetensors")["weight"]
    set_peft_model_state_dict(model, {**load_file(folder / "adapter_model.safetensors"),
                                      "base_model.model.score.weight": head})


def padded(rows: Sequence[Sequence[int]], *, left: bool = False, pad: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """(token ids, attention mask) of rows of unequal length."""
    width = max(map(len, rows))
    ids = torch.full((len(rows), width), pad)
    mask = torch.zeros_like(ids)
    for i, row in enumerate(rows):
        where = slice(width - len(row), width) if left else slice(0, len(row))
        ids[i, where], mask[i, where] = torch.tensor(row), 1
    return ids, mask


@torch.no_grad()
def logprob_sums(model: Any, prompts: Sequence[Sequence[int]], answers: Sequence[Sequence[int]],
                 batch: int = 16) -> list[float]:
    """Summed log-prob of each answer, by plain full softmax."""
    sums: list[float] = []
    for start in range(0, len(prompts), batch):
        some = list(zip(prompts[start:start + batch], answers[start:start + batch], strict=True))
        ids, mask = padded([[*prompt, *answer] for prompt, answer in some])
        logits = model(input_ids=ids, attention_mask=mask, use_cache=False).logits
        for i, (prompt, answer) in enumerate(some):
            rows = logits[i, len(prompt) - 1:len(prompt) + len(answer) - 1].float().log_softmax(-1)
            sums.append(float(rows.gather(-1, torch.tensor(answer)[:, None]).sum()))
    return sums


class Saving(TrainerCallback):
    """Saves the policy every so many steps, with the seconds so far."""

    def __init__(self, job: Job, watch: Stopwatch, policy: Any) -> None:
        self.job, self.watch, self.policy = job, watch, policy
        self.saved: list[tuple[int, float]] = []

    def on_step_end(self, args: Any, state: Any, control: Any, **more: Any) -> None:
        if self.job.save_every and state.global_step % self.job.save_every == 0:
            with self.watch.paused():
                self.saved.append((state.global_step, self.watch.seconds))
                self.policy.save_pretrained(f"{self.job.save_to}/step-{state.global_step}",
                                            selected_adapters=["default"])
