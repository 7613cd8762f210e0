"""Answers that are written while people judge: a thread that appends them to the store. No model here."""

import threading
from collections.abc import Callable, Iterator, Sequence

from rlhflab.data.judging import Item
from rlhflab.data.store import Store
from rlhflab.errors import LabError


class Feed(threading.Thread):
    """Appends what `write` yields, batch by batch. What was appended stays when it is stopped."""

    def __init__(self, store: Store, write: Callable[[], Iterator[Sequence[Item]]]) -> None:
        super().__init__(name="answers", daemon=True)
        self._store, self._write, self._added, self._end = store, write, 0, ""

    def run(self) -> None:
        """Go on until all is written, or something fails."""
        try:
            for items in self._write():
                self._added += self._store.add(items).new
            self._end = "no more are written"
        except LabError as error:
            self._end = f"no more are written: {error}"
        except BaseException as error:
            self._end = f"no more are written, since writing failed ({type(error).__name__})"
            raise

    def news(self) -> str:
        """How far it is."""
        return f"{self._added} pairs of answers were written; {self._end or 'more are on the way'}"
