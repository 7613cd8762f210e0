"""rlhflab: preference data -> reward model -> DPO and PPO -> evidence, on one CPU or one GPU."""

__version__ = "0.1.0"
