"""The arms of the reward-hacking experiment. Only the reward differs between them, except where a name says so."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from rlhflab.analysis.hacking import ALARMS
from rlhflab.errors import ConfigError

Labels = Literal["biased", "unbiased", "shuffled", "targeted", "random", "none"]
"""Who judged the pairs that the reward is learnt from; `targeted` and `random` add a few expert pairs to the biased."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Arm:
    """One way to get a reward, and the policy that is trained on it."""

    says: str
    labels: Labels
    method: Literal["rl", "ppo", "dpo"] = "rl"
    """rl: the experiment's own method."""
    reward: Mapping[str, Any] = field(default_factory=dict)
    """Keys of the reward run that differ."""
    source: Mapping[str, Any] = field(default_factory=dict)
    """Options of the reward source that differ."""
    run: Mapping[str, Any] = field(default_factory=dict)
    """Keys of the RL run that differ."""
    every_seed: bool = False
    """Run on all seeds, others on the first alone."""


ARMS: Mapping[str, Arm] = {
    "hack": Arm(says="the biased reward model, nothing done about it", labels="biased", every_seed=True),
    "ensemble": Arm(says="five heads on bootstraps, mean less variance", labels="biased", reward={"heads": 5},
                    source={"combine": "uwo"}),
    "length-corrected": Arm(says="less what the reward model usually says of that length", labels="biased",
                            source={"length_correction": True}),
    "shaped": Arm(says="preference as reward", labels="biased", source={"shaping": {"name": "par"}}),
    "kl": Arm(says="four times the KL coefficient", labels="biased", run={"kl_coefficient": 0.2}),
    "early-stop": Arm(says="stopped by the first alarm", labels="biased", run={"detect.stop": list(ALARMS)}),
    "targeted": Arm(says="expert pairs on the failures that were detected, restart from SFT", labels="targeted",
                    every_seed=True),
    "random": Arm(says="as many expert pairs drawn at random, restart from SFT", labels="random", every_seed=True),
    "unbiased": Arm(says="annotators without bias", labels="unbiased", every_seed=True),
    "oracle": Arm(says="gold itself as the reward", labels="none", every_seed=True),
    "shuffled": Arm(says="labels at random", labels="shuffled"),
    "hack-ppo": Arm(says="the biased reward model with PPO", labels="biased", method="ppo"),
    "targeted-ppo": Arm(says="the cured reward model with PPO", labels="targeted", method="ppo"),
    "dpo-biased": Arm(says="DPO on the biased pairs", labels="biased", method="dpo"),
    "dpo-targeted": Arm(says="DPO on the biased and the expert pairs", labels="targeted", method="dpo"),
}
SHORT = ("hack", "targeted", "unbiased")


def in_order(names: Sequence[str]) -> tuple[str, ...]:
    """Those arms, in the order in which they can be run. ConfigError for a name that is none, or that needs another."""
    for name in names:
        if name not in ARMS:
            raise ConfigError(f"arms: no arm is called {name!r}; there are {', '.join(ARMS)}")
        if ARMS[name].labels in ("targeted", "random") and "hack" not in names:
            raise ConfigError(f"arms: {name} relabels failures of the arm hack, which has to be among them")
    return tuple(name for name in ARMS if name in names)
