"""The desk: a chat with two models side by side, runs, the registry with lineage and ledger, verdicts of the gate.

Pages only. The chat calls the API of the server it is mounted in over HTTP; no model is loaded here, nothing is
written, and an adapter is promoted by the command line alone.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastapi import FastAPI, HTTPException, Request
from fastapi.responses import FileResponse, HTMLResponse, Response

from rlhflab.analysis.figures import short
from rlhflab.analysis.page import TEMPLATES, cell, markdown, script_json
from rlhflab.app.lineage import HEIGHT, WIDTH
from rlhflab.app.registry_view import card_of, failure_words, overview
from rlhflab.app.run_folders import (
    MOST,
    REPORT,
    Gate,
    Told,
    gate,
    gates,
    own_file,
    run_folder,
    run_page,
    run_rows,
    told,
)
from rlhflab.app.server import Access, Link, Pages, Sent, content_policy, one
from rlhflab.registry.audit import verify
from rlhflab.registry.store import Registry

MENU = (Link("chat", "/", "Chat"), Link("runs", "/runs", "Runs"), Link("registry", "/registry", "Registry"),
        Link("gates", "/gates", "Gates"))
SIDES = ("A", "B")
STRONGEST = 1.5
"""The largest strength of an adapter, and weight in a mixture, that a dial gives."""
CHAT_POLICY = content_policy({"connect-src": "'self'"})
CURVES_POLICY = content_policy({"style-src": "'self' 'unsafe-inline'", "img-src": "'self' data: blob:"})
"""plotly styles what it draws inline, and draws pictures of it where asked to."""
REPORT_POLICY = content_policy({
    "sandbox": "allow-scripts", "script-src": "'unsafe-inline'", "style-src": "'unsafe-inline'",
    "img-src": "data: blob:", "form-action": "'none'"})
"""A report's scripts run, but in an origin of its own: without cookies, without reading or sending anything here."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Shelf:
    """What the pages show."""

    registry: Path | None
    runs: Path | None

    def gates(self) -> Sequence[Gate]:
        """Every gate among the runs, newest first."""
        return gates(self.runs) if self.runs else ()

    def run(self, name: str) -> tuple[Path, Path]:
        """(the folder of all runs, that of the run). 404 where there is no such run."""
        folder = run_folder(self.runs, name) if self.runs else None
        if self.runs is None or folder is None:
            raise HTTPException(404, "There is no such run.")
        return self.runs, folder


def desk_app(access: Access, *, registry: Path | None = None, runs: Path | None = None,
             cookie: str = "rlhflab") -> FastAPI:
    """The pages as an app. It is mounted at / after the routes of the API were added: `app.mount("/", desk)`.

    An app of its own, since guard, error pages and headers belong to an app and not to a router. `registry` and `runs`
    are folders; a page whose folder was not given says so.
    """
    pages = Pages(access, cookie=cookie, name="desk", assets=("desk.css",), menu=lambda person: MENU)
    pages.templates.filters |= {"script_json": script_json, "cell": cell, "when": when, "number": figure}
    for routes in (_add_chat, _add_runs, _add_registry, _add_gates):
        routes(pages, Shelf(registry=registry, runs=runs))
    return pages.app


def when(at: object) -> str:
    """`2026-11-26 20:34:05`, of a time in ISO 8601; anything else as it is."""
    text = str(at)
    return f"{text[:10]} {text[11:19]}" if text[10:11] == "T" else text


def figure(value: float | None) -> str:
    """A number of a gate's row; a dash where there is none."""
    return "\u2013" if value is None else short(value)


def _with_policy(response: HTMLResponse, policy: str) -> HTMLResponse:
    response.headers["Content-Security-Policy"] = policy
    return response


def _add_chat(pages: Pages, shelf: Shelf) -> None:
    @pages.app.get("/")
    def chat(request: Request) -> Response:
        person = pages.known(request)
        return _with_policy(pages.show("chat.html.j2", person=person, sides=SIDES, strongest=STRONGEST), CHAT_POLICY)

    @pages.app.post("/markdown")
    def written(request: Request, form: Sent) -> Response:
        """An answer as markdown without HTML, for the chat to show."""
        pages.sender(request, form)
        return HTMLResponse(markdown(one(form, "text"), breaks=True))


