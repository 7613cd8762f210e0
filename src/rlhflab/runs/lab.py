"""What every run works with: the model, its chat format and somewhere to say how far it is."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from rlhflab.config import Run
from rlhflab.data.chat import ChatFormat
from rlhflab.errors import ConfigError
from rlhflab.model.load import native_dtype
from rlhflab.model.shared import HEAD, SharedModel
from rlhflab.progress import Progress

START = "start"
"""Role of the frozen adapter that stacked roles stand on."""


GPU_TOKENS = 16384
"""Tokens in one forward pass on a GPU, where a small one takes as long as its kernels take to be launched."""


def settled(run: Run, device: str) -> Run:
    """`run` with the dtype and the size of micro-batches that suit the device, where it leaves them open."""
    chosen: dict[str, Any] = {"dtype": native_dtype(device)} if run.dtype == "auto" else {}
    if device.startswith("cuda") and "micro_tokens" not in run.model_fields_set:
        chosen["micro_tokens"] = GPU_TOKENS
    return run.model_copy(update=chosen)


@dataclass(frozen=True, slots=True, kw_only=True)
class Lab:
    """One loaded base model."""

    model: SharedModel
    chat: ChatFormat
    progress: Progress

    @classmethod
    def load(cls, name: str, *, dtype: str = "auto", device: str = "auto", quantize: str | None = None,
             progress: Progress) -> "Lab":
        """The model `name`, ready for roles."""
        model = SharedModel.load(name, dtype=dtype, device=device, quantize=quantize)
        return cls(model=model, chat=ChatFormat(model.tokenizer), progress=progress)

    def resolved(self, run: Run) -> Run:
        """`run` with the shape its adapter will have: that of `start`, where the trained role is a copy of it.

        ConfigError where the run asks for another shape, which a copy cannot have.
        """
        if run.start is None or run.stack:
            return run
        shape = self.model.stored_lora(Path(run.start))
        for key in sorted(run.lora.model_fields_set - {"dropout"}):
            asked, found = (sorted(x) if isinstance(x, list) else x
                            for x in (getattr(run.lora, key), getattr(shape, key)))
            if asked != found:
                raise ConfigError(f"lora.{key}: is {asked!r}, but the run starts from a copy of {run.start}, where it "
                                  f"is {found!r}; leave lora.{key} out, or train a fresh adapter on top: stack: true")
        return run.model_copy(update={"lora": shape})

    def start_role(self, name: str, run: Run, *, head: Literal["none", "zero", "random"] = "none",
                   outputs: int = 1) -> None:
        """A trainable role: a fresh adapter on the base, a copy of the adapter `run.start`, or a fresh one on it.

        A role with a head that begins as a copy of a role with a head goes on with that one.
        """
        if run.max_length > self.model.context:
            raise ConfigError(f"max_length: {run.max_length} tokens do not fit the context of {run.model}, which is "
                              f"{self.model.context}")
        if run.start is None:
            self.model.add_role(name, run.lora, head=head, outputs=outputs, seed=run.seed)
        elif run.stack:
            if START not in self.model.records:
                self.model.load_role(START, Path(run.start))
            self.model.add_role(name, run.lora, on=START, head=head, outputs=outputs, seed=run.seed)
        else:
            stored = head != "none" and (Path(run.start) / HEAD).is_file()
            self.model.load_role(name, Path(run.start), trainable=True, head="stored" if stored else head,
                                 outputs=outputs, seed=run.seed)

    def freeze_reference(self, run: Run, *, of: str = "policy", moves: bool = False) -> str | None:
        """The policy as it starts, kept: a frozen copy of its adapter, or what it is stacked on, or the base (None).

        A reference that `moves` is a copy in any case, since what others stand on stays what it is.
        """
        if not moves and (run.start is None or run.stack):
            return START if run.stack and run.start is not None else None
        self.model.add_role("reference", run.lora, copy_of=of, trainable=False)
        return "reference"

    def drop_roles(self) -> None:
        """Free every role."""
        for role in reversed(list(self.model.records)):  # a stacked role before what it stands on
            self.model.drop_role(role)
