"""What goes into a registry, how a deployment's pointer moves, and what is refused and leaves all as it was."""

import json
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path

import pytest

from registry_folders import adapter_folder, everything, promote, registry_of, take_in
from rlhflab.errors import RegistryError
from rlhflab.registry.audit import verify
from rlhflab.registry.records import chained, sha256_of
from rlhflab.registry.state import State
from rlhflab.registry.store import Registry


@pytest.fixture
def registry(tmp_path):
    return registry_of(tmp_path, "one", "two")


def refused(registry, words, call):
    """The call is refused in one sentence, and nothing has changed."""
    before = everything(registry.folder)
    with pytest.raises(RegistryError, match=words) as caught:
        call()
    assert everything(registry.folder) == before and "\n" not in str(caught.value)


def verdict(path, **values):
    path.write_text(json.dumps({"verdict": "pass", "active_digest": None, "rows": [], **values}))
    return path


def test_an_adapter_lies_in_a_folder_called_by_the_sha256_of_its_weights(registry, tmp_path):
    digest = registry.state().find("one").digest
    stored = registry.folder / "adapters" / digest / "adapter_model.safetensors"
    assert digest == sha256_of(tmp_path / "trained/one/adapter_model.safetensors") == sha256_of(stored)


def test_two_heads_on_one_adapter_are_two_adapters(registry, tmp_path):
    heads = [take_in(registry, adapter_folder(tmp_path / name, 1, head=place), name).adapter
             for place, name in enumerate(("a-head", "b-head"))]
    assert len({registry.state().find("one").digest, heads[0].digest, heads[1].digest}) == 3


def test_a_link_leads_to_the_active_adapter_and_back_again(registry):
    one, two = (registry.state().find(name).digest for name in ("one", "two"))
    promote(registry, "one")
    promote(registry, "two")
    link = registry.folder / "active/prod"
    assert link.resolve().name == two and (link / "adapter_config.json").is_file()
    registry.rollback("prod", by="bob", reason="worse")
    assert link.resolve().name == one == registry.state().active("prod")
    registry.rollback("prod", by="bob", reason=None, to="base")
    assert not link.is_symlink() and registry.state().active("prod") is None and verify(registry)["ok"]


def test_a_rollback_goes_past_what_was_rolled_back_before(registry, tmp_path):
    take_in(registry, adapter_folder(tmp_path / "three", 3), "three")
    for name in ("one", "two", "three"):
        promote(registry, name)
    names = []
    for _ in range(2):
        registry.rollback("prod", by="bob", reason=None)
        names.append(registry.state().find("prod").name)
    assert names == ["two", "one"]
    refused(registry, "nothing was active before", lambda: registry.rollback("prod", by="bob", reason=None))


def test_each_hash_is_that_of_the_one_before_and_the_entry(registry):
    first, second, _ = registry.entries()
    assert first.hash == chained("0" * 64, first.said) and second.hash == chained(first.hash, second.said)


def test_a_clock_that_went_back_is_recorded_and_flagged(tmp_path):
    ticks = iter(["2026-01-02T00:00:00+00:00", "2026-01-01T00:00:00+00:00", "2026-01-01T00:00:01+00:00"])
    registry = registry_of(tmp_path, "one", "two", clock=lambda: next(ticks))
    assert [(entry.at[:10], entry.clock_went_back) for entry in registry.entries()] == [
        ("2026-01-02", False), ("2026-01-01", True), ("2026-01-01", False)]
    assert verify(registry)["ok"]


@pytest.mark.parametrize(("name", "words"), [
    ("three", "no adapter is called 'three'.*there are one, two"), ("ab", "no adapter is called 'ab'"),
])
def test_an_unknown_name_is_refused_with_the_known_ones(registry, name, words):
    refused(registry, words, lambda: promote(registry, name))


def test_the_start_of_two_digests_is_refused_and_a_longer_one_is_found(registry):
    one = registry.state().find("one")
    alike = [replace(one, name=name, digest=digest * 16) for name, digest in (("a", "abcd"), ("b", "abce"))]
    state = State(adapters={each.digest: each for each in (replace(alike[0], digest="abcdef" * 10), *alike)})
    with pytest.raises(RegistryError, match="abcd: is the start of 2 digests: abcdefabcdef, abcdabcdabcd; give more"):
        state.find("abcd")
    assert state.find("abce") == alike[1]
    assert state.find("abcda") == alike[0]


@pytest.mark.parametrize(("options", "base", "words"), [
    ({"rank": 8}, "b" * 64, "serves adapters of rank 4, such as {one}, and {other} has rank 8"),
    ({}, "c" * 64, f"serves adapters of base {'b' * 64}, such as {{one}}, and {{other}} has base {'c' * 64}"),
    ({"head": 1}, "b" * 64, "serves adapters of head False, such as {one}, and {other} has head True"),
])
def test_an_adapter_of_another_shape_is_refused_with_both_hashes(registry, tmp_path, options, base, words):
    promote(registry, "one")
    other = take_in(registry, adapter_folder(tmp_path / "other", 9, **options), "other", base=base).adapter
    one = registry.state().find("one")
    refused(registry, words.format(one=one.digest, other=other.digest), lambda: promote(registry, "other"))


