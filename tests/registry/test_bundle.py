"""A bundle is checked without its registry, by the command and by its own instructions; damage is seen by both."""

import re
import subprocess

import pytest

from registry_folders import everything, promote, registry_of
from rlhflab.cli import main
from rlhflab.errors import RegistryError
from rlhflab.registry.audit import verify
from rlhflab.registry.bundle import export, unpacked
from rlhflab.registry.store import Registry


@pytest.fixture
def registry(tmp_path):
    made = registry_of(tmp_path, "one", "two")
    promote(made, "one")
    return made


def exported(registry, out):
    return export(registry, registry.state().find("one"), out)


def instructed(bundle):
    """What the shell says to the instructions' commands for those without the lab."""
    text = (bundle / "VERIFY.md").read_text()
    blocks = re.findall(r"```sh\n(.*?)```", text, re.DOTALL)
    ours = [block for block in blocks if "rlhflab registry" not in block and "model_signing" not in block]
    script = "\n".join(["set -e", "sha256sum -c SHA256SUMS", *ours])
    return subprocess.run(["bash", "-c", script], cwd=bundle, capture_output=True, text=True)


def test_a_bundle_checks_out_by_the_command_and_by_its_own_instructions(registry, tmp_path, capsys):
    bundle = exported(registry, tmp_path / "bundle")
    assert main(["registry", "verify", "--bundle", str(bundle)]) == 0
    done = instructed(bundle)
    assert done.returncode == 0 and "whole, ends with" in done.stdout and "Verified OK" in done.stdout


def test_a_tar_file_is_the_same_bundle(registry, tmp_path):
    tar, folder = exported(registry, tmp_path / "mine.tar"), exported(registry, tmp_path / "mine")
    with unpacked(tar) as inside:
        assert everything(inside) == everything(folder) and verify(Registry(inside))["ok"]


def test_a_name_of_another_archive_does_not_become_a_folder(registry, tmp_path):
    with pytest.raises(RegistryError, match=r"one.tar.gz: --out is a new folder or a file that ends in .tar; .gz is"):
        exported(registry, tmp_path / "one.tar.gz")
    assert not (tmp_path / "one.tar.gz").exists()


def test_a_changed_byte_in_any_file_of_a_bundle_is_named(registry, tmp_path):
    bundle = exported(registry, tmp_path / "bundle")
    for name, content in everything(bundle).items():
        place = len(content) // 2
        (bundle / name).write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1:])
        paths = {each["path"] for each in verify(Registry(bundle))["failures"]}
        assert paths and (name == "SHA256SUMS" or any(path.startswith(name) for path in paths)), (name, paths)
        assert instructed(bundle).returncode != 0
        (bundle / name).write_bytes(content)


def test_a_tampered_bundle_ends_with_2_and_one_that_is_none_is_one_sentence(registry, tmp_path, capsys):
    bundle = exported(registry, tmp_path / "bundle")
    next(bundle.glob("adapters/*/adapter_config.json")).write_text("{}")
    assert main(["registry", "verify", "--bundle", str(bundle)]) == 2
    assert "adapter_config.json: expected" in capsys.readouterr().out
    (tmp_path / "no.tar").write_bytes(b"none")
    assert main(["registry", "verify", "--bundle", str(tmp_path / "no.tar")]) == 2
    assert "is not a bundle" in capsys.readouterr().err


def test_a_damaged_adapter_is_not_exported(registry, tmp_path):
    (registry.path_of(registry.state().find("one")) / "adapter_config.json").write_text("{}")
    with pytest.raises(RegistryError, match=r"is damaged.*nothing was done with it"):
        exported(registry, tmp_path / "bundle")
    assert not (tmp_path / "bundle").exists()


def test_an_unsigned_bundle_says_so(tmp_path):
    bundle = exported(registry_of(tmp_path, "one", signed=False), tmp_path / "bundle")
    assert "**Unsigned.**" in (bundle / "VERIFY.md").read_text() and instructed(bundle).returncode == 0
    assert "Signed: no: nothing proves" in (bundle / "MODEL_CARD.md").read_text()
