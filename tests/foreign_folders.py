"""Adapter folders as other trainers leave them: tensors and configuration by PEFT itself, side files by hand.

The side files have the keys and the layout that TRL, LLaMA-Factory and axolotl give them, with small numbers.
"""

import json
from pathlib import Path
from typing import Any

import torch
import yaml
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM

from rlhflab.model.load import model_folder

IDS = torch.tensor([[1, 50, 60, 70, 2, 81, 92]])
TRL_CARD = """---
base_model: owner/tiny
library_name: peft
model_name: helper-dpo
tags:
- base_model:adapter:owner/tiny
- dpo
- lora
- trl
datasets: owner/pairs
---

# Model Card for helper-dpo

### Framework versions

- PEFT 0.21.2
- TRL: 1.16.0
- Transformers: 5.23.0
"""
AXOLOTL = {"base_model": "owner/tiny", "adapter": "lora", "lora_r": 4, "lora_alpha": 8, "sequence_len": 512,
           "rl": "dpo", "datasets": [{"path": "owner/pairs", "type": "chatml.intel", "split": "train"}],
           "micro_batch_size": 2, "gradient_accumulation_steps": 4, "num_epochs": 1, "learning_rate": 2e-4, "seed": 7,
           "wandb_project": "mine", "hub_token": "never to be kept"}
LLAMA_FACTORY = {"stage": "dpo", "model_name_or_path": "owner/tiny", "finetuning_type": "lora", "lora_rank": 4,
                 "dataset": "ours_pairs,more", "template": "qwen", "cutoff_len": 512, "pref_beta": 0.1,
                 "learning_rate": 5e-6, "num_train_epochs": 3.0, "per_device_train_batch_size": 1}


def peft_folder(path: Path, *, base: str = "tiny-llama", named: str = "owner/tiny", seed: int = 2,
                **options: Any) -> PeftModel:
    """The model whose adapter `save_pretrained` wrote to `path`; every trained tensor of it differs from its start."""
    plain = AutoModelForCausalLM.from_pretrained(model_folder(base)[0], dtype=torch.float32)
    made: Any = get_peft_model(plain, LoraConfig(**{
        "r": 4, "lora_alpha": 8, "task_type": "CAUSAL_LM", "target_modules": ["q_proj", "v_proj"], **options}))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in made.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    made.peft_config["default"].base_model_name_or_path = named
    made.save_pretrained(path, save_embedding_layers=False)
    return made.eval()


def their_logprobs(model: PeftModel) -> torch.Tensor:
    """Log-probs of every next token, by PEFT's own forward."""
    with torch.no_grad():
        logits: torch.Tensor = model(input_ids=IDS).logits
    return logits.log_softmax(-1)


def trainer_state(path: Path, *, steps: int = 4, rate: float = 1e-4) -> None:
    """`trainer_state.json` of transformers' Trainer, with the metrics TRL logs."""
    path.mkdir(parents=True, exist_ok=True)
    logs = [{"epoch": step / steps, "grad_norm": 1.5, "learning_rate": rate * (1 - step / steps),
             "loss": 0.7 - 0.1 * step, "rewards/accuracies": 0.5, "step": step} for step in range(steps)]
    (path / "trainer_state.json").write_text(json.dumps({
        "best_global_step": None, "best_metric": None, "best_model_checkpoint": None, "epoch": 1.0, "eval_steps": 500,
        "global_step": steps, "log_history": [*logs, {"eval_loss": 0.61, "step": steps}], "logging_steps": 1,
        "max_steps": steps, "num_train_epochs": 1, "save_steps": 2, "stateful_callbacks": {}, "total_flos": 0.0,
        "train_batch_size": 2, "trial_name": None, "trial_params": None}, indent=2))


def as_trl(path: Path, *checkpoints: int) -> None:
    """What TRL writes beside the adapter in `path`, and its checkpoints below."""
    (path / "README.md").write_text(TRL_CARD)
    (path / "training_args.bin").write_bytes(b"\x80\x05never to be unpickled.")
    for number in checkpoints:
        folder = path / f"checkpoint-{number}"
        folder.mkdir()
        for name in ("adapter_config.json", "adapter_model.safetensors"):
            (folder / name).write_bytes((path / name).read_bytes())
        trainer_state(folder, steps=number)
        (folder / "optimizer.pt").write_bytes(b"\x80\x05never to be unpickled either.")


def as_llama_factory(path: Path) -> None:
    """What LLaMA-Factory writes beside the adapter, with the settings as its board keeps them."""
    rows = [{"current_steps": step, "total_steps": 20, "loss": 0.7 - step / 100, "lr": 5e-6 * step / 20,
             "epoch": step / 20, "percentage": 5.0 * step, "elapsed_time": "0:00:27",
             "remaining_time": "0:00:00"} for step in (10, 20)]
    (path / "trainer_log.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (path / "all_results.json").write_text(json.dumps({"epoch": 1.0, "train_loss": 0.55, "train_runtime": 70.6}))
    (path / "training_args.yaml").write_text(yaml.safe_dump(LLAMA_FACTORY))
    (path / "training_args.bin").write_bytes(b"\x80\x05never to be unpickled.")


def as_axolotl(path: Path) -> None:
    """The model card axolotl writes, its own settings in it, and a configuration file beside it."""
    settings = yaml.safe_dump(AXOLOTL, sort_keys=False)
    (path / "README.md").write_text(
        "---\nlibrary_name: peft\nbase_model: owner/tiny\ntags:\n- axolotl\n- generated_from_trainer\ndatasets:\n"
        "- owner/pairs\n---\n\n<details><summary>See axolotl config</summary>\n\naxolotl version: `0.9.1`\n"
        f"```yaml\n{settings}\n```\n\n</details><br>\n\n### Training hyperparameters\n\n- learning_rate: 0.0002\n"
        "- seed: 7\n\n### Framework versions\n\n- PEFT 0.15.2\n- Transformers 4.51.3\n")
    (path / "config.yml").write_text(settings)
