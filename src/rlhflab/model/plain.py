"""What other tools make of a folder: plain transformers and PEFT, no shared base, no branches. Slow, for checks."""

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from peft import PeftModel
from torch import Tensor
from transformers import AutoModelForCausalLM

from rlhflab.core.batch import Tree
from rlhflab.model.load import model_folder


def plain_model(name: str, *, dtype: torch.dtype, device: torch.device | str, adapter: Path | None = None) -> Any:
    """The model `name`, or with an adapter folder on it, as anybody else would load it."""
    model: Any = AutoModelForCausalLM.from_pretrained(model_folder(name)[0], dtype=dtype, use_safetensors=True)
    if adapter is not None:
        with warnings.catch_warnings():  # PEFT asks transformers for a property under its old name
            warnings.simplefilter("ignore", FutureWarning)
            model = PeftModel.from_pretrained(model, str(adapter))
    return model.to(device).eval()


@torch.no_grad()
def plain_logprobs(model: Any, trees: Sequence[Tree]) -> Float[Tensor, " s"]:
    """Log-probs of every answer token of `trees`, in their order, by a full softmax over one answer at a time."""
    each = []
    for tree in trees:
        for answer in tree.answers:
            ids = torch.tensor([*tree.prompt, *answer.ids], device=model.device)
            logprobs = model(input_ids=ids[None]).logits[0, :-1].float().log_softmax(-1)
            each.append(logprobs.gather(-1, ids[1:, None]).squeeze(-1)[len(tree.prompt) - 1:])
    return torch.cat(each)
