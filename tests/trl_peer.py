"""TRL's trainers on the tiny models, from the same LoRA tensors: numbers from an independent source.

TRL and `datasets` take seconds to import, so both are imported when they are asked for.
"""

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from rlhflab.model.load import model_folder
from rlhflab.model.shared import ADAPTER, HEAD, SharedModel

QUIET: dict[str, Any] = {"report_to": "none", "save_strategy": "no", "disable_tqdm": True, "use_cpu": True,
                         "bf16": False, "gradient_checkpointing": False, "logging_steps": 1,
                         "lr_scheduler_type": "linear", "warmup_steps": 0, "weight_decay": 0.0,
                         "num_train_epochs": 1, "seed": 0}


def peft_model(model: SharedModel, role: str, folder: Path) -> Any:
    """The base as transformers loads it, with `role` as its trainable PEFT adapter."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    model.save_role(role, folder / role)
    base = AutoModelForCausalLM.from_pretrained(model_folder("tiny-llama")[0], dtype=torch.float32)
    return PeftModel.from_pretrained(base, folder / role, is_trainable=True)


def scored_peft_model(model: SharedModel, role: str, folder: Path) -> Any:
    """The base as a sequence classifier of one class, with `role` as its trainable adapter and score layer."""
    from peft import LoraConfig, get_peft_model, set_peft_model_state_dict
    from transformers import AutoModelForSequenceClassification

    model.save_role(role, folder / role)
    base = AutoModelForSequenceClassification.from_pretrained(model_folder("tiny-llama")[0], dtype=torch.float32,
                                                              num_labels=1)
    config = LoraConfig.from_pretrained(folder / role)
    config.task_type, config.inference_mode, config.modules_to_save = "SEQ_CLS", False, ["score"]
    peft = get_peft_model(base, config)
    set_peft_model_state_dict(peft, {**load_file(folder / role / ADAPTER), "base_model.model.score.weight": load_file(
        folder / role / HEAD)["weight"]})
    return peft


def loss_curve(made: Any) -> list[float]:
    """Train; the loss of every step."""
    made.train()
    return [row["loss"] for row in made.state.log_history if "loss" in row]


def load_as(peft: Any, adapter: str, model: SharedModel, role: str, folder: Path) -> None:
    """Put the tensors of `role` into the adapter `adapter` of TRL's model."""
    from peft import set_peft_model_state_dict

    model.save_role(role, folder / role)
    set_peft_model_state_dict(peft, load_file(folder / role / ADAPTER), adapter_name=adapter)


def trainer(kind: str, peft: Any, rows: Sequence[Mapping[str, Any]], tokenizer: Any, folder: Path,
            **settings: Any) -> Any:
    """`trl.DPOTrainer` and the like over `rows`, whose order it keeps."""
    import trl
    from datasets import Dataset
    from torch.utils.data import SequentialSampler

    warnings.simplefilter("ignore")
    where: Any = trl
    if kind in ("CPO", "ORPO"):
        import trl.experimental.cpo
        import trl.experimental.orpo
        where = getattr(trl.experimental, kind.lower())
    config = getattr(where, f"{kind}Config")(output_dir=str(folder / "trl"), **{**QUIET, **settings})
    made = getattr(where, f"{kind}Trainer")(model=peft, args=config, train_dataset=Dataset.from_list(list(rows)),
                                            processing_class=tokenizer)
    made._get_train_sampler = lambda dataset=None: SequentialSampler(made.train_dataset)
    return made


def gradients(peft: Any) -> dict[str, torch.Tensor]:
    """Gradients of the trained adapter by the names that PEFT stores tensors by; then cleared."""
    taken = {}
    for name, parameter in peft.named_parameters():
        if ".default." in name and "lora_" in name:
            taken[name.replace(".default.", ".")] = parameter.grad.clone()
            parameter.grad = None
    return taken
