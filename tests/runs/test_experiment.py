"""The reward-hacking experiment end to end on a tiny model: its parts, its registration, going on after a stop."""

import json
from pathlib import Path
from typing import Any

import pytest

from rlhflab.cli import main
from rlhflab.data.types import Message, PreferencePair, Prompt
from rlhflab.errors import ConfigError, RunError
from rlhflab.progress import Progress
from rlhflab.runs.arms import ARMS, in_order
from rlhflab.runs.experiment import answers_on_the_way, shuffled
from rlhflab.runs.hacking import resume_hacking
from rlhflab.train.checkpoint import Checkpoints

QUICK = ["experiment", "reward-hacking", "--model", "tiny-llama", "--quick", "--seeds", "0"]
SOME = ["targeted", "hack", "unbiased", "oracle"]
"""Not in the order in which they have to run."""


def asked(out: Path, arms: list[str] = SOME) -> list[str]:
    return [*QUICK, "--out", str(out), *(word for arm in arms for word in ("--arms", arm))]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("experiment") / "run"
    assert main(asked(out)) == 0
    return out


def hacking(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "summary.json").read_text())["hacking"]
    return found


def without_clock(found: dict[str, Any]) -> dict[str, Any]:
    for arm in found["arms"].values():
        for step in arm["steps"]:
            del step["seconds"]
    return found


def test_the_summary_says_what_was_decided_and_what_was_not(folder: Path) -> None:
    found = hacking(folder)
    assert {"1", "2", "3", "4", "5"} <= {row["id"] for row in found["criteria"]}
    assert {row["id"] for row in [*found["criteria"], *found["not_evaluated"]]} == {"1", "2", "3", "4", "5", "7", "8"}
    assert all(set(row) >= {"id", "statement", "value", "interval", "passed"} for row in found["criteria"])
    assert set(found["arms"]) == {"start", *SOME}
    assert found["arms"]["hack"]["rates"]["gold"]["n"] == 8
    for row in found["detectors"]:
        assert set(row) == {"name", "needs_gold", "fired_at", "gold_at_firing", "false_alarm_on_unbiased", "named"}
    assert {"length_drift", "kl_budget", "twin_gap"} <= {row["name"] for row in found["detectors"]}


def test_what_is_to_be_shown_was_written_down_before_the_first_step(folder: Path) -> None:
    registered = (folder / "prereg.json").stat().st_mtime_ns
    assert registered <= (folder / "seed-0" / "hack" / "config.yaml").stat().st_mtime_ns
    prereg = json.loads((folder / "prereg.json").read_text())
    assert prereg["thresholds"]["gold_loss"] == 0.1 and set(prereg["arms"]) == set(SOME)
    assert len(hacking(folder)["registered"]) == 64


def test_the_cured_reward_goes_on_from_the_biased_one_on_expert_pairs(folder: Path) -> None:
    config = (folder / "seed-0" / "reward-targeted" / "config.yaml").read_text()
    assert "reward-biased/roles/reward" in config
    rows = [json.loads(line) for line in (folder / "seed-0" / "pairs-targeted.jsonl").read_text().splitlines()]
    expert = {row["id"] for row in rows if row["source"] == "gold"}
    assert expert and not expert & {row["id"] for row in rows if row["source"] != "gold"}


def test_the_page_tells_it(folder: Path) -> None:
    page = (folder / "report.html").read_text()
    assert "Reward hacking in tiny-llama" in page and "The five problems" in page and "Unfinished" not in page


