"""The trunk: frozen blocks that all roles of a run share are computed once a batch, and once for data that repeats."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from conftest import TREES, moved_role
from rlhflab.config import Lora
from rlhflab.core.batch import Shelf, Tree, pack
from rlhflab.model.shared import SharedModel
from slow_twins import plain_logprobs

LAST = Lora(rank=4, alpha=8, last_layers=1)


@pytest.fixture
def stacked(tiny: SharedModel) -> SharedModel:
    """Policy, its reference and a value role on one frozen adapter of all blocks; only the last block is trained."""
    moved_role(tiny, "start", trainable=False)
    for i, name in enumerate(("policy", "value")):
        tiny.add_role(name, LAST, on="start", head="random" if name == "value" else "none", seed=i)
        with torch.no_grad():
            for parameter in tiny.parameters(name):
                parameter.copy_(0.2 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(i)))
    return tiny


@pytest.fixture
def first_block(stacked: SharedModel) -> list[int]:
    """Grows by the rows the first block is computed on."""
    seen: list[int] = []
    stacked.decoder.layers[0].self_attn.register_forward_hook(lambda module, args, out: seen.append(len(out[0])))
    return seen


def test_three_roles_compute_the_trunk_once_and_equal_plain_forwards(
        stacked: SharedModel, first_block: list[int],
        gradients: Callable[[SharedModel, str], list[torch.Tensor]]) -> None:
    weight = torch.randn(sum(tree.scored_tokens for tree in TREES), generator=torch.Generator().manual_seed(0))
    batch = pack(TREES)
    for role in ("start", "policy", "value"):
        first_block.clear()
        got = stacked.logprobs(batch, role).logprob
        assert first_block == ([len(TREES)] if role == "start" else [])
        want = torch.cat([torch.cat(plain_logprobs(stacked, tree, role)) for tree in TREES])
        torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)
        if role != "start":
            (got * weight).sum().backward()
            ours = gradients(stacked, role)
            (want * weight).sum().backward()
            for one, other in zip(ours, gradients(stacked, role), strict=True):
                torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-5)


def test_a_role_on_something_else_does_not_take_the_trunk(stacked: SharedModel) -> None:
    moved_role(stacked, "other", seed=5, trainable=False)
    batch = pack(TREES)
    stacked.logprobs(batch, "policy")
    for role in (None, "other"):
        torch.testing.assert_close(stacked.logprobs(batch, role).logprob,
                                   torch.cat([torch.cat(plain_logprobs(stacked, tree, role)) for tree in TREES]),
                                   rtol=1e-4, atol=1e-5)


def test_nothing_is_shared_below_a_role_that_trains_in_every_block(tiny: SharedModel) -> None:
    moved_role(tiny, "policy")
    tiny.add_role("top", LAST)
    assert tiny.trunk_blocks == 0
    tiny.drop_role("policy")
    assert tiny.trunk_blocks == 1


def test_a_shelf_reads_the_trunk_of_a_tree_once_whatever_batch_it_comes_in(
        stacked: SharedModel, first_block: list[int]) -> None:
    shelf = Shelf()
    stacked.logprobs(shelf.pack(TREES, "cpu"), "start")
    first_block.clear()
    for again in ([TREES[2]], [TREES[1], TREES[0]], TREES[::-1]):
        got = stacked.logprobs(shelf.pack(again, "cpu"), "policy").logprob
        torch.testing.assert_close(got, stacked.logprobs(pack(again), "policy").logprob, rtol=1e-5, atol=1e-6)
        assert first_block == [len(again)]  # of the batch beside it, without a shelf
        first_block.clear()


def test_a_full_shelf_takes_nothing_more_and_a_mixed_batch_is_read_afresh(
        stacked: SharedModel, first_block: list[int]) -> None:
    shelf = Shelf(room=len(TREES[0]))
    for trees, computed in (([TREES[0]], [1]), ([TREES[1]], [1]), ([TREES[1]], [1]), ([TREES[0]], []), (TREES, [3])):
        first_block.clear()
        stacked.hidden(shelf.pack(trees, "cpu"), "policy")
        assert first_block == computed


def test_trunks_of_different_adapters_do_not_mix(stacked: SharedModel) -> None:
    shelf, more = Shelf(), Tree(prompt=(1, 77), answers=TREES[0].answers)
    stacked.hidden(shelf.pack([TREES[0]], "cpu"), None)
    stacked.hidden(shelf.pack([more], "cpu"), "policy")
    got = stacked.logprobs(shelf.pack([TREES[0], more], "cpu"), "policy").logprob
    torch.testing.assert_close(got, stacked.logprobs(pack([TREES[0], more]), "policy").logprob, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("shape", [LAST, Lora(rank=2, alpha=3, rslora=True),
                                   Lora(rank=2, targets=["q_proj", "up_proj"])])
def test_a_saved_stack_is_stacked_again_where_it_may_share(stacked: SharedModel, shape: Lora, tmp_path: Path) -> None:
    stacked.add_role("mine", shape, on="start", head="random")
    with torch.no_grad():
        for parameter in stacked.parameters("mine"):
            parameter.copy_(0.2 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(7)))
    stacked.save_role("mine", tmp_path / "mine")
    stacked.load_role("again", tmp_path / "mine", head="stored", share=True)
    stacked.load_role("whole", tmp_path / "mine", head="stored")
    assert stacked.stacked("again") and not stacked.stacked("whole")
    assert stacked.lora_of("again").last_layers == shape.last_layers
    want = stacked.score(pack(TREES), "mine")
    torch.testing.assert_close(stacked.score(pack(TREES), "again"), want, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(stacked.score(pack(TREES), "whole"), want, rtol=1e-4, atol=1e-4)


def test_an_adapter_that_begins_otherwise_is_not_stacked(stacked: SharedModel, tmp_path: Path) -> None:
    stacked.save_role("policy", tmp_path / "policy")
    stacked.save_role("start", tmp_path / "start")
    for name in ("policy", "value"):
        stacked.drop_role(name)
    with torch.no_grad():
        stacked.parameters("start")[0][0, 0] += 1
    for name in ("policy", "start"):
        stacked.load_role(f"{name}-again", tmp_path / name, share=True)
        assert not stacked.stacked(f"{name}-again")
