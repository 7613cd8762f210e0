"""From format to format: round trips, the count of what is left out, and the command."""

import gc
import json
from pathlib import Path

import pytest

from rlhflab.cli import main
from rlhflab.data.converting import convert, writable
from rlhflab.data.formats import read_pairs, read_thumbs, write_jsonl
from rlhflab.data.forms import in_order
from rlhflab.data.reading import pairs_of, read_items
from rlhflab.data.types import Judged, PreferencePair
from rlhflab.errors import ConfigError, DataError

SHARED = Path(__file__).parents[3] / "shared" / "data"
PAIRS = [name for name in writable() if in_order()[name].holds is PreferencePair]
VOTED = [{"id": str(place), "prompt": "2+2?", "a": "4", "b": "5", "judgments": [
    {"verdict": verdict, "annotator": who} for who, verdict in zip("xyz", verdicts, strict=False)]}
    for place, verdicts in enumerate((["a", "a", "b"], ["b"], ["tie", "tie"], ["a", "b"], ["skip"], []))]


def file_of(folder, rows, name="first.jsonl"):
    """A JSONL file of rows."""
    write_jsonl(folder / name, rows)
    return folder / name


def items(path, form=None):
    """The items of a file."""
    return [located.item for located in read_items(path, form=form)]


@pytest.mark.parametrize("kind", [".jsonl.gz", ".json", ".csv", ".parquet"])
@pytest.mark.parametrize("form", PAIRS)
def test_pairs_come_back_from_every_format_and_kind_of_file(tmp_path, form, kind):
    talk = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello."},
            {"role": "user", "content": "2+2?\n\nBriefly, \"please\""}]
    first = file_of(tmp_path, [{"prompt": talk, "chosen": f"{n}\nyes", "rejected": "5, or {6}"} for n in range(3)])
    convert(first, tmp_path / f"second{kind}", to=form)
    convert(tmp_path / f"second{kind}", tmp_path / "third.jsonl", form=form)
    assert [(pair.prompt.messages, pair.chosen, pair.rejected) for pair in read_pairs(tmp_path / "third.jsonl")] == [
        (pair.prompt.messages, pair.chosen, pair.rejected) for pair in read_pairs(first)]


@pytest.mark.parametrize("kind", [".jsonl", ".csv", ".tsv.gz", ".parquet"])
@pytest.mark.parametrize("form", ["judged", "shared", "pairs", "thumbs", "demonstrations", "prompts"])
def test_the_labs_own_formats_lose_nothing_that_their_rows_hold(tmp_path, form, kind):
    first = file_of(tmp_path, [in_order()[form].example])
    convert(first, tmp_path / f"second{kind}", to=form)
    assert items(tmp_path / f"second{kind}") == items(first)


def test_what_gives_no_pair_is_counted_by_the_reason(tmp_path):
    first = file_of(tmp_path, VOTED)
    done = convert(first, tmp_path / "second.jsonl", to="trl")
    assert (done.form, done.read, done.rows, done.bad) == ("judged", {"comparisons": 6}, 2, 0)
    assert done.dropped == {"ties": 1, "without a majority": 1, "skips": 1, "not judged": 1}
    done = convert(first, tmp_path / "third.jsonl", rule="each")
    assert (done.rows, done.dropped) == (6, {"ties": 2, "skips": 1, "not judged": 1})


def test_a_comparison_is_two_thumbs_a_demonstration_and_a_prompt(tmp_path):
    first = file_of(tmp_path, VOTED[:2])
    convert(first, tmp_path / "thumbs.jsonl", to="thumbs")
    assert [(thumb.answer, thumb.good) for thumb in read_thumbs(tmp_path / "thumbs.jsonl")] == [
        ("4", True), ("5", False), ("5", True), ("4", False)]
    convert(first, tmp_path / "demonstrations.jsonl", to="demonstrations")
    assert [each.messages[-1].content for each in items(tmp_path / "demonstrations.jsonl")] == ["4", "5"]
    done = convert(first, tmp_path / "prompts.jsonl", to="prompts")
    assert (done.rows, done.dropped) == (1, {"prompts that came before": 1})


def test_a_thumb_is_no_pair_and_only_a_good_one_is_a_demonstration(tmp_path):
    rows = [{"prompt": "2+2?", "completion": answer, "label": answer == "4"} for answer in ("4", "5")]
    first = file_of(tmp_path, rows)
    assert convert(first, tmp_path / "second.jsonl", to="demonstrations").dropped == {"thumbs down": 1}
    with pytest.raises(DataError, match=r"jsonl: no pairs are left to write; it holds 2 thumbs, and dropped are 2 th"):
        convert(first, tmp_path / "third.jsonl")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["first.jsonl", "second.jsonl"]


def test_rows_that_a_format_cannot_say_are_counted(tmp_path):
    system = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "2+2?"}]
    first = file_of(tmp_path, [{"prompt": prompt, "chosen": "4", "rejected": "5"} for prompt in (system, "2+2?")])
    done = convert(first, tmp_path / "second.jsonl", to="hh")
    assert (done.rows, done.dropped) == (1, {"that the format cannot say": 1})


