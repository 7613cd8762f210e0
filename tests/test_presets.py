"""Every value of a preset against the published default, and how a preset lies under a run file."""

import inspect
from pathlib import Path
from typing import Any, get_args, get_type_hints

import pytest

from rlhflab.commands.training import train_command
from rlhflab.config import KINDS, Choice, make_run, read_run
from rlhflab.core.losses import policy_loss
from rlhflab.core.preference import preference_loss
from rlhflab.core.returns import advantage_estimator
from rlhflab.errors import ConfigError
from rlhflab.listing import listing
from rlhflab.presets import dotted, preset
from rlhflab.runs.recipes import recipe

INF = float("inf")
HF = {"optimizer.schedule": "linear", "optimizer.final_share": 0, "optimizer.warmup": 0, "optimizer.weight_decay": 0,
      "optimizer.beta1": 0.9, "optimizer.beta2": 0.999, "optimizer.epsilon": 1e-8, "dtype": "bfloat16",
      "recompute": True}
TL_DR = {"value_learning_rate": 3e-6, "value_adapter_learning_rate": 3e-6, "samples": 1, "epochs": 4, "minibatches": 1,
         "kl_coefficient": 0.05, "kl_in": "reward", "kl_estimator": "k1", "kl_target": None, "policy_loss.name": "clip",
         "policy_loss.clip": 0.2, "value_clip": 0.2, "value_coefficient": 0.1, "advantage.name": "gae",
         "advantage.gamma": 1, "advantage.gae_lambda": 0.95, "advantage.whiten_rewards": False,
         "advantage.whiten_advantages": True, "token_mean": "token", "temperature": 0.7, "max_new_tokens": 53}
# Read from the files that each preset names as its source.
PUBLISHED: dict[str, dict[str, Any]] = {
    "trl-dpo": {**HF, "optimizer.learning_rate": 1e-6, "optimizer.max_grad_norm": 1, "loss.name": "dpo",
                "loss.beta": 0.1, "epochs": 3, "batch": 8, "max_length": 1024,
                "overlong": "drop", "lora.dropout": 0},
    "trl-reward": {**HF, "optimizer.learning_rate": 1e-4, "optimizer.max_grad_norm": 1, "head_learning_rate": 1e-4,
                   "margin": 0, "centering": 0, "epochs": 3, "batch": 8, "max_length": 1024, "overlong": "drop",
                   "lora.dropout": 0},
    "trl-ppo": {**HF, **TL_DR, "optimizer.learning_rate": 3e-6, "optimizer.max_grad_norm": INF, "batch": 8,
                "entropy_coefficient": 0, "end.rule": "none"},
    "nplus-ppo": {**TL_DR, "optimizer.learning_rate": 3e-6, "optimizer.schedule": "linear", "optimizer.final_share": 0,
                  "optimizer.warmup": 0, "optimizer.weight_decay": 0.01, "optimizer.epsilon": 1e-5,
                  "optimizer.max_grad_norm": INF, "batch": 512, "end.rule": "replace", "end.value": 1},
    "openrlhf-ppo": {
        "optimizer.learning_rate": 1e-6, "optimizer.schedule": "cosine", "optimizer.final_share": 0.1,
        "optimizer.warmup": 0.03, "optimizer.weight_decay": 0, "optimizer.beta1": 0.9, "optimizer.beta2": 0.95,
        "optimizer.epsilon": 1e-8,
        "optimizer.max_grad_norm": 1, "value_learning_rate": 9e-6, "value_adapter_learning_rate": 9e-6,
        "batch": 1024, "samples": 1, "epochs": 1, "minibatches": 8, "kl_coefficient": 0.01, "kl_in": "reward",
        "kl_estimator": "k1", "kl_target": None, "kl_horizon": 10_000, "policy_loss.name": "clip",
        "policy_loss.clip": 0.2, "policy_loss.clip_high": None, "policy_loss.dual_clip": None, "value_clip": 0.5,
        "value_coefficient": 1, "advantage.name": "gae", "advantage.gamma": 1, "advantage.gae_lambda": 1,
        "advantage.whiten_rewards": False, "advantage.whiten_advantages": True, "end.rule": "none", "reward_clip": 10,
        "temperature": 1, "max_length": 2048, "max_new_tokens": 1024},
    "verl-ppo": {
        "optimizer.learning_rate": 1e-6, "optimizer.schedule": "constant", "optimizer.warmup": 0,
        "optimizer.weight_decay": 0.01, "optimizer.epsilon": 1e-8, "optimizer.max_grad_norm": 1,
        "value_learning_rate": 1e-5, "value_adapter_learning_rate": 1e-5, "batch": 1024, "samples": 1,
        "epochs": 1, "minibatches": 4,
        "kl_coefficient": 0, "policy_loss.name": "clip", "policy_loss.clip": 0.2, "policy_loss.clip_high": 0.2,
        "policy_loss.dual_clip": 3, "value_clip": 0.5, "value_coefficient": 1, "advantage.name": "gae",
        "advantage.gamma": 1, "advantage.gae_lambda": 1, "advantage.whiten_advantages": True, "token_mean": "token",
        "entropy_coefficient": 0, "end.rule": "none", "temperature": 1, "max_length": 1024, "max_new_tokens": 512,
        "dtype": "bfloat16", "recompute": True},
}
OWN = [name for name in preset.names() if name.startswith("lora-")]


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_preset_is_the_published_table(name: str) -> None:
    assert dotted(preset.entry(name, where="test").function().values) == PUBLISHED[name]


