"""Preference runs from the command line: thumbs, losses without a reference, a reference that moves."""

import json
from collections.abc import Mapping
from pathlib import Path

import pytest

from rlhflab.cli import main
from rlhflab.runs.lab import Lab
from rlhflab.runs.recipes import recipe

SMALL = ["--model", "tiny-llama", "--dtype", "float32", "--steps", "2", "--batch", "4", "--probe_prompts", "2",
         "--probe_tokens", "4"]
WORDS = ("one", "two", "three", "four", "five", "six", "seven", "eight")
PAIRS = [{"prompt": f"Say {word}.", "chosen": word, "rejected": f"No {word}, sorry."} for word in WORDS]
THUMBS = [{"prompt": f"Say {word}.", "completion": word, "label": i % 2 == 0} for i, word in enumerate(WORDS)]


def train(folder: Path, rows: list[Mapping[str, object]], *flags: str) -> int:
    data = folder / "mine.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return main(["train", "dpo", str(recipe("dpo")), *SMALL, "--data", str(data), *flags, "--out", str(folder / "run")])


def metrics(folder: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (folder / "run" / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("loss", ["kto", "bco"])
@pytest.mark.parametrize(("rows", "thumbs"), [(THUMBS, 8), (PAIRS, 16)])
def test_thumbs_train_from_thumbs_and_from_pairs(loss: str, rows: list[Mapping[str, object]], thumbs: int,
                                                 tmp_path: Path) -> None:
    assert train(tmp_path, rows, "--loss.name", loss) == 0
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["thumbs"] == thumbs
    assert {"baseline", "reward_chosen", "kl"} <= metrics(tmp_path)[-1].keys()


def test_a_scenario_gives_thumbs_too(tmp_path: Path) -> None:
    command = ["train", "dpo", str(recipe("dpo")), *SMALL, "--examples", "8", "--loss.name", "kto"]
    assert main([*command, "--out", str(tmp_path / "run")]) == 0


def test_thumbs_that_all_say_the_same_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert train(tmp_path, [{**row, "label": True} for row in THUMBS], "--loss.name", "kto") == 2
    assert "mine.jsonl: no row has the label false; kto learns from good and bad answers" in capsys.readouterr().err


def test_a_loss_on_pairs_names_what_thumbs_lack(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert train(tmp_path, THUMBS) == 2
    assert "mine.jsonl:1: 'chosen' is missing" in capsys.readouterr().err


@pytest.mark.parametrize("loss", ["simpo", "cpo", "orpo"])
def test_a_run_without_reference_freezes_none_and_measures_no_kl(loss: str, tmp_path: Path,
                                                                 monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Lab, "freeze_reference", None)
    assert train(tmp_path, PAIRS, "--loss", json.dumps({"name": loss})) == 0
    assert all("kl" not in row and "margin" in row for row in metrics(tmp_path))


def test_the_base_as_reference_moves_as_an_adapter_of_its_own(tmp_path: Path) -> None:
    assert train(tmp_path, PAIRS, "--reference_ema.mix", "1.0", "--reference_ema.every", "1") == 0
    assert metrics(tmp_path)[-1]["margin"] == pytest.approx(0, abs=1e-5)
    assert [path.name for path in (tmp_path / "run" / "roles").iterdir()] == ["policy"]


@pytest.mark.parametrize(("flags", "sentence"), [
    (["--loss", '{"name": "simpo"}', "--ld_alpha", "0.5"], "ld_alpha: does not go with the loss simpo"),
    (["--length", "mean", "--ld_alpha", "0.5"], "length: mean and ld_alpha both correct for length"),
    (["--reference_ema.mix", "0"], "reference_ema.mix: input should be greater than 0"),
    (["--loss.name", "cdpo", "--loss.label_noise", "0.5"], "loss.label_noise"),
])
def test_what_cannot_be_is_one_sentence_and_writes_nothing(
        flags: list[str], sentence: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert train(tmp_path, PAIRS, *flags) == 2
    error = capsys.readouterr().err
    assert sentence in error and "Traceback" not in error


def test_a_dry_run_of_thumbs_counts_them(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert train(tmp_path, THUMBS, "--loss.name", "kto", "--dry-run", "--json") == 0
    assert json.loads(capsys.readouterr().out)["estimate"]["examples"] == 8
