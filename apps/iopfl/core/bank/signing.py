"""Who made a bank: Ed25519 signatures, and the signers one trusts.

A key pair is made on first use. Banks of one's own are trusted; another
signer's after `iopfl bank trust KEY`.
"""

from __future__ import annotations

import base64
from pathlib import Path

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from iopfl.base.errors import BankTrustError, ConfigError, LostKeyError
from iopfl.base.files import write_bytes
from iopfl.base.private_files import make_private, read_or_make_key

_PRIVATE, _TRUSTED = "signing.key", "trusted.txt"


def default_keys() -> Path:
    """Where a user's keys are unless told otherwise."""
    return Path.home() / ".config" / "iopfl" / "keys"


class Keyring:
    """A folder with one's own key pair and the public keys of trusted signers.

    Public keys are text, 44 characters of base64, so that they can be read
    out over the telephone. One a line in `trusted.txt`; what follows a blank is a note.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    @property
    def public_key(self) -> str:
        """One's own public key."""
        return _to_text(self._private_key().public_key())

    def sign(self, content: bytes) -> str:
        """Signature of content, base64."""
        return base64.b64encode(self._private_key().sign(content)).decode()

    def trust(self, public_key: str, note: str = "") -> None:
        """Add a signer.

        Raises:
            ConfigError: not a public key.
        """
        _from_text(public_key)
        if public_key not in self.trusted():
            make_private(self._folder)
            lines = [*self._lines(), f"{public_key} {' '.join(note.split())}".strip()]
            write_bytes(self._folder / _TRUSTED, ("\n".join(lines) + "\n").encode())

    def trusted(self) -> set[str]:
        """Public keys of all trusted signers, one's own among them."""
        own = {self.public_key} if (self._folder / _PRIVATE).is_file() else set()
        return own | {line.split()[0] for line in self._lines()}

    def check(self, content: bytes, *, signature: str, signer: str, what: str) -> None:
        """Check that content was signed, and by somebody trusted.

        Raises:
            BankTrustError: it was altered after signing, or its signer is not trusted.
        """
        check_signature(content, signature=signature, signer=signer, what=what)
        if signer not in self.trusted():
            raise BankTrustError(
                f"{what}: signed by {signer}, who is not trusted here; if that is the consortium's key, "
                f"ask them to confirm it and run: iopfl bank trust {signer}"
            )

    def _lines(self) -> list[str]:
        path = self._folder / _TRUSTED
        return [line for line in path.read_text().splitlines() if line.strip()] if path.is_file() else []

    def _private_key(self) -> Ed25519PrivateKey:
        path = self._folder / _PRIVATE
        try:
            # 32 random bytes are a private key: RFC 8032, section 5.1.5.
            return Ed25519PrivateKey.from_private_bytes(read_or_make_key(path))
        except LostKeyError as error:
            raise LostKeyError(
                f"{error}; without one, delete {path.name} and {path.stem}.id in {path.parent}: a new key is made, "
                "which every site has to trust anew"
            ) from error


def check_signature(content: bytes, *, signature: str, signer: str, what: str) -> None:
    """Check that content is what its signer signed, trusted or not.

    Raises:
        BankTrustError: it is not.
    """
    try:
        _from_text(signer).verify(base64.b64decode(signature, validate=True), content)
    except (InvalidSignature, ValueError, ConfigError) as error:
        raise BankTrustError(
            f"{what}: altered after it was signed, or not signed; get it again from its source"
        ) from error


def _to_text(key: Ed25519PublicKey) -> str:
    return base64.b64encode(key.public_bytes(Encoding.Raw, PublicFormat.Raw)).decode()


def _from_text(text: str) -> Ed25519PublicKey:
    try:
        return Ed25519PublicKey.from_public_bytes(base64.b64decode(text, validate=True))
    except ValueError as error:
        raise ConfigError(f"expected a public key, 44 characters of base64, given {text!r}") from error
