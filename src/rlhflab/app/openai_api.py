"""OpenAI's chat completions, completions and models, as JSON and as server-sent events. No model and no torch here.

A request is checked whole before anything is written: what is not known, or known and not done here, is a sentence.
Beyond OpenAI's own keys a request may have `strength` and `mixture`.
"""

import asyncio
import json
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from typing import Annotated, Any, Literal, TypeVar

from fastapi import APIRouter, FastAPI, HTTPException
from fastapi import Request as HttpRequest
from fastapi.exception_handlers import http_exception_handler
from fastapi.responses import JSONResponse, Response, StreamingResponse
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError
from starlette.exceptions import HTTPException as StarletteError

from rlhflab.app.gate import API, Gate, Keys, Rate, error_body
from rlhflab.data.types import Message
from rlhflab.runs.requests import STRONGEST, Asked, Piece, Refused, Request, ServedModel, Service, Writing

LARGEST_BODY = 2**20
THREADS = 2
"""In which the service is called. Each keeps memory of its own, so forty of them, the usual number, take 200 MB."""
BODY_SECONDS = 30.0
"""How long a body may take to arrive."""
DEFAULT_COMPLETION = 16
"""Tokens of a completion of which nothing is said, as OpenAI has it; of a chat it is as many as may be."""
NEUTRAL: Mapping[str, tuple[Any, ...]] = {
    "frequency_penalty": (0,), "presence_penalty": (0,), "logit_bias": ({},), "response_format": ({"type": "text"},),
    "tools": ([],), "functions": ([],), "tool_choice": ("none",), "function_call": ("none",), "best_of": (1,),
    "echo": (False,), "suffix": ("",), "store": (False,), "modalities": (["text"],),
    "service_tier": ("auto", "default"), "parallel_tool_calls": (True, False)}
"""Keys of OpenAI's that are taken only where they change nothing."""
NO_MATTER = ("user", "metadata", "safety_identifier", "prompt_cache_key")
"""Keys of OpenAI's that say something about who asks."""
Amount = Annotated[float, Field(ge=0, le=STRONGEST, allow_inf_nan=False)]
Stop = Annotated[str, Field(min_length=1, max_length=256)]
B = TypeVar("B", bound="Body")
T = TypeVar("T")


def as_list(given: Any) -> Any:
    """A text alone as a list of one."""
    return [given] if isinstance(given, str) else given


def as_parts(given: Any) -> Any:
    """A turn's text as its one part."""
    return [{"type": "text", "text": given}] if isinstance(given, str) else given


def as_prompts(given: Any) -> list[Asked]:
    """A text, token ids, or a list of either, as a list."""
    several = given if isinstance(given, list) and given and not _is_ids(given) else [given]
    if not all(isinstance(each, str) or _is_ids(each) for each in several):
        raise ValueError("must be text, a list of token ids, or a list of texts or of such lists")
    return [each if isinstance(each, str) else tuple(each) for each in several]


def _is_ids(given: Any) -> bool:
    return isinstance(given, list) and bool(given) and all(type(each) is int and each >= 0 for each in given)


class Body(BaseModel):
    """What chats and completions have in common."""

    model_config = ConfigDict(extra="forbid", strict=True)
    model: Annotated[str, Field(min_length=1)]
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    temperature: Annotated[float, Field(ge=0, le=2, allow_inf_nan=False)] = 1.0
    top_p: Annotated[float, Field(gt=0, le=1, allow_inf_nan=False)] = 1.0
    n: Annotated[int, Field(ge=1, le=128)] = 1
    seed: Annotated[int, Field(ge=-2**63, lt=2**63)] | None = None
    stop: Annotated[list[Stop], Field(max_length=4), BeforeValidator(as_list)] = Field(default_factory=list)
    stream: bool = False
    stream_options: "StreamOptions | None" = None
    strength: Amount = 1.0
    mixture: dict[str, Amount] = Field(default_factory=dict)

    def request(self, prompts: tuple[Asked, ...], *, max_tokens: int | None, top_logprobs: int | None) -> Request:
        """As the service knows it."""
        return Request(model=self.model, prompts=prompts, n=self.n, max_tokens=max_tokens,
                       temperature=self.temperature, top_p=self.top_p, seed=self.seed,
                       stop=tuple(self.stop), top_logprobs=top_logprobs, strength=self.strength, mixture=self.mixture)