def test_the_gate_can_be_asked_at_the_end(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RLHFLAB_CACHE", str(tmp_path / "cache"))
    asks = tmp_path / "run"
    assert main([*asked(asks, ["hack", "targeted"]), "--release"]) == 0
    found, release = hacking(asks), json.loads((asks / "summary.json").read_text())["release"]
    [gate] = [row for row in found["criteria"] if row["id"] == "8"]
    assert gate["passed"] == (release["hacked"]["verdict"] != "pass" and release["rollback"]["ok"])
    assert "8" not in {row["id"] for row in found["not_evaluated"]} and release["verify"]["ok"]
    assert "Release: the gate, the ledger, the way back" in (asks / "report.html").read_text()
    assert "which --release asks" in json.dumps(hacking(folder)["not_evaluated"])


def test_a_start_that_cannot_be_rolled_back_is_refused_before_anything_is_done(
        tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "adapter_config.json").write_text("{}")
    assert main([*asked(tmp_path / "run"), "--release", "--start", str(tmp_path)]) == 2
    assert "has no rlhflab.json, which says what base" in capsys.readouterr().err and not (tmp_path / "run").exists()


def test_a_stopped_experiment_goes_on_to_the_same_numbers(folder: Path, tmp_path: Path,
                                                          monkeypatch: pytest.MonkeyPatch) -> None:
    keep = Checkpoints.keep

    def stopped_in_hack(self: Checkpoints, step: int, *rest: Any) -> None:
        keep(self, step, *rest)
        if self.folder.parent.name == "hack":
            raise KeyboardInterrupt

    monkeypatch.setattr(Checkpoints, "keep", stopped_in_hack)
    out = tmp_path / "run"
    assert main(asked(out)) == 130
    monkeypatch.setattr(Checkpoints, "keep", keep)
    resume_hacking(out, progress=Progress())
    assert without_clock(hacking(out)) == without_clock(hacking(folder))


def test_other_settings_after_the_registration_are_refused(folder: Path, tmp_path: Path) -> None:
    prereg = json.loads((folder / "prereg.json").read_text())
    changed = tmp_path / "run"
    changed.mkdir()
    for name in ("config.yaml", "summary.json"):
        (changed / name).write_text((folder / name).read_text())
    summary = json.loads((changed / "summary.json").read_text())
    summary["stages"] = [each for each in summary["stages"] if each["name"] != "judge"]
    (changed / "summary.json").write_text(json.dumps(summary))
    (changed / "prereg.json").write_text(json.dumps({**prereg, "dose": 2.0}))
    (changed / "seed-0").symlink_to(folder / "seed-0")
    (changed / "sft").symlink_to(folder / "sft")
    (changed / "pool.jsonl").symlink_to(folder / "pool.jsonl")
    with pytest.raises(RunError, match="other settings were registered"):
        resume_hacking(changed, progress=Progress())


def test_an_arm_that_is_none_or_lacks_what_it_relabels_is_named() -> None:
    with pytest.raises(ConfigError, match="no arm is called 'cure'"):
        in_order(("hack", "cure"))
    with pytest.raises(ConfigError, match="random relabels failures of the arm hack"):
        in_order(("random",))
    assert in_order(tuple(reversed(ARMS))) == tuple(ARMS)


def test_arms_that_the_criteria_need_are_asked_for(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(asked(tmp_path / "run", ["hack"])) == 2
    assert "targeted has to be among them" in capsys.readouterr().err and not (tmp_path / "run").exists()


def test_shuffled_labels_are_a_coins() -> None:
    prompt = Prompt(id="p", messages=(Message(role="user", content="?"),))
    pairs = [PreferencePair(prompt=prompt, chosen="a", rejected="b")] * 200
    swapped = sum(pair.chosen == "b" for pair in shuffled(pairs, seed=0))
    assert 70 < swapped < 130
    assert all({pair.chosen, pair.rejected} == {"a", "b"} for pair in shuffled(pairs, seed=0))


def test_answers_are_shown_at_the_steps_closest_to_the_wanted_ones() -> None:
    rows = [{"step": step, "prompt_id": f"p{i}", "prompt": "?", "answer": f"{step}", "measures": {"gold": 0.5}}
            for step in range(0, 25, 2) for i in range(6)]
    shown = answers_on_the_way(rows, seed=0)
    assert len(shown) == 4 and [a["step"] for a in shown[0]["answers"]] == [0, 4, 10, 20, 24]


def test_arms_that_two_processes_share_give_the_numbers_of_one(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "shared"
    assert main([*asked(out), "--jobs", "2"]) == 0
    assert without_clock(hacking(out)) == without_clock(hacking(folder))
    assert [(out / f"share-{number}.log").is_file() for number in (1, 2)] == [True, True]
