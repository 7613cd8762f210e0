"""What `benchmarks/against_peers.py` says: our side on a tiny model, the checks, the JSON object and the page.

The peers are not installed here; their workers are only run by the benchmark itself.
"""

import importlib
import json
import math
import subprocess
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
sys.path.append(str(ROOT / "benchmarks"))

checks, compare, install, jobs, ours, prepare, report, sums = (
    importlib.import_module(f"peers.{name}")
    for name in ("checks", "compare", "install", "job", "ours", "prepare", "report", "sums"))


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    folder = tmp_path_factory.mktemp("prepared")
    return prepare.prepare(prepare.Order(model="tiny-llama", folder=str(folder), count=4, prompt_tokens=120,
                                         answer_tokens=24, rank=4, rows=rows_file(folder)))


def rows_file(folder):
    path = folder / "given.jsonl"
    path.write_text("".join(json.dumps({
        "prompt": f"{'long ' * (60 if i == 2 else 1)}question {i}", "response_a": f"yes {i}",
        "response_b": "no " * (i + 1), "label": "tie" if i == 1 else "ab"[i % 2]}) + "\n" for i in range(6)))
    return str(path)


@pytest.fixture
def job(prepared, tmp_path, monkeypatch):
    monkeypatch.setattr(ours, "matmul_gflops", partial(ours.matmul_gflops, seconds=0.01, windows=1))
    return jobs.Job(task="dpo", precision="fp32", model=prepared["model"], roles=prepared["roles"],
                    rows=prepared["rows"], batch=2, new_tokens=6, check=True, answers=str(tmp_path / "answers.json"))


def test_rows_are_cut_and_a_tie_is_no_row(prepared):
    rows = jobs.read_rows(prepared["rows"])
    assert [row["id"] for row in rows] == ["given:1", "given:3", "given:4", "given:5"]
    assert [row["chosen"] for row in rows] == ["yes 0", "yes 2", "no no no no", "yes 4"]
    assert rows[1]["prompt"].startswith("<|im_start|>user\n") and "long" in rows[1]["prompt"]
    assert len(rows[1]["prompt"].replace("<|im_start|>", "1").replace("<|im_end|>", "2")) == 119, (
        "a byte a token, and the cut took a space with it")


def test_the_adapters_move_the_base(job):
    model, chat = ours.load(job)
    ours.start_policy(model, job)
    trees = [each.tree for each in ours.pairs_of(job, chat)]
    base, policy = (ours.logprob_sums(model, trees, role) for role in (None, "policy"))
    assert max(abs(x - y) for x, y in zip(base, policy, strict=True)) > 0.01


def test_our_dpo_takes_the_rows_in_their_order_and_says_what_it_read(job):
    result = ours.dpo(job)
    assert result.items == 4 and result.seconds > 0 and result.gflop > 0 and result.peak_gflops > 0
    assert result.peak_gb >= result.loaded_gb > 0
    start = result.facts.lists["summed log-prob of an answer before the first step"]
    assert len(start) == 2 * 2 and all(x < 0 for x in start)
    assert result.facts.exact["scored tokens"] == sum(
        len(row[side]) + 1 for row in jobs.read_rows(job.rows) for side in ("chosen", "rejected")), "a byte a token"
    backwards = Path(job.rows).with_name("backwards.jsonl")
    backwards.write_text("".join(json.dumps(row) + "\n" for row in jobs.read_rows(job.rows)[::-1]))
    other = ours.dpo(replace(job, rows=str(backwards)))
    assert other.facts.exact["token ids"] != result.facts.exact["token ids"]
    assert other.facts.numbers != result.facts.numbers, "the last step is on other rows"


def test_our_reward_ppo_and_generation_say_what_was_done(job):
    reward = ours.reward(replace(job, task="reward"))
    start, end = reward.facts.scores.values()
    assert len(start) == len(end) == 4 and start != end
    assert reward.facts.numbers["loss after the last step"] == pytest.approx(sums.reward_loss(end))
    ppo = ours.ppo(replace(job, task="ppo"))
    assert (ppo.items, ppo.facts.exact["episodes"], ppo.facts.exact["new tokens"]) == (4, 4, 24)
    written = ours.write(replace(job, task="generate"))
    answers = json.loads(Path(job.answers).read_text())
    assert written.items == sum(map(len, answers)) and len(answers) == 4


