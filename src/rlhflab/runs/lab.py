"""What every run works with: the model, its chat format and somewhere to say how far it is."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from rlhflab.config import Run
from rlhflab.data.chat import ChatFormat
from rlhflab.errors import ConfigError
from rlhflab.model.shared import SharedModel
from rlhflab.progress import Progress


@dataclass(frozen=True, slots=True, kw_only=True)
class Lab:
    """One loaded base model."""

    model: SharedModel
    chat: ChatFormat
    progress: Progress

    @classmethod
    def load(cls, name: str, *, dtype: str = "bfloat16", device: str = "auto", progress: Progress) -> "Lab":
        """The model `name`, ready for roles."""
        model = SharedModel.load(name, dtype=dtype, device=device)
        return cls(model=model, chat=ChatFormat(model.tokenizer), progress=progress)

    def start_role(self, name: str, run: Run, *, head: Literal["none", "zero", "random"] = "none",
                   outputs: int = 1) -> None:
        """A trainable role: a copy of the adapter `run.start`, or a fresh adapter on the base."""
        if run.max_length > self.model.context:
            raise ConfigError(f"max_length: {run.max_length} tokens do not fit the context of {run.model}, which is "
                              f"{self.model.context}")
        if run.start is None:
            self.model.add_role(name, run.lora, head=head, outputs=outputs, seed=run.seed)
        else:
            self.model.load_role(name, Path(run.start), trainable=True, head=head, outputs=outputs, seed=run.seed)

    def freeze_reference(self, run: Run, *, of: str = "policy") -> str | None:
        """The policy as it starts, kept: a frozen copy of its adapter, or the base itself (None)."""
        if run.start is None:
            return None
        self.model.add_role("reference", run.lora, copy_of=of, trainable=False)
        return "reference"

    def drop_roles(self) -> None:
        """Free every role."""
        for role in list(self.model.records):
            self.model.drop_role(role)
