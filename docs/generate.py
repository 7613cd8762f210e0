"""Writes what the pages of docs take from the code, so that no page can say what the code does not.

docs/cli.md is the help of every command. In docs/methods a page is written by hand but for what stands between
`<!-- generated: NAME -->` and `<!-- end -->`. `python docs/generate.py` writes; with `--check` it only compares, and
exits with 1 where a page is out of date.
"""

import io
import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rich.console import Console

from rlhflab.cli import app
from rlhflab.commands import COMMANDS
from rlhflab.data.forms import in_order
from rlhflab.listing import listing, shown

DOCS = Path(__file__).parent
HEAD = """# The command line

Generated from `--help` by `make docs`; change the docstrings in `src/rlhflab/commands/`.
"""
GENERATED = re.compile(r"(<!-- generated: (\S+) -->\n).*?(<!-- end -->)", re.DOTALL)


def pages() -> dict[Path, str]:
    """Every generated page as it has to be."""
    methods = {path: method_page(path.read_text(encoding="utf-8")) for path in sorted(DOCS.glob("methods/*.md"))}
    return {DOCS / "cli.md": cli_page(), **methods}


def cli_page() -> str:
    """The whole page."""
    return "\n".join([HEAD, _section([]), *(_section(name.split()) for name in COMMANDS)])


def _section(command: list[str]) -> str:
    text = io.StringIO()
    app.help_print(command, console=Console(file=text, width=100, color_system=None, force_terminal=False))
    lines = "\n".join(line.rstrip() for line in text.getvalue().strip().splitlines())
    return f"## {' '.join(['rlhflab', *command])}\n\n```text\n{lines}\n```\n"


def method_page(text: str) -> str:
    """The page with its generated parts made again."""
    return GENERATED.sub(lambda found: found[1] + PARTS[found[2]]() + found[3], text)


def losses() -> str:
    """The catalogue of losses as a table."""
    rows = [(f"`{row['name']}`", f"`{row['summary'].rstrip('.')}`", _options(row["options"]), ", ".join(row["needs"]),
             ", ".join(row["admits"]) or "-", row["source"]) for row in listing("losses")]
    return _table(("loss", "formula", "options", "needs", "admits", "source"), rows)


def detectors() -> str:
    """The catalogue of detectors as a table."""
    rows = [(f"`{row['name']}`", row["summary"].rstrip("."), _options(row["options"]), ", ".join(row["needs"]),
             "yes" if row["gold"] == "gold-free" else "no", row["source"]) for row in listing("detectors")]
    return _table(("detector", "an alarm is", "options", "needs", "gold-free", "source"), rows)


def formats() -> str:
    """The catalogue of data formats as a table, each with its example."""
    rows = [(f"`{name}`", _summary(name), f"`{json.dumps(form.example, ensure_ascii=False)}`",
             "-" if form.row is None else f"yes; no {form.loses}" if form.loses else "yes")
            for name, form in in_order().items()]
    return _table(("format", "what it is", "example", "written"), rows)


def _summary(name: str) -> str:
    return next(row["summary"].rstrip(".") for row in listing("formats") if row["name"] == name)


def _options(options: dict[str, dict[str, Any]]) -> str:
    return "<br>".join(f"`{name}` {shown(option['default'])}" + (f" ({option['range']})" if option["range"] else "")
                       for name, option in options.items())


def _table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    return "".join(f"| {' | '.join(row)} |\n" for row in (head, ("---",) * len(head), *rows))


PARTS: dict[str, Callable[[], str]] = {"losses": losses, "detectors": detectors, "formats": formats}


if __name__ == "__main__":
    stale = {path: text for path, text in pages().items()
             if not path.exists() or path.read_text(encoding="utf-8") != text}
    if sys.argv[1:] == ["--check"] and stale:
        sys.exit(f"{', '.join(map(str, stale))}: out of date; run: make docs")
    for path, text in stale.items():
        path.write_text(text, encoding="utf-8")
        print(f"Wrote {path}")
