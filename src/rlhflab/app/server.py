"""What every page of the lab shares: who may look, what a page may load, how large a request may be, the server.

Pages are whole HTML from templates, with a script and styles of their own; nothing is loaded from elsewhere. What a
page is about is not here, only the entrance that all of them have.
"""

import base64
import errno
import hashlib
import hmac
import secrets
import socket
from collections.abc import Awaitable, Callable, Mapping, MutableMapping, Sequence
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path
from typing import Annotated, Any, NamedTuple
from urllib.parse import SplitResult, parse_qs, quote, urlsplit

import jinja2
import uvicorn
from fastapi import Depends, FastAPI, HTTPException, Request
from fastapi.responses import FileResponse, HTMLResponse, RedirectResponse, Response
from fastapi.staticfiles import StaticFiles
from starlette.exceptions import HTTPException as StarletteError

from rlhflab.analysis.page import TEMPLATES, markdown
from rlhflab.errors import ConfigError, LabError

HERE = Path(__file__).parent
LARGEST_REQUEST = 64 * 1024
"""Bytes of a request's body."""
SHORTEST_TOKEN = 16
"""Characters of a token that others may guess at."""
POLICY = {"default-src": "'none'", "script-src": "'self'", "style-src": "'self'", "img-src": "'self'",
          "form-action": "'self'", "base-uri": "'none'", "frame-ancestors": "'none'"}
"""No inline script or style, nothing from elsewhere: what slips into a page cannot run or call home."""


def content_policy(changes: Mapping[str, str] | None = None) -> str:
    """The content security policy of a page that needs some directives to be others."""
    return "; ".join(f"{name} {value}".strip() for name, value in {**POLICY, **(changes or {})}.items())


HEADERS = {
    "Content-Security-Policy": content_policy(),
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
Form = Mapping[str, Sequence[str]]


class Link(NamedTuple):
    """A page in the menu."""

    here: str
    """What a template calls itself, so that its own link is marked."""
    path: str
    text: str


async def form_of(request: Request) -> Form:
    """What a form holds. HTTPException for anything else."""
    kind = request.headers.get("content-type", "").partition(";")[0]
    if kind != "application/x-www-form-urlencoded":
        raise HTTPException(415, "Only forms are taken.")
    try:
        return parse_qs((await request.body()).decode(), keep_blank_values=True, max_num_fields=64, errors="strict")
    except ValueError as error:
        raise HTTPException(400, "This form cannot be read.") from error


Sent = Annotated[Form, Depends(form_of)]


def one(form: Form, key: str) -> str:
    """The first value of a field, empty where there is none."""
    return form.get(key, ("",))[0]


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

    def person_of(self, request: Request, cookie: str) -> str | None:
        """Who asks, by the cookie of that name; None where nobody is known."""
        if self.only:
            return self.only
        try:
            given = base64.urlsafe_b64decode(request.cookies.get(cookie, "")).decode()
        except ValueError:
            return None
        return self.person_with(given, "stay")


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


def foreign_host(request: Request, access: Access) -> bool:
    """Whether a server without keys was asked by a name that is not this machine's own.

    Else a page elsewhere whose name is made to point here would be taken for this machine.
    """
    host = request.headers.get("host", "")
    return access.only is not None and not is_loopback(split(f"//{host}").hostname or "")


def from_own_page(request: Request) -> bool:
    """Whether the browser says that a page of this server sent the request."""
    host = request.headers.get("host", "")
    return bool(host) and split(request.headers.get("origin", "")).netloc == host and \
        request.headers.get("sec-fetch-site", "same-origin") == "same-origin"


def reader_of(request: Request, access: Access, *, cookie: str) -> str | None:
    """The reader of a page of this server that sent the request to an API beside it; None where no such page did."""
    own = from_own_page(request) or (request.method in ("GET", "HEAD") and
                                     request.headers.get("sec-fetch-site") == "same-origin")
    return access.person_of(request, cookie) if own else None


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
        if foreign_host(request, self.access):
            return 421, "This page is reached by 127.0.0.1 or localhost only."
        if request.method in ("GET", "HEAD"):
            return None
        if request.method != "POST":
            return 405, "Only GET and POST."
        if not from_own_page(request):
            return 403, "This form was sent from another page. Open the page again and send it from there."
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
            said = {name.lower() for name, _ in message["headers"]}  # by a page that needs another policy
            message["headers"] = [*message["headers"], *(
                (name.lower().encode(), value.encode()) for name, value in {**HEADERS, "Cache-Control": kept}.items()
                if name.lower().encode() not in said)]
        await send(message)

    return sending


class Pages:
    """A FastAPI app with the guard, templates, entrance and error pages. Routes are added by whoever has something to
    show.
    """

    def __init__(self, access: Access, *, cookie: str, name: str, assets: Sequence[str] = (),
                 menu: Callable[[str], Sequence[Link]]) -> None:
        """`name` stands on every page, behind the lab's; `assets` are styles and scripts of the static folder, beside
        those that all pages have; `menu`: the pages that a person may open.
        """
        self.access, self.cookie = access, cookie
        # No generated documentation: its pages load scripts from elsewhere.
        self.app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
        self.app.add_middleware(Guard, access=access)
        self.templates = jinja2.Environment(loader=jinja2.FileSystemLoader([HERE / "templates", TEMPLATES]),
                                            autoescape=True, trim_blocks=True, lstrip_blocks=True,
                                            undefined=jinja2.StrictUndefined)
        self.templates.filters["markdown"] = markdown
        self.templates.globals |= {"brand": f"rlhflab {name}", "menu": menu, "assets": ("pages.css", *assets)}
        self.app.add_exception_handler(StarletteError, self._error)
        self.app.add_exception_handler(LabError, self._error)
        self._add_entrance()

    def _add_entrance(self) -> None:
        @self.app.get("/enter")
        def entrance(request: Request) -> Response:
            return self.show("enter.html.j2")

        @self.app.post("/enter")
        def enter(request: Request, form: Sent) -> Response:
            person = self.access.person_with(one(form, "key"), "enter")
            if person is None:
                raise HTTPException(403, "This link does not fit this server. Ask for a new one.")
            response = RedirectResponse("/", 303)
            self.stay(response, request, person)
            return response

        @self.app.get("/static/report.css", include_in_schema=False)
        def style() -> Response:
            return FileResponse(TEMPLATES / "report.css", media_type="text/css")

        @self.app.get("/favicon.ico", include_in_schema=False)
        def icon() -> Response:
            return Response(status_code=204)

        # Behind the one style sheet that lies elsewhere: routes are asked in this order.
        self.app.mount("/static", StaticFiles(directory=HERE / "static"))

    def show(self, template: str, *, status: int = 200, person: str | None = None, **values: Any) -> HTMLResponse:
        """A page. `person`: whose forms are on it."""
        form_key = self.access.key(person, "form") if person else ""
        text = self.templates.get_template(template).render(**values, person=person, form_key=form_key)
        return HTMLResponse(text, status_code=status)

    def known(self, request: Request) -> str:
        """Who asks. 401 where nobody is known."""
        person = self.access.person_of(request, self.cookie)
        if person is None:
            raise HTTPException(401, "Open the link that was sent to you.")
        return person

    def sender(self, request: Request, form: Form) -> str:
        """Who sent a form that was on a page of their own. 403 for another one."""
        person = self.known(request)
        if not hmac.compare_digest(one(form, "form_key").encode(), self.access.key(person, "form").encode()):
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
