"""What a step of a run takes on this machine: its own loop, on shallow models of the base's shape with random weights.

Memory and time of a step are those of its blocks and a rest. So two shallow models (three where only the last blocks
are adapted) tell what the whole one takes, whatever the loop does, and nothing has to be known about it here.
"""

import copy
import time
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import PretrainedConfig

from rlhflab.config import BestOfNRun, DpoRun, Lora, OnlineDpoRun, PpoRun, RewardRun, Run, SampledRun, SftRun
from rlhflab.core.batch import PreferenceTree, ThumbTree, Tree
from rlhflab.data.chat import ChatFormat
from rlhflab.data.types import Prompt, Rollout, Score
from rlhflab.errors import ModelError
from rlhflab.model.adapters import ADAPTER_CONFIG, read_lora
from rlhflab.model.load import random_base
from rlhflab.model.shared import SharedModel
from rlhflab.progress import Progress
from rlhflab.rollout.rewards import Reward
from rlhflab.rollout.sampling import rollout_trees
from rlhflab.rollout.scoring import score_trees
from rlhflab.runs.lab import START, Lab
from rlhflab.train.best_of_n import train_best_of_n
from rlhflab.train.dpo import train_dpo
from rlhflab.train.online_dpo import train_online_dpo
from rlhflab.train.ppo import has_critic, train_ppo
from rlhflab.train.preferences import objective
from rlhflab.train.reward import fit_frozen_heads, head_outputs, train_reward
from rlhflab.train.sft import train_sft
from rlhflab.train.thumbs import train_thumbs

BLOCKS = 4
"""Blocks of the deeper model: more are more exact, and take longer."""
MOMENTS = 8
"""Bytes that AdamW keeps of a trained number from its first step on."""

Numbers = NDArray[np.float64]
Item = Tree | PreferenceTree | ThumbTree | Prompt
"""What a loop is given a sequence of."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rehearsal:
    """A run on a base of this shape."""

    run: Run
    config: PretrainedConfig
    chat: ChatFormat
    device: str

    def at_full_depth(self, measure: Callable[[Lab, Run], Sequence[float]]) -> Numbers:
        """What `measure` would say of the whole model, by what it says of models with few blocks.

        It is given a model without roles, and the run with the shape of its adapters fitted to it.
        """
        lora = self._shape(self.run.start) if self.run.start and not self.run.stack else self.run.lora
        blocks = self.config.num_hidden_layers
        adapted = min(lora.last_layers or blocks, blocks)
        lab, run = self._shallow(lora, 0, 1)
        one = whole = np.array(measure(lab, run))
        for plain, more, times in ((0, min(BLOCKS, adapted) - 1, adapted - 1),
                                   (1, min(BLOCKS - 1, blocks - adapted), blocks - adapted)):
            if more:
                lab, run = self._shallow(lora, plain * more, 1 if plain else 1 + more)
                whole = whole + (np.array(measure(lab, run)) - one) / more * times
        numbers: Numbers = np.maximum(whole, one)
        return numbers

    def _shallow(self, lora: Lora, plain: int, adapted: int) -> tuple[Lab, Run]:
        """A model of `plain` blocks below `adapted` ones that an adapter is on."""
        config = copy.deepcopy(self.config)
        config.num_hidden_layers = plain + adapted
        if getattr(config, "layer_types", None):
            config.layer_types = config.layer_types[:plain + adapted]
        model = SharedModel(random_base(config, self.chat.tokenizer, dtype=getattr(torch, self.run.dtype),
                                        device=self.device))
        model.recompute_activations(self.run.recompute)
        return (Lab(model=model, chat=self.chat, progress=Progress()),
                self.run.model_copy(update={"lora": _on_last(lora, adapted if plain else None)}))

    def _shape(self, folder: str) -> Lora:
        """Of the adapter in `folder`."""
        if not (Path(folder) / ADAPTER_CONFIG).is_file():
            raise ModelError(f"{folder}: is not an adapter folder: it needs {ADAPTER_CONFIG}")
        return read_lora(Path(folder), layers=self.config.num_hidden_layers)


def peak_bytes(lab: Lab, run: Run, items: Sequence[Item]) -> float:
    """The most that one step on `items`, and the roles it needs, hold at one time beside the base."""
    with LiveBytes(lab.model.device) as live:
        for _ in steps(lab, run, items, epochs=1):
            trained = sum(p.numel() for role in lab.model.records for p in (
                *lab.model.parameters(role), *lab.model.head_parameters(role)) if p.requires_grad)
    return float(live.peak + MOMENTS * trained)


def step_seconds(lab: Lab, run: Run, items: Sequence[Item]) -> list[float]:
    """Of a step on `items`, and of one on the same items in a later epoch."""
    seconds = list(steps(lab, run, items, epochs=1 if isinstance(run, SampledRun) else min(run.epochs, 2)))
    return [seconds[0], seconds[-1]]


def steps(lab: Lab, run: Run, items: Sequence[Item], *, epochs: int) -> Iterator[float]:
    """Seconds of each step of the run's loop, all of them on `items`; drops the roles it made."""
    once = {"steps": 1, "critic_warmup": 0} if isinstance(run, SampledRun) else {"steps": None, "epochs": epochs}
    try:
        yield from LOOPS[run.kind](lab, run.model_copy(update={**once, "batch": len(items)}), items)
    finally:
        lab.drop_roles()


