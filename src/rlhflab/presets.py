"""Settings of other projects by name, as a run file would write them, with what they cannot say here. No torch.

`preset: trl-ppo` in a run file lays these values under the file's own keys; the file and the flags win.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from rlhflab.catalog import Catalog
from rlhflab.errors import ConfigError

NONE = float("inf")
"""Of `max_grad_norm`: gradients are not clipped."""
LORA = "every weight is trained there, a low-rank adapter here, for which rates about 10 times as high are usual"
ONE_LOSS = "policy and value are one model to their optimizer there; here each is clipped and stepped by itself"


@dataclass(frozen=True, slots=True, kw_only=True)
class Preset:
    """Values for a run file of one kind."""

    kind: str
    values: Mapping[str, Any]
    deviations: tuple[str, ...]
    """What that project does and this one does otherwise, in words."""


preset: Catalog[Callable[[], Preset]] = Catalog("preset")


def preset_values(name: str, *, kind: str, where: str) -> Mapping[str, Any]:
    """The values of the preset `name` for a run of `kind`. ConfigError names `where`."""
    made = preset.entry(name, where=f"{where}: preset").function()
    if made.kind != kind:
        raise ConfigError(f"{where}: preset: {name} is for {made.kind} runs, not for {kind}")
    return made.values


def described(name: str) -> str:
    """The summary of a preset and its deviations, in one line."""
    entry = preset.entry(name, where="preset")
    return f"{entry.summary} Deviations: {'; '.join(entry.function().deviations) or 'none'}."


def dotted(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """`{"end": {"rule": "none"}}` as `{"end.rule": "none"}`."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat |= dotted(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {prefix + key: value}
    return flat


@preset("trl-dpo", needs=("a dpo run",),
        source="TRL 1.16, trl/trainer/dpo_config.py and transformers' TrainingArguments")
def trl_dpo() -> Preset:
    """TRL's defaults for DPO."""
    return Preset(kind="dpo", values={
        "optimizer": {"learning_rate": 1e-6, "schedule": "linear", "final_share": 0.0, "warmup": 0.0,
                      "weight_decay": 0.0, "beta1": 0.9, "beta2": 0.999, "epsilon": 1e-8, "max_grad_norm": 1.0},
        "loss": {"name": "dpo", "beta": 0.1}, "epochs": 3, "batch": 8, "max_length": 1024,
        "overlong": "drop", "lora": {"dropout": 0.0}, "dtype": "bfloat16", "recompute": True,
    }, deviations=(
        LORA, "batch counts pairs there, and prompts with all their pairs here",
        "a row over max_length is cut at its end there and dropped here"))


@preset("trl-reward", needs=("a reward run",),
        source="TRL 1.16, trl/trainer/reward_config.py and transformers' TrainingArguments")
def trl_reward() -> Preset:
    """TRL's defaults for reward models."""
    return Preset(kind="reward", values={
        "optimizer": {"learning_rate": 1e-4, "schedule": "linear", "final_share": 0.0, "warmup": 0.0,
                      "weight_decay": 0.0, "beta1": 0.9, "beta2": 0.999, "epsilon": 1e-8, "max_grad_norm": 1.0},
        "head_learning_rate": 1e-4, "margin": 0.0, "centering": 0.0, "epochs": 3, "batch": 8, "max_length": 1024,
        "overlong": "drop", "lora": {"dropout": 0.0}, "dtype": "bfloat16", "recompute": True,
    }, deviations=(
        LORA, "batch counts pairs there, and prompts with all their pairs here",
        "the head is drawn from N(0, 0.02^2) there and from N(0, 1/(d+1)) here",
        "scores are not normalised there; here mean and deviation are stored with the role"))


@preset("trl-ppo", needs=("a ppo run",),
        source="TRL 1.12, trl/experimental/ppo/ppo_config.py and ppo_trainer.py (removed in 1.13)")
def trl_ppo() -> Preset:
    """TRL's defaults for PPO, of the last version that had it."""
    return Preset(kind="ppo", values={
        "optimizer": {"learning_rate": 3e-6, "schedule": "linear", "final_share": 0.0, "warmup": 0.0,
                      "weight_decay": 0.0, "beta1": 0.9, "beta2": 0.999, "epsilon": 1e-8, "max_grad_norm": NONE},
        "value_learning_rate": 3e-6, "value_adapter_learning_rate": 3e-6,
        "batch": 8, "samples": 1, "epochs": 4, "minibatches": 1,
        "kl_coefficient": 0.05, "kl_in": "reward", "kl_estimator": "k1", "kl_target": None,
        "policy_loss": {"name": "clip", "clip": 0.2}, "value_clip": 0.2, "value_coefficient": 0.1,
        "advantage": {"name": "gae", "gamma": 1.0, "gae_lambda": 0.95, "whiten_rewards": False,
                      "whiten_advantages": True},
        "token_mean": "token", "entropy_coefficient": 0.0, "end": {"rule": "none"},
        "temperature": 0.7, "max_new_tokens": 53, "dtype": "bfloat16", "recompute": True,
    }, deviations=(
        LORA, ONE_LOSS, "num_mini_batches has no effect there, so minibatches is 1",
        "the score lies on the first padding token after a stopped answer there, on its last token here",
        "the batch is that of one device without accumulation",
        "the value head starts as the reward model's there and at zero here"))


@preset("nplus-ppo", needs=("a ppo run",),
        source="arXiv:2403.17031, vwxyzjn/summarize_from_feedback_details, summarize_from_feedback_details/ppo.py")
