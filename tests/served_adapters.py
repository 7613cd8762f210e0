"""Adapters of a tiny model in folders and in a registry, and a server on the loopback that answers with them."""

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import openai
import uvicorn

from conftest import moved_role
from rlhflab.app.gate import Keys
from rlhflab.app.server import Access, address, bind
from rlhflab.commands.serve import make_service, serving_app
from rlhflab.model.shared import SharedModel
from rlhflab.progress import Progress
from rlhflab.registry.store import Registry
from rlhflab.runs.registering import Said, add_adapter
from rlhflab.runs.serving import BatchingService, Limits

BASE = "tiny-llama"
SMALL = Limits(max_new_tokens=64, context=256, rows=4, queue=16)
PARENTS = {"sft": (), "brief": ("sft",), "polite": ("sft",), "alone": ()}
"""Names of adapters, and what each started from."""
OPEN = Keys(digests={})


def trained(folder: Path, names: Sequence[str] = tuple(PARENTS)) -> dict[str, Path]:
    """Adapter folders of these names, each with weights of its own."""
    model = SharedModel.load(BASE, dtype="float32", device="cpu")
    for seed, name in enumerate(names, start=1):
        moved_role(model, name, seed=seed)
        model.save_role(name, folder / name)
    return {name: folder / name for name in names}


def registry_with(folder: Path, parents: dict[str, tuple[str, ...]] = PARENTS) -> Registry:
    """An unsigned registry with an adapter of each name."""
    registry = Registry.init(folder / "registry", signed=False, by="anna")
    for name, path in trained(folder / "trained", tuple(parents)).items():
        add_adapter(registry, path, Said(by="anna", name=name, model=BASE, parents=parents[name]), role=None,
                    progress=Progress())
    return registry


def service_with(registry: Registry | None, *, limits: Limits = SMALL, log: Path | None = None,
                 **folders: Path) -> BatchingService:
    """A service on the tiny model, not yet started."""
    return make_service(BASE, registry=registry.folder if registry else None, folders=folders, log=log, limits=limits,
                        dtype="float32", device="cpu")


@contextmanager
def running(service: BatchingService, *, keys: Keys = OPEN, rate: int | None = None,
            largest: int = 2**16) -> Iterator[str]:
    """The address of a server, up to and with /v1, while it answers."""
    bound = bind("127.0.0.1", 0)
    server = uvicorn.Server(uvicorn.Config(serving_app(
        service, keys=keys, rate=rate, largest=largest, access=Access.of(("desk",), token="a" * 24, host="127.0.0.1"),
        registry=None, runs=None), log_level="critical", timeout_graceful_shutdown=5))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [bound]})
    service.start()
    thread.start()
    try:
        yield f"{address(bound)}/v1"
    finally:
        server.should_exit = True
        thread.join()
        service.close()
        bound.close()


def client(url: str, key: str = "any") -> openai.OpenAI:
    """The official client, which does not ask twice."""
    return openai.OpenAI(base_url=url, api_key=key, max_retries=0, timeout=60)


def said(made: Any) -> str:
    """The text of the one answer."""
    [choice] = made.choices
    return str(choice.message.content)
