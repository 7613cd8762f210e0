"""Losses against numbers worked by hand."""

import math

import numpy as np
import pytest
import torch

from rlhflab.core.losses import (
    Loss,
    bradley_terry_loss,
    correlation,
    length_loss,
    ppo_policy_loss,
    ppo_value_loss,
    reinforce_loss,
)


def test_bradley_terry_margin_and_centering_by_hand() -> None:
    loss: Loss = bradley_terry_loss(torch.tensor([2.0]), torch.tensor([1.0]), margin=torch.tensor([1.0]),
                                    centering=0.1)
    # -log sigmoid(2 - 1 - 1) + 0.1 (2 + 1)^2
    assert loss.each.item() == pytest.approx(math.log(2) + 0.9)


def test_smoothed_labels_are_flipped_with_their_margin() -> None:
    loss = bradley_terry_loss(torch.tensor([2.0]), torch.tensor([1.0]), margin=torch.tensor([0.5]), label_smoothing=0.1)
    # gap 1: .9 x -log sigmoid(1 - .5) + .1 x -log sigmoid(-1 - .5)
    expected = 0.9 * math.log(1 + math.exp(-0.5)) + 0.1 * math.log(1 + math.exp(1.5))
    assert loss.each.item() == pytest.approx(expected)


def test_the_length_loss_by_hand_and_its_correlation_as_numpy_has_it() -> None:
    tokens = torch.tensor([1.0, 2.0, 3.0])
    # quality falls with length (corr -1), the length head is at right angles to it (corr 0)
    loss = length_loss(torch.tensor([6.0, 4.0, 2.0]), torch.tensor([1.0, 0.0, 1.0]), tokens)
    assert loss.each.item() == pytest.approx(1.0)
    assert loss.metrics["quality_length_correlation"].item() == pytest.approx(-1.0)
    x, y = torch.randn(7, generator=torch.Generator().manual_seed(1)), torch.arange(7.0) ** 2
    assert correlation(x, y).item() == pytest.approx(np.corrcoef(x, y)[0, 1], abs=1e-6)
    assert correlation(torch.ones(3), tokens).item() == 0, "what does not vary explains nothing"


@pytest.mark.parametrize(("logratio", "advantage", "expected"), [
    (0.0, 2.0, -2.0),  # ratio 1
    (math.log(1.5), 1.0, -1.2),  # a gain is clipped at 1 + 0.2
    (math.log(1.5), -1.0, 1.5),  # a harm is not
    (math.log(0.5), -1.0, 0.8),
])
def test_policy_loss_is_the_pessimistic_one(logratio: float, advantage: float, expected: float) -> None:
    loss = ppo_policy_loss(torch.tensor([logratio]), torch.zeros(1), torch.tensor([advantage]), clip=0.2)
    assert loss.each.item() == pytest.approx(expected)


@pytest.mark.parametrize(("logratio", "advantage", "expected", "clipped"), [
    (math.log(1.5), 1.0, -1.3, 1.0),  # a gain is clipped at 1 + clip_high
    (math.log(1.25), 1.0, -1.25, 0.0),  # within it
    (math.log(0.5), -1.0, 0.8, 1.0),  # below it is still 1 - clip
])
def test_the_clip_can_be_wider_above(logratio: float, advantage: float, expected: float, clipped: float) -> None:
    loss = ppo_policy_loss(torch.tensor([logratio]), torch.zeros(1), torch.tensor([advantage]), clip=0.2, clip_high=0.3)
    assert loss.each.item() == pytest.approx(expected) and loss.metrics["clip_fraction"].item() == clipped


@pytest.mark.parametrize(("ratio", "advantage", "expected"), [
    (10.0, -2.0, 6.0),  # -A ratio would be 20: at most -c A
    (2.0, -2.0, 4.0),  # below c nothing changes
    (10.0, 2.0, -2.4),  # nor does it for a good token
])
def test_the_dual_clip_bounds_what_a_bad_token_costs(ratio: float, advantage: float, expected: float) -> None:
    loss = ppo_policy_loss(torch.tensor([math.log(ratio)]), torch.zeros(1), torch.tensor([advantage]), dual_clip=3.0)
    assert loss.each.item() == pytest.approx(expected)


def test_reinforce_and_the_clipped_ratio_have_one_gradient_where_the_policy_has_not_moved() -> None:
    gradients = []
    for loss_of in (reinforce_loss, ppo_policy_loss):
        now = torch.tensor([-1.0, -2.0], requires_grad=True)
        loss_of(now, now.detach(), torch.tensor([3.0, -0.5])).each.sum().backward()
        gradients.append(now.grad)
    torch.testing.assert_close(gradients[0], gradients[1])
    torch.testing.assert_close(gradients[0], torch.tensor([-3.0, 0.5]))


def test_without_a_clip_the_value_loss_is_half_the_squared_error() -> None:
    loss = ppo_value_loss(torch.tensor([1.0]), torch.tensor([0.0]), torch.tensor([3.0]), clip=None)
    assert loss.each.item() == 2.0 and loss.metrics["value_clip_fraction"].item() == 0.0


def test_value_loss_takes_the_larger_of_plain_and_clipped_error() -> None:
    # value moved from 0 to 1, return 1: plain error 0, clipped value 0.2 has error 0.8
    loss = ppo_value_loss(torch.tensor([1.0]), torch.tensor([0.0]), torch.tensor([1.0]), clip=0.2)
    assert loss.each.item() == pytest.approx(0.5 * 0.8**2)


def test_a_batch_of_another_size_is_refused_where_torch_would_broadcast() -> None:
    with pytest.raises(Exception, match="type"):
        ppo_policy_loss(torch.zeros(3), torch.zeros(1), torch.zeros(3))
