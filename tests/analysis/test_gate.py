"""Verdicts of the gate on paired values worked by hand, and its record for continuous integration."""

from collections.abc import Sequence
from typing import Any
from xml.etree import ElementTree

import pytest

from rlhflab.analysis.gate import RowVerdict, judge_row, judged, overall
from rlhflab.analysis.gate_files import junit, markdown
from rlhflab.analysis.suite_results import Paired, measured, paired
from rlhflab.suites import GatePolicy, PolicyRow, read_policy, suite_named


def pairs_of(after: Sequence[float], before: Sequence[float]) -> Paired:
    return Paired([float(each) for each in after], [float(each) for each in before], list(range(len(after))), 0,
                  len(before))


def changed(ups: int, downs: int, n: int) -> Paired:
    """`n` rates of which some rose from 0 to 1 and some fell."""
    rest = n - ups - downs
    return pairs_of([1] * ups + [0] * downs + [1] * rest, [0] * ups + [1] * downs + [1] * rest)


def row(**keys: Any) -> PolicyRow:
    return PolicyRow(**{"suite": "s", "metric": "m", "margin": 0.1, "discordance": 0.15, **keys})


@pytest.mark.parametrize(("ups", "downs", "verdict", "words"), [
    (0, 0, "pass", "a loss of 0.1 is ruled out"),
    (18, 18, "pass", "changed by +0.000 [-0.042, +0.042] on 240 items (higher is better)"),
    (10, 28, "inconclusive", "a loss of 0.1 is neither ruled out nor shown"),  # -.075, and 1.645 se is .041
    (0, 48, "fail", "the loss is larger than the margin of 0.1"),  # -.20, and 1.645 se is .042
    (48, 0, "pass", "a loss of 0.1 is ruled out"),
])
def test_a_rate_passes_fails_or_leaves_it_open(ups: int, downs: int, verdict: str, words: str) -> None:
    found = judge_row(row(), changed(ups, downs, 240), "higher")
    assert found.verdict == verdict and words in found.reason
    assert found.blocking and found.blocks == (verdict != "pass")
    assert judge_row(row(), changed(downs, ups, 240), "lower").verdict == verdict


def test_a_row_says_what_could_have_been_seen() -> None:
    found = judge_row(row(), changed(18, 18, 240), "higher")
    assert found.discordance == pytest.approx(0.15) and found.design_power == pytest.approx(0.9907, abs=1e-3)
    assert found.power == pytest.approx(found.design_power) and found.p == 1
    assert found.detectable == pytest.approx((7.849 * 0.15 / 247.849) ** 0.5, rel=1e-3)


def test_a_row_without_the_power_to_block_only_warns_and_says_so() -> None:
    found = judge_row(row(), changed(0, 20, 60), "higher")
    assert found.verdict == "fail" and found.declared_blocking and not found.blocking and not found.blocks
    assert "only warns: an equally good candidate would pass with a chance of 0.64 on 60 prompts" in found.reason


def test_unscored_answers_of_the_candidate_do_not_turn_a_blocking_row_into_a_warning() -> None:
    few = changed(0, 0, 100)._replace(before_prompts=240, unscored=140)
    found = judge_row(row(), few, "higher")
    assert found.blocks and found.verdict == "inconclusive" and "only 100 of the 240 prompts" in found.reason


def test_a_relative_margin_is_a_share_of_the_active_mean() -> None:
    words = [10.0, 20.0, 30.0] * 80
    longer = pairs_of([value * 1.1 for value in words], words)
    assert judge_row(row(relative=True, margin=0.15), longer, "lower").verdict == "pass"
    failed = judge_row(row(relative=True, margin=0.05), longer, "lower")
    assert failed.verdict == "fail" and failed.change == pytest.approx(0.1) and "margin of 5%" in failed.reason


def test_new_failures_are_counted_though_as_many_were_mended() -> None:
    safety = row(test="no_new_failures", discordance=0.02)
    # Exact 95 % bounds of 144: no failure .021, seven .089, nine .107.
    assert judge_row(safety, changed(0, 0, 144), "higher").high == pytest.approx(1 - 0.05 ** (1 / 144))
    assert judge_row(safety, changed(30, 7, 144), "higher").verdict == "pass"
    found = judge_row(safety, changed(30, 9, 144), "higher")
    assert found.verdict == "inconclusive" and found.change == 9 / 144
    assert "9 new failures on 144 prompts" in found.reason
    assert judge_row(safety, changed(0, 40, 144), "higher").verdict == "fail"


