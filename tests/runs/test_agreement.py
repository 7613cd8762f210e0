"""`rlhflab data agreement` from a file of any format to its folder."""

import json
from pathlib import Path

import pytest

from rlhflab.cli import main
from rlhflab.data.reading import read_items
from rlhflab.errors import DataError
from rlhflab.runs.comparisons import read_judged


def file_of(path: Path) -> Path:
    rows = [{"prompt": f"q{i}", "response_a": f"one {i}", "response_b": f"another {i}", "label": "a",
             "meta": {"workers": [["x", "a"], ["y", "b" if i % 4 == 0 else "a"]], "gpt": "a"}} for i in range(12)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_the_last_lines_say_what_to_train_with(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    # Two opinions agree on 9 of 12: e = (1 - sqrt(.5)) / 2 = .146.
    assert main(["data", "agreement", str(file_of(tmp_path / "in.jsonl")), "--judge", "gpt",
                 "--out", str(tmp_path / "out")]) == 0
    *_, ceiling, following = capsys.readouterr().out.splitlines()
    assert "a perfect reward model would reach 0.85" in ceiling
    assert following.startswith("Next: --loss.name robust --loss.label_noise 0.15 ")
    assert (tmp_path / "out" / "agreement.html").is_file()


def test_json_holds_the_record_and_nothing_else(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", "agreement", str(file_of(tmp_path / "in.jsonl")), "--judge", "gpt", "--judge", "x", "--json",
                 "--out", str(tmp_path / "out")]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["judges"]["gpt"]["agreement"]["n"] == 12 and [row["name"] for row in found["annotators"]] == ["y"]
    assert found == {**json.loads((tmp_path / "out" / "agreement.json").read_text()), "page": found["page"]}


@pytest.mark.parametrize(("rows", "options", "sentence"), [
    ([{"prompt": "q", "a": "x", "b": "y"}], [], "holds no judgment of its 1 comparisons"),
    ([{"prompt": "q", "completion": "x", "label": True}], [], "is a thumb; comparisons of two answers are needed"),
    ([{"prompt": "q", "a": "x", "b": "y", "verdict": "a", "annotator": "anna"}], ["--judge", "gpt"],
     "no annotator and no key of meta is called 'gpt'; the annotators are anna"),
])
def test_what_cannot_be_measured_is_one_sentence(
        rows: list[dict[str, str]], options: list[str], sentence: str, tmp_path: Path,
        capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "in.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert main(["data", "agreement", str(tmp_path / "in.jsonl"), *options, "--out", str(tmp_path / "out")]) == 2
    assert sentence in capsys.readouterr().err and not (tmp_path / "out").exists()


def test_broken_rows_are_left_out_and_counted_where_that_is_asked(
        tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = file_of(tmp_path / "in.jsonl")
    path.write_text(path.read_text() + '{"prompt": "q", "response_a": 3, "response_b": "y", "label": "a"}\n')
    assert main(["data", "agreement", str(path), "--out", str(tmp_path / "out")]) == 2
    assert ":13:" in capsys.readouterr().err
    assert main(["data", "agreement", str(path), "--skip-bad", "--out", str(tmp_path / "out")]) == 0
    assert "Left out 1 broken rows" in capsys.readouterr().err


def test_answers_that_are_empty_or_equal_were_judged_all_the_same(tmp_path: Path) -> None:
    row = {"prompt": "Hi", "response_a": "", "response_b": "Hello.", "label": "b", "votes": {"a": 0, "b": 2, "tie": 0}}
    path = tmp_path / "votes.jsonl"
    path.write_text("\n".join(map(json.dumps, [row, {**row, "response_b": ""}])) + "\n")
    assert [each.comparison.a for each in read_judged(path)] == ["", ""]
    with pytest.raises(DataError, match=r"votes\.jsonl:1: 'response_a' is empty"):
        list(read_items(path))


def test_agreement_reads_an_annotation_store(tmp_path: Path) -> None:
    comparisons = tmp_path / "c.jsonl"
    comparisons.write_text(json.dumps({"prompt": "Hi", "a": "Hello.", "b": "Go away."}) + "\n")
    assert main(["store", "import", str(tmp_path / "c.sqlite"), str(comparisons)]) == 0
    assert [each.comparison.b for each in read_judged(tmp_path / "c.sqlite")] == ["Go away."]
    with pytest.raises(DataError, match="no such store"):
        read_judged(tmp_path / "other.sqlite")
