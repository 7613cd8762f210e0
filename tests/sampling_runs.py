"""A tiny policy, prompts and a reward that is easy to raise: for every test of a method that samples."""

from collections.abc import Sequence
from typing import Any

from rlhflab.config import Lora, SampledRun, make_run
from rlhflab.data.chat import ChatFormat
from rlhflab.data.types import Message, Prompt, Rollout, Score
from rlhflab.model.shared import SharedModel
from rlhflab.train.best_of_n import train_best_of_n
from rlhflab.train.online_dpo import train_online_dpo
from rlhflab.train.ppo import has_critic, train_ppo
from rlhflab.train.state import Saved, Step
from scorers import early_letters

PROMPTS = [Prompt(id=f"p{i}", messages=(Message(role="user", content="abcdefgh"[:2 + i % 6]),)) for i in range(16)]
SETTINGS: dict[str, Any] = {
    "dtype": "float32", "batch": 8, "samples": 4, "max_new_tokens": 6, "lora": {"rank": 8},
    "optimizer": {"learning_rate": 1e-2, "schedule": "constant", "warmup": 0.0}}
TRAIN = {"ppo": train_ppo, "best_of_n": train_best_of_n, "online_dpo": train_online_dpo}


class Letters:
    """Ten times the share of early letters, and what was scored so far."""

    def __init__(self) -> None:
        self.rollouts: list[Sequence[Rollout]] = []

    def __call__(self, rollouts: Sequence[Rollout]) -> list[Score]:
        self.rollouts.append(rollouts)
        return [Score(value=10 * early_letters([], rollout.text), by="letters") for rollout in rollouts]


def constant(rollouts: Sequence[Rollout]) -> list[Score]:
    """A reward that tells no answer from another."""
    return [Score(value=1.0, by="constant") for _ in rollouts]


def train_tiny(model: SharedModel, kind: str, *, reward: Any = None, saved: Saved | None = None,
               keep_roles: bool = False, prompts: Sequence[Prompt] = PROMPTS, **settings: Any) -> list[Step]:
    """Every step of a run of `kind` with a fresh policy, and critic where it needs one."""
    made = make_run(kind, {**SETTINGS, **({"kl_coefficient": 0.0} if kind == "ppo" else {}), **settings})
    assert isinstance(made, SampledRun)
    if not keep_roles:
        model.add_role("policy", Lora(rank=8))
        if kind == "ppo" and has_critic(made):  # type: ignore[arg-type]
            model.add_role("value", Lora(rank=8), copy_of="policy", head="zero")
    loop = TRAIN[kind](made, model, prompts, chat=ChatFormat(model.tokenizer),  # type: ignore[operator]
                       reward=reward or Letters(), reference=None, saved=saved)
    return list(loop)
