"""Which adapters a request means and how much of each, by hand; what cannot be is a sentence with both sides."""

from dataclasses import replace

import pytest

import registry_folders
from rlhflab.errors import ConfigError, RegistryError
from rlhflab.registry.records import HEAD, Adapter, BaseFacts, Provenance
from rlhflab.registry.sources import look_at
from rlhflab.registry.store import Registry
from rlhflab.runs.requests import Refused, Request
from rlhflab.runs.served_names import Names

BASE = BaseFacts(name="a-base", digest="b" * 64, tokenizer="c" * 64, template="d" * 64)


def registry_with(tmp_path, **adapters):
    """Adapters by name: what they started from (None: not known), or facts that differ."""
    registry, digests = Registry.init(tmp_path / "registry", signed=False, by="anna"), {}
    for value, (name, said) in enumerate(adapters.items(), start=1):
        facts = said if isinstance(said, dict) else {"parents": said}
        folder = registry_folders.adapter_folder(tmp_path / name, value, head=facts.get("head"))
        source, parents = look_at(folder), facts.get("parents", ())

        def describe(digest, files, name=name, facts=facts, source=source, parents=parents):
            known = None if parents is None else tuple(digests.get(each, each) for each in parents)
            return Adapter(digest=digest, name=name, files=files, base=replace(BASE, **facts.get("base", {})),
                           rank=source.rank, alpha=8, head=HEAD in files, made=Provenance(parents=known))

        digests[name] = registry.add(source.files, describe, by="anna").adapter.digest
    return registry


def names_of(tmp_path, **adapters):
    return Names(BASE, folders={}, registry=registry_with(tmp_path, **adapters))


def parts(names, model, strength=1.0, **mixture):
    asked = Request(model=model, prompts=("x",), strength=strength, mixture=mixture)
    return {known.name: pytest.approx(amount) for known, amount in names.parts(asked)}


@pytest.fixture
def names(tmp_path):
    return names_of(tmp_path, sft=(), brief=("sft",), polite=("sft",), other=(), unknown=None, both=("sft", "other"),
                    orphan=("f" * 64,))


def test_strength_scales_the_change_from_the_parent(names):
    assert parts(names, "brief") == {"brief": 1}
    assert parts(names, "brief", 0.0) == {"sft": 1}, "the SFT model, not the base"
    assert parts(names, "brief", 0.25) == {"sft": 0.75, "brief": 0.25}
    assert parts(names, "brief", 1.5) == {"sft": -0.5, "brief": 1.5}


def test_without_a_recorded_parent_the_base_is_the_parent(names):
    assert parts(names, "unknown", 0.0) == parts(names, "sft", 0.0) == parts(names, "a-base") == {}
    assert parts(names, "unknown", 0.5) == {"unknown": 0.5}
    facts = {each.name: each for each in names.served()}
    assert (facts["unknown"].parent, facts["unknown"].parent_recorded) == (BASE.digest, False)
    assert (facts["sft"].parent, facts["sft"].parent_recorded) == (BASE.digest, True)
    assert (facts["brief"].parent_name, facts["brief"].parent_recorded) == ("sft", True)
    assert (facts["both"].parent, facts["both"].parent_name) == (None, None)
    assert (facts["orphan"].parent, facts["orphan"].parent_name) == ("f" * 64, None)


def test_a_mixture_adds_changes_on_top_of_the_common_parent(names):
    assert parts(names, "a-base", brief=0.5, polite=0.25) == {"sft": 0.25, "brief": 0.5, "polite": 0.25}
    assert parts(names, "brief", brief=0.3, polite=0.7) == {"brief": 0.3, "polite": 0.7}, "the parent comes to 0"
    assert parts(names, "sft", brief=0.0, polite=0.0) == {"sft": 1}, "the common parent may be named"
    assert parts(names, "a-base", sft=1.0, other=0.5) == {"sft": 1, "other": 0.5}