class StreamOptions(BaseModel):
    """How a stream ends."""

    model_config = ConfigDict(extra="forbid", strict=True)
    include_usage: bool = False
    include_obfuscation: bool = False


class TextPart(BaseModel):
    """A part of a turn; others than text are not read."""

    model_config = ConfigDict(extra="forbid", strict=True)
    type: Literal["text"]
    text: str


class Turn(BaseModel):
    """A turn of a chat."""

    model_config = ConfigDict(extra="forbid", strict=True)
    role: Literal["system", "developer", "user", "assistant"]
    content: Annotated[list[TextPart], BeforeValidator(as_parts)]

    @property
    def message(self) -> Message:
        """As the lab knows it; a developer is who else is called system."""
        text = "".join(part.text for part in self.content)
        return Message(role="system" if self.role == "developer" else self.role, content=text)


class ChatBody(Body):
    """Of a chat completion."""

    messages: Annotated[list[Turn], Field(min_length=1, max_length=512)]
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None
    logprobs: bool = False
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None

    def asked(self) -> Request:
        """As the service knows it."""
        if self.top_logprobs is not None and not self.logprobs:
            raise Refused("top_logprobs: needs logprobs true", param="top_logprobs")
        limits = {self.max_tokens, self.max_completion_tokens} - {None}
        if len(limits) > 1:
            raise Refused("max_tokens: max_completion_tokens says something else; give one of them", param="max_tokens")
        return self.request((tuple(turn.message for turn in self.messages),),
                            max_tokens=limits.pop() if limits else None,
                            top_logprobs=(self.top_logprobs or 0) if self.logprobs else None)


class CompletionBody(Body):
    """Of a completion."""

    prompt: Annotated[list[Any], BeforeValidator(as_prompts)]
    """Texts, or tuples of token ids."""
    logprobs: Annotated[int, Field(ge=0, le=5)] | None = None

    def asked(self) -> Request:
        """As the service knows it."""
        return self.request(tuple(self.prompt), max_tokens=self.max_tokens or DEFAULT_COMPLETION,
                            top_logprobs=self.logprobs)


def serving_app(service: Service, *, keys: Keys, rate: int | None = None, largest: int = LARGEST_BODY,
                reader: Callable[[HttpRequest], str | None] = lambda request: None) -> FastAPI:
    """The API behind its gate. Pages may be mounted beside it; their guard is their own.

    `reader`: who sent a request from a page of this server, and needs no key.
    """
    # No generated documentation: its pages load scripts from elsewhere.
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    app.include_router(router(service))
    app.add_middleware(Gate, keys=keys, largest=largest, rate=None if rate is None else Rate(a_minute=rate),
                       reader=reader)
    app.add_exception_handler(Refused, _refused)
    app.add_exception_handler(StarletteError, _http_error)
    app.add_exception_handler(Exception, _unexpected)
    return app


def router(service: Service) -> APIRouter:
    """The three paths, without the gate."""
    routes = APIRouter(prefix=API)
    few = ThreadPoolExecutor(THREADS, thread_name_prefix="asking")

    def aside(work: Callable[..., T], *arguments: Any) -> Awaitable[T]:
        return asyncio.get_running_loop().run_in_executor(few, work, *arguments)

    @routes.get("/models")
    async def models() -> Response:
        return JSONResponse({"object": "list", "data": [_model(each) for each in await aside(service.models)]})

    @routes.get("/models/{name:path}")
    async def model(name: str) -> Response:
        found = next((each for each in await aside(service.models) if each.name == name), None)
        if found is None:
            raise Refused(f"model: no model is called {name!r}; GET /v1/models says which there are", status=404,
                          param="model", code="model_not_found")
        return JSONResponse(_model(found))

    @routes.post("/chat/completions")
    async def chat(http: HttpRequest) -> Response:
        body = checked(ChatBody, await json_body(http))
        return await answered(partial(aside, service.write), http, body.asked(), Chat(body))

    @routes.post("/completions")
    async def completions(http: HttpRequest) -> Response:
        body = checked(CompletionBody, await json_body(http))
        return await answered(partial(aside, service.write), http, body.asked(), Completion(body))

    return routes


