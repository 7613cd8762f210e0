"""Weights laid out for decoding give the same numbers, and are gone afterwards."""

import pytest
import torch

from rlhflab.config import Lora
from rlhflab.core.products import packs
from rlhflab.model.folded import product
from rlhflab.model.shared import SharedModel


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("rows", [1, 7, 64])
def test_a_product_is_that_of_torch(rows: int, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(rows)
    x, weight, bias = (torch.randn(*shape, generator=generator).to(dtype) for shape in ((rows, 1, 48), (80, 48), (80,)))
    for own in (None, bias):
        torch.testing.assert_close(product(weight, own)(x), torch.nn.functional.linear(x, weight, own))


def test_layers_are_as_before_after_writing() -> None:
    model = SharedModel.load("tiny-qwen", dtype="bfloat16", device="cpu")
    ids = torch.arange(3, 20)[None]

    def states() -> torch.Tensor:
        found: torch.Tensor = model.decoder(input_ids=ids, use_cache=False).last_hidden_state
        return found

    with torch.no_grad():
        before = states()
        model.add_role("policy", Lora(rank=2))
        forwards = {name: vars(layer).get("forward") for name, layer in model.decoder.named_modules()}
        with model.writing(None):
            layer = model.decoder.layers[0].mlp.up_proj.base_layer
            assert ("forward" in vars(layer)) == packs(layer.weight)
            torch.testing.assert_close(states(), before)
        assert {name: vars(layer).get("forward") for name, layer in model.decoder.named_modules()} == forwards
        assert torch.equal(states(), before)
