"""What a GPU may read by: joint products, blocks as one function and rows without padding, against the plain way."""

from collections.abc import Iterator
from typing import Any

import jaxtyping
import pytest
import torch

from conftest import TREES, moved_role
from rlhflab.config import Lora
from rlhflab.core import logprobs
from rlhflab.core.batch import PAD, OneRow, pack
from rlhflab.core.logprobs import token_scores
from rlhflab.model import blocks
from rlhflab.model.attention import block_mask, branch_mask
from rlhflab.model.shared import SharedModel

WAYS: list[dict[str, Any]] = [{"columns": 8}, {"blocks": "joint"}, {"blocks": "compiled"},
                              {"columns": 8, "blocks": "joint"}]


def read(model: SharedModel, role: str) -> list[torch.Tensor]:
    """Log-probs, their entropy and the gradients of a loss on them."""
    scores = model.logprobs(pack(TREES), role)
    (scores.logprob.square().sum() + scores.entropy.sum()).backward()
    gradients = [p.grad for p in model.parameters(role) if p.grad is not None]
    for parameter in model.parameters(role):
        parameter.grad = None
    return [scores.logprob.detach(), scores.entropy.detach(), *gradients]


def assert_close(found: list[torch.Tensor], expected: list[torch.Tensor]) -> None:
    """Relative to the size of each tensor: a gradient is a sum of parts that cancel."""
    for fast, plain in zip(found, expected, strict=True):
        assert (fast - plain).norm() < 5e-5 * plain.norm() + 1e-8


@pytest.fixture
def traced(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Compiled as on a GPU, but for the kernels: a CPU would need a compiler of its own for them."""
    compile_ = torch.compile
    monkeypatch.setattr(torch, "compile", lambda function, **options: compile_(
        function, backend="aot_eager", dynamic=options.get("dynamic")))
    jaxtyping.config.update("jaxtyping_disable", True)  # what is traced cannot be checked
    yield
    jaxtyping.config.update("jaxtyping_disable", False)
    logprobs._compiled.cache_clear()
    blocks.compiled_block.cache_clear()


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.usefixtures("traced")
def test_every_way_reads_what_the_plain_way_reads(tiny: SharedModel, way: dict[str, Any]) -> None:
    moved_role(tiny, "policy")
    expected = read(tiny, "policy")
    tiny.read_fast(**way)
    found = read(tiny, "policy")
    assert len(found) == 2 + len(tiny.parameters("policy"))
    assert_close(found, expected)


def test_a_stack_of_adapters_on_some_layers_is_one_joint_product(llama: SharedModel) -> None:
    llama.add_role("below", Lora(rank=2, targets=["k_proj", "gate_proj"]), trainable=False)
    llama.add_role("policy", Lora(rank=3, targets=["v_proj", "k_proj"]), on="below")
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in [*llama.parameters("below"), *llama.parameters("policy")]:
            parameter.copy_(0.2 * torch.randn(parameter.shape, generator=generator))
    expected = read(llama, "policy")
    llama.read_fast(blocks="joint")
    assert_close(read(llama, "policy"), expected)


def test_the_base_is_read_too_and_its_weights_stay_where_they_were_looked_for(llama: SharedModel) -> None:
    batch, before = pack(TREES), {name: w.clone() for name, w in llama.decoder.named_parameters()}
    expected = llama.hidden(batch, None)
    llama.read_fast(blocks="joint")
    torch.testing.assert_close(llama.hidden(batch, None), expected, atol=1e-5, rtol=1e-5)
    assert all(torch.equal(weight, before[name]) for name, weight in llama.decoder.named_parameters())


@pytest.mark.parametrize("lora", [Lora(rank=4, dora=True), Lora(rank=4, dropout=0.1)])
def test_what_is_more_than_a_product_is_left_to_the_plain_way(
        llama: SharedModel, lora: Lora, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blocks, "read_block", lambda *_: pytest.fail("it knows neither DoRA nor dropout"))
    llama.add_role("policy", lora)
    llama.read_fast(blocks="joint")
    llama.logprobs(pack(TREES), "policy").logprob.sum().backward()


def test_rows_without_padding_hold_every_token_once_and_see_no_other_row() -> None:
    batch = pack(TREES)
    row = OneRow.of(batch, multiple=16)
    real = int((batch.branch != PAD).sum())
    assert len(row.place) == real and row.tokens.shape[1] % 16 == 0 and row.tokens.shape[1] - real < 16
    mask = branch_mask(row.branch, row.document)[0, 0]
    columns = batch.tokens.shape[1]
    for i, place in enumerate(row.place.tolist()):
        expected = branch_mask(batch.branch)[place // columns, 0, place % columns]
        seen = torch.zeros(batch.tokens.numel(), dtype=torch.bool)
        seen[row.place[mask[i, :real]]] = True
        assert torch.equal(seen.view(-1, columns)[place // columns], expected) and seen.sum() == expected.sum()
    shown = block_mask(row.branch, row.document)
    zero = torch.tensor(0)
    dense = torch.stack([torch.stack([shown.mask_mod(zero, zero, torch.tensor(i), torch.tensor(j))
                                      for j in range(real)]) for i in range(real)])
    assert torch.equal(dense, mask[:real, :real])


@pytest.mark.usefixtures("traced")
def test_compiled_chunks_give_the_log_probs_entropies_and_gradients_of_plain_ones() -> None:
    generator = torch.Generator().manual_seed(0)
    hidden, weight = torch.randn(7, 8, generator=generator), torch.randn(11, 8, generator=generator)
    found = []
    for compiled in (False, True):
        moving = hidden.clone().requires_grad_()
        scores = token_scores(moving, weight, torch.arange(7), temperature=0.8, chunk=4, compiled=compiled)
        (scores.logprob.square().sum() + scores.entropy.sum()).backward()
        found.append([*scores, moving.grad])
    for fast, plain in zip(*found, strict=True):
        torch.testing.assert_close(fast, plain, atol=1e-6, rtol=1e-5)


def test_padding_is_not_read(llama: SharedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    widths, batch = [], pack(TREES)
    forward = llama.decoder.forward

    def noted(*args: Any, **options: Any) -> Any:
        widths.append(options["input_ids"].shape)
        return forward(*args, **options)

    monkeypatch.setattr(llama.decoder, "forward", noted)
    llama.read_fast(columns=8)
    llama.hidden(batch, None)
    assert widths == [(1, -(-int((batch.branch != PAD).sum()) // 8) * 8)]
