"""A run that is killed goes on from its last checkpoint and ends with the same bits."""

import json
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from rlhflab.cli import main
from rlhflab.model.shared import SharedModel
from rlhflab.runs.recipes import recipe
from stopped_runs import outcome, stop_at

SMALL = ["--model", "tiny-llama", "--dtype", "float32", "--batch", "4", "--checkpoint_every", "2"]
PAIRS = [{"prompt": f"Say {word}.", "chosen": word, "rejected": f"No {word}, sorry."} for word in
         ("one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve")]


def command(kind: str, folder: Path, out: Path) -> list[str]:
    data = folder / "mine.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in PAIRS))
    dpo = ["--epochs", "3", "--probe_prompts", "2", "--probe_tokens", "4"]
    on_samples = ["--steps", "5", "--samples", "2", "--max_new_tokens", "4", "--reward",
                  '[{"name": "callable", "function": "scorers:early_letters"}]']
    more = {"bco": [*dpo, "--loss.name", "bco"],
            "ema": [*dpo, "--reference_ema.mix", "0.5", "--reference_ema.every", "3"],
            "dpo": [*dpo, "--lora.dropout", "0.1"],
            "reward": ["--epochs", "3"],
            "ppo": ["--steps", "9", "--samples", "2", "--max_new_tokens", "4", "--epochs", "2", "--minibatches", "2",
                    "--reward", '[{"name": "words", "most": 2}]'],
            "best_of_n": on_samples, "online_dpo": on_samples}[kind]
    kind = {"bco": "dpo", "ema": "dpo"}.get(kind, kind)
    return ["train", kind, str(recipe(kind)), *SMALL, "--data", str(data), *more, "--out", str(out)]


MORTAL = """
import os, signal, sys
from rlhflab.cli import main
from rlhflab.runs.folder import RunFolder

append = RunFolder.append

def append_and_die(self, name, row):
    append(self, name, row)
    if name == "metrics.jsonl" and row["step"] == int(sys.argv[1]):
        os.kill(os.getpid(), int(sys.argv[2]))

RunFolder.append = append_and_die
sys.exit(main(sys.argv[3:]))
"""
"""A command that gets a signal once it has written so many steps down, however quick the machine is."""


def signalled(arguments: list[str], *, steps: int, number: int) -> subprocess.CompletedProcess[str]:
    """Run the command in a process of its own that gets a signal when it has written `steps` steps down."""
    return subprocess.run([sys.executable, "-c", MORTAL, str(steps), str(number), *arguments], capture_output=True,
                          text=True)


def kill_after(arguments: list[str], *, steps: int) -> None:
    """As by kill -9."""
    done = signalled(arguments, steps=steps, number=signal.SIGKILL)
    assert done.returncode == -signal.SIGKILL, "it ended before it could be killed"


def test_a_run_that_a_job_queue_stops_says_so_as_after_ctrl_c(tmp_path: Path) -> None:
    done = signalled(command("reward", tmp_path, tmp_path / "mine"), steps=3, number=signal.SIGTERM)
    assert done.returncode == 130 and f"rlhflab train --resume {tmp_path / 'mine'}" in done.stderr
    assert json.loads((tmp_path / "mine" / "record.json").read_text())["status"] == "stopped"


