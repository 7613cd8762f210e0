"""Run files become run folders; each recipe runs; a mistake is one sentence and exit code 2."""

import json
from collections.abc import Mapping
from hashlib import sha256
from pathlib import Path

import pytest

from rlhflab.cli import main
from rlhflab.config import KINDS, SampledRun, read_run
from rlhflab.runs.recipes import recipe
from rlhflab.runs.sources import data_read

SMALL = ["--model", "tiny-llama", "--dtype", "float32", "--steps", "2", "--batch", "4", "--examples", "16"]
PAIRS = [{"prompt": f"Say {word}.", "chosen": word, "rejected": f"No {word}, sorry."} for word in
         ("one", "two", "three", "four", "five", "six", "seven", "eight")]


def jsonl(path: Path, rows: list[Mapping[str, object]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_every_recipe_trains_two_steps(tmp_path: Path) -> None:
    start: list[str] = []
    for name in ("sft", "reward", "dpo", "ppo", "rloo", "best_of_n", "online_dpo"):
        kind = read_run(None, recipe(name)).kind
        reward = ["--reward", json.dumps([{"name": "role", "path": str(tmp_path / "reward/roles/reward")}])]
        flags = [*SMALL, *start, *(reward if issubclass(KINDS[kind], SampledRun) else [])]
        assert main(["train", kind, str(recipe(name)), *flags, "--out", str(tmp_path / name)]) == 0
        steps = [json.loads(line) for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()]
        assert [step["step"] for step in steps] == [1, 2]
        start = ["--start", str(tmp_path / "sft" / "roles" / "policy")]
    trained = {name: {path.name for path in (tmp_path / name / "roles").iterdir()} for name in ("ppo", "rloo")}
    assert trained == {"ppo": {"policy", "value"}, "rloo": {"policy"}}


@pytest.mark.parametrize("kind", list(KINDS))
def test_every_recipe_is_valid_and_says_its_kind(kind: str) -> None:
    assert read_run(kind, recipe(kind)).kind == kind


@pytest.mark.parametrize(("kind", "rows"), [
    ("sft", [{"messages": [{"role": "user", "content": row["prompt"]},
                           {"role": "assistant", "content": row["chosen"]}]} for row in PAIRS]),
    ("reward", PAIRS), ("dpo", PAIRS),
    ("dpo", [{"prompt": [{"role": "user", "content": row["prompt"]}],
              "chosen": [{"role": "assistant", "content": row["chosen"]}],
              "rejected": [{"role": "assistant", "content": row["rejected"]}]} for row in PAIRS]),
    ("ppo", [{"prompt": row["prompt"]} for row in PAIRS]),
    ("best_of_n", [{"prompt": row["prompt"]} for row in PAIRS]),
    ("online_dpo", [{"prompt": row["prompt"]} for row in PAIRS]),
])
def test_each_method_trains_on_the_users_own_jsonl(kind: str, rows: list[Mapping[str, object]], tmp_path: Path) -> None:
    data = jsonl(tmp_path / "mine.jsonl", rows)
    samples = issubclass(KINDS[kind], SampledRun)
    more = ["--reward", '[{"name": "words", "most": 5}]', "--max_new_tokens", "4"] if samples else []
    command = ["train", kind, str(recipe(kind)), *SMALL, "--data", str(data), *more, "--out", str(tmp_path / "run")]
    assert main(command) == 0
    assert list((tmp_path / "run" / "roles").glob("*/adapter_model.safetensors"))
    record = json.loads((tmp_path / "run" / "record.json").read_text())
    assert record["data"] == [{"key": "data", "name": str(data), "sha256": sha256(data.read_bytes()).hexdigest()}]


def test_what_a_scenario_made_has_a_digest_that_follows_from_the_settings() -> None:
    one, same, other = (data_read(read_run("sft", recipe("sft"), ["--model", "tiny-llama", "--seed", seed]))
                        for seed in ("1", "1", "2"))
    assert [(each["key"], each["name"], len(each["sha256"])) for each in one] == [("data", "helpdesk", 64)]
    assert one == same != other
    assert data_read(read_run("reward", recipe("reward"), ["--model", "tiny-llama"])) == []


def test_the_resolved_run_is_saved_and_reads_back(tmp_path: Path) -> None:
    out = tmp_path / "run"
    assert main(["train", "sft", str(recipe("sft")), *SMALL, "--optimizer.learning_rate", "0.002",
                 "--out", str(out)]) == 0
    again = read_run("sft", out / "config.yaml")
    assert again.optimizer.learning_rate == 0.002 and again.model == "tiny-llama"


@pytest.mark.parametrize(("arguments", "sentence"), [
    (["--model", "no-such-model"], "no-such-model: no such model; known names are smollm2-135m"),
    (["--btach", "4"], "btach: unknown key; a sft run knows batch,"),
    (["--batch", "0"], "batch: input should be greater than or equal to 1, found 0"),
    (["--lora.rank", "many"], "lora.rank: input should be a valid integer"),
    (["--data", "nowhere.jsonl"], "nowhere.jsonl"),
    (["--data", "nowhere"], "nowhere: no such data file, and no scenario of that name; scenarios are devtools, "),
    (["--max_length", "40"], "tokens, over max_length 40"),
    (["--max_length", "99999"], "max_length: 99999 tokens do not fit the context of tiny-llama"),
    (["--start", "nowhere"], "nowhere: is not an adapter folder"),
])
def test_bad_input_is_one_sentence_and_exit_code_2(
        arguments: list[str], sentence: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["train", "sft", str(recipe("sft")), *SMALL, *arguments, "--out", str(tmp_path / "run")]
    assert main(command) == 2
    error = capsys.readouterr().err
    assert sentence in error and "Traceback" not in error


@pytest.mark.parametrize(("rows", "sentence"), [
    ("", "mine.jsonl"),
    ('{"messages": [{"role": "user", "content": "Hi"}]}\n', "mine.jsonl:1"),
    ('{"messages": []}\n', "mine.jsonl:1: 'messages'"),
    ('{"prompt": "a", "answer": "b"}\nnot json\n', "mine.jsonl:2"),
])
def test_a_bad_row_is_named_by_file_and_line(
        rows: str, sentence: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "mine.jsonl").write_text(rows)
    command = ["train", "sft", str(recipe("sft")), *SMALL, "--data", str(tmp_path / "mine.jsonl")]
    assert main([*command, "--out", str(tmp_path / "run")]) == 2
    assert sentence in capsys.readouterr().err


@pytest.mark.parametrize(("flags", "sentence"), [
    (["--top_k", "50"], "top_k must be 0 where a run samples"),
    (["--top_p", "0.9"], "top_p must be 1 where a run samples"),
    (["--lora.dropout", "0.1"], "lora.dropout must be 0 where a run samples"),
    (["--gold", "helpdesk", "--data", "bare.jsonl"], "bare.jsonl: row bare:1: has no 'facts', by which gold: helpdesk"),
    (["--reward", '[{"name": "nope"}]'], "no reward source is called 'nope'"),
    (["--reward", '[{"name": "callable", "function": "scorers:never"}]'], "32 of 32 answers could not be scored"),
])
def test_ppo_refuses_what_would_break_its_ratio_or_its_reward(
        flags: list[str], sentence: str, tmp_path: Path, capsys: pytest.CaptureFixture[str],
        monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    jsonl(tmp_path / "bare.jsonl", [{"prompt": "Hi"}])
    command = ["train", "ppo", str(recipe("ppo")), *SMALL, "--batch", "8", "--samples", "4", "--max_new_tokens", "4"]
    assert main([*command, *flags, "--out", str(tmp_path / "run")]) == 2
    assert sentence in capsys.readouterr().err


@pytest.mark.parametrize(("flags", "sentence"), [
    (["--advantage.name", "rloo", "--samples", "1"], "samples: is 1, but advantage rloo compares the answers"),
    (["--advantage.name", "grpo", "--samples", "1"], "samples: is 1, but advantage grpo compares the answers"),
    (["--advantage.baseline", "prompt", "--samples", "1"], "samples: is 1, but advantage gae compares the answers"),
    (["--advantage.name", "glae"], "advantage: no advantage estimator is called 'glae'"),
    (["--policy_loss.clip", "-1"], "policy_loss.clip"),
    (["--advantage.name", "rloo", "--critic_warmup", "1"], "critic_warmup: advantage rloo has no critic"),
    (["--reward", '[{"name": "nope"}]'], "reward.0: no reward source is called 'nope'"),
])
@pytest.mark.parametrize("more", [[], ["--dry-run"]])
def test_settings_that_cannot_work_are_refused_before_the_model_is_loaded(
        flags: list[str], sentence: str, more: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "ppo", str(recipe("ppo")), *SMALL, *flags, *more, "--out", str(tmp_path / "run")]) == 2
    error = capsys.readouterr().err
    assert sentence in error and "Loading" not in error and not (tmp_path / "run").exists()


def test_a_copy_of_an_adapter_keeps_its_shape_and_another_one_is_refused(
        tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train = ["train", "sft", str(recipe("sft")), *SMALL]
    shape = ["--lora.rank", "3", "--lora.alpha", "9", "--lora.last_layers", "1"]
    assert main([*train, *shape, "--out", str(tmp_path / "first")]) == 0
    start = ["--start", str(tmp_path / "first/roles/policy")]
    for flags, sentence in ((["--lora.rank", "8"], "lora.rank: is 8, but the run starts from a copy of"),
                            (["--lora.dora", "true"], "where it is False; leave lora.dora out, or train a fresh"),
                            (["--lora.targets", "[up_proj, q_proj]"], "lora.targets: is ['q_proj', 'up_proj']")):
        assert main([*train, *start, *flags, "--out", str(tmp_path / "refused" / flags[0])]) == 2
        assert sentence in capsys.readouterr().err and not (tmp_path / "refused").exists()
    same = ["--lora.rank", "3", "--lora.targets", "all-linear", "--lora.dropout", "0.1"]
    assert main([*train, *start, *same, "--out", str(tmp_path / "second")]) == 0
    resolved = read_run(None, tmp_path / "second" / "config.yaml")
    assert resolved.lora == read_run(None, tmp_path / "first" / "config.yaml").lora
    again = ["train", "sft", str(tmp_path / "second" / "config.yaml"), "--out", str(tmp_path / "third")]
    assert main(again) == 0, "what was resolved can be run again"
    assert main([*train, *start, "--stack", "true", "--lora.rank", "2", "--out", str(tmp_path / "stacked")]) == 0


def test_a_reward_that_tells_nothing_apart_is_said_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = jsonl(tmp_path / "mine.jsonl", [{"prompt": row["prompt"]} for row in PAIRS])
    flags = ["--steps", "5", "--data", str(data), "--reward", '[{"name": "words", "most": 50}]', "--end.rule", "none"]
    assert main(["train", "ppo", str(recipe("rloo")), *SMALL, "--max_new_tokens", "4", *flags,
                 "--out", str(tmp_path / "run")]) == 0
    assert capsys.readouterr().err.count("gave every answer of 3 rollouts the same score") == 1
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [row["constant_rewards"] for row in rows] == [1, 2, 3, 4, 5]


def test_an_existing_run_folder_is_refused_before_anything_is_loaded(
        tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "sft", str(recipe("sft")), *SMALL, "--out", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert "exists already" in error and "Loading" not in error


def test_a_full_disk_is_one_sentence_and_what_was_written_stays(
        tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*args: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("rlhflab.model.shared.save_file", full)
    assert main(["train", "sft", str(recipe("sft")), *SMALL, "--out", str(tmp_path / "run")]) == 2
    assert "the disk is full" in capsys.readouterr().err
    assert len((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()) == 2
    assert json.loads((tmp_path / "run" / "record.json").read_text())["status"] == "stopped"


def test_a_dry_run_estimates_and_writes_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str],
                                                monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for kind in KINDS:
        assert main(["train", kind, str(recipe(kind)), *SMALL, "--dry-run", "--json"]) == 0
        described = json.loads(capsys.readouterr().out)
        assert described["run"]["batch"] == 4 and described["estimate"]["memory_gb"] > 0
    assert list(tmp_path.iterdir()) == []