def test_what_must_be_exact_fails_with_the_first_that_is_not() -> None:
    exact = PolicyRow(suite="s", metric="m", test="exact")
    assert judge_row(exact, pairs_of([1, 1, 1], [1, 1, 1]), "higher").verdict == "pass"
    failed = judge_row(exact, pairs_of([1, 0, 1], [1, 0, 1]), "higher")
    assert failed.blocks and failed.reason == "1 of 3 items are not as they must be"


def test_p_is_adjusted_inside_each_suite_and_the_worst_blocking_row_decides() -> None:
    policy = GatePolicy(rows=(row(), row(metric="n"), row(suite="t"), row(suite="t", metric="n", blocking=False)))
    found = judged(policy, [changed(0, 6, 240), changed(0, 0, 240), changed(6, 0, 240), changed(0, 90, 240)],
                   ["higher"] * 4)
    # McNemar on 6 against 0 is 2 / 64; Holm doubles it in the first suite; in the second it is the larger of two.
    assert [rows.p for rows in found[:3]] == pytest.approx([2 / 32, 1, 2 / 64])
    assert [rows.verdict for rows in found] == ["pass", "pass", "pass", "fail"] and overall(found) == "pass"
    assert overall([judge_row(row(), changed(0, 48, 240), "higher"), *found]) == "fail"


def test_an_item_is_paired_by_prompt_and_sample_and_dropped_where_one_has_no_value() -> None:
    def rows(*values: int | None) -> list[dict[str, Any]]:
        return [{"prompt_id": f"p{i // 2}", "sample": i % 2, "values": {"m": None if value is None else float(value)}}
                for i, value in enumerate(values)]

    found = paired(list(reversed(rows(1, 0, 1, None))), rows(0, 0, None, None), "m")
    assert (found.after, found.before, found.prompts) == ([0, 1], [0, 0], ["p0", "p0"])
    assert (found.unscored, found.before_prompts) == (2, 1)
    both = measured(rows(1, 0, 1, None), ["m"])["m"]
    assert both["unscored"] == 1 and both["estimate"]["n"] == 3 and both["estimate"]["mean"] == pytest.approx(2 / 3)
    assert measured(rows(None), ["m"])["m"] == {"estimate": None, "unscored": 1}


@pytest.mark.parametrize("name", ["gate.yaml", "demo.yaml"])
def test_each_blocking_row_that_comes_along_has_the_power_to_block(name: str) -> None:
    policy = read_policy(name).policy
    for each in policy.rows:
        suite = suite_named(each.suite).first(policy.prompts.get(each.suite))
        n = len(suite.prompts) // (4 if each.metric == "flips" else 1)  # half are plain, and not all of those are right
        found = judge_row(each, changed(0, 0, n), suite.better(each.metric))
        assert found.blocking == each.blocking, f"{each.suite} {each.metric}: {found.design_power}"


def test_the_record_cannot_break_out_of_its_xml_or_its_table() -> None:
    nasty = 'a | b <script> "\x00 \n# c'
    rows = [{**flat(judge_row(row(), changed(0, 48, 240), "higher")), "reason": nasty},
            {**flat(judge_row(row(blocking=False), changed(0, 48, 240), "higher")), "metric": nasty},
            flat(judge_row(row(), changed(0, 0, 240), "higher"))]
    record = {"verdict": "fail", "candidate": nasty, "active": "b", "policy": "p", "base": "c", "dtype": "float32",
              "confidence": 0.95, "rows": rows}
    suite = ElementTree.fromstring(junit(record))[0]
    assert (suite.get("tests"), suite.get("failures"), suite.get("skipped")) == ("3", "1", "1")
    failure = suite[0].find("failure")
    assert failure is not None and failure.get("message", "").startswith("a | b <script>")
    table = [line for line in markdown(record).splitlines() if line.startswith("|")]
    assert len(table) == 5 and len({line.replace("\\|", "").count("|") for line in table}) == 1
    assert "<script" not in markdown(record)


def flat(found: RowVerdict) -> dict[str, Any]:
    return {**{key: getattr(found, key) for key in found.__slots__}, "blocks": found.blocks}
