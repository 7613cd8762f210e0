"""One changed byte in any file is found and named; what a stopped process left is not taken for damage."""

import base64
import hashlib
import json
import shutil
import sys
from types import ModuleType

import pytest

from registry_folders import adapter_folder, everything, promote, registry_of, take_in
from rlhflab.cli import main
from rlhflab.registry.audit import verify
from rlhflab.registry.ledger import Ledger
from rlhflab.registry.records import canonical, chained
from rlhflab.registry.store import Registry


@pytest.fixture(autouse=True)
def folders_can_be_signed(monkeypatch):
    """model_signing imports pyOpenSSL for its certificates, which nothing here uses; where it is missing, an empty
    module stands in for it.
    """
    try:
        import OpenSSL  # noqa: F401
    except ImportError:
        stub = ModuleType("OpenSSL")
        stub.crypto = ModuleType("OpenSSL.crypto")
        monkeypatch.setitem(sys.modules, "OpenSSL", stub)
        monkeypatch.setitem(sys.modules, "OpenSSL.crypto", stub.crypto)


@pytest.fixture(params=[True, False], ids=["signed", "unsigned"])
def registry(request, tmp_path):
    made = registry_of(tmp_path, "one", "two", signed=request.param)
    promote(made, "one")
    promote(made, "two")
    return made


def named(found):
    return {failure["path"].partition(":")[0] for failure in found["failures"]}


def test_a_whole_registry_is_well(registry):
    files = [name for name in everything(registry.folder) if not name.startswith("active")]
    assert len(files) == (2 * 4 + 3 if registry.signed else 2 * 3 + 2)
    assert verify(registry) == {"ok": True, "checked": len(files) + 1, "failures": [], "ledger": {
        "ok": True, "entries": 5, "hash": registry.entries()[-1].hash, "signed": registry.signed, "unfinished": False}}


def test_one_flipped_bit_in_any_byte_range_of_any_file_is_named(registry):
    for name, content in everything(registry.folder).items():
        path = registry.folder / name
        if path.is_symlink():
            continue
        places = {0, len(content) // 3, len(content) // 2, len(content) - 2, len(content) - 1}
        for place in sorted(places):
            path.write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1:])
            found = verify(Registry(registry.folder))
            assert not found["ok"], (name, place)
            assert name in named(found), (name, place, found["failures"])
        path.write_bytes(content)
    assert verify(registry)["ok"]


@pytest.mark.parametrize(("change", "path"), [
    (lambda folder: (folder / "HEAD").unlink(), "HEAD"),
    (lambda folder: (folder / "active/prod").unlink(), "active/prod"),
    (lambda folder: (folder / "active/other").symlink_to("../adapters"), "active/other"),
    (lambda folder: next(folder.glob("adapters/*/adapter_config.json")).unlink(), "adapters"),
    (lambda folder: (next(folder.glob("adapters/*")) / "more.json").write_text("{}"), "adapters"),
    (lambda folder: (folder / "adapters/mine").mkdir(), "adapters/mine"),
])
def test_what_is_missing_or_strange_is_named(registry, change, path):
    change(registry.folder)
    [failure] = verify(registry)["failures"]
    assert failure["path"].startswith(path) and None in (failure["expected"], failure["found"])


@pytest.mark.parametrize("lines", [1, 2, 3])
def test_a_ledger_that_was_cut_off_is_seen(registry, lines):
    path = registry.folder / "ledger.jsonl"
    path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:-lines]))
    assert {"path": "ledger.jsonl", "expected": "5 entries, as HEAD says", "found": f"{5 - lines}: it was cut off"
            } in verify(registry)["failures"]


def test_a_ledger_written_anew_without_the_key_is_seen(tmp_path):
    registry = registry_of(tmp_path, "one")
    entries, lines, previous = registry.entries(), [], "0" * 64
    for entry in entries:
        said = {**entry.said, "by": "mallory"}
        previous = chained(previous, said)
        lines.append(canonical({**said, "hash": previous, "signature": entry.signature}) + "\n")
    (registry.folder / "ledger.jsonl").write_text("".join(lines))
    assert named(verify(registry)) == {"ledger.jsonl"}


def test_an_old_ledger_with_its_own_head_is_seen_by_a_hash_kept_elsewhere(registry):
    kept = everything(registry.folder)
    promote(registry, "one")
    last = registry.entries()[-1].hash
    for name in ("ledger.jsonl", "HEAD"):
        (registry.folder / name).write_bytes(kept[name])
    link = registry.folder / "active/prod"
    link.unlink()
    link.symlink_to(kept["active/prod"])
    assert verify(registry)["ok"] and not verify(registry, ends_with=last)["ok"]


def test_another_public_key_than_the_trusted_one_is_seen(tmp_path):
    registry = registry_of(tmp_path, "one")
    Registry.init(tmp_path / "second", key=tmp_path / "second.pem")
    assert verify(registry, key=registry.folder / "key.pub")["ok"]
    assert named(verify(registry, key=tmp_path / "second/key.pub")) == {"key.pub"}


