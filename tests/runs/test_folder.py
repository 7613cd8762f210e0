"""Files of a run folder."""

from pathlib import Path

from rlhflab.runs.folder import RunFolder


def test_an_answer_with_a_line_separator_of_unicode_is_one_row(tmp_path: Path) -> None:
    folder = RunFolder.create(tmp_path / "run")
    rows = [{"answer": "one\u2028two\u0085three"}, {"answer": "four\x0bfive"}]
    for row in rows:
        folder.append("rollouts.jsonl", row)
    with (folder.path / "rollouts.jsonl").open("a") as file:
        file.write('{"answer": "cut of')
    assert folder.rows("rollouts.jsonl") == rows


def test_a_missing_file_and_an_empty_one_have_no_rows(tmp_path: Path) -> None:
    folder = RunFolder.create(tmp_path / "run")
    folder.write("empty.jsonl", "")
    assert folder.rows("empty.jsonl") == folder.rows("missing.jsonl") == []