@pytest.mark.parametrize(("model", "strength", "mixture", "sentence"), [
    ("none", 1.0, {}, "model: no model is called 'none'; GET /v1/models says which there are"),
    ("prod@active", 1.0, {}, "no model is called 'prod@active'"),
    ("a-base", 0.5, {}, "strength: a-base is the base, which has no change to scale"),
    ("both", 0.5, {}, r"strength: both was made of 2 adapters \(.*\), so there is no one parent"),
    ("orphan", 0.5, {}, "strength: orphan started from ffffffffffff, which is neither in the registry nor among"),
    ("a-base", 1.0, {"brief": 0.5, "other": 0.5}, "mixture: brief started from [0-9a-f]{12} and other from the base "
                                                  "a-base; only models with the same parent can be mixed"),
    ("a-base", 0.5, {"brief": 0.5}, "strength and mixture: give one of them"),
    ("a-base", 1.0, {"a-base": 0.5}, "mixture: a-base is the base, which has no change to mix in"),
    ("other", 1.0, {"brief": 0.5, "polite": 0.1}, "model: other is not in the mixture, nor what it stands on"),
    ("a-base", 1.0, {str(i): 0.1 for i in range(9)}, "mixture: holds 9 models, at most 8 can be mixed")])
def test_what_cannot_be_is_a_sentence(names, model, strength, mixture, sentence):
    with pytest.raises(Refused, match=sentence):
        parts(names, model, strength, **mixture)


def test_a_whole_adapter_needs_no_parent(names):
    assert parts(names, "orphan") == {"orphan": 1} and parts(names, "both") == {"both": 1}


def test_active_follows_the_pointer_at_once(names):
    registry_folders.promote(names.registry, "sft")
    assert parts(names, "prod@active") == {"sft": 1}
    registry_folders.promote(names.registry, "brief")
    assert parts(names, "prod@active", 0.0) == {"sft": 1} and parts(names, "prod@active") == {"brief": 1}
    active = next(each for each in names.served() if each.kind == "active")
    assert (active.name, active.parent_name) == ("prod@active", "sft")
    names.registry.rollback("prod", by="anna", reason=None, to="base")
    assert parts(names, "prod@active") == {}, "the base alone"


@pytest.mark.parametrize(("facts", "sentence"), [
    ({"base": {"digest": "e" * 64}}, f"odd belongs to base weights {'e' * 64}, and a-base has {'b' * 64}"),
    ({"base": {"tokenizer": "e" * 64}}, f"odd belongs to a tokenizer {'e' * 64}, and a-base has {'c' * 64}"),
    ({"base": {"template": "e" * 64}}, f"odd belongs to a chat template {'e' * 64}, and a-base has {'d' * 64}"),
    ({"head": 7}, "odd has a head, so it scores answers and writes none")])
def test_what_belongs_elsewhere_is_refused_with_both_hashes_and_not_listed(tmp_path, facts, sentence):
    names = names_of(tmp_path, odd=facts, fine=())
    with pytest.raises(Refused, match=sentence):
        parts(names, "odd")
    assert [each.name for each in names.served()] == ["a-base", "fine"]


def test_a_damaged_registry_leaves_the_base_answering(tmp_path):
    names = names_of(tmp_path, sft=())
    ledger = names.registry.folder / "ledger.jsonl"
    ledger.write_text(ledger.read_text().replace("anna", "ann"))
    with pytest.raises(Refused, match=r"the registry cannot be read: .*ledger.jsonl:1: is damaged") as refused:
        parts(names, "sft")
    assert refused.value.status == 503 and parts(names, "a-base") == {}


def test_folders_have_names_of_their_own_and_find_their_parents(tmp_path):
    registry = registry_with(tmp_path, sft=(), brief=("sft",))
    folders = {"mine": registry_folders.adapter_folder(tmp_path / "x", 9)}
    names = Names(replace(BASE, digest="b" * 64), folders=folders, registry=registry)
    assert parts(names, "mine", 0.5) == {"mine": 0.5}
    for taken in ("sft", "a-base"):
        with pytest.raises(ConfigError, match=f"--adapter {taken}: is the name of the base or of an adapter in the"):
            Names(BASE, folders={taken: folders["mine"]}, registry=registry)
    with pytest.raises(RegistryError, match="--adapter: 'a/b' must be letters"):
        Names(BASE, folders={"a/b": folders["mine"]}, registry=None)


def test_a_folder_from_a_run_finds_the_adapter_its_run_started_from(tmp_path):
    start = registry_folders.adapter_folder(tmp_path / "sft" / "roles" / "policy", 1)
    child = registry_folders.adapter_folder(tmp_path / "dpo" / "roles" / "policy", 2)
    (tmp_path / "dpo" / "config.yaml").write_text(f"start: {start}\n")
    names = Names(BASE, folders={"dpo": child}, registry=None)
    assert parts(names, "dpo", 0.25) == {"policy": 0.75, "dpo": 0.25}
    told = names.served()[1]
    assert told.parent_recorded and told.parent_name is None, "nobody can ask for it by name"
