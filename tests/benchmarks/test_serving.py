"""`benchmarks/serving.py` in small: requests of every kind are answered as they have to be, and memory is made once."""

import sys
from pathlib import Path

import psutil
import pytest

from rlhflab.runs.serving import Limits
from served_adapters import BASE, running, service_with, trained

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))
import serving

ROOM = Limits(max_new_tokens=64, context=256, rows=8, queue=64)


@pytest.fixture(scope="module")
def service(tmp_path_factory):
    return service_with(None, limits=ROOM, **trained(tmp_path_factory.mktemp("adapters"), serving.ADAPTERS))


def test_good_broken_and_oversized_requests_are_answered_and_memory_stays(service):
    models, own = [BASE, *serving.ADAPTERS], psutil.Process()
    with running(service, largest=serving.MIB) as url:
        first = serving.mixed(url, models, clients=4, going_on=lambda done: done < 12)
        slots, size = service.batch.rows.slots, own.memory_info().rss
        again = serving.mixed(url, models, clients=4, going_on=lambda done: done < 12)
        assert service.batch.rows.slots is slots, "keys and values lie where they were allocated at first"
    for tally in (first, again):
        assert tally.lost == 0 and not tally.otherwise, tally.record()
        assert sum(tally.sent.values()) == 48 and set(tally.sent) == {kind.__name__ for kind, _ in serving.KINDS}
    assert own.memory_info().rss - size < 100 * serving.MIB


def test_what_is_answered_otherwise_is_counted_as_lost(monkeypatch):
    monkeypatch.setattr(serving, "KINDS", ((serving.broken, 1),))
    monkeypatch.setattr(serving, "BROKEN", ((b"{", 200),))
    service = service_with(None)
    with running(service) as url:
        tally = serving.mixed(url, [BASE], clients=1, going_on=lambda done: done < 2)
    assert tally.lost == 2 and tally.otherwise == ["broken: another answer than it has to be"] * 2
