"""Schedules, orders and the check that a first step moves something."""

import pytest
import torch
from torch import nn

from rlhflab.config import Optimizer
from rlhflab.errors import RunError
from rlhflab.train.state import Meter, Schedule, TrainState, learning_rate_factor


def test_every_epoch_sees_every_item_once_in_another_order() -> None:
    steps = list(Schedule(items=10, batch=4, epochs=2).order(3))
    assert [len(step) for step in steps] == [4, 4, 2, 4, 4, 2]
    first, second = ([item for step in half for item in step] for half in (steps[:3], steps[3:]))
    assert sorted(first) == sorted(second) == list(range(10)) and first != second
    assert steps == list(Schedule(items=10, batch=4, epochs=2).order(3))


@pytest.mark.parametrize(("steps", "expected"), [(None, 6), (4, 4), (99, 6)])
def test_the_step_count_is_what_the_order_yields(steps: int | None, expected: int) -> None:
    schedule = Schedule(items=10, batch=4, epochs=2, steps=steps)
    assert len(schedule) == len(list(schedule.order(0))) == expected


def test_warm_up_starts_at_one_nth_and_a_linear_schedule_ends_above_zero() -> None:
    settings = Optimizer(warmup=0.2, schedule="linear")
    factors = [learning_rate_factor(settings, step, 20) for step in range(20)]
    assert factors[:4] == [0.25, 0.5, 0.75, 1.0]
    assert factors[4] == 1.0 and factors[-1] == pytest.approx(1 / 16)


def test_a_meter_averages_over_elements_and_not_over_calls() -> None:
    meter = Meter()
    meter.note({"loss": torch.tensor([1.0, 1.0, 1.0])})
    meter.note({"loss": torch.tensor([5.0])})
    assert meter.read() == {"loss": 2.0}
    assert meter.read() == {}


def one_parameter(gradient: float, rate: float) -> TrainState:
    parameter = nn.Parameter(torch.ones(2))
    parameter.grad = torch.full((2,), gradient)
    return TrainState(Optimizer(learning_rate=rate), [([parameter], rate)], total=10)


def test_a_first_step_that_moves_nothing_stops_the_run() -> None:
    with pytest.raises(RunError, match="no adapter weight moved in the first step"):
        one_parameter(0.0, 1e-3).optimize()


def test_a_rollout_without_anything_to_learn_postpones_the_check_and_does_not_end_it() -> None:
    parameter = nn.Parameter(torch.ones(2))
    state = TrainState(Optimizer(epsilon=1e8), [([parameter], 1e-3)], total=10, may_have_nothing_to_learn=True)
    parameter.grad = torch.zeros(2)
    state.optimize()
    parameter.grad = torch.ones(2)  # an epsilon this large keeps a true gradient from moving anything
    with pytest.raises(RunError, match="no adapter weight moved"):
        state.optimize()


def test_a_gradient_that_is_not_finite_stops_the_run() -> None:
    with pytest.raises(RunError, match="not finite"):
        one_parameter(float("nan"), 1e-3).optimize()


def test_a_learning_rate_of_zero_may_move_nothing() -> None:
    state = one_parameter(1.0, 0.0)
    state.optimize()
    assert state.number == 1


def test_gradients_are_clipped_by_their_global_norm() -> None:
    parameter = nn.Parameter(torch.zeros(2))
    parameter.grad = torch.tensor([30.0, 40.0])
    state = TrainState(Optimizer(max_grad_norm=1.0), [([parameter], 1e-3)], total=1)
    state.optimize()
    assert state.finish_step().metrics["gradient_norm"] == pytest.approx(50.0)
