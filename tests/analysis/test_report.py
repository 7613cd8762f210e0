"""The report: everything in it is shown, escaped and self-contained. All numbers here are made up."""

import json
import re
from pathlib import Path

import pytest

from report_folders import (
    MEASURES,
    evaluation,
    interval,
    summary,
    write_demo,
    write_rows,
    write_run,
)
from report_pages import EVIL, Page, typed
from rlhflab.analysis.page import markdown
from rlhflab.analysis.report import render, write_report
from rlhflab.analysis.report_data import Change, Measure, curves, load, paired_changes, read_rows, side_by_side
from rlhflab.analysis.verdict import verdict
from rlhflab.core.stats import Estimate
from rlhflab.errors import DataError, RunError

SECTIONS = ("verdict", "gold", "numbers", "changes", "goodhart", "curves", "lengths", "answers", "perplexity",
            "reward-model", "cards", "machine")


@pytest.fixture
def demo(tmp_path: Path) -> Path:
    return write_demo(tmp_path / "demo")


def test_every_section_of_a_finished_demo_is_present_in_order(demo: Path) -> None:
    page = Page(write_report(demo))
    headings = [attributes["id"] for tag, attributes in page.elements if tag == "h2"]
    assert headings == list(SECTIONS)
    assert "Missing:" not in page.text


def test_untrusted_text_stays_text_wherever_it_stands(demo: Path) -> None:
    content = summary()
    content["machine"] = content["model"] = EVIL
    content["policies"][EVIL] = content["policies"]["ppo"]
    content["perplexity"][EVIL] = 3.0
    content["reward_model"][EVIL] = interval(0.5, 7)
    content["stages"].append({"name": EVIL, "seconds": EVIL, "tokens": EVIL})
    (demo / "summary.json").write_text(json.dumps(content))
    (demo / "measures.json").write_text(json.dumps([{"name": "gold", "says": EVIL, "better": "higher"}]))
    write_rows(demo / "evaluation" / "evil.jsonl", [
        row | {"policy": EVIL, "answer": EVIL, "reason": EVIL, "prompt": [{"role": EVIL, "content": EVIL}]}
        for row in evaluation("ppo")])
    write_rows(demo / "sft" / "metrics.jsonl", [{"step": 1, EVIL: 2.0}, {"step": 2, EVIL: 1.0}])
    (demo / "sft" / "config.yaml").write_text(EVIL)
    (demo / "cards" / "model.md").write_text(f"# {EVIL}\n\n{EVIL}\n\n[go](javascript:alert(1)) ![x](http://evil.example)")
    page = Page(write_report(demo))
    assert [kind for kind, _ in page.scripts if kind is None] == [None, None]  # plotly and the page's own, no third
    assert not any(tag == "img" or name.startswith("on") for tag, attributes in page.elements for name in attributes)
    assert page.text.count("</script><script>alert(1)</script>") >= 10


def test_figure_data_cannot_close_its_script_element_nor_speak_html_to_plotly(demo: Path) -> None:
    content = summary()
    content["policies"][EVIL] = content["policies"]["ppo"]
    (demo / "summary.json").write_text(json.dumps(content))
    page = Page(write_report(demo))
    assert all("<" not in text for kind, text in page.scripts if kind == "application/json")
    assert "<script" not in json.dumps(page.figures)
    assert "&lt;script" in json.dumps(page.figures)


def test_the_page_loads_nothing(demo: Path) -> None:
    page = Page(write_report(demo))
    loads = [(tag, name) for tag, attributes in page.elements for name in attributes
             if name in ("src", "srcset", "data") or (name == "href" and tag == "link")]
    assert loads == []
    style = (Path(__file__).parents[2] / "src/rlhflab/analysis/templates/report.css").read_text()
    assert "url(" not in style and "@import" not in style
    policy = next(a["content"] for tag, a in page.elements if a.get("http-equiv") == "Content-Security-Policy")
    assert policy and policy.startswith("default-src 'none'")
    assert policy.count("'sha256-") == 2 and "script-src 'unsafe" not in policy


def test_plotly_is_put_in_once(demo: Path) -> None:
    page = Page(write_report(demo))
    assert sum(len(text) > 1_000_000 for kind, text in page.scripts if kind is None) == 1


