"""The server's service: names to adapters, turns to tokens, tokens to text. No network here.

Writing happens in one thread, which owns the model; requests come from any other.
"""

import secrets
import sys
import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from jinja2 import TemplateError

from rlhflab.data.formats import turn_rows
from rlhflab.data.types import Prompt
from rlhflab.errors import LabError, ModelError
from rlhflab.model.mixing import Factors, drop_zeros, read_factors
from rlhflab.registry.records import sha256_of
from rlhflab.rollout.live import Drawn, Finish, LiveAnswer, LiveBatch, QueueFull
from rlhflab.runs.lab import Lab
from rlhflab.runs.request_log import RequestLog
from rlhflab.runs.requests import Asked, Piece, Refused, Request, ServedModel, TokenSaid
from rlhflab.runs.served_names import Known, Names
from rlhflab.runs.streaming import TextStream

KEPT = 32
"""Adapters kept in memory after use."""
MOST_CHOICES = 32
"""Answers of one request."""
COLDEST = 1e-3
"""Temperature below which logits divided by it could overflow; only the likeliest token is ever drawn by then."""
GOLDEN = 0x9E3779B97F4A7C15
"""Odd, so that the seeds of a request's answers differ from each other and from those of its neighbours."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What one request, and all of them together, may take."""

    max_new_tokens: int = 512
    rows: int = 16
    """Answers written at one time."""
    context: int = 2048
    """Tokens of a prompt with its answer."""
    queue: int = 64
    """Answers that may wait for a row."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Underway:
    """A request that is being written."""

    answers: tuple[LiveAnswer, ...]
    prompt_tokens: int
    fingerprint: str
    """Digests of the weights and how much of each."""

    @property
    def choices(self) -> int:
        """Answers that will come."""
        return len(self.answers)

    def cancel(self) -> None:
        """Want no more of it."""
        for answer in self.answers:
            answer.cancelled = True


class BatchingService:
    """Owns the thread that writes, and the adapters in memory."""

    def __init__(self, lab: Lab, names: Names, limits: Limits, *, log: RequestLog | None = None) -> None:
        self.lab, self.names, self.limits, self.log = lab, names, limits, log
        self.batch = LiveBatch(lab.model, stop_ids=lab.chat.stop_ids, rows=limits.rows, columns=limits.context,
                               queue=limits.queue)
        self._factors: OrderedDict[tuple[str, str], Factors] = OrderedDict()
        self._loading, self._encoding = threading.Lock(), threading.Lock()
        self._thread = threading.Thread(target=self.batch.run, args=(_report,), name="writing", daemon=True)

    def start(self) -> None:
        """Begin to write."""
        self._thread.start()

    def close(self) -> None:
        """End what is being written, and wait for it."""
        self.batch.close()
        self._thread.join()
        if self.log:
            self.log.close()

    def models(self) -> list[ServedModel]:
        """Every name that can be asked."""
        return self.names.served()

    def write(self, request: Request, deliver: Callable[[Piece], None]) -> Underway:
        """Start to write; `deliver` is called from the thread that writes."""
        if len(request.prompts) * request.n > min(MOST_CHOICES, self.limits.queue):
            raise Refused(f"n: {len(request.prompts) * request.n} answers in one request; at most "
                          f"{min(MOST_CHOICES, self.limits.queue)} are written", param="n")
        parts = self.names.parts(request)
        amounts = drop_zeros((self._loaded(known), amount) for known, amount in parts)
        prompts = [self._ids(prompt) for prompt in request.prompts]
        limits = [self._limit(ids, request.max_tokens) for ids in prompts]
        fingerprint = "+".join([self.lab.model.base.digest[:12],
                                *(f"{factors.digest[:12]}*{amount:g}" for factors, amount in amounts.items())])
        first = secrets.randbits(62) if request.seed is None else request.seed
        answers = []
        for i, (ids, limit) in enumerate(zip(prompts, limits, strict=True)):
            for k in range(i * request.n, (i + 1) * request.n):
                take, end = self._told(request, i, k, deliver, fingerprint)
                seed = None if request.temperature == 0 else (first + k * GOLDEN) % 2**63
                answers.append(LiveAnswer(
                    prompt=ids, amounts=amounts, limit=limit, take=take, end=end, seed=seed,
                    temperature=max(request.temperature, COLDEST), top_p=request.top_p, likeliest=request.top_logprobs))
        try:
            self.batch.submit(answers)
        except QueueFull as error:
            raise Refused(str(error), status=429, code="queue_full", retry_after=1) from error
        except LabError as error:
            raise Refused(str(error), status=503) from error
        return Underway(answers=tuple(answers), prompt_tokens=sum(map(len, prompts)), fingerprint=fingerprint)

    def load(self, name: str) -> None:
        """Read a model's weights now rather than at its first request. Refused where they do not fit."""
        known = self.names.find(name, param="model")
        if known is not None:
            self._loaded(known)

    # -- from names and text ---------------------------------------------------------------------------------------

    def _loaded(self, known: Known) -> Factors:
        """The adapter's factors, kept for the next request."""
        with self._loading:
            key = known.digest, str(known.folder)
            if key not in self._factors:
                self._factors[key] = self._read(known)
            self._factors.move_to_end(key)
            while len(self._factors) > KEPT:
                self._factors.popitem(last=False)
            return self._factors[key]

    def _read(self, known: Known) -> Factors:
        """The adapter's factors from its files. Refused where those are not what was recorded, or do not fit."""
        try:
            for name, digest in known.files:
                if (found := sha256_of(known.folder / name)) != digest:
                    raise Refused(f"{known.name}: {name} is {found}, not {digest} as recorded; it is not served",
                                  status=409)
            return read_factors(self.lab.model, known.folder, digest=known.digest)
        except OSError as error:
            raise Refused(f"{known.name}: cannot be read: {error.strerror}", status=409) from error
        except ModelError as error:
            raise Refused(str(error), status=409) from error

    def _ids(self, prompt: Asked) -> tuple[int, ...]:
        chat, vocabulary = self.lab.chat, len(self.lab.model.unembedding)
        try:
            with self._encoding:
                if isinstance(prompt, str):
                    ids = tuple(chat.tokenizer(prompt).input_ids)
                elif prompt and isinstance(prompt[0], int):
                    ids = tuple(prompt)
                else:
                    ids = chat.prompt(Prompt(id="", messages=prompt))  # type: ignore[arg-type]
        except TemplateError as error:
            raise Refused(f"messages: the chat template refuses them: {error}", param="messages") from error
        if not ids:
            raise Refused("prompt: is empty; at least one token is needed to go on from", param="prompt")
        if not 0 <= min(ids) <= max(ids) < vocabulary:
            raise Refused(f"prompt: token ids are 0 to {vocabulary - 1}, found {min(ids)} to {max(ids)}",
                          param="prompt")
        return ids

    def _limit(self, ids: Sequence[int], wanted: int | None) -> int:
        room = self.limits.context - len(ids)
        if room < 1 or (wanted or 0) > room:
            raise Refused(f"max_tokens: {len(ids)} tokens of prompt and {wanted or 1} to write are more than the "
                          f"{self.limits.context} that fit", param="max_tokens", code="context_length_exceeded")
        if wanted is not None and wanted > self.limits.max_new_tokens:
            raise Refused(f"max_tokens: {wanted} are asked for, and this server writes at most "
                          f"{self.limits.max_new_tokens}", param="max_tokens")
        return min(room, self.limits.max_new_tokens) if wanted is None else wanted

    # -- back to text ----------------------------------------------------------------------------------------------

    def _decode(self, ids: Sequence[int]) -> str:
        text: str = self.lab.chat.tokenizer.decode(list(ids), skip_special_tokens=False)
        return text

    def _told(self, request: Request, prompt: int, choice: int, deliver: Callable[[Piece], None], fingerprint: str,
              ) -> tuple[Callable[[Drawn], bool], Callable[[Finish, int], None]]:
        """What an answer's tokens, and its end, become for whoever asked."""
        stream = TextStream(self._decode, request.stop)

        def take(drawn: Drawn) -> bool:
            text = stream.push(drawn.token)
            said = () if drawn.logprob is None else (TokenSaid(
                self._decode([drawn.token]), drawn.logprob,
                tuple((self._decode([token]), logprob) for token, logprob in drawn.likeliest)),)
            if text or said:
                deliver(Piece(choice, text, said))
            return not stream.stopped

        def end(finish: Finish, tokens: int) -> None:
            rest = stream.finish()
            if self.log and finish in ("stop", "length"):
                self.log.add(self._as_asked(request.prompts[prompt]), stream.shown, {
                    "model": request.model, "weights": fingerprint, "finish": finish, "tokens": tokens,
                    "temperature": request.temperature})
            deliver(Piece(choice, rest, (), finish, tokens))

        return take, end

    def _as_asked(self, prompt: Asked) -> Any:
        """As `rlhflab drift` reads a prompt: text, or turns."""
        if isinstance(prompt, str):
            return prompt
        return self._decode(prompt) if isinstance(prompt[0], int) else turn_rows(prompt)


def _report(error: Exception) -> None:
    print(f"rlhflab serve: a step failed and its answers with it: {type(error).__name__}: "
          f"{' '.join(str(error).split())[:500]}", file=sys.stderr, flush=True)
