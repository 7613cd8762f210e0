"""The release part of the demo on three tiny adapters: what the gate blocks stays out, and the way back is proven."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from conftest import moved_role
from rlhflab.config import Lora
from rlhflab.data.types import Message, Prompt
from rlhflab.errors import RunError
from rlhflab.model.shared import SharedModel
from rlhflab.progress import Progress
from rlhflab.registry.store import Registry
from rlhflab.runs import release as release_module
from rlhflab.runs.folder import Record, RunFolder
from rlhflab.runs.lab import Lab
from rlhflab.runs.release import Release, Trained
from rlhflab.suites import read_policy

SUITE = r"""
name: mine
prompts: prompts.jsonl
answers: {max_new_tokens: 6}
metrics:
  usual: {check: {name: regex, pattern: '^[^\x17]*$'}, says: share without the byte that one adapter likes to write}
"""
POLICY = "rows:\n  - {suite: mine, metric: usual, margin: 0.2, discordance: 0.1}\n"
START, GOOD, BAD = "calm", "nearly", "other"
PROMPTS = [Prompt(id=f"t{i}", messages=(Message(role="user", content=f"Hello {i}"),)) for i in range(2)]


@pytest.fixture
def shop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Run folders: `calm` and `nearly` answer as the base does, `other` writes a byte that the policy does not want."""
    monkeypatch.setenv("RLHFLAB_CACHE", str(tmp_path / "cache"))
    model = SharedModel.load("tiny-llama", dtype="float32", device="cpu")
    model.add_role(START, Lora(rank=4, alpha=8))
    model.add_role(GOOD, Lora(rank=4, alpha=8), seed=7)
    moved_role(model, BAD)
    for name in (START, GOOD, BAD):
        model.save_role(name, tmp_path / name / "roles" / "policy")
        (tmp_path / name / "config.yaml").write_text("kind: sft\nmodel: tiny-llama\nseed: 3\n")
        Record(RunFolder(tmp_path / name), "sft").close("finished")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "suite.yaml").write_text(SUITE)
    rows = [{"prompt": f"Say {i}.", "id": f"p{i}"} for i in range(60)]
    (tmp_path / "mine" / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "policy.yaml").write_text(POLICY)
    Record(RunFolder.create(tmp_path / "demo"), "demo")
    return tmp_path


@pytest.fixture
def releasing(shop: Path) -> Callable[..., Release]:
    """The release of a shop by the names of its start, hacked and cured adapter."""
    lab = Lab.load("tiny-llama", progress=Progress())

    def make(hacked: str = BAD, cured: str = GOOD, policy: str = "policy.yaml") -> Release:
        told = {"start": START, "hacked": hacked, "cured": cured}
        trained = {name: Trained(adapter=shop / folder / "roles" / "policy", note=f"a test's {name}",
                                 evaluations={"mine": {"n": 1}})
                   for name, folder in told.items()}
        return Release(RunFolder(shop / "demo"), lambda: lab, trained, read_policy(str(shop / policy)), PROMPTS,
                       Progress())

    return make


def run(release: Release) -> dict[str, Any]:
    for _, work in release.parts():
        work()
    return release.result()


def kinds(release: Release) -> list[str]:
    return [entry.kind for entry in release.registry.entries()]


def test_the_hacked_adapter_is_refused_and_the_cured_one_is_active_at_the_end(releasing) -> None:
    release = releasing()
    found = run(release)
    assert found["hacked"] == {"verdict": "fail"} and found["cured"] == {"verdict": "pass", "stopped_by": []}
    assert found["rollback"]["ok"] and 0 <= found["rollback"]["seconds"] < 60 and found["verify"] == {"ok": True}
    assert kinds(release) == ["init", "add", "add", "add", "promote", "promote", "rollback", "promote"]
    story = release.story()
    assert story["active"] == "cured" and list(story["refusals"]) == ["hacked"]
    assert "hacked is not promoted to helpdesk: the gate says fail" in story["refusals"]["hacked"]
    assert story["rollback"]["to"] == "start" and story["rollback"]["reproduced"] == story["rollback"]["n"] == 2


