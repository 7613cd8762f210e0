"""What every method on samples shares: the scores, what of them cannot be used, and what a checkpoint keeps."""

from collections.abc import Mapping, Sequence
from typing import Any

import pytest

from rlhflab.data.types import Rollout, Score
from rlhflab.errors import RunError
from rlhflab.model.shared import SharedModel
from rlhflab.train.rollouts import ConstantRewards, clipped
from sampling_runs import Letters, train_tiny


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_reward_that_is_no_number_stops_the_run(llama: SharedModel, value: float) -> None:
    def broken(rollouts: Sequence[Rollout]) -> list[Score]:
        return [Score(value=value if i == 3 else 1.0, by="broken") for i in range(len(rollouts))]

    with pytest.raises(RunError, match=rf"broken: scored an answer {value}"):
        train_tiny(llama, "ppo", reward=broken, steps=1)


def test_rollouts_with_one_score_are_counted_until_a_score_differs() -> None:
    watch = ConstantRewards()
    assert [watch.see(scores) for scores in ([1.0, 1.0], [1.0, 1.0], [1.0, 2.0], [2.0, 2.0], [3.0, 3.0])] == [
        1, 2, 0, 1, 1]


def test_the_count_goes_on_after_a_checkpoint() -> None:
    before, after = ConstantRewards(), ConstantRewards()
    before.see([1.0, 1.0])
    after.load_state_dict(before.state_dict())
    assert after.see([1.0, 1.0]) == 2


@pytest.mark.parametrize(("score", "limit", "expected"), [
    (12.0, 10.0, 10.0), (-12.0, 10.0, -10.0), (3.0, 10.0, 3.0), (12.0, None, 12.0)])
def test_a_score_is_cut_to_the_limit(score: float, limit: float | None, expected: float) -> None:
    assert clipped(score, limit) == expected


class Counting(Letters):
    """A reward with something that changes from rollout to rollout."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    @property
    def carried(self) -> Mapping[str, Any]:
        return {"count": self}

    def __call__(self, rollouts: Sequence[Rollout]) -> list[Score]:
        self.count += 1
        return super().__call__(rollouts)

    def state_dict(self) -> dict[str, float]:
        return {"count": self.count}

    def load_state_dict(self, state: Mapping[str, float]) -> None:
        self.count = int(state["count"])


@pytest.mark.parametrize("kind", ["ppo", "best_of_n", "online_dpo"])
def test_what_a_reward_carries_goes_through_the_checkpoint(llama: SharedModel, kind: str) -> None:
    step = train_tiny(llama, kind, reward=Counting(), steps=2, samples=2)[-1]
    saved = step.state.capture(2)
    assert saved.carried["reward.count"] == {"count": 2}
    again = Counting()
    assert train_tiny(llama, kind, reward=again, steps=3, samples=2, keep_roles=True, saved=saved)[0].number == 3
    assert again.count == 3


@pytest.mark.parametrize("kind", ["ppo", "best_of_n", "online_dpo"])
def test_a_rollout_is_described_the_same_way_by_every_method(llama: SharedModel, kind: str) -> None:
    reward = Letters()
    first = train_tiny(llama, kind, reward=reward, steps=1)[0].metrics
    scores = [score.value for score in Letters()(reward.rollouts[0]) if score.value is not None]
    assert first["proxy"] == pytest.approx(sum(scores) / len(scores))
    assert first["kl"] == first["kl_k2"] == first["kl_k3"] == 0 and first["unscored"] == 0
    assert first["engine_gap_max"] is not None and first["engine_gap_max"] < 1e-3
