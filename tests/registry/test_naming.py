"""A name is a folder, an adapter of the registry, or what a deployment has active; nothing damaged is handed out."""

import pytest

from foreign_folders import as_trl
from registry_folders import adapter_folder, promote, registry_of
from rlhflab.errors import RegistryError
from rlhflab.registry.naming import named_adapter


@pytest.fixture
def place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    registry = registry_of(tmp_path, "one", "two")
    promote(registry, "two")
    return registry


def test_a_name_a_digest_and_a_deployment_lead_to_the_folder_in_the_registry(place):
    one, two = (place.state().find(name) for name in ("one", "two"))
    for text, adapter in (("one", one), (one.digest[:9], one), ("two", two), ("prod@active", two), ("prod", two)):
        found = named_adapter(text, registry=place.folder)
        assert (found.folder, found.base) == (place.path_of(adapter), "a-base")
        assert found.name == f"{text} ({adapter.digest[:12]})"


def test_what_no_adapter_is_called_is_left_to_others_and_an_unknown_deployment_is_not(place, tmp_path):
    assert named_adapter("tiny-llama", registry=place.folder) is None
    assert named_adapter("one", registry=tmp_path / "none") is None
    with pytest.raises(RegistryError, match="no deployment is called 'tset'; there are prod"):
        named_adapter("tset@active", registry=place.folder)
    with pytest.raises(RegistryError, match="is not a registry"):
        named_adapter("prod@active", registry=tmp_path / "none")


def test_a_deployment_that_went_back_to_the_base_has_no_folder(place):
    place.rollback("prod", by="anna", reason="worse", to="base")
    found = named_adapter("prod@active", registry=place.folder)
    assert (found.folder, found.base, found.name) == (None, None, "prod@active")


def test_a_folder_goes_before_a_name_and_its_output_folder_leads_to_it(place, tmp_path):
    adapter_folder(tmp_path / "one", 9)
    assert named_adapter("one", registry=place.folder).name == "one"
    as_trl(adapter_folder(tmp_path / "out" / "checkpoint-3", 8))
    assert named_adapter("out", registry=place.folder).folder.name == "checkpoint-3"
    (tmp_path / "a-model").mkdir()
    assert named_adapter("a-model", registry=place.folder) is None


def test_an_adapter_whose_files_were_changed_is_not_handed_out(place):
    (place.path_of(place.state().find("one")) / "adapter_config.json").write_text("{}")
    with pytest.raises(RegistryError, match=r"adapter_config\.json: is damaged: expected"):
        named_adapter("one", registry=place.folder)
    assert named_adapter("two", registry=place.folder) is not None