def test_losses_from_sums_by_hand():
    # beta h = .1 x ((-2 + 1) - (-5 + 2)) = .2; the second pair has h = 0
    assert sums.dpo_loss([-2, -5, -1, -1], [-1, -2, -1, -1]) == pytest.approx(
        (math.log(1 + math.exp(-0.2)) + math.log(2)) / 2)
    assert sums.reward_loss([3, 1]) == pytest.approx(math.log(1 + math.exp(-2)))


def test_sides_that_agree_within_the_tolerance_did_the_same_work():
    mine = jobs.Facts(exact={"token ids": "ab"}, numbers={"loss": 0.6931}, lists={"sums": [-100.0, -50.0]},
                      scores={"score": [3.0, 0.001]})
    theirs = jobs.Facts(exact={"token ids": "ab"}, numbers={"loss": 0.6932}, lists={"sums": [-100.01, -50.04]},
                        scores={"score": [3.0, 0.002]})
    found = checks.compare(mine, theirs, precision="fp32")
    assert all(check.ok for check in found.values())
    assert found["sums"] == (-50.0, -50.04, 1e-3), "of a list the worst stands for all"
    assert found["score"].tolerance == pytest.approx(1e-3 * math.sqrt(4.5) / 0.002, rel=1e-3)


def test_what_bf16_rounds_is_compared_all_together():
    mine, theirs = jobs.Facts(rounded={"sums": [-100.0, -5.0]}), jobs.Facts(rounded={"sums": [-100.2, -5.3]})
    assert not checks.compare(mine, theirs, precision="fp32")["sums"].ok
    assert checks.compare(mine, theirs, precision="bf16") == {"sums, all together": (-105.0, -105.5, 1e-2)}
    assert not checks.compare(mine, jobs.Facts(), precision="bf16")["sums"].ok


@pytest.mark.parametrize(("mine", "theirs"), [
    (jobs.Facts(exact={"token ids": "ab"}), jobs.Facts(exact={"token ids": "ac"})),
    (jobs.Facts(exact={"token ids": "ab"}), jobs.Facts()),
    (jobs.Facts(numbers={"loss": 0.70}), jobs.Facts(numbers={"loss": 0.69})),
    (jobs.Facts(numbers={"loss": math.nan}), jobs.Facts(numbers={"loss": math.nan})),
    (jobs.Facts(lists={"sums": [-100.0, -50.0]}), jobs.Facts(lists={"sums": [-100.0, -50.1]})),
    (jobs.Facts(lists={"sums": [-100.0, math.nan]}), jobs.Facts(lists={"sums": [-100.0, -50.0]})),
    (jobs.Facts(lists={"sums": [-100.0]}), jobs.Facts(lists={"sums": [-100.0, -50.0]})),
    (jobs.Facts(scores={"score": [1.0, 0.0]}), jobs.Facts(scores={"score": [1.0, 0.01]})),
])
def test_sides_that_differ_are_told(mine, theirs):
    assert not all(check.ok for check in checks.compare(mine, theirs, precision="fp32").values())


def made(task="dpo", *, ours_seconds=(1.0, 2.0, 4.0), check=None, precision="bf16", our_precision="bf16"):
    def result(seconds, gb):
        return jobs.Result(seconds=seconds, items=8, loaded_gb=0.5, peak_gb=gb, gflop=100, peak_gflops=200)

    return report.Comparison(task=task, precision=precision, our_precision=our_precision,
                             ours=[result(seconds, 2) for seconds in ours_seconds], peer=[result(8, 6)] * 3,
                             checks=check or {"token ids": checks.Check("ab", "ab", 0.0)})


def test_the_json_object_has_the_shape_that_readers_rely_on():
    content = report.as_json([made()])
    assert json.loads(json.dumps(content)) == {"dpo": {
        "precision": "bf16", "repetitions": 3, "speed_ratio": {"median": 4.0, "low": 2.0, "high": 8.0},
        "memory_ratio": {"median": 3.0, "low": 3.0, "high": 3.0}, "peak_share": 0.25,
        "same_work": {"ok": True, "checks": {"token ids": {"ours": "ab", "peer": "ab", "tolerance": 0.0}}}}}