def test_broken_rows_stop_the_work_or_are_counted_and_no_half_file_is_left(tmp_path):
    whole = {"prompt": "2+2?", "chosen": "4", "rejected": "5"}
    first = file_of(tmp_path, [whole, {"prompt": "2+2?", "chosen": "4"}] * 2)
    with pytest.raises(DataError, match=r"first.jsonl:2: 'rejected' is missing"):
        convert(first, tmp_path / "second.jsonl", form="trl")
    assert [path.name for path in tmp_path.iterdir()] == ["first.jsonl"]
    bad = []
    done = convert(first, tmp_path / "second.jsonl", form="trl", bad=bad.append)
    assert (done.rows, done.bad, len(bad)) == (2, 2, 2)


@pytest.mark.parametrize("kind", [".jsonl", ".csv", ".parquet"])
def test_turns_that_are_no_transcript_are_kept_as_messages_in_the_shared_schema(tmp_path, kind):
    system = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "2+2?"}]
    first = file_of(tmp_path, [{**VOTED[0], "prompt": prompt} for prompt in ("2+2?", system, "Human: 2+2?")])
    convert(first, tmp_path / f"second{kind}", to="shared")
    assert items(tmp_path / f"second{kind}") == items(first)


@pytest.mark.parametrize("kind", [".jsonl.gz", ".json.gz", ".csv", ".csv.gz", ".parquet"])
def test_a_file_that_is_given_up_half_way_leaves_nothing_behind(tmp_path, kind, recwarn):
    rows = [{**VOTED[0], "id": str(number)} for number in range(3000)]
    first = file_of(tmp_path, [*rows, {"prompt": "2+2?"}])
    with pytest.raises(DataError, match=r"first\.jsonl:3001: 'a' is missing"):
        convert(first, tmp_path / f"second{kind}")
    gc.collect()  # A handle left open would complain here.
    assert [path.name for path in tmp_path.iterdir()] == ["first.jsonl"] and not list(recwarn)


def test_what_cannot_be_written_is_refused_before_anything_is_read(tmp_path):
    first = file_of(tmp_path, VOTED)
    with pytest.raises(ConfigError, match="exists already; name a new file"):
        convert(first, first)
    with pytest.raises(ConfigError, match=r"--to: rows of oasst can be read, not written; there are alpaca, demonstr"):
        convert(first, tmp_path / "second.jsonl", to="oasst")
    with pytest.raises(ConfigError, match="--to: no data format is called 'csv'"):
        convert(first, tmp_path / "second.csv", to="csv")
    with pytest.raises(DataError, match=r"second\.txt: is no kind of file that holds rows"):
        convert(first, tmp_path / "second.txt")


def test_the_command_says_what_was_left_out_and_what_to_do_next(tmp_path, capsys):
    first, second = file_of(tmp_path, [*VOTED, {"prompt": "2+2?", "a": "4"}]), tmp_path / "second.csv"
    assert main(["data", "convert", str(first), str(second), "--to", "hh", "--skip-bad"]) == 0
    out, err = capsys.readouterr()
    assert out == (
        f"Wrote {second}: 2 pairs by majority, from 6 comparisons in the format judged (dropped: 1 ties, 1 without a "
        "majority, 1 skips, 1 not judged; broken rows skipped: 1; rows of hh have no id, facts, strength, source, "
        f"reasons, tags, times or other columns, or space around texts). Next: rlhflab data check {second}\n")
    assert f"skipped: {first}:7: 'b' is missing\n" in err


def test_the_command_prints_only_json_where_asked(tmp_path, capsys):
    first = file_of(tmp_path, VOTED)
    assert main(["data", "convert", str(first), str(tmp_path / "second.jsonl"), "--from", "judged", "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert (said["form"], said["rows"], said["bad"], said["dropped"]["ties"]) == ("judged", 2, 0, 1)


def test_a_broken_row_is_one_sentence_and_exit_code_two(tmp_path, capsys):
    first = file_of(tmp_path, [{"prompt": "2+2?", "a": "4", "b": "5"}, {"prompt": "2+2?", "a": "4", "b": "4"}])
    assert main(["data", "convert", str(first), str(tmp_path / "second.jsonl"), "--to", "judged"]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.endswith(f"rlhflab: {first}:2: 'a' and 'b' are equal; there is nothing to compare\n")


@pytest.mark.parametrize(("folder", "comparisons", "bad", "pairs"), [
    ("tldr_comparisons", 8068, 0, 8068), ("hh_harmless_test", 1727, 3, 1727), ("hh_helpful_harmless_400", 297, 7, 297),
    ("qa_feedback", 2304, 0, 1973), ("oasst_en_100", 609, 0, 609), ("llmfao", 1850, 289, 1148),
    ("llmbar_natural", 100, 0, 100)])
def test_real_sets_become_pairs_by_the_label_they_come_with(folder, comparisons, bad, pairs):
    path, broken = SHARED / "preferences" / folder / "pairs.jsonl", []
    if not path.exists():
        pytest.skip("the real data is not here")
    labels = {place: json.loads(line)["label"] for place, line in enumerate(path.open(), start=1)}
    found, made = 0, 0
    for located in read_items(path, bad=broken.append):
        assert isinstance(located.item, Judged)
        chosen = [pair.chosen for pair in pairs_of(located.item)]
        found, made = found + 1, made + len(chosen)
        sides = {"a": [located.item.comparison.a], "b": [located.item.comparison.b], "tie": []}
        assert chosen == sides[labels[located.line]]
    assert (found, len(broken), made) == (comparisons, bad, pairs)
