"""What is asked of a server of answers, what comes back piece by piece, and why it may be refused. No torch here."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple, Protocol

from rlhflab.data.types import Message
from rlhflab.errors import LabError

STRONGEST = 1.5
"""Most of an adapter's change; beyond it nothing was ever trained."""
Asked = tuple[Message, ...] | tuple[int, ...] | str
"""Turns to answer, or token ids or text to go on with."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What somebody wants written."""

    model: str
    prompts: tuple[Asked, ...]
    n: int = 1
    """Answers to each prompt."""
    max_tokens: int | None = None
    """None: as many as the server lets."""
    temperature: float = 1.0
    """0 takes the likeliest token every time."""
    top_p: float = 1.0
    seed: int | None = None
    """None draws one."""
    stop: tuple[str, ...] = ()
    top_logprobs: int | None = None
    """Likeliest tokens that are told with each token; None for no log-probs at all."""
    strength: float = 1.0
    """How much of the model's change from its parent."""
    mixture: Mapping[str, float] = field(default_factory=dict)
    """How much of the change of each of these models, on top of their common parent. Empty for none."""


class TokenSaid(NamedTuple):
    """A token as text, with its log-prob."""

    text: str
    logprob: float
    likeliest: tuple[tuple[str, float], ...]


class Piece(NamedTuple):
    """The next words of an answer."""

    choice: int
    """Which of the answers, by prompt and then by number."""
    text: str
    tokens: tuple[TokenSaid, ...] = ()
    """Where log-probs were asked for."""
    finish: Literal["stop", "length", "cancelled", "failed"] | None = None
    """Of the last piece."""
    written: int = 0
    """Of the last piece: tokens of the answer, with the end token."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ServedModel:
    """A name that can be asked."""

    name: str
    kind: Literal["base", "adapter", "active"]
    digest: str
    """Of the adapter, or of the base's weights."""
    parent: str | None
    """Digest of what its change is measured from; None for the base, and for what was made of several adapters."""
    parent_name: str | None
    """None where it has no name that can be asked."""
    parent_recorded: bool
    """Whether somebody wrote down what the adapter started from; else the base is taken for its parent."""


class Writing(Protocol):
    """A request under way."""

    @property
    def choices(self) -> int:
        """Answers that will come."""

    @property
    def prompt_tokens(self) -> int:
        """Of all prompts."""

    @property
    def fingerprint(self) -> str:
        """Which weights write."""

    def cancel(self) -> None:
        """Want no more of it; its rows are free after the next step."""


class Service(Protocol):
    """What answers. Both methods may wait for files, so they are called outside of an event loop."""

    def models(self) -> Sequence[ServedModel]:
        """Every name that can be asked. Refused where the registry cannot be read."""

    def write(self, request: Request, deliver: Callable[[Piece], None]) -> Writing:
        """Start to write. `deliver` is called from another thread. Refused where that cannot be, and nothing is
        delivered.
        """


class Refused(LabError):
    """A request that cannot be answered as it is."""

    def __init__(self, sentence: str, *, status: int = 400, param: str | None = None, code: str | None = None,
                 retry_after: int | None = None) -> None:
        super().__init__(sentence)
        self.status, self.param, self.code, self.retry_after = status, param, code, retry_after
