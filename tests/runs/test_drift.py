"""`rlhflab drift` from files, adapters and servers to its record, its page and its exit code."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from conftest import SHARED, moved_role
from local_server import LocalServer
from rlhflab.cli import main
from rlhflab.errors import ConfigError, DataError, RunError
from rlhflab.progress import Progress
from rlhflab.runs.drift import sides_of
from rlhflab.runs.drift_models import ask_server
from rlhflab.runs.drift_sources import read_replies, source_of

REAL = SHARED / "data" / "drift" / "LEETCODE_EASY_EVAL.csv"


def log(path, text, n=40, **more):
    path.write_text("".join(json.dumps({"prompt": f"question {i}", "answer": text.format(i=i), **more}) + "\n"
                            for i in range(n)))
    return path


def run(arguments, capsys):
    """Exit code and the JSON on stdout."""
    code = main([*map(str, arguments), "--json"])
    return code, json.loads(capsys.readouterr().out)


def test_two_files_give_a_record_a_page_and_an_exit_code(tmp_path, capsys):
    a, b = log(tmp_path / "a.jsonl", "The answer is {i}."), log(tmp_path / "b.jsonl", "I cannot help with {i}.")
    code, record = run(["drift", a, b, "--out", tmp_path / "out", "--fail-on-drift"], capsys)
    assert code == 3 and record["verdict"] == "changed"
    assert (tmp_path / "out" / "drift.html").is_file()
    kept = json.loads((tmp_path / "out" / "drift.json").read_text())
    declines = next(row for row in kept["measures"] if row["name"] == "declines")
    assert declines["effect"]["mean"] == 1 and declines["verdict"] == "changed" and kept["prompts"] == 40
    assert main(["drift", str(a), str(b), "--out", str(tmp_path / "again")]) == 0
    assert "The answers have changed (40 prompts)" in capsys.readouterr().out


def test_equal_files_are_equivalent_and_do_not_fail(tmp_path, capsys):
    a, b = (log(tmp_path / f"{name}.jsonl", "The answer is {i}.") for name in "ab")
    code, record = run(["drift", a, b, "--out", tmp_path / "out", "--fail-on-drift"], capsys)
    assert code == 0 and {row["verdict"] for row in record["measures"]} == {"equivalent"}


def test_files_are_compared_without_torch(tmp_path):
    a, b = log(tmp_path / "a.jsonl", "yes {i}"), log(tmp_path / "b.jsonl", "no {i}")
    (tmp_path / "without").mkdir()
    (tmp_path / "without" / "torch.py").write_text("raise ImportError('there is no torch here')")
    code = ("import sys; from rlhflab.cli import main\n"
            f"sys.exit(main(['drift', {str(a)!r}, {str(b)!r}, '--out', {str(tmp_path / 'out')!r}]))")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, env={
        **os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path / "without"), *sys.path])})
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "out" / "drift.json").is_file()


def test_a_row_may_hold_several_answers_turns_or_ids(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text("\n".join(map(json.dumps, [
        {"query": "q", "answers": ["x", ""]}, {"prompt": [{"role": "user", "content": "q"}], "response": "y"},
        {"prompt_id": 7, "completion": "z", "score": "1.5"}])))
    replies, prompts = read_replies(source_of(str(path), where="baseline"))
    assert [(r.prompt, r.text, r.reward) for r in replies] == [
        ("q", "x", None), ("q", "", None), ("q", "y", None), ("id 7", "z", 1.5)]
    assert len(prompts) == 1


@pytest.mark.parametrize(("row", "sentence"), [
    ({"prompt": "q"}, r"a\.jsonl:1: 'answer' is missing"), ({"answer": "x"}, r"a\.jsonl:1: 'prompt' is missing"),
    ({"prompt": "q", "answer": 3}, "'answer' must be text, found a number"),
    ({"prompt": "q", "answer": "x", "reward": "much"}, "'reward' must be a finite number, found 'much'"),
    ({"prompt": "q", "answers": ["x", None]}, "'answers' must be text, found null")])
def test_a_row_that_cannot_be_used_is_named(tmp_path, row, sentence):
    (tmp_path / "a.jsonl").write_text(json.dumps(row))
    with pytest.raises(DataError, match=sentence):
        read_replies(source_of(str(tmp_path / "a.jsonl"), where="baseline"))


@pytest.mark.parametrize(("arguments", "sentence"), [
    (["drift", "a.jsonl", "empty.jsonl"], "empty.jsonl: is empty; at least one row is needed"),
    (["drift", "a.jsonl", "missing.jsonl"], "missing.jsonl: no such file"),
    (["drift", "a.jsonl", "other.jsonl"], "none of their 40 and 3 prompts is in both"),
    (["drift", "a.jsonl", "a.jsonl"], "is on both sides; tell them apart"),
    (["drift", "a.jsonl"], "is a file of answers already; give a second side"),
    (["drift"], "give a baseline and a current side, or --history"),
    (["drift", "a.jsonl", "."], "is a folder without adapter_config.json"),
    (["drift", "a.jsonl", "http://127.0.0.1:1"], "an address needs --served-as"),
    (["drift", "a.jsonl", "b.jsonl", "--served-as", "m"], "--served-as: goes with a side that is an address"),
    (["drift", "a.jsonl", "b.jsonl", "--margin", "length"], "must be MEASURE=NUMBER, found 'length'"),
    (["drift", "a.jsonl", "b.jsonl", "--outcome", "passed"], "a.jsonl:1: 'passed' is missing"),
    (["drift", "a.jsonl", "b.jsonl", "--baseline-rows", "m=1"], "a.jsonl: no row has m '1'; there are"),
    (["drift", "--history", "a.jsonl"], "a.jsonl: is no drift.json of rlhflab drift")])
def test_what_cannot_be_compared_is_one_sentence(tmp_path, capsys, monkeypatch, arguments, sentence):
    monkeypatch.chdir(tmp_path)
    log(Path("a.jsonl"), "a {i}")
    log(Path("b.jsonl"), "b {i}")
    Path("other.jsonl").write_text("".join(f'{{"prompt": "other {i}", "answer": "x"}}\n' for i in range(3)))
    Path("empty.jsonl").write_text("")
    assert main(arguments) == 2
    said = capsys.readouterr().err
    assert sentence in said and "Traceback" not in said


def test_one_file_may_hold_both_sides(tmp_path, capsys):
    path = tmp_path / "log.csv"
    path.write_text("query,answer,model\n" + "".join(
        f"q{i},{text},{model}\n" for i in range(12) for model, text in (("old", "yes"), ("new", ""))))
    _, record = run(["drift", path, "--baseline-rows", "model=old", "--current-rows", "model=new", "--out",
                     tmp_path / "out"], capsys)
    outcome = next(row for row in record["measures"] if row["name"] == "outcome")
    assert outcome["detail"]["shares"]["nothing"] == {"baseline": 0, "current": 1}
    assert record["current"].endswith("log.csv (model new)")


@pytest.mark.skipif(not REAL.is_file(), reason="needs the real drift records")
def test_real_versions_of_a_served_model_differ(tmp_path, capsys):
    model = "model=openaichat/gpt-4-{}"
    code, record = run(["drift", REAL, "--baseline-rows", model.format("0314"), "--current-rows", model.format("0613"),
                        "--outcome", "Directly Usable", "--out", tmp_path / "out", "--fail-on-drift"], capsys)
    found = {row["name"]: row for row in record["measures"]}
    assert code == 3 and record["prompts"] == 50 and found["outcome:Directly Usable"]["verdict"] == "changed"
    assert found["length"]["verdict"] == "too few to say" and found["length"]["needed"] > 50


def test_records_of_releases_are_charted(tmp_path, capsys):
    paths = []
    for i, text in enumerate(("The answer is {i}, as far as anybody can say.", "It is {i}.", "{i}")):
        a, b = log(tmp_path / "a.jsonl", "The answer is {i}, as far as anybody knows."), log(tmp_path / "b.jsonl", text)
        run(["drift", a, b, "--out", tmp_path / f"r{i}"], capsys)
        paths.append(tmp_path / f"r{i}" / "drift.json")
    code, charts = run(["drift", "--history", *paths, "--out", tmp_path / "history", "--fail-on-drift"], capsys)
    below = next(c for c in charts["charts"] if (c["measure"], c["side"]) == ("length", "below"))
    assert below["alarm"] and below["crossed"] == 2 and code == 3 and charts["average_run_length"] > 900
    assert main(["drift", "--history", *map(str, paths), "--out", str(tmp_path / "words")]) == 0
    assert "A chart alarms falsely once in 931 releases" in capsys.readouterr().out


# -- models ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def adapters(llama, tmp_path):
    """Two adapters that differ, and twelve prompts."""
    for seed, name in enumerate(("old", "new")):
        moved_role(llama, name, seed=seed + 1)
        llama.save_role(name, tmp_path / name)
    (tmp_path / "prompts.jsonl").write_text("".join(f'{{"prompt": "{"abcdefghijkl"[:i + 1]}"}}\n' for i in range(12)))
    return tmp_path


def asking(folder, *more):
    return ["--model", "tiny-llama", "--prompts", folder / "prompts.jsonl", "--samples", "2", "--max-new-tokens", "4",
            *more]


def texts(path):
    return [json.loads(line)["answer"] for line in path.read_text().splitlines()]


def test_two_adapters_have_token_divergences_and_their_answers_are_kept(adapters, capsys):
    _, record = run(["drift", adapters / "old", adapters / "new", *asking(adapters, "--out", adapters / "out")], capsys)
    found = {row["name"]: row for row in record["measures"]}
    assert {"text", "embedding", "kl_forward", "kl_reverse", "jsd"} <= found.keys()
    assert found["kl_forward"]["effect"]["mean"] > 0 and 0 < found["jsd"]["effect"]["mean"] < 0.6932
    assert found["kl_forward"]["effect"]["n"] == 12 and "hidden state" in found["embedding"]["says"]
    assert "tokens" in found["text"]["says"] and record["repeated_prompts"] == 12
    rows = [json.loads(line) for line in (adapters / "out" / "current.jsonl").read_text().splitlines()]
    assert len(rows) == 24 and rows[0]["prompt"] == [{"role": "user", "content": "a"}]
    again, _ = read_replies(source_of(str(adapters / "out" / "current.jsonl"), where="baseline"))
    assert len({reply.prompt for reply in again}) == 12


def test_an_adapter_beside_itself_diverges_by_nothing_and_answers_anew(adapters, capsys):
    _, record = run(["drift", adapters / "old", adapters / "old", *asking(adapters, "--out", adapters / "out")], capsys)
    found = {row["name"]: row for row in record["measures"]}
    assert [found[name]["verdict"] for name in ("kl_forward", "kl_reverse", "jsd")] == ["equivalent"] * 3
    assert found["jsd"]["effect"]["mean"] == pytest.approx(0, abs=1e-6) and record["verdict"] != "changed"
    assert texts(adapters / "out" / "baseline.jsonl") != texts(adapters / "out" / "current.jsonl")


def test_one_side_alone_is_kept_for_later_and_repeats_by_its_seed(adapters, capsys):
    for name in ("x", "y"):
        code, found = run(["drift", "base", *asking(adapters, "--out", adapters / name)], capsys)
        assert code == 0 and found["answers"] == str(adapters / name / "answers.jsonl")
    first, second = (texts(adapters / name / "answers.jsonl") for name in ("x", "y"))
    assert first == second and len(first) == 24


def test_sides_are_named_by_the_registry_and_the_base_is_the_one_they_name(adapters, capsys, monkeypatch):
    monkeypatch.chdir(adapters)
    monkeypatch.setenv("RLHFLAB_REGISTRY_KEY", str(adapters / "key.pem"))
    for name in ("old", "new"):
        assert main(["registry", "add", name, "--by", "anna", "--name", f"{name}-one"]) == 0
    assert main(["registry", "promote", "old-one", "--to", "prod", "--by", "anna", "--override", "the first"]) == 0
    capsys.readouterr()
    _, record = run(["drift", "prod@active", "new-one", *asking(adapters, "--out", "out")[2:]], capsys)
    assert record["baseline"].startswith("prod@active (") and record["current"].startswith("new-one (")
    assert record["asked"]["model"] == "tiny-llama"
    assert {row["name"]: row for row in record["measures"]}["jsd"]["effect"]["mean"] > 0


@pytest.mark.parametrize(("current", "out", "sentence"), [
    ("other", "new-folder", "other: was trained on base weights tiny-qwen (another), not on tiny-llama"),
    ("new", "old", "old: exists already")])
def test_what_cannot_be_compared_is_said_before_anything_is_answered(adapters, capsys, monkeypatch, current, out,
                                                                     sentence):
    monkeypatch.chdir(adapters)
    shutil.copytree("new", "other")
    role = json.loads(Path("other/rlhflab.json").read_text())
    Path("other/rlhflab.json").write_text(json.dumps({**role, "base": "tiny-qwen", "base_digest": "another"}))
    assert main([*map(str, ["drift", "old", current, *asking(adapters, "--out", out)])]) == 2
    said = capsys.readouterr().err
    assert sentence in said and "answers of" not in said and not Path("new-folder").exists()


class Chat(LocalServer):
    """Chat completions that greet, or decline."""

    def __init__(self):
        super().__init__()
        self.got, self.reply = [], "Here you are."

    def answer(self, path, content, authorization):
        self.got.append((path, content, authorization))
        return 200, json.dumps({"choices": [{"message": {"role": "assistant", "content": self.reply}}]})


@pytest.fixture
def server():
    made = Chat()
    with made.running():
        yield made


def test_a_server_is_compared_with_its_answers_of_an_earlier_date(tmp_path, server, capsys, monkeypatch):
    monkeypatch.setenv("SERVED", "secret")
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text("".join(f'{{"prompt": "question {i}"}}\n' for i in range(12)))
    asked = [server.url, "--served-as", "m", "--token-env", "SERVED", "--samples", "2"]
    _, kept = run(["drift", *asked, "--prompts", prompts, "--out", tmp_path / "before"], capsys)
    server.reply = "I'm sorry, but I can't help."
    code, record = run(["drift", kept["answers"], *asked, "--out", tmp_path / "now", "--fail-on-drift"], capsys)
    assert code == 3 and record["prompts"] == 12 and record["current"] == f"{server.url} (m)"
    assert len(server.got) == 48 and {got[0] for got in server.got} == {"/v1/chat/completions"}
    assert {got[2] for got in server.got} == {"Bearer secret"} and server.got[0][1]["temperature"] == 1.0
    assert len({got[1]["seed"] for got in server.got[:24]}) == 24, "every answer has a seed of its own"
    assert "secret" not in (tmp_path / "now" / "drift.json").read_text()


@pytest.mark.parametrize("end", ["", "/", "/v1", "/v1/"])
def test_a_server_that_is_down_is_one_sentence(tmp_path, end):
    source = source_of(f"http://127.0.0.1:9{end}", where="current", served_as="m")
    (tmp_path / "a.jsonl").write_text('{"prompt": "q", "answer": "x"}')
    _, prompts = read_replies(source_of(str(tmp_path / "a.jsonl"), where="baseline"))
    with pytest.raises(RunError, match=r"http://127.0.0.1:9/v1/chat/completions: gave no usable answer in 2 attempts"):
        ask_server(source, prompts, samples=1, max_new_tokens=4, temperature=0.0, token_env=None, seed=0,
                   progress=Progress(), retries=1, wait=0.0)


def test_one_name_at_an_address_is_that_of_both_sides():
    first, second = sides_of("http://here", "http://there", served_as=["m"])
    assert first.served_as == second.served_as == "m"
    first, second = sides_of("http://here", "http://here", served_as=["old", "new"])
    assert (first.label, second.label) == ("http://here (old)", "http://here (new)")
    with pytest.raises(ConfigError, match="at most one a side, found 3"):
        sides_of("http://here", "http://here", served_as=["a", "b", "c"])
