"""What a run writes down of its answers, detectors that look at it and end it, and that a resumed run does the same."""

import json
import math
import sys
import types
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch

from conftest import moved_role
from rlhflab.analysis.evidence import Evidence, Finding, sample_of
from rlhflab.catalog import Catalog
from rlhflab.cli import main
from rlhflab.data.chat import ChatFormat
from rlhflab.data.types import Rollout
from rlhflab.model.shared import SharedModel
from rlhflab.registry.sources import folder_digest
from rlhflab.rollout.probe import FreshAnswers, Probe, fresh_sample_kl
from rlhflab.rollout.reward_role import RoleReward
from rlhflab.runs.hidden_states import read_states
from rlhflab.runs.recipes import recipe
from rlhflab.runs.watch import START_ANSWERS, flips, pressed_questions
from rlhflab.scenarios import scenario
from sampling_runs import PROMPTS
from stopped_runs import outcome, stop_at

WORDS = '[{"name": "callable", "function": "scorers:early_letters"}, {"name": "words", "most": 2, "weight": 0.5}]'
LETTERS = '[{"name": "callable", "function": "scorers:early_letters", "shaping": {"name": "confidence"}}]'
ON_SAMPLES = ["--steps", "5", "--samples", "2", "--max_new_tokens", "4", "--epochs", "1"]
PAIRS = [{"prompt": f"Say {word}.", "chosen": word, "rejected": f"No {word}, sorry."} for word in
         ("one", "two", "three", "four", "five", "six", "seven", "eight")]


def fake_detectors(monkeypatch: pytest.MonkeyPatch) -> list[Evidence]:
    """Two detectors that alarm from a step on. Returns the evidence they were shown, as it is filled."""
    catalog: Catalog[Any] = Catalog("detector")
    seen: list[Evidence] = []

    @catalog("late")
    def late(evidence: Evidence, *, since: int = 4) -> Finding:
        step = max((s.step for s in evidence.rollouts), default=0)
        return Finding(name="late", verdict="alarm" if step >= since else "ok", says=f"step {step}", step=step)

    @catalog("blind")
    def blind(evidence: Evidence) -> Finding:
        return Finding(name="blind", verdict="not run", says="not run: needs eyes")

    def examine(evidence: Evidence, names: Sequence[str] | None = None,
                options: Mapping[str, Mapping[str, Any]] | None = None) -> list[Finding]:
        seen.append(evidence)
        return [catalog.bind(name, (options or {}).get(name, {}), where=name)(evidence)
                for name in names or catalog.names()]

    def confirmed(findings: Sequence[Finding], confirm: int = 2) -> tuple[int | None, int | None]:
        for first, last in zip(findings, findings[confirm - 1:], strict=False):
            if first.verdict == last.verdict == "alarm":
                return first.step, last.step
        return None, None

    package, running = types.ModuleType("rlhflab.analysis.detectors"), types.ModuleType("running")
    vars(package).update(detector=catalog, examine=examine, as_row=asdict, confirmed=confirmed)
    vars(running).update(AT_ONCE=frozenset())
    monkeypatch.setitem(sys.modules, "rlhflab.analysis.detectors", package)
    monkeypatch.setitem(sys.modules, "rlhflab.analysis.detectors.running", running)
    return seen


def command(kind: str, folder: Path, out: Path, *more: str) -> list[str]:
    data = folder / "mine.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in PAIRS))
    small = ["--model", "tiny-llama", "--dtype", "float32", "--batch", "4", "--checkpoint_every", "2"]
    of_kind = ["--epochs", "3", "--probe_prompts", "2", "--probe_every", "1", "--probe_tokens", "4"] if kind == "dpo" \
        else [*ON_SAMPLES, "--reward", WORDS]
    return ["train", kind, str(recipe(kind)), *small, "--data", str(data), *of_kind, *more, "--out", str(out)]


def rows(run: Path, name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / name).read_text().splitlines()]


def detect(**settings: Any) -> list[str]:
    return ["--detect", json.dumps({"start_answers": 12, **settings})]


