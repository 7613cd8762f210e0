"""Commands for data files: data convert, data check, data split."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import Parameter
from cyclopts.validators import Number

from rlhflab.commands.shared import DEFAULT_MODEL, Form, Json, print_table, print_value, quietly
from rlhflab.errors import ConfigError, DataError

if TYPE_CHECKING:
    from rlhflab.data.converting import Converted

SHOWN = 5
"""Broken rows that are said one by one; the others are counted."""


def convert_command(source: str, target: Path, /, *,
                    source_form: Form = None, to: str = "pairs",
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

    seen = [0]

    def bad(error: DataError) -> None:
        seen[0] += 1
        if seen[0] <= SHOWN:
            print(f"skipped: {error}", file=sys.stderr)

    with Progress().track("converting", None) as track:
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
            f"{counted(done.read)} in the format {done.form} ({lost}). Next: rlhflab data check {done.path}")


def check_command(file: Path, /, *more: Path, model: str = DEFAULT_MODEL, no_tokens: bool = False,
                  max_length: Annotated[int, Parameter(validator=Number(gte=8))] = 1024,
                  against: Annotated[tuple[str, ...], Parameter(consume_multiple=True)] = (),
                  limits: Path | None = None, fix: Path | None = None, form: Form = None,
                  skip_bad: bool = False, out: Path = Path("data-check.html"), as_json: Json = False) -> int:
    """Look for what is wrong with data before anything learns from it, and write a page about it.

    Broken, empty, identical, contradictory and copied rows, prompts in two splits or in an evaluation, control tokens,
    secrets, length, position, label noise, languages. `rlhflab list checks` shows all. Exit code 2 also means that a
    limit is exceeded.

    Args:
        file: A data file of any format that `rlhflab list formats` shows.
        more: Further files; each is a split, unless its rows have a field `split`.
        model: Counts the tokens: a name of `rlhflab models`, a hub id, or a local transformers folder.
        no_tokens: Count no tokens, which takes half of the time and needs no model.
        max_length: Longest prompt plus answer, tokens, as in a run file.
        against: Evaluations whose prompts are looked for: scenarios, names of `rlhflab list suites`, folders with a
            suite.yaml, or files of prompts.
        limits: A YAML file of checks with the largest share each may find, such as `duplicates: 0.01`.
        fix: Write a cleaned copy here, a folder for several files, and beside it a list of every row it touches.
        form: The format of the rows; found out by the first ones where absent.
        skip_bad: Go on behind broken rows and count them, instead of stopping at the first.
        out: The page.
        as_json: Print what was found as JSON.
    """
    from rlhflab.analysis.data_page import next_words, rows_of_findings, write_data_page
    from rlhflab.progress import Progress
    from rlhflab.runs.data_check import Asked, check_data
    from rlhflab.runs.data_fix import fix_data

    files = (file, *more)
    asked = Asked(files=files, model=None if no_tokens else model, max_length=max_length, against=against,
                  limits=limits, form=form, skip_bad=skip_bad)
    found = quietly(lambda: check_data(asked, progress=Progress()))
    fixed = None if fix is None else quietly(lambda: fix_data(files, fix, found.survey, found.findings))
    quietly(lambda: write_data_page(found.record, out))
    over = [limit for limit in found.limits if limit["exceeded"]]
    if as_json:
        print_value({**found.record, "page": str(out), "fixed": None if fixed is None else fixed.record()}, True)
    else:
        print_table(rows_of_findings(found.record), False)
        print("\n".join(["", *([fixed.in_words()] if fixed else []), f"Wrote {out}. {next_words(found.record)}"]))
    for limit in over:
        print(f"rlhflab: {limit['check']}: " + (
            "could not be run, so its limit is not kept" if limit["found"] is None
            else f"{limit['found']:.4g} is above its limit, {limit['limit']:g}"), file=sys.stderr)
    return 2 if over else 0


def split_command(file: Path, /, *, out: Path, shares: str = "0.9,0.1", names: str = "",
                  by: Literal["prompt", "first_turn"] = "prompt", salt: str = "", form: Form = None,
                  skip_bad: bool = False, as_json: Json = False) -> None:
    """Split a data file by its prompts, so that no prompt is in two parts and none moves when the file grows.

    A row goes where a hash of its prompt's words says, whatever else is in the file. Shares are of prompts and hold on
    average.

    Args:
        file: A data file of any format that `rlhflab list formats` shows.
        out: The new folder; each part is a JSONL file in it.
        shares: Of the parts, with commas between them.
        names: Of the parts, with commas between them; train, held_out where absent, train, validation, test of three.
        by: What stays together: rows of one prompt, or also all conversations that begin with the same user turn.
        salt: Any text; another one draws other parts.
        form: The format of the rows; found out by the first ones where absent.
        skip_bad: Leave broken rows out and count them, instead of stopping at the first.
        as_json: Print the parts as JSON.
    """
    from dataclasses import asdict

    from rlhflab.data.splitting import split_file
    from rlhflab.progress import Progress

    skipped: list[DataError] = []
    with Progress().track("splitting", None) as track:
        parts = quietly(lambda: split_file(file, out, _shares(shares), by=by, salt=salt, form=form,
                                           names=tuple(filter(None, names.split(","))),
                                           bad=skipped.append if skip_bad else None, advance=track.advance))
    if as_json:
        print_value({"parts": [asdict(part) for part in parts], "skipped": len(skipped)}, True)
        return
    total = sum(part.prompts for part in parts)
    print_table([{"part": part.name, "rows": f"{part.rows:,} rows", "prompts": f"{part.prompts:,} prompts",
                  "share": f"{part.prompts / max(total, 1):.1%} of the prompts, {part.asked:.1%} asked for"}
                 for part in parts], False)
    left_out = f" {len(skipped):,} broken rows were left out." if skipped else ""
    filled = " ".join(str(part.path) for part in parts if part.rows)  # To a check, an empty file is a mistake.
    print(f"\nWrote {out}.{left_out} Next: rlhflab data check {filled}")


def _shares(text: str) -> list[float]:
    try:
        return [float(share) for share in text.split(",")]
    except ValueError as error:
        raise ConfigError(f"--shares: must be numbers with commas between them, found {text!r}") from error
