"""Answers written as requests come in: a request joins the running batch between two steps, each row with its own
adapters, temperature, seed and length, and every token is handed on as soon as it is drawn.

Between two steps no more than `PIECE` tokens of short prompts and as many of a long one are read: a long prompt is read
in pieces, while other answers go on, and shorter ones that came later overtake it. The plain sampler of training is
`engine.generate`, which knows all its prompts beforehand. Tokens only: no text, no names, no network. Axes: r rows, v
vocabulary, d width.
"""

import threading
from collections import deque
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from rlhflab.errors import RunError
from rlhflab.model.decoding import attending
from rlhflab.model.folded import product
from rlhflab.model.mixing import Amounts, Mixer
from rlhflab.model.shared import SharedModel
from rlhflab.rollout.draw import draw, nucleus, uniforms
from rlhflab.rollout.rows import Reading, Rows, round_up

PIECE, GPU_PIECE = 256, 2048
"""Prompt tokens, with padding, that are read at one time while others wait for their next token."""
WIDTH_STEP, COLUMN_STEP = 32, 32
"""Columns of a prefill and of a step are multiples of these."""
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
    """Adapters on top of the base; answers with equal amounts and prompts are read once."""
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

    @property
    def reads(self) -> Hashable:
        """Equal for answers whose prompt is read once for all of them."""
        return self.prompt, frozenset(self.amounts.items())


class _Group:
    """Answers whose prompts are read together; those with equal prompts and amounts share a read."""

    def __init__(self, answers: Sequence[LiveAnswer]) -> None:
        place: dict[Hashable, int] = {}
        self.answers = [(place.setdefault(answer.reads, len(place)), answer) for answer in answers]
        first = dict(reversed(self.answers))
        self.amounts = [first[i].amounts for i in range(len(place))]
        self.prompts = [first[i].prompt for i in range(len(place))]
        self.reading: Reading | None = None

    def go_on(self, model: SharedModel, columns: int) -> Reading:
        """Read the next `columns` tokens of each prompt."""
        if self.reading is None:
            width = round_up(max(map(len, self.prompts)), WIDTH_STEP)
            self.reading = Reading(model, self.prompts, width=width)
        self.reading.go_on(columns)
        return self.reading


class QueueFull(RunError):
    """More answers wait than may; nothing was taken."""