def _on_last(lora: Lora, blocks: int | None) -> Lora:
    return lora.model_copy(update={"last_layers": blocks})


# -- the loops, with fresh adapters in place of those a run would load ------------------------------------------------


def _start_role(lab: Lab, run: Run, name: str, **head: Any) -> None:
    """As `Lab.start_role`, where every adapter is new: what it holds takes no other time."""
    stacked = run.stack and run.start is not None
    if stacked and START not in lab.model.records:
        lab.model.add_role(START, run.lora, trainable=False)
    lab.model.add_role(name, run.lora, on=START if stacked else None, **head)


def _sft(lab: Lab, run: SftRun, items: Sequence[Tree]) -> Iterator[float]:
    _start_role(lab, run, "policy")
    yield from (step.seconds for step in train_sft(run, lab.model, items))


def _reward(lab: Lab, run: RewardRun, items: Sequence[PreferenceTree]) -> Iterator[float]:
    _start_role(lab, run, "reward", head="random", outputs=head_outputs(run))
    if run.features == "frozen":
        began = time.perf_counter()
        fit_frozen_heads(run, lab.model, items)
        yield time.perf_counter() - began
    else:
        yield from (step.seconds for step in train_reward(run, lab.model, items))


def _dpo(lab: Lab, run: DpoRun, items: Sequence[Any]) -> Iterator[float]:
    goal = objective(run)
    _start_role(lab, run, "policy")
    reference = lab.freeze_reference(run, moves=run.reference_ema is not None) if goal.has_reference else None
    train: Callable[..., Iterator[Any]] = train_thumbs if goal.on_thumbs else train_dpo
    yield from (step.seconds for step in train(run, lab.model, items, reference=reference))


def _ppo(lab: Lab, run: PpoRun, items: Sequence[Prompt]) -> Iterator[float]:
    return _sampled(train_ppo, lab, run, items, critic=has_critic(run))


def _best_of_n(lab: Lab, run: BestOfNRun, items: Sequence[Prompt]) -> Iterator[float]:
    return _sampled(train_best_of_n, lab, run, items)


def _online_dpo(lab: Lab, run: OnlineDpoRun, items: Sequence[Prompt]) -> Iterator[float]:
    return _sampled(train_online_dpo, lab, run, items)


def _sampled(train: Callable[..., Iterator[Any]], lab: Lab, run: SampledRun, items: Sequence[Prompt], *,
             critic: bool = False) -> Iterator[float]:
    _start_role(lab, run, "policy")
    reference = lab.freeze_reference(run)
    reward = _stand_in_reward(lab, run)
    if critic:
        lab.model.add_role("value", run.lora, copy_of="reward" if "reward" in lab.model.records else "policy",
                           head="zero")
    yield from (step.seconds for step in train(run, lab.model, items, chat=lab.chat, reward=reward,
                                               reference=reference))


def _stand_in_reward(lab: Lab, run: SampledRun) -> Reward:
    """Reads the answers in a reward role where the run has one; its scores differ, so that there is a pair to learn."""
    if any(source.name == "role" for source in run.reward):
        lab.model.add_role("reward", run.lora, head="random", trainable=False)

    def score(rollouts: Sequence[Rollout]) -> list[Score]:
        if "reward" in lab.model.records:
            score_trees(lab.model, rollout_trees(rollouts), role="reward", micro_tokens=run.micro_tokens)
        return [Score(value=float(i), by="rehearsal") for i in range(len(rollouts))]

    return score


LOOPS: Mapping[str, Callable[..., Iterator[float]]] = {
    "sft": _sft, "reward": _reward, "dpo": _dpo, "ppo": _ppo, "best_of_n": _best_of_n, "online_dpo": _online_dpo}


# -- memory -----------------------------------------------------------------------------------------------------------


class LiveBytes(TorchDispatchMode):
    """Counts, inside its block, the bytes of the tensors on a device that were made in it and are still alive.

    Sees what operations return, not what they need while they run.
    """

    def __init__(self, device: torch.device) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._kind = device.type
        self._sizes: dict[int, int] = {}

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        given = {address for address, *_ in self._storages((args, kwargs))}
        for address, size, owner in self._storages(result):
            if address not in given and address not in self._sizes:
                self._sizes[address] = size
                self.now += size
                weakref.finalize(owner, self._gone, address)
        self.peak = max(self.peak, self.now)
        return result

    def _storages(self, nested: Any) -> list[tuple[int, int, Any]]:
        """Address, bytes and owner of the memory of each tensor. A packed weight is its own: it shows no storage."""
        found: list[tuple[int, int, Any]] = []
        for tensor in tree_leaves(nested):
            if isinstance(tensor, Tensor) and tensor.device.type == self._kind:
                if tensor.is_mkldnn:
                    found.append((id(tensor), tensor.numel() * tensor.element_size(), tensor))
                else:
                    storage = tensor.untyped_storage()
                    found.append((storage._cdata, storage.nbytes(), storage))
        return found

    def _gone(self, address: int) -> None:
        self.now -= self._sizes.pop(address)