# -- what comes in -----------------------------------------------------------------------------------------------------


async def json_body(http: HttpRequest) -> dict[str, Any]:
    """The object that was sent. Refused where it is none."""
    kind = http.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":
        raise Refused(f"the body must be application/json, found {kind or 'no content type'}", status=415)
    try:
        content = json.loads(await asyncio.wait_for(http.body(), BODY_SECONDS), parse_constant=_no_constant)
        json.dumps(content, ensure_ascii=False).encode()  # half a surrogate pair is no text
    except TimeoutError as error:
        raise Refused(f"the body did not arrive within {BODY_SECONDS:g} s", status=408) from error
    except RecursionError as error:
        raise Refused("the body is nested too deeply") from error
    except ValueError as error:
        raise Refused(f"the body is not JSON in UTF-8: {' '.join(str(error).split())[:200]}") from error
    if not isinstance(content, dict):
        raise Refused(f"the body must be a JSON object, found {type(content).__name__}")
    return {key: value for key, value in content.items() if value is not None}


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is no number in JSON")


def checked(kind: type[B], content: Mapping[str, Any]) -> B:
    """The body as it is known. Refused names the first key that is wrong, what was found and what is accepted."""
    for key, neutral in NEUTRAL.items():
        if key in content and content[key] not in neutral:
            raise Refused(f"{key}: is not supported here; leave it out, or at {json.dumps(neutral[0])}", param=key,
                          code="unsupported_parameter")
    try:
        return kind.model_validate({key: value for key, value in content.items()
                                    if key not in NEUTRAL and key not in NO_MATTER})
    except ValidationError as error:
        problem = error.errors(include_url=False, include_context=False)[0]
        where = ".".join(str(part) for part in problem["loc"])
        if problem["type"] == "extra_forbidden":
            raise Refused(f"{where}: unknown key; known are {', '.join(sorted(kind.model_fields))}",
                          param=where, code="unknown_parameter") from error
        found = "" if problem["type"] == "missing" else f", found {shortly(problem['input'])}"
        words = problem["msg"].removeprefix("Value error, ")
        raise Refused(f"{where}: {words[:1].lower()}{words[1:]}{found}", param=where) from error


def shortly(value: object) -> str:
    """A value in at most some characters of JSON."""
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= 80 else f"{text[:80]}..."


# -- what goes out -----------------------------------------------------------------------------------------------------


class Pieces:
    """What a thread delivers, for an event loop."""

    def __init__(self) -> None:
        self.loop, self.queue = asyncio.get_running_loop(), asyncio.Queue[Piece]()

    def deliver(self, piece: Piece) -> None:
        """From any thread. Nobody hears it where the loop has ended."""
        with suppress(RuntimeError):
            self.loop.call_soon_threadsafe(self.queue.put_nowait, piece)

    async def each(self, choices: int) -> AsyncIterator[Piece]:
        """Every piece until so many answers have ended."""
        ended = 0
        while ended < choices:
            piece = await self.queue.get()
            ended += piece.finish is not None
            yield piece


