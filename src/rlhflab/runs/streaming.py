"""Tokens to text while they arrive: no broken characters, and nothing shown that may yet be part of a stop string."""

from collections.abc import Callable, Sequence

BROKEN = "\N{REPLACEMENT CHARACTER}"


class TextStream:
    """The text of one answer. What it gives piece by piece is together what decoding all tokens at once gives."""

    def __init__(self, decode: Callable[[Sequence[int]], str], stops: Sequence[str] = ()) -> None:
        self.decode, self.stops = decode, stops
        self.stopped = False
        """Whether a stop string was found; what comes later is not shown."""
        self.shown = ""
        self._ids: list[int] = []
        self._context = self._read = 0
        """Where the tokens begin that are decoded again, and where those begin that are not yet text."""
        self._held = ""
        """Text that may be the start of a stop string."""

    def push(self, token: int) -> str:
        """One more token; the text that is sure by now."""
        self._ids.append(token)
        text = self._unread()
        if text.endswith(BROKEN):  # a character may lack its other bytes
            return ""
        self._context, self._read = self._read, len(self._ids)
        return self._show(text, last=False)

    def finish(self) -> str:
        """The rest, once no token comes any more."""
        text = self._unread()
        self._read = len(self._ids)
        return self._show(text, last=True)

    def _unread(self) -> str:
        """Decoded with the tokens before, since some tokenizers drop the space before the first of them."""
        before = self.decode(self._ids[self._context:self._read])
        return self.decode(self._ids[self._context:])[len(before):]

    def _show(self, text: str, *, last: bool) -> str:
        if self.stopped:
            return ""
        text = self._held + text
        ends = [place for stop in self.stops if (place := text.find(stop)) >= 0]
        if ends:
            self.stopped, keep = True, 0
            text = text[:min(ends)]
        else:
            keep = 0 if last else max((_overlap(text, stop) for stop in self.stops), default=0)
        self._held = text[len(text) - keep:]
        sure = text[:len(text) - keep]
        self.shown += sure
        return sure


def _overlap(text: str, stop: str) -> int:
    """Length of the longest start of `stop` that `text` ends with."""
    return next((n for n in range(min(len(text), len(stop) - 1), 0, -1) if text.endswith(stop[:n])), 0)
