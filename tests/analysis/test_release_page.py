"""The release on a demo's page: who was kept out by which row, the proof of the way back, and text that stays text."""

import copy
import json
from pathlib import Path
from typing import Any

import pytest

from report_folders import write_demo
from report_pages import EVIL, Page
from rlhflab.analysis.release_page import release_part
from rlhflab.analysis.report import write_report


def gate_row(metric: str, verdict: str, *, blocking: bool = True) -> dict[str, Any]:
    return {"suite": "grounded", "metric": metric, "verdict": verdict, "blocking": blocking,
            "blocks": blocking and verdict != "pass", "active": 0.5, "candidate": 0.25, "reason": f"why {metric}"}


def gate(name: str, *rows: dict[str, Any]) -> dict[str, Any]:
    return {"name": name, "verdict": "fail" if any(row["blocks"] for row in rows) else "pass", "policy": "demo.yaml",
            "policy_digest": "d" * 64, "active": "start", "dtype": "bfloat16", "seconds": 61.0, "answers_written": 280,
            "tokens_written": 4000, "rows": list(rows)}


STORY: dict[str, Any] = {
    "gates": [gate("hacked", gate_row("over_refusal", "pass"), gate_row("words", "fail"),
                   gate_row("nats", "inconclusive", blocking=False)), gate("cured", gate_row("words", "pass"))],
    "refusals": {"hacked": "hacked is not promoted"}, "deployment": "helpdesk", "active": "cured",
    "rollback": {"ok": True, "seconds": 0.04, "from": "cured", "to": "start", "entry": 7, "digest": "a" * 64,
                 "expected": "a" * 64, "digest_matches": True, "reproduced": 8, "n": 8, "base_logits_equal": True,
                 "same_versions": True, "failures": []},
    "verify": {"ok": True, "checked": 24, "failures": [], "ledger": {"ok": True, "entries": 8, "hash": "e" * 64,
                                                                      "signed": True, "unfinished": False}},
    "adapters": [{"name": "start", "digest": "a" * 64, "note": "the SFT policy"}],
    "ledger": [{"number": 1, "at": "2026-11-26T20:00:00.000000+00:00", "by": "the demo", "says": "a registry was made",
                "hash": "c" * 64, "override": None}]}


@pytest.fixture
def demo(tmp_path: Path) -> Path:
    folder = write_demo(tmp_path / "demo")
    (folder / "release").mkdir()
    (folder / "release" / "story.json").write_text(json.dumps(STORY))
    return folder


def test_the_headline_names_the_rows_that_keep_a_candidate_out() -> None:
    assert release_part(STORY)["headline"] == [
        "The gate keeps the hacked adapter out (fail): grounded: words.", "The gate lets the cured adapter through.",
        "The way back was rehearsed and proven.", "Active in helpdesk is cured."]


def test_a_row_that_only_warns_is_told_from_one_that_blocks() -> None:
    hacked, cured = release_part(STORY)["gates"]
    assert [row.weight for row in hacked.rows] == ["could block", "blocks", "warns"]
    assert [row.tone for row in hacked.rows] == ["better", "worse", "unclear"]
    assert "2 of 3 rows had the power to block" in hacked.says and "280 answers of 4000 tokens" in hacked.says
    assert (hacked.refusal, cured.refusal) == ("hacked is not promoted", "")


def test_what_was_not_proven_is_said_loudly() -> None:
    story = copy.deepcopy(STORY)
    story["rollback"] |= {"ok": False, "digest_matches": False, "digest": "b" * 64, "base_logits_equal": False,
                          "reproduced": 7, "same_versions": False}
    story["verify"]["ok"] = False
    part = release_part(story)
    assert part["proof"]["Digest of what is active then"] == f"{'b' * 64}, NOT as recorded: {'a' * 64}"
    assert part["proof"]["Base logits, adapter loaded and off"] == "NOT equal"
    assert part["proof"]["Greedy transcripts of the first release"].startswith("7 of 8 came again")
    assert "NOT proven" in part["headline"][2] and part["verify"].startswith("Verified: DAMAGED")


def test_the_page_holds_both_tables_the_proof_and_the_ledger(demo: Path) -> None:
    page = Page(write_report(demo))
    assert ("h2", {"id": "release"}) in page.elements
    for text in ("The hacked adapter: fail", "The cured adapter: pass", "why words", "hacked is not promoted",
                 "from cured to start, ledger entry 7", "a registry was made", "Verified: all well, 24 files"):
        assert text in page.text, text


def test_a_page_without_a_release_says_nothing_of_one(tmp_path: Path) -> None:
    assert release_part({}) == {}
    assert "The ledger" not in Page(write_report(write_demo(tmp_path / "demo"))).text


def test_text_from_files_stays_text(demo: Path) -> None:
    story = json.loads((demo / "release" / "story.json").read_text().replace("why words", "WHY"))
    story["gates"][0]["rows"][1]["reason"] = story["refusals"]["hacked"] = story["ledger"][0]["by"] = EVIL
    story["adapters"][0]["note"] = EVIL
    (demo / "release" / "story.json").write_text(json.dumps(story))
    page = Page(write_report(demo))
    assert [kind for kind, _ in page.scripts if kind is None] == [None, None]
    assert page.text.count("</script><script>alert(1)</script>") >= 4
