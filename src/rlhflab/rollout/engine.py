"""Sampling answers by continuous batching: one prefill a prompt, rows that leave when finished and are replaced.

No reward here, and no trainer: a role, prompts and seeds go in, tokens and their log-probs come out. Axes: r rows
(one an answer being written), c columns of the key-value cache, v vocabulary, d width.
"""

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple, Protocol

import torch

from rlhflab.model.decoding import attending
from rlhflab.model.folded import product
from rlhflab.model.shared import SharedModel
from rlhflab.rollout.draw import draw as draw
from rlhflab.rollout.draw import most_likely as most_likely
from rlhflab.rollout.draw import uniforms
from rlhflab.rollout.rows import Reading, Rows, round_up

ROWS = 128
"""Answers written at one time."""
ROOM = 2**16
"""Tokens the key-value cache holds at most (23 KB each for 135M parameters): fewer rows where they are long."""
PREFILL = 2048
"""Prompt tokens, with padding, that are read at one time."""
ROW_STEP, COLUMN_STEP = 8, 32
"""Rows and columns of a step on a CPU are multiples of these."""


class Generation(NamedTuple):
    """One sampled answer."""

    token_ids: tuple[int, ...]
    """With the end token, where it stopped by itself."""
    logprobs: tuple[float, ...]
    """Of each token under softmax(logits / temperature); of a greedy answer under softmax(logits)."""
    finish: Literal["stop", "length"]


class Engine(Protocol):
    """What writes answers; the arguments are those of `generate`."""

    def __call__(self, prompts: Sequence[Sequence[int]], *, role: str | None, seeds: Sequence[Sequence[int | None]],
                 max_new_tokens: int | Sequence[Sequence[int]], stop_ids: Sequence[int], temperature: float = 1.0,
                 advance: Callable[[int], None] = lambda answers: None) -> list[list[Generation]]:
        """Answers to each prompt, one a seed."""


def generate(model: SharedModel, prompts: Sequence[Sequence[int]], *, role: str | None,
             seeds: Sequence[Sequence[int | None]], max_new_tokens: int | Sequence[Sequence[int]],
             stop_ids: Sequence[int], temperature: float = 1.0, rows: int = ROWS, fold: bool | None = None,
             static: bool | None = None, advance: Callable[[int], None] = lambda answers: None,
             ) -> list[list[Generation]]:
    """`len(seeds[i])` answers to prompt i, each drawn with its own seed, whatever batch it is written in.

    The seed None takes the most likely token every time. An answer ends at the first of `stop_ids` or at
    `max_new_tokens`, one number or, in the shape of `seeds`, one an answer. At most `rows` are written at one time.
    `fold` adds the role's adapter to a copy of the weights first; by default under an fp32 base, see `folds`. `static`
    writes all rows and columns every step, so that a GPU can replay the step as one graph; by default where there is a
    GPU. `advance` is told how many answers were finished.
    """
    wanted = [[_Answer(i, len(prompts[i]), seed, limit) for seed, limit in each]
              for i, each in enumerate(with_limits(seeds, max_new_tokens))]
    with model.writing(role, fold=folds(model, fold)), attending(model.decoder):
        writer = _Writer(model, prompts, [answer for each in wanted for answer in each], stop_ids=stop_ids,
                         temperature=temperature, rows=rows, advance=advance,
                         static=model.device.type == "cuda" if static is None else static)
        writer.write()
    return [[answer.generation for answer in each] for each in wanted]


def folds(model: SharedModel, fold: bool | None) -> bool:
    """Whether the adapter is folded in: as asked, else under an fp32 base alone.

    In bf16 the sum is rounded to the weight's own steps, in which a small adapter is lost in part: with 135M parameters
    sampler and trainer then lie .053 nats a token apart (limit .05), unfolded .012.
    """
    return model.unembedding.dtype == torch.float32 if fold is None else fold


def with_limits(seeds: Sequence[Sequence[int | None]],
                max_new_tokens: int | Sequence[Sequence[int]]) -> list[list[tuple[int | None, int]]]:
    """The seed and the most tokens of each answer, by prompt."""
    if isinstance(max_new_tokens, int):
        return [[(seed, max_new_tokens) for seed in each] for each in seeds]
    return [list(zip(*each, strict=True)) for each in zip(seeds, max_new_tokens, strict=True)]


@dataclass(slots=True)
class _Answer:
    """An answer as far as it is written."""

    prompt: int
    prompt_tokens: int
    seed: int | None
    limit: int
    tokens: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    stopped: bool = False
    uniform: list[float] = field(default_factory=list)
    """A number in [0, 1) for each token, from the answer's own seed."""

    @property
    def position(self) -> int:
        """Where the last token drawn will stand."""
        return self.prompt_tokens + len(self.tokens) - 1

    @property
    def over(self) -> bool:
        """Whether nothing more is written."""
        return self.stopped or len(self.tokens) == self.limit

    @property
    def generation(self) -> Generation:
        """The answer as its reader sees it."""
        return Generation(tuple(self.tokens), tuple(self.logprobs), "stop" if self.stopped else "length")


