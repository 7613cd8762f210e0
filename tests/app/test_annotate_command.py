"""The commands: one sentence for what cannot be, exit code 2, nothing lost; and the way from file to pairs."""

import json
import os
import re
import signal
import socket
import subprocess
import sys

import httpx
import pytest

import sample_rows
from annotation_stores import item, sql, store_with
from rlhflab.app.feed import Feed
from rlhflab.cli import main
from rlhflab.data.formats import read_pairs
from rlhflab.data.store import Store
from rlhflab.errors import ModelError

ROWS = [{"prompt": f"{i}+1?", "a": str(i + 1), "b": str(i)} for i in range(3)]


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "mine.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return path


def failure(capsys, *arguments):
    assert main([str(argument) for argument in arguments]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("rlhflab: ") and err.count("\n") == 1
    return err


def test_without_the_extra_one_sentence_says_what_to_install(capsys, monkeypatch, file):
    monkeypatch.setattr("rlhflab.commands.annotate.find_spec", lambda name: None if name == "fastapi" else name)
    assert "annotation needs fastapi, which is not installed; run: pip install 'mini-rlhf-lab[app]'" in failure(
        capsys, "annotate", file)


@pytest.mark.parametrize(("arguments", "sentence"), [
    ([], "needs something to judge, such as rlhflab annotate comparisons.jsonl"),
    (["none.jsonl"], "none.jsonl: no such file or run folder"),
    (["a.sqlite", "b.sqlite"], "a.sqlite and b.sqlite: are two stores; give one"),
    (["a.sqlite", "--adapter", "x"], "--adapter: is to be given twice, two policies are compared; found 1"),
    (["a.sqlite", "--host", "0.0.0.0"], "--host 0.0.0.0: other machines can reach it, so a token is needed"),
    (["a.sqlite", "--token", "short"], "--token: has 5 characters"),
    (["a.sqlite", "--annotator", "a/b"], "annotator 'a/b': a name is 1 to 64"),
    (["a.sqlite", "--port", "0"], "a.sqlite: has nothing to judge; give a JSONL file or a run folder too")])
def test_what_cannot_be_is_one_sentence(capsys, monkeypatch, tmp_path, arguments, sentence):
    monkeypatch.chdir(tmp_path)
    assert sentence in failure(capsys, "annotate", *arguments)


def test_a_port_in_use_changes_nothing(capsys, file, tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert f"--port {port}: is in use" in failure(capsys, "annotate", file, "--port", port)
    assert list(tmp_path.iterdir()) == [file]


def test_broken_rows_damaged_and_newer_stores_are_named_and_left_as_they_are(capsys, file, tmp_path):
    store = store_with(tmp_path)
    file.write_text(file.read_text() + '{"prompt": "x", "a": "y"}\n')
    assert "mine.jsonl:4: 'b' is missing" in failure(capsys, "store", "import", store.name, file)
    assert store.counts()["comparisons"] == 3
    sql(store, "UPDATE alembic_version SET version_num = 'later'")
    assert "newer version" in failure(capsys, "store", store.name)
    (tmp_path / "bad.sqlite").write_text("no database, only text " * 50)
    assert "bad.sqlite: cannot be used as a store: file is not a database" in failure(
        capsys, "store", tmp_path / "bad.sqlite")
    assert "none.sqlite: no such store" in failure(capsys, "store", "export", tmp_path / "none.sqlite", "--out", "x")


def test_a_file_is_judged_corrected_and_exported(capsys, file, tmp_path):
    store, out = tmp_path / "s.sqlite", tmp_path / "pairs.jsonl"
    judged = {**ROWS[0], "judgments": [{"verdict": "b", "annotator": "anna"}]}
    file.write_text("".join(json.dumps(row) + "\n" for row in [judged, *ROWS[1:]]))
    assert main(["store", "import", str(store), str(file), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["added"] == [
        {"source": str(file), "new": 3, "known": 0, "judgments": 1, "skipped": 0}]
    assert main(["store", "correct", str(store), "1", "--verdict", "a", "--author", "lead", "--reason", "slip"]) == 0
    assert "Judgment 2 corrects 1." in capsys.readouterr().out
    assert main(["store", str(store), "--json"]) == 0
    counts = json.loads(capsys.readouterr().out)
    assert (counts["judgments"], counts["corrections"], counts["waiting"]) == (1, 1, 2)
    assert main(["store", "export", str(store), "--out", str(out)]) == 0
    said = capsys.readouterr().out
    assert "1 rows; left out: 2 not judged" in said and f"--data {out}" in said
    assert [pair.chosen for pair in read_pairs(out)] == ["1"]


def test_a_runs_samples_become_comparisons(capsys, tmp_path):
    run = sample_rows.write(tmp_path / "run", rollouts=sample_rows.rollouts(steps=2))
    assert main(["store", "import", str(tmp_path / "s.sqlite"), str(run), "--n", "5"]) == 0
    items = [each.item for each in Store.open(tmp_path / "s.sqlite").everything()]
    assert len(items) == 5 == len({item.prompt.id for item in items})
    assert all(item.a != item.b and set(item.meta["step"]) == {"a", "b"} for item in items)


def test_judging_needs_no_torch():
    code = "import sys, rlhflab.app.annotate, rlhflab.data.export, rlhflab.data.intake; print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "False\n"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_ends_the_server_and_says_what_is_next_and_no_key_is_logged(file, tmp_path, number):
    process = subprocess.Popen(
        [sys.executable, "-m", "rlhflab", "annotate", str(file), "--port", "0", "--annotator", "anna", "--annotator",
         "ben"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env={**os.environ, "RLHFLAB_TOKEN": "0123456789abcdef"})
    lines = [process.stdout.readline() for _ in range(3)]
    found = re.search(r"anna: (http://127\.0\.0\.1:\d+)/enter#(anna\.\w{64})", lines[1])
    base, key = found[1], found[2]
    with httpx.Client(base_url=base, headers={"Origin": base}, follow_redirects=True) as client:
        assert "0+1?" in client.post("/enter", data={"key": key}).text
    process.send_signal(number)
    out, err = process.communicate()
    assert process.returncode == 0 and "0 judgments more, 0 in" in out and "Next: rlhflab store export" in out
    assert key not in out + err and "0123456789abcdef" not in "".join(lines) + out + err
    assert Store.open(tmp_path / "mine.sqlite", create=False).counts()["comparisons"] == 3


def test_answers_that_are_being_written_arrive_and_a_failure_is_told(tmp_path):
    store = store_with(tmp_path, 1)

    def write():
        yield [item(1), item(2)]
        yield [item(2), item(3)]
        raise ModelError("the adapter is gone")

    feed = Feed(store, write)
    assert feed.news() == "0 pairs of answers were written; more are on the way"
    feed.start()
    feed.join()
    assert feed.news() == "3 pairs of answers were written; no more are written: the adapter is gone"
    assert store.counts()["comparisons"] == 4


def test_two_adapters_answer_the_same_prompts(tmp_path, llama):
    from conftest import moved_role
    from rlhflab.progress import Progress
    from rlhflab.runs.to_judge import written_pairs

    moved_role(llama, "policy")
    llama.save_role("policy", tmp_path / "policy")
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text("".join(json.dumps({"prompt": f"{i}+1?"}) + "\n" for i in range(9)))
    adapters = ("base", str(tmp_path / "policy"))
    batches = list(written_pairs(adapters, model="tiny-llama", prompts=str(prompts), n=9, max_new_tokens=8,
                                 temperature=1.0, seed=0, progress=Progress()))
    items = [item for batch in batches for item in batch]
    assert len(batches) == 2 and 5 < len(items) <= 9
    assert all(item.a != item.b and item.meta["adapter"] == {"a": "base", "b": adapters[1]} for item in items)
