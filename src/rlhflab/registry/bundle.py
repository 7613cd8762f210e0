"""One adapter for somebody else: a folder or a tar file that is checked without the registry it came from.

A bundle is laid out as a registry that holds one adapter, so that the same check reads both. It holds the whole ledger,
since the chain of hashes is what makes its one adapter's entry trustworthy.
"""

import shutil
import tarfile
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rlhflab.errors import RegistryError
from rlhflab.registry.audit import BUNDLE, SUMS, refuse_damaged
from rlhflab.registry.cards import change_log, model_card
from rlhflab.registry.records import (
    ADAPTERS,
    HEAD_FILE,
    LEDGER,
    PUBLIC_KEY,
    SIGNATURE,
    Adapter,
    canonical,
    parse_head,
    sha256_of,
)
from rlhflab.registry.state import history, state_of
from rlhflab.registry.store import Registry

PACKED = (".gz", ".tgz", ".bz2", ".xz", ".zip")
"""Ends of names of files that bundles are not: weights get no smaller by packing."""
CARD, CHANGES_PAGE, HOW = "MODEL_CARD.md", "CHANGES.md", "VERIFY.md"
INSTRUCTIONS = """# How to check this bundle

It holds the adapter {name} in `adapters/{digest}/`, the ledger of the registry it came from, and the
ledger's head.
The digest of the adapter is the sha256 of its `adapter_model.safetensors`{with_head}.

**With mini-rlhf-lab**, which needs no database and no network for it:

```sh
rlhflab registry verify --bundle .
```

**Without it**, in a shell, in this folder:

1. every file is as listed: `sha256sum -c SHA256SUMS`
2. the ledger is one chain, and the entry that added the adapter names the digests of its files:

```sh
python3 - <<'END'
import hashlib, json
h = "0" * 64
for line in open("ledger.jsonl", encoding="utf-8", newline="\\n"):
    entry = json.loads(line)
    said = {{k: v for k, v in entry.items() if k not in ("hash", "signature")}}
    text = json.dumps(said, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    h = hashlib.sha256((h + text).encode()).hexdigest()
    assert h == entry["hash"], entry["number"]
    if entry["kind"] == "add" and entry["body"]["digest"] == "{digest}":
        for name, digest in entry["body"]["files"].items():
            data = open("adapters/{digest}/" + name, "rb").read()
            assert hashlib.sha256(data).hexdigest() == digest, name
assert h == json.load(open("HEAD"))["hash"], "the ledger was cut off"
print("whole, ends with", h)
END
```

{signatures}
"""
SIGNED = """3. the head is signed by the key in `key.pub`:

```sh
python3 -c "import base64, json; head = json.load(open('HEAD')); \\
open('/tmp/head.sig', 'wb').write(base64.b64decode(head['signature'])); \\
open('/tmp/head.txt', 'w').write('rlhflab head\\\\n%d\\\\n%s\\\\n' % (head['entries'], head['hash']))"
openssl dgst -sha256 -verify key.pub -signature /tmp/head.sig /tmp/head.txt
```

{folder}

`key.pub` proves only that whoever has the key made all of it. Whose key it is, with sha256 {fingerprint}, has to be
known from elsewhere; then: `rlhflab registry verify --bundle . --public-key THEIR.pub`."""
FOLDER_SIGNED = """4. the adapter's folder is signed as OpenSSF model signing does it, by its own tool
(`pip install model-signing pyOpenSSL`):

```sh
model_signing verify key adapters/{digest} --signature adapters/{digest}/model.sig --public_key key.pub
```"""
FOLDER_UNSIGNED = "The adapter's folder has no OpenSSF signature of its own; the ledger's entries hold its digests."
UNSIGNED = "**Unsigned.** No key signed any of this: it is whole, but nothing proves who made it."


def export(registry: Registry, adapter: Adapter, out: Path) -> Path:
    """Write the bundle to the new folder or `.tar` file `out`. RegistryError where the adapter was damaged."""
    if out.exists():
        raise RegistryError(f"{out}: exists already; give another --out, or remove it yourself")
    if out.suffix in PACKED:
        raise RegistryError(f"{out}: --out is a new folder or a file that ends in .tar; {out.suffix} is neither")
    refuse_damaged(registry, adapter)
    out.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(dir=out.parent, prefix=f".{out.name}."))
    try:
        folder = scratch / out.name.removesuffix(".tar")
        _fill(folder, registry, adapter)
        if out.suffix == ".tar":
            with tarfile.open(scratch / "bundle", "w") as tar:
                tar.add(folder, arcname=folder.name)
            (scratch / "bundle").rename(out)
        else:
            folder.rename(out)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return out


def _fill(folder: Path, registry: Registry, adapter: Adapter) -> None:
    shutil.copytree(registry.path_of(adapter), folder / ADAPTERS / adapter.digest)
    head = parse_head((registry.folder / HEAD_FILE).read_text(encoding="utf-8"))
    entries = registry.entries()[:head.entries]  # another process may have added some since the head was read
    if registry.verifier is not None:
        (folder / PUBLIC_KEY).write_bytes(registry.verifier.pem)
    texts = {LEDGER: "".join(f"{entry.line}\n" for entry in entries), HEAD_FILE: head.text,
             BUNDLE: canonical({"adapter": adapter.digest, "format": 1}) + "\n",
             CARD: model_card(adapter, state_of(entries), signed=registry.signed),
             CHANGES_PAGE: change_log(adapter, history(entries, adapter)), HOW: _instructions(registry, adapter)}
    for name, text in texts.items():
        (folder / name).write_text(text, encoding="utf-8")
    names = sorted(path.relative_to(folder).as_posix() for path in folder.glob("**/*") if path.is_file())
    (folder / SUMS).write_text("".join(f"{sha256_of(folder / name)}  {name}\n" for name in names), encoding="utf-8")


def _instructions(registry: Registry, adapter: Adapter) -> str:
    signatures = UNSIGNED
    if registry.verifier is not None:
        folder = FOLDER_SIGNED.format(digest=adapter.digest) if SIGNATURE in adapter.files else FOLDER_UNSIGNED
        signatures = SIGNED.format(folder=folder, fingerprint=registry.verifier.fingerprint)
    return INSTRUCTIONS.format(
        name=adapter.name, digest=adapter.digest, signatures=signatures,
        with_head="" if not adapter.head else ", or, as here, where there is a head, of what `sha256sum "
        "adapter_model.safetensors head.safetensors` prints")


@contextmanager
def unpacked(path: Path) -> Iterator[Path]:
    """The folder of a bundle, unpacked for as long as it is needed where it is a tar file."""
    if path.is_dir():
        yield path
        return
    with tempfile.TemporaryDirectory() as scratch:
        try:
            with tarfile.open(path) as tar:
                tar.extractall(scratch, filter="data")
        except (OSError, tarfile.TarError) as error:
            raise RegistryError(f"{path}: is not a bundle: {' '.join(str(error).split())}") from error
        folders = [each for each in Path(scratch).iterdir() if (each / BUNDLE).is_file()]
        if len(folders) != 1:
            raise RegistryError(f"{path}: is not a bundle: it has no {BUNDLE}")
        yield folders[0]
