"""`rlhflab detect` on a run's folder and on a file that this project did not write, and what it says of bad input."""

import json
from dataclasses import asdict
from pathlib import Path
from random import Random
from typing import Any

import pytest

from rlhflab.analysis.evidence import Sample
from rlhflab.cli import main
from rlhflab.errors import DataError, RunError
from rlhflab.runs.evidence_files import read_evidence

NOUNS = ("garage", "print room", "laboratory", "cafeteria", "archive", "library", "workshop", "reception")


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def foreign(step: int, growth: int, *, prompts: int = 10) -> list[dict[str, Any]]:
    """Rows as another trainer may log them: chat prompts, answers whose words and score grow by `growth` a step."""
    random = Random(step)
    rows = []
    for i in range(prompts * 4):
        extra = growth * step + random.randint(0, 4)
        text = f"The {NOUNS[i % 8]} closes at {random.randint(1, 12)}" + "".join(
            f" {random.choice(NOUNS)}" for _ in range(extra))
        rows.append({"global_step": step, "completion": [{"role": "assistant", "content": text}],
                     "prompt": [{"role": "user", "content": f"Question {i // 4 + 10 * step}?"}],
                     "score": extra / 4 + random.random() / 10, "finish_reason": "stop", "advantage": 0.1})
    return rows


@pytest.fixture
def log(tmp_path: Path) -> Path:
    return write(tmp_path / "log.jsonl", [row for step in range(1, 7) for row in foreign(step, 2)])


def run_json(capsys: pytest.CaptureFixture[str], *arguments: object) -> dict[str, Any]:
    assert main(["detect", *map(str, arguments), "--json"]) == 0
    result: dict[str, Any] = json.loads(capsys.readouterr().out)
    return {**result, "of": {row["name"]: row for row in result["detectors"]}}


def test_a_foreign_file_in_which_length_is_paid(capsys: pytest.CaptureFixture[str], log: Path) -> None:
    result = run_json(capsys, log)
    assert (result["answers"], result["step"], result["written"], len(result["of"])) == (240, 6, None, 20)
    drift = result["of"]["length_drift"]
    assert drift["verdict"] == "alarm" and drift["gold_free"] and drift["fired_at"] in (2, 3)
    assert drift["effect"]["mean"] == pytest.approx(10, abs=2) and drift["effect"]["n"] == 40
    assert [look["step"] for look in drift["history"]] == [1, 2, 3, 4, 5, 6]
    assert result["of"]["kl_budget"]["says"] == "not run: needs log-probs, reference log-probs"
    assert result["of"]["abstention"]["says"] == "not run: needs canary" and not result["of"]["abstention"]["gold_free"]
    verdicts = [row["verdict"] for row in result["detectors"]]
    assert verdicts == sorted(verdicts, key=["alarm", "unclear", "ok", "not run"].index)
    assert list(log.parent.iterdir()) == [log], "findings of a file are only printed"


