"""One frozen base, several LoRA roles. Everything above this file asks for a role by name, as an argument.

Knows PEFT and transformers; knows no loss and no loop. Axes: b rows, t columns, s scored tokens, n answers, d width.
"""

import hashlib
import json
import shutil
import warnings
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from jaxtyping import Float
from peft import PeftModel, get_peft_model_state_dict, set_peft_model_state_dict
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from rlhflab.config import Lora
from rlhflab.core.batch import Batch, OneRow
from rlhflab.core.logprobs import TokenScores, token_scores
from rlhflab.errors import ModelError
from rlhflab.model.adapters import (
    ADAPTER,
    ADAPTER_CONFIG,
    lora_of,
    peft_config,
    read_adapter,
    read_lora,
    scaling,
)
from rlhflab.model.attention import visibility
from rlhflab.model.blocks import FusedBlocks
from rlhflab.model.folded import folded
from rlhflab.model.load import Base, load_base, native_dtype
from rlhflab.model.roles import (
    RoleSwitch,
    added_part,
    concatenate,
    lora_layers,
    merged_weight,
    start_magnitudes,
    take_over,
    take_over_blocks,
)
from rlhflab.registry.sources import lacking

HEAD, RECORD = "head.safetensors", "rlhflab.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class RoleRecord:
    """What is written beside an adapter so that it can be used, and checked, elsewhere."""

    base: str
    base_digest: str
    head: bool
    score_mean: float = 0.0
    score_std: float = 1.0
    """Mean and standard deviation of a reward role's raw scores on SFT samples."""
    member_means: tuple[float, ...] = ()
    member_stds: tuple[float, ...] = ()
    """The same of each member of an ensemble; empty for a single head."""
    length_curve: tuple[tuple[float, ...], ...] = ()
    """Lengths of SFT samples in tokens, then for each head the standardised score that is usual at each of them."""
    temperature: float | None = None
    """T of P(a is preferred to b) = sigmoid((score a - score b) / T), scores standardised, members averaged."""


