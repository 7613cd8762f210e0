"""Commands for data files: data convert."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import Parameter

from rlhflab.commands.shared import Json, print_value, quietly
from rlhflab.errors import DataError

if TYPE_CHECKING:
    from rlhflab.data.converting import Converted

SHOWN = 5
"""Broken rows that are said one by one; the others are counted."""


def convert_command(source: str, target: Path, /, *,
                    source_form: Annotated[str | None, Parameter(name="--from")] = None, to: str = "pairs",
                    rule: Literal["majority", "each"] = "majority", skip_bad: bool = False,
                    as_json: Json = False) -> None:
    """Write a data file in another format.

    `rlhflab list formats` shows the formats. The files' names say what holds the rows: .jsonl, .json, .csv, .tsv or
    .parquet, the first four also with .gz behind. The last line says what was left out.

    Args:
        source: A file, a folder of `datasets`, or hub:NAME[:CONFIG][:SPLIT].
        target: The new file.
        source_form: The format of the source; found out by its first rows where absent.
        to: The format to write.
        rule: How judgments become pairs: one pair where a majority prefers one answer, or a pair each judgment.
        skip_bad: Go on behind broken rows and count them, instead of stopping at the first.
        as_json: Print what became of the rows as JSON.
    """
    from dataclasses import asdict

    from rlhflab.data.converting import convert
    from rlhflab.progress import Progress

    progress = Progress()
    seen = [0]

    def bad(error: DataError) -> None:
        seen[0] += 1
        if seen[0] <= SHOWN:
            print(f"skipped: {error}", file=sys.stderr)

    with progress.track("converting", None) as track:
        done = quietly(lambda: convert(source, target, form=source_form, to=to, rule=rule,
                                       bad=bad if skip_bad else None, advance=track.advance))
    print_value(asdict(done), True) if as_json else print(_in_words(done))


def _in_words(done: "Converted") -> str:
    from rlhflab.data.converting import counted

    derived = done.holds not in ("comparisons", "prompts") and "comparisons" in done.read
    lost = "; ".join(part for part in (
        f"dropped: {counted(done.dropped)}" if done.dropped else "nothing dropped",
        f"broken rows skipped: {done.bad:,}" if done.bad else "",
        f"rows of {done.to} have no {done.loses}" if done.loses else "") if part)
    return (f"Wrote {done.path}: {done.rows:,} {done.holds}{f' by {done.rule}' if derived else ''}, from "
            f"{counted(done.read)} in the format {done.form} "
            f"({lost}). Next: rlhflab data check {done.path}")
