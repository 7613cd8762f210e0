"""`benchmarks/human_data.py`: its rows, its pieces and its tables. Training is the benchmark's own work."""

import importlib
import importlib.util
import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from rlhflab.model.load import model_folder

ROOT = Path(__file__).parents[2]
sys.path.append(str(ROOT / "benchmarks"))

human_data = importlib.import_module("human_data")
human, human_ours = (importlib.import_module(f"peers.{name}") for name in ("human", "human_ours"))


@pytest.fixture
def piece(tmp_path):
    """Twelve prompts with two pairs each; of the first, one has no majority and one an empty answer."""
    data = tmp_path / "set"
    data.mkdir()
    rows = [{"prompt": f"question {i // 2}", "response_a": f"yes {i}", "response_b": f"no, not at all {i}",
             "label": "ab"[i % 2]} for i in range(24)]
    rows[0]["label"], rows[1]["response_a"] = "tie", ""
    (data / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    folder = tmp_path / "pieces"
    folder.mkdir()
    return human.Piece(set="set", side="rows", folder=str(folder), data=str(data), model="tiny-llama", device="cpu",
                       precision="fp32", everything=False, pairs=6, held_out=3, batch=2, micro_tokens=256,
                       micro_pairs=2, prompt_tokens=60, answer_tokens=30, seed=0)


def written(piece):
    facts = human_ours.rows(piece)
    (Path(piece.folder) / "rows.json").write_text(json.dumps(facts))
    return facts


def test_rows_are_split_by_prompt_and_take_one_pair_of_each_prompt_first(piece):
    facts = written(piece)
    assert facts["pairs"] == 22 and facts["train"]["rows"] == 6 and facts["held_out"]["rows"] == 3
    train, held_out = ({row["prompt_id"] for row in piece.rows(part)} for part in ("train", "held_out"))
    assert len(train) == 6 and len(held_out) == 3 and not train & held_out
    assert all("yes" in row["chosen"] or "no" in row["chosen"] for row in piece.rows("train"))


def test_all_rows_are_all_rows_and_what_is_cut_is_counted(piece):
    facts = written(replace(piece, everything=True, answer_tokens=12))
    assert facts["train"]["rows"] + facts["held_out"]["rows"] == 22
    assert facts["train"]["cut"] == facts["train"]["rows"], "'no, not at all 3' has more than eleven letters"
    assert all(len(row["rejected"]) <= 11 and len(row["chosen"]) <= 11 for row in piece.rows("train"))


def test_baselines_judge_the_same_pairs_and_every_prompt_once(piece):
    written(piece)
    found = human_ours.baselines(replace(piece, side="baselines"))
    assert len(found["length"]) == len(found["words"]) == len(found["prompts"]) == 3
    assert len(found["folds"]["prompts"]) == 22 and len(set(found["folds"]["prompts"])) == 11
    # Of each prompt one pair has the longer answer as the better one, so length is right in one of two.
    assert sum(found["folds"]["length"]) == pytest.approx(11)


def test_our_side_learns_and_says_which_pairs_it_orders_right(piece):
    written(piece)
    found = human_ours.ours(replace(piece, side="ours"))
    assert len(found["right"]) == 3 and set(found["right"]) <= {0.0, 0.5, 1.0} and found["training_pairs"] == 6
    assert found["settings"]["batch"] == 2 and found["settings"]["dtype"] == "float32" and found["seconds"] > 0
    assert (found["precision"], found["prompt_tokens"], found["answer_tokens"], found["cut"]) == ("fp32", 60, 30, 0)


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("trl") is None, reason="needs TRL: pip install -e '.[parity]'")
def test_micro_batches_of_trl_take_the_steps_of_the_whole_batch(piece):
    """Seven pairs in batches of 4: the last step reads 2 pairs and then 1, which weigh 2/3 and 1/3."""
    written(replace(piece, pairs=7))
    human_trl = importlib.import_module("peers.human_trl")
    trained = {}
    for micro in (4, 2):
        trainer = human_trl.trainer_of(replace(
            piece, side="trl-rate", model=str(model_folder("tiny-llama")[0]), batch=4, micro_pairs=micro), piece.folder)
        trainer.train()
        assert trainer.state.global_step == 2
        moments = [state["exp_avg"] for state in trainer.optimizer.state_dict()["state"].values()]
        trained[micro] = torch.cat([each.flatten() for each in moments])
    torch.testing.assert_close(trained[2], trained[4], rtol=1e-3, atol=1e-3 * float(trained[4].abs().max()))


