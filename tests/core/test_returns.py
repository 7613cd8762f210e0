"""KL estimators, rewards and advantages, worked by hand."""

import math
from collections.abc import Callable

import pytest
import torch

from rlhflab.core.returns import (
    KL,
    Episodes,
    advantage_estimator,
    explained_variance,
    gae,
    gae_estimator,
    group_standardised,
    grpo_estimator,
    kl_k1,
    kl_k2,
    kl_k3,
    last_of_each,
    leave_one_out,
    rloo_estimator,
    token_rewards,
    token_weights,
    whiten,
)
from rlhflab.errors import RunError


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
    reward = token_rewards(torch.tensor([5.0, 7.0]), 0.1 * torch.tensor([1.0, 2.0, 3.0]), owner)
    assert reward.tolist() == pytest.approx([-0.1, 4.8, 6.7])


def test_k2_by_hand() -> None:
    assert kl_k2(torch.tensor([-1.0]), torch.tensor([-3.0])).tolist() == [2.0]  # (-1 + 3)^2 / 2


@pytest.mark.parametrize(("name", "pursued"), [
    ("k1", lambda p, q: torch.zeros(())),
    ("k2", lambda p, q: (p * (p / q).log()).sum()),
    ("k3", lambda p, q: (q * (q / p).log()).sum())])
def test_what_an_estimators_gradient_pursues_as_a_loss(
        name: str, pursued: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]) -> None:
    # The exact mean over three tokens, where autograd sees only the estimate and not the sampling.
    logits, q = torch.tensor([0.2, -0.5, 1.0], requires_grad=True), torch.tensor([0.5, 0.3, 0.2])
    p = logits.softmax(0)
    (p.detach() * KL[name](p.log(), q.log())).sum().backward()
    by_estimate, logits.grad = logits.grad, None
    (pursued(logits.softmax(0), q) + 0 * logits.sum()).backward()
    torch.testing.assert_close(by_estimate, logits.grad, atol=1e-6, rtol=1e-5)


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


def test_whitened_rewards_keep_their_mean() -> None:
    white = whiten(torch.tensor([1.0, 2.0, 6.0]), shift_mean=False)
    assert white.mean().item() == pytest.approx(3.0)
    assert white.std(unbiased=False).item() == pytest.approx(1)


def test_leave_one_out_by_hand() -> None:
    got = leave_one_out(torch.tensor([1.0, 2.0, 6.0, 5.0]), torch.tensor([0, 0, 0, 1]))
    # 1 - (2 + 6)/2, 2 - (1 + 6)/2, 6 - (1 + 2)/2; an answer alone has nothing to be compared with
    assert got.tolist() == [-3.0, -1.5, 4.5, 0.0]


def test_with_two_samples_leave_one_out_is_the_difference() -> None:
    scores, prompt = torch.tensor([3.0, -1.0, 0.5, 2.0]), torch.tensor([0, 0, 1, 1])
    assert leave_one_out(scores, prompt).tolist() == [4.0, -4.0, -1.5, 1.5]


def test_group_standardised_scores_by_hand() -> None:
    got = group_standardised(torch.tensor([1.0, 2.0, 6.0, 4.0, 4.0]), torch.tensor([0, 0, 0, 1, 1]))
    # mean 3, variance ((-2)^2 + (-1)^2 + 3^2) / 2 = 7; equal answers teach nothing
    assert got.tolist() == pytest.approx([-2 / 7**0.5, -1 / 7**0.5, 3 / 7**0.5, 0, 0], abs=1e-3)


def test_without_its_division_grpo_is_rloo_shrunk_by_k_minus_one_over_k() -> None:
    score, prompt = torch.tensor([1.0, 2.0, 6.0, 0.0, 5.0, 1.0]), torch.tensor([0, 0, 0, 1, 1, 1])
    torch.testing.assert_close(group_standardised(score, prompt, scale=False), leave_one_out(score, prompt) * 2 / 3)


