"""The command line: quick help, exit codes, one sentence for each mistake, clean JSON on stdout."""

import errno
import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

from rlhflab.cli import main
from rlhflab.data.formats import finite
from rlhflab.errors import ModelError

MOST_MODULES = 600
"""Modules that help may load: about 330 today, and torch alone brings more than a thousand."""


@pytest.fixture
def stand_in(monkeypatch):
    """Put a function in the place of one that a command calls: `stand_in("rlhflab.runs.demo", run_demo=...)`."""

    def put(module, **functions):
        stub = ModuleType(module)
        vars(stub).update(functions)
        monkeypatch.setitem(sys.modules, module, stub)

    return put


@pytest.fixture
def run_file(tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text("kind: dpo\nbatch: 4\nloss: {name: dpo, beta: 0.3}\n")
    return path


def failure(capsys, *arguments):
    """The sentence of a command that fails with exit code 2 and prints nothing else."""
    assert main([str(argument) for argument in arguments]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("rlhflab: ") and err.count("\n") == 1
    return err


@pytest.mark.parametrize("arguments", [["--help"], ["train", "--help"], ["list", "ppo"]])
def test_help_is_quick_because_it_loads_little(arguments):
    code = f"import sys; from rlhflab.cli import main; main({arguments}); print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = set(done.stdout.splitlines()[-1].split())
    assert not loaded & {"torch", "numpy", "scipy", "transformers", "peft", "plotly", "jinja2", "psutil"}
    assert len(loaded) < MOST_MODULES, "a time would depend on the machine and on what else it does"


def test_the_module_and_the_command_are_one():
    done = subprocess.run([sys.executable, "-m", "rlhflab", "trian"], capture_output=True, text=True)
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.startswith('rlhflab: Unknown command "trian". Did you mean "train"?')


def test_a_reader_that_leaves_early_is_no_error():
    done = subprocess.run(f"{sys.executable} -m rlhflab list ppo | true; exit ${{PIPESTATUS[0]}}", shell=True,
                          executable="/bin/bash", capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize(("arguments", "sentence"), [
    (["train", "dqo", "run.yaml"], 'Invalid value "dqo"'),
    (["train", "dpo"], "train: needs a kind and a run file, such as rlhflab train dpo recipes/dpo.yaml"),
    (["train", "dpo", "none.yaml"], "none.yaml: no such run file"),
    (["sample", "--n", "0"], 'Invalid value "0" for --n'),
    (["sample", "--prompt", "a", "--prompts", "b"], "--prompt and --prompts: give one of them"),
    (["demo", "--out", "a", "--resume", "b"], "--out and --resume"),
    (["report", "none"], "none: no such run folder"),
    (["list", "losse"], "nothing to list is called 'losse'; there are sft"),
])
def test_a_mistake_is_one_sentence(capsys, arguments, sentence, monkeypatch, tmp_path, stand_in):
    monkeypatch.chdir(tmp_path)
    stand_in("rlhflab.runs.demo", run_demo=None)
    stand_in("rlhflab.runs.inspecting", sample_answers=None)
    assert sentence in failure(capsys, *arguments)


def test_an_unknown_key_is_named_with_the_known_ones(capsys, run_file):
    run_file.write_text("bathc: 4\n")
    assert f"{run_file}: bathc: unknown key; a dpo run knows batch, " in failure(capsys, "train", "dpo", run_file)


def test_a_flag_changes_one_key_and_keeps_its_neighbours(capsys, run_file, stand_in):
    stand_in("rlhflab.runs.estimate", describe_run=lambda run: run.model_dump())
    stand_in("rlhflab.runs.training", run_training=None)
    flags = ["--loss.name", "cdpo", "--loss.label_noise", "0.1", "--dry-run",
             "--batch=8", "--optimizer.learning-rate", "1e-5", "--json"]
    assert main(["train", "dpo", str(run_file), *flags]) == 0
    run = json.loads(capsys.readouterr().out)
    assert run["loss"] == {"name": "cdpo", "beta": 0.3, "label_noise": 0.1}
    assert (run["batch"], run["optimizer"]["learning_rate"]) == (8, 1e-5)


def test_with_json_stdout_holds_only_the_json(capsys, run_file, stand_in, tmp_path):
    def run_training(run, *, out, progress):
        print("a library prints")
        progress.say("words")
        out.mkdir()
        (out / "summary.json").write_text('{"accuracy": 0.5}')
        return out

    stand_in("rlhflab.runs.training", describe_run=None, run_training=run_training)
    assert main(["train", "dpo", str(run_file), "--out", str(tmp_path / "mine"), "--json"]) == 0
    out, err = capsys.readouterr()
    assert json.loads(out) == {"folder": str(tmp_path / "mine"), "summary": {"accuracy": 0.5}}
    assert "a library prints" in err and "words" in err


def test_a_single_prompt_goes_the_way_of_a_file_of_prompts(capsys, stand_in):
    def sample_answers(*, prompts, **_):
        return [{"prompt": json.loads(Path(prompts).read_text())["prompt"], "text": "4", "rate": 1 / 3}]

    stand_in("rlhflab.runs.inspecting", sample_answers=sample_answers)
    assert main(["sample", "--prompt", "2+2?"]) == 0
    assert capsys.readouterr().out == "prompt: 2+2?\ntext: 4\nrate: 0.3333\n"


@pytest.mark.parametrize(("error", "code", "words"), [
    (KeyboardInterrupt(), 130, "Stopped. What was finished is kept"),
    (OSError(errno.ENOSPC, "No space", "runs/a/x.bin"), 2, "rlhflab: the disk is full at runs/a/x.bin; free some"),
    (PermissionError(errno.EACCES, "Permission denied", "/page.html"), 2,
     "rlhflab: /page.html: cannot be used: Permission denied\n"),
    (ModelError("no model is called 'x'"), 2, "rlhflab: no model is called 'x'\n"),
])
def test_what_stops_a_run_is_said_without_a_traceback(capsys, stand_in, error, code, words, monkeypatch):
    def run_demo(**_):
        raise error

    stand_in("rlhflab.runs.demo", run_demo=run_demo)
    assert main(["demo"]) == code
    assert words in capsys.readouterr().err
    monkeypatch.setenv("RLHFLAB_DEBUG", "1")
    with pytest.raises(type(error)):
        main(["demo"])


def test_a_fault_of_the_programs_own_keeps_its_traceback(stand_in):
    stand_in("rlhflab.runs.demo", run_demo=lambda **_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        main(["demo"])


def test_list_shows_the_keys_of_a_run_file_with_type_default_and_meaning(capsys):
    assert main(["list", "sft", "--json"]) == 0
    rows = {row["name"]: row for row in json.loads(capsys.readouterr().out)}
    assert rows["optimizer.learning_rate"] == {"name": "optimizer.learning_rate", "type": "float >= 0",
                                               "default": "0.0005", "summary": ""}
    assert rows["steps"]["type"] == "int >= 1 | none" and rows["steps"]["default"] == "none"
    assert rows["dtype"]["type"] == "auto | bfloat16 | float32" and rows["dtype"]["summary"].startswith("Of the frozen")


def test_rates_are_shown_with_interval_and_count_and_an_endless_bound_is_null_in_json(capsys, stand_in, tmp_path):
    sure, unsure = ({"mean": 0.25, "low": low, "high": 1.0, "n": 2} for low in (0.125, float("-inf")))
    results = {"suites": {"a": {"x": {"estimate": sure}, "y": {"estimate": unsure}, "z": {"estimate": None}}}}

    def evaluate(target, suites, *, out, progress):
        out.mkdir(exist_ok=True)
        (out / "results.json").write_text(json.dumps(finite(results)))
        return out

    stand_in("rlhflab.runs.evaluating", evaluate=evaluate)
    stand_in("rlhflab.runs.targets", target_of=lambda text, registry: text)
    out = tmp_path / "out"
    assert main(["evaluate", "m", "brevity", "--out", str(out)]) == 0
    assert capsys.readouterr().out.startswith("a.x: 0.250 [0.125, 1.000] n=2\na.y: 0.250 [-inf, 1.000] n=2\na.z: -\n")
    assert main(["evaluate", "m", "brevity", "--out", str(out), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["suites"]["a"]["y"]["estimate"]["low"] is None


def test_list_shows_every_name_that_it_takes(capsys):
    assert main(["list", "--json"]) == 0
    for row in json.loads(capsys.readouterr().out):
        assert main(["list", row["name"]]) == 0 and capsys.readouterr().out.strip()
