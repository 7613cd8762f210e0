"""Losses against numbers worked by hand."""

import math

import pytest
import torch

from rlhflab.core.losses import Loss, bradley_terry_loss, ppo_policy_loss, ppo_value_loss


def test_bradley_terry_margin_and_centering_by_hand() -> None:
    loss: Loss = bradley_terry_loss(torch.tensor([2.0]), torch.tensor([1.0]), margin=torch.tensor([1.0]),
                                    centering=0.1)
    # -log sigmoid(2 - 1 - 1) + 0.1 (2 + 1)^2
    assert loss.each.item() == pytest.approx(math.log(2) + 0.9)


@pytest.mark.parametrize(("logratio", "advantage", "expected"), [
    (0.0, 2.0, -2.0),  # ratio 1
    (math.log(1.5), 1.0, -1.2),  # a gain is clipped at 1 + 0.2
    (math.log(1.5), -1.0, 1.5),  # a harm is not
    (math.log(0.5), -1.0, 0.8),
])
def test_policy_loss_is_the_pessimistic_one(logratio: float, advantage: float, expected: float) -> None:
    loss = ppo_policy_loss(torch.tensor([logratio]), torch.zeros(1), torch.tensor([advantage]), clip=0.2)
    assert loss.each.item() == pytest.approx(expected)


def test_value_loss_takes_the_larger_of_plain_and_clipped_error() -> None:
    # value moved from 0 to 1, return 1: plain error 0, clipped value 0.2 has error 0.8
    loss = ppo_value_loss(torch.tensor([1.0]), torch.tensor([0.0]), torch.tensor([1.0]), clip=0.2)
    assert loss.each.item() == pytest.approx(0.5 * 0.8**2)


def test_a_batch_of_another_size_is_refused_where_torch_would_broadcast() -> None:
    with pytest.raises(Exception, match="type"):
        ppo_policy_loss(torch.zeros(3), torch.zeros(1), torch.zeros(3))