@pytest.mark.parametrize("name", preset.names())
def test_every_preset_makes_a_run_that_has_its_values(name: str) -> None:
    made = preset.entry(name, where="test").function()
    run = dotted(make_run(made.kind, {"preset": name}).model_dump())
    assert {key: run[key] for key in dotted(made.values)} == dotted(made.values) and run["preset"] == name


def test_every_preset_is_published_or_that_of_a_recipe() -> None:
    assert sorted([*PUBLISHED, *OWN]) == preset.names()


@pytest.mark.parametrize("name", OWN)
def test_the_projects_own_presets_are_what_the_recipes_say(name: str) -> None:
    made = preset.entry(name, where="test").function()
    size = {"preset", "examples", "steps"}  # how long a run is depends on its data
    recipe_run = read_run(made.kind, recipe(made.kind))
    assert make_run(made.kind, {"preset": name}).model_dump(exclude=size) == recipe_run.model_dump(exclude=size)
    assert made.values.get("steps") in (None, recipe_run.steps)


@pytest.mark.parametrize("name", preset.names())
def test_every_choice_of_a_preset_has_the_options_it_sets(name: str) -> None:
    values = preset.entry(name, where="test").function().values
    for key, catalog in {"loss": preference_loss, "policy_loss": policy_loss, "advantage": advantage_estimator}.items():
        choice = Choice(**values.get(key, {"name": catalog.names()[0]}))
        assert catalog.bind(choice.name, choice.options, where=key).keywords.items() >= choice.options.items()


def run_file(folder: Path, text: str) -> Path:
    path = folder / "run.yaml"
    path.write_text(text)
    return path


def test_the_file_lies_over_the_preset_and_flags_over_the_file(tmp_path: Path) -> None:
    path = run_file(tmp_path, "kind: ppo\npreset: trl-ppo\nepochs: 2\nminibatches: 2\nadvantage: {gae_lambda: 0.9}\n")
    run = read_run("ppo", path, ["--epochs", "1", "--optimizer.learning_rate", "1e-5"])
    assert (run.epochs, run.minibatches, run.kl_coefficient) == (1, 2, 0.05)  # type: ignore[attr-defined]
    assert run.optimizer.learning_rate == 1e-5 and run.optimizer.max_grad_norm == INF
    assert run.advantage.options["gae_lambda"] == 0.9  # type: ignore[attr-defined]
    assert run.advantage.options["whiten_advantages"] is True  # type: ignore[attr-defined]


def test_another_entry_of_a_catalogue_keeps_no_option_of_the_presets() -> None:
    run = make_run("ppo", {"preset": "trl-ppo", "advantage": {"name": "rloo"}})
    assert run.advantage == Choice(name="rloo")  # type: ignore[attr-defined]


def test_the_resolved_run_reads_back_as_itself() -> None:
    resolved = make_run("ppo", {"preset": "openrlhf-ppo", "policy_loss": {"clip": 0.1}}).model_dump(mode="json")
    assert resolved["policy_loss"]["clip"] == 0.1
    assert make_run("ppo", resolved).model_dump(mode="json") == resolved


def test_a_section_keeps_what_its_kind_of_run_says_of_the_other_keys() -> None:
    assert make_run("ppo", {"optimizer": {"learning_rate": 1e-3}}).optimizer.epsilon == 1e-5
    assert make_run("sft", {"optimizer": {"schedule": "constant"}}).optimizer.learning_rate == 5e-4


def test_a_flag_changes_an_option_of_the_entry_that_the_file_leaves_out(tmp_path: Path) -> None:
    run = read_run("dpo", run_file(tmp_path, "batch: 4\n"), ["--loss.beta", "0.3"])
    assert run.loss == Choice(name="dpo", beta=0.3)  # type: ignore[attr-defined]


@pytest.mark.parametrize(("content", "sentence"), [
    ({"preset": "trl-dpo"}, "preset: trl-dpo is for dpo runs, not for ppo"),
    ({"preset": "tlr-ppo"}, "no preset is called 'tlr-ppo'; there are lora-dpo,"),
])
def test_a_wrong_preset_is_one_sentence(content: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        make_run("ppo", content, where="run.yaml")


def test_the_listing_shows_values_source_and_deviations() -> None:
    row = next(row for row in listing("presets") if row["name"] == "trl-ppo")
    assert row["options"]["policy_loss.clip"] == {"type": "float", "default": 0.2, "range": None}
    assert "ppo_trainer.py" in row["source"] and row["needs"] == ["a ppo run"]
    assert "Deviations: every weight is trained there" in row["summary"]


def test_the_command_takes_every_kind_of_run() -> None:
    kinds = get_args(get_type_hints(inspect.unwrap(train_command))["kind"])[0]
    assert get_args(kinds) == tuple(KINDS)