def test_the_table_ends_with_what_to_do_next(capsys: pytest.CaptureFixture[str], log: Path) -> None:
    assert main(["detect", str(log), "--detectors", "length_drift, kl_budget"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("length_drift  gold-free  alarm    fired at step ")
    assert lines[1].startswith("kl_budget     gold-free  not run  -")
    assert lines[-1].startswith("Next, length_drift: Read the longest answers.")


def test_no_alarm_says_how_many_could_be_judged(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    calm = write(tmp_path / "calm.jsonl", [row for step in range(1, 4) for row in foreign(step, 0)])
    assert main(["detect", str(calm), "--detectors", "length_drift,twin_gap", "--fail-on-alarm"]) == 0
    last = capsys.readouterr().out.splitlines()[-1]
    assert last.startswith("No alarm from 1 of 2 detectors; the others had too little to look at. Next, twin_gap: ")


def test_an_alarm_fails_only_where_it_is_asked_to(log: Path) -> None:
    assert main(["detect", str(log), "--detectors", "length_drift", "--fail-on-alarm"]) == 3
    assert main(["detect", str(log), "--detectors", "length_drift", "--length_drift.h", "1e6", "--fail-on-alarm"]) == 0


def test_answers_of_the_start_from_a_file_of_their_own(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    def bare(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return [{"input": row["prompt"][0]["content"], "output": row["completion"][0]["content"]} for row in rows]

    now, start = (write(tmp_path / f"{name}.jsonl", bare(foreign(step, 4)))
                  for name, step in (("now", 3), ("start", 0)))
    alone = run_json(capsys, now)["of"]["length_drift"]
    assert alone["verdict"] == "unclear" and "answers of the starting policy and of a later step" in alone["says"]
    beside = run_json(capsys, now, "--start", start, "--out", tmp_path / "found.json")
    assert beside["of"]["length_drift"]["verdict"] == "alarm" and beside["of"]["length_drift"]["step"] == 1
    assert beside["of"]["twin_gap"]["says"] == "not run: needs rewards, twin rewards"
    written = json.loads((tmp_path / "found.json").read_text())
    assert written["detectors"] == beside["detectors"]


def sample_row(sample: Sample) -> dict[str, Any]:
    """As a run writes a sample: the fields that are not empty."""
    return {key: value for key, value in asdict(sample).items() if value not in (None, "", (), {})}


def test_a_run_folder_is_read_as_it_was_written(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    rollouts = [Sample(step=step, prompt_id=f"p{i // 4}", prompt="Why?", answer=f"word {i} {step}", reward=i / 3,
                       stopped=i % 2 == 0, tokens=3, logprob=-4.5, reference_logprob=-14.5 if step else -4.5,
                       entropy=0.5, twin=1.0, members=(1.0, 2.0), terms={"role": 1.0},
                       measures={"gold": 0.5, "right": 1.0}) for step in (0, 1, 2) for i in range(32)]
    canary = [Sample(step=step, prompt_id=f"c{i}", answer="", measures={"format": 1.0}) for step in (0, 2)
              for i in range(40)]
    write(tmp_path / "rollouts.jsonl", [sample_row(sample) for sample in rollouts])
    write(tmp_path / "canary.jsonl", [sample_row(sample) for sample in canary])
    with (tmp_path / "rollouts.jsonl").open("a") as file:
        file.write('{"step": 3, "prompt_id": "p')  # the run is still writing, or was killed here
    evidence = read_evidence(tmp_path)
    assert (list(evidence.rollouts), list(evidence.canary)) == (rollouts, canary)
    result = run_json(capsys, tmp_path)
    assert result["of"]["kl_budget"]["verdict"] == "alarm" and result["of"]["kl_budget"]["effect"]["mean"] == 10
    assert (result["of"]["kl_budget"]["first_alarm"], result["of"]["kl_budget"]["fired_at"]) == (1, 2)
    assert result["of"]["format_pass"]["verdict"] == "ok"
    assert json.loads((tmp_path / "findings.json").read_text())["detectors"] == result["detectors"]


def test_a_run_on_pairs_is_judged_by_its_metrics(tmp_path: Path) -> None:
    write(tmp_path / "metrics.jsonl", [{"step": t, "loss": 0.5, "chosen_shift_per_token": -0.05 * t, "margin": 0.1 * t}
                                       for t in range(1, 13)])
    evidence = read_evidence(tmp_path)
    assert evidence.pairs[1] == {"step": 2.0, "chosen": -0.1, "margin": 0.2} and not evidence.rollouts
    assert main(["detect", str(tmp_path), "--detectors", "chosen_displacement", "--fail-on-alarm"]) == 3


def test_a_folder_without_evidence_says_why(tmp_path: Path) -> None:
    write(tmp_path / "metrics.jsonl", [{"step": 1, "loss": 0.5}])
    with pytest.raises(RunError, match=r"holds no rollouts\.jsonl, no canary\.jsonl and no metrics of a run on pref"):
        read_evidence(tmp_path)
    few = write(tmp_path / "samples.jsonl", [{"step": 1, "prompt_id": "p", "prompt": "Hi", "answer": "Hello",
                                              "finish": "length", "score": 0.5, "gold": 0.25}])
    with pytest.raises(RunError, match=r"rlhflab detect .*samples\.jsonl looks at the few"):
        read_evidence(tmp_path)
    [sample] = read_evidence(few).rollouts
    assert (sample.reward, sample.stopped, sample.step) == (0.5, False, 1)


ROW = {"prompt": "Why?", "answer": "So."}


@pytest.mark.parametrize(("rows", "sentence"), [
    ([ROW, {"prompt": "Why?", "text_out": "So."}], "2: 'answer' is missing; it may also be called one of 'answer', "),
    ([{"answer": "So."}], "1: 'prompt' is missing"),
    ([{**ROW, "reward": "high"}], "1: 'reward' must be a number, found \"high\""),
    ([{**ROW, "score": [1, 2]}], "1: 'score' must be a number, found [1, 2]"),
    ([{**ROW, "step": 1}, ROW], "2: 'step' is missing, while line 1 has one; all rows are to have it, or none"),
    ([{**ROW, "global_step": 1.5}], "1: 'global_step' must be a whole number from 0 on, found 1.5"),
    ([{**ROW, "answer": 3}], "1: 'answer' must be text, or a list of messages"),
    ([{**ROW, "prompt": []}], "1: 'prompt' must be text, or a list of messages"),
    ([{**ROW, "measures": {"gold": "good"}}], "1: 'measures.gold' must be a number"),
    ([{**ROW, "members": 1.0}], "1: 'members' must be a list of numbers"),
])
def test_a_bad_row_is_named_by_file_line_and_key(tmp_path: Path, rows: list[dict[str, Any]], sentence: str) -> None:
    path = write(tmp_path / "log.jsonl", rows)
    with pytest.raises(DataError) as caught:
        read_evidence(path)
    assert f"{path}:{sentence}" in str(caught.value)


def test_more_ways_to_say_it(tmp_path: Path) -> None:
    path = write(tmp_path / "log.jsonl", [
        {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello."}], "reward": None,
         "finish_reason": "length", "tokens": [5, 6, 7], "logprobs": [-0.5, -1.0],
         "measures": {"gold": True, "x": None}},
        {"question": "Why?", "generated_text": "", "reward": float("nan"), "finish_reason": "abort"}])
    first, second = read_evidence(path).rollouts
    assert (first.prompt, first.answer, first.reward, first.stopped) == ("Hi", "Hello.", None, False)
    assert (first.tokens, first.logprob, first.measures) == (3, -1.5, {"gold": 1.0})
    assert second.answer == "" and second.stopped is None and second.reward != second.reward, "NaN is for detectors"


@pytest.mark.parametrize(("arguments", "sentence"), [
    (["none.jsonl"], "none.jsonl: no such run folder or file"),
    (["log.jsonl", "--detectors", "lenght_drift"], "no detector is called 'lenght_drift'; there are abstention"),
    (["log.jsonl", "--length_drift.hh", "3"], "detectors.length_drift.hh: "),
    (["log.jsonl", "--start", "gone.jsonl"], "gone.jsonl: no such file"),
    ([".", "--start", "log.jsonl"], "--start: . is a run, which knows its own start"),
])
def test_a_mistake_is_one_sentence(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, log: Path,
                                   arguments: list[str], sentence: str) -> None:
    monkeypatch.chdir(log.parent)
    assert main(["detect", *arguments]) == 2
    out, err = capsys.readouterr()
    assert out == "" and sentence in err and err.count("\n") == 1


def test_rewards_that_are_constant_are_said_and_not_judged(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    rows = [{**row, "score": 1.0} for step in (1, 2) for row in foreign(step, 0)]
    found = run_json(capsys, write(tmp_path / "log.jsonl", rows))["of"]
    for name in ("length_share", "reward_tail"):
        assert found[name]["says"] == "unclear: all 80 rewards are 1, so nothing can be read from them"
