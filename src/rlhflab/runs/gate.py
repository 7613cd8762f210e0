"""`rlhflab gate`: a candidate and the active model answer the suites of a policy, and the record of the verdict.

What a verdict follows from is in `analysis/gate.py`.
"""

import time
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rlhflab import __version__
from rlhflab.analysis.gate import judged, overall
from rlhflab.analysis.gate_files import junit, markdown
from rlhflab.analysis.suite_results import paired
from rlhflab.data.formats import finite
from rlhflab.progress import Progress
from rlhflab.runs.evaluating import Checks, Respondent, check_checks
from rlhflab.runs.folder import RunFolder
from rlhflab.runs.lab import Lab
from rlhflab.runs.targets import Target, refuse_other_base
from rlhflab.suites import Suite, suite_named
from rlhflab.suites.policy import ReadPolicy

FORMAT = "rlhflab-gate-1"
"""Of gate.json; docs/methods/gate.md lists its keys."""


def run_gate(candidate: Target, active: Target, policy: ReadPolicy, *, out: Path | None, device: str = "auto",
             dtype: str = "auto", progress: Progress) -> tuple[Path, dict[str, Any]]:
    """The new folder with gate.json, gate.md, junit.xml and answers.jsonl, and the record in gate.json.

    ModelError where the two are of different bases.
    """
    policy_suites(policy)  # a mistake in a suite is said before a model is loaded
    refuse_other_base(candidate, active)
    lab = Lab.load(active.model, dtype=dtype, device=device, progress=progress)
    folder = RunFolder.named("gate") if out is None else RunFolder.create(out)
    return folder.path, gate_with(lab, candidate, active, policy, folder)


def gate_with(lab: Lab, candidate: Target, active: Target, policy: ReadPolicy, folder: RunFolder) -> dict[str, Any]:
    """The record that `run_gate` writes, on a base that is loaded and holds no roles; it holds none afterwards."""
    began = time.perf_counter()
    suites = policy_suites(policy)
    checks = Checks(lab.model)
    checks.make(suites.values())
    two = {who: Respondent(lab, target, role=who, checks=checks)
           for who, target in (("active", active), ("candidate", candidate))}
    if two["candidate"].key == two["active"].key:
        two["candidate"].kept = two["active"].kept  # One model on both sides is asked once.
    alone = {name for name in suites if {row.test for row in policy.policy.rows if row.suite == name} == {"exact"}}
    rows = {(who, name): [] if who == "active" and name in alone else _answered(respondent, suite, who, folder)
            for name, suite in suites.items() for who, respondent in two.items()}
    pairs = [paired(rows["candidate", row.suite], rows["active", row.suite] or rows["candidate", row.suite], row.metric)
             for row in policy.policy.rows]
    verdicts = judged(policy.policy, pairs, [suites[row.suite].better(row.metric) for row in policy.policy.rows])
    verdict, identity = overall(verdicts), {who: each.record() for who, each in two.items()}
    lab.drop_roles()
    record: dict[str, Any] = finite({
        "format": FORMAT, "verdict": verdict, "blocks": verdict != "pass",
        "at": datetime.now(UTC).isoformat(timespec="seconds"), "version": __version__,
        "candidate": candidate.name, "candidate_digest": identity["candidate"]["adapter_digest"],
        "active": active.name, "active_digest": identity["active"]["adapter_digest"],
        **{key: identity["active"][key] for key in ("base", "base_digest", "dtype")},
        "policy": policy.name, "policy_digest": policy.digest, "confidence": policy.policy.confidence,
        "seconds": round(time.perf_counter() - began, 2), "answers_written": sum(each.written for each in two.values()),
        "tokens_written": sum(each.tokens_written for each in two.values()),
        "rows": [{**asdict(row), "blocks": row.blocks} for row in verdicts]})
    folder.write_json("gate.json", record)
    folder.write("gate.md", markdown(record))
    folder.write("junit.xml", junit(record))
    return record


def policy_suites(policy: ReadPolicy) -> dict[str, Suite]:
    """The suites of a policy by the name its rows give them, cut to its prompts; each metric and check exists."""
    suites = {}
    for row in policy.policy.rows:
        if row.suite not in suites:
            beside = policy.folder / row.suite
            named = str(beside) if beside.exists() else row.suite
            suites[row.suite] = suite_named(named).first(policy.policy.prompts.get(row.suite))
            check_checks(suites[row.suite])
        suites[row.suite].better(row.metric)
    return suites


def _answered(respondent: Respondent, suite: Suite, who: str, folder: RunFolder) -> list[dict[str, Any]]:
    """Rows of one of the two, written down."""
    answered = respondent.rows(suite)
    for row in answered:
        folder.append("answers.jsonl", finite({"who": who, **row}))
    return answered
