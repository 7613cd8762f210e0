"""`benchmarks/promote_kills.py` in small: a change that is killed leaves the old state or the new one."""

import importlib
import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))

promote_kills = importlib.import_module("promote_kills")


def test_a_change_that_is_killed_leaves_the_old_state_or_the_new_one(tmp_path):
    outcome = promote_kills.run(tmp_path, kills=3, seed=0)
    assert outcome.problems == [] and outcome.kills == 3
    assert outcome.seen["the old state"] + outcome.seen["the new state"] == 3


def test_a_link_that_leads_elsewhere_would_be_told(tmp_path):
    registry, outcome = promote_kills.new_registry(tmp_path), promote_kills.Outcome()
    before = list(registry.state().deployment("prod"))
    link = registry.folder / "active/prod"
    link.unlink()
    link.symlink_to("../adapters")
    promote_kills.look(registry, before, outcome)
    assert len(outcome.problems) == 2 and "active/prod" in outcome.problems[0]
