"""A desk with something on every page: a registry, runs, gates, and a small API that says what it was sent."""

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse

from registry_folders import adapter_folder, registry_of
from report_folders import write_demo, write_run
from rlhflab.app.desk import desk_app
from rlhflab.app.gate import Gate, Keys
from rlhflab.app.server import Access, reader_of
from rlhflab.registry.records import HEAD, Adapter, BaseFacts, Provenance
from rlhflab.registry.sources import look_at
from rlhflab.registry.store import Registry

EVIL = ("</script><script>window.ran = 1</script><img src=http://evil.example/x onerror='window.ran = 2'>"
        "[a](javascript:window.ran=3)<svg onload='window.ran = 5'></svg><style>body{display:none}</style>")
BASE = BaseFacts(name="smollm2-135m", digest="b" * 64)


def add(registry: Registry, folder: Path, name: str, *parents: str | None, value: int, note: str | None = None) -> str:
    """An adapter that says what it was made of; its digest. A single None as parent: nobody wrote it down."""
    source = look_at(adapter_folder(folder / name, value))
    state = registry.state()
    made = Provenance(parents=None if None in parents else tuple(state.find(each or "").digest for each in parents))

    def describe(digest: str, files: Any) -> Adapter:
        return Adapter(digest=digest, name=name, files=files, base=BASE, rank=source.rank, alpha=8,
                       head=HEAD in source.files, made=made, note=note)

    return registry.add(source.files, describe, by="anna").adapter.digest


def lineage_registry(folder: Path) -> Registry:
    """With sft of the base; dpo and ppo of sft; merged of both; old without known parents. ppo, then dpo, in prod."""
    registry = registry_of(folder, signed=False)
    trained = folder / "trained"
    add(registry, trained, "sft", value=1)
    dpo = add(registry, trained, "dpo", "sft", value=2, note=EVIL)
    add(registry, trained, "ppo", "sft", value=3)
    add(registry, trained, "merged", "dpo", "ppo", value=4)
    add(registry, trained, "old", None, value=5)
    registry.promote("ppo", "prod", by="anna", gate=None, override="a first one")
    gate = write_gate(folder / "dpo-gate", candidate_digest=dpo, active_digest=registry.state().find("ppo").digest)
    registry.promote("dpo", "prod", by="ben", gate=gate / "gate.json", override=None)
    return registry


def gate_row(**values: Any) -> dict[str, Any]:
    """A row as the gate writes it."""
    return {"suite": "grounded", "metric": "right", "test": "non_inferior", "verdict": "pass", "blocking": True,
            "declared_blocking": True, "blocks": False, "n": 120, "unscored": 2, "candidate": 0.9, "active": 0.88,
            "change": 0.02, "low": -0.03, "high": 0.07, "margin": 0.1, "relative": False, "discordance": 0.05,
            "declared_discordance": 0.15, "design_power": 0.99, "power": 0.999, "detectable": 0.06, "p": 0.7,
            "reason": "changed by +0.020 [-0.030, +0.070] on 120 items (higher is better): a loss of 0.1 is ruled out",
            **values}


def write_gate(folder: Path, **values: Any) -> Path:
    """A gate's run folder."""
    folder.mkdir(parents=True)
    (folder / "gate.json").write_text(json.dumps({
        "format": "rlhflab-gate-1", "verdict": "pass", "blocks": False, "at": "2026-11-25T10:00:00+00:00",
        "version": "0.1", "candidate": "runs/dpo/roles/policy", "candidate_digest": "c" * 64, "active": "prod",
        "active_digest": "a" * 64, "base": "smollm2-135m", "base_digest": "b" * 64, "dtype": "float32",
        "policy": "gate.yaml", "policy_digest": "d" * 64, "confidence": 0.95,
        "rows": [gate_row(), gate_row(suite="safety", metric="refuses", verdict="inconclusive", blocking=False,
                                      change=None, low=None, high=None, candidate=None, n=0, unscored=40,
                                      reason="only 0 of the 40 prompts that were scored were scored again")],
        **values}))
    return folder


