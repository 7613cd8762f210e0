"""`rlhflab data check` and `data split` from a file to what they print, write and exit with."""

import json

import pytest

from conftest import SHARED
from rlhflab.cli import main
from rlhflab.data.splitting import group_of, part_of
from rlhflab.errors import ConfigError, DataError
from rlhflab.progress import Progress
from rlhflab.runs.data_check import Asked, check_data, read_limits, suite_of
from rlhflab.scenarios import scenario
from rlhflab.suites import suite_named
from survey_rows import pair

ROWS = [{"prompt": f"question number {i}?", "chosen": f"answer {i}", "rejected": f"reply no. {i}, longer"}
        for i in range(20)]


def file_of(folder, *rows, name="mine.jsonl"):
    path = folder / name
    path.write_text("".join(row if isinstance(row, str) else json.dumps(row) + "\n" for row in rows))
    return path


def check(capsys, *arguments):
    code = main(["data", "check", *map(str, arguments), "--no-tokens", "--json"])
    out, err = capsys.readouterr()
    record = json.loads(out) if out else None
    return code, record, err


def rates(record):
    return {finding["name"]: finding["count"] for finding in record["findings"]}


@pytest.fixture(autouse=True)
def here(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)


def test_a_file_is_checked_into_a_page_and_json(tmp_path, capsys):
    code, record, _ = check(capsys, file_of(tmp_path, *ROWS, ROWS[3]))
    assert code == 0 and (record["rows"], record["kinds"], record["prompts"]) == (21, {"pair": 21}, 20)
    assert rates(record)["duplicates"] == 1 and (tmp_path / "data-check.html").exists()


def test_words_say_what_to_do_next(tmp_path, capsys):
    assert main(["data", "check", str(file_of(tmp_path, *ROWS, ROWS[3])), "--no-tokens", "--out", "p/page.html"]) == 0
    out = capsys.readouterr().out
    assert out.splitlines()[0].startswith("duplicates ") and "1 of 21 rows are a copy of an earlier row" in out
    assert "Wrote p/page.html. Next: open it in a browser. Then, duplicates: leave the copies out" in out


def test_a_broken_row_stops_with_a_sentence_unless_it_is_skipped_and_counted(tmp_path, capsys):
    path = file_of(tmp_path, *ROWS, "{oops\n", {"prompt": "q", "chosen": "x"})
    code, record, err = check(capsys, path)
    assert (code, record) == (2, None) and f"{path}:21: is not JSON" in err and "--skip-bad goes on" in err
    code, record, _ = check(capsys, path, "--skip-bad")
    assert code == 0 and rates(record)["broken"] == 2 and record["skipped"] == 2


def test_empty_and_identical_rows_are_findings_and_stop_nothing(tmp_path, capsys):
    code, record, _ = check(capsys, file_of(tmp_path, *ROWS, {"prompt": "q", "chosen": "", "rejected": "x"},
                                            {"prompt": "q", "chosen": "x", "rejected": "x"}))
    assert code == 0 and (rates(record)["empty"], rates(record)["identical"]) == (1, 1)


def test_a_limit_that_is_exceeded_exits_with_2_and_says_so(tmp_path, capsys):
    path, limits = file_of(tmp_path, *ROWS, ROWS[3]), tmp_path / "limits.yaml"
    limits.write_text("duplicates: 0.01\nidentical: 0\nlength_bias: 1\nleaks: 0.2\n")
    code, record, err = check(capsys, path, "--limits", limits)
    assert code == 2 and [limit["check"] for limit in record["limits"] if limit["exceeded"]] == ["duplicates", "leaks"]
    assert "duplicates: 0.04762 is above its limit, 0.01" in err and "leaks: could not be run" in err
    limits.write_text("duplicates: 0.1\nnear_duplicates: {limit: 0.5, similarity: 0.9}\n")
    assert check(capsys, path, "--limits", limits)[0] == 0