class Events(StreamingResponse):
    """A stream that cancels what is still being written once nobody listens, even before the first event."""

    def __init__(self, pieces: Pieces, writing: Writing, form: "Form") -> None:
        super().__init__(_events(pieces, writing, form), media_type="text/event-stream")
        self.writing = writing

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Send it."""
        try:
            await super().__call__(scope, receive, send)
        finally:
            self.writing.cancel()  # changes nothing for answers that have ended


class Form:
    """What chats and completions have in common as they go out."""

    whole: str
    """The name of the whole answer."""
    part: str
    """The name of a piece of it."""
    prefix: str

    def __init__(self, body: Body) -> None:
        self.body = body
        self.facts = {"id": f"{self.prefix}-{uuid.uuid4().hex}", "created": int(time.time()), "model": body.model}

    def choice(self, index: int, text: str, logprobs: Any, finish: str | None) -> dict[str, Any]:
        """A whole answer."""
        raise NotImplementedError

    def opening(self, index: int) -> list[dict[str, Any]]:
        """What comes before the first words."""
        return []

    def delta(self, index: int, text: str, logprobs: Any, finish: str | None) -> dict[str, Any]:
        """A piece of an answer."""
        raise NotImplementedError

    def logprobs(self, pieces: Sequence[Piece]) -> Any:
        """Of the tokens of these pieces; None where there are none."""
        raise NotImplementedError


class Chat(Form):
    """Of a chat completion."""

    whole, part, prefix = "chat.completion", "chat.completion.chunk", "chatcmpl"

    def choice(self, index: int, text: str, logprobs: Any, finish: str | None) -> dict[str, Any]:
        """A whole answer."""
        return {"index": index, "message": {"role": "assistant", "content": text, "refusal": None},
                "logprobs": logprobs, "finish_reason": finish}

    def opening(self, index: int) -> list[dict[str, Any]]:
        """Who speaks."""
        return [{"index": index, "delta": {"role": "assistant", "content": ""}, "logprobs": None,
                 "finish_reason": None}]

    def delta(self, index: int, text: str, logprobs: Any, finish: str | None) -> dict[str, Any]:
        """A piece of an answer."""
        return {"index": index, "delta": {"content": text} if text else {}, "logprobs": logprobs,
                "finish_reason": finish}

    def logprobs(self, pieces: Sequence[Piece]) -> Any:
        """A list of tokens, each with its likeliest."""
        tokens = [token for piece in pieces for token in piece.tokens]
        return {"content": [{**_token(token.text, token.logprob), "top_logprobs": [
            _token(*each) for each in token.likeliest]} for token in tokens], "refusal": None} if tokens else None


class Completion(Form):
    """Of a completion."""

    whole, part, prefix = "text_completion", "text_completion", "cmpl"

    def choice(self, index: int, text: str, logprobs: Any, finish: str | None) -> dict[str, Any]:
        """A whole answer."""
        return {"index": index, "text": text, "logprobs": logprobs, "finish_reason": finish}

    delta = choice

    def logprobs(self, pieces: Sequence[Piece]) -> Any:
        """Parallel lists; where in the text a token begins is not told, since some are parts of characters."""
        tokens = [token for piece in pieces for token in piece.tokens]
        return {"tokens": [token.text for token in tokens], "token_logprobs": [token.logprob for token in tokens],
                "top_logprobs": [dict(token.likeliest) for token in tokens], "text_offset": []} if tokens else None


def _token(text: str, logprob: float) -> dict[str, Any]:
    # A token that is a part of a character has no text of its own, and its bytes are not known here.
    return {"token": text, "logprob": logprob, "bytes": None if "\N{REPLACEMENT CHARACTER}" in text
            else list(text.encode())}


async def answered(write: Callable[..., Awaitable[Writing]], http: HttpRequest, request: Request,
                   form: Form) -> Response:
    """The answer to a request, whole or as a stream. Rows of a client that has gone are freed."""
    if form.body.stream_options is not None and not form.body.stream:
        raise Refused("stream_options: needs stream true", param="stream_options")
    pieces = Pieces()
    writing = await write(request, pieces.deliver)
    form.facts["system_fingerprint"] = writing.fingerprint
    if form.body.stream:
        return Events(pieces, writing, form)
    whole = asyncio.ensure_future(_collected(pieces, writing.choices))
    gone = asyncio.ensure_future(_gone(http))
    try:
        await asyncio.wait({whole, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not whole.done():
            return Response(status_code=499)
        found = whole.result()
    finally:
        gone.cancel()
        whole.cancel()
        writing.cancel()
    choices = []
    for index in range(writing.choices):
        own = [piece for piece in found if piece.choice == index]
        if own[-1].finish not in ("stop", "length"):
            raise Refused("the server could not finish this answer; ask again", status=500)
        choices.append(form.choice(index, "".join(piece.text for piece in own), form.logprobs(own), own[-1].finish))
    return JSONResponse({**form.facts, "object": form.whole, "choices": choices,
                         "usage": _usage(writing, found)})


async def _collected(pieces: Pieces, choices: int) -> list[Piece]:
    return [piece async for piece in pieces.each(choices)]


async def _gone(http: HttpRequest) -> None:
    while (await http.receive())["type"] != "http.disconnect":
        pass


async def _events(pieces: Pieces, writing: Writing, form: Form) -> AsyncIterator[str]:
    """Server-sent events, the last of them [DONE]."""
    options = form.body.stream_options
    usage: dict[str, Any] = {"usage": None} if options and options.include_usage else {}
    seen: list[Piece] = []

    def event(choices: list[dict[str, Any]], **more: Any) -> str:
        return _event({**form.facts, "object": form.part, "choices": choices, **usage, **more})

    for index in range(writing.choices):
        for opening in form.opening(index):
            yield event([opening])
    async for piece in pieces.each(writing.choices):
        if piece.finish not in (None, "stop", "length"):
            yield _event(error_body("the server could not finish this answer; ask again", status=500))
            return
        seen += [piece._replace(text="", tokens=())]
        yield event([form.delta(piece.choice, piece.text, form.logprobs([piece]), piece.finish)])
    if usage:
        yield event([], usage=_usage(writing, seen))
    yield "data: [DONE]\n\n"


def _event(content: Mapping[str, Any]) -> str:
    return f"data: {json.dumps(content, ensure_ascii=False)}\n\n"


def _usage(writing: Writing, pieces: Sequence[Piece]) -> dict[str, int]:
    written = sum(piece.written for piece in pieces)
    return {"prompt_tokens": writing.prompt_tokens, "completion_tokens": written,
            "total_tokens": writing.prompt_tokens + written}


def _model(model: ServedModel) -> dict[str, Any]:
    return {"id": model.name, "object": "model", "created": 0, "owned_by": "rlhflab", "rlhflab": {
        "kind": model.kind, "digest": model.digest, "parent": model.parent, "parent_name": model.parent_name,
        "parent_recorded": model.parent_recorded}}


# -- errors ------------------------------------------------------------------------------------------------------------


async def _refused(http: HttpRequest, error: Exception) -> Response:
    assert isinstance(error, Refused)
    headers = {} if error.retry_after is None else {"retry-after": str(error.retry_after)}
    return JSONResponse(error_body(str(error), status=error.status, param=error.param, code=error.code),
                        status_code=error.status, headers=headers)


async def _http_error(http: HttpRequest, error: Exception) -> Response:
    """OpenAI's form under /v1; elsewhere what FastAPI says."""
    assert isinstance(error, StarletteError)
    if not http.url.path.startswith(API):
        return await http_exception_handler(http, HTTPException(error.status_code, error.detail))
    words = {404: f"{http.url.path}: no such path; there are /v1/models, /v1/completions and /v1/chat/completions",
             405: f"{http.url.path}: is not reached by {http.method}"}.get(error.status_code, str(error.detail))
    code = "request_too_large" if error.status_code == 413 else None
    return JSONResponse(error_body(words, status=error.status_code, code=code), status_code=error.status_code)


async def _unexpected(http: HttpRequest, error: Exception) -> Response:
    """What nobody foresaw; its words may hold what others asked, so they go to the server's stderr alone."""
    return JSONResponse(error_body("the server failed at this request", status=500), status_code=500)