def test_equal_scores_are_half_right():
    assert human.ordered([2.0, 1.0, 1.0], [1.0, 1.0, 2.0]) == [1.0, 0.5, 0.0]


def made(**right):
    prompts = ["p", "q", "r", "s"]
    asked = {"precision": "fp32", "batch": 8, "prompt_tokens": 192, "answer_tokens": 96, "threads": 1, "cut": 0.25,
             "micro_pairs": 2, "training_pairs": 9, "prompts": prompts, "seconds": 3.0}
    sides = {side: {**asked, "side": side, "command": "made", "right": values} for side, values in right.items()}
    folds = {"length": [1.0, 0.0], "words": [1.0, 1.0], "prompts": ["p", "q"]}
    sides["baselines"] = {**asked, "side": "baselines", "command": "made", "right": [],
                          "length": [1.0, 0.0, 0.5, 0.5], "words": [0.0] * 4, "folds": folds}
    return sides


def test_the_table_compares_pair_by_pair():
    text = human_data.table({"set": made(ours=[1.0, 1.0, 1.0, 0.0], trl=[1.0, 0.0, 1.0, 0.0])})
    caption, accuracy, differences, folds = text.split("\n\n")
    assert caption == ("Every side in fp32; prompts of at most 192 tokens, answers of at most 96; batches of 8; "
                       "threads of a process: 1; TRL reads 2 pairs at a time.")
    assert "| set | 9 | 4 (4) | 25% | 0.500 [" in accuracy and "| 0.750 [" in accuracy and accuracy.endswith("| 3, 3 |")
    assert "ours less trl" in differences and "| +0.250 [" in differences
    assert "| set | 2 (2) | 0.500 [" in folds and "| 1.000 [" in folds


def test_sides_of_different_pairs_are_not_compared():
    sides = made(ours=[1.0] * 4)
    sides["ours"]["prompts"] = ["p", "q", "r", "other"]
    with pytest.raises(SystemExit, match="different held-out pairs"):
        human_data.table({"set": sides})


@pytest.fixture
def run(monkeypatch, tmp_path):
    """Calls the script with stand-ins for the workers; what they were asked for."""
    ran = []

    def run_module(python, module, asked, done):
        piece = json.loads(asked.read_text())
        ran.append((module, piece["set"], piece["side"]))
        sides = made(ours=[1.0] * 4, trl=[0.0] * 4)
        done.write_text(json.dumps({**sides.get(piece["side"], {}), "command": piece["command"]}))

    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["human_data.py", "--model", "tiny-llama", "--out", str(tmp_path), *arguments])
        human_data.main()
        return ran

    monkeypatch.setattr(human_data, "run_module", run_module)
    monkeypatch.setattr(human_data, "peer_python", lambda options: Path("python"))
    return call


def test_a_piece_that_is_there_is_not_done_again(run, tmp_path, capsys):
    run("--sets", "qa_feedback")
    ran = run("--sets", "qa_feedback")
    assert ran == [("peers.human_ours", "qa_feedback", "rows"), ("peers.human_ours", "qa_feedback", "baselines"),
                   ("peers.human_ours", "qa_feedback", "ours"), ("peers.human_trl", "qa_feedback", "trl")]
    assert capsys.readouterr().out.count("| qa_feedback | 9 |") == 2
    assert not list(tmp_path.rglob(".*.json")), "nothing unfinished is left"


def test_other_lengths_and_precisions_are_other_pieces(run):
    run("--sets", "qa_feedback", "--sides", "ours", "--precision", "fp32")
    run("--sets", "qa_feedback", "--sides", "ours", "--precision", "bf16")
    ran = run("--sets", "qa_feedback", "--sides", "ours", "--precision", "fp32", "--answer-tokens", "96")
    assert [side for _, _, side in ran] == ["rows", "ours"] * 3


def test_a_run_of_other_sets_keeps_what_is_on_the_page(run, tmp_path):
    page = tmp_path / "page.md"
    run("--sets", "qa_feedback", "--sides", "baselines", "ours", "--write", str(page))
    run("--sets", "oasst_en_100", "--sides", "trl", "--write", str(page))
    text = page.read_text()
    assert text.count("| qa_feedback | 9 |") == text.count("| oasst_en_100 | 9 |") == 1
    assert "--sets qa_feedback" in text and "--sets oasst_en_100" in text, "both commands stand there"


def test_micro_batches_that_do_not_make_up_a_batch_are_refused(run):
    with pytest.raises(SystemExit, match="--micro-pairs 3 does not divide --batch 8"):
        run("--micro-pairs", "3")
