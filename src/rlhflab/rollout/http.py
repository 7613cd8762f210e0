"""JSON posted to other processes, and asked for again where that may help; a reward that comes from one of them.

Standard library only.
"""

import http.client
import json
import math
import os
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from email.message import Message as Headers
from functools import partial
from typing import IO, Annotated, Any, TypeVar
from urllib.parse import urlsplit

from pydantic import Field

from rlhflab.data.types import Rollout, Score
from rlhflab.errors import ConfigError, RunError
from rlhflab.model.shared import SharedModel
from rlhflab.rollout.scoring import Reward

T = TypeVar("T")
TRY_AGAIN = (408, 425, 429)
"""Refusals that may pass; so may every error of the server (500 and above)."""


def checked_url(url: str, *, where: str) -> str:
    """The address. ConfigError names `where` it came from."""
    if urlsplit(url).scheme not in ("http", "https") or not urlsplit(url).hostname:
        raise ConfigError(f"{where}: {url!r} is not an http:// or https:// address")
    return url


def server_root(url: str) -> str:
    """An address without the `/v1` at its end: OpenAI's clients are given it with that, vLLM's without."""
    return url.rstrip("/").removesuffix("/v1")


def post(url: str, content: Any, read: Callable[[bytes], T], *, sent: str, wanted: str, timeout: float, retries: int,
         wait: float, headers: Mapping[str, str] | None = None) -> T:
    """What `read` makes of the answer to `content`, posted as JSON; `read` raises ValueError for what is not usable.

    What may pass is asked for again, at most `retries` times, after `wait` seconds and each time twice as long.
    RunError says what was `sent` and `wanted` where the server refuses, or never gives anything usable. Redirections
    are refused, so that nothing goes anywhere but to `url`.
    """
    opener = urllib.request.build_opener(_NoRedirect)
    request = urllib.request.Request(url, json.dumps(content).encode(), {
        "Content-Type": "application/json", **(headers or {})})
    problem: Exception | None = None
    for attempt in range(1 + retries):
        if attempt:
            time.sleep(wait * 2 ** (attempt - 1))
        try:
            with opener.open(request, timeout=timeout) as response:
                return read(response.read())
        except urllib.error.HTTPError as error:
            if error.code < 500 and error.code not in TRY_AGAIN:
                raise RunError(f"{url}: refused {sent} with status {error.code} ({error.reason})") from error
            problem = error
        except (OSError, http.client.HTTPException, ValueError) as error:
            problem = error
    raise RunError(f"{url}: gave no usable {wanted} in {1 + retries} attempts, the last time: {problem}") from problem


def http_reward(policy: SharedModel, micro_tokens: int, *, url: str = "", batch: Annotated[int, Field(ge=1)] = 64,
                timeout: Annotated[float, Field(gt=0)] = 30.0, retries: Annotated[int, Field(ge=0)] = 4,
                wait: Annotated[float, Field(ge=0)] = 1.0, token_env: str | None = None) -> Reward:
    """A server at `url` that scores answers posted to it.

    It gets `{"answers": [{"messages": [{"role", "content"}, ...], "answer": text}, ...]}`, at most `batch` answers at a
    time, and has to say `{"scores": [number or null, ...]}`, one an answer, within `timeout` seconds. Whatever else
    comes is asked for again, at most `retries` times, after `wait` seconds and each time twice as long; then the run
    stops. Redirections are refused, so that answers go nowhere but to `url`. `token_env` names the environment variable
    with the token a server asks for (`Authorization: Bearer ...`); the token itself is written nowhere.
    """
    checked_url(url, where="reward.url")
    headers = {} if token_env is None else authorization(token_env, where="reward.token_env")

    def score(rollouts: Sequence[Rollout]) -> list[Score]:
        parts = [rollouts[start:start + batch] for start in range(0, len(rollouts), batch)]
        return [Score(value=value, by=url, reason="" if value is not None else "the server gave null")
                for part in parts for value in ask(part)]

    def ask(rollouts: Sequence[Rollout]) -> list[float | None]:
        content = {"answers": [
            {"messages": [{"role": m.role, "content": m.content} for m in r.prompt.messages], "answer": r.text}
            for r in rollouts]}
        return post(url, content, partial(_numbers, n=len(rollouts)), sent="the answers", wanted="scores",
                    timeout=timeout, retries=retries, wait=wait, headers=headers)

    return score


def authorization(variable: str, *, where: str) -> dict[str, str]:
    """The header with the token in an environment variable. ConfigError says what is wrong, never what it holds.

    `where`: the key or flag that names the variable.
    """
    token = os.environ.get(variable, "").strip()
    if not token:
        raise ConfigError(f"{where}: the environment variable {variable} is not set; it has to hold the token")
    if not (token.isascii() and token.isprintable()):
        raise ConfigError(f"{where}: the token in {variable} has characters that no header can hold")
    return {"Authorization": f"Bearer {token}"}


def _numbers(body: bytes, n: int) -> list[float | None]:
    """The scores in `body`. ValueError says what is wrong with them."""
    content = json.loads(body)
    scores = content.get("scores") if isinstance(content, dict) else None
    if not isinstance(scores, list):
        raise ValueError("the answer is not an object with a list 'scores'")
    if len(scores) != n:
        raise ValueError(f"{len(scores)} scores came for {n} answers")
    for score in scores:
        number = isinstance(score, int | float) and not isinstance(score, bool)
        if score is not None and not (number and math.isfinite(score)):
            raise ValueError(f"{score!r} is not a finite number or null")
    return [None if score is None else float(score) for score in scores]


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """A redirection is an error, with its status."""

    def redirect_request(self, req: urllib.request.Request, fp: IO[bytes], code: int, msg: str, headers: Headers,
                         newurl: str) -> Any:
        """Nothing: urllib then raises HTTPError."""
        return None