def test_a_cured_adapter_that_the_gate_blocks_stays_out_and_the_row_is_named(releasing) -> None:
    release = releasing(hacked=GOOD, cured=BAD)
    found = run(release)
    assert found["cured"]["verdict"] == "fail"
    assert [(row["suite"], row["metric"]) for row in found["cured"]["stopped_by"]] == [("mine", "usual")]
    story = release.story()
    assert story["active"] == "start" and story["rollback"]["to"] == "base" and found["rollback"]["ok"]
    assert [entry.body["gate"] for entry in release.registry.entries() if entry.kind == "promote"] == [None, None]
    assert "kept out by mine usual; start stays active" in release.closing_words()[0]


def test_a_hacked_adapter_that_passes_is_said_to_pass_and_still_not_promoted(releasing) -> None:
    release = releasing(hacked=GOOD, cured=BAD)
    assert run(release)["hacked"] == {"verdict": "pass"}
    hacked = release.registry.state().find("hacked").digest
    assert hacked not in [entry.body["digest"] for entry in release.registry.entries() if entry.kind == "promote"]


def test_the_active_model_is_asked_once_for_both_candidates(releasing) -> None:
    release = releasing()
    run(release)
    hacked, cured = release.verdict("hacked"), release.verdict("cured")
    assert (hacked["answers_written"], cured["answers_written"]) == (120, 60)
    assert 0 < cured["tokens_written"] <= 60 * 6 < hacked["tokens_written"] + 1 <= 120 * 6 + 1


def test_what_made_an_adapter_is_in_the_ledger(releasing, shop: Path) -> None:
    release = releasing()
    release.fill()
    made = release.registry.state().find("cured").made
    assert made.seeds == (3,) and made.evaluations["mine"] == {"n": 1}
    assert (made.run["kind"], made.run["status"]) == ("sft", "finished"), "of its stage, not of the demo around it"
    assert made.commit == json.loads((shop / GOOD / "record.json").read_text())["commit"]
    assert (shop / "demo" / "release" / "demo-only-key.pem").stat().st_mode & 0o077 == 0


@pytest.mark.parametrize("cured", [GOOD, BAD])
def test_a_release_that_was_stopped_anywhere_goes_on(releasing, monkeypatch, cured: str) -> None:
    release = releasing(hacked=BAD if cured == GOOD else GOOD, cured=cured)

    def stopped(*given: Any, **more: Any) -> Any:
        raise KeyboardInterrupt

    for name, replaced in (("add_adapter", "fill"), ("gate_with", "gate"), ("check_transcripts", "rehearse")):
        with monkeypatch.context() as patch:
            patch.setattr(release_module, name, stopped)
            work = getattr(release, replaced)
            with pytest.raises(KeyboardInterrupt):
                work("cured") if replaced == "gate" else work()
        if replaced == "fill":
            release.fill()
        elif replaced == "gate":
            release.gate("hacked"), release.gate("cured"), release.promote()
    release.rehearse(), release.verify()
    found = release.result()
    assert found["rollback"]["ok"] and found["verify"]["ok"]
    assert release.story()["active"] == ("cured" if cured == GOOD else "start")
    assert kinds(release).count("rollback") == 2, "the one that was stopped counts too"


def test_a_changed_byte_is_no_proof_and_no_well_kept_registry(releasing, monkeypatch) -> None:
    release = releasing()
    rollback = Registry.rollback

    def then_damaged(self: Registry, *given: Any, **more: Any) -> Any:
        entry = rollback(self, *given, **more)
        path = self.folder / "active" / "helpdesk" / "adapter_model.safetensors"
        content = path.read_bytes()
        path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
        return entry

    monkeypatch.setattr(Registry, "rollback", then_damaged)
    found = run(release)
    assert not found["rollback"]["ok"] and found["verify"] == {"ok": False}
    assert "NOT proven, registry DAMAGED" in release.closing_words()[0]


def test_a_registry_that_lets_a_blocked_candidate_in_is_an_error(releasing, monkeypatch) -> None:
    release = releasing()
    release.fill(), release.gate("hacked"), release.gate("cured")
    monkeypatch.setattr(Registry, "promote", lambda self, *given, **more: None)
    with pytest.raises(RunError, match="promoted hacked, which the gate blocks"):
        release.promote()


def test_a_small_pass_asks_fewer_prompts_and_its_policy_says_so(releasing) -> None:
    release = releasing()
    release.policy = release.policy.first(4)
    release.fill(), release.gate("hacked")
    record = release.verdict("hacked")
    assert record["policy"] == "policy.yaml on 4 prompts a suite" and record["rows"][0]["n"] == 4
    assert not record["blocks"], "four prompts have no power to block"
    assert release.policy.policy.prompts == {"mine": 4}
