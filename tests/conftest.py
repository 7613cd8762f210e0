"""Tiny models and trees that many tests share."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from rlhflab.config import Lora
from rlhflab.core.batch import TokenAnswer, Tree
from rlhflab.model.shared import SharedModel

TINY = ("tiny-llama", "tiny-qwen")
SHARED = Path(__file__).parents[2] / "shared"
"""Real data kept beside the checkout where there is any; tests that read it are skipped elsewhere."""

TREES = [
    Tree(prompt=(1, 50, 60, 70, 80), answers=(TokenAnswer(ids=(90, 91, 2)), TokenAnswer(ids=(92, 2)))),
    Tree(prompt=(1, 55), answers=(TokenAnswer(ids=(93, 94, 95, 96, 2)), TokenAnswer(ids=(97, 2)))),
    Tree(prompt=(1, 56, 57, 58, 59, 60, 61, 62), answers=(
        TokenAnswer(ids=(98, 2, 99, 100, 2), scored=(True, True, False, True, True)), TokenAnswer(ids=(101, 2)))),
]


def moved_role(model: SharedModel, name: str, *, seed: int = 1, head: str = "none", trainable: bool = True) -> None:
    """A role whose adapter product is not zero, so that it differs from the base and from other roles."""
    model.add_role(name, Lora(rank=4, alpha=8), head=head, seed=seed, trainable=trainable)  # type: ignore[arg-type]
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters(name):
            parameter.copy_(0.2 * torch.randn(parameter.shape, generator=generator))


@pytest.fixture(params=TINY)
def tiny(request: pytest.FixtureRequest) -> SharedModel:
    """A Llama-like and a Qwen-like random model in fp32, without roles."""
    return SharedModel.load(request.param, dtype="float32", device="cpu")


@pytest.fixture
def llama() -> SharedModel:
    """The Llama-like random model alone, where the architecture does not matter."""
    return SharedModel.load("tiny-llama", dtype="float32", device="cpu")


@pytest.fixture
def gradients() -> Callable[[SharedModel, str], list[torch.Tensor]]:
    """Copies of a role's gradients, which are then cleared."""

    def take(model: SharedModel, role: str) -> list[torch.Tensor]:
        taken = []
        for parameter in model.parameters(role):
            assert parameter.grad is not None
            taken.append(parameter.grad.clone())
            parameter.grad = None
        return taken

    return take