@pytest.mark.parametrize("compare", [leave_one_out, group_standardised])
def test_one_answer_a_prompt_has_nothing_to_be_compared_with(compare: Callable[..., torch.Tensor]) -> None:
    with pytest.raises(RunError, match="samples must be at least 2"):
        compare(torch.tensor([1.0, 2.0]), torch.tensor([0, 1]))


def episodes(**more: torch.Tensor) -> Episodes:
    """Two answers to one prompt, of two tokens and one; the first scores 5 and pays .5 for its KL, the second 2."""
    return Episodes(score=torch.tensor([5.0, 2.0]), penalty=torch.tensor([0.2, 0.3, 0.0]),
                    owner=torch.tensor([0, 0, 1]), prompt=torch.tensor([0, 0]), **more)


def test_rloo_counts_an_answers_kl_as_a_whole_and_has_no_returns() -> None:
    got = rloo_estimator(episodes())
    assert got.advantage.tolist() == pytest.approx([2.5, 2.5, -2.5]) and got.returns is None


def test_grpo_gives_every_token_the_standardised_net_score() -> None:
    got = grpo_estimator(episodes())
    assert got.advantage.tolist() == pytest.approx([2**-0.5, 2**-0.5, -(2**-0.5)], abs=1e-3) and got.returns is None
    assert grpo_estimator(episodes(), scale=False).advantage.tolist() == pytest.approx([1.25, 1.25, -1.25])


def test_the_gae_entry_is_gae_on_token_rewards() -> None:
    with_values = episodes(value=torch.tensor([1.0, 2.0, 3.0]))
    plain = gae_estimator(with_values, whiten_advantages=False, gae_lambda=0.0)
    # rewards -.2, 4.7, 2; deltas -.2 + 2 - 1, 4.7 - 2, 2 - 3
    assert plain.advantage.tolist() == pytest.approx([0.8, 2.7, -1.0])
    assert plain.returns is not None and plain.returns.tolist() == pytest.approx([1.8, 4.7, 2.0])
    white = gae_estimator(with_values, gae_lambda=0.0)
    torch.testing.assert_close(white.advantage, whiten(plain.advantage))
    assert white.returns is not None and white.returns.tolist() == pytest.approx([1.8, 4.7, 2.0]), "never whitened"
    by_prompt = gae_estimator(with_values, whiten_advantages=False, gae_lambda=0.0, baseline="prompt")
    assert by_prompt.advantage.tolist() == pytest.approx([0.8, 0.7, -6.0])  # scores 3 and -3


def test_rewards_are_whitened_before_the_values_are_compared_with_them() -> None:
    got = gae_estimator(episodes(value=torch.zeros(3)), whiten_advantages=False, whiten_rewards=True, gae_lambda=0.0)
    torch.testing.assert_close(got.advantage, whiten(torch.tensor([-0.2, 4.7, 2.0]), shift_mean=False))


def test_only_gae_asks_for_a_critic() -> None:
    assert [entry.name for entry in advantage_estimator.entries() if "critic" in entry.needs] == ["gae"]


@pytest.mark.parametrize(("how", "expected"), [
    ("token", [0.25, 0.25, 0.25, 0.25]), ("answer", [1 / 6, 1 / 6, 1 / 6, 1 / 2]), ("budget", [0.05] * 4)])
def test_what_a_token_counts_by_hand(how: str, expected: list[float]) -> None:
    # answers 4 and 9, of three tokens and one, where an answer may have ten
    got = token_weights(torch.tensor([4, 4, 4, 9]), how=how, budget=10)  # type: ignore[arg-type]
    assert got.tolist() == pytest.approx(expected)


def test_explained_variance_is_one_for_perfect_values_and_zero_for_a_constant() -> None:
    returns = torch.tensor([1.0, 2.0, 4.0])
    assert explained_variance(returns, returns).item() == pytest.approx(1)
    assert explained_variance(torch.full((3,), 9.0), returns).item() == pytest.approx(0)
