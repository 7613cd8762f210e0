"""Judged comparisons from a file of any format, for the commands that look at labels."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rlhflab.data.forms.own import judged_form
from rlhflab.data.judging import STORE_SUFFIXES
from rlhflab.data.reading import read_items
from rlhflab.data.types import Judged
from rlhflab.errors import DataError
from rlhflab.progress import Progress


def read_judged(path: Path, *, form: str | None = None, skip_bad: bool = False,
                progress: Progress | None = None) -> list[Judged]:
    """The comparisons of a file or an annotation store with what was said of each, empty answers among them.

    DataError where it holds anything else, or nothing. `skip_bad`: broken rows are left out, and `progress` says how
    many; else the first is an error.
    """
    if path.suffix in STORE_SUFFIXES:
        return _stored(path)
    broken: list[DataError] = []
    found = []
    for located in read_items(path, form=form, bad=broken.append if skip_bad else None, any_answer=True):
        if not isinstance(located.item, Judged):
            kind = type(located.item).__name__.lower()
            raise DataError(f"{located.path}:{located.line}: is a {kind}; comparisons of two answers are needed")
        found.append(located.item)
    if broken and progress is not None:
        progress.say(f"Left out {len(broken)} broken rows, the first: {broken[0]}")
    if not found:
        raise DataError(f"{path}: holds no comparisons")
    return found


def _stored(path: Path) -> list[Judged]:
    """All comparisons of an annotation store."""
    from rlhflab.data.export import judged  # needs the extra app
    from rlhflab.data.store import Store

    store = Store.open(path, create=False)
    try:
        found = list(judged(store))
    finally:
        store.close()
    if not found:
        raise DataError(f"{path}: holds no comparisons")
    return found


def judged_row(judged: Judged) -> Mapping[str, Any]:
    """The row that `read_judged` reads back as `judged`, in the lab's own format."""
    write = judged_form().row
    row = write(judged) if write is not None else None
    assert row is not None, "the lab's own format holds every judged comparison"
    return row
