"""The coefficient of the KL term: fixed, or steered to a target. No loss here."""

from collections.abc import Mapping


class KlCoefficient:
    """Weight of the KL term. With a target it is changed after each rollout by how far the KL is off.

    coefficient *= 1 + clip(kl / target - 1, -0.2, 0.2) x answers / horizon (Ziegler et al., arXiv:1909.08593,
    section 2.2).
    """

    def __init__(self, value: float, *, target: float | None = None, horizon: float = 10_000) -> None:
        """`target`: nats an answer, None for a fixed coefficient. `horizon`: answers."""
        self.value, self.target, self.horizon = value, target, horizon

    def update(self, kl: float, *, answers: int) -> None:
        """After a rollout of `answers` with a mean KL of `kl` nats an answer."""
        if self.target is not None:
            error = min(max(kl / self.target - 1, -0.2), 0.2)
            self.value *= 1 + error * answers / self.horizon

    def state_dict(self) -> dict[str, float]:
        """For a checkpoint."""
        return {"value": self.value}

    def load_state_dict(self, state: Mapping[str, float]) -> None:
        """From a checkpoint."""
        self.value = state["value"]
