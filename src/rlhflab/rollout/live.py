"""Answers written as requests come in: a request joins the running batch between two steps, each row with its own
adapters, temperature, seed and length, and every token is handed on as soon as it is drawn.

The plain sampler of training is `engine.generate`, which knows all its prompts beforehand. Tokens only: no text, no
names, no network. Axes: r rows, v vocabulary, d width.
"""

import threading
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Literal, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor
from transformers.cache_utils import DynamicCache

from rlhflab.errors import RunError
from rlhflab.model.decoding import Slots, attending
from rlhflab.model.folded import product
from rlhflab.model.mixing import Amounts, Mixer
from rlhflab.model.shared import SharedModel
from rlhflab.rollout.draw import draw, nucleus, uniforms

PREFILL = 2048
"""Prompt tokens, with padding, that are read at one time while others wait for their next token."""
WIDTH_STEP, COLUMN_STEP = 32, 32
"""Columns of a prefill and of a step are multiples of these: a product of a new shape is compiled first, for ms."""
Finish = Literal["stop", "length", "cancelled", "failed"]


class Drawn(NamedTuple):
    """One token of an answer."""

    token: int
    logprob: float | None
    """Under softmax(logits), whatever the temperature; None where nobody asked."""
    likeliest: tuple[tuple[int, float], ...]
    """The likeliest tokens and their log-probs, as many as were asked for."""


@dataclass(eq=False, slots=True, kw_only=True)
class LiveAnswer:
    """An answer that is wanted, and as far as it is written."""

    prompt: tuple[int, ...]
    amounts: Amounts
    """Adapters on top of the base; answers that share the mapping and the prompt are read once."""
    limit: int
    """Most tokens."""
    take: Callable[[Drawn], bool]
    """Told of each token, the end token left out; False ends the answer. Called in the thread that writes."""
    end: Callable[[Finish, int], None]
    """Told once, after the last token, how it ended and how many tokens it has, with the end token."""
    seed: int | None
    """None takes the most likely token every time."""
    temperature: float = 1.0
    top_p: float = 1.0
    likeliest: int | None = None
    """How many likeliest tokens are told with each; None for no log-probs at all."""
    cancelled: bool = False
    """Set by whoever wants no more of it."""
    written: int = 0
    last: int = 0
    finish: Finish | None = None
    """Known once nothing more will be written."""
    ended: bool = False
    """Whether `end` was told."""
    uniform: list[float] = field(default_factory=list)

    @property
    def position(self) -> int:
        """Where the last token drawn will stand."""
        return len(self.prompt) + self.written - 1


class QueueFull(RunError):
    """More answers wait than may; nothing was taken."""


