"""KL estimators, rewards and advantages, worked by hand."""

import math

import pytest
import torch

from rlhflab.core.returns import explained_variance, gae, kl_k1, kl_k3, last_of_each, token_rewards, whiten


def test_gae_of_a_three_token_answer_by_hand() -> None:
    reward, value = torch.tensor([0.0, 0.0, 1.0]), torch.tensor([0.5, 0.25, 0.75])
    got = gae(reward, value, torch.zeros(3, dtype=torch.long), gamma=1.0, gae_lambda=0.5)
    # deltas: 0.25 - 0.5 = -0.25; 0.75 - 0.25 = 0.5; 1 - 0.75 = 0.25
    # A3 = 0.25; A2 = 0.5 + 0.5 * 0.25 = 0.625; A1 = -0.25 + 0.5 * 0.625 = 0.0625
    assert got.advantage.tolist() == pytest.approx([0.0625, 0.625, 0.25])
    assert got.returns.tolist() == pytest.approx([0.5625, 0.875, 1.0])


def test_gae_with_a_discount_by_hand() -> None:
    got = gae(torch.tensor([1.0, 1.0]), torch.tensor([0.0, 2.0]), torch.zeros(2, dtype=torch.long), gamma=0.5,
              gae_lambda=1.0)
    # deltas: 1 + 0.5 * 2 - 0 = 2; 1 - 2 = -1; A1 = 2 + 0.5 * -1 = 1.5
    assert got.advantage.tolist() == pytest.approx([1.5, -1.0])


def test_advantages_do_not_leak_from_one_answer_to_the_next() -> None:
    owner = torch.tensor([0, 0, 1])
    options = {"gamma": 1.0, "gae_lambda": 0.95}
    with_neighbour = gae(torch.tensor([0.0, 1.0, 9.0]), torch.tensor([0.1, 0.2, 5.0]), owner, **options)
    alone = gae(torch.tensor([0.0, 1.0]), torch.tensor([0.1, 0.2]), owner[:2], **options)
    torch.testing.assert_close(with_neighbour.advantage[:2], alone.advantage)


def test_the_score_is_added_at_each_answers_last_token() -> None:
    owner = torch.tensor([0, 0, 1])
    assert last_of_each(owner, 2).tolist() == [1, 2]
    reward = token_rewards(torch.tensor([5.0, 7.0]), torch.tensor([1.0, 2.0, 3.0]), owner, kl_coefficient=0.1)
    assert reward.tolist() == pytest.approx([-0.1, 4.8, 6.7])


def test_k1_and_k3_agree_in_the_mean_and_k3_is_never_negative() -> None:
    policy, reference = torch.tensor([0.7, 0.3]).log(), torch.tensor([0.5, 0.5]).log()
    exact = 0.7 * math.log(0.7 / 0.5) + 0.3 * math.log(0.3 / 0.5)
    weight = torch.tensor([0.7, 0.3])
    assert (weight * kl_k1(policy, reference)).sum().item() == pytest.approx(exact)
    assert (weight * kl_k3(policy, reference)).sum().item() == pytest.approx(exact)
    assert (kl_k3(policy, reference) >= 0).all() and (kl_k1(policy, reference) < 0).any()


def test_whitened_advantages_have_mean_zero_and_deviation_one() -> None:
    white = whiten(torch.tensor([1.0, 2.0, 6.0]))
    assert white.mean().item() == pytest.approx(0, abs=1e-6)
    assert white.std(unbiased=False).item() == pytest.approx(1)


def test_explained_variance_is_one_for_perfect_values_and_zero_for_a_constant() -> None:
    returns = torch.tensor([1.0, 2.0, 4.0])
    assert explained_variance(returns, returns).item() == pytest.approx(1)
    assert explained_variance(torch.full((3,), 9.0), returns).item() == pytest.approx(0)
