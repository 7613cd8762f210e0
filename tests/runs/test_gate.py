"""evaluate, compare and gate from the command line, end to end on a tiny model with two adapters."""

import json
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from conftest import moved_role
from rlhflab.cli import main
from rlhflab.config import Lora
from rlhflab.data.types import Message, Prompt
from rlhflab.errors import RegistryError
from rlhflab.model.shared import RECORD, SharedModel
from rlhflab.progress import Progress
from rlhflab.runs.evaluating import Checks, Respondent
from rlhflab.runs.lab import Lab
from rlhflab.runs.targets import target_of
from rlhflab.suites import suite_named

SUITE = r"""
name: mine
prompts: prompts.jsonl
answers: {max_new_tokens: 6, samples: 1, temperature: 0.05}
metrics:
  usual: {check: {name: regex, pattern: '^[^\x17]*$'}, says: share without the byte that one adapter likes to write}
  words: {check: length, better: lower}
"""
POLICY = """
rows:
  - {suite: mine, metric: usual, margin: 0.2, discordance: 0.1}
  - {suite: mine, metric: words, margin: 9, blocking: false}
  - {suite: again, metric: same, test: exact}
"""
AGAIN = "name: again\nkind: rerun\nprompts: ../mine/prompts.jsonl\nanswers: {max_new_tokens: 4}\n"


