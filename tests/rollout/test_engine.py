"""The engine equals naive generation, row by row, whatever batch a row is in."""

import pytest
import torch

from conftest import moved_role
from rlhflab.config import Choice, Lora
from rlhflab.errors import ConfigError
from rlhflab.model.decoding import Slots
from rlhflab.model.shared import SharedModel
from rlhflab.rollout import engine
from rlhflab.rollout.engine import Generation, draw, generate
from rlhflab.rollout.engines import make_engine
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


def plain(model: SharedModel, role: str | None, prompt: tuple[int, ...], seed: int, limit: int) -> list[int]:
    with torch.no_grad():
        return plain_generate(model, prompt, role, seed=seed, max_new_tokens=limit, stop_ids=[2, 40, 41])[0]


def test_rows_are_replaced_as_they_finish(tiny: SharedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """40 answers of limits from 1 to 12 through 8 slots: every one right, memory made once, few rows empty."""
    moved_role(tiny, "policy")
    prompts = [(1, *range(50, 50 + 2 + i % 7)) for i in range(10)]
    seeds = [[100 * i + k for k in range(4)] for i in range(10)]
    limits = [[1 + (5 * i + 7 * k) % 12 for k in range(4)] for i in range(10)]
    live: list[int] = []
    made: list[Slots] = []
    read: list[int] = []
    finished: list[int] = []
    decode, prefill, start = engine._Writer._decode, engine._Writer._prefill, Slots.__init__

    def counted(writer: engine._Writer) -> None:
        live.append(len(writer.live))
        decode(writer)

    def noted(writer: engine._Writer, free: int) -> engine._Prefilled:
        ready = prefill(writer, free)
        read.append(len(ready.reading.hidden))
        return ready

    def once(own: Slots, *args: object, **options: object) -> None:
        made.append(own)
        start(own, *args, **options)

    monkeypatch.setattr(engine._Writer, "_decode", counted)
    monkeypatch.setattr(engine._Writer, "_prefill", noted)
    monkeypatch.setattr(Slots, "__init__", once)
    answers = generate(tiny, prompts, role="policy", seeds=seeds, max_new_tokens=limits, stop_ids=[2, 40, 41], rows=8,
                       advance=finished.append)
    for prompt, *each in zip(prompts, seeds, limits, answers, strict=True):
        for seed, limit, answer in zip(*each, strict=True):
            assert list(answer.token_ids) == plain(tiny, "policy", prompt, seed, limit)
    assert len(made) == 1 and sum(read) == 10 and sum(finished) == 40
    assert sum(live) > 0.7 * 8 * len(live), live


def test_fixed_rows_and_columns_change_nothing(tiny: SharedModel) -> None:
    """What a GPU replays as one graph: all rows and columns, every step."""
    moved_role(tiny, "policy")
    options = {"role": "policy", "seeds": [[7 * i, 7 * i + 1] for i in range(4)], "max_new_tokens": 6, "stop_ids": [2]}
    fixed, free = (generate(tiny, PROMPTS, rows=5, static=static, **options) for static in (True, False))
    assert_same(fixed, free)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_graph_on_a_gpu_writes_what_a_cpu_writes() -> None:
    cpu, gpu = (SharedModel.load("tiny-llama", dtype="float32", device=device) for device in ("cpu", "cuda"))
    for model in (cpu, gpu):
        moved_role(model, "policy")
    options = {"role": "policy", "seeds": [[7 * i, 7 * i + 1] for i in range(4)], "max_new_tokens": 6, "stop_ids": [2]}
    assert_same(generate(gpu, PROMPTS, rows=5, **options), generate(cpu, PROMPTS, rows=5, **options))


def assert_same(ours: list[list[Generation]], theirs: list[list[Generation]]) -> None:
    for own, other in zip(ours, theirs, strict=True):
        assert [a.token_ids for a in own] == [a.token_ids for a in other]
        for one, two in zip(own, other, strict=True):
            assert one.logprobs == pytest.approx(two.logprobs, abs=1e-4) and one.finish == two.finish


@pytest.mark.parametrize("lora", [Lora(rank=4), Lora(rank=4, dora=True), Lora(rank=2, last_layers=1)])
def test_a_folded_adapter_writes_the_same_and_leaves_the_base_alone(lora: Lora, tiny: SharedModel) -> None:
    tiny.add_role("policy", lora)
    with torch.no_grad():
        for i, parameter in enumerate(tiny.parameters("policy")):
            noise = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(i))
            parameter.add_(0.1 * noise)
    before = {name: tensor.clone() for name, tensor in tiny.base.model.state_dict().items()}
    with tiny.writing("policy", fold=True):
        layer = tiny.decoder.layers[-1].mlp.up_proj
        folded = vars(layer)["forward"].keywords["weight"]
        assert (folded.to_dense() if folded.is_mkldnn else folded).ne(layer.base_layer.weight).any(), "it is folded"
    options = {"role": "policy", "seeds": [[1, 2, None]] * 4, "max_new_tokens": 6, "stop_ids": [2]}
    yes, no = (generate(tiny, PROMPTS, fold=fold, **options) for fold in (True, False))
    assert_same(yes, no)
    assert_same(generate(tiny, PROMPTS, fold=False, **options), no)
    assert all(torch.equal(tensor, before[name]) for name, tensor in tiny.base.model.state_dict().items())


def test_only_an_fp32_base_is_folded_unless_asked_for(llama: SharedModel) -> None:
    half = SharedModel.load("tiny-llama", dtype="bfloat16", device="cpu")
    assert engine.folds(llama, None) and not engine.folds(half, None)
    assert engine.folds(half, True) and not engine.folds(llama, False)


def test_a_stack_is_not_folded(llama: SharedModel) -> None:
    moved_role(llama, "below")
    llama.add_role("policy", Lora(rank=2), on="below")
    with llama.writing("policy", fold=True):
        assert "weight" not in vars(llama.decoder.layers[0].mlp.up_proj)["forward"].keywords
    options = {"seeds": [[1, 2]] * 4, "max_new_tokens": 6, "stop_ids": [2]}
    assert_same(generate(llama, PROMPTS, role="policy", **options), generate(llama, PROMPTS, role="below", **options))


def test_the_engine_of_transformers_is_for_a_gpu(llama: SharedModel) -> None:
    with pytest.raises(ConfigError, match=r"needs? a GPU|made for a GPU, and the model is on cpu"):
        make_engine(Choice(name="transformers"), llama)
    with pytest.raises(ConfigError, match="no engine is called 'vllm'; there are openai, torch, transformers"):
        make_engine(Choice(name="vllm"), llama)


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
