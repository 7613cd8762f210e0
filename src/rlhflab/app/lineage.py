"""Where the boxes and lines of a lineage graph stand: bases on the left, what was made of them to their right.

Positions only, in pixels; the template draws them. No file is read here.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from rlhflab.registry.records import Adapter
from rlhflab.registry.state import State

WIDTH, HEIGHT = 190, 46
"""Of a box."""
ACROSS, DOWN, EDGE = 54, 18, 4
"""Room between boxes, and around them all."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Box:
    """A base or an adapter."""

    key: str
    kind: str
    """base, adapter, or missing: an adapter that is named as a parent and is not in the registry."""
    name: str
    note: str
    active: tuple[str, ...] = ()
    """Deployments in which it is active."""
    x: float = 0.0
    y: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """From what something was made of to what was made."""

    path: str
    """As SVG draws it."""
    known: bool
    """Whether somebody wrote down that it was so; else only the base is known."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Graph:
    """A drawing of `width` by `height` pixels."""

    boxes: Sequence[Box]
    lines: Sequence[Line]
    width: float
    height: float


def lineage(state: State) -> Graph:
    """The graph of every adapter of a registry."""
    boxes, parents = _boxes(state)
    depths = _depths(parents)
    columns: dict[int, list[str]] = {}
    for key in boxes:
        columns.setdefault(depths[key], []).append(key)
    rows: dict[str, float] = {}
    for depth in sorted(columns):
        # Beside what they were made of, so that lines cross little.
        keys = sorted(columns[depth], key=lambda key: _mean([rows.get(each, 0.0) for each in parents[key]]))
        rows |= {key: float(row) for row, key in enumerate(keys)}
    placed = {key: replace(box, x=EDGE + depths[key] * (WIDTH + ACROSS), y=EDGE + rows[key] * (HEIGHT + DOWN))
              for key, box in boxes.items()}
    lines = [Line(path=_path(placed[parent], placed[key]), known=_known(state, key))
             for key, above in parents.items() for parent in above]
    most = max((len(keys) for keys in columns.values()), default=0)
    return Graph(boxes=list(placed.values()), lines=lines,
                 width=2 * EDGE + len(columns) * (WIDTH + ACROSS) - ACROSS * bool(columns),
                 height=2 * EDGE + most * (HEIGHT + DOWN) - DOWN * bool(columns))


def active_in(state: State, digest: str) -> tuple[str, ...]:
    """The deployments in which an adapter is active."""
    return tuple(name for name, stack in state.deployments.items() if stack and stack[-1] == digest)


def base_of(adapter: Adapter) -> str:
    """What tells bases apart: the digest of their weights, or a name where that is all that is known."""
    return f"base {adapter.base.digest or adapter.base.name or 'not known'}"


def _boxes(state: State) -> tuple[dict[str, Box], dict[str, Sequence[str]]]:
    """Boxes by key, bases first, and the keys of what each was made of."""
    bases: dict[str, Box] = {}
    missing: dict[str, Box] = {}
    made: dict[str, Box] = {}
    parents: dict[str, Sequence[str]] = {}
    for digest, adapter in state.adapters.items():
        base = base_of(adapter)
        bases.setdefault(base, Box(key=base, kind="base", name=adapter.base.name or "base not known",
                                   note=(adapter.base.digest or "digest not known")[:12]))
        above = adapter.made.parents or ()
        missing |= {each: Box(key=each, kind="missing", name=each[:12], note="not in this registry")
                    for each in above if each not in state.adapters}
        made[digest] = Box(key=digest, kind="adapter", name=adapter.name, note=digest[:12],
                           active=active_in(state, digest))
        parents[digest] = tuple(dict.fromkeys(each for each in above if each != digest)) or (base,)
    return {**bases, **missing, **made}, {**dict.fromkeys((*bases, *missing), ()), **parents}


def _depths(parents: Mapping[str, Sequence[str]]) -> dict[str, int]:
    """The column of each box: one to the right of the rightmost it was made of."""
    depths: dict[str, int] = {}
    waiting = dict(parents)
    while waiting:
        ready = [key for key, above in waiting.items() if all(each in depths for each in above)]
        # A circle cannot be trained, but it can be written down: its boxes are placed as they come.
        for key in ready or [next(iter(waiting))]:
            depths[key] = max((depths.get(each, 0) + 1 for each in waiting.pop(key)), default=0)
    columns = {depth: column for column, depth in enumerate(sorted(set(depths.values())))}
    return {key: columns[depth] for key, depth in depths.items()}


def _known(state: State, key: str) -> bool:
    return state.adapters[key].made.parents is not None


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else 0.0


def _path(start: Box, end: Box) -> str:
    x1, y1, x2, y2 = start.x + WIDTH, start.y + HEIGHT / 2, end.x, end.y + HEIGHT / 2
    bend = (x2 - x1) / 2
    return f"M{x1:g} {y1:g}C{x1 + bend:g} {y1:g} {x2 - bend:g} {y2:g} {x2:g} {y2:g}"