def test_every_interval_is_followed_by_its_count(demo: Path) -> None:
    page = Page(write_report(demo))
    hovers = [trace["hovertemplate"] for drawing in page.figures for trace in drawing["data"]]
    labels = [attributes.get("aria-label") or "" for _, attributes in page.elements]
    everything = typed("\n".join([page.text, *hovers, *labels]))
    intervals = re.findall(r"\[-?[\d.]+, -?[\d.]+\](, n = \d+)?", everything)
    assert len(intervals) > 100
    assert all(intervals)


def test_every_mean_of_the_summary_stands_in_the_table(demo: Path) -> None:
    text = Page(write_report(demo)).text
    for by_policy in MEASURES.values():
        for mean in by_policy.values():
            assert (f"{mean:.3f}" if mean < 10 else f"{mean:.1f}") in text


def test_an_interval_with_zero_inside_is_no_change_and_one_without_is(demo: Path) -> None:
    text = Page(write_report(demo)).text
    assert "DPO shows no clear change of gold from SFT: +0.020 [-0.020, 0.060], n = 191, an interval that incl" in text
    assert "PPO lowered gold below SFT: -0.260 [-0.300, -0.220], n = 193." in text
    assert "SFT raised gold over Base" in text
    assert "reward rose while gold fell" in text


def test_a_fall_of_a_measure_that_should_be_high_is_worse() -> None:
    fall = Estimate(-0.3, -0.4, -0.2, 50)
    for better, reading in (("higher", "worse"), ("lower", "better"), (None, "moved")):
        change = Change(policy="ppo", start="sft", measure=Measure(name="m", better=better), change=fall)
        assert change.direction == reading


def test_changes_pair_prompts_and_average_their_samples(tmp_path: Path) -> None:
    # Prompt a: (0.4 + 0.6)/2 = 0.5 -> 0.9, prompt b: 0.2 -> 0.8: changes 0.4 and 0.6, mean 0.5 of two prompts.
    before = [("a", 0.4), ("a", 0.6), ("b", 0.2), ("only-before", 0.0)]
    for policy, found in (("base", before), ("sft", [("a", 0.9), ("b", 0.8)])):
        write_rows(tmp_path / "evaluation" / f"{policy}.jsonl", [
            {"policy": policy, "mode": "sampled", "prompt_id": name, "measures": {"gold": gold, "right": None}}
            for name, gold in found])
    (change,) = paired_changes(load(tmp_path))
    assert change.change.mean == pytest.approx(0.5)
    assert change.change.n == 2


def test_alarms_are_marked_where_reward_and_gold_are_drawn(demo: Path) -> None:
    assert "the alarms:" not in render(load(demo))
    (demo / "ppo" / "summary.json").write_text(json.dumps({"fired": {"length_drift": 7, "kl_budget": 9}}))
    assert "Dashed, the alarms: length drift at 7; kl budget at 9." in render(load(demo))
    assert [shape["x0"] for figure in Page(write_report(demo)).figures
            if "yaxis2" in figure["layout"] for shape in figure["layout"].get("shapes", ())] == [7, 9]


def test_an_unfinished_demo_says_what_is_missing_and_shows_the_rest(demo: Path) -> None:
    content = summary()
    content["stages"] = content["stages"][:1]
    content["policies"] = {name: content["policies"][name] for name in ("base", "sft")}
    del content["ppo"], content["reward_model"], content["perplexity"]
    (demo / "summary.json").write_text(json.dumps(content))
    for name in ("reward", "dpo", "ppo"):
        (demo / name / "metrics.jsonl").unlink()
    for name in ("dpo", "ppo"):
        (demo / "evaluation" / f"{name}.jsonl").unlink()
    page = Page(write_report(demo))
    assert "Missing: Reward model, DPO, PPO, evaluation of DPO, evaluation of PPO." in page.text
    assert {"verdict", "gold", "curves", "answers"} <= page.ids
    assert not {"goodhart", "perplexity", "reward-model"} & page.ids


@pytest.mark.parametrize("lost", ["summary.json", "evaluation", "cards", "sft", "ppo"])
def test_any_one_missing_input_leaves_a_report(demo: Path, lost: str) -> None:
    path = demo / lost
    if path.is_dir():
        for file in path.iterdir():
            file.unlink()
    else:
        path.unlink()
    assert {"curves", "machine"} - {"machine" if lost == "summary.json" else ""} <= Page(write_report(demo)).ids