@pytest.mark.parametrize(("text", "sentence"), [
    ("dupliactes: 0.1", "dupliactes: no such check; there are broken, contamination"),
    ("duplicates: many", "duplicates: a limit is a share from 0 to 1, found 'many'"),
    ("duplicates: 2", "duplicates: a limit is a share from 0 to 1, found 2"),
    ("near_duplicates: {limit: 0, simlarity: 1}", "the options of near_duplicates are: similarity"),
    ("- duplicates", "limits are names of checks with numbers, found list"), ("a: [", "cannot be read as YAML"),
])
def test_a_mistake_in_the_limits_is_one_sentence(tmp_path, text, sentence):
    path = tmp_path / "limits.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=r"limits\.yaml: ") as error:
        read_limits(path)
    assert sentence in str(error.value)


def test_a_cleaned_copy_leaves_out_what_is_at_fault_and_lists_why(tmp_path, capsys):
    secret = {"prompt": "who?", "chosen": "mail to anna.meier@mail.net", "rejected": "no", "more": ["a.b@mail.net", 1]}
    path = file_of(tmp_path, *ROWS, ROWS[3], {"prompt": "q", "chosen": "x", "rejected": "x"}, secret, "{oops\n")
    code, record, _ = check(capsys, path, "--fix", "clean.jsonl", "--skip-bad")
    copied = [json.loads(line) for line in (tmp_path / "clean.jsonl").read_text().splitlines()]
    assert copied[:20] == ROWS and len(copied) == 21 == record["fixed"]["kept"]
    assert copied[20]["chosen"] == "mail to [removed: e-mail address]" and copied[20]["more"] == [
        "[removed: e-mail address]", 1]
    changes = [json.loads(line) for line in (tmp_path / "clean.changes.jsonl").read_text().splitlines()]
    assert [(row["line"], row["what"], row["why"][0]["check"]) for row in changes] == [
        (21, "dropped", "duplicates"), (22, "dropped", "identical"), (23, "secrets removed", "secrets"),
        (24, "dropped", "broken")]
    assert "anna" not in (tmp_path / "clean.changes.jsonl").read_text() and code == 0


def test_a_cleaned_copy_finds_nothing_more_to_mend_and_is_never_written_over(tmp_path, capsys):
    path = file_of(tmp_path, *ROWS, ROWS[3], ROWS[4] | {"prompt": "Question number 4?"})
    assert check(capsys, path, "--fix", "clean.jsonl")[1]["fixed"]["dropped"] == {"near_duplicates": 1, "duplicates": 1}
    _, again, _ = check(capsys, "clean.jsonl")
    assert not [finding for finding in again["findings"] if finding["verdict"] == "fault"]
    code, _, err = check(capsys, path, "--fix", "clean.jsonl")
    assert code == 2 and "clean.jsonl: exists already" in err


def test_several_files_are_splits_and_are_cleaned_into_a_folder(tmp_path, capsys):
    paths = [file_of(tmp_path, *rows, name=name) for name, rows in (("train.jsonl", ROWS), ("test.jsonl", ROWS[:2]))]
    _, record, _ = check(capsys, *paths, "--fix", "clean")
    assert rates(record)["leaks"] == 2 and record["splits"] == ["train.jsonl", "test.jsonl"]
    kept = [len((tmp_path / "clean" / name).read_text().splitlines()) for name in ("train.jsonl", "test.jsonl")]
    assert kept == [18, 2], "train gives up what test holds, too"


def test_prompts_of_a_scenarios_evaluation_are_met_in_a_file_that_holds_them(tmp_path, capsys):
    asked = [prompt.messages[-1].content for prompt in scenario("helpdesk").prompts("evaluation", 3)]
    path = file_of(tmp_path, *ROWS, *({"prompt": text, "chosen": "a", "rejected": "b"} for text in asked))
    assert rates(check(capsys, path, "--against", "helpdesk")[1])["contamination"] == 3
    with pytest.raises(DataError, match="nobody: is neither a file nor a scenario or suite; there are brevity, det"):
        suite_of("nobody")


def test_prompts_of_a_behaviour_suite_are_met_in_a_file_that_holds_them(tmp_path, capsys):
    asked = suite_named("brevity").prompts[0].messages[-1].content
    path = file_of(tmp_path, *ROWS, {"prompt": asked, "chosen": "a", "rejected": "b"})
    assert rates(check(capsys, path, "--against", "brevity")[1])["contamination"] == 1
    (tmp_path / "mine").mkdir()
    file_of(tmp_path / "mine", {"id": "p", "prompt": ROWS[4]["prompt"]}, name="asked.jsonl")
    (tmp_path / "mine" / "suite.yaml").write_text("name: mine\nkind: rerun\nprompts: asked.jsonl\n")
    assert rates(check(capsys, path, "--against", "mine")[1])["contamination"] == 1


