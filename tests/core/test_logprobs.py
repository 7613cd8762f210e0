"""Chunked log-probs equal a full softmax, forward and backward."""

import math

import pytest
import torch

from rlhflab.core.logprobs import answer_sums, token_divergences, token_scores


def full_softmax(hidden: torch.Tensor, weight: torch.Tensor, target: torch.Tensor, temperature: float) -> torch.Tensor:
    logits = torch.nn.functional.linear(hidden, weight).float() / temperature
    return logits.log_softmax(-1)[torch.arange(len(target)), target]


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 2e-2)])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("chunk", [1, 3, 1000])
def test_chunked_logprobs_and_their_gradient_equal_a_full_softmax(
        dtype: torch.dtype, tolerance: float, temperature: float, chunk: int) -> None:
    torch.manual_seed(0)
    weight, target = torch.randn(50, 16, dtype=dtype), torch.randint(50, (7,))
    fast_hidden = torch.randn(7, 16, dtype=dtype, requires_grad=True)
    plain_hidden = fast_hidden.detach().clone().requires_grad_()
    upstream = torch.randn(7)
    fast = token_scores(fast_hidden, weight, target, temperature=temperature, chunk=chunk).logprob
    plain = full_softmax(plain_hidden, weight, target, temperature)
    torch.testing.assert_close(fast, plain, atol=tolerance, rtol=tolerance)
    fast.backward(upstream)
    plain.backward(upstream)
    torch.testing.assert_close(fast_hidden.grad, plain_hidden.grad, atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-4), (torch.bfloat16, 3e-2)])
@pytest.mark.parametrize("chunk", [1, 3, 1000])
@pytest.mark.parametrize("with_logprob", [False, True])
def test_the_gradient_through_the_entropy_equals_that_of_a_full_softmax(
        dtype: torch.dtype, tolerance: float, chunk: int, with_logprob: bool) -> None:
    torch.manual_seed(0)
    weight, target = torch.randn(50, 16, dtype=dtype), torch.randint(50, (7,))
    fast_hidden = torch.randn(7, 16, dtype=dtype, requires_grad=True)
    plain_hidden = fast_hidden.detach().clone().requires_grad_()
    upstream, other = torch.randn(7), torch.randn(7)
    scores = token_scores(fast_hidden, weight, target, temperature=0.7, chunk=chunk)
    logprobs = (torch.nn.functional.linear(plain_hidden, weight).float() / 0.7).log_softmax(-1)
    entropy = -(logprobs.exp() * logprobs).sum(-1)
    torch.testing.assert_close(scores.entropy, entropy, atol=tolerance, rtol=tolerance)
    fast, plain = (upstream * scores.entropy).sum(), (upstream * entropy).sum()
    if with_logprob:
        fast = fast + (other * scores.logprob).sum()
        plain = plain + (other * logprobs[torch.arange(7), target]).sum()
    fast.backward()
    plain.backward()
    torch.testing.assert_close(fast_hidden.grad, plain_hidden.grad, atol=tolerance, rtol=tolerance)


def test_the_gradient_is_the_derivative_by_finite_differences() -> None:
    torch.manual_seed(0)
    hidden = torch.randn(3, 4, dtype=torch.float32)
    weight, target, step = torch.randn(6, 4), torch.tensor([1, 5, 0]), 1e-2
    moving = hidden.clone().requires_grad_()
    token_scores(moving, weight, target, temperature=0.8).logprob.sum().backward()
    assert moving.grad is not None
    for i, j in [(0, 0), (1, 2), (2, 3)]:
        nudge = torch.zeros_like(hidden)
        nudge[i, j] = step
        up, down = (token_scores(hidden + sign * nudge, weight, target, temperature=0.8).logprob.sum()
                    for sign in (1, -1))
        torch.testing.assert_close(moving.grad[i, j], (up - down) / (2 * step), atol=1e-3, rtol=1e-2)


def test_entropy_of_a_uniform_distribution_is_the_log_of_its_size() -> None:
    scores = token_scores(torch.zeros(2, 3), torch.randn(8, 3), torch.tensor([0, 7]))
    torch.testing.assert_close(scores.entropy, torch.full((2,), 8.0).log())


def test_sums_belong_to_their_answer() -> None:
    x, owner = torch.tensor([1.0, 2.0, 4.0]), torch.tensor([0, 0, 1])
    assert answer_sums(x, owner, 3).tolist() == [3.0, 4.0, 0.0]


def test_divergences_of_two_tokens_by_hand() -> None:
    # Of two tokens, p = (3/4, 1/4) and q = (1/4, 3/4), m = (1/2, 1/2)
    p, q = (torch.tensor([[sign * math.log(3) / 2, -sign * math.log(3) / 2]]) for sign in (1, -1))
    found = token_divergences(p, q, torch.eye(2))
    assert found.forward.item() == found.reverse.item() == pytest.approx(0.5 * math.log(3), rel=1e-6)
    js = 0.75 * math.log(1.5) + 0.25 * math.log(0.5)
    assert found.jensen_shannon.item() == pytest.approx(js, rel=1e-6) and js < math.log(2)


def test_divergences_do_not_depend_on_the_chunk_and_forward_is_not_reverse() -> None:
    torch.manual_seed(0)
    p, q, weight = torch.randn(7, 4), torch.randn(7, 4), torch.randn(9, 4)
    whole, small = (token_divergences(p, q, weight, chunk=chunk) for chunk in (100, 3))
    torch.testing.assert_close(torch.stack(whole), torch.stack(small))
    torch.testing.assert_close(whole.forward, token_divergences(q, p, weight).reverse)
    assert not torch.allclose(whole.forward, whole.reverse)
    expected = torch.nn.functional.kl_div((q @ weight.T).log_softmax(-1), (p @ weight.T).log_softmax(-1),
                                          log_target=True, reduction="none").sum(-1)
    torch.testing.assert_close(whole.forward, expected)