@pytest.mark.parametrize("kind", ["ppo", "best_of_n", "online_dpo"])
def test_every_scored_answer_is_one_row(kind: str, tmp_path: Path) -> None:
    assert main(command(kind, tmp_path, tmp_path / "run")) == 0
    samples = [sample_of(row) for row in rows(tmp_path / "run", "rollouts.jsonl")]
    assert [sample.step for sample in samples] == [step for step in (1, 2, 3, 4, 5) for _ in range(8)]
    for row in rows(tmp_path / "run", "metrics.jsonl"):
        own = [sample for sample in samples if sample.step == row["step"]]
        assert sum(s.reward for s in own) / 8 == pytest.approx(row["proxy"])
        assert sum(s.logprob - s.reference_logprob for s in own) / 8 == pytest.approx(row["kl"], abs=1e-5)
        assert all(sum(s.terms.values()) == pytest.approx(s.reward) and len(s.terms) == 2 for s in own)
        assert all(0 < s.entropy <= math.log(512) and 1 <= s.tokens <= 4 for s in own)
    assert not (tmp_path / "run" / "findings.jsonl").exists()


def test_the_start_the_twin_and_the_canary_are_recorded_beside_the_rollouts(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = fake_detectors(monkeypatch)
    model = SharedModel.load("tiny-llama", dtype="float32", device="cpu")
    moved_role(model, "twin", head="random")
    model.save_role("twin", tmp_path / "other")
    settings = detect(every=2, canary=3, twin=str(tmp_path / "other"))
    helpdesk = ["--data", "helpdesk", "--examples", "16"]
    assert main([*command("ppo", tmp_path, tmp_path / "run"), *helpdesk, *settings]) == 0
    rollouts, canary = ([sample_of(row) for row in rows(tmp_path / "run", name)]
                        for name in ("rollouts.jsonl", "canary.jsonl"))
    start = [sample for sample in rollouts if sample.step == 0]
    assert len(start) == 12 and all(s.logprob == s.reference_logprob for s in start)
    assert all(s.twin is not None and s.measures["gold"] is not None and s.reward is not None for s in rollouts)
    assert [sample.step for sample in canary] == [step for step in (0, 2, 4) for _ in range(3)]
    assert len({sample.prompt_id for sample in canary}) == 3 and all("gold" in s.measures for s in canary)
    assert not {s.prompt_id for s in canary} & {s.prompt_id for s in rollouts}
    assert [max(s.step for s in evidence.rollouts) for evidence in seen] == [2, 4]
    assert [len(evidence.canary) for evidence in seen] == [6, 9]


def test_looking_leaves_the_training_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_detectors(monkeypatch)
    reward = ["--reward", LETTERS, "--constraints",
              '[{"check": {"name": "max_words", "most": 1}, "at_least": 1.0}]']
    assert main([*command("ppo", tmp_path, tmp_path / "plain"), *reward]) == 0
    assert main([*command("ppo", tmp_path, tmp_path / "watched"), *reward, *detect(every=1, canary=2)]) == 0
    plain, watched = outcome(tmp_path / "plain"), outcome(tmp_path / "watched")
    assert plain["weights"] == watched["weights"] and plain["metrics"] == watched["metrics"]
    assert "multiplier.constraint.0.max_words" in plain["metrics"][0]
    assert rows(tmp_path / "watched", "canary.jsonl")[0]["measures"].keys() == {"max_words"}


def test_alarms_are_said_once_and_what_could_not_be_run_only_where_it_was_asked_for(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    fake_detectors(monkeypatch)
    assert main([*command("ppo", tmp_path, tmp_path / "run"), *detect(every=1)]) == 0
    assert capsys.readouterr().err.count("Alarm at step 4: late: step 4") == 1
    found = rows(tmp_path / "run", "findings.jsonl")
    assert [(row["name"], row["step"], row["verdict"]) for row in found] == [
        ("late", step, "alarm" if step > 3 else "ok") for step in (1, 2, 3, 4, 5)]
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert "stopped_by" not in summary and summary["fired"] == {"late": 5}
    named = detect(every=5, detectors=["blind", {"name": "late", "since": 9}])
    assert main([*command("ppo", tmp_path, tmp_path / "named"), *named]) == 0
    assert [(row["name"], row["verdict"]) for row in rows(tmp_path / "named", "findings.jsonl")] == [
        ("blind", "not run"), ("late", "ok")]


@pytest.mark.parametrize("kind", ["ppo", "dpo"])
def test_a_confirmed_alarm_ends_the_run_cleanly(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                                                capsys: pytest.CaptureFixture[str]) -> None:
    fake_detectors(monkeypatch)
    settings = detect(every=1, detectors=[{"name": "late", "since": 2}], stop=["late"])
    assert main([*command(kind, tmp_path, tmp_path / "run"), *settings]) == 0
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert (summary["stopped_by"], summary["stopped_at"]) == ("late", 3), "one alarm could be chance"
    assert len(rows(tmp_path / "run", "metrics.jsonl")) == 3
    assert (tmp_path / "run" / "roles" / "policy" / "adapter_model.safetensors").is_file()
    assert "Ended by late at step 3." in capsys.readouterr().err
    assert json.loads((tmp_path / "run" / "record.json").read_text())["status"] == "finished"


CHANGING = ["--reward", LETTERS, "--constraints",
            '[{"check": {"name": "max_words", "most": 1}, "at_least": 1.0, "rate": 0.3}]']


@pytest.mark.parametrize(("kind", "stop", "settings"), [
    ("ppo", 1, {}), ("ppo", 3, {}), ("best_of_n", 3, {}), ("online_dpo", 3, {}), ("dpo", 3, {}),
    ("ppo", 3, {"detectors": [{"name": "late", "since": 2}], "stop": ["late"]}),
    ("ppo", 2, {"detectors": [{"name": "late", "since": 1}], "stop": ["late"], "canary": 0})])
def test_a_stopped_run_with_detectors_goes_on_to_the_same_bits(
        kind: str, stop: int, settings: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_detectors(monkeypatch)
    scenario = ["--data", "helpdesk", "--examples", "8", "--max_length", "1024"] if kind == "dpo" else []
    more = [*(scenario or CHANGING), *detect(**{"every": 1, "canary": 2, "canary_every": 1, **settings})]
    run, whole = tmp_path / "run", tmp_path / "whole"
    with monkeypatch.context() as patch:
        stop_at(stop, patch)
        assert main([*command(kind, tmp_path, run), *more]) == 130
    assert main(["train", "--resume", str(run)]) == 0
    assert main([*command(kind, tmp_path, whole), *more]) == 0
    assert outcome(run) == outcome(whole)
    assert outcome(run)["findings.jsonl"] and outcome(run)["rollouts.jsonl"].startswith('{"step": 0')
    if kind != "dpo":
        prices = [row["multiplier.constraint.0.max_words"] for row in rows(run, "metrics.jsonl")]
        assert prices[0] == 0 and prices == sorted(prices)


def test_a_preference_run_records_its_probe_and_shows_its_pairs(tmp_path: Path,
                                                                monkeypatch: pytest.MonkeyPatch) -> None:
    seen = fake_detectors(monkeypatch)
    assert main([*command("dpo", tmp_path, tmp_path / "run"), *detect(every=6)]) == 0
    samples = [sample_of(row) for row in rows(tmp_path / "run", "rollouts.jsonl")]
    metrics = rows(tmp_path / "run", "metrics.jsonl")
    assert [s.step for s in samples] == [0] * 12 + [step for step in range(1, 7) for _ in range(2)]
    assert all(s.reward is None and s.logprob is not None and s.entropy is not None for s in samples)
    for row in metrics:
        own = [s.logprob - s.reference_logprob for s in samples if s.step == row["step"]]
        assert sum(own) / 2 == pytest.approx(row["kl"], abs=1e-5)
    (evidence,) = seen
    assert [pair["step"] for pair in evidence.pairs] == [1, 2, 3, 4, 5, 6]
    assert [pair["chosen"] for pair in evidence.pairs] == [row["chosen_shift_per_token"] for row in metrics]


def test_outliers_are_priced_against_the_start_and_again_after_a_stop(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = SharedModel.load("tiny-llama", dtype="float32", device="cpu")
    moved_role(model, "reward", head="random")
    model.save_role("reward", tmp_path / "reward")
    met: list[int] = []
    meet = RoleReward.meet

    def counted(self: RoleReward, answers: Sequence[Rollout]) -> None:
        met.append(len(answers))
        meet(self, answers)

    monkeypatch.setattr(RoleReward, "meet", counted)
    reward = ["--reward", json.dumps([{"name": "role", "path": str(tmp_path / "reward"), "outlier_weight": 0.5}])]
    with monkeypatch.context() as patch:
        stop_at(3, patch)
        assert main([*command("ppo", tmp_path, tmp_path / "run"), *reward]) == 130
    assert main(["train", "--resume", str(tmp_path / "run")]) == 0
    assert main([*command("ppo", tmp_path, tmp_path / "whole"), *reward]) == 0
    assert met == [START_ANSWERS] * 3 and outcome(tmp_path / "run") == outcome(tmp_path / "whole")


def rewarded(tmp_path: Path) -> list[str]:
    """The flag of a reward role that is there."""
    model = SharedModel.load("tiny-llama", dtype="float32", device="cpu")
    moved_role(model, "reward", head="random")
    model.save_role("reward", tmp_path / "reward")
    return ["--reward", json.dumps([{"name": "role", "path": str(tmp_path / "reward")}])]


def test_the_states_a_role_scores_in_are_kept_and_looked_at_again_after_a_stop(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    more = [*rewarded(tmp_path), *detect(every=1, detectors=["latent_outliers"], start_answers=64)]
    run, whole = tmp_path / "run", tmp_path / "whole"
    with monkeypatch.context() as patch:
        stop_at(3, patch)
        assert main([*command("ppo", tmp_path, run), *more]) == 130
    assert main(["train", "--resume", str(run)]) == 0
    assert main([*command("ppo", tmp_path, whole), *more]) == 0
    assert outcome(run) == outcome(whole) and len(outcome(run)["hidden"]) == 6
    states = read_states(run)
    assert {step: each.shape for step, each in states.items()} == {0: (64, 64), **dict.fromkeys(range(1, 6), (8, 64))}
    assert list(read_states(run, ends=True)) == [0, 5]
    model = SharedModel.load("tiny-llama", dtype="float32", device="cpu")
    model.load_role("reward", tmp_path / "reward", head="stored")
    record, head = model.records["reward"], model.head_parameters("reward")[0][0].detach().numpy()
    scores = (states[5].astype(float) @ head - record.score_mean) / record.score_std
    rewards = [row["reward"] for row in rows(run, "rollouts.jsonl") if row["step"] == 5]
    assert scores == pytest.approx(rewards, abs=0.05), "rows are in the order of the rollouts"
    live = [(row["verdict"], row["effect"]) for row in rows(run, "findings.jsonl")]
    capsys.readouterr()
    assert main(["detect", str(run), "--detectors", "latent_outliers", "--json"]) == 0
    [found] = json.loads(capsys.readouterr().out)["detectors"]
    assert [row["step"] for row in found["history"]] == [0, 1, 2, 3, 4, 5]
    assert (found["verdict"], found["effect"]) == live[-1]


def test_probes_of_the_reward_role_are_taken_from_its_stored_report(tmp_path: Path) -> None:
    flags = [*rewarded(tmp_path), *detect(every=5, detectors=["probe_battery"], start_answers=0)]
    assert main([*command("ppo", tmp_path, tmp_path / "before"), *flags]) == 0
    [row] = rows(tmp_path / "before", "findings.jsonl")
    assert row["verdict"] == "not run" and f"`rlhflab report reward {tmp_path / 'reward'}`" in row["next"]
    (tmp_path / "reward" / "reward_report.json").write_text(json.dumps({
        "role_digest": folder_digest(tmp_path / "reward"), "probes": [{"name": "filler", "changes": [0.5] * 30}]}))
    assert main([*command("ppo", tmp_path, tmp_path / "after"), *flags]) == 0
    [row] = rows(tmp_path / "after", "findings.jsonl")
    assert row["verdict"] == "alarm" and "filler" in row["says"]


def test_questions_are_asked_again_by_somebody_who_is_sure_of_a_wrong_answer(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_detectors(monkeypatch)
    helpdesk = ["--data", "helpdesk", "--examples", "16", "--max_length", "1024"]
    assert main([*command("ppo", tmp_path, tmp_path / "run"), *helpdesk, *detect(every=5, canary=2, pressed=3)]) == 0
    canary = [sample_of(row) for row in rows(tmp_path / "run", "canary.jsonl")]
    pressed = [sample for sample in canary if "sycophancy_flip" in sample.measures]
    assert [sample.step for sample in pressed] == [step for step in (0, 2, 4) for _ in range(3)]
    assert all("I am quite sure that it is" in sample.prompt and set(sample.measures) == {"sycophancy_flip"}
               for sample in pressed)
    assert len(canary) == 3 * (2 + 3) and all("gold" in s.measures for s in canary if s not in pressed)


def test_a_flip_is_a_right_answer_given_up() -> None:
    questions = pressed_questions(scenario("helpdesk"), 3, seed=0)
    right, wrong = ([str(each.facts[key]) for each in questions] for key in ("right", "believed"))
    said = [right[0], wrong[0], right[2], right[2], wrong[4], wrong[4]]  # gives way, stays, was wrong before
    assert flips([Rollout(prompt=prompt, prompt_ids=(1,), token_ids=(2,), text=text, logprobs=(-1.0,), finish="stop",
                          seed=0) for prompt, text in zip(questions, said, strict=True)]) == [1.0, 0.0, None]
    assert pressed_questions(None, 0, seed=0) == []


@pytest.mark.parametrize(("settings", "sentence"), [
    ({"pressed": 4}, "detect.pressed: 4 questions are to be asked twice, but no scenario makes any"),
    ({"detectors": ["late", {"name": "lat"}]}, "no detector is called 'lat'; there are blind, late"),
    ({"detectors": [{"name": "late", "before": 3}]}, "detect.detectors.late.before"),
    ({"stop": ["soon"]}, "detect.stop: no detector is called 'soon'"),
    ({"detectors": ["blind"], "stop": ["late"]}, "stop names late, which is not among the detectors"),
    ({"canary": 4}, "detect.canary: 4 prompts are to be checked, but nothing knows what is right"),
    ({"evry": 4}, "detect.evry"),
    ({"twin": "nowhere"}, "nowhere")])
def test_what_cannot_be_watched_is_one_sentence(settings: dict[str, Any], sentence: str, tmp_path: Path,
                                                monkeypatch: pytest.MonkeyPatch,
                                                capsys: pytest.CaptureFixture[str]) -> None:
    fake_detectors(monkeypatch)
    assert main([*command("ppo", tmp_path, tmp_path / "run"), *detect(**settings)]) == 2
    error = capsys.readouterr().err
    assert sentence in error and "Traceback" not in error


def test_a_probe_shows_what_it_measured(llama: SharedModel) -> None:
    moved_role(llama, "policy")
    shown: list[tuple[int, FreshAnswers]] = []
    probe = Probe(prompts=PROMPTS[:3], chat=ChatFormat(llama.tokenizer), max_new_tokens=4,
                  observe=lambda step, answers: shown.append((step, answers)))
    measured = fresh_sample_kl(llama, probe, role="policy", reference=None, step=7)
    ((step, answers),) = shown
    assert step == 7 and len(answers.rollouts) == 3
    torch.testing.assert_close(float((answers.logprob - answers.reference).sum()) / 3, measured["kl"])
