"""Signatures with a key file, offline: of ledger entries, of heads, of in-toto statements and of adapter folders.

Keys are elliptic-curve keys (P-256) in PEM, which `openssl` and `model_signing` read. Nothing here knows a registry.
`cryptography` makes and checks signatures; `model_signing` (OpenSSF) signs folders. Both come with the extra `sign`.
"""

import base64
import hashlib
import json
import os
from collections.abc import Mapping
from contextlib import redirect_stdout
from importlib import import_module
from io import StringIO
from pathlib import Path
from typing import Any

from rlhflab.errors import RegistryError
from rlhflab.registry.records import SIGNATURE, canonical

INSTALL = "pip install 'mini-rlhf-lab[sign]'"
PAYLOAD = "application/vnd.in-toto+json"
STATEMENT_TYPE = "https://in-toto.io/Statement/v1"


def can_sign() -> bool:
    """Whether `cryptography` is here."""
    try:
        import_module("cryptography.hazmat.primitives.asymmetric.ec")
    except ImportError:
        return False
    return True


def default_key() -> Path:
    """$RLHFLAB_REGISTRY_KEY, or a file of the user's own; never in the registry, which others may read."""
    given = os.environ.get("RLHFLAB_REGISTRY_KEY")
    config = Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config")
    return Path(given) if given else config / "rlhflab" / "registry-key.pem"


class Verifier:
    """A public key."""

    def __init__(self, pem: bytes, *, where: str) -> None:
        self.pem = pem
        try:
            self._key: Any = _crypto("serialization").load_pem_public_key(pem)
            self._key.curve  # noqa: B018 - an RSA key has none
        except (ValueError, AttributeError, TypeError, _unsupported()) as error:
            raise RegistryError(f"{where}: is not a public elliptic-curve key in PEM") from error

    @property
    def fingerprint(self) -> str:
        """sha256 of the PEM text, as `sha256sum key.pub` prints it."""
        return hashlib.sha256(self.pem).hexdigest()

    def verifies(self, message: bytes, signature: object) -> bool:
        """Whether `signature` (base64 of DER, spelt as `Signer.sign` spells it) is this key's of the message."""
        if not isinstance(signature, str):
            return False
        try:
            raw = base64.b64decode(signature, validate=True)
            if base64.b64encode(raw).decode() != signature:
                return False
            self._key.verify(raw, message, _ecdsa())
        except (ValueError, import_module("cryptography.exceptions").InvalidSignature):
            return False
        return True


class Signer:
    """A private key, from its file."""

    def __init__(self, path: Path) -> None:
        self.path = path
        serialization = _crypto("serialization")
        try:
            self._key: Any = serialization.load_pem_private_key(path.read_bytes(), None)
            if self._key.curve.name != "secp256r1":
                raise ValueError(self._key.curve.name)
        except FileNotFoundError as error:
            raise RegistryError(f"{path}: there is no such key; give its file with --key or RLHFLAB_REGISTRY_KEY"
                                ) from error
        except (OSError, ValueError, AttributeError, TypeError, _unsupported()) as error:
            raise RegistryError(f"{path}: is not a private key of the curve P-256 in PEM without a password") from error
        self.verifier = Verifier(self._key.public_key().public_bytes(
            serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo), where=str(path))

    @classmethod
    def make(cls, path: Path) -> "Signer":
        """The key in the file, made where there is none, readable by its owner alone (0600)."""
        if not path.exists():
            serialization, curve = _crypto("serialization"), _crypto("asymmetric.ec")
            pem = curve.generate_private_key(curve.SECP256R1()).private_bytes(
                serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
            path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
                file.write(pem)
        return cls(path)

    def sign(self, message: bytes) -> str:
        """ECDSA with SHA-256, base64 of DER."""
        return base64.b64encode(self._key.sign(message, _ecdsa())).decode()


def pre_authentication(payload: bytes) -> bytes:
    """What a DSSE signature covers (PAE of DSSE v1)."""
    return f"DSSEv1 {len(PAYLOAD)} {PAYLOAD} {len(payload)} ".encode() + payload


def enveloped(statement: Mapping[str, Any], signer: Signer | None) -> str:
    """An in-toto statement in a DSSE envelope, as text; unsigned, the statement itself."""
    if signer is None:
        return canonical(statement) + "\n"
    payload = canonical(statement).encode()
    return canonical({"payloadType": PAYLOAD, "payload": base64.b64encode(payload).decode(), "signatures": [
        {"keyid": signer.verifier.fingerprint, "sig": signer.sign(pre_authentication(payload))}]}) + "\n"


def opened(envelope: Mapping[str, Any], verifier: Verifier) -> dict[str, Any] | None:
    """The statement in a DSSE envelope that the key signed; None where it did not."""
    try:
        payload = base64.b64decode(envelope["payload"], validate=True)
        signed = envelope["payloadType"] == PAYLOAD and any(
            verifier.verifies(pre_authentication(payload), each["sig"]) for each in envelope["signatures"])
        statement: dict[str, Any] = json.loads(payload)
    except (KeyError, TypeError, ValueError):
        return None
    return statement if signed and statement.get("_type") == STATEMENT_TYPE else None


def sign_folder(folder: Path, signer: Signer) -> str | None:
    """Sign the files of a folder as OpenSSF model signing does, into its `model.sig`. Why not, where it cannot be."""
    try:
        hashing, signing = import_module("model_signing.hashing"), import_module("model_signing.signing")
    except ImportError as error:
        return f"model_signing cannot be imported ({error}); {INSTALL}"
    with redirect_stdout(StringIO()):
        signing.Config().set_hashing_config(hashing.Config().set_ignored_paths(
            paths=[folder / SIGNATURE], ignore_git_paths=False)).use_elliptic_key_signer(
            private_key=signer.path).sign(folder, folder / SIGNATURE)
    return None


def signed_files(signature: Path, verifier: Verifier) -> dict[str, str] | None:
    """sha256 of the files that a `model.sig` of this key covers, by name; None where it is not the key's."""
    try:
        bundle = json.loads(signature.read_text(encoding="utf-8"))
        statement = opened(bundle["dsseEnvelope"], verifier)
        return None if statement is None else {
            each["name"]: each["digest"] for each in statement["predicate"]["resources"]}
    except (OSError, KeyError, TypeError, ValueError):
        return None


def _crypto(module: str) -> Any:
    try:
        return import_module(f"cryptography.hazmat.primitives.{module}")
    except ImportError as error:
        raise RegistryError(f"signatures need cryptography: {INSTALL}") from error


def _unsupported() -> type[Exception]:
    """What `cryptography` raises of a kind of key it does not know."""
    error: type[Exception] = import_module("cryptography.exceptions").UnsupportedAlgorithm
    return error


def _ecdsa() -> Any:
    return _crypto("asymmetric.ec").ECDSA(_crypto("hashes").SHA256())
