"""The command serve."""

import secrets
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter
from cyclopts.validators import Number

from rlhflab.commands.shared import DEFAULT_MODEL, Count
from rlhflab.errors import ConfigError

if TYPE_CHECKING:
    from fastapi import FastAPI

    from rlhflab.app.gate import Keys
    from rlhflab.app.server import Access
    from rlhflab.runs.serving import BatchingService, Limits

READER = "desk"
"""Who reads the pages. There is one; keys of programs have names."""
COOKIE = "rlhflab_desk"


def serve_command(*, model: str = DEFAULT_MODEL, registry: Annotated[Path | None, Parameter(
                  env_var="RLHFLAB_REGISTRY")] = None, runs: Path | None = None, adapter: list[str] | None = None,
                  host: str = "127.0.0.1", port: Annotated[int, Parameter(validator=Number(gte=0, lte=65535))] = 8000,
                  token: Annotated[str | None, Parameter(env_var="RLHFLAB_TOKEN")] = None, api_keys: Path | None = None,
                  max_body: Count = 2**20, rate: Count | None = None, log_requests: Path | None = None,
                  max_new_tokens: Count = 512, context: Count = 2048, rows: Count = 16, queue: Count = 64,
                  dtype: str = "auto", device: str = "auto") -> None:
    """Answer OpenAI's chat completions, completions and models on one base and many adapters, with pages beside it.

    A model is the base, an adapter of the registry, NAME of a folder, or DEPLOYMENT@active, which follows the
    registry's pointer without a restart. Requests of different adapters are written in one batch. Beside OpenAI's keys
    a request may have strength (0 to 1.5), which scales the adapter's change from its parent, or mixture, an object of
    models and their weights. Runs until Ctrl-C.

    Args:
        model: The base: a name of `rlhflab models`, a hub id, or a local transformers folder.
        registry: The folder of a registry whose adapters on this base are served.
        runs: A folder of run folders, which the pages show with their reports and the verdicts of the gate.
        adapter: NAME=FOLDER of an adapter; again for another one.
        host: The address to listen on; other machines reach 0.0.0.0, which needs keys.
        port: The port to listen on; 0 for any that is free.
        token: A key of at least 16 random characters; whoever asks shows it as the API key.
        api_keys: A file of keys, a line NAME KEY each.
        max_body: Largest request, bytes.
        rate: Requests a minute with each key; no limit where absent.
        log_requests: Append prompts and answers to this JSONL file, which rlhflab drift reads; nothing is kept where
            absent.
        max_new_tokens: Longest answer, tokens.
        context: Longest prompt with its answer, tokens; the model's own where that is less.
        rows: Answers written at one time.
        queue: Answers that may wait; beyond them a request is told to come again.
        dtype: Of the base: float32, bfloat16, or auto for what the device multiplies natively.
        device: cpu, cuda, or auto.
    """
    _need_app()
    from rlhflab.app.gate import Keys
    from rlhflab.app.server import Access, address, bind, serve
    from rlhflab.registry.records import LEDGER
    from rlhflab.runs.serving import Limits

    keys = Keys.of(token=token, file=api_keys, host=host)
    # With keys of programs alone, the pages get a secret of their own for as long as the server runs.
    access = Access.of((READER,), token=token or (secrets.token_urlsafe(24) if keys.digests else None), host=host)
    folders = folders_of(adapter or ())
    if registry is not None and not (registry / LEDGER).is_file():
        raise ConfigError(f"--registry {registry}: is not a registry; rlhflab registry init makes one")
    if runs is not None and not runs.is_dir():
        raise ConfigError(f"--runs {runs}: no such folder")
    bound = bind(host, port)  # before minutes of loading, and before a log is begun
    try:
        service = make_service(model, registry=registry, folders=folders, log=log_requests, dtype=dtype, device=device,
                               limits=Limits(max_new_tokens=max_new_tokens, context=context, rows=rows, queue=queue))
    except BaseException:
        bound.close()
        raise
    app = serving_app(service, keys=keys, rate=rate, largest=max_body, access=access, registry=registry, runs=runs)
    service.start()
    names = ", ".join(each.name for each in service.models())
    print(f"{address(bound)}/v1 answers as {names}. "
          f"{'A key is needed' if keys.digests else 'Only this machine can ask'}"
          f"{f'; requests go to {log_requests}' if log_requests else ''}. Ctrl-C ends it.\n"
          f"Pages, with a chat: {access.link(address(bound), READER)}")
    sys.stdout.flush()
    try:
        serve(app, bound)
    finally:
        service.close()
    if log_requests:
        print(f"Next: rlhflab drift BASELINE {log_requests}")


def serving_app(service: "BatchingService", *, keys: "Keys", rate: int | None, largest: int, access: "Access",
                registry: Path | None, runs: Path | None) -> "FastAPI":
    """All that the server shows, as one app: the API, and the desk beside it."""
    from rlhflab.app.desk import desk_app
    from rlhflab.app.openai_api import serving_app as api
    from rlhflab.app.server import reader_of

    app = api(service, keys=keys, rate=rate, largest=largest,
              reader=lambda request: reader_of(request, access, cookie=COOKIE))
    app.mount("/", desk_app(access, registry=registry, runs=runs, cookie=COOKIE))
    return app


def make_service(model: str, *, registry: Path | None, folders: dict[str, Path], log: Path | None, limits: "Limits",
                 dtype: str = "auto", device: str = "auto") -> "BatchingService":
    """The service that writes, not yet started. One clear error where a name, folder or registry cannot be served."""
    from dataclasses import replace

    from rlhflab.progress import Progress
    from rlhflab.registry.store import Registry
    from rlhflab.runs.lab import Lab
    from rlhflab.runs.registering import facts_of_model
    from rlhflab.runs.request_log import RequestLog
    from rlhflab.runs.served_names import Names
    from rlhflab.runs.serving import BatchingService

    names = Names(facts_of_model(model), folders=folders, registry=None if registry is None else Registry(registry))
    progress = Progress()
    progress.say(f"Loading {model} ...")
    lab = Lab.load(model, dtype=dtype, device=device, progress=progress)
    service = BatchingService(lab, names, replace(limits, context=min(limits.context, lab.model.context)),
                              log=RequestLog(log) if log else None)
    for name in folders:
        service.load(name)
    return service


def folders_of(given: Sequence[str]) -> dict[str, Path]:
    """`NAME=FOLDER` flags by name. ConfigError where one has another form, or a name comes twice."""
    found: dict[str, Path] = {}
    for each in given:
        name, _, path = each.partition("=")
        if not (name and path):
            raise ConfigError(f"--adapter: must be NAME=FOLDER, found {each!r}")
        if name in found:
            raise ConfigError(f"--adapter: {name} is given twice")
        found[name] = Path(path)
    return found


def _need_app() -> None:
    missing = [name for name in ("fastapi", "uvicorn") if find_spec(name) is None]
    if missing:
        raise ConfigError(f"serve needs {', '.join(missing)}, which is not installed; run: "
                          "pip install 'mini-rlhf-lab[app]'")
