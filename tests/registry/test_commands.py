"""The commands of the registry: what they print, where they look, and that moving a pointer loads no model."""

import json
import subprocess
import sys

import pytest

from registry_folders import adapter_folder, everything
from rlhflab.cli import main


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A registry's folder that the environment names; two adapters are in it."""
    monkeypatch.setenv("RLHFLAB_REGISTRY", str(tmp_path / "registry"))
    monkeypatch.setenv("RLHFLAB_REGISTRY_KEY", str(tmp_path / "key.pem"))
    for value, name in enumerate(("one", "two"), start=1):
        path = adapter_folder(tmp_path / name, value)
        assert main(["registry", "add", str(path), "--by", "anna", "--name", name]) == 0
    return tmp_path / "registry"


def said(capsys, *arguments):
    capsys.readouterr()
    assert main(["registry", *arguments]) == 0
    return capsys.readouterr().out


@pytest.mark.parametrize(("flags", "sentence"), [
    (["--by", " "], "--by: must be the name"), (["--by", "anna", "--name", "../x"], "--name: '../x' must be")])
def test_an_adapter_that_is_refused_makes_no_registry(tmp_path, capsys, flags, sentence):
    path = adapter_folder(tmp_path / "trained")
    assert main(["registry", "add", str(path), *flags, "--registry", str(tmp_path / "new")]) == 2
    assert sentence in capsys.readouterr().err and not (tmp_path / "new").exists()


def test_the_way_there_and_back(folder, capsys):
    out = said(capsys, "promote", "one", "--to", "prod", "--by", "anna", "--override", "a start")
    assert out.startswith("Promoted one to prod, after the base (entry 4). Next: rlhflab registry rollback prod")
    said(capsys, "promote", "two", "--to", "prod", "--by", "anna", "--override", "better")
    assert "Rolled prod back from two to one" in said(capsys, "rollback", "prod", "--by", "bob", "--reason", "worse")
    assert "promoted two to prod, after one" in said(capsys, "log")
    rows = json.loads(said(capsys, "list", "--json"))
    assert [(row["name"], row["active"]) for row in rows] == [("one", ["prod"]), ("two", [])]
    assert json.loads(said(capsys, "log", "--json"))[-1]["body"]["reason"] == "worse"
    assert "All well" in said(capsys, "verify") and "- because: worse" in said(capsys, "log", "one", "--markdown")
    assert said(capsys, "show", "prod", "--card").startswith("# one\n")
    assert "adapter_model.safetensors" in said(capsys, "diff", "one", "two")


@pytest.mark.parametrize(("arguments", "words"), [
    (["promote", "three", "--to", "prod", "--by", "anna"], "no adapter is called 'three'"),
    (["promote", "one", "--to", "prod", "--by", "anna"], "there is no verdict of a gate"),
    (["promote", "one", "--to", "../x", "--by", "anna", "--override", "x"], "--to: '../x' must be letters"),
    (["promote", "one", "--to", "prod"], "--by"), (["rollback", "prod", "--by", "anna"], "no deployment is called"),
    (["promote", "one", "--to", "prod", "--by", "a\x1bb", "--override", "x"], "--by: must be the name"),
    (["show", "abcd"], "no adapter is called 'abcd'"), (["export", "one"], "give --out, or --mlflow"),
    (["verify", "--transcripts"], "name the adapter"), (["list", "--registry", "none"], "none: is not a registry"),
    (["promote", "one", "--to", "prod", "--by", "anna", "--gate", "no.json"], "no.json: no such file"),
])
def test_a_mistake_is_one_sentence_and_changes_nothing(folder, capsys, arguments, words):
    before = everything(folder)
    capsys.readouterr()
    assert main(["registry", *arguments]) == 2
    out, err = capsys.readouterr()
    assert out == "" and words in err and err.count("\n") == 1 and everything(folder) == before


def test_a_first_adapter_that_cannot_be_taken_makes_no_registry(tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    assert main(["registry", "add", str(tmp_path / "empty"), "--by", "anna", "--registry", str(tmp_path / "r")]) == 2
    assert "has no adapter_model.safetensors" in capsys.readouterr().err and not (tmp_path / "r").exists()


def test_an_unsigned_registry_says_so_each_time(tmp_path, capsys):
    place = ["--registry", str(tmp_path / "r")]
    assert main(["registry", "init", "--unsigned", *place]) == 0
    assert "unsigned: damage is seen, but nothing proves who wrote it" in capsys.readouterr().err
    assert main(["registry", "add", str(adapter_folder(tmp_path / "a")), "--by", "anna", "--name", "a-1", *place]) == 0
    out = said(capsys, "promote", "a-1", "--to", "prod", "--by", "anna", "--override", "x", *place)
    assert "The registry is unsigned." in out
    assert "unsigned, so nothing proves who wrote them" in said(capsys, "verify", *place)


def test_a_rollback_loads_no_model_and_none_of_its_libraries(folder, capsys):
    for name in ("one", "two"):
        said(capsys, "promote", name, "--to", "prod", "--by", "anna", "--override", "x")
    code = ("import sys; from rlhflab.cli import main; "
            "code = main(['registry', 'rollback', 'prod', '--by', 'bob']); print(code, *sys.modules)")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    code, *loaded = done.stdout.splitlines()[-1].split()
    assert code == "0" and not set(loaded) & {"torch", "transformers", "peft", "scipy", "plotly", "sqlalchemy"}
