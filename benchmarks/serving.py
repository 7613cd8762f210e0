"""How much more a server writes for 16 clients at once than for one, and whether it stays up under good, broken and
oversized requests with none lost and steady memory.

    python benchmarks/serving.py [--model tiny-llama] [--clients 16] [--requests 48] [--tokens 64] [--soak SECONDS]

The server is a real process on the loopback with random adapters on the model; what they write means nothing, and takes
as long as sense would. Requests of different adapters are mixed. One JSON object; exit code 1 where a request was lost
or answered otherwise than it has to be. The tests have small versions.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

import httpx
import psutil

ADAPTERS = ("one", "two", "three", "four")
TURNS = [{"role": "user", "content": "The parcel came late and one of its boxes was open. What should I write?"}]
MIB = 2**20


def write_adapters(model: str, folder: Path) -> dict[str, Path]:
    """Random adapters of rank 8, small enough that the model stays what it is."""
    import torch

    from rlhflab.config import Lora
    from rlhflab.model.shared import SharedModel

    base = SharedModel.load(model, dtype="float32", device="cpu")
    for seed, name in enumerate(ADAPTERS):
        base.add_role(name, Lora(rank=8, alpha=16), trainable=False, seed=seed)
        generator = torch.Generator().manual_seed(seed)
        for parameter in base.parameters(name):
            parameter.copy_(0.01 * torch.randn(parameter.shape, generator=generator))
        base.save_role(name, folder / name)
    return {name: folder / name for name in ADAPTERS}


@contextmanager
def served(model: str, adapters: dict[str, Path], *flags: str) -> Iterator[tuple[str, psutil.Process]]:
    """The address up to /v1 and the process, while it answers."""
    given = [flag for name, path in adapters.items() for flag in ("--adapter", f"{name}={path}")]
    server = subprocess.Popen([sys.executable, "-m", "rlhflab", "serve", "--model", model, "--port", "0", *given,
                               *flags], stdout=subprocess.PIPE, text=True)
    try:
        assert server.stdout is not None
        line = server.stdout.readline()
        assert " answers as " in line, "the server did not start"
        yield line.partition(" ")[0], psutil.Process(server.pid)
    finally:
        server.terminate()
        server.wait()


# -- throughput ------------------------------------------------------------------------------------------------------


def throughput(url: str, *, clients: int, requests: int, tokens: int) -> dict[str, float]:
    """Tokens a second of `requests` requests, `clients` of them at once, each of another adapter than the last."""
    def ask(i: int) -> int:
        answer = post(client, url, "chat/completions", {
            "model": ADAPTERS[i % len(ADAPTERS)], "messages": TURNS, "max_tokens": tokens, "seed": i,
            "strength": (0.5, 1.0)[i % 2]})
        assert answer.status_code == 200, answer.text
        return int(answer.json()["usage"]["completion_tokens"])

    limits = httpx.Limits(max_connections=clients)
    with httpx.Client(timeout=600, limits=limits) as client, ThreadPoolExecutor(clients) as pool:
        list(pool.map(ask, range(clients)))  # what is loaded and compiled at first use
        started = time.perf_counter()
        written = sum(pool.map(ask, range(requests)))
        seconds = time.perf_counter() - started
    return {"clients": clients, "requests": requests, "tokens": written, "seconds": round(seconds, 2),
            "tokens_per_second": round(written / seconds, 1)}


def post(client: httpx.Client, url: str, path: str, body: dict[str, Any]) -> httpx.Response:
    """As a client would."""
    return client.post(f"{url}/{path}", json=body)


# -- soak --------------------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class Tally:
    """What was sent, by kind, and how it was answered."""

    sent: Counter[str] = field(default_factory=Counter)
    as_it_has_to_be: Counter[str] = field(default_factory=Counter)
    otherwise: list[str] = field(default_factory=list)
    """What came instead, the first few."""

    @property
    def lost(self) -> int:
        """Requests that were not answered as they have to be."""
        return sum(self.sent.values()) - sum(self.as_it_has_to_be.values())

    def record(self) -> dict[str, Any]:
        """As JSON."""
        return {"sent": dict(self.sent), "answered_as_they_have_to_be": dict(self.as_it_has_to_be), "lost": self.lost,
                "otherwise": self.otherwise[:10]}


def chat(client: httpx.Client, url: str, draw: Random, models: list[str]) -> bool:
    """A chat, whole."""
    answer = post(client, url, "chat/completions", {
        "model": draw.choice(models), "messages": TURNS, "max_tokens": draw.randint(1, 24),
        "seed": draw.randrange(2**31), "n": draw.randint(1, 2)})
    return answer.status_code == 200 and all(c["finish_reason"] in ("stop", "length") for c in answer.json()["choices"])


def stream(client: httpx.Client, url: str, draw: Random, models: list[str]) -> bool:
    """A chat, as a stream, with a stop string and a nucleus."""
    answer = post(client, url, "chat/completions", {
        "model": draw.choice(models), "messages": TURNS, "max_tokens": draw.randint(1, 24), "stream": True,
        "stop": ["zz"], "top_p": 0.9, "temperature": draw.choice((0, 0.7, 1.3))})
    return answer.status_code == 200 and answer.text.endswith("data: [DONE]\n\n")


def mixture(client: httpx.Client, url: str, draw: Random, models: list[str]) -> bool:
    """A completion of a mixture."""
    weights = {name: round(draw.uniform(0, 1.5), 2) for name in draw.sample(models[1:], 2)}
    answer = post(client, url, "completions", {"model": models[0], "prompt": "Once", "max_tokens": draw.randint(1, 24),
                                               "mixture": weights})
    return answer.status_code == 200


def hang_up(client: httpx.Client, url: str, draw: Random, models: list[str]) -> bool:
    """A stream that is left after its first event."""
    with client.stream("POST", f"{url}/chat/completions", json={
            "model": draw.choice(models), "messages": TURNS, "max_tokens": 64, "stream": True}) as answer:
        return answer.status_code == 200 and next(answer.iter_bytes(), b"") != b""


BROKEN: tuple[tuple[bytes, int], ...] = (
    (b"{", 400), (b"", 400), (b"[" * 20000, 400), (b'{"model": "\xff"}', 400), (b'{"model": "\\ud800"}', 400),
    (b'{"model": "none", "messages": [{"role": "user", "content": "q"}]}', 404),
    (b'{"model": "BASE", "messages": []}', 400), (b'{"model": "BASE", "messages": [{"role": "x", "content": 1}]}', 400),
    (b'{"model": "BASE", "messages": [{"role": "user", "content": "q"}], "strength": 9}', 400),
    (b'{"model": "BASE", "messages": [{"role": "user", "content": "q"}], "max_tokens": 99999}', 400),
    (b'{"model": "BASE", "messages": [{"role": "user", "content": "q"}], "tools": [1]}', 400),
    (b'{"model": "BASE", "messages": [{"role": "user", "content": "q"}], "temperature": NaN}', 400))


def broken(client: httpx.Client, url: str, draw: Random, models: list[str]) -> bool:
    """Something that is no request."""
    body, status = draw.choice(BROKEN)
    answer = client.post(f"{url}/chat/completions", content=body.replace(b"BASE", models[0].encode()),
                         headers={"Content-Type": "application/json"})
    return answer.status_code == status and set(answer.json()["error"]) == {"message", "type", "param", "code"}


def oversized(client: httpx.Client, url: str, draw: Random, models: list[str]) -> bool:
    """More than is taken, by its length or in chunks."""
    body = b"x" * draw.randint(MIB + 1, 3 * MIB)
    answer = client.post(f"{url}/chat/completions", content=iter([body[:MIB], body[MIB:]]) if draw.random() < 0.5
                         else body, headers={"Content-Type": "application/json"})
    return answer.status_code == 413


def too_long(client: httpx.Client, url: str, draw: Random, models: list[str]) -> bool:
    """A prompt that does not fit the context."""
    answer = post(client, url, "completions", {"model": models[0], "prompt": "word " * 20000})
    return answer.status_code == 400 and answer.json()["error"]["code"] == "context_length_exceeded"


KINDS: tuple[tuple[Callable[[httpx.Client, str, Random, list[str]], bool], int], ...] = (
    (chat, 6), (stream, 4), (mixture, 3), (hang_up, 1), (broken, 4), (oversized, 1), (too_long, 1))
"""And how often each comes."""


def mixed(url: str, models: list[str], *, clients: int, going_on: Callable[[int], bool]) -> Tally:
    """Requests of every kind from many clients, as long as `going_on(requests of this client)`."""
    tally, lock = Tally(), threading.Lock()

    def one(seed: int) -> None:
        draw, done = Random(seed), 0
        with httpx.Client(timeout=120) as client:
            while going_on(done):
                [(kind, _)] = draw.choices(KINDS, weights=[share for _, share in KINDS])
                try:
                    right, what = kind(client, url, draw, models), "another answer than it has to be"
                except (httpx.HTTPError, ValueError, KeyError) as error:
                    right, what = False, repr(error)
                with lock:
                    tally.sent[kind.__name__] += 1
                    tally.as_it_has_to_be[kind.__name__] += right
                    tally.otherwise += [] if right else [f"{kind.__name__}: {what}"]
                done += 1

    threads = [threading.Thread(target=one, args=(seed,)) for seed in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return tally


def soak(url: str, server: psutil.Process, models: list[str], *, seconds: float, clients: int) -> dict[str, Any]:
    """Mixed requests for some time. Memory is that of the server, each second; the first fifth is warming up."""
    sizes: list[int] = []
    over = threading.Event()

    def watch() -> None:
        while not over.wait(1.0):
            sizes.append(server.memory_info().rss)

    watcher = threading.Thread(target=watch)
    watcher.start()
    end = time.monotonic() + seconds
    tally = mixed(url, models, clients=clients, going_on=lambda done: time.monotonic() < end)
    over.set()
    watcher.join()
    after = httpx.get(f"{url}/models", timeout=60).status_code
    warm = sizes[len(sizes) // 5:] or [server.memory_info().rss]
    tenth = max(1, len(warm) // 10)
    return {"seconds": seconds, "clients": clients, **tally.record(), "answers_afterwards": after == 200,
            "rss_mib": {"start": round(sizes[0] / MIB, 1) if sizes else None,
                        "warm": round(sum(warm[:tenth]) / tenth / MIB, 1),
                        "end": round(sum(warm[-tenth:]) / tenth / MIB, 1), "most": round(max(warm) / MIB, 1)},
            "rss_mib_each_minute": [round(size / MIB, 1) for size in sizes[::60]],
            "threads_at_end": server.num_threads(), "open_files_at_end": server.num_fds()}


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="tiny-llama")
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument("--requests", type=int, default=48, help="0 for no throughput")
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--soak", type=float, default=0.0, metavar="SECONDS")
    chosen = parser.parse_args()
    record: dict[str, Any] = {"model": chosen.model, "cores": os.cpu_count(), "load_before": os.getloadavg()}
    with tempfile.TemporaryDirectory() as folder, \
            served(chosen.model, write_adapters(chosen.model, Path(folder))) as (url, server):
        if chosen.requests:
            alone, together = (throughput(url, clients=clients, tokens=chosen.tokens, requests=requests)
                               for clients, requests in ((1, max(4, chosen.requests // 4)),
                                                         (chosen.clients, chosen.requests)))
            record |= {"alone": alone, "together": together,
                       "ratio": round(together["tokens_per_second"] / alone["tokens_per_second"], 2)}
        if chosen.soak:
            record["soak"] = soak(url, server, [chosen.model, *ADAPTERS], seconds=chosen.soak, clients=8)
    print(json.dumps(record | {"load_after": os.getloadavg()}, indent=2))
    return int(bool(chosen.soak) and (record["soak"]["lost"] > 0 or not record["soak"]["answers_afterwards"]))


if __name__ == "__main__":
    sys.exit(main())
