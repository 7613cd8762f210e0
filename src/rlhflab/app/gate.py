"""Who may ask the server's API, how often, and how much at once: keys, rates, sizes, no foreign pages.

Pages for people have a guard of their own in `server`; what is asked and answered is not known here.
"""

import asyncio
import hmac
import json
import math
import secrets
import time
from collections.abc import Callable, Mapping, MutableMapping
from contextlib import suppress
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any

from fastapi import HTTPException, Request

from rlhflab.app.server import SHORTEST_TOKEN, Receive, Scope, Send, is_loopback, limited, split, with_headers
from rlhflab.errors import ConfigError

API = "/v1"
DRAINED = 64 * 2**20
"""Bytes of a refused body that are read and thrown away, so that whoever sends it hears the refusal."""
PATIENCE = 10.0
"""Seconds for which they are waited for."""
TYPES = {401: "authentication_error", 403: "permission_error", 404: "not_found_error", 429: "rate_limit_error"}
"""OpenAI's kinds of error by status; others are invalid_request_error, or server_error from 500 on."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Keys:
    """The keys that let one in, as digests. None at all: everybody on this machine may ask."""

    digests: Mapping[str, bytes]
    """By the name of who has it."""

    @classmethod
    def of(cls, *, token: str | None, file: Path | None, host: str) -> "Keys":
        """ConfigError where others could ask without a key, and for a key that can be guessed."""
        keys = {} if file is None else read_keys(file)
        if token is not None:
            _check_key(token, where="--token")
            keys["token"] = token
        if not keys and not is_loopback(host):
            raise ConfigError(f"--host {host}: other machines can reach it, so keys are needed; give --token or "
                              "--api-keys, or leave --host at 127.0.0.1")
        return cls(digests={name: sha256(key.encode()).digest() for name, key in keys.items()})

    def holder(self, given: str) -> str | None:
        """Who has this key. Compared with each of them, in the same time whether and where it fits."""
        digest = sha256(given.encode("utf-8", "replace")).digest()
        fits = [name for name, own in self.digests.items() if hmac.compare_digest(own, digest)]
        return fits[0] if fits else None


def read_keys(path: Path) -> dict[str, str]:
    """Keys by name: a line `NAME KEY` each; empty lines and those that begin with # are left out."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError) as error:
        raise ConfigError(f"--api-keys: {path}: cannot be read: {error}") from error
    keys: dict[str, str] = {}
    for number, line in enumerate(lines, start=1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        words = line.split()
        if len(words) != 2:  # what stands there may be a key, so it is not repeated
            raise ConfigError(f"--api-keys: {path}:{number}: must be NAME KEY, found {len(words)} words")
        if words[0] in keys:
            raise ConfigError(f"--api-keys: {path}:{number}: {words[0]} has a key already")
        _check_key(words[1], where=f"--api-keys: {path}:{number}")
        keys[words[0]] = words[1]
    if not keys:
        raise ConfigError(f"--api-keys: {path}: holds no keys")
    return keys


def _check_key(key: str, *, where: str) -> None:
    if len(key) < SHORTEST_TOKEN or not key.isascii():
        raise ConfigError(f"{where}: a key is at least {SHORTEST_TOKEN} random ASCII characters, found {len(key)}; "
                          f"such as {secrets.token_urlsafe(24)}")


@dataclass(slots=True, kw_only=True)
class Rate:
    """A bucket of permissions for each caller, refilled evenly; it holds those of one minute."""

    a_minute: int
    clock: Callable[[], float] = time.monotonic
    _buckets: dict[str, tuple[float, float]] = field(default_factory=dict)
    """Permissions left, and when that was. As many as there are keys."""

    def wait(self, caller: str) -> int:
        """Take a permission: 0; or whole seconds until there is one."""
        now = self.clock()
        left, then = self._buckets.get(caller, (float(self.a_minute), now))
        left = min(float(self.a_minute), left + (now - then) * self.a_minute / 60)
        allowed = left >= 1
        self._buckets[caller] = left - allowed, now
        return 0 if allowed else math.ceil(round((1 - left) * 60 / self.a_minute, 6))


class Gate:
    """Middleware: lets a request to the API through, or refuses it in OpenAI's form. Other paths it leaves alone."""

    def __init__(self, app: Any, *, keys: Keys, largest: int, rate: Rate | None,
                 reader: Callable[[Request], str | None] = lambda request: None) -> None:
        """`largest`: bytes of a body. `reader`: who sent it from a page of this server, and needs no key."""
        self.app, self.keys, self.largest, self.rate, self.reader = app, keys, largest, rate, reader

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let a request through, or answer it."""
        if scope["type"] != "http" or not (scope["path"] == API or scope["path"].startswith(f"{API}/")):
            await self.app(scope, receive, send)
            return
        refused = self._refusal(Request(scope))
        send = with_headers(send, scope)
        if refused is None:
            await self.app(scope, _to_the_end(receive, self.largest), send)
            return
        await drain(receive)
        status, body, headers = refused
        headers = {"content-type": "application/json", **headers}
        await send({"type": "http.response.start", "status": status, "headers": [
            (name.encode(), value.encode()) for name, value in headers.items()]})
        await send({"type": "http.response.body", "body": json.dumps(body).encode()})

    def _refusal(self, request: Request) -> tuple[int, dict[str, Any], Mapping[str, str]] | None:
        host = request.headers.get("host", "")
        # Without keys, a page elsewhere whose name is made to point here must not be taken for this machine.
        if not self.keys.digests and not is_loopback(split(f"//{host}").hostname or ""):
            return 421, error_body("this server is reached by 127.0.0.1 or localhost only", status=421), {}
        if request.method not in ("GET", "HEAD", "POST"):
            return 405, error_body(f"{request.method}: only GET and POST are answered", status=405), {}
        origin = request.headers.get("origin")
        if (origin is not None and split(origin).netloc != host) or request.headers.get(
                "sec-fetch-site", "none") not in ("none", "same-origin"):
            return 403, error_body("a page of another site sent this; it is not answered", status=403), {}
        caller = self._caller(request)
        if caller is None:
            return 401, error_body("the API key is missing or wrong; send Authorization: Bearer KEY", status=401,
                                   code="invalid_api_key"), {"www-authenticate": "Bearer"}
        if self.rate is not None and (wait := self.rate.wait(caller)):
            return 429, error_body(f"more than {self.rate.a_minute} requests a minute; ask again in {wait} s",
                                   status=429, code="rate_limit_exceeded"), {"retry-after": str(wait)}
        length = request.headers.get("content-length", "")
        if length.isdigit() and int(length) > self.largest:
            return 413, error_body(f"a request has at most {self.largest} bytes, found {length}", status=413,
                                   code="request_too_large"), {}
        return None

    def _caller(self, request: Request) -> str | None:
        if not self.keys.digests:
            return "everybody here"
        scheme, _, key = request.headers.get("authorization", "").partition(" ")
        return self.keys.holder(key.strip()) if scheme.lower() == "bearer" else self.reader(request)


def _to_the_end(receive: Receive, most: int) -> Receive:
    """The body, as far as it is not too large; one that is too large is read to its end all the same."""
    more = True

    async def noting() -> MutableMapping[str, Any]:
        nonlocal more
        message = await receive()
        more = message.get("more_body", False)
        return message

    counted = limited(noting, most)

    async def receiving() -> MutableMapping[str, Any]:
        try:
            return await counted()
        except HTTPException:
            if more:
                await drain(receive)
            raise

    return receiving


async def drain(receive: Receive) -> None:
    """Read what is still being sent, up to a limit: a connection that is closed before takes the answer with it."""
    async def read() -> None:
        seen = 0
        while seen < DRAINED:
            message: MutableMapping[str, Any] = await receive()
            seen += len(message.get("body", b""))
            if message["type"] != "http.request" or not message.get("more_body", False):
                return

    with suppress(TimeoutError):
        await asyncio.wait_for(read(), PATIENCE)


def error_body(sentence: str, *, status: int, param: str | None = None, code: str | None = None) -> dict[str, Any]:
    """An error in OpenAI's form."""
    kind = TYPES.get(status, "invalid_request_error" if status < 500 else "server_error")
    return {"error": {"message": sentence, "type": kind, "param": param, "code": code}}
