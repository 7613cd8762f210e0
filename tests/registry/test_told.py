"""What TRL's, LLaMA-Factory's and axolotl's files tell is kept with the file that tells it; pickled ones stay shut."""

import hashlib
import json
import pickle
from pathlib import Path

import pytest

from foreign_folders import as_axolotl, as_llama_factory, as_trl
from registry_folders import adapter_folder
from rlhflab.errors import RegistryError
from rlhflab.registry.sources import adapter_folder as found_folder
from rlhflab.registry.sources import look_at
from rlhflab.registry.told import told_by

PICKLED = {"not_read": "pickled, and pickled files can run code; never opened"}


def says(folder: Path) -> dict[str, dict[str, object]]:
    return {each["file"]: each["says"] for each in told_by(folder) or ()}


def test_trl_tells_by_its_card_and_by_its_last_checkpoint(tmp_path):
    as_trl(adapter_folder(tmp_path / "out"), 2, 10, 9)
    told = says(tmp_path / "out")
    assert told["README.md"] == {"trainer": "TRL", "trainer_version": "1.16.0", "base": "owner/tiny", "method": "dpo",
                                 "data": ["owner/pairs"],
                                 "versions": {"peft": "0.21.2", "trl": "1.16.0", "transformers": "5.23.0"}}
    # the rates are 1e-4 (1 - step / 10), the last loss is that of step 9
    assert told["checkpoint-10/trainer_state.json"] == {
        "steps": 10, "planned_steps": 10, "epochs": 1.0, "batch": 2, "learning_rate": 1e-4, "eval_loss": 0.61,
        "loss": pytest.approx(-0.2)}
    assert told["training_args.bin"] == PICKLED and len(told) == 3


def test_a_checkpoint_tells_its_own_state_and_the_card_above_it(tmp_path):
    as_trl(adapter_folder(tmp_path / "out"), 2, 10)
    told = says(tmp_path / "out" / "checkpoint-2")
    assert told["checkpoint-2/trainer_state.json"]["steps"] == 2 and told["README.md"]["trainer"] == "TRL"
    assert "checkpoint-10/trainer_state.json" not in told


def test_llama_factory_tells_by_its_log_and_its_settings(tmp_path):
    as_llama_factory(adapter_folder(tmp_path / "out"))
    told = says(tmp_path / "out")
    assert told["trainer_log.jsonl"] == {"trainer": "LLaMA-Factory", "steps": 20, "planned_steps": 20, "epochs": 1.0,
                                         "learning_rate": 5e-6, "loss": pytest.approx(0.5)}
    assert told["training_args.yaml"] == {
        "trainer": "LLaMA-Factory", "method": "dpo", "base": "owner/tiny", "data": ["ours_pairs", "more"],
        "template": "qwen", "learning_rate": 5e-6, "epochs": 3.0, "batch": 1, "beta": 0.1, "max_length": 512}


def test_axolotl_tells_by_its_card_and_its_settings_and_no_token_is_kept(tmp_path):
    as_axolotl(adapter_folder(tmp_path / "out"))
    told = says(tmp_path / "out")
    assert told["README.md"] == {"trainer": "axolotl", "trainer_version": "0.9.1", "base": "owner/tiny", "seed": 7,
                                 "data": ["owner/pairs"], "learning_rate": 2e-4,
                                 "versions": {"peft": "0.15.2", "transformers": "4.51.3", "axolotl": "0.9.1"}}
    assert told["config.yml"] == {"trainer": "axolotl", "data": ["owner/pairs"], "method": "dpo", "base": "owner/tiny",
                                  "learning_rate": 2e-4, "epochs": 1, "batch": 2, "accumulate": 4, "seed": 7,
                                  "max_length": 512}
    assert "never to be kept" not in json.dumps(told)


def test_each_fact_has_the_digest_of_its_file(tmp_path):
    as_trl(adapter_folder(tmp_path / "out"))
    assert {each["file"]: each["sha256"] for each in told_by(tmp_path / "out") or ()} == {
        name: hashlib.sha256((tmp_path / "out" / name).read_bytes()).hexdigest()
        for name in ("README.md", "training_args.bin")}
    assert told_by(adapter_folder(tmp_path / "plain")) is None


def test_a_pickled_file_is_not_run(tmp_path):
    class Bomb:
        def __reduce__(self):
            return Path.touch, (tmp_path / "was-run",)

    folder = adapter_folder(tmp_path / "out")
    (folder / "training_args.bin").write_bytes(pickle.dumps(Bomb()))
    assert says(folder)["training_args.bin"] == PICKLED and not (tmp_path / "was-run").exists()


@pytest.mark.parametrize(("name", "text"), [
    ("trainer_state.json", "[]"), ("trainer_log.jsonl", "{"), ("README.md", "---\n- a\n---\n"), ("a.yaml", "a: [")])
def test_a_damaged_file_says_so_and_does_not_stop_anything(tmp_path, name, text):
    folder = adapter_folder(tmp_path / "out")
    (folder / name).write_text(text)
    assert list(says(folder)[name]) == ["not_read"]


def test_long_texts_and_lists_are_cut(tmp_path):
    folder = adapter_folder(tmp_path / "out")
    (folder / "README.md").write_text(f"---\nbase_model: {'b' * 400}\ndatasets: [{', '.join('abcdefgh' * 4)}]\n---\n")
    told = says(folder)["README.md"]
    assert len(told["base"]) == 303 and len(told["data"]) == 20


def test_a_trainers_output_folder_leads_to_its_adapter(tmp_path):
    as_trl(adapter_folder(tmp_path / "whole"), 2)
    assert found_folder(tmp_path / "whole") == tmp_path / "whole"
    only = tmp_path / "only"
    adapter_folder(only / "checkpoint-7")
    assert look_at(only).folder == only / "checkpoint-7"
    adapter_folder(only / "checkpoint-10")
    with pytest.raises(RegistryError, match="--role: must be one of checkpoint-7, checkpoint-10, found none"):
        look_at(only)
    assert look_at(only, role="checkpoint-10").folder.name == "checkpoint-10"


def test_of_several_adapters_in_one_folder_the_default_is_taken_or_the_one_that_is_named(tmp_path):
    adapter_folder(tmp_path / "out")
    adapter_folder(tmp_path / "out" / "ref", 2)
    as_trl(tmp_path / "out")
    assert look_at(tmp_path / "out").folder == tmp_path / "out"
    assert look_at(tmp_path / "out", role="ref").folder == tmp_path / "out" / "ref"
    assert says(tmp_path / "out" / "ref")["README.md"]["trainer"] == "TRL"