@pytest.mark.parametrize(("kind", "steps"), [("dpo", 1), ("dpo", 5), ("reward", 3), ("ppo", 4)])
def test_a_killed_run_goes_on_to_the_same_bits(kind: str, steps: int, tmp_path: Path,
                                               monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert subprocess.run([sys.executable, "-m", "rlhflab", *command(kind, tmp_path, whole)]).returncode == 0
    kill_after(command(kind, tmp_path, killed), steps=steps)
    assert subprocess.run([sys.executable, "-m", "rlhflab", "train", "--resume", str(killed)]).returncode == 0
    assert outcome(killed) == outcome(whole)


STEERED = ["--kl_target", "0.01", "--kl_horizon", "50", "--critic_warmup", "2"]


READ_ONCE = ["--epochs", "1", "--minibatches", "1"]


@pytest.mark.parametrize(("kind", "flags"), [("ppo", STEERED), ("ppo", ["--advantage.name", "rloo", *STEERED[:4]]),
                                             ("ppo", [*STEERED, *READ_ONCE]), ("best_of_n", []), ("online_dpo", [])])
def test_a_stopped_run_on_samples_goes_on_with_its_coefficient_and_its_roles(
        kind: str, flags: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = tmp_path / "run"
    with monkeypatch.context() as patch:
        stop_at(3, patch)
        assert main([*command(kind, tmp_path, run), *flags]) == 130
    kept = run / "checkpoints" / "step-2"
    assert ((kept / "roles" / "value").exists()) == (kind == "ppo" and "rloo" not in flags)
    if kind == "ppo":
        assert json.loads((kept / "state.json").read_text())["carried"]["kl_coefficient"]["value"] != 0.05
    assert main(["train", "--resume", str(run)]) == 0
    assert main([*command(kind, tmp_path, tmp_path / "whole"), *flags]) == 0
    assert outcome(run) == outcome(tmp_path / "whole")


def test_a_full_disk_leaves_the_checkpoint_before_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                                                        capsys: pytest.CaptureFixture[str]) -> None:
    run = tmp_path / "run"
    save = SharedModel.save_role

    def full_at_the_second(self: SharedModel, role: str, folder: Path, **options: Any) -> None:
        if (run / "checkpoints" / "step-2").exists():
            raise OSError(28, "No space left on device")
        save(self, role, folder, **options)

    monkeypatch.setattr(SharedModel, "save_role", full_at_the_second)
    assert main(command("dpo", tmp_path, run)) == 2
    error = capsys.readouterr().err
    assert "No space left on device" in error and "the one before is whole" in error
    assert f"rlhflab train --resume {run}" in error
    assert [path.name for path in (run / "checkpoints").iterdir()] == ["step-2"]
    monkeypatch.setattr(SharedModel, "save_role", save)
    assert main(["train", "--resume", str(run)]) == 0
    assert main(command("dpo", tmp_path, tmp_path / "whole")) == 0
    assert outcome(run) == outcome(tmp_path / "whole")


@pytest.mark.parametrize("head", [["--heads", "3"], ["--length_head", "true"]])
def test_a_reward_model_with_more_than_one_output_goes_on_to_the_same_bits(
        head: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = tmp_path / "run"
    with monkeypatch.context() as patch:
        stop_at(3, patch)
        assert main([*command("reward", tmp_path, run), *head]) == 130
    assert main(["train", "--resume", str(run)]) == 0
    assert main([*command("reward", tmp_path, tmp_path / "whole"), *head]) == 0
    assert outcome(run) == outcome(tmp_path / "whole")


def test_a_run_killed_before_its_first_checkpoint_begins_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = tmp_path / "run"
    with monkeypatch.context() as patch:
        stop_at(1, patch)
        assert main(command("dpo", tmp_path, run)) == 130
    (run / "metrics.jsonl").open("a").write('{"step": 2, "lo')  # cut off in the middle of a line
    assert main(["train", "--resume", str(run)]) == 0
    assert main(command("dpo", tmp_path, tmp_path / "whole")) == 0
    assert outcome(run) == outcome(tmp_path / "whole")


def test_a_run_does_not_go_on_with_other_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                                              capsys: pytest.CaptureFixture[str]) -> None:
    with monkeypatch.context() as patch:
        stop_at(2, patch)
        main(command("reward", tmp_path, tmp_path / "run"))
    data = tmp_path / "mine.jsonl"
    data.write_text(data.read_text().replace("sorry", "no"))
    assert main(["train", "--resume", str(tmp_path / "run")]) == 2
    assert f"{data} is no longer what the run began with" in capsys.readouterr().err


def test_an_unfinished_checkpoint_is_not_taken_for_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = tmp_path / "run"
    with monkeypatch.context() as patch:
        stop_at(3, patch)
        assert main(command("dpo", tmp_path, run)) == 130
    shutil.copytree(run / "checkpoints" / "step-2", run / "checkpoints" / ".unfinished")
    (run / "checkpoints" / ".unfinished" / "state.json").write_text("{")
    assert main(["train", "--resume", str(run)]) == 0


@pytest.mark.parametrize("kind", ["bco", "ema"])
def test_a_running_shift_and_a_moved_reference_go_on(kind: str, tmp_path: Path,
                                                     monkeypatch: pytest.MonkeyPatch) -> None:
    run = tmp_path / "run"
    with monkeypatch.context() as patch:
        stop_at(5, patch)
        assert main(command(kind, tmp_path, run)) == 130
    assert main(["train", "--resume", str(run)]) == 0
    assert main(command(kind, tmp_path, tmp_path / "whole")) == 0
    assert outcome(run) == outcome(tmp_path / "whole")
    assert outcome(run)["metrics"][-1]["baseline" if kind == "bco" else "kl"] != 0


@pytest.mark.parametrize(("arguments", "sentence"), [
    ([], "is not the folder of a run"),
    (["--out", "x"], "nothing else can be given with it"),
])
def test_what_cannot_go_on_is_one_sentence(arguments: list[str], sentence: str, tmp_path: Path,
                                           capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "--resume", str(tmp_path), *arguments]) == 2
    assert sentence in capsys.readouterr().err


def test_a_finished_run_has_nothing_to_go_on_with(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*command("dpo", tmp_path, tmp_path / "run"), "--steps", "1"]) == 0
    assert main(["train", "--resume", str(tmp_path / "run")]) == 2
    assert "this run is finished" in capsys.readouterr().err


def test_a_run_killed_after_its_summary_is_closed_and_gets_its_report(tmp_path: Path) -> None:
    run = tmp_path / "run"
    assert main([*command("dpo", tmp_path, run), "--steps", "1"]) == 0
    record = json.loads((run / "record.json").read_text())
    (run / "record.json").write_text(json.dumps({**record, "status": "running"}))
    (run / "report.html").unlink()
    assert main(["train", "--resume", str(run)]) == 0
    assert json.loads((run / "record.json").read_text())["status"] == "finished"
    assert (run / "report.html").is_file()
