"""A file of replies by the content they follow from, so that asking again costs nothing. Who replies is no matter."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any


class Kept:
    """Owns a file of replies. A line that a kill cut off does not count."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.known: dict[str, Any] = {}
        for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else ():
            try:
                row = json.loads(line)
                self.known[row["key"]] = row["reply"]
            except (json.JSONDecodeError, KeyError, TypeError):
                continue

    def add(self, replies: Mapping[str, Any]) -> None:
        """Keep replies by their keys."""
        if replies:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("a", encoding="utf-8") as file:
                # The newline comes first: a line that was cut off then stays a line of its own.
                file.write("".join(f"\n{json.dumps({'key': key, 'reply': replies[key]})}" for key in replies) + "\n")
        self.known |= replies


def content_key(*parts: Any) -> str:
    """sha256 of JSON values."""
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()
