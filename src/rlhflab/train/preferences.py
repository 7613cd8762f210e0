"""What the loops over pairs and over thumbs share: the loss a run names, and the reference it is measured against."""

from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from rlhflab.config import DpoRun, OnlineDpoRun
from rlhflab.core.batch import Batch, Shelf, Tree, micro_batches
from rlhflab.core.losses import Loss
from rlhflab.core.preference import preference_loss
from rlhflab.errors import ConfigError
from rlhflab.model.shared import SharedModel
from rlhflab.rollout.probe import Probe, fresh_sample_kl
from rlhflab.train.state import TrainState


class Objective(NamedTuple):
    """The loss of a run with its options bound."""

    loss_of: Callable[..., Loss]
    needs: tuple[str, ...]

    @property
    def on_thumbs(self) -> bool:
        """Whether it learns from single judged answers, not from pairs."""
        return "labels" in self.needs

    @property
    def has_reference(self) -> bool:
        """Whether it compares the policy with a reference."""
        return "reference" in self.needs


def objective(run: DpoRun | OnlineDpoRun) -> Objective:
    """The loss `run` names. ConfigError where an option is wrong, or a key of the run does not go with the loss."""
    entry = preference_loss.entry(run.loss.name, where="loss")
    asked = {"length": run.length == "mean", "ld_alpha": run.ld_alpha is not None, "nll_weight": run.nll_weight > 0}
    for key, given in asked.items():
        if given and key not in entry.admits:
            known = ", ".join(entry.admits) or "none of them"
            raise ConfigError(f"{key}: does not go with the loss {entry.name}; of {', '.join(asked)} it admits {known}")
    if isinstance(run, OnlineDpoRun) and "pairs" not in entry.needs:
        raise ConfigError(f"loss: {entry.name} learns from single judged answers, and online_dpo makes pairs")
    if isinstance(run, DpoRun) and run.reference_ema is not None and "reference" not in entry.needs:
        raise ConfigError(f"reference_ema: the loss {entry.name} has no reference that could move")
    if "mismatched KL" in entry.needs and run.batch < 2:
        raise ConfigError(f"batch: the loss {entry.name} measures its KL on answers to other prompts, so it must be "
                          f"at least 2, found {run.batch}")
    return Objective(preference_loss.bind(run.loss.name, run.loss.options, where="loss"), entry.needs)


class Reference:
    """Log-probs of the role a policy is compared with, read in the policy's own batches.

    Those of data that comes again are kept from its first batch on, unless the role moves.
    """

    def __init__(self, run: DpoRun, model: SharedModel, role: str | None, trees: Sequence[Tree], *, shelf: Shelf,
                 past: Iterable[Sequence[int]]) -> None:
        """`role` None is the base. `trees`: all the data, by whose places log-probs are asked for.

        `past`: the steps a resumed run has done. What they kept is read again, in the batches they read it in, as for
        `filled_shelf`.
        """
        self.model, self.role, self.moving = model, role, run.reference_ema
        self._trees = trees
        self._keeps = run.epochs > 1 and self.moving is None
        self._kept: dict[int, Tensor] = {}
        self._new: dict[int, Tensor] = {}
        """Of the step under way: if memory runs out, it is read again, in the smaller batches of the policy."""
        for step in past if self._keeps else ():
            for part in micro_batches([len(trees[i]) for i in step], run.micro_tokens):
                self.logprobs(step, part, shelf.pack([trees[step[i]] for i in part], model.device))
            self._keep()

    def logprobs(self, step: Sequence[int], items: Sequence[int], batch: Batch) -> Float[Tensor, " s"]:
        """Of the scored tokens of `batch`, which holds the trees number `items` of those in `step`."""
        places = [step[i] for i in items]
        if all(place in self._kept for place in places):
            return torch.cat([self._kept[place] for place in places]).to(self.model.device)
        with torch.no_grad():
            read = self.model.logprobs(batch, self.role).logprob
        if self._keeps:
            sizes = [self._trees[place].scored_tokens for place in places]
            self._new.update(zip(places, read.cpu().split(sizes), strict=True))
        return read

    def follow(self, policy: str, *, number: int) -> None:
        """Optimizer step `number` is done: keep what it read, and move towards `policy` if that is due."""
        self._keep()
        if self.moving is not None and number % self.moving.every == 0:
            assert self.role is not None, "the base does not move"
            self.model.move_role(self.role, towards=policy, mix=self.moving.mix)

    def _keep(self) -> None:
        self._kept.update(self._new)
        self._new.clear()


def measured_kl(run: DpoRun, model: SharedModel, probe: Probe | None, state: TrainState, *, role: str,
                reference: str | None) -> dict[str, float | None]:
    """KL to the reference on fresh samples, every `probe_every` steps and at the last one."""
    if probe is None or not (state.number % run.probe_every == 0 or state.number == state.total):
        return {}
    return fresh_sample_kl(model, probe, role=role, reference=reference, step=state.number)
