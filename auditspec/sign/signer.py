"""Whatever can sign: a key file here, a token or a service behind the same interface."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

from auditspec.sign import keys
from auditspec.sign.confidential import Ask, nobody
from auditspec.sign.keys import Algorithm, PrivateKey, PublicKey


class Signer(Protocol):
    """Signs bytes with one key."""

    @property
    def keyid(self) -> str:
        """sha256 of the public key's SubjectPublicKeyInfo in DER, hex."""
        ...

    @property
    def algorithm(self) -> Algorithm:
        """What the signature bytes mean."""
        ...

    @property
    def public_key(self) -> PublicKey:
        """The key that verifies what this one signs."""
        ...

    def sign(self, data: bytes) -> bytes:
        """The signature over `data`."""
        ...


class KeySigner:
    """Signs with a private key held in memory."""

    def __init__(self, key: PrivateKey) -> None:
        self._key = key
        self.keyid = keys.keyid(key.public_key())
        self.algorithm: Algorithm = keys.algorithm_of(key)

    @classmethod
    def from_file(cls, path: Path, ask: Ask = nobody) -> KeySigner:
        """Sign with the key of a PKCS#8 PEM file; `ask` is asked for the passphrase of an encrypted one.

        Raises:
            UsageError: as `keys.load_private`.
        """
        return cls(keys.load_private(path, ask))

    @property
    def public_key(self) -> PublicKey:
        """The key that verifies what this one signs."""
        return self._key.public_key()

    def sign(self, data: bytes) -> bytes:
        """The signature over `data`."""
        return keys.sign(self._key, data)
