"""The probes of a run's reward roles: found by the role's path, refused where they are of other weights."""

import json
from pathlib import Path
from typing import Any

import pytest

from rlhflab.cli import main
from rlhflab.registry.sources import folder_digest
from rlhflab.runs.probe_records import Probed, stored_probes

FOOLED, PLAIN = [0.3] * 26 + [-0.1] * 4, [0.1] * 15 + [-0.1] * 15
ROWS = [{"step": step, "prompt_id": f"p{i}", "answer": f"word {i}", "reward": i / 7} for step in (1, 2)
        for i in range(16)]


def role(folder: Path, weights: str = "w") -> Path:
    """A reward role in the folder of its run; nothing here looks into its tensors."""
    path = folder / "roles" / "reward"
    path.mkdir(parents=True)
    (path / "adapter_model.safetensors").write_text(weights)
    (path / "head.safetensors").write_text("head")
    return path


def report(target: Path, of: Path, changes: list[float]) -> Path:
    target.write_text(json.dumps({"role": str(of), "role_digest": folder_digest(of),
                                  "probes": [{"name": "filler", "changes": changes}]}))
    return target


def run(folder: Path, *roles: Path) -> Path:
    """A run that was rewarded by these roles."""
    folder.mkdir()
    (folder / "rollouts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    reward = [{"name": "role", "path": str(path), "weight": 1.0} for path in roles] or [{"name": "words"}]
    (folder / "config.yaml").write_text(json.dumps({"kind": "ppo", "reward": reward}))
    return folder


def battery(capsys: pytest.CaptureFixture[str], *arguments: object) -> dict[str, Any]:
    assert main(["detect", *map(str, arguments), "--detectors", "probe_battery", "--json"]) == 0
    [found] = json.loads(capsys.readouterr().out)["detectors"]
    return dict(found)


@pytest.mark.parametrize(("changes", "verdict"), [(FOOLED, "alarm"), (PLAIN, "ok")])
def test_the_report_on_a_runs_reward_role_is_found(changes: list[float], verdict: str, tmp_path: Path,
                                                   capsys: pytest.CaptureFixture[str]) -> None:
    mine = role(tmp_path / "reward")
    report(tmp_path / "reward" / "reward_report.json", mine, changes)
    found = battery(capsys, run(tmp_path / "run", mine))
    assert found["verdict"] == verdict and found["effect"]["n"] == 30 and "filler" in found["says"]


def test_without_a_report_it_is_not_run_and_names_the_command(tmp_path: Path,
                                                              capsys: pytest.CaptureFixture[str]) -> None:
    mine = role(tmp_path / "reward")
    folder = run(tmp_path / "run", mine)
    found = battery(capsys, folder)
    assert (found["verdict"], found["says"]) == ("not run", "not run: needs probes")
    assert f"`rlhflab report reward {mine}`" in found["next"]
    report(tmp_path / "reward" / "reward_report.json", role(tmp_path / "other", "others"), FOOLED)
    found = battery(capsys, folder)
    assert found["verdict"] == "not run" and "the report beside it is not of these weights" in found["next"]
    assert "ROLE" in battery(capsys, run(tmp_path / "wordy"))["next"]


def test_every_role_that_a_run_is_rewarded_by_needs_its_report(tmp_path: Path) -> None:
    one, two = role(tmp_path / "one", "1"), role(tmp_path / "two", "2")
    report(one / "reward_report.json", one, PLAIN)
    assert not stored_probes([one, two]).probes and str(two) in stored_probes([one, two]).how
    report(two / "reward_report.json", two, FOOLED)
    assert stored_probes([one, two, one]) == Probed({f"filler ({one})": PLAIN, f"filler ({two})": FOOLED})
    assert "the role is not there" in stored_probes([one, tmp_path / "gone"]).how


def test_a_report_can_be_given_for_a_run_and_for_any_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    mine = role(tmp_path / "reward")
    given = report(tmp_path / "report.json", mine, FOOLED)
    folder = run(tmp_path / "run", mine)
    assert battery(capsys, folder, "--probes", given)["verdict"] == "alarm"
    assert battery(capsys, folder / "rollouts.jsonl", "--probes", given)["verdict"] == "alarm"


@pytest.mark.parametrize(("text", "sentence"), [
    (None, "no such file"), ("{", "is not JSON"), ("[]", "it needs a list 'probes'"),
    ('{"probes": [{"name": "filler", "changes": ["much"]}]}', "a list of numbers 'changes'"),
    ('{"role": "theirs", "role_digest": "0123456789abcdef", "probes": []}', "on theirs (0123456789ab), while the run")])
def test_a_report_that_is_none_or_of_another_role_is_refused(
        text: str | None, sentence: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given = tmp_path / "report.json"
    if text is not None:
        given.write_text(text)
    folder = run(tmp_path / "run", role(tmp_path / "reward"))
    assert main(["detect", str(folder), "--probes", str(given)]) == 2
    out, err = capsys.readouterr()
    assert out == "" and sentence in err and str(given) in err and err.count("\n") == 1