def test_tokens_are_counted_by_a_model_without_its_weights(tmp_path):
    asked = Asked(files=[file_of(tmp_path, *ROWS)], model="tiny-llama", max_length=40)
    record = check_data(asked, progress=Progress()).record
    budget, = (finding for finding in record["findings"] if finding["name"] == "length_budget")
    assert budget["count"] == 20 and {row["max_length"] for row in budget["details"]["budgets"]} >= {40, 256}


# -- splits --------------------------------------------------------------------------------------------------------


def split(capsys, path, out, *more):
    assert main(["data", "split", str(path), "--out", str(out), "--json", *more]) == 0
    return json.loads(capsys.readouterr().out)["parts"]


def prompts_in(folder, name):
    return {json.loads(line)["prompt"] for line in (folder / f"{name}.jsonl").read_text().splitlines()}


def test_a_row_keeps_its_part_when_the_file_grows(tmp_path, capsys):
    rows = [{"prompt": f"question {i}", "answer": "x"} for i in range(400)]
    split(capsys, file_of(tmp_path, *rows[:200]), tmp_path / "before")
    parts = split(capsys, file_of(tmp_path, *reversed(rows), name="grown.jsonl"), tmp_path / "after")
    for name in ("train", "held_out"):
        assert prompts_in(tmp_path / "before", name) <= prompts_in(tmp_path / "after", name)
    assert sum(part["rows"] for part in parts) == 400 and abs(parts[1]["rows"] - 40) < 20


def test_rows_of_one_prompt_stay_together_whatever_its_case_and_punctuation(tmp_path, capsys):
    texts = ["Why is it so?", "why  is it so", "WHY is it so!"] * 5
    rows = [{"prompt": text, "answer": str(i)} for i, text in enumerate(texts)]
    parts = split(capsys, file_of(tmp_path, *rows), tmp_path / "parts", "--shares", "0.5,0.3,0.2")
    assert sorted(part["rows"] for part in parts) == [0, 0, 15] and [part["name"] for part in parts] == [
        "train", "validation", "test"]


def test_a_split_that_stops_at_a_broken_row_leaves_no_folder(tmp_path, capsys):
    path, out = file_of(tmp_path, *ROWS, "{oops\n"), tmp_path / "parts"
    assert main(["data", "split", str(path), "--out", str(out)]) == 2
    assert [each.name for each in tmp_path.iterdir()] == ["mine.jsonl"]
    assert sum(part["rows"] for part in split(capsys, path, out, "--skip-bad")) == 20


def test_the_part_of_a_prompt_is_fixed_for_all_time():
    group = group_of(pair("Why is it so?", "x", "y", "a"), by="prompt")
    assert group == "user: why is it so"
    assert [part_of(group, (0.5, 0.5), salt=salt) for salt in ("", "1", "3")] == [1, 1, 0]


@pytest.mark.parametrize(("flags", "sentence"), [
    (["--shares", "0.5,0.6"], "--shares: must be above 0 and add up to 1, found 0.5, 0.6"),
    (["--shares", "half"], "--shares: must be numbers with commas between them, found 'half'"),
    (["--names", "a,a"], "--names: 2 shares need as many different names, found a, a"),
])
def test_a_mistake_in_the_shares_is_one_sentence(tmp_path, capsys, flags, sentence):
    assert main(["data", "split", str(file_of(tmp_path, *ROWS)), "--out", str(tmp_path / "new"), *flags]) == 2
    assert sentence in capsys.readouterr().err and not (tmp_path / "new").exists()


@pytest.mark.skipif(not (SHARED / "data").is_dir(), reason="needs the shared data")
def test_flaws_of_a_public_set_are_found(capsys):
    _, record, _ = check(capsys, SHARED / "data/preferences/hh_helpful_harmless_400/pairs.jsonl")
    assert (rates(record)["identical"], rates(record)["empty"], record["rows"]) == (6, 1, 297)