def _add_runs(pages: Pages, shelf: Shelf) -> None:
    @pages.app.get("/runs")
    def listed(request: Request) -> Response:
        person = pages.known(request)
        return pages.show("runs.html.j2", person=person, root=shelf.runs, most=MOST,
                          runs=run_rows(shelf.runs) if shelf.runs else [])

    @pages.app.get("/runs/{name:path}/report.html")
    def report(request: Request, name: str) -> Response:
        pages.known(request)
        path = own_file(shelf.run(name)[1], REPORT)
        if path is None:
            raise HTTPException(404, "This run has no report; rlhflab report writes one.")
        # A sandboxed page may have no opener policy: browsers refuse to open it then.
        return FileResponse(path, media_type="text/html", headers={
            "Content-Security-Policy": REPORT_POLICY, "Cross-Origin-Opener-Policy": "unsafe-none"})

    @pages.app.get("/runs/{name:path}")
    def run(request: Request, name: str) -> Response:
        person = pages.known(request)
        return _with_policy(pages.show("run.html.j2", person=person, run=run_page(*shelf.run(name))), CURVES_POLICY)

    @pages.app.get("/plotly.js", include_in_schema=False)
    def plotly(request: Request) -> Response:
        from plotly.offline import get_plotlyjs

        pages.known(request)
        return Response(get_plotlyjs(), media_type="text/javascript",
                        headers={"Cache-Control": "private, max-age=3600"})

    @pages.app.get("/curves.js", include_in_schema=False)
    def curves() -> Response:
        return FileResponse(TEMPLATES / "report.js", media_type="text/javascript")


def _add_registry(pages: Pages, shelf: Shelf) -> None:
    def folder() -> Path:
        if shelf.registry is None:
            raise HTTPException(404, "No registry was given; start the server with --registry FOLDER.")
        return shelf.registry

    def shown(template: str, read: Callable[[], Any], **values: Any) -> Response:
        """The page of what was read. What an unsigned ledger holds may be of any kind, so that drawing can fail too."""
        found = told(read, folder())
        if found.problem is None and found.value is None:
            raise HTTPException(404, "The registry has no such adapter.")
        page = told(lambda: pages.show(template, found=found.value, problem=found.problem, **values), folder())
        return page.value or pages.show(template, found=None, problem=page.problem, **values)

    def overall(person: str, checked: Told | None = None) -> Response:
        broken = failure_words(checked.value["failures"]) if checked and checked.value else []
        return shown("registry.html.j2", lambda: overview(folder(), shelf.gates()), person=person, checked=checked,
                     broken=broken, box=(WIDTH, HEIGHT))

    @pages.app.get("/registry")
    def registry(request: Request) -> Response:
        person = pages.known(request)
        return overall(person) if shelf.registry else pages.show("registry.html.j2", person=person, found=None,
                                                                 problem=None)

    @pages.app.post("/registry/verify")
    def check(request: Request, form: Sent) -> Response:
        person = pages.sender(request, form)
        return overall(person, told(lambda: verify(Registry(folder())), folder()))

    @pages.app.get("/registry/{digest}")
    def adapter(request: Request, digest: str) -> Response:
        person = pages.known(request)
        return shown("adapter.html.j2", lambda: card_of(folder(), digest, shelf.gates()), person=person)


def _add_gates(pages: Pages, shelf: Shelf) -> None:
    @pages.app.get("/gates")
    def listed(request: Request) -> Response:
        person = pages.known(request)
        return pages.show("gates.html.j2", person=person, root=shelf.runs, gates=shelf.gates())

    @pages.app.get("/gates/{name:path}")
    def judged(request: Request, name: str) -> Response:
        person = pages.known(request)
        root, folder = shelf.run(name)
        found = gate(root, folder)
        return pages.show("gate.html.j2", person=person, gate=found)
