"""What every page of the lab shares: who may look, what a page may load, how large a request may be, the server.

Pages are whole HTML from templates, with a script and styles of their own; nothing is loaded from elsewhere. What a
page is about is not here.
"""

import base64
import errno
import hashlib
import hmac
import secrets
import socket
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path
from typing import Any
from urllib.parse import SplitResult, quote, urlsplit

import jinja2
import uvicorn
from fastapi import FastAPI, HTTPException, Request
from fastapi.responses import HTMLResponse, Response
from fastapi.staticfiles import StaticFiles
from starlette.exceptions import HTTPException as StarletteError

from rlhflab.analysis.page import markdown
from rlhflab.errors import ConfigError, LabError

HERE = Path(__file__).parent
LARGEST_REQUEST = 64 * 1024
"""Bytes of a request's body."""
SHORTEST_TOKEN = 16
"""Characters of a token that others may guess at."""
HEADERS = {
    # No inline script or style, nothing from elsewhere: what slips into a page cannot run or call home.
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
                               "form-action 'self'; base-uri 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    # A stricter policy would make browsers send a form's Origin as null.
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), microphone=(), geolocation=()",
}
Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Access:
    """Who may look: everybody on this machine as `only`, or who shows a key made from the secret.

    Keys are not stored. The same secret gives the same keys, another one makes all earlier keys void.
    """

    secret: bytes
    people: tuple[str, ...]
    only: str | None = None
    """The one person who needs no key. Only with a server that is bound to the loopback."""

    @classmethod
    def of(cls, people: tuple[str, ...], *, token: str | None, host: str) -> "Access":
        """ConfigError where others could reach the pages without a token, and for a token that can be guessed."""
        if token is None and not is_loopback(host):
            raise ConfigError(f"--host {host}: other machines can reach it, so a token is needed; give --token with at "
                              f"least {SHORTEST_TOKEN} random characters, or leave --host at 127.0.0.1")
        if token is not None and len(token) < SHORTEST_TOKEN:
            raise ConfigError(f"--token: has {len(token)} characters, at least {SHORTEST_TOKEN} random ones are needed")
        secret = (token or secrets.token_hex(32)).encode()
        return cls(secret=secret, people=people, only=people[0] if token is None and len(people) == 1 else None)

    def key(self, person: str, use: str = "enter") -> str:
        """What proves to be `person`, for one use: to enter, to stay, to send a form."""
        return hmac.new(self.secret, f"{use}\n{person}".encode(), hashlib.sha256).hexdigest()

    def link(self, base: str, person: str) -> str:
        """The person's own link. The key stands after #, so that no server or proxy ever sees it in an address."""
        return f"{base}/" if self.only else f"{base}/enter#{quote(person)}.{self.key(person)}"

    def person_with(self, given: str, use: str) -> str | None:
        """The person whose key it is: `NAME.KEY`."""
        name, _, key = given.rpartition(".")
        # Compared even for an unknown name, so that the time tells nothing.
        right = hmac.compare_digest(self.key(name, use).encode(), key.encode("utf-8", "replace"))
        return name if right and name in self.people else None