class LiveBatch:
    """Owns the slots and the queue. `run` writes, in a thread of its own; `submit` and `close` are for the others."""

    def __init__(self, model: SharedModel, *, stop_ids: Sequence[int], rows: int = 16, columns: int = 2048,
                 queue: int = 64, piece: int | None = None) -> None:
        """`columns`: tokens of the longest prompt with its answer. `queue`: answers that may wait for a row.

        `piece`: prompt tokens read at one time, a multiple of 32.
        """
        self.model, self.stop_ids, self.queue = model, frozenset(stop_ids), queue
        self.piece = piece or (GPU_PIECE if model.device.type == "cuda" else PIECE)
        self.rows = Rows(model, most=rows, columns=columns)
        self.mixer = Mixer(model.decoder)
        self.live: list[LiveAnswer] = []
        self.long: _Group | None = None
        """Answers to one long prompt, of which a piece is read between two steps. Each has a row that waits for it."""
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

    @property
    def idle(self) -> bool:
        """Whether nothing is to be written."""
        with self._changed:
            return not (self._waiting or self.long or self.live)

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
                        self._finish(self._entered, "failed")
                        self.live, self.long, self.rows.slots = [], None, None
        finally:
            self.close()  # nobody is to wait for a thread that has ended
            self._finish([*self._entered, *self._waiting], "failed")

    @property
    def _entered(self) -> list[LiveAnswer]:
        """Answers that have a row."""
        return [*self.live, *(answer for _, answer in (self.long.answers if self.long else ()))]

    def _wait(self) -> bool:
        """Until there is something to write: True; or nothing ever again: False."""
        with self._changed:
            while not (self._closing or self._waiting or self.long or self.live):
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
            self._finish(self.rows.leave(self.live, lambda answer: answer.finish is not None or answer.cancelled),
                         "cancelled")
        if self.live:
            self._decode()

    def _enter(self) -> None:
        """Read a piece of the long prompt, and of the short ones that wait as many as there are rows, or fit."""
        with self._changed:
            gone = [answer for answer in self._waiting if answer.cancelled]
            self._waiting = deque(answer for answer in self._waiting if not answer.cancelled)
            short, long = self._next(self.rows.most - len(self._entered))
            self._waiting = deque(answer for answer in self._waiting if answer not in (*short, *long))
            at = len(self.live)
            self.live += short  # before they are read, so that a failure is theirs too
            self.long = _Group(long) if long else self.long
        self._finish(gone, "cancelled")
        if short:
            self._read(_Group(short), at=at)
        if self.long:
            self._read_on(self.long)

    def _next(self, free: int) -> tuple[list[LiveAnswer], list[LiveAnswer]]:
        """Of those that wait, in their order: short prompts to read now, and answers to one long prompt."""
        short: list[LiveAnswer] = []
        long: list[LiveAnswer] = []
        width, prompts, full = 0, set[Hashable](), False
        for answer in self._waiting:
            if len(short) + len(long) == free:
                break
            if len(answer.prompt) > self.piece:
                if not self.long and (not long or answer.reads == long[0].reads):
                    long.append(answer)
                continue
            wider, more = max(width, round_up(len(answer.prompt), WIDTH_STEP, self.piece)), prompts | {answer.reads}
            full = full or wider * len(more) > self.piece
            if not full:
                width, prompts = wider, more
                short.append(answer)
        return short, long

    def _read_on(self, group: _Group) -> None:
        """Read a piece of the long prompt; its answers go live after the last one."""
        gone = [answer for _, answer in group.answers if answer.cancelled]
        group.answers = [each for each in group.answers if each[1] not in gone]
        self._finish(gone, "cancelled")
        if not group.answers:
            self.long = None
        elif self._read(group, at=len(self.live)):
            self.live += [answer for _, answer in group.answers]
            self.long = None

    def _read(self, group: _Group, *, at: int) -> bool:
        """Read a piece; after the last one the answers fill the slots from `at` on. Whether it was the last."""
        self.mixer.aim_at(group.amounts)
        reading = group.go_on(self.model, self.piece)
        if not reading.over:
            return False
        self.rows.enter(reading, [i for i, _ in group.answers], at=at)
        for _, answer in group.answers:
            answer.uniform = [] if answer.seed is None else uniforms(answer.seed, answer.limit)
        return True

    def _draw(self) -> None:
        """The next token of every live answer."""
        logits = self._unembed(self.rows.hidden[:len(self.live)]).float()
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
        assert self.rows.slots is not None
        self.rows.slots.values[:, row].zero_()
        self.live[row].finish = "failed"

    def _decode(self) -> None:
        """Let every live row read its last token."""
        live, positions = len(self.live), [answer.position for answer in self.live]
        rows = min(self.rows.most, 1 << (live - 1).bit_length())  # few shapes, and one row alone costs one row
        self.rows.aim_at([answer.last for answer in self.live], positions)
        self.mixer.aim_at([answer.amounts for answer in self.live] + [{}] * (rows - live))
        self.rows.step(rows, round_up(max(positions) + 1, COLUMN_STEP, self.rows.columns))


def _told(answer: LiveAnswer, logits: Float[Tensor, " v"]) -> Drawn:
    if answer.likeliest is None:
        return Drawn(answer.last, None, ())
    logprobs = logits.log_softmax(-1)
    best = logprobs.topk(answer.likeliest)
    return Drawn(answer.last, float(logprobs[answer.last]),
                 tuple(zip(best.indices.tolist(), best.values.tolist(), strict=True)))
