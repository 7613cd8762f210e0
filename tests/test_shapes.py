"""The shapes in core's signatures are checked under pytest: a guard on the pytest flag itself."""

import jaxtyping
import pytest
import torch

from rlhflab.core.returns import kl_k1


def test_a_shape_that_torch_would_broadcast_is_refused():
    with pytest.raises(jaxtyping.TypeCheckError):
        kl_k1(torch.zeros(3), torch.zeros(1))
