"""Words of an answer, as detectors and clusters compare them. No counts that quality is judged by: gold has its own."""

import re
from functools import lru_cache


@lru_cache(maxsize=1 << 16)
def words(text: str) -> tuple[str, ...]:
    """Words and numbers in lower case, without punctuation."""
    return tuple(re.findall(r"\w+(?:['\u2019]\w+)*", text.lower()))


def ngrams(text: str, n: int) -> list[tuple[str, ...]]:
    """Runs of n words."""
    found = words(text)
    return [found[i:i + n] for i in range(len(found) - n + 1)]
