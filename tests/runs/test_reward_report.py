"""`rlhflab report reward` end to end on a tiny model: judged on what its run held back, and told what is missing."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from judged_pairs import judged_pairs
from rlhflab.analysis.perturbations import Text
from rlhflab.analysis.reward_report import evidence_probes
from rlhflab.cli import main
from rlhflab.core.batch import TokenAnswer, Tree
from rlhflab.data.formats import pair_row, write_jsonl
from rlhflab.data.types import Message, Prompt
from rlhflab.progress import Progress
from rlhflab.rollout.reward_role import role_scores
from rlhflab.runs.lab import Lab
from rlhflab.runs.recipes import recipe
from rlhflab.runs.reward_report import grouped, reward_report, role_scorer

PROMPTS = 60
MESSAGES = (Message(role="user", content="Hi"),)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished reward run on help desk pairs, whose role learnt little."""
    folder = tmp_path_factory.mktemp("reward")
    write_jsonl(folder / "pairs.jsonl", (pair_row(pair) for part in judged_pairs(PROMPTS) for pair in part))
    flags = ["--model", "tiny-llama", "--dtype", "float32", "--features", "frozen", "--held_out", "0.4", "--seed", "3",
             "--gold", "helpdesk", "--data", str(folder / "pairs.jsonl"), "--out", str(folder / "run")]
    assert main(["train", "reward", str(recipe("reward")), *flags]) == 0
    return folder / "run"


def failure(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert main(["report", "reward", *arguments]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    return err.splitlines()[-1]


def test_a_role_is_judged_on_the_pairs_its_run_held_back(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    assert main(["report", "reward", str(run / "roles" / "reward"), "--probes", "20", "--json"]) == 0
    printed: dict[str, Any] = json.loads(capsys.readouterr().out)
    stored, summary = (json.loads((run / name).read_text()) for name in ("reward_report.json", "summary.json"))
    assert printed == {"report": str(run / "reward_report.html"), **stored}
    assert stored["pairs"] == summary["held_out_pairs"] and stored["training_pairs"] == summary["pairs"]
    assert stored["same_split"] is True
    for key in ("accuracy", "length_only", "gold_order", "noise_ceiling"):
        assert stored[key] == pytest.approx(summary[key]), "the run measured the same"
    assert stored["calibration"]["ece"] == pytest.approx(summary["calibration"]["ece"], abs=1e-4)
    assert stored["verdict"] in ("risky", "unfit") and stored["scenario"] == "helpdesk"
    assert {name: len(each) for name, each in evidence_probes(stored).items()}["filler"] == 20
    page = (run / "reward_report.html").read_text()
    assert "<h1>" in page and "Not known to be held out" not in page


def test_in_words_the_verdict_comes_first_and_the_page_last(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", "reward", str(run / "roles" / "reward"), "--probes", "16"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split()[0] == "verdict" and lines[0].split()[1] in ("RISKY", "UNFIT")
    assert lines[-1] == f"Wrote {run / 'reward_report.html'}. Next: open it in a browser."
    assert sum(line.startswith("probe ") for line in lines) == 12


def test_the_command_for_runs_still_takes_a_folder(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", str(run)]) == 0
    assert f"Wrote {run / 'report.html'}" in capsys.readouterr().out


def test_bad_input_is_one_sentence(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    role = str(run / "roles" / "reward")
    assert "is not the folder of a reward role: it has no adapter_config.json" in failure(capsys, str(run))
    assert f"{tmp_path / 'gone.jsonl'}: the pairs are not there" in failure(capsys, role, "--data",
                                                                            str(tmp_path / "gone.jsonl"))
    rows = (run.parent / "pairs.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "few.jsonl").write_text("".join(rows[:20]))
    assert "20 pairs leave 8 to judge the role on; a report needs at least 20" in failure(
        capsys, role, "--data", str(tmp_path / "few.jsonl"))
    assert "no scenario is called 'desk'" in failure(capsys, role, "--scenario", "desk")
    other = tmp_path / "other" / "roles" / "reward"
    shutil.copytree(run, tmp_path / "other")
    record = json.loads((other / "rlhflab.json").read_text())
    (other / "rlhflab.json").write_text(json.dumps({**record, "base_digest": "0" * 64}))
    assert "was trained on base weights" in failure(capsys, str(other))
    (other / "head.safetensors").unlink()
    assert "is not the folder of a reward role: it has no head.safetensors" in failure(capsys, str(other))


def test_a_role_without_a_run_takes_the_pairs_it_is_given(run: Path, tmp_path: Path,
                                                          capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copytree(run / "roles" / "reward", tmp_path / "role")
    assert f"{tmp_path / 'role'}: the pairs are not there" in failure(capsys, str(tmp_path / "role"))
    assert main(["report", "reward", str(tmp_path / "role"), "--data", str(run.parent / "pairs.jsonl"),
                 "--scenario", "helpdesk"]) == 0
    stored = json.loads((tmp_path / "role" / "reward_report.json").read_text())
    assert stored["pairs"] >= 20 and stored["same_split"] is None
    assert "Not known to be held out" in (tmp_path / "role" / "reward_report.html").read_text()


def test_scores_come_back_in_order_each_read_at_its_last_token(run: Path) -> None:
    lab = Lab.load("tiny-llama", dtype="float32", progress=Progress())
    lab.model.load_role("r", run / "roles" / "reward", head="stored")
    texts = [Text(MESSAGES, "yes"), Text((*MESSAGES, Message(role="user", content="?")), "yes"), Text(MESSAGES, "no"),
             Text(MESSAGES, "yes", False), Text(MESSAGES, "")]
    got = role_scorer(lab, "r", micro_tokens=64)(texts)
    for text, value in zip(texts, got, strict=True):
        ids = lab.chat.answer(text.answer)
        tree = Tree(prompt=lab.chat.prompt(Prompt(id="", messages=text.messages)),
                    answers=(TokenAnswer(ids=ids if text.stopped else ids[:-1]),))
        assert value == pytest.approx(float(role_scores(lab.model, [tree], role="r", micro_tokens=64)[0]), abs=1e-4)
    assert got[0] != got[3], "cut off, it has no end of turn"


def test_a_text_beyond_the_context_has_no_score_and_many_answers_share_several_trees() -> None:
    lab = Lab.load("tiny-llama", dtype="float32", progress=Progress())
    texts = [Text(MESSAGES, f"answer {i}") for i in range(40)]
    groups = grouped(lab.chat, [*texts, texts[0], Text(MESSAGES, "x" * 500)], context=200)
    assert [len(group) for group, _ in groups] == [32, 8]
    assert [text for group, _ in groups for text in group] == texts


def test_a_lab_that_is_loaded_keeps_its_roles(run: Path) -> None:
    lab = Lab.load("tiny-llama", dtype="float32", progress=Progress())
    lab.model.load_role("reward", run / "roles" / "reward", head="stored")
    train, held_out = judged_pairs(PROMPTS)
    record = reward_report(lab, run / "roles" / "reward", train, held_out, task=None, probes=16)
    assert record["scenario"] is None and record["gold_order"] is None
    assert list(lab.model.records) == ["reward"]
