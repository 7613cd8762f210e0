"""Writes docs/cli.md from the help of every command, so that the page cannot say what the command does not.

`python docs/generate.py` writes; with `--check` it only compares, and exits with 1 where the page is out of date.
"""

import io
import sys
from pathlib import Path

from rich.console import Console

from rlhflab.cli import app
from rlhflab.commands import COMMANDS

PAGE = Path(__file__).parent / "cli.md"
HEAD = """# The command line

Generated from `--help` by `make docs`; change the docstrings in `src/rlhflab/commands.py`.
"""


def cli_page() -> str:
    """The whole page."""
    return "\n".join([HEAD, _section([]), *(_section([name]) for name in COMMANDS)])


def _section(command: list[str]) -> str:
    text = io.StringIO()
    app.help_print(command, console=Console(file=text, width=100, color_system=None, force_terminal=False))
    lines = "\n".join(line.rstrip() for line in text.getvalue().strip().splitlines())
    return f"## {' '.join(['rlhflab', *command])}\n\n```text\n{lines}\n```\n"


if __name__ == "__main__":
    if sys.argv[1:] == ["--check"]:
        if PAGE.read_text(encoding="utf-8") != cli_page():
            sys.exit(f"{PAGE} is out of date; run: make docs")
    else:
        PAGE.write_text(cli_page(), encoding="utf-8")
        print(f"Wrote {PAGE}")
