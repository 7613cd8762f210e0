"""An adapter of this lab and one from elsewhere go into a registry; after a rollback the old answers come again."""

import json
from pathlib import Path

import pytest
import torch

from conftest import moved_role
from foreign_folders import as_axolotl, peft_folder
from rlhflab.errors import ModelError, RegistryError
from rlhflab.model.load import model_folder, weights_digest
from rlhflab.model.shared import SharedModel
from rlhflab.progress import Progress
from rlhflab.registry.audit import verify
from rlhflab.registry.cards import model_card
from rlhflab.registry.sources import look_at
from rlhflab.registry.store import Registry
from rlhflab.runs.registering import Said, add_adapter, base_facts, check_transcripts

PROMPTS = '{"prompt": "Say one."}\n{"prompt": "Say two."}\n'


@pytest.fixture
def place(tmp_path: Path) -> Registry:
    (tmp_path / "prompts.jsonl").write_text(PROMPTS)
    return Registry.init(tmp_path / "registry", key=tmp_path / "key.pem")


def saved(llama: SharedModel, folder: Path, *, seed: int = 1, head: str = "none") -> Path:
    moved_role(llama, folder.name, seed=seed, head=head)
    llama.save_role(folder.name, folder)
    return folder


def added(place: Registry, folder: Path, **said: object) -> str:
    return add_adapter(place, folder, Said(by="anna", name=folder.name, max_new_tokens=4, **said),  # type: ignore[arg-type]
                       role=None, progress=Progress()).adapter.digest


def test_after_a_rollback_the_old_answers_come_again_and_the_base_is_as_it_was(llama, place, tmp_path):
    for seed, name in enumerate(("old", "new"), start=1):
        added(place, saved(llama, tmp_path / name, seed=seed), transcripts=tmp_path / "prompts.jsonl")
        place.promote(name, "prod", by="anna", gate=None, override="a test")
    place.rollback("prod", by="anna", reason="worse")
    active = place.state().find("prod")
    found = check_transcripts(place, active, model=None, progress=Progress())
    assert active.name == "old" and found == {"reproduced": 2, "n": 2, "base_logits_equal": True, "failures": [],
                                              "same_versions": True}


def test_an_answer_that_does_not_come_again_is_named(llama, place, tmp_path):
    digest = added(place, saved(llama, tmp_path / "mine"), transcripts=tmp_path / "prompts.jsonl")
    path = place.folder / "adapters" / digest / "transcripts.json"
    kept = json.loads(path.read_text())
    kept["rows"][1]["tokens"][0] += 1
    path.write_text(json.dumps(kept))
    found = check_transcripts(place, place.state().find("mine"), model=None, progress=Progress())
    assert found["reproduced"] == 1 and found["failures"][0]["path"] == "transcripts.json:1"
    assert not verify(place)["ok"]


def test_a_base_that_an_adapter_changed_is_noticed(llama, place, tmp_path, monkeypatch):
    added(place, saved(llama, tmp_path / "mine"), transcripts=tmp_path / "prompts.jsonl")
    load_role = SharedModel.load_role

    def writes_on_the_base(model, *rest, **options):
        load_role(model, *rest, **options)
        with torch.no_grad():
            model.unembedding[0, 0] += 1e-4

    monkeypatch.setattr(SharedModel, "load_role", writes_on_the_base)
    found = check_transcripts(place, place.state().find("mine"), model=None, progress=Progress())
    assert not found["base_logits_equal"] and found["failures"][0]["path"] == "base logits, adapter off"


def test_the_base_is_known_by_its_weights_tokenizer_and_template(llama, tmp_path):
    facts = base_facts(look_at(saved(llama, tmp_path / "mine")), None)
    assert (facts.name, facts.digest) == ("tiny-llama", weights_digest(model_folder("tiny-llama")[0]))
    assert facts.tokenizer is not None and facts.template is not None


def test_an_adapter_from_elsewhere_is_taken_with_what_is_known(llama, place, tmp_path):
    folder = saved(llama, tmp_path / "foreign")
    (folder / "rlhflab.json").unlink()
    config = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps({**config, "base_model_name_or_path": "owner/base"}))
    digest = added(place, folder, annotators="two of three agree")
    adapter = place.state().adapters[digest]
    assert (adapter.base.name, adapter.base.digest) == ("owner/base", None)
    assert (adapter.made.config, adapter.made.annotators) == (None, "two of three agree")


def test_an_adapter_of_other_weights_than_the_named_base_is_refused_with_both_digests(llama, place, tmp_path):
    folder, other = saved(llama, tmp_path / "mine"), weights_digest(model_folder("tiny-qwen")[0])
    with pytest.raises(RegistryError, match=f"base weights {llama.base.digest}, and tiny-qwen has {other}"):
        added(place, folder, model="tiny-qwen")
    assert place.state().adapters == {}


def test_a_role_with_a_head_writes_no_transcripts(llama, place, tmp_path):
    folder = saved(llama, tmp_path / "reward", head="random")
    with pytest.raises(RegistryError, match="--transcripts: the adapter has a head"):
        added(place, folder, transcripts=tmp_path / "prompts.jsonl")
    digest = added(place, folder)
    assert place.state().adapters[digest].head


def test_parents_are_adapters_of_the_registry(llama, place, tmp_path):
    parent = added(place, saved(llama, tmp_path / "parent"))
    child = saved(llama, tmp_path / "child", seed=2)
    digest = added(place, child, parents=("parent",))
    assert place.state().adapters[digest].made.parents == (parent,)
    with pytest.raises(RegistryError, match="no adapter is called 'stranger'"):
        added(place, saved(llama, tmp_path / "third", seed=3), parents=("stranger",))


def test_what_another_trainer_tells_is_in_the_record_and_in_the_card_as_unchecked(place, tmp_path, capsys):
    peft_folder(tmp_path / "theirs")
    as_axolotl(tmp_path / "theirs")
    added(place, tmp_path / "theirs", model="tiny-llama")
    adapter = place.state().find("theirs")
    assert adapter.made.told[0]["says"]["trainer"] == "axolotl" and adapter.made.config is None
    card = model_card(adapter, place.state(), signed=True)
    assert "## As told by the trainer's files, unchecked" in card and r"learning\_rate: 0.0002" in card
    assert verify(place)["ok"]


def test_an_adapter_that_cannot_be_loaded_here_is_kept_and_said_to_be_so(place, tmp_path, capsys):
    peft_folder(tmp_path / "theirs", modules_to_save=["lm_head"])
    added(place, tmp_path / "theirs")
    assert "neither gate nor evaluate can load it here" in capsys.readouterr().err
    with pytest.raises(ModelError, match="modules_to_save is set"):
        added(place, tmp_path / "theirs", model="tiny-llama", transcripts=tmp_path / "prompts.jsonl")