def test_another_precision_is_named_and_does_not_stand_for_the_task():
    named = made("ppo", precision="fp32", our_precision="bf16")
    content = report.as_json([made("ppo", precision="fp32", our_precision="fp32"), named])
    assert content["ppo"]["precision"] == "fp32" and list(content) == ["ppo"]
    assert report.entry(named)["precision"] == "fp32, ours bf16"
    assert "fp32, ours bf16" in report.table([named]) and "trains its critic in full" in report.table([named])


def test_all_runs_in_turn_and_prints_nothing_but_json(monkeypatch, tmp_path, capsys):
    ran = []

    def run_module(python, module, asked, done):
        done.write_text(json.dumps({"model": "m", "roles": "r", "rows": str(asked.parent / "rows.jsonl")}))

    def run_worker(python, module, job, folder):
        ran.append((module, job.task, job.precision, job.check))
        ours_runs = module == "peers.ours"
        return jobs.Result(seconds=1.0 if ours_runs else 5.0, items=10, loaded_gb=0.1, peak_gb=1.0, gflop=1.0,
                           peak_gflops=2.0, facts=jobs.Facts(exact={"token ids": "ab"}))

    monkeypatch.setattr(compare, "run_module", run_module)
    monkeypatch.setattr(compare, "run_worker", run_worker)
    monkeypatch.setattr(compare, "environment", lambda name, cache: Path(name))
    monkeypatch.setattr(sys, "argv", ["against_peers.py", "all", "--repetitions", "2", "--json", "--work",
                                      str(tmp_path)])
    importlib.import_module("against_peers").main()
    said = capsys.readouterr()
    content = json.loads(said.out)
    assert list(content) == ["dpo", "reward", "ppo", "generate"] and "| ppo | fp32, ours bf16 |" in said.err
    assert content["ppo"]["speed_ratio"] == {"median": 5.0, "low": 5.0, "high": 5.0}
    first = [(module.removeprefix("peers."), task, precision) for module, task, precision, check in ran if check]
    assert first == [("ours", "dpo", "bf16"), ("trl_pairs", "dpo", "bf16"), ("ours", "reward", "bf16"),
                     ("trl_pairs", "reward", "bf16"), ("ours", "ppo", "fp32"), ("trl_ppo", "ppo", "fp32"),
                     ("ours", "ppo", "bf16"), ("ours", "generate", "bf16"), ("hf_generate", "generate", "bf16"),
                     ("ours", "generate", "fp32"), ("hf_generate", "generate", "fp32")]
    assert len(ran) == 2 * len(first), "checked once, timed twice"


def test_a_check_that_fails_is_in_the_json_and_in_the_table():
    failing = made(check={"loss": checks.Check(0.7, 0.6, 1e-3)})
    assert report.as_json([failing])["dpo"]["same_work"]["ok"] is False
    assert "| NO |" in report.table([failing]) and "DIFFERS" in report.checks_table([failing])
    assert not replace(failing, checks={}).ok, "nothing checked is nothing shown"


def test_the_page_keeps_its_words_and_gets_the_new_table(tmp_path):
    page = tmp_path / "performance.md"
    page.write_text("# Mine\n\n<!-- measured: all -->\nold\n<!-- end: all -->\n\nwords\n")
    facts = {"commit": "abc", "machine": "two cores", "versions": {"torch": "2"}}
    for name in ("all", "scale", "scale"):
        report.write_page(page, name, f"| {name} |", facts, "command")
    text = page.read_text()
    assert "old" not in text and text.startswith("# Mine") and "words" in text
    assert text.count("| all |") == text.count("| scale |") == 1 and text.count("commit abc, two cores; torch 2.") == 2


def test_the_page_of_the_repository_has_a_place_for_the_table():
    assert report.replaced((ROOT / "docs/performance.md").read_text(), "all", "new").count("new") >= 1
    assert "<!-- measured: all -->" in (ROOT / "docs/performance.md").read_text()


def test_pins_win_over_the_constraints_file():
    assert install.constraints("# words\ntrl==1.16.0\ntorch==2.13.0\n", ["trl==1.12.0"]) == "torch==2.13.0\n"


def test_help_names_every_subcommand():
    said = subprocess.run([sys.executable, ROOT / "benchmarks/against_peers.py", "--help"], capture_output=True,
                          text=True, check=True)
    assert "{dpo,reward,ppo,generate,all,scale,recipe}" in said.stdout
