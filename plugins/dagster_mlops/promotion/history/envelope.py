"""Signed statements: DSSE envelopes (https://github.com/secure-systems-lab/dsse) with Ed25519, as in-toto uses them."""

import base64
import hashlib
import json
import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dagster_mlops.core.extras import LazyModule
from dagster_mlops.core.lazy_dataclass import lazy_dataclass
from dagster_mlops.errors import HistoryError

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

SIGNING_KEY, PUBLIC_KEYS = "DAGSTER_MLOPS_SIGNING_KEY", "DAGSTER_MLOPS_PUBLIC_KEYS"
"""Variables with keys: PEM texts, or paths of PEM files, several of them separated by ``:`` as in ``PATH``."""
STATEMENT, HEAD = "application/vnd.in-toto+json", "application/vnd.dagster-mlops.history-head+json"
_PEM = re.compile(r"-----BEGIN ([A-Z ]+)-----.+?-----END \1-----", re.DOTALL)
_serialization: Any = LazyModule("cryptography.hazmat.primitives.serialization")
_ed25519: Any = LazyModule("cryptography.hazmat.primitives.asymmetric.ed25519")
_exceptions: Any = LazyModule("cryptography.exceptions")


@lazy_dataclass(frozen=True)
class Envelope:
    """An envelope that was read: the statement in it, and its signatures by the id of their key."""

    kind: str
    payload: bytes
    signatures: Mapping[str, bytes]

    def content(self) -> Any:
        """The statement.

        Raises:
            HistoryError: it is not JSON.
        """
        try:
            return json.loads(self.payload)
        except (ValueError, RecursionError) as error:
            raise HistoryError(f"a signed statement is not JSON: {error}") from error

    def signer(self, keys: Mapping[str, "Ed25519PublicKey"]) -> str:
        """The id of a key among `keys` whose signature holds; empty without one.

        Raises:
            HistoryError: a signature by one of the keys is not of this statement.
        """
        for name, signature in self.signatures.items():
            if name in keys:
                try:
                    keys[name].verify(signature, _signed(self.kind, self.payload))
                except _exceptions.InvalidSignature:
                    raise HistoryError(f"the signature by key {name} is not of this text") from None
                return name
        return ""

    def is_signed(self, keys: Mapping[str, "Ed25519PublicKey"]) -> bool:
        """True if one of the keys has signed this statement; a false signature is none."""
        try:
            return bool(self.signer(keys))
        except HistoryError:
            return False