def test_a_gate_that_passed_lets_an_adapter_through_and_is_kept(registry, tmp_path):
    one, two = (registry.state().find(name).digest for name in ("one", "two"))
    gate = verdict(tmp_path / "a.json", candidate_digest=one, rows=[{"metric": "gold"}])
    registry.promote("one", "prod", by="anna", gate=gate, override=None)
    gate = verdict(tmp_path / "b.json", candidate_digest=two, active_digest=one)
    entry = registry.promote("two", "prod", by="anna", gate=gate, override=None)
    assert entry.body["gate"]["file_sha256"] == sha256_of(gate) and entry.body["override"] is None


@pytest.mark.parametrize(("values", "words"), [
    (None, "there is no verdict of a gate"), ({"verdict": "fail"}, "the gate says fail"),
    ({"verdict": "inconclusive"}, "the gate says inconclusive"), ({"active_digest": "f" * 64}, "compared it with ffff"),
])
def test_what_no_gate_let_pass_needs_a_reason_which_is_kept(registry, tmp_path, values, words):
    one = registry.state().find("one").digest
    gate = None if values is None else verdict(tmp_path / "gate.json", candidate_digest=one, **values)
    refused(registry, words, lambda: registry.promote("one", "prod", by="anna", gate=gate, override=None))
    entry = registry.promote("one", "prod", by="anna", gate=gate, override="urgent")
    assert entry.body["override"]["reason"] == "urgent" and words in entry.body["override"]["of"]


@pytest.mark.parametrize(("values", "words"), [
    ({"candidate_digest": "f" * 64}, "candidate_digest: judges ffff"),
    ({"candidate_digest": None}, "candidate_digest: must be the digest"),
    ({"verdict": "ok"}, "verdict: must be one of pass, fail, inconclusive, found 'ok'"),
    ({"rows": None}, "rows: must be a list"),
])
def test_a_verdict_of_something_else_is_refused_even_with_a_reason(registry, tmp_path, values, words):
    gate = verdict(tmp_path / "gate.json", **{"candidate_digest": registry.state().find("one").digest, **values})
    refused(registry, words, lambda: registry.promote("one", "prod", by="anna", gate=gate, override="urgent"))


def test_a_changed_adapter_is_never_made_active(registry):
    promote(registry, "one")
    promote(registry, "two")
    for name, change in (("one", lambda: registry.rollback("prod", by="bob", reason=None)),
                         ("two", lambda: promote(registry, "two", "other"))):
        path = registry.path_of(registry.state().find(name)) / "adapter_config.json"
        path.write_text(path.read_text().replace("8", "9"))
        refused(registry, "adapter_config.json: is not what was added", change)


def test_what_is_there_already_is_refused(registry, tmp_path):
    again = adapter_folder(tmp_path / "again", 1, lora_dropout=0.5)
    refused(registry, "already, as one .* with another adapter_config.json", lambda: take_in(registry, again, "new"))
    third = adapter_folder(tmp_path / "third", 3)
    refused(registry, "--name: one is taken", lambda: take_in(registry, third, "one"))


def test_a_damaged_ledger_takes_no_more_entries(registry):
    path = registry.folder / "ledger.jsonl"
    path.write_bytes(path.read_bytes().replace(b"anna", b"bert", 1))
    refused(registry, r"ledger.jsonl:1: is damaged", lambda: promote(registry, "one"))


def test_a_folder_that_cannot_be_written_to_is_one_sentence(registry, monkeypatch):
    def read_only(path, *_):
        raise OSError(30, "Read-only file system", path)

    monkeypatch.setattr("rlhflab.registry.ledger.os.open", read_only)
    refused(registry, "cannot be written to .Read-only file system.", lambda: promote(registry, "one"))


def test_another_key_is_refused_and_the_own_one_is_private(registry, tmp_path):
    assert (tmp_path / "key.pem").stat().st_mode & 0o777 == 0o600
    Registry.init(tmp_path / "second", key=tmp_path / "second.pem")
    stranger = Registry(registry.folder, key=tmp_path / "second.pem")
    refused(registry, "is another key", lambda: promote(stranger, "one"))
    refused(registry, "there is no such key", lambda: promote(Registry(registry.folder, key=tmp_path / "no"), "one"))


def promote_many(folder: Path, key: Path, deployment: str, times: int) -> None:
    for turn in range(times):
        promote(Registry(folder, key=key), ("one", "two")[turn % 2], deployment)


def test_processes_that_write_at_once_wait_for_each_other(registry, tmp_path):
    processes = [get_context("spawn").Process(target=promote_many, args=(
        registry.folder, tmp_path / "key.pem", deployment, 5)) for deployment in ("a", "b")]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0, 0]
    assert len(registry.entries()) == 3 + 10 and verify(registry)["ok"]
