"""Losses against numbers worked by hand."""

import math

import pytest
import torch

from rlhflab.core.losses import (
    AnswerLogprobs,
    Loss,
    bradley_terry_loss,
    dpo_loss,
    ipo_avg_loss,
    ipo_sum_loss,
    ppo_policy_loss,
    ppo_value_loss,
    preference_loss,
    reinforce_loss,
)
from rlhflab.errors import ConfigError


def side(policy: float, reference: float, tokens: float = 1) -> AnswerLogprobs:
    return AnswerLogprobs(policy=torch.tensor([float(policy)]), reference=torch.tensor([float(reference)]),
                          tokens=torch.tensor([float(tokens)]))


@pytest.mark.parametrize("beta", [0.01, 0.1, 1.0])
def test_dpo_loss_at_zero_margin_is_log_two(beta: float) -> None:
    assert dpo_loss(side(-3, -3), side(-5, -5), beta=beta).each.item() == pytest.approx(math.log(2))


@pytest.mark.parametrize("loss", [ipo_sum_loss, ipo_avg_loss])
def test_ipo_loss_at_zero_margin_is_the_squared_target(loss) -> None:  # type: ignore[no-untyped-def]
    assert loss(side(-3, -3), side(-5, -5), beta=0.25).each.item() == pytest.approx((1 / (2 * 0.25)) ** 2)


def test_dpo_loss_of_a_known_margin() -> None:
    # h = (-2 - -3) - (-6 - -5) = 2; -log sigmoid(0.5 * 2) = log(1 + e^-1)
    loss = dpo_loss(side(-2, -3), side(-6, -5), beta=0.5)
    assert loss.each.item() == pytest.approx(math.log(1 + math.exp(-1)))
    assert loss.metrics["margin"].item() == pytest.approx(1.0)
    assert loss.metrics["accuracy"].item() == 1.0


def test_label_noise_mixes_the_loss_of_both_orders() -> None:
    right, wrong = dpo_loss(side(-2, -3), side(-6, -5)).each, dpo_loss(side(-6, -5), side(-2, -3)).each
    mixed = dpo_loss(side(-2, -3), side(-6, -5), label_noise=0.2).each
    torch.testing.assert_close(mixed, 0.8 * right + 0.2 * wrong)


def test_the_two_ipo_losses_differ_by_the_length_they_divide_by() -> None:
    chosen, rejected = side(-2, -4, tokens=2), side(-9, -5, tokens=4)
    # sums: h = 2 + 4 = 6; means: h = 1 + 1 = 2; target 1 / (2 * 0.1) = 5
    assert ipo_sum_loss(chosen, rejected).each.item() == pytest.approx((6 - 5) ** 2)
    assert ipo_avg_loss(chosen, rejected).each.item() == pytest.approx((2 - 5) ** 2)


@pytest.mark.parametrize("name", ["dpo", "ipo_sum", "ipo_avg"])
def test_swapping_the_answers_flips_the_gradient_at_zero_margin(name: str) -> None:
    loss_of = preference_loss.bind(name, {}, where="loss")
    gradients = []
    for order in (1, -1):
        a, b = torch.tensor([-3.0], requires_grad=True), torch.tensor([-3.0], requires_grad=True)
        sides = [AnswerLogprobs(policy=x, reference=torch.tensor([-3.0]), tokens=torch.ones(1)) for x in (a, b)]
        loss_of(*sides[::order]).each.sum().backward()
        gradients.append((a.grad, b.grad))
    torch.testing.assert_close(gradients[0], gradients[1][::-1])
    torch.testing.assert_close(gradients[0][0], -gradients[0][1])


def test_an_unknown_loss_or_option_is_named() -> None:
    with pytest.raises(ConfigError, match="no preference loss is called 'dpoo'; there are dpo, ipo_avg, ipo_sum"):
        preference_loss.bind("dpoo", {}, where="loss")
    with pytest.raises(ConfigError, match=r"loss\.betta.*the options of dpo are: beta, label_noise"):
        preference_loss.bind("dpo", {"betta": 0.1}, where="loss")


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
