"""How quick the annotation pages are on a large store, and whether many annotators at once lose or double a judgment.

    python benchmarks/annotation.py [--comparisons 100000] [--judgments 2000] [--annotators 8] [--store URL]

The server is a real process on the loopback, and each annotator a thread that reads pages and sends forms; one form in
five is sent twice, as after a lost answer. `--store` takes the URL of an empty database. The tests have small versions
of both. Exit code 1 where a judgment is missing, doubled or given to too many.
"""

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from random import Random

import httpx
import numpy as np
import psutil

from rlhflab.data.judging import Item
from rlhflab.data.store import Store
from rlhflab.data.types import Message, Prompt

HIDDEN = re.compile(r'name="(form_key|assignment|submission)" value="([^"]*)"')
ANSWER = "The garage closes at {0} pm on weekdays. On Sundays it stays closed, as the note says in its last line. " * 4
TOKEN = "0123456789abcdef0123456789abcdef"
LONGEST = 600.0
"""Seconds after which the measurement gives up."""


def items(n: int) -> Iterator[Item]:
    """Comparisons as long as usual answers; one in a thousand has a known verdict."""
    for i in range(n):
        yield Item(prompt=Prompt(id=f"p{i}", messages=(Message(role="user", content=f"When does garage {i} close?"),)),
                   a=ANSWER.format(i % 12), b=ANSWER.format(i % 12 + 1), gold="a" if i % 1000 == 0 else None)


@contextmanager
def served(store: Path | str, names: list[str], overlap: int) -> Iterator[tuple[dict[str, str], psutil.Process]]:
    """The link of each annotator, and the server's process, while it answers."""
    people = [flag for name in names for flag in ("--annotator", name)]
    server = subprocess.Popen([sys.executable, "-m", "rlhflab", "annotate", str(store), *people, "--port", "0",
                               "--token", TOKEN, "--overlap", str(overlap)], stdout=subprocess.PIPE, text=True)
    links: dict[str, str] = {}
    try:
        assert server.stdout is not None
        while len(links) < len(names):
            line = server.stdout.readline()
            assert line, "the server did not start"
            name, _, link = line.strip().partition(": ")
            links |= {name: link} if name in names else {}
        yield links, psutil.Process(server.pid)
    finally:
        server.terminate()
        server.wait()


def entered(link: str) -> httpx.Client:
    """A client that is known to the server."""
    base, _, key = link.partition("/enter#")
    client = httpx.Client(base_url=base, headers={"Origin": base}, timeout=LONGEST)
    assert client.post("/enter", data={"key": key}).status_code == 303
    return client


def annotate(link: str, n: int, seed: int, pages: list[float], sent: list[float]) -> None:
    """Judge `n` comparisons. Appends the seconds of each page and of each form."""
    draw = Random(seed)
    with closing(entered(link)) as client:
        for _ in range(n):
            started = time.perf_counter()
            page = client.get("/")
            pages.append(time.perf_counter() - started)
            form = dict(HIDDEN.findall(page.text))
            form |= {"verdict": draw.choice(("first", "second", "tie")), "strength": "clearly", "seconds": "1"}
            for _ in range(2 if draw.random() < 0.2 else 1):
                started = time.perf_counter()
                assert client.post("/judge", data=form).status_code == 303
                sent.append(time.perf_counter() - started)


def spread(seconds: list[float]) -> dict[str, float]:
    """Milliseconds: the median, what 95 and 99 in a hundred stay below, and the worst."""
    values = np.array(seconds) * 1000
    return {"n": len(values), "median": round(float(np.median(values)), 1),
            "p95": round(float(np.quantile(values, 0.95)), 1), "p99": round(float(np.quantile(values, 0.99)), 1),
            "worst": round(float(values.max()), 1)}


def together(links: dict[str, str], n: int) -> tuple[list[float], list[float], float]:
    """All annotators at once, `n` judgments each: seconds of pages, of forms, and of it all."""
    pages: list[float] = []
    sent: list[float] = []
    started = time.perf_counter()
    threads = [threading.Thread(target=annotate, args=(link, n, seed, pages, sent))
               for seed, link in enumerate(links.values())]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(LONGEST)
    return pages, sent, time.perf_counter() - started


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--comparisons", type=int, default=100_000)
    parser.add_argument("--judgments", type=int, default=2000)
    parser.add_argument("--annotators", type=int, default=8)
    parser.add_argument("--overlap", type=int, default=2)
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--store")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=asked.folder) as folder:
        path = asked.store or Path(folder) / "store.sqlite"
        store = Store.open(path)
        started = time.perf_counter()
        store.add(items(asked.comparisons))
        said = {"comparisons": asked.comparisons, "filled in s": round(time.perf_counter() - started, 1),
                "file MB": None if asked.store else round(path.stat().st_size / 1e6)}
        started = time.perf_counter()
        Store.open(path).close()
        said["opened in s"] = round(time.perf_counter() - started, 2)
        names = [f"annotator{i}" for i in range(asked.annotators)]
        with served(path, names, asked.overlap) as (links, server):
            before = sum(server.cpu_times()[:2])
            pages, sent, _ = together({names[0]: links[names[0]]}, 200)
            forms = len(sent)
            used = (sum(server.cpu_times()[:2]) - before) * 1000 / 200
            said |= {"one annotator, page ms": spread(pages), "one annotator, form ms": spread(sent),
                     "server CPU ms a judgment": round(used, 1), "load of the machine": os.getloadavg()[0]}
            each = asked.judgments // asked.annotators
            pages, sent, took = together(links, each)
            said |= {"all at once, page ms": spread(pages), "all at once, form ms": spread(sent),
                     "judgments a second": round(each * asked.annotators / took, 1)}
        rows = list(store.all_said())
        expected = each * asked.annotators + 200
        doubled = [key for key, n in Counter((r.comparison_id, r.annotator) for r in rows).items() if n > 1]
        judged = Counter(each.comparison_id for each in rows)
        golds = {each.id for each in store.everything() if each.item.gold} if judged else set()
        crowded = [key for key, n in judged.items() if n > asked.overlap and key not in golds]
        said |= {"judgments expected": expected, "judgments stored": len(rows), "forms sent": forms + len(sent),
                 "doubled": len(doubled), "given to too many": len(crowded)}
        print(json.dumps(said, indent=2))
        return int(len(rows) != expected or bool(doubled) or bool(crowded))


if __name__ == "__main__":
    sys.exit(main())
