"""The nucleus by hand. Draws themselves are tested with the engine."""

import pytest
import torch

from rlhflab.rollout import draw
from rlhflab.rollout.draw import nucleus

LOGITS = torch.tensor([0.1, 0.4, 0.2, 0.3]).log()


@pytest.mark.parametrize(("top_p", "kept"), [(0.01, [1]), (0.4, [1]), (0.41, [1, 3]), (0.7, [1, 3]),
                                             (0.71, [1, 2, 3]), (0.95, [0, 1, 2, 3])])
@pytest.mark.parametrize("sorted_first", [1, 1024])
def test_the_nucleus_is_the_smallest_set_that_holds_so_much(top_p, kept, sorted_first, monkeypatch):
    monkeypatch.setattr(draw, "NUCLEUS", sorted_first)
    found = nucleus(LOGITS, top_p - 1e-6)
    assert found.isfinite().nonzero().flatten().tolist() == kept
    assert torch.equal(found[kept], LOGITS[kept])
