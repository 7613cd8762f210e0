"""The mask of shared prompts, and the grouped products against torch's own attention."""

import pytest
import torch

from rlhflab.core.batch import TokenAnswer, Tree, pack
from rlhflab.model.attention import branch_mask, grouped_attention


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
