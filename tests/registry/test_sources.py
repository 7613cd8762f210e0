"""What is read from an adapter folder and the run around it, and what is said of one that cannot be taken."""

import hashlib
import json

import pytest
import yaml

from registry_folders import adapter_folder
from rlhflab.errors import RegistryError
from rlhflab.registry.sources import folder_digest, look_at, provenance, template_of


def run_folder(path, **config):
    adapter_folder(path / "roles/policy")
    (path / "config.yaml").write_text(yaml.safe_dump({"kind": "dpo", "model": "tiny-llama", "seed": 3, **config}))
    (path / "record.json").write_text(json.dumps({"kind": "dpo", "commit": "abc", "status": "finished", "lab": "0.1"}))
    (path / "summary.json").write_text('{"pairs": 2}')
    return path


def test_a_run_folder_tells_data_seeds_parents_rewards_and_evaluations(tmp_path):
    pairs, start = tmp_path / "pairs.jsonl", adapter_folder(tmp_path / "start", 7)
    pairs.write_text('{"prompt": "a", "source": "anna"}\n{"prompt": "b", "source": "anna"}\n{"prompt": "c"}\n')
    reward = adapter_folder(tmp_path / "reward", 8, head=1)
    run = run_folder(tmp_path / "run", data=str(pairs), start=str(start), reward=[
        {"name": "role", "path": str(reward)}, {"name": "length"}])
    source = look_at(run)
    made = provenance(source.run)
    assert made.data == ({"key": "data", "name": str(pairs), "rows": 3, "judged_by": {"anna": 2},
                          "sha256": hashlib.sha256(pairs.read_bytes()).hexdigest()},)
    assert (made.seeds, made.commit, made.evaluations, made.annotators) == ((3,), "abc", {"pairs": 2}, None)
    assert made.parents == (folder_digest(start),) and made.config["model"] == "tiny-llama"
    assert [each["adapter"] for each in made.rewards] == [folder_digest(reward), None]


@pytest.mark.parametrize("now", ['{"prompt": "other"}\n', None])
def test_the_digest_that_a_run_wrote_down_counts_when_its_data_is_gone_or_another(tmp_path, now):
    pairs = tmp_path / "pairs.jsonl"
    run = run_folder(tmp_path / "run", data=str(pairs))
    (run / "record.json").write_text(json.dumps({"data": [{"key": "data", "name": str(pairs), "sha256": "a" * 64}]}))
    if now:
        pairs.write_text(now)
    (data,) = provenance(run).data
    assert (data["sha256"], data["rows"]) == ("a" * 64, None)


def test_what_a_scenario_made_has_no_file_and_a_rule(tmp_path):
    made = provenance(run_folder(tmp_path / "run", data="helpdesk"))
    assert made.data[0]["sha256"] is None and "the scenario helpdesk" in made.annotators
    assert made.parents == () and made.rewards is None


def test_what_a_reward_role_and_the_role_it_began_as_learnt_from_is_told(tmp_path):
    """A start that names itself ends there."""
    files = {name: tmp_path / f"{name}.jsonl" for name in ("biased", "expert")}
    for name, path in files.items():
        path.write_text(json.dumps({"prompt": name}) + "\n")
    first = run_folder(tmp_path / "first", data=str(files["biased"]), start=str(tmp_path / "first/roles/policy"))
    second = run_folder(tmp_path / "second", data=str(files["expert"]), start=str(first / "roles/policy"))
    made = provenance(run_folder(tmp_path / "run", data="helpdesk", reward=[
        {"name": "role", "path": str(second / "roles/policy")}]))
    assert [(each["key"], each["name"]) for each in made.data] == [
        ("data", "helpdesk"), ("reward.0.data", str(files["expert"])), ("reward.0.start.data", str(files["biased"]))]
    assert made.data[1]["sha256"] == hashlib.sha256(files["expert"].read_bytes()).hexdigest()


def test_a_start_that_is_gone_is_not_taken_for_the_base(tmp_path):
    assert provenance(run_folder(tmp_path / "run", start="gone/roles/policy")).parents is None


def test_an_adapter_from_elsewhere_has_only_what_it_says(tmp_path):
    source = look_at(adapter_folder(tmp_path / "foreign"))
    assert (source.run, source.role, source.rank) == (None, None, 4)
    assert (source.base.name, source.base.digest, source.base.template) == ("a-base", None, None)


def test_a_chat_template_has_one_hash_wherever_it_is_written(tmp_path):
    (tmp_path / "chat_template.jinja").write_text("{{ x }}")
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"chat_template": "{{ x }}"}))
    apart, inside = ({name: tmp_path / name} for name in ("chat_template.jinja", "tokenizer_config.json"))
    assert template_of(apart) == template_of(inside) == hashlib.sha256(b"{{ x }}").hexdigest()


@pytest.mark.parametrize(("change", "words"), [
    (lambda folder: (folder / "adapter_model.safetensors").unlink(), "has no adapter_model.safetensors"),
    (lambda folder: (folder / "adapter_model.safetensors").rename(folder / "adapter_model.bin"), "is pickled"),
    (lambda folder: (folder / "adapter_model.safetensors").write_bytes(b"x" * 20), "is not a safetensors file"),
    (lambda folder: (folder / "adapter_config.json").write_text("[]"), "must hold one JSON object"),
    (lambda folder: (folder / "adapter_config.json").write_text('{"peft_type": "IA3"}'), "found peft_type 'IA3'"),
])
def test_what_is_no_lora_adapter_is_refused(tmp_path, change, words):
    folder = adapter_folder(tmp_path / "mine")
    change(folder)
    with pytest.raises(RegistryError, match=words):
        look_at(folder)


def test_a_run_with_several_roles_needs_one_named(tmp_path):
    run = run_folder(tmp_path / "run")
    adapter_folder(run / "roles/value", head=1)
    with pytest.raises(RegistryError, match="--role: must be one of policy, value, found none"):
        look_at(run)
    assert look_at(run, role="value").files["head.safetensors"].is_file()
