"""Files of rows, whatever holds them: JSONL, a JSON list, CSV, Parquet, a folder or hub name of `datasets`, to rows
and back. Streams: a row at a time is in memory, or a batch of Parquet. What a row means is not known here.

A name that ends in `.gz` is packed, save for Parquet. A cell of CSV or Parquet that a table cannot hold is JSON text.
"""

import codecs
import csv
import io
import json
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from importlib import import_module
from itertools import chain, islice
from pathlib import Path
from typing import IO, Any

from rlhflab.data.formats import (
    LONGEST_ROW,
    Row,
    Told,
    first_line,
    json_problem,
    kind_of,
    open_bytes,
    read_rows,
    shortly,
    tell,
    unreadable,
    whole_file,
    without_nulls,
    write_jsonl,
)
from rlhflab.errors import DataError

HUB = "hub:"
KINDS = (".jsonl", ".json", ".csv", ".tsv", ".parquet")
CHUNK = 2**20
BATCH = 1024
"""Rows of Parquet read or written at once."""
STRUCTURED = ("facts", "meta", "votes", "judgments", "completions", "scores", "conversations", "history")
"""Columns whose text cells are JSON."""
FLAGS = ("label", "kto_tag")
NUMBERS = ("strength",)
TURN_KEYS = ({"role", "content"}, {"from", "value"})


def rows_of(source: Path | str, *, bad: Told | None = None) -> Iterator[Row]:
    """The rows of a file, of a folder that `datasets` saved, or of `hub:NAME[:CONFIG][:SPLIT]`.

    DataError names file, and line or row; `bad` is told of broken rows instead where it is given.
    """
    name = str(source)
    if name.startswith(HUB):
        return _hub_rows(name, bad)
    path = Path(source)
    if path.is_dir():
        return _folder_rows(path, bad)
    return READERS[kind_of_file(path)](path, bad)


def kind_of_file(path: Path) -> str:
    """What holds the rows, by the file's name: one of KINDS."""
    suffix = Path(path.name.removesuffix(".gz")).suffix.lower()
    if suffix not in KINDS or (suffix == ".parquet" and path.suffix == ".gz"):
        raise DataError(f"{path}: is no kind of file that holds rows, by its name; there are {', '.join(KINDS)}, each "
                        f"but .parquet also with .gz behind it, and {HUB}NAME for a data set of the Hugging Face hub")
    return suffix


def write_rows(path: Path, rows: Iterable[Mapping[str, Any]], *, example: Mapping[str, Any]) -> None:
    """Write rows as the file's name says. `example` has every column filled, which gives a table its types."""
    kind = kind_of_file(path)
    if kind == ".jsonl":
        write_jsonl(path, rows)
    elif kind == ".json":
        _write_list(path, rows)
    elif kind == ".parquet":
        _write_parquet(path, rows, example)
    else:
        _write_csv(path, rows, tuple(example), "\t" if kind == ".tsv" else ",")


def _jsonl_rows(path: Path, bad: Told | None) -> Iterator[Row]:
    return read_rows(path, bad=bad)


def _json_rows(path: Path, bad: Told | None) -> Iterator[Row]:
    """A list of objects, or JSONL under another name."""
    with open_bytes(path) as file:
        try:
            start = file.read(CHUNK).removeprefix(codecs.BOM_UTF8).lstrip()[:1]
        except (OSError, EOFError, zlib.error) as error:
            raise unreadable(path, error) from error
    return _list_rows(path, bad) if start == b"[" else read_rows(path, bad=bad)


def _list_rows(path: Path, bad: Told | None) -> Iterator[Row]:
    found = False
    try:
        for number, value in _ListText(path).elements():
            found = True
            if isinstance(value, dict):
                yield Row(path=path, line=number, values=without_nulls(value))
            else:
                tell(bad, DataError(f"{path}:{number}: must be an object, found {kind_of(value)}"))
    except DataError as error:
        # Behind a mistake in its punctuation nobody can tell where the next row of a list begins.
        tell(bad if found else None, error)
    if not found:
        raise DataError(f"{path}: is empty; at least one row is needed")