def split(address: str) -> SplitResult:
    """`urlsplit`, and of what is no address its split of nothing."""
    try:
        found = urlsplit(address)
        return found if found.hostname is not None else urlsplit("")
    except ValueError:
        return urlsplit("")


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach a server there."""
    if host == "localhost":
        return True
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False


class Guard:
    """Middleware: headers on every answer, no large request, no form from elsewhere, no foreign host name."""

    def __init__(self, app: Any, *, access: Access) -> None:
        self.app, self.access = app, access

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let a request through, or answer it."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        refused = self._refusal(Request(scope))
        if refused is not None:
            await with_headers(send, scope)({"type": "http.response.start", "status": refused[0], "headers": [
                (b"content-type", b"text/plain; charset=utf-8")]})
            await send({"type": "http.response.body", "body": refused[1].encode()})
            return
        await self.app(scope, limited(receive, LARGEST_REQUEST), with_headers(send, scope))

    def _refusal(self, request: Request) -> tuple[int, str] | None:
        host = request.headers.get("host", "")
        # Without keys, a page elsewhere whose name is made to point here must not be taken for this machine.
        if self.access.only and not is_loopback(split(f"//{host}").hostname or ""):
            return 421, "This page is reached by 127.0.0.1 or localhost only."
        if request.method in ("GET", "HEAD"):
            return None
        if request.method != "POST":
            return 405, "Only GET and POST."
        if split(request.headers.get("origin", "")).netloc != host or not host:
            return 403, "This form was sent from another page. Open the page again and send it from there."
        if request.headers.get("sec-fetch-site", "same-origin") != "same-origin":
            return 403, "This form was sent from another site."
        length = request.headers.get("content-length", "")
        if length.isdigit() and int(length) > LARGEST_REQUEST:
            return 413, f"A request has at most {LARGEST_REQUEST} bytes."
        return None


def limited(receive: Receive, most: int) -> Receive:
    """The body, as far as it is not too large; a length that was declared wrongly changes nothing."""
    read = 0

    async def receiving() -> MutableMapping[str, Any]:
        nonlocal read
        message = await receive()
        read += len(message.get("body", b""))
        if read > most:
            raise HTTPException(413, f"A request has at most {most} bytes.")
        return message

    return receiving


def with_headers(send: Send, scope: Scope) -> Send:
    """`send`, with the headers that every answer has."""
    async def sending(message: MutableMapping[str, Any]) -> None:
        if message["type"] == "http.response.start":
            # Pages show what others wrote. Script and style may be kept, if the browser asks whether they changed.
            kept = "no-cache" if scope["path"].startswith("/static/") else "no-store"
            message["headers"] = [*message["headers"], *(
                (name.lower().encode(), value.encode()) for name, value in {**HEADERS, "Cache-Control": kept}.items())]
        await send(message)

    return sending


class Pages:
    """A FastAPI app with the guard, templates and error pages. Routes are added by whoever has something to show."""

    def __init__(self, access: Access, *, cookie: str) -> None:
        self.access, self.cookie = access, cookie
        # No generated documentation: its pages load scripts from elsewhere.
        self.app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
        self.app.add_middleware(Guard, access=access)
        self.app.mount("/static", StaticFiles(directory=HERE / "static"))
        self.templates = jinja2.Environment(loader=jinja2.FileSystemLoader(HERE / "templates"), autoescape=True,
                                            trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined)
        self.templates.filters["markdown"] = markdown
        self.app.add_exception_handler(StarletteError, self._error)
        self.app.add_exception_handler(LabError, self._error)

    def show(self, template: str, *, status: int = 200, person: str | None = None, **values: Any) -> HTMLResponse:
        """A page. `person`: whose forms are on it."""
        form_key = self.access.key(person, "form") if person else ""
        text = self.templates.get_template(template).render(**values, person=person, form_key=form_key)
        return HTMLResponse(text, status_code=status)

    def person(self, request: Request) -> str | None:
        """Who asks, by the cookie; None where nobody is known."""
        if self.access.only:
            return self.access.only
        try:
            given = base64.urlsafe_b64decode(request.cookies.get(self.cookie, "")).decode()
        except ValueError:
            return None
        return self.access.person_with(given, "stay")

    def known(self, request: Request) -> str:
        """Who asks. 401 where nobody is known."""
        person = self.person(request)
        if person is None:
            raise HTTPException(401, "Open the link that was sent to you.")
        return person

    def sender(self, request: Request, form: Mapping[str, Any]) -> str:
        """Who sent a form that was on a page of their own. 403 for another one."""
        person = self.known(request)
        if not hmac.compare_digest(str(form.get("form_key", "")).encode(), self.access.key(person, "form").encode()):
            raise HTTPException(403, "This form is not from a page of this server. Open the start page again.")
        return person

    def stay(self, response: Response, request: Request, person: str) -> None:
        """Let the browser be known from now on."""
        value = base64.urlsafe_b64encode(f"{person}.{self.access.key(person, 'stay')}".encode()).decode()
        response.set_cookie(self.cookie, value, httponly=True, samesite="strict", max_age=30 * 24 * 3600,
                            secure=request.url.scheme == "https")

    async def _error(self, request: Request, error: Exception) -> Response:
        status = error.status_code if isinstance(error, StarletteError) else 409
        words = error.detail if isinstance(error, StarletteError) else str(error)
        if status == 401:
            return self.show("enter.html.j2", status=401)
        return self.show("error.html.j2", status=status, words=words, missing=status == 404)


def bind(host: str, port: int) -> socket.socket:
    """A socket that listens. ConfigError where the port is taken or the address is not this machine's."""
    try:
        family, kind, protocol, _, where = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        # With its protocol named, asyncio turns Nagle's algorithm off; else each page would wait 40 ms for an ACK.
        bound = socket.socket(family, kind, protocol)
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind(where)
        bound.listen(128)
    except (OSError, OverflowError) as error:
        number = getattr(error, "errno", None)
        why = "is in use by another program; give another one, or --port 0 for any free one" \
            if number == errno.EADDRINUSE else f"cannot be used: {getattr(error, 'strerror', None) or error}"
        raise ConfigError(f"--port {port}: {why}" if number == errno.EADDRINUSE else
                          f"--host {host} --port {port}: {why}") from error
    return bound


def address(bound: socket.socket) -> str:
    """Where a browser finds the server."""
    host, port = bound.getsockname()[:2]
    if ip_address(host).is_unspecified:
        host = socket.gethostname()
    return f"http://{f'[{host}]' if ':' in host else host}:{port}"


def serve(app: FastAPI, bound: socket.socket) -> None:
    """Answer until Ctrl-C. Requests are not logged: what people judge is nobody's business."""
    server = uvicorn.Server(uvicorn.Config(app, log_level="warning", access_log=False, server_header=False,
                                           timeout_graceful_shutdown=5))
    try:
        server.run(sockets=[bound])
    except KeyboardInterrupt:
        pass
    finally:
        bound.close()