def nplus_ppo() -> Preset:
    """The N+ implementation details of RLHF with PPO, on TL;DR summaries."""
    return Preset(kind="ppo", values={
        "optimizer": {"learning_rate": 3e-6, "schedule": "linear", "final_share": 0.0, "warmup": 0.0,
                      "weight_decay": 0.01, "epsilon": 1e-5, "max_grad_norm": NONE},
        "value_learning_rate": 3e-6, "value_adapter_learning_rate": 3e-6,
        "batch": 512, "samples": 1, "epochs": 4, "minibatches": 1,
        "kl_coefficient": 0.05, "kl_in": "reward", "kl_estimator": "k1", "kl_target": None,
        "policy_loss": {"name": "clip", "clip": 0.2}, "value_clip": 0.2, "value_coefficient": 0.1,
        "advantage": {"name": "gae", "gamma": 1.0, "gae_lambda": 0.95, "whiten_rewards": False,
                      "whiten_advantages": True},
        "token_mean": "token", "end": {"rule": "replace", "value": 1.0}, "temperature": 0.7, "max_new_tokens": 53,
    }, deviations=(
        LORA, ONE_LOSS,
        "the score lies on the first padding token after a stopped answer there, on its last token here",
        "log-probs at sampling are the sampler's there, the training forward's here",
        "a million episodes there; say steps"))


@preset("openrlhf-ppo", needs=("a ppo run",), source="OpenRLHF 0.11, openrlhf/cli/train_ppo_ray.py")
def openrlhf_ppo() -> Preset:
    """OpenRLHF's defaults for PPO."""
    return Preset(kind="ppo", values={
        "optimizer": {"learning_rate": 1e-6, "schedule": "cosine", "final_share": 0.1, "warmup": 0.03,
                      "weight_decay": 0.0, "beta1": 0.9, "beta2": 0.95, "epsilon": 1e-8, "max_grad_norm": 1.0},
        "value_learning_rate": 9e-6, "value_adapter_learning_rate": 9e-6,
        "batch": 1024, "samples": 1, "epochs": 1, "minibatches": 8,
        "kl_coefficient": 0.01, "kl_in": "reward", "kl_estimator": "k1", "kl_target": None, "kl_horizon": 10_000,
        "policy_loss": {"name": "clip", "clip": 0.2, "clip_high": None, "dual_clip": None}, "value_clip": 0.5,
        "value_coefficient": 1.0,
        "advantage": {"name": "gae", "gamma": 1.0, "gae_lambda": 1.0, "whiten_rewards": False,
                      "whiten_advantages": True},
        "end": {"rule": "none"}, "reward_clip": 10.0, "temperature": 1.0, "max_length": 2048, "max_new_tokens": 1024,
    }, deviations=(
        LORA, "an answer may fill what its prompt leaves of 2048 tokens there; here max_new_tokens says how much",
        "KL estimates are cut to +-10 and log-ratios to +-20 there",
        "the value head starts as the reward model's there and at zero here"))


@preset("verl-ppo", needs=("a ppo run",),
        source="verl 0.10, verl/trainer/config/_generated_ppo_trainer.yaml")
def verl_ppo() -> Preset:
    """The defaults of verl for PPO."""
    return Preset(kind="ppo", values={
        "optimizer": {"learning_rate": 1e-6, "schedule": "constant", "warmup": 0.0, "weight_decay": 0.01,
                      "epsilon": 1e-8, "max_grad_norm": 1.0},
        "value_learning_rate": 1e-5, "value_adapter_learning_rate": 1e-5,
        "batch": 1024, "samples": 1, "epochs": 1, "minibatches": 4, "kl_coefficient": 0.0,
        "policy_loss": {"name": "clip", "clip": 0.2, "clip_high": 0.2, "dual_clip": 3.0}, "value_clip": 0.5,
        "value_coefficient": 1.0,
        "advantage": {"name": "gae", "gamma": 1.0, "gae_lambda": 1.0, "whiten_advantages": True},
        "token_mean": "token", "entropy_coefficient": 0.0, "end": {"rule": "none"}, "temperature": 1.0,
        "max_length": 1024, "max_new_tokens": 512, "dtype": "bfloat16", "recompute": True,
    }, deviations=(
        LORA, "both KL terms are off there; where one is turned on its coefficient is .001",
        "the order of a rollout's answers is not shuffled there"))


@preset("lora-sft", needs=("an sft run",), source="recipes/sft.yaml")
def lora_sft() -> Preset:
    """Settings of this project for SFT of a 135M model with LoRA."""
    return Preset(kind="sft", values={"epochs": 1, "batch": 8, "optimizer": {"learning_rate": 1e-3}}, deviations=())


@preset("lora-reward", needs=("a reward run",), source="recipes/reward.yaml")
def lora_reward() -> Preset:
    """Settings of this project for a reward model of 135M with LoRA."""
    return Preset(kind="reward", values={
        "epochs": 1, "batch": 4, "optimizer": {"learning_rate": 1e-3}, "head_learning_rate": 3e-3}, deviations=())


@preset("lora-dpo", needs=("a dpo run",), source="recipes/dpo.yaml")
def lora_dpo() -> Preset:
    """Settings of this project for DPO of a 135M model with LoRA."""
    return Preset(kind="dpo", values={
        "epochs": 1, "batch": 8, "loss": {"name": "dpo", "beta": 0.1}, "optimizer": {"learning_rate": 2e-4}},
        deviations=())


@preset("lora-ppo", needs=("a ppo run",), source="recipes/ppo.yaml")
def lora_ppo() -> Preset:
    """Settings of this project for PPO of a 135M model with LoRA."""
    return Preset(kind="ppo", values={
        "batch": 16, "samples": 4, "steps": 8, "epochs": 1, "kl_coefficient": 0.1,
        "optimizer": {"learning_rate": 2e-4, "epsilon": 1e-5}}, deviations=())
