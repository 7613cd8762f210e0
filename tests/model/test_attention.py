"""The mask of shared prompts, and the grouped products and FlexAttention against torch's own attention."""

from collections.abc import Callable

import pytest
import torch
from torch import nn
from torch.nn.attention import flex_attention as flex
from torch.nn.attention.flex_attention import create_mask

from conftest import TREES, moved_role
from rlhflab.core.batch import PAD, Batch, TokenAnswer, Tree, pack
from rlhflab.model import attention
from rlhflab.model.attention import attend, block_mask, branch_mask, grouped_attention, visibility
from rlhflab.model.shared import SharedModel


def test_an_answer_sees_its_prompt_and_itself_but_no_other_answer() -> None:
    batch = pack([Tree(prompt=(5,), answers=(TokenAnswer(ids=(6, 2)), TokenAnswer(ids=(7,))))])
    assert branch_mask(batch.branch)[0, 0].int().tolist() == [
        [1, 0, 0, 0],
        [1, 1, 0, 0],
        [1, 1, 1, 0],
        [1, 0, 0, 1],
    ]


def test_padding_is_seen_by_no_token() -> None:
    batch = pack([Tree(prompt=(5, 6, 7), answers=(TokenAnswer(ids=(2,)),)),
                  Tree(prompt=(5,), answers=(TokenAnswer(ids=(2,)),))])
    mask = branch_mask(batch.branch)[1, 0]
    assert not mask[:2, 2:].any()
    assert mask.any(-1).all(), "no row is empty, or its softmax would be NaN"


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 3e-2)])
def test_grouped_attention_equals_torchs_forward_and_backward(dtype: torch.dtype, tolerance: float) -> None:
    torch.manual_seed(0)
    batch = pack([Tree(prompt=(5, 6, 7), answers=(TokenAnswer(ids=(8, 2)), TokenAnswer(ids=(9, 2))))] * 2)
    mask, gradients, outputs = branch_mask(batch.branch), [], []
    shapes = [(2, 6, 7, 8), (2, 2, 7, 8), (2, 2, 7, 8)]
    tensors = [torch.randn(shape, dtype=dtype) for shape in shapes]
    for fused in (True, False):
        query, key, value = (tensor.clone().requires_grad_() for tensor in tensors)
        states = torch.nn.functional.scaled_dot_product_attention(
            query, key.repeat_interleave(3, 1), value.repeat_interleave(3, 1), attn_mask=mask, scale=0.3,
        ) if fused else grouped_attention(query, key, value, mask, scaling=0.3)
        states.square().sum().backward()
        outputs.append(states)
        gradients.append([query.grad, key.grad, value.grad])
    torch.testing.assert_close(outputs[0], outputs[1], atol=tolerance, rtol=tolerance)
    for fused_gradient, ours in zip(*gradients, strict=True):
        torch.testing.assert_close(fused_gradient, ours, atol=3 * tolerance, rtol=3 * tolerance)


def branches() -> Batch:
    """Rows with two, one and three answers of different lengths, padded on the right."""
    return pack([Tree(prompt=(5, 6, 7), answers=(TokenAnswer(ids=(8, 2)), TokenAnswer(ids=(9, 9, 9, 2)))),
                 Tree(prompt=(5, 6), answers=(TokenAnswer(ids=(2,)),)),
                 Tree(prompt=(5, 6, 7, 8), answers=(TokenAnswer(ids=(8, 2)), TokenAnswer(ids=(9, 2)),
                                                    TokenAnswer(ids=(3, 2))))])


def test_the_block_mask_shows_what_the_branch_mask_shows() -> None:
    branch = branches().branch
    blocks = block_mask(branch)
    rows, columns = branch.shape
    shown = create_mask(blocks.mask_mod, rows, None, columns, columns, device="cpu")
    assert torch.equal(shown, branch_mask(branch))
    assert isinstance(visibility(branch), torch.Tensor), "a CPU reads the mask whole"


def test_blocks_that_no_token_sees_are_left_out() -> None:
    long = TokenAnswer(ids=(9,) * 128)
    branch = pack([Tree(prompt=(5,) * 128, answers=(long, long))]).branch
    assert block_mask(branch).to_dense()[0, 0].int().tolist() == [[1, 0, 0], [1, 1, 0], [1, 0, 1]]


def attention_gradients(attend_to: Callable[..., torch.Tensor], tensors: list[torch.Tensor],
                        pad: torch.Tensor) -> list[torch.Tensor]:
    """States of real tokens, and the gradients of query, key and value."""
    query, key, value = (tensor.clone().requires_grad_() for tensor in tensors)
    states = attend_to(query, key, value).masked_fill(pad[:, None, :, None], 0.0)
    states.square().sum().backward()
    return [states.detach(), *(tensor.grad for tensor in (query, key, value) if tensor.grad is not None)]


def test_flex_attention_equals_torchs_forward_and_backward(monkeypatch: pytest.MonkeyPatch) -> None:
    # Public FlexAttention refuses a backward pass on a CPU, where it has no kernel for it; written out it has one.
    monkeypatch.setattr(flex, "_validate_device", lambda query, key, value: None)
    monkeypatch.setattr(attention, "compiled_flex_attention", lambda: flex.flex_attention)
    torch.manual_seed(0)
    branch = branches().branch
    rows, columns = branch.shape
    tensors = [torch.randn(rows, heads, columns, 16) for heads in (4, 2, 2)]

    def by_blocks(*parts: torch.Tensor) -> torch.Tensor:
        return attend(nn.Identity(), *parts, block_mask(branch), scaling=0.3)[0].transpose(1, 2)

    def plain(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.scaled_dot_product_attention(
            query, key.repeat_interleave(2, 1), value.repeat_interleave(2, 1), attn_mask=branch_mask(branch), scale=0.3)

    ours, expected = (attention_gradients(each, tensors, branch == PAD) for each in (by_blocks, plain))
    assert len(ours) == 4
    for found, right in zip(ours, expected, strict=True):
        torch.testing.assert_close(found, right, atol=1e-5, rtol=1e-5)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_model_reads_by_blocks_on_a_gpu_what_it_reads_on_a_cpu() -> None:
    found = []
    for device in ("cpu", "cuda"):
        model = SharedModel.load("tiny-llama", dtype="float32", device=device)
        moved_role(model, "policy")
        for batch in (pack(TREES), pack(TREES[:2]), branches()):
            batch = batch.to(device)
            model.logprobs(batch, "policy").logprob.square().sum().backward()
        found.append([p.grad.cpu() for p in model.parameters("policy") if p.grad is not None])
    assert len(found[1]) == len(model.parameters("policy"))
    for cpu, gpu in zip(*found, strict=True):
        torch.testing.assert_close(cpu, gpu, atol=1e-3, rtol=1e-2)