@pytest.fixture
def shop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with suites, a policy and two adapters: `calm` is as the base, `other` writes otherwise."""
    monkeypatch.setenv("RLHFLAB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("RLHFLAB_REGISTRY_KEY", str(tmp_path / "key.pem"))
    monkeypatch.chdir(tmp_path)
    model = SharedModel.load("tiny-llama", dtype="float32", device="cpu")
    model.add_role("calm", Lora(rank=2, alpha=4))
    moved_role(model, "other")
    for name in ("calm", "other"):
        model.save_role(name, tmp_path / name)
    for name, text in (("mine", SUITE), ("again", AGAIN)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "suite.yaml").write_text(text)
    rows = [{"prompt": f"Say {i}.", "id": f"p{i}"} for i in range(60)]
    (tmp_path / "mine" / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "policy.yaml").write_text(POLICY)
    return tmp_path


def printed(capsys: pytest.CaptureFixture[str], *arguments: str, code: int = 0) -> Any:
    assert main([*arguments, "--json"]) == code
    return json.loads(capsys.readouterr().out)


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert main(list(arguments)) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.splitlines()[-1].startswith("rlhflab: ")
    return err


def test_the_active_model_passes_against_itself(shop: Path, capsys: pytest.CaptureFixture[str]) -> None:
    record = printed(capsys, "gate", "calm", "--against", "tiny-llama", "--policy", "policy.yaml", "--out", "out")
    assert (record["verdict"], record["blocks"], record["format"]) == ("pass", False, "rlhflab-gate-1")
    assert [row["verdict"] for row in record["rows"]] == ["pass", "pass", "pass"]
    assert record["active_digest"] is None and len(record["candidate_digest"]) == len(record["policy_digest"]) == 64
    assert abs(record["rows"][0]["change"]) < 1e-9
    assert record["rows"][0]["n"] == 120, "one greedy and one drawn answer each"
    assert {key: value for key, value in record.items() if key != "folder"} == json.loads(
        (shop / "out" / "gate.json").read_text())


def test_a_candidate_that_answers_otherwise_is_kept_out(shop: Path, capsys: pytest.CaptureFixture[str]) -> None:
    record = printed(capsys, "gate", "other", "--against", "calm", "--policy", "policy.yaml", "--out", "out", code=2)
    usual = record["rows"][0]
    assert record["verdict"] == usual["verdict"] == "fail" and usual["blocks"] and usual["high"] < -0.2
    assert "the loss is larger than the margin of 0.2" in usual["reason"]
    tree = ElementTree.parse(shop / "out" / "junit.xml").getroot()[0]
    assert tree.get("failures") == "1" and "Gate: fail" in (shop / "out" / "gate.md").read_text()
    rows = [json.loads(line) for line in (shop / "out" / "answers.jsonl").read_text().splitlines()]
    assert len(rows) == 2 * 120 + 60, "the active model is not asked where only the candidate is tested"


def test_an_adapter_of_another_tool_is_taken_and_one_of_another_base_is_refused(
        shop: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (shop / "calm" / RECORD).unlink()  # what other tools do not write
    printed(capsys, "gate", "calm", "--against", "other", "--policy", "policy.yaml", "--out", "one")
    record = json.loads((shop / "other" / RECORD).read_text())
    (shop / "other" / RECORD).write_text(json.dumps({**record, "base_digest": "0" * 64}))
    said = refused(capsys, "gate", "other", "--against", "calm", "--policy", "policy.yaml")
    assert "(000000000000), not on tiny-llama (" in said
    said = refused(capsys, "gate", "calm", "--against", "tiny-qwen", "--policy", "policy.yaml")
    assert "calm: is of base tiny-llama (" in said and "tiny-qwen of tiny-qwen (" in said


@pytest.mark.parametrize(("old", "new", "sentence"), [
    ("name: regex", "name: regexx", "suite mine: metrics.usual.check: no check is called 'regexx'; there are abstains"),
    ("pattern", "patern", "suite mine: metrics.usual.check.patern: "),
    ("check: length", "check: ifeval", "ifeval: needs lm-eval's checkers, which are not installed; run: pip install"),
    ("usual: ", "unusual: ", "suite mine: no metric is called 'usual'; there are unusual, words"),
    ("prompts.jsonl", "none.jsonl", "none.jsonl"),
])
def test_a_mistake_in_a_suite_is_seen_before_a_model_is_loaded(
        shop: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, old: str, new: str,
        sentence: str) -> None:
    monkeypatch.setattr(SharedModel, "load", None)
    monkeypatch.setattr("rlhflab.rollout.ifeval.importlib.util.find_spec", lambda name: None)
    path = shop / "mine" / "suite.yaml"
    path.write_text(path.read_text().replace(old, new))
    assert sentence in refused(capsys, "gate", "calm", "--against", "calm", "--policy", "policy.yaml")


def test_an_evaluation_is_written_and_its_answers_are_kept(shop: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first = printed(capsys, "evaluate", "tiny-llama+calm", "mine", "perplexity", "--n", "5", "--out", "one")
    again = printed(capsys, "evaluate", "calm", "mine", "--n", "6", "--out", "two")
    assert (first["answers_written"], again["answers_written"]) == (10, 2), "five prompts were answered before"
    usual = first["suites"]["mine"]["usual"]
    assert usual["estimate"]["n"] == 10 and usual["unscored"] == 0 and usual["better"] == "higher"
    assert first["suites"]["perplexity"]["nats_a_token"]["estimate"]["mean"] > 1
    one, two = ([json.loads(line) for line in (shop / name / "answers.jsonl").read_text().splitlines()]
                for name in ("one", "two"))
    assert [row["answer"] for row in one[:10]] == [row["answer"] for row in two[:10]]


def test_another_adapter_seed_or_length_is_another_answer(shop: Path) -> None:
    lab = Lab.load("tiny-llama", progress=Progress())
    suite = suite_named("mine").first(2)
    calm, other = (Respondent(lab, target_of(name), role=name, checks=Checks(lab.model)) for name in ("calm", "other"))
    prompt = Prompt(id="p", messages=(Message(role="user", content="Hi"),))
    keys = {calm._answer_key(suite, prompt, 1), other._answer_key(suite, prompt, 1), calm._answer_key(suite, prompt, 2),
            calm._answer_key(suite.answered(max_new_tokens=9), prompt, 1),
            calm._answer_key(suite.answered(temperature=0.5), prompt, 1)}
    assert len(keys) == 5 and calm._answer_key(suite, prompt, 1) in keys


def test_an_answer_does_not_depend_on_which_others_were_kept(shop: Path) -> None:
    lab = Lab.load("tiny-llama", progress=Progress())
    suite = suite_named("mine").first(4)
    respondent = Respondent(lab, target_of("other"), role="a", checks=Checks(lab.model))
    whole = respondent.rollouts(suite)
    for key in list(respondent.kept.known)[:4]:
        del respondent.kept.known[key]
    assert [each.token_ids for each in respondent.rollouts(suite)] == [each.token_ids for each in whole]


def test_a_pair_counts_only_where_the_question_itself_was_answered(shop: Path) -> None:
    flips = "  flips: {check: {name: contains, key: value}, of: pair, better: lower}\n"
    text = SUITE.replace("  words:", f"{flips}  words:")
    (shop / "mine" / "suite.yaml").write_text(text.replace("samples: 1", "samples: 0"))
    rows = [{"prompt": f"Say {i}{'!' * pressed}", "id": f"{i}-{pressed}",
             "facts": {"pair": i, "pressed": bool(pressed), "value": value}}
            for i, value in enumerate(("\ufffd", "\ufffd\ufffd", "zebra")) for pressed in (0, 1)]
    (shop / "mine" / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    lab = Lab.load("tiny-llama", progress=Progress())
    asked = Respondent(lab, target_of("tiny-llama"), role="a", checks=Checks(lab.model))
    found = asked.rows(suite_named("mine"))
    assert [row["prompt_id"] for row in found if "flips" in row["values"]] == ["0-1", "1-1", "2-1"]
    assert found[5]["values"]["flips"] is None and "did not pass on the question" in found[5]["reasons"]["flips"]
    assert {row["values"]["flips"] for row in found[1:4:2]} <= {0.0, 1.0, None}


def test_three_are_ranked_by_a_metric_with_win_rates_of_each_two(
        shop: Path, capsys: pytest.CaptureFixture[str]) -> None:
    record = printed(capsys, "compare", "other", "calm", "tiny-llama", "--suite", "mine", "--metric", "usual",
                     "--n", "12", "--out", "out")
    assert [row["name"] for row in record["ranking"]][-1] == "other" and len(record["pairs"]) == 3
    tied = next(pair for pair in record["pairs"] if {pair["first"], pair["second"]} == {"calm", "tiny-llama"})
    assert tied["win_rate"]["mean"] == tied["length_controlled"]["mean"] == 0.5 and tied["unscored"] == 0
    said = refused(capsys, "compare", "calm", "--metric", "usual")
    assert "needs two or more models or adapters" in said


def test_a_judge_that_is_never_of_one_mind_leaves_nothing_to_rank(
        shop: Path, capsys: pytest.CaptureFixture[str]) -> None:
    said = refused(capsys, "compare", "other", "calm", "--suite", "mine", "--judge", "tiny-llama", "--n", "3")
    assert "no comparison could be decided" in said


def test_a_reward_role_that_checks_is_loaded_once_for_both(shop: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = SharedModel.load("tiny-llama", dtype="float32", device="cpu")
    moved_role(model, "reward", head="random")
    model.save_role("reward", shop / "reward")
    text = SUITE.replace("{check: length, better: lower}", f"{{check: {{name: role, path: {shop / 'reward'}}}}}")
    (shop / "mine" / "suite.yaml").write_text(text)
    record = printed(capsys, "gate", "calm", "--against", "other", "--policy", "policy.yaml", "--out", "out")
    assert record["rows"][1]["candidate"] != record["rows"][1]["active"] and record["rows"][1]["unscored"] == 0


@pytest.mark.parametrize("command", [("evaluate", "calm", "mine"),
                                     ("gate", "calm", "--against", "other", "--policy", "policy.yaml")])
def test_a_reward_role_that_is_not_there_is_said_before_anything_is_answered(
        shop: Path, capsys: pytest.CaptureFixture[str], command: tuple[str, ...]) -> None:
    text = SUITE.replace("{check: length, better: lower}", "{check: {name: role, path: nowhere}}")
    (shop / "mine" / "suite.yaml").write_text(text)
    said = refused(capsys, *command, "--out", "out")
    assert "nowhere: is not an adapter folder" in said and "calm: " not in said


def test_one_model_on_both_sides_is_asked_once(shop: Path, monkeypatch: pytest.MonkeyPatch,
                                               capsys: pytest.CaptureFixture[str]) -> None:
    asked: list[int] = []
    written = Respondent._written

    def counted(self: Respondent, suite: Any, numbers: Any) -> Any:
        asked.append(len(numbers))
        return written(self, suite, numbers)

    monkeypatch.setattr(Respondent, "_written", counted)
    record = printed(capsys, "gate", "calm", "--against", "calm", "--policy", "policy.yaml", "--out", "same")
    assert record["verdict"] == "pass"
    assert sum(asked) == 60 + 2 * 60  # once for the suite of answers, twice for the rerun, which keeps none


def test_names_of_a_registry_are_gated_and_the_verdict_promotes(shop: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("calm", "other"):
        assert main(["registry", "add", name, "--by", "anna", "--name", name]) == 0
    assert main(["registry", "promote", "calm", "--to", "prod", "--by", "anna", "--override", "the first"]) == 0
    assert main(["gate", "other", "--against", "prod@active", "--policy", "policy.yaml", "--out", "said"]) == 2
    record = json.loads((shop / "said" / "gate.json").read_text())
    assert record["active"].startswith("prod@active (") and record["candidate"] == "other", "a folder goes first"
    (shop / "other").rename(shop / "moved")
    capsys.readouterr()
    found = printed(capsys, "evaluate", "tiny-llama+other", "mine", "--n", "2")
    assert found["adapter_digest"] == record["candidate_digest"] and found["name"].startswith("other (")
    assert main(["evaluate", "tiny-llama+nothing", "mine"]) == 2
    assert "no adapter of the registry registry has that name" in capsys.readouterr().err


def test_a_deployment_without_an_adapter_is_its_base_which_has_to_be_named(shop: Path) -> None:
    for arguments in (["add", "calm", "--by", "anna", "--name", "calm"], ["promote", "calm", "--to", "prod", "--by",
                      "anna", "--override", "the first"], ["rollback", "prod", "--by", "anna", "--to", "base"]):
        assert main(["registry", *arguments]) == 0
    assert target_of("prod@active", model="tiny-llama") == ("tiny-llama", None, "prod@active")
    assert target_of("tiny-llama+prod@active").adapter is None
    with pytest.raises(RegistryError, match="no adapter is active in this deployment, so its base answers alone"):
        target_of("prod@active")
