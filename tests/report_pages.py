"""A report as a browser's parser sees it, and text that would harm one that did not escape it."""

import json
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

EVIL = "</script><script>alert(1)</script><img src=http://evil.example/x onerror=alert(2)>"


def typed(text: str) -> str:
    """Text with the spaces and minus signs of a keyboard."""
    return text.replace("\u00a0", " ").replace("\u2212", "-")


class Page(HTMLParser):
    """A page as a browser's parser sees it: its elements, its text outside scripts, the text of each script."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.scripts: list[tuple[str | None, str]] = []
        self.inside = ""
        self.feed(path.read_text())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        self.inside = tag
        if tag == "script":
            self.scripts.append((dict(attrs).get("type"), ""))

    def handle_endtag(self, tag: str) -> None:
        self.inside = ""

    def handle_data(self, data: str) -> None:
        if self.inside == "script":
            kind, text = self.scripts[-1]
            self.scripts[-1] = kind, text + data
        elif self.inside != "style":
            self.text += typed(data)

    @property
    def ids(self) -> set[str | None]:
        return {attributes.get("id") for _, attributes in self.elements} - {None}

    @property
    def figures(self) -> list[Any]:
        return [json.loads(text) for kind, text in self.scripts if kind == "application/json"]