def seal(kind: str, content: Mapping[str, Any], key: "Ed25519PrivateKey | None") -> str:
    """The envelope of a statement as one line of JSON, signed where there is a key."""
    payload = json.dumps(content, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()
    signatures = []
    if key:
        signature = base64.b64encode(key.sign(_signed(kind, payload))).decode()
        signatures = [{"keyid": key_id(key.public_key()), "sig": signature}]
    envelope = {"payloadType": kind, "payload": base64.b64encode(payload).decode(), "signatures": signatures}
    return json.dumps(envelope, separators=(",", ":"))


def unseal(text: str, kind: str) -> Envelope:
    """Read an envelope. Its signatures are not judged here: see :meth:`Envelope.signer`.

    Raises:
        HistoryError: it is not an envelope of a statement of this kind.
    """
    try:
        envelope = json.loads(text)
        signatures = {
            str(each["keyid"]): base64.b64decode(each["sig"], validate=True) for each in envelope["signatures"]
        }
        read = Envelope(envelope["payloadType"], base64.b64decode(envelope["payload"], validate=True), signatures)
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise HistoryError(f"not a DSSE envelope: {type(error).__name__}: {error}") from error
    if read.kind != kind:
        raise HistoryError(f"an envelope of {read.kind!r}, where {kind!r} belongs")
    return read


def may_say(text: str, name: str, value: str) -> bool:
    """False if the statement in an envelope as :func:`seal` writes it has no fact of this name with this value.

    A tenth of the time that it takes to read the envelope.
    """
    _, _, rest = text.partition('"payload":"')
    try:
        payload = base64.b64decode(rest.partition('"')[0])
    except ValueError:
        return True
    return not rest or f'"{name}":"{value}"'.encode() in payload


def _signed(kind: str, payload: bytes) -> bytes:
    """The bytes that DSSE signs: the kind and the text, each with its length (its pre-authentication encoding)."""
    return b"DSSEv1 %d %s %d %s" % (len(kind), kind.encode(), len(payload), payload)


def key_id(key: "Ed25519PublicKey") -> str:
    """The name of a key in envelopes: the start of the hash of its bytes."""
    return hashlib.sha256(key.public_bytes_raw()).hexdigest()[:16]


def signing_key() -> "Ed25519PrivateKey | None":
    """The key in ``DAGSTER_MLOPS_SIGNING_KEY``; None where it is not set.

    Raises:
        HistoryError: it is not a private Ed25519 key.
    """
    keys = _keys(os.environ.get(SIGNING_KEY, ""), SIGNING_KEY)
    if not keys:
        return None
    if len(keys) > 1 or not isinstance(keys[0], _ed25519.Ed25519PrivateKey):
        raise HistoryError(f"{SIGNING_KEY} is not one private Ed25519 key. {_MAKE}")
    return keys[0]


def trusted_keys(files: Iterable[Path] = ()) -> dict[str, "Ed25519PublicKey"]:
    """Public keys by their id: those in `files`, those in ``DAGSTER_MLOPS_PUBLIC_KEYS``, and that of the signing key.

    Raises:
        HistoryError: one of them is not an Ed25519 key.
    """
    texts = [(os.environ.get(PUBLIC_KEYS, ""), PUBLIC_KEYS), (os.environ.get(SIGNING_KEY, ""), SIGNING_KEY)]
    texts += [(str(file), str(file)) for file in files]
    keys = [key for text, source in texts for key in _keys(text, source)]
    public = [key.public_key() if isinstance(key, _ed25519.Ed25519PrivateKey) else key for key in keys]
    return {key_id(key): key for key in public}


def new_key() -> tuple[str, str]:
    """A private key and its public key, as PEM texts."""
    key = _ed25519.Ed25519PrivateKey.generate()
    encoding, private = _serialization.Encoding.PEM, _serialization.PrivateFormat.PKCS8
    public = _serialization.PublicFormat.SubjectPublicKeyInfo
    return (
        key.private_bytes(encoding, private, _serialization.NoEncryption()).decode(),
        key.public_key().public_bytes(encoding, public).decode(),
    )


_MAKE = "Make a key with `dagster-mlops history key FILE`, and set the variable to its PEM text or to its path."


def _keys(text: str, source: str) -> list[Any]:
    if not text.strip():
        return []
    pems = [match[0] for match in _PEM.finditer(text.replace("\\n", "\n"))]
    if not pems:
        try:
            pems = [match[0] for path in text.split(":") if path for match in _PEM.finditer(Path(path).read_text())]
        except (OSError, UnicodeDecodeError) as error:
            raise HistoryError(
                f"{source} cannot be read as a key or the path of one: {type(error).__name__}. {_MAKE}"
            ) from None
    try:
        keys = [_load(pem) for pem in pems]
    except (ValueError, TypeError, _exceptions.UnsupportedAlgorithm) as error:
        raise HistoryError(f"{source} has a key that cannot be read: {error}. {_MAKE}") from error
    if not keys or not all(isinstance(key, _ed25519.Ed25519PrivateKey | _ed25519.Ed25519PublicKey) for key in keys):
        raise HistoryError(f"{source} has no Ed25519 key. {_MAKE}")
    return keys


def _load(pem: str) -> Any:
    if "PRIVATE" in pem.partition("\n")[0]:
        return _serialization.load_pem_private_key(pem.encode(), None)
    return _serialization.load_pem_public_key(pem.encode())