class _Prefilled(NamedTuple):
    """Prompts that were read, whose answers wait for a slot."""

    reading: Reading
    answers: deque[tuple[int, _Answer]]
    """With the number of its prompt here."""


class _Writer:
    """Writes answers that are all known beforehand."""

    def __init__(self, model: SharedModel, prompts: Sequence[Sequence[int]], answers: Sequence[_Answer], *,
                 stop_ids: Sequence[int], temperature: float, rows: int, static: bool,
                 advance: Callable[[int], None]) -> None:
        self.model, self.prompts, self.temperature, self.advance = model, prompts, temperature, advance
        self.stop_ids = frozenset(stop_ids)
        self.unembed = product(model.unembedding)
        # The longest first: similar ones are read together, and the cache that a step reads gets shorter.
        self.waiting = deque(sorted(answers, key=lambda answer: -answer.prompt_tokens))
        self.ready: _Prefilled | None = None
        self.live: list[_Answer] = []
        columns = max((answer.prompt_tokens + answer.limit for answer in answers), default=0)
        self.rows = Rows(model, most=min(rows, len(answers), max(1, ROOM // max(1, columns))), columns=columns)
        self.steps = (self.rows.most, columns) if static else (ROW_STEP, COLUMN_STEP)
        self.graphs: dict[tuple[int, int], torch.cuda.CUDAGraph] = {}

    def write(self) -> None:
        """Write all answers."""
        while self.live or self.waiting or self.ready:
            self._enter()
            self._draw()
            if gone := self.rows.leave(self.live, lambda answer: answer.over):
                self.advance(len(gone))
            if self.live:
                self._decode()

    def _enter(self) -> None:
        """Fill the free slots with waiting answers."""
        most = self.rows.most
        while (free := most - len(self.live)) and (self.ready or self.waiting):
            if self.ready is None:
                if self.live and free < most // 16:
                    return  # a prompt read alone costs as much as several read together
                self.ready = self._prefill(free)
            entering = [self.ready.answers.popleft() for _ in range(min(free, len(self.ready.answers)))]
            self.rows.enter(self.ready.reading, [i for i, _ in entering], at=len(self.live))
            for _, answer in entering:
                answer.uniform = [0.0] * answer.limit if answer.seed is None else uniforms(answer.seed, answer.limit)
                self.live.append(answer)
            if not self.ready.answers:
                self.ready = None

    def _prefill(self, free: int) -> _Prefilled:
        """Read waiting prompts, as many as fill the free slots, or fit."""
        chosen: dict[int, int] = {}
        answers: deque[tuple[int, _Answer]] = deque()
        width = 0
        while self.waiting:
            answer = self.waiting[0]
            if answer.prompt not in chosen:
                wider = max(width, answer.prompt_tokens)
                if len(answers) >= free or (chosen and (len(chosen) + 1) * wider > PREFILL):
                    break
                chosen[answer.prompt], width = len(chosen), wider
            answers.append((chosen[answer.prompt], self.waiting.popleft()))
        reading = Reading(self.model, [self.prompts[i] for i in chosen], width=width)
        reading.go_on(width)
        return _Prefilled(reading, answers)

    def _draw(self) -> None:
        """The next token of every live answer."""
        live = len(self.live)
        rows = round_up(live, self.steps[0], self.rows.most)
        logits = self.unembed(self.rows.hidden[:rows]).float()
        uniform = torch.zeros(rows)
        uniform[:live] = torch.tensor([answer.uniform[len(answer.tokens)] for answer in self.live])
        token, logprob = draw(logits, uniform.to(logits.device), temperature=self.temperature)
        if any(answer.seed is None for answer in self.live):
            greedy = torch.tensor([answer.seed is None for answer in self.live], device=logits.device)
            best, best_logprob = most_likely(logits[:live])
            token = torch.where(greedy, best, token[:live])
            logprob = torch.where(greedy, best_logprob, logprob[:live])
        for answer, each, value in zip(self.live, token.tolist(), logprob.tolist(), strict=False):
            answer.tokens.append(each)
            answer.logprobs.append(value)
            answer.stopped = each in self.stop_ids

    def _decode(self) -> None:
        """Let every live row read its last token."""
        positions = [answer.position for answer in self.live]
        self.rows.aim_at([answer.tokens[-1] for answer in self.live], positions)
        shape = (round_up(len(self.live), self.steps[0], self.rows.most),
                 round_up(max(positions) + 1, self.steps[1], self.rows.columns))
        if self.model.device.type == "cuda":
            self._replay(shape)
        else:
            self.rows.step(*shape)

    def _replay(self, shape: tuple[int, int]) -> None:
        """`Rows.step` as one graph: a GPU waits longer for the next of its kernels than it takes to run one."""
        if shape not in self.graphs:
            side = torch.cuda.Stream()
            side.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(side):  # what is set up at the first call cannot be captured
                self.rows.step(*shape)
            torch.cuda.current_stream().wait_stream(side)
            self.graphs[shape] = torch.cuda.CUDAGraph()
            with torch.cuda.graph(self.graphs[shape]):
                self.rows.step(*shape)
        self.graphs[shape].replay()