def test_nulls_and_unknown_bounds_are_not_shown_as_numbers(demo: Path) -> None:
    content = summary()
    content["policies"]["ppo"]["greedy"]["format"] = None
    content["policies"]["dpo"]["greedy"]["gold"] = {"mean": 0.5, "low": float("-inf"), "high": None, "n": 1}
    content["perplexity"]["dpo"] = None
    (demo / "summary.json").write_text(json.dumps(content))
    text = Page(write_report(demo)).text
    assert "(interval unknown), n = 1" in text
    assert re.findall(r"\b(None|nan|inf)\b", text) == []


def test_prompts_shown_are_drawn_by_the_seed_and_answered_by_every_policy(demo: Path) -> None:
    data = load(demo)
    drawn = side_by_side(data)
    assert [[answer.policy for answer in answers] for answers in drawn] == [["base", "sft", "dpo", "ppo"]] * 8
    assert drawn == side_by_side(load(demo))
    (demo / "summary.json").write_text(json.dumps(summary() | {"seed": 4}))
    assert [row[0].prompt_id for row in side_by_side(load(demo))] != [row[0].prompt_id for row in drawn]


def test_a_single_run_gets_curves_settings_and_samples(tmp_path: Path) -> None:
    page = Page(write_report(write_run(tmp_path / "ppo-7f3a")))
    assert {"verdict", "goodhart", "curves", "answers", "machine"} == page.ids & set(SECTIONS)
    assert "Answer at 2." in page.text and "Answer at 10." in page.text
    assert "learning_rate: 0.0005" in page.text and "versions.torch" in page.text
    assert "Missing:" not in page.text


def test_a_metric_absent_at_a_step_is_absent_and_not_zero() -> None:
    found = curves([{"step": 1, "kl": None, "loss": 2.0}, {"step": 5, "kl": 0.25}, {"step": 6, "kl": float("nan")}])
    assert found == {"loss": [(1.0, 2.0)], "kl": [(5.0, 0.25)]}


def test_a_half_written_last_line_is_left_out_and_a_broken_one_is_named(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n{"ste')
    assert read_rows(path) == [{"step": 1}]
    path.write_text('{"step": 1}\n{"ste\n{"step": 3}\n')
    with pytest.raises(DataError, match=r"metrics\.jsonl:2: is not JSON"):
        read_rows(path)


def test_a_folder_that_is_no_run_is_refused_and_left_as_it_was(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="expected a demo or a run"):
        write_report(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_report_replaces_the_last_one_and_leaves_no_other_file(demo: Path) -> None:
    (demo / "report.html").write_text("old")
    before = {path.name for path in demo.iterdir()}
    assert write_report(demo).read_text() != "old"
    assert {path.name for path in demo.iterdir()} == before


def test_cards_lose_html_and_images_and_keep_tables_below_the_pages_headings() -> None:
    html = markdown("# Card\n\n<b>x</b> ![a](http://evil.example/a.png)\n\n| a |\n|---|\n| 1 |\n")
    assert "<h4>Card</h4>" in html and "<table>" in html
    assert "<b>" not in html and "<img" not in html


def test_headings_figures_and_tables_speak_to_a_screen_reader(demo: Path) -> None:
    page = Page(write_report(demo))
    assert [tag for tag, _ in page.elements].count("h1") == 1
    plots = [attributes for _, attributes in page.elements if attributes.get("class") == "plot"]
    assert len(plots) == len(page.figures) > 30
    assert all(plot["role"] == "img" and len(plot["aria-label"] or "") > 20 for plot in plots)
    cards = page.text.index("The data card")
    assert cards > 0
    assert all(attributes.get("scope") for tag, attributes in page.elements if tag == "th" and attributes)


def test_a_verdict_without_paired_answers_says_so(tmp_path: Path) -> None:
    (tmp_path / "summary.json").write_text(json.dumps({"policies": {"sft": {"greedy": {"gold": interval(0.8, 96)}}}}))
    (sentence,) = verdict(load(tmp_path), [], {})
    assert typed(sentence) == (
        "SFT reached gold 0.800 [0.760, 0.840], n = 96; no paired comparison with Base was made.")
