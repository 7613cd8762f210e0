"""What happens when the device runs out of memory in a training step. The retry itself is `TrainState.accumulate`."""

from collections.abc import Mapping, Sequence

from rlhflab.errors import RunError


class MicroLimit:
    """Most padded tokens of a micro-batch: what the run says, until memory runs out; less from then on."""

    def __init__(self) -> None:
        self._most: int | None = None
        self._said = True

    def of(self, micro_tokens: int) -> int:
        """The smaller of `micro_tokens` and what is known to fit."""
        return micro_tokens if self._most is None else min(micro_tokens, self._most)

    def halve(self, groups: Sequence[Sequence[int]], lengths: Sequence[int], error: Exception) -> None:
        """After `error` in one of these micro-batches. RunError where none of them can be divided."""
        if all(len(group) == 1 for group in groups):
            raise RunError(f"the device ran out of memory on one example of at most {max(lengths)} tokens; lower "
                           "max_length, set recompute: true, or adapt fewer layers by lora.last_layers") from error
        self._most = max(len(group) * lengths[group[0]] for group in groups) // 2
        self._said = False

    def news(self) -> dict[str, float | None]:
        """The limit, as a metric of the step in which it became lower."""
        if self._said or self._most is None:
            return {}
        self._said = True
        return {"micro_tokens": float(self._most)}

    def state_dict(self) -> dict[str, float]:
        """For a checkpoint."""
        return {} if self._most is None else {"most": float(self._most)}

    def load_state_dict(self, state: Mapping[str, float]) -> None:
        """From a checkpoint."""
        self._most = int(state["most"]) if "most" in state else None