class LiveBatch:
    """Owns the slots and the queue. `run` writes, in a thread of its own; `submit` and `close` are for the others."""

    def __init__(self, model: SharedModel, *, stop_ids: Sequence[int], rows: int = 16, columns: int = 2048,
                 queue: int = 64) -> None:
        """`columns`: tokens of the longest prompt with its answer. `queue`: answers that may wait for a row."""
        self.model, self.stop_ids = model, frozenset(stop_ids)
        self.rows, self.columns, self.queue = rows, columns, queue
        self.mixer = Mixer(model.decoder)
        self.live: list[LiveAnswer] = []
        self.slots: Slots | None = None
        self.hidden = torch.zeros(rows, model.width, dtype=model.unembedding.dtype, device=model.device)
        self.token, self.position = torch.zeros(2, rows, dtype=torch.long, device=model.device)
        self._waiting: deque[LiveAnswer] = deque()
        self._changed = threading.Condition()
        self._closing = False
        self._unembed: Callable[[Tensor], Tensor] = product(model.unembedding)

    # -- for other threads -----------------------------------------------------------------------------------------

    def submit(self, answers: Sequence[LiveAnswer]) -> None:
        """Let all of these be written, or QueueFull."""
        with self._changed:
            if self._closing:
                raise RunError("the server is going down")
            if len(self._waiting) + len(answers) > self.queue:
                raise QueueFull(f"{len(self._waiting)} answers are waiting and {len(answers)} more were asked for; at "
                                f"most {self.queue} may wait, so ask again later")
            self._waiting.extend(answers)
            self._changed.notify_all()

    def close(self) -> None:
        """Let `run` come to its end; what is not written by then has failed."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()

    # -- in the thread that writes ---------------------------------------------------------------------------------

    def run(self, report: Callable[[Exception], None]) -> None:
        """Write until `close`. A step that fails ends the answers in it and is told to `report`; then it goes on."""
        try:
            with self.model.writing(None), attending(self.model.decoder), self.mixer.mixing():
                while self._wait():
                    try:
                        self._step()
                    except Exception as error:  # whatever it is, those who ask next are to be answered
                        report(error)
                        self._finish(self.live, "failed")
                        self.live, self.slots = [], None
        finally:
            self.close()  # nobody is to wait for a thread that has ended
            self._finish([*self.live, *self._waiting], "failed")

    def _wait(self) -> bool:
        """Until there is something to write: True; or nothing ever again: False."""
        with self._changed:
            while not (self._closing or self._waiting or self.live):
                self._changed.wait()
            return not self._closing

    @staticmethod
    def _finish(answers: Sequence[LiveAnswer], otherwise: Finish) -> None:
        """Tell each of them how it ended; `otherwise` where it had not."""
        for answer in answers:
            if not answer.ended:
                answer.ended, answer.finish = True, answer.finish or otherwise
                answer.end(answer.finish, answer.written)

    def _step(self) -> None:
        self._enter()
        if self.live:
            self._draw()
            self._leave()
        if self.live:
            self._decode()

    def _enter(self) -> None:
        """Read the prompts of waiting answers, as many as there are free rows, or fit."""
        with self._changed:
            gone = [answer for answer in self._waiting if answer.cancelled]
            self._waiting = deque(answer for answer in self._waiting if not answer.cancelled)
            entering = self._next(self.rows - len(self.live))
            for _ in entering:
                self._waiting.popleft()
        self._finish(gone, "cancelled")
        if entering:
            self.live += entering  # before the prefill, so that a failure is theirs too
            self._prefill(entering, at=len(self.live) - len(entering))

    def _next(self, free: int) -> list[LiveAnswer]:
        chosen: list[LiveAnswer] = []
        width, prompts = 0, set[tuple[int, ...]]()
        for answer in islice(self._waiting, free):
            width, prompts = max(width, len(answer.prompt)), prompts | {answer.prompt}
            if chosen and width * len(prompts) > PREFILL:
                break
            chosen.append(answer)
        return chosen

    def _prefill(self, entering: Sequence[LiveAnswer], *, at: int) -> None:
        """Fill the slots from `at` on."""
        place: dict[tuple[tuple[int, ...], int], int] = {}
        chosen = [place.setdefault((answer.prompt, id(answer.amounts)), len(place)) for answer in entering]
        first = [entering[chosen.index(i)] for i in range(len(place))]
        width = _up(max(len(answer.prompt) for answer in first), WIDTH_STEP)
        tokens = torch.tensor([[*answer.prompt, *[0] * (width - len(answer.prompt))] for answer in first],
                              device=self.model.device)
        column = torch.arange(width, device=self.model.device)
        # Padding is on the right, so the causal mask alone keeps it out of every real token's sight.
        mask = (column[None, :] <= column[:, None]).expand(len(first), 1, width, width)
        cache = DynamicCache()
        self.mixer.aim_at([answer.amounts for answer in first])
        states = self.model.decoder(input_ids=tokens, attention_mask=mask, position_ids=column[None].expand_as(tokens),
                                    past_key_values=cache, use_cache=True).last_hidden_state
        if self.slots is None:
            self.slots = Slots(cache, slots=self.rows, columns=self.columns)
        index = torch.tensor(chosen, device=self.model.device)
        self.slots.branch(cache, index, at=at)
        ends = torch.tensor([len(answer.prompt) - 1 for answer in first], device=self.model.device)
        self.hidden[at:at + len(entering)] = states[torch.arange(len(first)), ends][index]
        for answer in entering:
            answer.uniform = [] if answer.seed is None else uniforms(answer.seed, answer.limit)

    def _draw(self) -> None:
        """The next token of every live answer."""
        logits = self._unembed(self.hidden[:len(self.live)]).float()
        finite = logits.isfinite().all(-1).tolist()
        tokens = self._tokens(logits)
        for row, answer in enumerate(self.live):
            if not finite[row]:
                self._give_up(row)
                continue
            answer.last = tokens[row]
            answer.written += 1
            if answer.last in self.stop_ids:
                answer.finish = "stop"
            elif not answer.cancelled:
                going_on = answer.take(_told(answer, logits[row]))
                answer.finish = "stop" if not going_on else "length" if answer.written == answer.limit else None

    def _tokens(self, logits: Float[Tensor, "r v"]) -> list[int]:
        temperature = torch.tensor([answer.temperature if answer.seed is not None else 1.0 for answer in self.live])
        scaled = logits / temperature.to(logits.device)[:, None]
        for row, answer in enumerate(self.live):
            if answer.top_p < 1 and answer.seed is not None:
                scaled[row] = nucleus(scaled[row], answer.top_p)
        uniform = torch.tensor([0.0 if answer.seed is None else answer.uniform[answer.written] for answer in self.live])
        token, _ = draw(scaled, uniform.to(logits.device), temperature=1.0)
        greedy = torch.tensor([answer.seed is None for answer in self.live], device=logits.device)
        drawn: list[int] = torch.where(greedy, logits.argmax(-1), token).tolist()
        return drawn

    def _give_up(self, row: int) -> None:
        """End an answer whose numbers overflowed. Its slot is wiped: 0 x NaN would be NaN for the next one in it."""
        assert self.slots is not None
        self.slots.values[:, row].zero_()
        self.live[row].finish = "failed"

    def _leave(self) -> None:
        """Drop the finished answers; the last live ones move into their slots."""
        assert self.slots is not None
        over = [answer for answer in self.live if answer.finish is not None or answer.cancelled]
        kept = len(self.live) - len(over)
        movers = (row for row in range(kept, len(self.live)) if self.live[row] not in over)
        for free in [row for row in range(kept) if self.live[row] in over]:
            mover = next(movers)
            self.slots.move(mover, free, columns=self.live[mover].position)
            self.live[free] = self.live[mover]
        del self.live[kept:]
        self._finish(over, "cancelled")

    def _decode(self) -> None:
        """Let every live row read its last token."""
        assert self.slots is not None
        live = len(self.live)
        rows = min(self.rows, 1 << (live - 1).bit_length())  # few shapes, and one row alone costs one row
        self.token[:live] = torch.tensor([answer.last for answer in self.live])
        self.position[:live] = torch.tensor([answer.position for answer in self.live])
        self.position[live:rows] = 0
        columns = min(self.columns, _up(int(self.position[:rows].max()) + 1, COLUMN_STEP))
        position = self.position[:rows]
        visible = self.slots.aim_at(position, columns=columns)
        self.mixer.aim_at([answer.amounts for answer in self.live] + [{}] * (rows - live))
        self.hidden[:rows] = self.model.decoder(
            input_ids=self.token[:rows, None], attention_mask=visible, position_ids=position[:, None],
            past_key_values=self.slots, use_cache=True).last_hidden_state[:, 0]


def _told(answer: LiveAnswer, logits: Float[Tensor, " v"]) -> Drawn:
    if answer.likeliest is None:
        return Drawn(answer.last, None, ())
    logprobs = logits.log_softmax(-1)
    best = logprobs.topk(answer.likeliest)
    return Drawn(answer.last, float(logprobs[answer.last]),
                 tuple(zip(best.indices.tolist(), best.values.tolist(), strict=True)))


def _up(n: int, step: int) -> int:
    return -(-n // step) * step
