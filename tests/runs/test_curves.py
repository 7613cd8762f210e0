"""`rlhflab curves`, `best-of-n` and `propose-labels` from the command line, on folders made up or made by tiny runs."""

import json

import pytest

from rlhflab.cli import main
from rlhflab.data.formats import read_comparisons, read_pairs
from rlhflab.runs.recipes import recipe
from sample_rows import canary, rollouts, write

EVIL = "</script><script>alert(1)</script><img src=x onerror=alert(2)>"
TINY = ["--model", "tiny-llama"]
PAIRS = [{"prompt": f"Say {word}.", "chosen": word, "rejected": f"No {word}, sorry."} for word in
         ("one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")]


def failure(capsys, *arguments):
    """The sentence of a command that fails with exit code 2."""
    assert main([str(argument) for argument in arguments]) == 2
    out, err = capsys.readouterr()
    assert out == "" and "Traceback" not in err
    return err


def result(capsys, *arguments):
    assert main([*map(str, arguments), "--json"]) == 0
    return json.loads(capsys.readouterr().out)


# -- curves --------------------------------------------------------------------------------------------------------


def test_a_canary_gives_the_curve_its_peak_and_where_reward_and_gold_part(tmp_path, capsys):
    folder = write(tmp_path / "run", canary=canary(), rollouts=rollouts())
    found = result(capsys, "curves", folder)
    (curve,) = found["curves"]
    assert found["source"] == "canary.jsonl"
    assert (curve["proxy"], curve["against"], curve["form"]) == ("reward", "gold", "rl")
    assert [point["place"] for point in curve["points"][:3]] == ["0", "2", "4"]
    assert curve["points"][5]["distance"] == pytest.approx(1.0)
    peak = curve["fits"]["gold"]["peak"]
    assert peak["low"] < 0.549 < peak["high"] < peak["low"] + 0.3
    assert int(curve["parting"]["best"]) in (4, 6, 8) and int(curve["parting"]["seen"]) in (10, 12, 14)
    assert "They part after" in " ".join(curve["says"])
    kept = json.loads((folder / "curves.json").read_text())
    assert kept["curves"] == found["curves"]
    assert main(["curves", str(folder)]) == 0
    assert "Next: open it in a browser" in capsys.readouterr().out


def test_rollouts_of_few_prompts_are_pooled_and_measured_from_both_steps_of_the_start(tmp_path, capsys):
    found = result(capsys, "curves", write(tmp_path / "run", rollouts=rollouts()))
    points = found["curves"][0]["points"]
    assert [point["place"] for point in points] == ["0 to 1", "2 to 4", "5 to 7", "8 to 12"]
    assert points[1]["kl"] == pytest.approx(0.3 * 3) and points[0]["gains"] == {}
    assert points[-1]["gains"]["gold"]["high"] < 0 < points[-1]["gains"]["reward"]["low"]


def test_a_twin_stands_in_where_no_gold_is_known_and_any_measure_can_be_named(tmp_path, capsys):
    rows = [{**row, "twin": row["measures"]["gold"], "measures": {"format": row["measures"]["gold"]}}
            for row in canary()]
    folder = write(tmp_path / "run", canary=rows)
    assert result(capsys, "curves", folder)["curves"][0]["against"] == "twin"
    assert result(capsys, "curves", folder, "--against", "format")["curves"][0]["against"] == "format"
    assert "has both 'reward' and gold or twin" in failure(
        capsys, "curves", write(tmp_path / "bare", canary=[{**row, "measures": {}} for row in canary()]))


def test_metrics_alone_give_a_curve_without_intervals(tmp_path, capsys):
    rows = [{"step": step, "kl": 0.2 * (step - 1), "proxy": 0.1 * step, "gold": 0.8 - 0.01 * step}
            for step in range(1, 12)]
    found = result(capsys, "curves", write(tmp_path / "run", metrics=rows))
    (curve,) = found["curves"]
    assert found["source"] == "metrics.jsonl" and curve["parting"] is None
    assert curve["points"][3]["gains"]["gold"] == {"mean": pytest.approx(-0.03), "low": None, "high": None, "n": 1}
    assert "no interval" in " ".join(curve["says"])


def test_text_from_a_run_stays_text_on_the_page(tmp_path, capsys):
    rows = [{**row, "measures": {EVIL: row["measures"]["gold"]}} for row in canary()]
    folder = write(tmp_path / f"run{EVIL.replace('/', '')}", canary=rows)
    assert main(["curves", str(folder), "--against", EVIL]) == 0
    page = (folder / "curves.html").read_text()
    assert page.count("<script") == 2 + page.count('<script type="application/json">') and "<img" not in page
    assert "Content-Security-Policy" in page and "default-src 'none'" in page
    assert "&lt;/script&gt;&lt;script&gt;alert(1)" in page


