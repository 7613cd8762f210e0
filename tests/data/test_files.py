"""Rows in every kind of file: what is written reads back, tables keep their types, and mistakes have a line."""

import json

import pytest

from rlhflab.data import files
from rlhflab.data.files import rows_of, write_rows
from rlhflab.errors import DataError

EXAMPLE = {"id": "one", "prompt": [{"role": "user", "content": "2+2?"}], "chosen": "4", "strength": 0.5, "label": True,
           "meta": {"deep": [1, None]}}
TRICKY = ['a "quoted", text;', "two\r\nlines\rthree\n", " spaces ", "[1, 2]", '{"a": 1}', "true", "12", "=1+1",
          "\u2028", "\x00", "über 😀", "'", "[{'a': 1}]"]
KINDS = [".jsonl", ".json", ".csv", ".tsv", ".parquet", ".jsonl.gz", ".json.gz", ".csv.gz", ".tsv.gz"]


@pytest.mark.parametrize("kind", KINDS)
def test_rows_read_back_as_they_were_written(tmp_path, kind):
    rows = [{**EXAMPLE, "id": f"row {place}", "chosen": text} for place, text in enumerate(TRICKY)]
    write_rows(tmp_path / f"mine{kind}", rows, example=EXAMPLE)
    assert [row.values for row in rows_of(tmp_path / f"mine{kind}")] == rows


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_absent_stays_absent_and_more_than_a_batch_is_read(tmp_path, kind):
    rows = [{"id": str(number), "chosen": "4"} for number in range(3 * files.BATCH + 1)]
    write_rows(tmp_path / f"mine{kind}", rows, example=EXAMPLE)
    found = list(rows_of(tmp_path / f"mine{kind}"))
    assert [row.values for row in found] == rows
    assert [row.line - found[0].line for row in found] == list(range(len(rows)))


@pytest.mark.parametrize(("text", "lines"), [
    ('[{"a": 1}, {"a": 2},\n\n{"a": 3}\n]\n', [1, 1, 3]), ('\ufeff\n[\n{"a":\n1}\n,{"a": "x"}]', [3, 5]),
    ('{"a": 1}\n{"a": 2}\n', [1, 2])])
def test_elements_of_a_list_stand_on_the_line_they_begin_on(tmp_path, text, lines):
    (tmp_path / "mine.json").write_text(text)
    assert [row.line for row in rows_of(tmp_path / "mine.json")] == lines


@pytest.mark.parametrize("chunk", [1, 2, 7, 1000])
def test_a_list_reads_the_same_however_it_is_cut_into_chunks(tmp_path, monkeypatch, chunk):
    monkeypatch.setattr(files, "CHUNK", chunk)
    rows = [{"a": "üx" * number, "b": [number, {"c": "]"}]} for number in range(5)]
    (tmp_path / "mine.json").write_text(json.dumps(rows, indent=1, ensure_ascii=False))
    assert [row.values for row in rows_of(tmp_path / "mine.json")] == rows


@pytest.mark.parametrize(("text", "kept", "sentence"), [
    ('[{"a": 1},\n{"a": 2}', 2, ":2: is not JSON: , or ] is expected, found the end of the file"),
    ('[{"a": 1}\n{"a": 2}]', 1, ":2: is not JSON: , or ] is expected, found {"),
    ('[{"a": 1},\n{"a": ]', 1, ":2: is not JSON: Expecting value"),
    ('[{"a": 1},\n 7, {"a": 3}]', 2, ":2: must be an object, found a number"),
    ('[{"a": 1}]\n[]', 1, ":2: is not JSON: something stands behind its end"),
    ('[{"a": 1},\n]', 1, ":2: is not JSON: Expecting value")])
def test_a_broken_list_is_read_up_to_the_line_that_is_named(tmp_path, text, kept, sentence):
    path, bad = tmp_path / "mine.json", []
    path.write_text(text)
    assert len(list(rows_of(path, bad=bad.append))) == kept
    assert [str(error) for error in bad] == [f"{path}{sentence}"]
    with pytest.raises(DataError, match=r"mine.json:2: "):
        list(rows_of(path))


@pytest.mark.parametrize("sign", [",", ";", "\t"])
def test_the_sign_between_cells_is_found(tmp_path, sign):
    lines = [sign.join(cells) + "\n" for cells in (["prompt", "chosen", "note"], ["2+2?", "4", ""])]
    (tmp_path / "mine.csv").write_text("".join(lines))
    assert [row.values for row in rows_of(tmp_path / "mine.csv")] == [{"prompt": "2+2?", "chosen": "4"}]


@pytest.mark.parametrize(("second", "sentence"), [
    (b"2+2?", ":2: has 1 cells; the first line names 2 columns"),
    (b"2+2?,4,5", ":2: has 3 cells; the first line names 2 columns"),
    ("drei für,4".encode("latin-1"), ":2: 'prompt' is not UTF-8"),
    (b"\"[{'role': 'user', 'content': '2+2?'}]\",4", ":2: 'prompt' is a Python list as text; messages in a table are "
                                                       "JSON"),
    (b'"2+2?"x,4', ":2: is not CSV: ',' expected after '\"'")])
def test_a_broken_row_of_a_csv_is_named_and_the_next_is_read(tmp_path, second, sentence):
    path, bad = tmp_path / "mine.csv", []
    path.write_bytes(b"prompt,chosen\n" + second + b"\n3+3?,6\n")
    assert [row.values["chosen"] for row in rows_of(path, bad=bad.append)] == ["6"]
    assert [str(error) for error in bad] == [f"{path}{sentence}"]


