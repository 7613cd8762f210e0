"""The model card of a demo, made from what the run recorded."""

from typing import Any

from rlhflab.config import Run
from rlhflab.model.load import Base


def model_card(summary: dict[str, Any], *, base: Base, run: Run) -> str:
    """Markdown: what the adapters are, what they were trained on, what they are good for and what not."""
    parameters = sum(parameter.numel() for parameter in base.model.parameters())
    return f"""\
**Adapters.** `sft`, `dpo` and `ppo` are LoRA adapters (rank {run.lora.rank}, alpha {run.lora.alpha:g}) in PEFT's
format; `reward` and `value` are adapters with a scalar head beside them. Each names the digest of its base weights.

**Base.** `{base.name}` ({parameters / 1e6:.0f} M parameters), weights sha256 `{base.digest[:16]}`, frozen,
{str(base.model.dtype).removeprefix('torch.')}.

**Trained on.** The scenario of the data card. `sft` on demonstrations of mixed style; `dpo` and `reward` on
{summary.get("preferences", {}).get("pairs", "?")} pairs of its own answers, judged by the annotators of the annotator
card without bias; `ppo` on the reward model's score with a KL term that holds it near `sft`. `dpo` and `ppo` both start
from `sft`.

**For.** Learning and research on alignment methods: answers to questions about a short note.

**Not for.** Facts from memory, advice, or any use without checking. The model is small and was tuned on one narrow
task; its perplexity on other text before and after is in this report.

**Seed** {summary["seed"]}. The same seed on the same machine and versions gives the same numbers.
"""
