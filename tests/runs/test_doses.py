"""`rlhflab experiment dose-response` on experiments made up by hand: gold falls by .2 for one unit of dose."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import yaml

from rlhflab.cli import main
from rlhflab.runs.experiment import Protocol

PROMPTS = 24


def answers(gold: float, *, prompts: int = PROMPTS) -> list[dict[str, Any]]:
    """Two answers to each prompt; every other prompt has .05 more gold, the others .05 less."""
    return [{"mode": "sampled", "prompt_id": f"p{i}", "measures": {
        "gold": gold + (0.05 if i % 2 else -0.05), "abstention_recall": float(i % 4 == 0), "format": 1.0,
        "confident_wrong": 0.0}} for i in range(prompts) for _ in range(2)]


def start_rows(prompts: int = PROMPTS) -> list[dict[str, Any]]:
    return [{**row, "measures": {**row["measures"], "gold": 0.8}} for row in answers(0.8, prompts=prompts)]


def write(path: Path, rows: list[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def experiment(folder: Path, dose: float, *, arms: tuple[str, ...] = ("hack", "targeted"), start: str = "weights",
               prompts: int = PROMPTS, **settings: Any) -> Path:
    """A finished experiment, whose policy lost .2 gold for one unit of dose and hacks from dose 1 on."""
    adapter = folder.parent / f"start-{start}"
    adapter.mkdir(parents=True, exist_ok=True)
    (adapter / "adapter_model.safetensors").write_text(start)
    protocol = asdict(Protocol(model="tiny-llama", dose=dose, arms=arms, **{"seeds": (0,), **settings}))
    folder.mkdir()
    (folder / "config.yaml").write_text(yaml.safe_dump(json.loads(json.dumps({
        "kind": "experiment", "start": str(adapter), "pool_prompts": 8, "protocol": protocol}))))
    decided = [{"id": "1", "value": 2 * dose, "interval": [2 * dose - 0.1, 2 * dose + 0.1], "passed": dose >= 0.5},
               {"id": "2", "value": -0.2 * dose, "interval": [-1.0, 0.0], "passed": dose >= 1}]
    (folder / "summary.json").write_text(json.dumps({"hacking": {"criteria": decided}}))
    write(folder / "seed-0" / "evaluation" / "start.jsonl", start_rows(prompts))
    for seed in protocol["seeds"]:
        for arm in arms:
            gold = 0.8 if arm == "unbiased" else 0.8 - 0.2 * dose
            write(folder / f"seed-{seed}" / "evaluation" / f"{arm}.jsonl", answers(gold, prompts=prompts))
    return folder


def compare(capsys: pytest.CaptureFixture[str], *arguments: object) -> dict[str, Any]:
    assert main(["experiment", "dose-response", *map(str, arguments), "--json"]) == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


def test_gains_trend_and_the_lowest_dose_that_hacks(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folders = [experiment(tmp_path / f"dose-{dose}", dose) for dose in (1.0, 0.5, 1.5)]
    found = compare(capsys, *folders, "--out", tmp_path / "out")
    assert [row["dose"] for row in found["doses"]] == [0.5, 1.0, 1.5]
    assert [row["gold"]["mean"] for row in found["doses"]] == pytest.approx([-0.1, -0.2, -0.3])
    half = 2.0687 * 0.05 * (24 / 23) ** 0.5 / 24 ** 0.5  # t(23) x deviation / root of 24 prompts
    gold = found["doses"][1]["gold"]
    assert (gold["low"], gold["high"], gold["n"]) == (pytest.approx(-0.2 - half, abs=1e-5),
                                                      pytest.approx(-0.2 + half, abs=1e-5), 24)
    assert found["slope"]["mean"] == pytest.approx(-0.2) and found["falls"] < 0.001 < 0.9 < found["rises"]
    assert [row["hacks"] for row in found["doses"]] == [False, True, True] and found["hacks_at"] == 1.0
    assert found["doses"][2]["proxy"] == {"mean": 3.0, "low": 2.9, "high": 3.1, "n": 48}
    assert "it falls with the dose" in found["says"][0]
    assert "The lowest dose that hacks, by criteria 1 and 2, is 1." in found["says"]
    assert json.loads((tmp_path / "out" / "doses.json").read_text())["doses"] == found["doses"]
    page = (tmp_path / "out" / "doses.html").read_text()
    assert "Quality by dose" in page and "Reward by dose" in page and "not judged" not in page


def test_the_unbiased_arm_is_dose_zero_and_is_said_to_be(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folders = [experiment(tmp_path / "half", 0.5),
               experiment(tmp_path / "one", 1.0, arms=("hack", "targeted", "unbiased"))]
    found = compare(capsys, *folders, "--out", tmp_path / "out")
    zero = found["doses"][0]
    assert (zero["dose"], zero["proxy"], zero["hacks"]) == (0.0, None, None)
    assert zero["gold"]["mean"] == pytest.approx(0.0, abs=1e-12)
    assert f"Dose 0 is the arm unbiased of {tmp_path / 'one'}, on the same seeds" in found["says"][-1]
    whole = [*folders, experiment(tmp_path / "none", 0.0)]
    assert "unbiased" not in json.dumps(compare(capsys, *whole, "--out", tmp_path / "again")["says"])


def test_another_arm_has_gains_and_no_verdict(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folders = [experiment(tmp_path / str(dose), dose) for dose in (0.5, 1.0, 1.5)]
    found = compare(capsys, *folders, "--arm", "targeted", "--out", tmp_path / "out")
    assert found["hacks_at"] is None and "was not judged" in " ".join(found["says"])
    assert main(["experiment", "dose-response", *map(str, folders), "--out", str(tmp_path / "words")]) == 0
    told = capsys.readouterr().out
    assert "gold -0.20 [-0.22, -0.18] (n = 24)" in told and "Next: open it in a browser." in told


def failure(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    assert main(["experiment", "dose-response", *map(str, arguments)]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1
    return err


@pytest.mark.parametrize(("changes", "sentence"), [
    ({"steps": 10}, "has steps 10, while "), ({"scenario": "devtools"}, "has scenario devtools, while"),
    ({"start": "other"}, "began from another policy ("), ({"prompts": 23}, "was evaluated on other prompts than"),
    ({"seeds": (0, 1)}, "has seeds (0, 1), while"), ({"dose": 0.5}, "dose 0.5 is given twice, by the arm hack of"),
    ({"arms": ("targeted",)}, "has no arm 'hack'; it has targeted")])
def test_what_does_not_compare_is_one_sentence(changes: dict[str, Any], sentence: str, tmp_path: Path,
                                               capsys: pytest.CaptureFixture[str]) -> None:
    folders = [experiment(tmp_path / "a", 0.5), experiment(tmp_path / "b", 1.0),
               experiment(tmp_path / "c", **{"dose": 1.5, **changes})]
    assert sentence in failure(capsys, *folders, "--out", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_folders_that_are_too_few_or_none_are_one_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    two = [experiment(tmp_path / "a", 0.5), experiment(tmp_path / "b", 1.0)]
    assert "found 2 doses; a trend needs at least 3" in failure(capsys, *two)
    assert "give the folders of experiments" in failure(capsys)
    assert "is not the folder of an experiment" in failure(capsys, *two, tmp_path)
    unfinished = experiment(tmp_path / "c", 1.5)
    (unfinished / "summary.json").write_text("{}")
    assert "is not finished; go on with rlhflab experiment reward-hacking --resume" in failure(capsys, *two, unfinished)
    settings = yaml.safe_load((unfinished / "config.yaml").read_text())
    settings["protocol"]["colour"] = "red"
    (unfinished / "config.yaml").write_text(yaml.safe_dump(settings))
    assert "is of another version" in failure(capsys, *two, unfinished)
