"""The experiment with dials end to end on a tiny model: its parts, its record, going on after a stop."""

import json
from pathlib import Path
from typing import Any

import pytest

from rlhflab.cli import main
from rlhflab.errors import ConfigError
from rlhflab.progress import Progress
from rlhflab.runs.dials import read_protocol, resume_dials
from rlhflab.scenarios.dials import AXES
from rlhflab.train.checkpoint import Checkpoints

QUICK = ["experiment", "dials", "--model", "tiny-llama", "--quick"]


def asked(out: Path, *axes: str) -> list[str]:
    return [*QUICK, "--out", str(out), *(word for axis in axes for word in ("--axes", axis))]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("dials") / "run"
    assert main(asked(out, "tone", "clarity")) == 0
    return out


def record(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "dials.json").read_text())
    return found


def test_every_axis_is_measured_at_every_strength(folder: Path) -> None:
    found = record(folder)
    assert list(found["axes"]) == ["tone", "clarity"] and found["quick"]
    for axis in found["axes"].values():
        assert [row["strength"] for row in axis["strengths"]] == [0, 0.5, 1]
        for row in axis["strengths"]:
            assert set(row["measures"]) == {*AXES, "right", "format"} and row["measures"]["tone"]["n"] == 8
    assert json.loads((folder / "record.json").read_text())["status"] == "finished"


def test_both_dials_are_trained_from_one_start_on_pairs_of_their_own(folder: Path) -> None:
    for axis in ("tone", "clarity"):
        config = (folder / axis / "config.yaml").read_text()
        assert f"pairs/{axis}.jsonl" in config and str(folder / "sft/roles/policy") in config
        rows = [json.loads(line) for line in (folder / "pairs" / f"{axis}.jsonl").read_text().splitlines()]
        assert {row["source"] for row in rows} == {f"rule: {axis}"} and len(rows) == 12


def test_strengths_are_passing_adapters_of_which_none_is_left(folder: Path) -> None:
    assert not (folder / ".turned").exists()
    assert (folder / "answers" / "tone-0.5.jsonl").is_file() and (folder / "answers" / "start.jsonl").is_file()


def test_the_page_says_that_a_quick_pass_says_nothing(folder: Path) -> None:
    page = (folder / "dials.html").read_text()
    assert "Its numbers say nothing" in page and "The dial of tone" in page


def test_a_stopped_experiment_goes_on_to_the_same_numbers(folder: Path, tmp_path: Path,
                                                          monkeypatch: pytest.MonkeyPatch) -> None:
    keep = Checkpoints.keep

    def stopped_in_clarity(self: Checkpoints, step: int, *rest: Any) -> None:
        keep(self, step, *rest)
        if self.folder.parent.name == "clarity":
            raise KeyboardInterrupt

    monkeypatch.setattr(Checkpoints, "keep", stopped_in_clarity)
    out = tmp_path / "run"
    assert main(asked(out, "tone", "clarity")) == 130
    monkeypatch.setattr(Checkpoints, "keep", keep)
    resume_dials(out, progress=Progress())
    assert record(out)["axes"] == record(folder)["axes"]


def test_what_is_asked_wrongly_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(asked(tmp_path / "run", "humour")) == 2
    assert "no axis is called 'humour'; there are tone, verbosity, clarity" in capsys.readouterr().err
    assert main([*QUICK, "--start", str(tmp_path)]) == 2
    assert "is not an adapter folder" in capsys.readouterr().err and not (tmp_path / "run").exists()


@pytest.mark.parametrize(("changes", "says"), [
    ({"strengths": [0.5, 1]}, "begin with 0"), ({"strengths": [0, 1, 0.5]}, "begin with 0 and rise"),
    ({"margins": {"tone": 0.1}}, "it needs tone, verbosity, clarity"), ({"paris": 3}, "paris")])
def test_a_recipe_that_cannot_be_judged_is_refused(changes: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        read_protocol(quick=False, changes=changes)


def test_every_axis_has_a_recipe_and_a_margin() -> None:
    from rlhflab.config import read_run
    from rlhflab.runs.recipes import recipe

    assert set(read_protocol(quick=False, changes={}).margins) == set(AXES)
    assert {read_run("dpo", recipe(f"dial-{axis}")).data for axis in AXES} == {f"pairs/{axis}.jsonl" for axis in AXES}