def test_a_quote_that_never_ends_and_two_columns_of_one_name_are_named(tmp_path):
    (tmp_path / "mine.csv").write_text('prompt,chosen\n"2+2?,4\n3+3?,6\n')
    with pytest.raises(DataError, match=r"mine.csv:2: is not CSV: unexpected end of data"):
        list(rows_of(tmp_path / "mine.csv"))
    (tmp_path / "twice.csv").write_text("prompt,prompt\n1,2\n")
    with pytest.raises(DataError, match=r"twice.csv:1: has two columns called 'prompt'"):
        list(rows_of(tmp_path / "twice.csv"))


def test_a_parquet_file_that_breaks_off_is_named(tmp_path):
    write_rows(tmp_path / "mine.parquet", [EXAMPLE] * 9, example=EXAMPLE)
    whole = (tmp_path / "mine.parquet").read_bytes()
    for content in (whole[:-30], b"", b"PAR1", b"prompt,chosen\n"):
        (tmp_path / "cut.parquet").write_bytes(content)
        with pytest.raises(DataError, match=r"cut.parquet: cannot be read: "):
            list(rows_of(tmp_path / "cut.parquet"))


def test_a_table_of_another_program_gives_json_values(tmp_path):
    pa, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    from datetime import date

    columns = {"day": [date(2026, 3, 1)], "raw": [b"x"], "turns": [[{"role": "user", "name": None}]]}
    parquet.write_table(pa.table(columns), tmp_path / "mine.parquet")
    row, = rows_of(tmp_path / "mine.parquet")
    assert row.values == {"day": "2026-03-01", "raw": "b'x'", "turns": [{"role": "user"}]}


def test_messages_are_lists_in_parquet_and_what_has_any_shape_is_text(tmp_path):
    parquet = pytest.importorskip("pyarrow.parquet")
    write_rows(tmp_path / "mine.parquet", [EXAMPLE], example=EXAMPLE)
    row, = parquet.read_table(tmp_path / "mine.parquet").to_pylist()
    assert row == {**EXAMPLE, "meta": '{"deep": [1, null]}'}


def test_a_folder_of_datasets_is_read_and_one_of_several_splits_names_them(tmp_path):
    datasets = pytest.importorskip("datasets")
    rows = [{"prompt": "2+2?", "chosen": str(number), "note": None} for number in range(3)]
    saved = datasets.Dataset.from_list(rows)
    saved.save_to_disk(str(tmp_path / "one"))
    datasets.DatasetDict({"train": saved, "test": saved}).save_to_disk(str(tmp_path / "two"))
    assert [(row.line, row.values["chosen"]) for row in rows_of(tmp_path / "one")] == [(1, "0"), (2, "1"), (3, "2")]
    assert len(list(rows_of(tmp_path / "two" / "test"))) == 3
    with pytest.raises(DataError, match=r"two: holds several splits; name the folder of one: test, train"):
        list(rows_of(tmp_path / "two"))


def test_a_folder_of_data_files_is_read_without_a_script(tmp_path):
    pytest.importorskip("datasets")
    write_rows(tmp_path / "set" / "train.jsonl", [{"prompt": "2+2?", "chosen": "4"}], example=EXAMPLE)
    assert [row.values["chosen"] for row in rows_of(tmp_path / "set")] == ["4"]
    write_rows(tmp_path / "set" / "test.jsonl", [{"prompt": "2+2?", "chosen": "5"}], example=EXAMPLE)
    with pytest.raises(DataError, match=r"set: its files are several splits, test, train; name the file of one"):
        list(rows_of(tmp_path / "set"))
    (tmp_path / "bare").mkdir()
    with pytest.raises(DataError, match=r"bare: is no folder of a data set"):
        list(rows_of(tmp_path / "bare"))


def test_a_hub_name_is_split_and_what_the_hub_says_is_told_in_one_sentence(monkeypatch):
    datasets, asked = pytest.importorskip("datasets"), []

    def load_dataset(*names, **options):
        asked.append((names, options))
        if names == ("away",):
            raise ConnectionError("Couldn't reach 'away' on the Hub.\nTry again")
        return iter([{"prompt": "2+2?"}])

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    for name in ("hub:a/b", "hub:a/b:test", "hub:a/b:small:test"):
        assert [row.values for row in rows_of(name)] == [{"prompt": "2+2?"}]
    assert asked == [(("a/b",), {"split": "train", "streaming": True}),
                     (("a/b",), {"split": "test", "streaming": True}),
                     (("a/b", "small"), {"split": "test", "streaming": True})]
    with pytest.raises(DataError, match=r"^hub:away: cannot be had from the hub: Couldn't reach 'away' on the Hub; w"):
        list(rows_of("hub:away"))


def test_a_missing_extra_is_one_sentence(tmp_path, monkeypatch):
    (tmp_path / "mine.parquet").write_bytes(b"PAR1")
    monkeypatch.setitem(__import__("sys").modules, "pyarrow", None)
    with pytest.raises(DataError, match=r"mine.parquet: Parquet needs pyarrow: pip install 'mini-rlhf-lab\[data\]'"):
        list(rows_of(tmp_path / "mine.parquet"))


@pytest.mark.parametrize("name", ["mine.txt", "mine", "mine.parquet.gz", "owner/name"])
def test_a_name_that_says_no_kind_is_refused(tmp_path, name):
    with pytest.raises(DataError, match=r"is no kind of file that holds rows, by its name; there are .jsonl, .json"):
        list(rows_of(tmp_path / name))