def run_folders(root: Path, *, candidate: str = "c" * 64) -> Path:
    """A training run with a report, a demo with its stages, two gates, and one run whose files are broken."""
    write_run(made(root / "ppo-20261124-101500"))
    (root / "ppo-20261124-101500/record.json").write_text(json.dumps({
        "kind": "ppo", "status": "finished", "started": "2026-11-24T10:15:00+00:00", "seconds": 812.5,
        "base": {"name": "smollm2-135m", "digest": "b" * 64}, "versions": {"torch": "2.11.0"}}))
    (root / "ppo-20261124-101500/config.yaml").write_text("kind: ppo\nmodel: smollm2-135m\ndata: helpdesk\nseed: 3\n")
    (root / "ppo-20261124-101500/report.html").write_text(REPORT)
    write_demo(root / "demo-20261123-090000")
    write_gate(root / "gate-20261125-100000", candidate_digest=candidate)
    write_gate(root / "gate-20261125-110000", verdict="fail", blocks=True, at="2026-11-25T11:00:00+00:00", rows=[
        gate_row(verdict="fail", blocks=True, change=-0.2, low=-0.28, high=-0.12, candidate=0.68,
                 reason="changed by -0.200 [-0.280, -0.120] on 120 items (higher is better): the loss is larger than "
                        "the margin of 0.1")])
    broken = made(root / "broken")
    (broken / "record.json").write_text("{not json")
    (broken / "config.yaml").write_text("kind: [\n")
    (broken / "metrics.jsonl").write_text('{"step": 1, "loss": 2}\nnot json\n')
    return root


REPORT = """<!doctype html><title>Report</title><p id=who>a report</p><script>
document.getElementById("who").textContent = "ran";
try { window.cookies = document.cookie; } catch (error) { window.cookies = "none: " + error.name; }
fetch("/runs").then(() => { window.called = "yes"; }, () => { window.called = "no"; });
</script>"""


def made(folder: Path) -> Path:
    """The folder, made."""
    folder.mkdir(parents=True)
    return folder


MODELS = [{"id": "smollm2-135m", "rlhflab": {"kind": "base", "digest": "b" * 64, "parent": None}},
          {"id": "sft", "rlhflab": {"kind": "adapter", "digest": "1" * 64, "parent": None}},
          {"id": "dpo", "rlhflab": {"kind": "adapter", "digest": "2" * 64, "parent": "1" * 64}},
          {"id": "prod", "rlhflab": {"kind": "active", "digest": "2" * 64, "parent": "1" * 64}}]


class FakeApi:
    """The API in small. An answer tells what was asked; some prompts make it fail, wait or answer with code."""

    def __init__(self, access: Access, *, cookie: str = "rlhflab") -> None:
        self.bodies: list[dict[str, Any]] = []
        self.app = FastAPI()

        self.app.add_middleware(
            Gate, keys=Keys.of(token=None if access.only else access.secret.decode(), file=None, host="127.0.0.1"),
            largest=2**20, rate=None, reader=lambda request: reader_of(request, access, cookie=cookie))

        @self.app.get("/v1/models")
        def models() -> dict[str, Any]:
            return {"object": "list", "data": [{"object": "model", "created": 0, "owned_by": "x", **each}
                                               for each in MODELS]}

        @self.app.post("/v1/chat/completions")
        async def completions(request: Request) -> Response:
            body = await request.json()
            self.bodies.append(body)
            said = body["messages"][-1]["content"]
            if said == "fail" and body["model"] == "smollm2-135m":
                return error(400, "strength must lie between 0 and 1.5, found 9")
            return StreamingResponse(self._pieces(body, said), media_type="text/event-stream")

    async def _pieces(self, body: dict[str, Any], said: str) -> AsyncIterator[str]:
        told = {key: body[key] for key in ("model", "strength", "mixture") if key in body}
        text = EVIL if said == "evil" else "**Bold** and `code`:\n\n- one\n- two" if said == "markdown" else \
            f"{len(body['messages'])} messages, {json.dumps(told)}"
        for start in range(0, len(text), 7):
            yield event({"choices": [{"index": 0, "delta": {"content": text[start:start + 7]}, "finish_reason": None}]})
            await asyncio.sleep(0.2 if said == "slow" else 0)
        if said == "break":
            yield event({"error": {"message": "the model ran out of memory"}})
            return
        yield event({"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]})
        yield "data: [DONE]\n\n"


def event(value: Any) -> str:
    """One server-sent event."""
    return f"data: {json.dumps(value)}\n\n"


def error(status: int, message: str) -> Response:
    """As the API says that something is wrong."""
    return JSONResponse({"error": {"message": message}}, status)


def whole_desk(folder: Path, access: Access) -> FakeApi:
    """The API with the desk behind it, on a registry and runs in `folder`."""
    registry = lineage_registry(folder)
    api = FakeApi(access)
    runs = run_folders(folder / "runs", candidate=registry.state().find("dpo").digest)
    api.app.mount("/", desk_app(access, registry=registry.folder, runs=runs))
    return api
