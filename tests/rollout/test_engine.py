"""The engine equals naive generation, row by row, whatever batch a row is in."""

import pytest
import torch

from conftest import moved_role
from rlhflab.model.shared import SharedModel
from rlhflab.rollout.engine import draw, generate
from slow_twins import plain_generate

PROMPTS = [(1, 50, 60), (1, 70, 71, 72, 73, 74, 75), (1, 80), (1, 90, 91, 92)]


def test_64_seeded_samples_equal_naive_generation_in_any_batch(tiny: SharedModel) -> None:
    moved_role(tiny, "policy")
    seeds = [[1000 * i + k for k in range(16)] for i in range(4)]
    together = generate(tiny, PROMPTS, role="policy", seeds=seeds, max_new_tokens=8, stop_ids=[2, 40, 41, 42, 43],
                        temperature=0.9)
    finishes = set()
    for prompt, own_seeds, answers in zip(PROMPTS, seeds, together, strict=True):
        for seed, answer in zip(own_seeds, answers, strict=True):
            with torch.no_grad():
                ids, logprobs = plain_generate(tiny, prompt, "policy", seed=seed, max_new_tokens=8,
                                               stop_ids=[2, 40, 41, 42, 43], temperature=0.9)
            assert list(answer.token_ids) == ids
            assert answer.logprobs == pytest.approx(logprobs, abs=1e-4)
            assert answer.finish == ("stop" if ids[-1] in (2, 40, 41, 42, 43) else "length")
            finishes.add(answer.finish)
    assert finishes == {"stop", "length"}, "the test must see both ends"


def test_rows_at_a_time_change_nothing(llama: SharedModel) -> None:
    moved_role(llama, "policy")
    seeds = [[7 * i, 7 * i + 1] for i in range(4)]
    options = {"role": "policy", "seeds": seeds, "max_new_tokens": 6, "stop_ids": [2]}
    few, many = (generate(llama, PROMPTS, rows=rows, **options) for rows in (2, 64))
    assert [[a.token_ids for a in answers] for answers in few] == [[a.token_ids for a in answers] for answers in many]


def test_greedy_takes_the_most_likely_token(llama: SharedModel) -> None:
    moved_role(llama, "policy")
    sampled, answer = generate(llama, PROMPTS[:1], role="policy", seeds=[[7, None]], max_new_tokens=5, stop_ids=[])[0]
    with torch.no_grad():
        ids, logprobs = plain_generate(llama, PROMPTS[0], "policy", seed=None, max_new_tokens=5, stop_ids=[])
    assert list(sampled.token_ids) != ids, "a greedy answer in the batch leaves the samples alone"
    assert list(answer.token_ids) == ids and answer.logprobs == pytest.approx(logprobs, abs=1e-4)


def test_an_end_token_at_the_last_place_is_a_stop_and_not_a_length(llama: SharedModel) -> None:
    free = generate(llama, PROMPTS[:1], role=None, seeds=[[3]], max_new_tokens=4, stop_ids=[])[0][0]
    assert free.finish == "length" and len(free.token_ids) == 4
    stopped = generate(llama, PROMPTS[:1], role=None, seeds=[[3]], max_new_tokens=4, stop_ids=[free.token_ids[3]])[0][0]
    assert stopped.token_ids[:len(stopped.token_ids)] == free.token_ids[:len(stopped.token_ids)]
    assert stopped.finish == "stop"


def test_draws_follow_the_distribution() -> None:
    logits = torch.randn(1, 1000, generator=torch.Generator().manual_seed(0))
    uniform = (torch.arange(20000) + 0.5) / 20000
    tokens, logprobs = draw(logits.expand(20000, -1).clone(), uniform, temperature=0.5)
    probability = (logits[0] / 0.5).softmax(-1)
    shares = torch.bincount(tokens, minlength=1000) / 20000
    # Evenly spaced numbers hit each token as often as its probability says, up to one count at either edge.
    assert (shares - probability).abs().max() <= 2 / 20000
    torch.testing.assert_close(logprobs, probability.log()[tokens], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("size", [5, 256, 700])
def test_the_two_level_draw_equals_one_running_sum(size: int) -> None:
    generator = torch.Generator().manual_seed(size)
    logits, uniform = torch.randn(400, size, generator=generator), torch.rand(400, generator=generator)
    cumulative = logits.double().softmax(-1).cumsum(-1)
    plain = torch.searchsorted(cumulative, uniform.double()[:, None], right=True).squeeze(-1).clamp(max=size - 1)
    assert (draw(logits.clone(), uniform, temperature=1.0)[0] == plain).float().mean() > 0.995


@pytest.mark.parametrize("edge", [0.0, 1 - 2**-24])
def test_the_edges_of_the_unit_interval_draw_a_possible_token(edge: float) -> None:
    logits = torch.full((1, 300), float("-inf"))
    logits[0, [3, 270]] = 0.0
    token, logprob = draw(logits, torch.tensor([edge]), temperature=1.0)
    assert int(token) == (3 if edge == 0 else 270)
    assert logprob.item() == pytest.approx(-0.6931, abs=1e-3)
