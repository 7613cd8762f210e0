"""The demo end to end on a tiny model: every stage, the summary, going on after a stop, and the same numbers twice."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from rlhflab.errors import RunError
from rlhflab.progress import Progress
from rlhflab.registry.records import sha256_of
from rlhflab.registry.store import Registry
from rlhflab.runs.demo import run_demo
from rlhflab.runs.evaluating import evaluate
from rlhflab.runs.inspecting import sample_answers
from rlhflab.runs.targets import target_of
from rlhflab.suites import suite_named
from rlhflab.train.checkpoint import Checkpoints

STAGES = ["load", "evaluate base", "sft", "evaluate sft", "preferences", "reward", "dpo", "evaluate dpo", "ppo",
          "evaluate ppo", "hacking: start", "hacking: hack", "hacking: targeted", "hacking: unbiased", "hacking: judge",
          "release: registry", "release: gate hacked", "release: gate cured", "release: promote", "release: rollback",
          "release: verify", "release: judge"]
MEASURES = {"gold", "right", "abstention_recall", "over_refusal", "confident_wrong", "format", "words"}


def quick(out: Path | None, **options: Any) -> Path:
    return run_demo(**{"model": "tiny-llama", "scenario": "helpdesk", "seed": 0, "out": out, "resume": None,
                       "quick": True, "progress": Progress(), **options})


@pytest.fixture(scope="module", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Answers that the gate keeps are this module's own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RLHFLAB_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return quick(tmp_path_factory.mktemp("demo") / "run")


def numbers(folder: Path) -> dict[str, Any]:
    """The summary without what depends on the clock."""
    summary = json.loads((folder / "summary.json").read_text())
    for stage in summary["stages"]:
        del stage["seconds"]
    for step in [*summary["ppo"]["steps"], *(step for arm in summary["hacking"]["arms"].values()
                                             for step in arm["steps"])]:
        del step["seconds"]
    del summary["release"]["rollback"]["seconds"]
    return {key: value for key, value in summary.items() if key not in (
        "seconds", "hacking_seconds", "release_seconds", "peak_memory_gb", "hacking")} | {
        "hacking": {key: value for key, value in summary["hacking"].items() if key != "registered"}}


def test_the_summary_has_every_field_a_reader_counts_on(demo: Path) -> None:
    summary = json.loads((demo / "summary.json").read_text())
    assert [stage["name"] for stage in summary["stages"]] == STAGES
    assert set(summary["policies"]) == {"base", "sft", "dpo", "ppo"}
    for name, policy in summary["policies"].items():
        for mode in ("greedy", "sampled"):
            assert set(policy[mode]) >= MEASURES
            assert set(policy[mode]["gold"]) == {"mean", "low", "high", "n"}
        assert (policy["versus_sft"] is None) == (name in ("base", "sft"))
    assert set(summary["reward_model"]) >= {"accuracy", "length_only", "gold_order"}
    assert len(summary["ppo"]["steps"]) == 2
    assert set(summary["ppo"]["steps"][0]) == {
        "step", "proxy", "gold", "kl", "kl_k3", "entropy", "words", "stop_rate", "seconds"}
    assert summary["ppo"]["steps"][0]["kl"] == 0, "the policy starts as its reference"
    assert summary["peak_memory_gb"] > 0 and summary["machine"] and summary["versions"]["torch"]


def test_the_hacking_part_reuses_the_demos_own_start_and_unbiased_policy(demo: Path) -> None:
    summary = json.loads((demo / "summary.json").read_text())
    hacking = summary["hacking"]
    assert summary["hacking_seconds"] > 0 and set(hacking["arms"]) == {"start", "hack", "targeted", "unbiased"}
    assert {row["id"] for row in [*hacking["criteria"], *hacking["not_evaluated"]]} == set("1234578")
    assert hacking["arms"]["unbiased"]["rates"] == summary["policies"]["ppo"]["sampled"]
    assert hacking["arms"]["start"]["rates"] == summary["policies"]["sft"]["sampled"]
    assert not (demo / "hacking" / "seed-0" / "unbiased").exists()
    assert "Reward hacking: the hack, the alarm, the cure" in (demo / "report.html").read_text()


def test_the_demo_ends_with_a_release_that_is_told_in_summary_and_report(demo: Path) -> None:
    summary = json.loads((demo / "summary.json").read_text())
    release = summary["release"]
    assert set(release) == {"hacked", "cured", "rollback", "verify"} and summary["release_seconds"] > 0
    assert set(release["hacked"]) == {"verdict"} and set(release["cured"]) == {"verdict", "stopped_by"}
    assert release["rollback"]["ok"] and set(release["rollback"]) == {"ok", "seconds"} and release["verify"]["ok"]
    gate = next(row for row in summary["hacking"]["criteria"] if row["id"] == "8")
    assert gate["passed"] == (release["hacked"]["verdict"] != "pass")
    assert not any(row["id"] == "8" for row in summary["hacking"]["not_evaluated"])
    registry = Registry(demo / "registry", key=demo / "release" / "demo-only-key.pem")
    parents = {name: registry.state().find(name).made.parents for name in ("start", "hacked", "cured")}
    start = registry.state().find("start").digest
    assert parents == {"start": (), "hacked": (start,), "cured": (start,)}
    made = {name: registry.state().find(name).made for name in parents}
    assert all(each.run["status"] == "finished" and each.run["ended"] for each in made.values())
    read = {name: {each["key"]: each["sha256"] for each in made[name].data} for name in parents}
    pairs = sha256_of(demo / "hacking/seed-0/pairs-targeted.jsonl")
    assert len(read["start"]["data"]) == 64 and read["cured"]["reward.0.data"] == pairs
    assert set(read["cured"]) == {"data", "reward.0.data", "reward.0.start.data", "reward.0.start.start.data"}
    assert "Release: the gate, the ledger, the way back" in (demo / "report.html").read_text()


def test_the_folder_is_whole_by_itself(demo: Path) -> None:
    for name in ("config.yaml", "record.json", "summary.json", "report.html", "measures.json", "data/pairs.jsonl",
                 "cards/data.md", "cards/annotators.md", "cards/model.md", "evaluation/ppo.jsonl", "ppo/rollouts.jsonl",
                 "sft/roles/policy/adapter_model.safetensors", "reward/roles/reward/head.safetensors"):
        assert (demo / name).stat().st_size > 0, name
    assert json.loads((demo / "record.json").read_text())["status"] == "finished"


def test_the_same_seed_gives_the_same_numbers_also_after_a_stop(
        demo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    keep = Checkpoints.keep

    def stopped_after_one_step_of_dpo(self: Checkpoints, step: int, *rest: Any) -> None:
        keep(self, step, *rest)
        if self.folder.parent.name == "dpo":
            raise KeyboardInterrupt

    monkeypatch.setattr(Checkpoints, "keep", stopped_after_one_step_of_dpo)
    with pytest.raises(KeyboardInterrupt):
        quick(tmp_path / "run")
    assert json.loads((tmp_path / "run" / "record.json").read_text())["status"] == "stopped"
    assert len((tmp_path / "run" / "dpo" / "metrics.jsonl").read_text().splitlines()) == 1
    monkeypatch.setattr(Checkpoints, "keep", keep)
    quick(None, resume=tmp_path / "run")
    assert numbers(tmp_path / "run") == numbers(demo)
    assert not (tmp_path / "run" / "dpo" / "checkpoints").exists(), "a finished stage needs none"


def test_another_seed_gives_other_numbers(demo: Path, tmp_path: Path) -> None:
    assert numbers(quick(tmp_path / "run", seed=1))["policies"] != numbers(demo)["policies"]


def test_a_folder_that_exists_is_refused_and_left_alone(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    with pytest.raises(RunError, match="exists already"):
        quick(tmp_path / "mine")
    assert list((tmp_path / "mine").iterdir()) == []


def test_resuming_what_is_no_demo_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="is not the folder of a demo"):
        quick(None, resume=tmp_path)


def test_a_trained_policy_can_be_sampled_and_evaluated(demo: Path, tmp_path: Path) -> None:
    adapter = demo / "ppo" / "roles" / "policy"
    rows = sample_answers(model="tiny-llama", adapter=adapter, prompts="helpdesk", n=2, samples=2, temperature=1.0,
                          max_new_tokens=4, seed=0)
    assert len(rows) == 4 and {row["finish"] for row in rows} <= {"stop", "length"}
    suite = suite_named("release_notes").first(3)
    folder = evaluate(target_of(f"tiny-llama+{adapter}"), [suite], out=tmp_path / "out", progress=Progress())
    results = json.loads((folder / "results.json").read_text())["suites"]["release_notes"]
    assert results["gold"]["estimate"]["n"] == 6 and results["right"]["unscored"] > 0, "one greedy and one drawn answer"