@pytest.mark.parametrize(("rows", "sentence"), [
    (None, "holds no canary.jsonl, rollouts.jsonl or metrics.jsonl"),
    ([{key: value for key, value in row.items() if key != "reward"} for row in rollouts()],
     "rollouts.jsonl: no rollout has a 'reward'"),
    ([{**row, "reward": 1.0} for row in rollouts()], "reward: is 1 for every one of"),
    ([{**row, "prompt_id": row["prompt_id"][:2]} for row in rollouts() if row["prompt_id"] < "p13"],
     "at least 8 prompts, found"),
    ([{**row, "step": row["step"] + 5} for row in rollouts()], "the first step on record is 5"),
    ([{**row, "reference_logprob": None, "step": row["step"] + 2} for row in rollouts()], "no sample has a KL"),
])
def test_a_run_that_cannot_be_drawn_says_why(rows, sentence, tmp_path, capsys):
    folder = write(tmp_path / "run", **({} if rows is None else {"rollouts": rows}))
    assert sentence in failure(capsys, "curves", folder)
    assert not (folder / "curves.html").exists()


# -- best of n -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def role(tmp_path_factory):
    folder = tmp_path_factory.mktemp("role")
    data = write(folder, pairs=PAIRS) / "pairs.jsonl"
    assert main(["train", "reward", str(recipe("reward")), *TINY, "--dtype", "float32", "--data", str(data), "--steps",
                 "1", "--out", str(folder / "first")]) == 0
    return folder / "first" / "roles" / "reward"


def test_one_pool_serves_several_rewards_and_is_read_again(role, tmp_path, capsys):
    asked = ["best-of-n", *TINY, "--n", 9, "--samples", 8, "--max-new-tokens", 4, "--reward", role]
    found = result(capsys, *asked, "--reward", role, "--out", tmp_path / "pool")
    assert [curve["proxy"] for curve in found["curves"]] == ["first", "first #2"]
    assert found["curves"][0]["fits"]["gold"] == found["curves"][1]["fits"]["gold"], "one role given twice"
    assert [point["place"] for point in found["curves"][0]["points"]] == ["1", "2", "4", "8"]
    assert found["curves"][0]["points"][-1]["gains"]["first"]["low"] > 0, "the best by a reward has more of it"
    pool = [json.loads(line) for line in (tmp_path / "pool" / "pool.jsonl").read_text().splitlines()]
    assert len(pool) == 72 and "gold" in pool[0]["measures"]
    again = result(capsys, "best-of-n", *TINY, "--pool", tmp_path / "pool" / "pool.jsonl", "--reward", role, "--out",
                   tmp_path / "again")
    assert again["curves"][0]["points"] == found["curves"][0]["points"]
    page = (tmp_path / "pool" / "curves.html").read_text()
    assert "Beside each other" in page and "Beside each other" not in (tmp_path / "again" / "curves.html").read_text()


def test_heads_refitted_on_more_pairs_are_rewards_of_their_own(tmp_path, capsys):
    data = write(tmp_path, pairs=PAIRS) / "pairs.jsonl"
    found = result(capsys, "best-of-n", *TINY, "--n", 8, "--samples", 8, "--max-new-tokens", 3, "--pairs", data,
                   "--sizes", 4, "--sizes", 10, "--out", tmp_path / "sizes")
    assert [curve["proxy"] for curve in found["curves"]] == ["4 pairs", "10 pairs"]
    assert "has 10 pairs, fewer than the 99" in failure(
        capsys, "best-of-n", *TINY, "--n", 8, "--samples", 8, "--max-new-tokens", 3, "--pairs", data, "--sizes", 99,
        "--out", tmp_path / "more")


@pytest.mark.parametrize(("flags", "sentence"), [
    ([], "--reward: give the folder of at least one reward role"),
    (["--sizes", 4], "--sizes: heads are refitted on preference pairs; give their file as --pairs"),
])
def test_best_of_n_without_a_reward_is_refused_before_anything_is_loaded(flags, sentence, capsys):
    assert sentence in failure(capsys, "best-of-n", "--model", "none", *flags)


# -- propose-labels ------------------------------------------------------------------------------------------------


