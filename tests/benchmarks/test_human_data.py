"""`benchmarks/human_data.py`: its rows, its pieces and its tables. Training is the benchmark's own work."""

import importlib
import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest

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
                       everything=False, pairs=6, held_out=3, batch=2, micro_tokens=256, prompt_tokens=60,
                       answer_tokens=30, seed=0)


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
    assert found["settings"]["batch"] == 2 and found["seconds"] > 0


def test_equal_scores_are_half_right():
    assert human.ordered([2.0, 1.0, 1.0], [1.0, 1.0, 2.0]) == [1.0, 0.5, 0.0]


def made(**right):
    prompts = ["p", "q", "r", "s"]
    sides = {side: {"side": side, "training_pairs": 9, "prompts": prompts, "seconds": 3.0, "right": values}
             for side, values in right.items()}
    folds = {"length": [1.0, 0.0], "words": [1.0, 1.0], "prompts": ["p", "q"]}
    sides["baselines"] = {"prompts": prompts, "training_pairs": 9, "seconds": 1.0, "right": [],
                          "length": [1.0, 0.0, 0.5, 0.5], "words": [0.0] * 4, "folds": folds}
    return sides


def test_the_table_compares_pair_by_pair():
    text = human_data.table({"set": made(ours=[1.0, 1.0, 1.0, 0.0], trl=[1.0, 0.0, 1.0, 0.0])})
    accuracy, differences, folds = text.split("\n\n")
    assert "| set | 9 | 4 (4) | 0.500 [" in accuracy and "| 0.750 [" in accuracy and accuracy.endswith("| 3, 3 |")
    assert "ours less trl" in differences and "| +0.250 [" in differences
    assert "| set | 2 (2) | 0.500 [" in folds and "| 1.000 [" in folds


def test_sides_of_different_pairs_are_not_compared():
    sides = made(ours=[1.0] * 4)
    sides["ours"]["prompts"] = ["p", "q", "r", "other"]
    with pytest.raises(SystemExit, match="different held-out pairs"):
        human_data.table({"set": sides})


def test_a_piece_that_is_there_is_not_done_again(monkeypatch, tmp_path, capsys):
    ran = []

    def run_module(python, module, asked, done):
        piece = json.loads(asked.read_text())
        ran.append((module, piece["set"], piece["side"]))
        sides = made(ours=[1.0] * 4, trl=[0.0] * 4)
        done.write_text(json.dumps(sides.get(piece["side"], {})))

    monkeypatch.setattr(human_data, "run_module", run_module)
    monkeypatch.setattr(human_data, "peer_python", lambda options: Path("python"))
    monkeypatch.setattr(sys, "argv", ["human_data.py", "--sets", "qa_feedback", "--out", str(tmp_path)])
    human_data.main()
    human_data.main()
    assert ran == [("peers.human_ours", "qa_feedback", "rows"), ("peers.human_ours", "qa_feedback", "baselines"),
                   ("peers.human_ours", "qa_feedback", "ours"), ("peers.human_trl", "qa_feedback", "trl")]
    assert capsys.readouterr().out.count("| qa_feedback | 9 |") == 2
    assert not list(tmp_path.rglob(".*.json")), "nothing unfinished is left"
