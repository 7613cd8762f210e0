"""Forward passes over many trees without gradient: scores and log-probs, in the order the trees came in."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Literal, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from rlhflab.config import Run
from rlhflab.core.batch import SHELF, Batch, Shelf, Tree, micro_batches
from rlhflab.data.types import Rollout, Score
from rlhflab.model.shared import SharedModel

Reward = Callable[[Sequence[Rollout]], list[Score]]
"""One score a rollout, in order."""


@runtime_checkable
class Carried(Protocol):
    """Something small that changes from step to step, such as a controller or a running mean."""

    def state_dict(self) -> dict[str, float]:
        """What it holds, by name."""
        ...

    def load_state_dict(self, state: Mapping[str, float]) -> None:
        """Put back what `state_dict` returned."""
        ...


@contextmanager
def only_looking(reward: Reward) -> Iterator[None]:
    """What `reward` carries from step to step is, behind the block, what it was before: nothing was learnt in it."""
    carried: Mapping[str, Carried] = getattr(reward, "carried", {})
    before = {name: each.state_dict() for name, each in carried.items()}
    try:
        yield
    finally:
        for name, each in carried.items():
            each.load_state_dict(before[name])


def score_trees(model: SharedModel, trees: Sequence[Tree], *, role: str,
                micro_tokens: int) -> list[Float[Tensor, " n"]]:
    """Raw scores of the answers of each tree, on the CPU."""
    return read_trees(model, trees, lambda batch: model.score(batch, role), per="answer", micro_tokens=micro_tokens)


def score_members(model: SharedModel, trees: Sequence[Tree], *, role: str,
                  micro_tokens: int) -> list[Float[Tensor, "n k"]]:
    """Raw outputs of the role's head for the answers of each tree, on the CPU."""
    return read_trees(model, trees, lambda batch: model.outputs(batch, role), per="answer", micro_tokens=micro_tokens)


def tree_logprobs(model: SharedModel, trees: Sequence[Tree], *, role: str | None, micro_tokens: int,
                  temperature: float = 1.0, shelf: Shelf | None = None) -> list[Float[Tensor, " s"]]:
    """Log-probs of the scored tokens of each tree, its answers one after the other, on the CPU."""
    return read_trees(model, trees, lambda batch: model.logprobs(batch, role, temperature=temperature).logprob,
                      per="token", micro_tokens=micro_tokens, shelf=shelf)


def tree_token_scores(model: SharedModel, trees: Sequence[Tree], *, role: str | None, micro_tokens: int,
                      temperature: float = 1.0, shelf: Shelf | None = None) -> list[Float[Tensor, "s 2"]]:
    """Log-prob and entropy of the scored tokens of each tree, on the CPU; both come from one forward pass."""
    return read_trees(model, trees, lambda batch: torch.stack(model.logprobs(batch, role, temperature=temperature), -1),
                      per="token", micro_tokens=micro_tokens, shelf=shelf)


@torch.no_grad()
def read_trees(model: SharedModel, trees: Sequence[Tree], read: Callable[[Batch], Tensor], *,
               per: Literal["answer", "token"], micro_tokens: int, shelf: Shelf | None = None) -> list[Tensor]:
    """`read` over micro-batches of similar length; its values, one an answer or a scored token, split by tree.

    `shelf`: of trees that other roles read too.
    """
    shelf = shelf or Shelf(room=0)
    results: list[Tensor] = [torch.empty(0)] * len(trees)
    for part in micro_batches([len(tree) for tree in trees], micro_tokens):
        batch = shelf.pack([trees[i] for i in part], model.device)
        tree_of_answer = torch.tensor([k for k, i in enumerate(part) for _ in trees[i].answers])
        tree_of_value = tree_of_answer if per == "answer" else tree_of_answer[batch.owner.cpu()]
        sizes = torch.bincount(tree_of_value, minlength=len(part)).tolist()
        for i, values in zip(part, read(batch).cpu().split(sizes), strict=True):
            results[i] = values
    return results


@torch.no_grad()
def filled_shelf(run: Run, model: SharedModel, trees: Sequence[Tree], past: Iterable[Sequence[int]], *,
                 role: str) -> Shelf:
    """Where a run over fixed data keeps the trunks of what comes again: nothing, in a single epoch.

    `past`: the steps a resumed run has done, which are read again in the batches they were read in, since another batch
    would round them otherwise.
    """
    shelf = Shelf(room=SHELF if run.epochs > 1 and model.trunk_blocks else 0)
    for step in past if shelf.room else ():
        for part in micro_batches([len(trees[i]) for i in step], run.micro_tokens):
            model.hidden(shelf.pack([trees[step[i]] for i in part], model.device), role)
    return shelf