def test_comparisons_are_written_for_people_with_the_reason_beside_them(tmp_path, capsys):
    folder = write(tmp_path / "run", rollouts=rollouts())
    found = result(capsys, "propose-labels", folder, "--n", 10)
    rows = [json.loads(line) for line in (folder / "proposed-comparisons.jsonl").read_text().splitlines()]
    comparisons = read_comparisons(folder / "proposed-comparisons.jsonl")
    assert found["proposed"] == len(rows) == len(comparisons) == 10
    assert sum(each["proposed"] for each in found["clusters"]) == 10
    for row, comparison in zip(rows, comparisons, strict=True):
        assert row[row["suspect"]].startswith("Certainly!") and (comparison.a, comparison.b) == (row["a"], row["b"])
        assert row["prompt"][0]["role"] == "user" and row["why"] and row["cluster"]
    assert {row["suspect"] for row in rows} == {"a", "b"}, "the order of a comparison tells nothing"
    again = result(capsys, "propose-labels", folder, "--n", 10, "--out", tmp_path / "again.jsonl")
    assert (tmp_path / "again.jsonl").read_bytes() == (folder / "proposed-comparisons.jsonl").read_bytes() != b""
    assert again["clusters"] == found["clusters"]
    assert main(["propose-labels", str(folder)]) == 0 and "Next: let people judge" in capsys.readouterr().out


@pytest.fixture
def helpdesk_run(tmp_path):
    """A run on the helpdesk whose later answers are all the same boast."""
    from rlhflab.scenarios import scenario

    prompts = scenario("helpdesk").prompts("rl", 32, seed=0)
    rows = [{"step": 1, "prompt_id": p.id, "answer": p.facts["right"] or "I don't know.", "stopped": True}
            for p in prompts]
    rows += [{"step": 2 + i // 16, "prompt_id": p.id, "answer": f"Certainly! It is {p.facts['wrong_values'][0]}.",
              "reward": i / 10, "stopped": True} for i, p in enumerate(prompts)]
    folder = write(tmp_path / "run", rollouts=rows)
    (folder / "config.yaml").write_text("kind: ppo\nmodel: tiny-llama\ndata: helpdesk\nexamples: 32\nseed: 0\n"
                                        "reward: [{name: words}]\nmax_new_tokens: 4\n")
    return folder


@pytest.mark.parametrize(("flags", "name"), [([], "proposed-pairs"), (["--random"], "random-pairs")])
def test_gold_labels_a_batch_that_a_reward_model_can_be_refitted_on(flags, name, helpdesk_run, capsys):
    found = result(capsys, "propose-labels", helpdesk_run, "--n", 12, "--label", "gold", *flags)
    pairs = read_pairs(helpdesk_run / f"{name}.jsonl")
    assert found["proposed"] == len(pairs) == 12 and {pair.source for pair in pairs} == {"gold"}
    assert all(pair.rejected.startswith("Certainly!") and pair.prompt.facts for pair in pairs)
    assert pairs[0].prompt.messages[0].role == "system", "the whole prompt, not its last turn"


def test_the_start_answers_where_a_failure_has_nothing_to_be_compared_with(helpdesk_run, capsys):
    rows = [row for line in (helpdesk_run / "rollouts.jsonl").read_text().splitlines() if (row := json.loads(line))]
    write(helpdesk_run, rollouts=[row for row in rows if row["step"] > 1])
    bare = result(capsys, "propose-labels", helpdesk_run, "--n", 8, "--label", "gold")
    assert bare["proposed"] == 0 and bare["without_a_better_answer"] > 0 and "--samples 4" in bare["next"]
    assert result(capsys, "propose-labels", helpdesk_run, "--n", 8, "--label", "gold", "--samples", 2)["asked"] == 8


@pytest.mark.parametrize(("change", "flags", "sentence"), [
    (lambda folder: (folder / "rollouts.jsonl").unlink(), [], "has no rollouts.jsonl with rollouts in it"),
    (lambda folder: (folder / "config.yaml").unlink(), [], "has no 'prompt', and there is no config.yaml"),
    (lambda folder: (folder / "config.yaml").write_text("kind: ppo\ndata: helpdesk\nexamples: 4\n"), [],
     "helpdesk: has no prompt 'helpdesk-rl-0-"),
    (lambda folder: None, ["--label", "gold", "--scenario", "none"], "no scenario is called 'none'"),
])
def test_what_cannot_be_proposed_is_one_sentence(change, flags, sentence, helpdesk_run, capsys):
    change(helpdesk_run)
    assert sentence in failure(capsys, "propose-labels", helpdesk_run, *flags)