class _ListText:
    """The text of a JSON list as it comes in: where reading stands, and on which line."""

    def __init__(self, path: Path) -> None:
        self.path, self.line = path, 1
        self._text, self._at, self._chunks = "", 0, _texts(path)

    def elements(self) -> Iterator[tuple[int, Any]]:
        """Line and value of each element. DataError where the text is no list."""
        mark = self._mark("[")
        while not (mark == "[" and self._peek() == "]"):
            self._peek()
            yield self.line, self._value()
            mark = self._mark(",]")
            if mark == "]":
                break
        else:
            self._mark("]")
        if self._peek():
            raise self._broken("something stands behind its end")

    def _peek(self) -> str:
        """The next character that is no space; nothing at the end of the file."""
        while True:
            while self._at < len(self._text):
                if not self._text[self._at].isspace():
                    return self._text[self._at]
                self.line += self._text[self._at] == "\n"
                self._at += 1
            if not self._more():
                return ""

    def _mark(self, marks: str) -> str:
        found = self._peek()
        if not found or found not in marks:
            raise self._broken(f"{' or '.join(marks)} is expected, found {found or 'the end of the file'}")
        self._at += 1
        return found

    def _value(self) -> Any:
        while True:
            try:
                value, end = json.JSONDecoder().raw_decode(self._text, self._at)
            except json.JSONDecodeError as error:
                if len(self._text) - self._at > LONGEST_ROW:
                    raise DataError(f"{self.path}:{self.line}: is longer than {LONGEST_ROW // 2**20} MiB, or is not "
                                    f"JSON: {json_problem(error)}") from error
                if not self._more():
                    self.line += self._text.count("\n", self._at, error.pos)
                    raise self._broken(json_problem(error)) from error
            except (ValueError, RecursionError) as error:
                raise self._broken(str(error)) from error
            else:
                self.line += self._text.count("\n", self._at, end)
                self._at = end
                return value

    def _more(self) -> bool:
        """Read as much again as is unread, so that a long row is not parsed once a chunk."""
        unread = self._text[self._at:]
        new = "".join(chunk for _, chunk in zip(range(1 + len(unread) // CHUNK), self._chunks, strict=False))
        self._text, self._at = unread + new, 0
        return bool(new)

    def _broken(self, problem: str) -> DataError:
        return DataError(f"{self.path}:{self.line}: is not JSON: {problem}")


def _texts(path: Path) -> Iterator[str]:
    """A file's text in chunks."""
    decoder = codecs.getincrementaldecoder("utf-8-sig")()
    number = 1
    try:
        with open_bytes(path) as file:
            while chunk := file.read(CHUNK):
                text = decoder.decode(chunk)
                number += text.count("\n")
                yield text
        yield decoder.decode(b"", final=True)
    except UnicodeDecodeError as error:
        number += error.object.count(b"\n", 0, error.start)
        raise DataError(f"{path}:{number}: is not UTF-8") from error
    except (OSError, EOFError, zlib.error) as error:
        raise unreadable(path, error, behind=number) from error


def _csv_rows(path: Path, bad: Told | None) -> Iterator[Row]:
    """Rows by the names in the first line; the field sign is the one of `,`, `;` and tab that the line has most."""
    csv.field_size_limit(LONGEST_ROW)
    with open_bytes(path) as file:
        lines = _csv_lines(path, file, bad)
        head = next(lines, "")
        if not head.strip():
            raise DataError(f"{path}: is empty; a first line of column names and at least one row are needed")
        sign = max(",;\t", key=head.count)
        reader = csv.reader(chain([head], lines), delimiter=sign, strict=True)
        columns = _columns(path, next(reader))
        found, line = False, reader.line_num + 1
        while True:
            try:
                cells = next(reader)
            except StopIteration:
                break
            except csv.Error as error:
                tell(bad, DataError(f"{path}:{line}: is not CSV: {error}"), error)
                found, line = True, reader.line_num + 1
                continue
            if cells:
                found = True
                try:
                    yield _csv_row(path, line, columns, cells)
                except DataError as error:
                    tell(bad, error)
            line = reader.line_num + 1
    if not found:
        raise DataError(f"{path}: is empty; at least one row is needed")


def _csv_lines(path: Path, file: IO[bytes], bad: Told | None) -> Iterator[str]:
    """Lines with the bytes that are no UTF-8 kept apart, so that the cell they are in can be named."""
    number = 0
    try:
        while line := file.readline(LONGEST_ROW + 1):
            number += 1
            yield line.decode("utf-8-sig" if number == 1 else "utf-8", errors="surrogateescape")
    except (OSError, EOFError, zlib.error) as error:
        tell(bad if number else None, unreadable(path, error, behind=number), error)


def _columns(path: Path, names: list[str]) -> list[str]:
    twice = next((name for place, name in enumerate(names) if name and name in names[:place]), None)
    if twice is not None:
        raise DataError(f"{path}:1: has two columns called {shortly(twice)}")
    return names


def _csv_row(path: Path, line: int, columns: list[str], cells: list[str]) -> Row:
    if len(cells) != len(columns):
        raise DataError(f"{path}:{line}: has {len(cells)} cells; the first line names {len(columns)} columns")
    raw = {name: cell for name, cell in zip(columns, cells, strict=True) if cell}
    row = Row(path=path, line=line, values=raw)
    return Row(path=path, line=line, values={name: from_cell(row, name, cell) for name, cell in raw.items()})


def from_cell(row: Row, key: str, cell: str) -> Any:
    """What a text cell stands for: a flag, a number, JSON where the column or the look of turns says so, or text."""
    try:
        cell.encode()
    except UnicodeEncodeError as error:
        raise row.wrong(key, "is not UTF-8") from error
    if key in FLAGS and cell.lower() in ("true", "false"):
        return cell.lower() == "true"
    if key in NUMBERS:
        try:
            return float(cell)
        except ValueError:
            return cell
    if cell.startswith(("[{'", "{'")) and ("'role'" in cell or "'from'" in cell):
        raise row.wrong(key, "is a Python list as text; messages in a table are JSON")
    if key in STRUCTURED or cell.startswith(("[{", "{")):
        try:
            value = json.loads(cell)
        except (ValueError, RecursionError):
            return cell
        return value if key in STRUCTURED or _are_turns(value) else cell
    return cell


def _are_turns(value: Any) -> bool:
    turns = [value] if isinstance(value, dict) else value
    return isinstance(turns, list) and bool(turns) and all(isinstance(turn, dict) and set(turn) in TURN_KEYS
                                                           for turn in turns)


def _parquet_rows(path: Path, bad: Told | None) -> Iterator[Row]:
    arrow, parquet = _extra("pyarrow", f"{path}: Parquet"), _extra("pyarrow.parquet", f"{path}: Parquet")
    number = 0
    try:
        with open_bytes(path) as handle:
            # In small pieces: read at once, a group of rows is often the whole file.
            file = parquet.ParquetFile(handle, buffer_size=CHUNK, pre_buffer=False)
            for batch in file.iter_batches(batch_size=BATCH):
                for values in batch.to_pylist():
                    number += 1
                    yield from _table_row(path, number, values, bad)
    except (arrow.ArrowException, OSError, ValueError) as error:
        tell(bad if number else None, unreadable(path, error, behind=number), error)
    if not number:
        raise DataError(f"{path}: is empty; at least one row is needed")


def _table_row(path: Path, number: int, values: Mapping[str, Any], bad: Told | None) -> Iterator[Row]:
    """A row of a typed table; none where a cell is broken and `bad` was told."""
    row = Row(path=path, line=number, values=values)
    try:
        filled = {key: from_cell(row, key, value) if isinstance(value, str) else _as_json(value)
                  for key, value in values.items() if value is not None}
    except DataError as error:
        tell(bad, error)
        return
    yield Row(path=path, line=number, values=filled)


def _as_json(value: Any) -> Any:
    """A value of a table as JSON has it: dates, bytes and the like in words, an unset field of a struct left out."""
    if isinstance(value, Mapping):
        return {key: _as_json(inner) for key, inner in value.items() if inner is not None}
    if isinstance(value, list | tuple):
        return [_as_json(inner) for inner in value]
    return value if value is None or isinstance(value, str | bool | int | float) else str(value)


def _folder_rows(folder: Path, bad: Told | None) -> Iterator[Row]:
    """A folder that `datasets` wrote with save_to_disk, or one of data files that it can load without a script."""
    datasets = _extra("datasets", f"{folder}: a folder of data")
    try:
        if (folder / "state.json").exists():
            rows: Any = datasets.load_from_disk(str(folder))
        else:
            if (folder / "dataset_dict.json").exists():
                names = ", ".join(sorted(child.name for child in folder.iterdir() if child.is_dir()))
                raise DataError(f"{folder}: holds several splits; name the folder of one: {names}")
            splits = datasets.load_dataset(str(folder), streaming=True)
            if len(splits) > 1:  # By the names of its files: train.jsonl and test.jsonl are two.
                raise DataError(f"{folder}: its files are several splits, {', '.join(sorted(splits))}; name the file "
                                "of one")
            rows, = splits.values()
    except DataError:
        raise
    except Exception as error:  # datasets raises what its file systems and builders raise
        raise DataError(f"{folder}: is no folder of a data set: {first_line(error)}") from error
    yield from _dataset_rows(folder, rows, bad)


def _hub_rows(name: str, bad: Told | None) -> Iterator[Row]:
    """`hub:owner/name`, `hub:owner/name:split` or `hub:owner/name:config:split`, a row at a time over the network."""
    known, *rest = name.removeprefix(HUB).split(":")
    if not known or len(rest) > 2:
        raise DataError(f"{name}: must be {HUB}NAME, {HUB}NAME:SPLIT or {HUB}NAME:CONFIG:SPLIT")
    datasets = _extra("datasets", f"{name}: a data set of the hub")
    try:
        rows = datasets.load_dataset(known, *rest[:-1], split=rest[-1] if rest else "train", streaming=True)
    except Exception as error:  # the hub's client raises many kinds, of which none tells more than its words
        raise DataError(f"{name}: cannot be had from the hub: {first_line(error)}; without a network, copy the "
                        "data set here and name its folder or a file of it") from error
    yield from _dataset_rows(Path(name), rows, bad)


def _dataset_rows(path: Path, rows: Iterable[Mapping[str, Any]], bad: Told | None) -> Iterator[Row]:
    number = 0
    try:
        for number, values in enumerate(rows, start=1):
            yield from _table_row(path, number, values, bad)
    except DataError:
        raise
    except Exception as error:  # as above, in the middle of the rows
        tell(bad if number else None, unreadable(path, error, behind=number), error)
    if not number:
        raise DataError(f"{path}: is empty; at least one row is needed")


def _extra(module: str, what: str) -> Any:
    try:
        return import_module(module)
    except ImportError as error:
        raise DataError(f"{what} needs {module.partition('.')[0]}: pip install 'mini-rlhf-lab[data]'") from error


READERS: Mapping[str, Callable[[Path, Told | None], Iterator[Row]]] = {
    ".jsonl": _jsonl_rows, ".json": _json_rows, ".csv": _csv_rows, ".tsv": _csv_rows, ".parquet": _parquet_rows}


def _write_list(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    with whole_file(path) as out:
        sign = b"[\n"
        for row in rows:
            out.write(sign + json.dumps(row, ensure_ascii=False).encode())
            sign = b",\n"
        out.write(b"\n]\n" if sign == b",\n" else b"[]\n")


def _write_csv(path: Path, rows: Iterable[Mapping[str, Any]], columns: Sequence[str], sign: str) -> None:
    with whole_file(path) as out:
        text = io.TextIOWrapper(out, encoding="utf-8", newline="")
        writer = csv.writer(text, delimiter=sign)
        writer.writerow(columns)
        writer.writerows([_cell(row.get(column)) for column in columns] for row in rows)
        text.detach()


def _write_parquet(path: Path, rows: Iterable[Mapping[str, Any]], example: Mapping[str, Any]) -> None:
    arrow, parquet = _extra("pyarrow", f"{path}: Parquet"), _extra("pyarrow.parquet", f"{path}: Parquet")
    turns = {key for key, value in example.items() if _are_turns(value)}
    schema = arrow.Table.from_pylist([_columnar(example, turns)]).schema
    with whole_file(path) as out, parquet.ParquetWriter(out, schema) as writer:
        batches = iter(rows)
        while batch := [_columnar(row, turns) for row in islice(batches, BATCH)]:
            writer.write_table(arrow.Table.from_pylist(batch, schema=schema))


def _columnar(row: Mapping[str, Any], turns: Set[str]) -> dict[str, Any]:
    """A row as a typed table holds it: the columns of `turns` as they are, what may have any shape as JSON text."""
    return {key: _cell(value) if isinstance(value, dict | list) and key not in turns else value
            for key, value in row.items()}


def _cell(value: Any) -> str:
    """A value as text that `from_cell` reads back."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return "true" if value else "false"
    return json.dumps(value, ensure_ascii=False) if isinstance(value, dict | list) else str(value)