class SharedModel:
    """Owns the base weights, the adapters, the heads and their flags."""

    def __init__(self, base: Base) -> None:
        self.base = base
        self.tokenizer = base.tokenizer
        self.decoder: Any = base.model.base_model
        self.unembedding: Float[Tensor, "v d"] = base.model.get_output_embeddings().weight
        self.width = base.model.config.hidden_size
        self.context = base.model.config.max_position_embeddings
        """Longest prompt plus answer the base was made for, tokens."""
        self.device = self.unembedding.device
        self.records: dict[str, RoleRecord] = {}
        self._trainable: dict[str, bool] = {}
        self._peft: PeftModel | None = None
        self._heads = nn.ModuleDict()
        self._switch = RoleSwitch()
        self._columns, self._compiled_logits = 0, False
        blocks: Any = self.decoder.layers
        self._layers = len(blocks)
        self._linear_layers = sorted({name.rpartition(".")[2] for name, layer in blocks.named_modules()
                                      if isinstance(layer, nn.Linear)})
        take_over_blocks(blocks, self._switch)
        self._check_unembedding()

    @classmethod
    def load(cls, name: str, *, dtype: str = "auto", device: str = "auto",
             quantize: str | None = None) -> "SharedModel":
        """The base model `name`. ModelError says what is missing."""
        if device == "auto":
            device = "cuda" if torch.cuda.is_available() else "cpu"
        chosen = native_dtype(device) if dtype == "auto" else dtype
        return cls(load_base(name, dtype=getattr(torch, chosen), device=device, quantize=quantize))

    # -- reading the model in a role -------------------------------------------------------------------------------

    def hidden(self, batch: Batch, role: str | None) -> Float[Tensor, "bt d"]:
        """Last hidden states of the flattened batch, after the final norm. `role` None is the base model."""
        if self._columns and not self.trunk_blocks:
            return self._hidden_in_one_row(batch, role)
        with self.playing(role), self._switch.sharing(batch.trunk):
            states = self.decoder(input_ids=batch.tokens, attention_mask=visibility(batch.branch),
                                  position_ids=batch.position, use_cache=False).last_hidden_state
        flat: Tensor = states.flatten(0, 1)
        return flat

    def _hidden_in_one_row(self, batch: Batch, role: str | None) -> Float[Tensor, "bt d"]:
        """`hidden` without reading padding, whose states are 0."""
        row = OneRow.of(batch, multiple=self._columns)
        with self.playing(role):
            states: Tensor = self.decoder(input_ids=row.tokens, attention_mask=visibility(row.branch, row.document),
                                          position_ids=row.position, use_cache=False).last_hidden_state[0]
        return states.new_zeros(batch.tokens.numel(), self.width).index_copy(0, row.place, states[:len(row.place)])

    def logprobs(self, batch: Batch, role: str | None, *, temperature: float = 1.0) -> TokenScores:
        """Log-prob and entropy of each scored token under softmax(logits / temperature)."""
        hidden = self.hidden(batch, role)[batch.source]
        return token_scores(hidden, self.unembedding, batch.target, temperature=temperature,
                            compiled=self._compiled_logits)

    def score(self, batch: Batch, role: str) -> Float[Tensor, " n"]:
        """Raw output of the role's head at each answer's last token, fp32; of several outputs, their mean."""
        return self.outputs(batch, role).mean(-1)

    def outputs(self, batch: Batch, role: str) -> Float[Tensor, "n k"]:
        """Each raw output of the role's head at each answer's last token, fp32: the members of an ensemble."""
        return self.outputs_and_states(batch, role)[0]

    def outputs_and_states(self, batch: Batch, role: str) -> tuple[Float[Tensor, "n k"], Float[Tensor, "n d"]]:
        """Raw outputs of the role's head, and the states they are read from, by one forward pass; fp32."""
        states = self.hidden(batch, role)[batch.last].float()
        return self._read_head(states, role), states

    def values(self, batch: Batch, role: str) -> Float[Tensor, " s"]:
        """Output of the role's scalar head in the state before each scored token, fp32."""
        return self._read_head(self.hidden(batch, role)[batch.source], role).squeeze(-1)

    def _read_head(self, hidden: Float[Tensor, "m d"], role: str) -> Float[Tensor, "m k"]:
        if role not in self._heads:
            raise ModelError(f"role {role} has no head, so it cannot score")
        head: nn.Module = self._heads[role]
        read: Tensor = head(hidden.float())
        return read

    @contextmanager
    def writing(self, role: str | None, *, fold: bool = False) -> Iterator[None]:
        """Context for the rollout engine, which drives the decoder itself: `role` plays and nothing trains.

        `fold` adds its adapter to a scratch copy of the weights, unless it is stacked or the base is in 4 bits.
        """
        with torch.inference_mode(), self.playing(role), self._switch.frozen(), folded(
                self.decoder, self._switch.adapters if fold and not self.base.quantized else ()):
            yield

    def playing(self, role: str | None) -> AbstractContextManager[None]:
        """Context in which the decoder plays `role`."""
        if role is not None and role not in self.records:
            raise ModelError(f"no role {role!r}; there are {', '.join(self.records) or 'none'}")
        return self._switch.playing(role)

    def recompute_activations(self, recompute: bool) -> None:
        """Drop activations in the forward pass and recompute them in the backward pass."""
        self._switch.recompute = recompute

    def read_fast(self, *, columns: int = 0, blocks: Literal["own", "joint", "compiled"] = "own",
                  logits: Literal["own", "compiled"] = "own") -> None:
        """Other ways to the same numbers, but for rounding, that a GPU may be faster by; with no argument, none.

        `columns`: a batch is read as one row without padding between its trees, of a multiple of so many columns.
        `blocks`: Llama's kind by `rlhflab.model.blocks`, compiled or as it is. `logits`: what is made of them compiled.
        """
        self._columns = columns
        self._switch.fused = None if blocks == "own" else FusedBlocks(compiled=blocks == "compiled")
        self._compiled_logits = logits == "compiled"

    # -- roles -----------------------------------------------------------------------------------------------------

    def add_role(self, name: str, lora: Lora, *, copy_of: str | None = None, on: str | None = None,
                 trainable: bool = True, head: Literal["none", "zero", "random"] = "none", outputs: int = 1,
                 seed: int = 0) -> None:
        """A new role: a fresh adapter (its product is 0, so it starts as the base) or a copy of another role's.

        `on` names a role the fresh adapter is stacked on: it starts as that role, and trains only its own part.
        A `random` head is drawn from N(0, 1/(d+1)) (Stiennon et al. 2020), a `zero` head says 0 of everything. It has
        `outputs` numbers to say, k in the signatures.
        """
        below = () if on is None else self._switch.stacks[on]
        if copy_of is not None:
            lora, below = self.lora_of(copy_of), self._switch.stacks[copy_of][:-1]
        if not trainable:  # what is compared with is not drawn anew every time
            lora = lora.model_copy(update={"dropout": 0.0})
        if below and (lora.dora or any(self.lora_of(part).dora for part in below)):
            raise ModelError(f"role {name}: a DoRA adapter cannot be stacked, since it scales the whole layer and does "
                             "not add up with another; use LoRA or rsLoRA for both")
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self._add_adapter(name, lora)
            if head != "none":
                linear = nn.Linear(self.width, outputs, bias=False, device=self.device)
                nn.init.normal_(linear.weight, std=0.0 if head == "zero" else (self.width + 1) ** -0.5)
                self._heads[name] = linear
        if copy_of is not None:
            self._load_adapter(name, {key: tensor.clone() for key, tensor in self.adapter(copy_of).items()})
        self.records[name] = RoleRecord(base=self.base.name, base_digest=self.base.digest, head=head != "none")
        self._trainable[name] = trainable
        self._switch.stacks[name] = (*below, name)
        self._switch.first_block[name] = self._layers - (lora.last_layers or self._layers)
        self._set_flags()

    def drop_role(self, name: str) -> None:
        """Forget a role and free its tensors. ModelError while another role stands on it."""
        assert self._peft is not None
        above = [role for role, stack in self._switch.stacks.items() if name in stack[:-1]]
        if above:
            raise ModelError(f"role {name} cannot be dropped: {above[0]} stands on it")
        with warnings.catch_warnings():  # PEFT's own idea of an active adapter is not used here
            warnings.simplefilter("ignore", UserWarning)
            self._peft.delete_adapter(name)
        if name in self._heads:
            del self._heads[name]
        del self.records[name], self._trainable[name], self._switch.stacks[name], self._switch.first_block[name]
        self._set_flags()

    @torch.no_grad()
    def move_role(self, name: str, *, towards: str, mix: float) -> None:
        """Each LoRA factor of `name` becomes mix x that of `towards` + (1 - mix) x its own.

        Factors are averaged, not their products: the mean of two products has up to twice the rank. Both are the same
        where the roles share one of the two factors, and close as long as they have not grown far apart.
        """
        for own, other in zip(self.parameters(name), self.parameters(towards), strict=True):
            own.lerp_(other, mix)

    def adapter(self, role: str) -> dict[str, Tensor]:
        """The role's own LoRA tensors, without those it stands on, under the names PEFT stores them by."""
        assert self._peft is not None
        state: dict[str, Tensor] = get_peft_model_state_dict(self._peft, adapter_name=role, save_embedding_layers=False)
        return state

    def parameters(self, role: str) -> list[nn.Parameter]:
        """The role's own adapter weights, fp32, without its head and without what it stands on."""
        assert self._peft is not None
        return [p for name, p in self._peft.named_parameters() if f".{role}." in name and "lora_" in name]

    def head_parameters(self, role: str) -> list[nn.Parameter]:
        """The weights of the role's head, one matrix (k, d); none where it has no head."""
        return list(self._heads[role].parameters()) if role in self._heads else []

    def set_head(self, role: str, weight: Float[Tensor, "k d"]) -> None:
        """Give the role the head with this weight, in place of the one it has."""
        linear = nn.Linear(self.width, len(weight), bias=False, device=self.device)
        linear.load_state_dict({"weight": weight.float()})
        self._heads[role] = linear
        self._set_flags()

    def lora_of(self, role: str) -> Lora:
        """Shape and scale of the role's own adapter."""
        assert self._peft is not None
        return lora_of(self._peft.peft_config[role].to_dict(), layers=self._layers, where=f"role {role}")

    @property
    def trunk_blocks(self) -> int:
        """Blocks below the first that anything trains in, whose states all roles of a run may share."""
        return self._switch.depth

    def stacked(self, role: str) -> bool:
        """Whether the role stands on another one."""
        return len(self._switch.stacks[role]) > 1

    def merged_weights(self, role: str) -> dict[str, Tensor]:
        """Weights of the adapted layers with the role folded in, by their name in the base; new tensors.

        The base in memory is not written. ModelError where that cannot be exact enough: a base in 4 bits.
        """
        if self.stacked(role):
            raise ModelError(f"role {role} is stacked; save it, and merge the one adapter that was saved")
        if self.base.quantized:
            raise ModelError(f"{self.base.name} is loaded in 4 bits, where nothing can be merged; load it in float32")
        return {f"{name}.weight": merged_weight(layer, role)
                for name, layer in lora_layers(self.base.model, role).items()}

    def _add_adapter(self, name: str, lora: Lora) -> None:
        if name in self.records:
            raise ModelError(f"role {name} exists already")
        config = peft_config(lora, base=self.base.name, linear=self._linear_layers, layers=self._layers)
        try:
            if self._peft is None:
                with warnings.catch_warnings():  # PEFT asks transformers for a property under its old name
                    warnings.simplefilter("ignore", FutureWarning)
                    self._peft = PeftModel(self.base.model, config, adapter_name=name)
            else:
                self._peft.add_adapter(name, config)
        except ValueError as error:  # no layer has such a name
            raise ModelError(f"lora: {self.base.name} cannot be adapted so: {' '.join(str(error).split())}") from error
        take_over(self._peft, self._switch)
        start_magnitudes(self._peft, name)

    def _load_adapter(self, name: str, tensors: dict[str, Tensor]) -> None:
        assert self._peft is not None
        missing = sorted(self.adapter(name).keys() - tensors.keys())
        if missing:
            raise ModelError(f"role {name}: tensor {missing[0]} is missing from its file")
        problems: Any = set_peft_model_state_dict(self._peft, tensors, adapter_name=name)
        if problems.unexpected_keys:
            raise ModelError(f"role {name}: tensor {problems.unexpected_keys[0]} fits no layer of {self.base.name}")

    @contextmanager
    def as_one(self, role: str) -> Iterator[str]:
        """Name of a role whose own adapter is all of `role`: a passing one where `role` is stacked."""
        parts = self._switch.stacks[role]
        if len(parts) == 1:
            yield role
            return
        assert self._peft is not None
        layers = [name for part in parts for name in lora_layers(self._peft, part)]
        rank = sum(self.lora_of(part).rank for part in parts)
        first = min(int(name.rpartition("layers.")[2].partition(".")[0]) for name in layers)
        whole = f"{role}-as-one"
        self.add_role(whole, Lora(rank=rank, alpha=rank, targets=sorted({name.rpartition(".")[2] for name in layers}),
                                  last_layers=self._layers - first if first else None), trainable=False)
        try:
            concatenate(self._peft, parts, whole)
            yield whole
        finally:
            self.drop_role(whole)

    def _set_flags(self) -> None:
        """requires_grad is a property of the role, set when roles change, never by using one."""
        for role, trainable in self._trainable.items():
            for parameter in [*self.parameters(role), *self.head_parameters(role)]:
                parameter.requires_grad_(trainable)
        self._switch.depth = min((self._switch.first_block[role] for role, trainable in self._trainable.items()
                                  if trainable), default=0)

    # -- files -----------------------------------------------------------------------------------------------------

    def save_role(self, role: str, folder: Path, *, alone: bool = False) -> None:
        """Write the role in PEFT's format, with its head and record beside it, into a folder that must not exist.

        A stacked role is written as one adapter (servers take one), or, `alone`, without what it stands on, so that
        `restore_role` can put it back.
        """
        unfinished = folder.with_name(f".{folder.name}.unfinished")
        shutil.rmtree(unfinished, ignore_errors=True)  # left by a run that was killed here
        unfinished.mkdir(parents=True)
        with nullcontext(role) if alone else self.as_one(role) as one:
            save_file({key: tensor.contiguous() for key, tensor in self.adapter(one).items()}, unfinished / ADAPTER)
            config = peft_config(self.lora_of(one), base=self.base.name, linear=self._linear_layers,
                                 layers=self._layers).to_dict()
        if not isinstance(config["target_modules"], str):
            # PEFT keeps the names as a set, whose order changes from process to process.
            config["target_modules"] = sorted(config["target_modules"])
        config["inference_mode"] = True
        (unfinished / ADAPTER_CONFIG).write_text(json.dumps(config, indent=2, sort_keys=True))
        if role in self._heads:
            save_file({"weight": self.head_parameters(role)[0].detach().contiguous()}, unfinished / HEAD)
        record = self.records[role]
        (unfinished / RECORD).write_text(json.dumps({k: getattr(record, k) for k in record.__slots__}, indent=2))
        unfinished.rename(folder)

    def load_role(self, name: str, folder: Path, *, trainable: bool = False,
                  head: Literal["none", "stored", "zero", "random"] = "none", outputs: int = 1,
                  seed: int = 0, share: bool = False) -> None:
        """A role from a folder in PEFT's format, whoever wrote it. ModelError if a piece is missing or does not fit.

        `share`: where it was saved from a stack on a frozen role that is here, stack it on that one again.
        """
        lora, tensors = self.stored_adapter(folder)
        if head == "stored" and not (folder / HEAD).is_file():
            raise ModelError(f"{folder}: has no {HEAD}; a reward role needs its head")
        lora, tensors, below = self._unstacked(lora, tensors) if share else (lora, tensors, None)
        self.add_role(name, lora, on=below, trainable=trainable, head="zero" if head == "stored" else head,
                      outputs=outputs, seed=seed)
        try:
            self._load_adapter(name, tensors)
            if head == "stored":
                self.set_head(name, load_file(folder / HEAD, device=str(self.device))["weight"])
                self.records[name] = read_record(folder) or self.records[name]
        except Exception:
            self.drop_role(name)
            raise

    def stored_adapter(self, folder: Path) -> tuple[Lora, dict[str, Tensor]]:
        """(shape, tensors) of the adapter in a folder. ModelError where there is none, or one of another base."""
        self._refuse_folder(folder)
        lora, tensors = read_adapter(folder, layers=self._layers, device=str(self.device))
        return self._named(lora), tensors

    def stored_lora(self, folder: Path) -> Lora:
        """Shape and scale of the adapter in a folder. ModelError where there is none, or one of another base."""
        self._refuse_folder(folder)
        return self._named(read_lora(folder, layers=self._layers))

    def _refuse_folder(self, folder: Path) -> None:
        """ModelError where it holds no adapter, or one of another base."""
        if (lacks := lacking(folder)) is not None:
            raise ModelError(lacks)
        record = read_record(folder)
        if record is not None and record.base_digest != self.base.digest:
            raise ModelError(f"{folder}: was trained on base weights {record.base} ({record.base_digest[:12]}), "
                             f"not on {self.base.name} ({self.base.digest[:12]})")

    def _named(self, lora: Lora) -> Lora:
        """The same shape, by the word all-linear where it is on every linear layer."""
        everywhere = lora.targets == self._linear_layers
        return lora.model_copy(update={"targets": "all-linear"}) if everywhere else lora

    def _unstacked(self, lora: Lora, tensors: dict[str, Tensor]) -> tuple[Lora, dict[str, Tensor], str | None]:
        """(shape, tensors, what to stack it on) of an adapter: its added part and a frozen role it was stacked on, if
        that is here, else all of it and None.
        """
        for below, trainable in self._trainable.items():
            shape = self.lora_of(below)
            if trainable or self.stacked(below) or lora.dora or shape.dora or shape.rank >= lora.rank:
                continue
            above = added_part(tensors, scaling(lora), self.adapter(below), scaling(shape))
            places = {(int(name.rpartition(".layers.")[2].partition(".")[0]), name.rsplit(".", 3)[1]) for name in above}
            blocks, names = sorted({block for block, _ in places}), sorted({name for _, name in places})
            rank = lora.rank - shape.rank
            if places and len(places) == len(blocks) * len(names) and blocks == list(range(blocks[0], self._layers)):
                own = Lora(rank=rank, alpha=scaling(lora) * rank, targets=names,
                           last_layers=len(blocks) if blocks[0] else None)
                return own, above, below
        return lora, tensors, None

    def restore_role(self, role: str, folder: Path) -> None:
        """Weights and record of an existing role from a folder `save_role` wrote; its parameters stay the same ones."""
        self._load_adapter(role, load_file(folder / ADAPTER, device=str(self.device)))
        if role in self._heads:
            self._heads[role].load_state_dict(load_file(folder / HEAD, device=str(self.device)))
        self.records[role] = read_record(folder) or self.records[role]

    def _check_unembedding(self) -> None:
        """Some architectures scale or cap their logits; log-probs computed here would silently be others."""
        ids = torch.arange(8, device=self.device)[None]
        with torch.no_grad():
            hidden = self.decoder(input_ids=ids, use_cache=False).last_hidden_state
            ours = nn.functional.linear(hidden, self.unembedding).float()
            theirs = self.base.model(input_ids=ids, use_cache=False).logits.float()
        if not torch.allclose(ours, theirs, rtol=1e-2, atol=1e-2):
            raise ModelError(f"{self.base.name}: its logits are not hidden states times the output matrix "
                             "(scaled or capped logits); such models are not supported")


def read_record(folder: Path) -> RoleRecord | None:
    """The record beside an adapter, None where there is none. ModelError if it cannot be read."""
    path = folder / RECORD
    if not path.is_file():
        return None
    try:
        return RoleRecord(**{key: _as_tuple(value) for key, value in json.loads(path.read_text()).items()})
    except (TypeError, ValueError) as error:
        raise ModelError(f"{path}: is not a role record: {error}") from error


def adapter_digest(folder: Path) -> str:
    """sha256 of an adapter's weights."""
    with (folder / ADAPTER).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _as_tuple(value: Any) -> Any:
    """JSON's lists as the tuples they were, to any depth."""
    return tuple(_as_tuple(inner) for inner in value) if isinstance(value, list) else value
