"""Requests and answers in a file that `rlhflab drift` reads, where it is asked for. Each line is written whole."""

import json
import os
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rlhflab.errors import ConfigError


class RequestLog:
    """Appends to one file, which only its owner may read."""

    def __init__(self, path: Path) -> None:
        try:
            self._file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        except OSError as error:
            raise ConfigError(f"--log-requests: {path}: cannot be written: {error.strerror}") from error
        self.path, self.failed = path, 0
        """`failed`: lines that could not be written, as on a full disk."""

    def add(self, prompt: object, answer: str, facts: Mapping[str, Any]) -> None:
        """One answer. A file that cannot be written to is no reason to leave a request unanswered."""
        row = {"prompt": prompt, "answer": answer, "at": datetime.now(UTC).isoformat(timespec="seconds"), **facts}
        try:
            # One write to a file opened for appending: lines of several processes do not mix.
            os.write(self._file, (json.dumps(row, ensure_ascii=False) + "\n").encode())
        except OSError:
            self.failed += 1

    def close(self) -> None:
        """Nothing is written any more."""
        os.close(self._file)