def test_a_process_stopped_before_the_pointer_or_the_head_is_finished_by_the_next(registry, monkeypatch):
    old, new = (registry.state().find(name).digest for name in ("two", "one"))
    with monkeypatch.context() as stopped:
        stopped.setattr(Registry, "_follow", lambda registry, entry: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            promote(registry, "one")
    link = registry.folder / "active/prod"
    found = verify(registry)
    assert found["ok"] and found["ledger"]["unfinished"] and link.resolve().name == old
    promote(registry, "two", "elsewhere")
    assert link.resolve().name == new and not verify(registry)["ledger"]["unfinished"]


def test_half_a_line_never_counted(registry, monkeypatch):
    path = registry.folder / "ledger.jsonl"
    path.write_bytes(path.read_bytes() + b'{"at":"2026')
    found = verify(registry)
    assert found["ok"] and found["ledger"]["unfinished"] and found["ledger"]["entries"] == 5
    promote(registry, "one")
    assert len(registry.entries()) == 6 and verify(registry)["ok"]


def test_an_adapter_whose_entry_is_written_is_there_after_a_stop(tmp_path, monkeypatch):
    with monkeypatch.context() as stopped, pytest.raises(ZeroDivisionError):
        made = Registry.init(tmp_path / "registry", key=tmp_path / "key.pem")
        stopped.setattr(Ledger, "write_head", lambda ledger, entry: 1 / 0)
        take_in(made, adapter_folder(tmp_path / "one", 1), "one")
    assert verify(made)["ok"] and made.path_of(made.state().find("one")).is_dir()
    take_in(made, adapter_folder(tmp_path / "two", 2), "two")
    assert verify(made)["ledger"] | {"hash": None} == {"ok": True, "entries": 3, "hash": None, "signed": True,
                                                       "unfinished": False}


def test_a_deployment_without_an_adapter_is_well(registry):
    registry.rollback("prod", by="bob", reason=None, to="base")
    assert verify(registry, "prod")["ok"]


def test_what_another_process_writes_meanwhile_is_not_taken_for_damage(registry, monkeypatch):
    read, states = Registry.read, []

    def slowly(place):
        states.append(read(place))
        if len(states) == 1:
            promote(registry, "one")
        return states[-1]

    with monkeypatch.context() as busy:
        busy.setattr(Registry, "read", slowly)
        assert verify(Registry(registry.folder))["ok"]


def test_only_what_is_asked_for_is_checked(registry):
    one, two = (registry.state().find(name) for name in ("one", "two"))
    (registry.path_of(one) / "adapter_config.json").write_text("{}")
    assert verify(registry, two.digest)["ok"] and verify(registry, "prod")["ok"]
    assert not verify(registry, "one")["ok"] and not verify(registry)["ok"]


def test_the_statement_names_every_file_and_the_library_reads_the_folders_signature(tmp_path):
    registry = registry_of(tmp_path, "one")
    folder = registry.path_of(registry.state().find("one"))
    from model_signing import verifying  # here, where what it imports can be stood in for

    envelope = json.loads((folder / "statement.json").read_text())
    statement = json.loads(base64.b64decode(envelope["payload"]))
    assert statement["_type"] == "https://in-toto.io/Statement/v1"
    assert {each["name"]: each["digest"]["sha256"] for each in statement["subject"]} == {
        name: hashlib.sha256((folder / name).read_bytes()).hexdigest()
        for name in ("adapter_config.json", "adapter_model.safetensors")}
    checker = verifying.Config().use_elliptic_key_verifier(public_key=registry.folder / "key.pub")
    checker.verify(folder, folder / "model.sig")
    (folder / "adapter_config.json").write_text("{}")
    with pytest.raises(ValueError, match="Signature mismatch"):
        checker.verify(folder, folder / "model.sig")


def test_verify_prints_json_and_ends_with_2_where_something_is_wrong(registry, capsys):
    flags = ["registry", "verify", "--json", "--registry", str(registry.folder)]
    assert main(flags) == 0 and json.loads(capsys.readouterr().out)["ok"] is True
    [config] = registry.folder.glob(f"adapters/{registry.state().find('one').digest}/adapter_config.json")
    before = hashlib.sha256(config.read_bytes()).hexdigest()
    config.write_text("{}")
    assert main(flags) == 2
    assert json.loads(capsys.readouterr().out)["failures"] == [{
        "path": str(config.relative_to(registry.folder)), "expected": before,
        "found": hashlib.sha256(b"{}").hexdigest()}]


def test_a_statement_or_a_signature_of_something_else_is_named_though_its_digest_fits(tmp_path, monkeypatch):
    registry = registry_of(tmp_path, "one")
    other = registry.path_of(registry.state().find("one"))
    with monkeypatch.context() as forged:
        forged.setattr("rlhflab.registry.store.statement_of", lambda adapter: {"_type": "another"})
        forged.setattr("rlhflab.registry.store.sign_folder",
                       lambda folder, signer: shutil.copyfile(other / "model.sig", folder / "model.sig") and None)
        two = take_in(registry, adapter_folder(tmp_path / "two", 2), "two").adapter
    where = f"adapters/{two.digest}/"
    assert named(verify(registry)) == {where + "statement.json", where + "model.sig"}
