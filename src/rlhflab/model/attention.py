"""What each token of a batch may see, as the mask that transformers hands to every layer."""

from jaxtyping import Bool, Int
from torch import Tensor

from rlhflab.core.batch import PROMPT


def branch_mask(branch: Int[Tensor, "b t"]) -> Bool[Tensor, "b 1 t t"]:
    """True where a row's token i sees token j: j is not later, and is of the prompt or of i's own branch.

    Padding sees padding, so that no row of the attention is empty (a softmax over nothing is NaN).
    """
    same = branch[:, :, None] == branch[:, None, :]
    prompt = branch[:, None, :] == PROMPT
    answers = branch[:, :, None] > PROMPT
    return (same | (prompt & answers)).tril()[:, None]
