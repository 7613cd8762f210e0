"""Products by the faster kernel are those of torch, whatever the strides and the shapes."""

import pytest
import torch

from rlhflab.core.products import linear, onednn_linear, packed, packs

SHAPES = [(1, 48, 80), (7, 576, 64), (513, 96, 33)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("rows", "inputs", "outputs"), SHAPES)
def test_a_product_is_that_of_torch(rows: int, inputs: int, outputs: int, dtype: torch.dtype) -> None:
    draw = torch.Generator().manual_seed(rows)
    x, weight, bias = (torch.randn(*shape, generator=draw).to(dtype) for shape in (
        (2, rows, inputs), (outputs, inputs), (outputs,)))
    for own in (None, bias):
        torch.testing.assert_close(linear(x, weight, own), torch.nn.functional.linear(x, weight, own), rtol=2e-5 if
                                   dtype == torch.float32 else 1.6e-2, atol=1e-4)


def test_a_transposed_view_is_read_as_it_lies() -> None:
    x, weight = torch.randn(9, 40), torch.randn(40, 24)
    torch.testing.assert_close(linear(x, weight.T), x @ weight, rtol=2e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_packed_weight_gives_the_same(dtype: torch.dtype) -> None:
    x, weight = torch.randn(5, 32).to(dtype), torch.randn(16, 32).to(dtype)
    if not packs(weight):
        pytest.skip("this CPU has no kernel for it")
    torch.testing.assert_close(onednn_linear(x, packed(weight), None), torch.nn.functional.linear(x, weight))
