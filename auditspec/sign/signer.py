"""Whatever can sign: a key file, or a token or service that holds the key, behind the same interface."""

from __future__ import annotations

from abc import ABC, abstractmethod
from pathlib import Path
from typing import ClassVar, Protocol, final

from auditspec.errors import UsageError
from auditspec.plugins import blamed
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


class RemoteSigner(ABC):
    """Signs with a key that stays where it is: on a token, in a key management service. It is named by a URI.

    Secrets, such as a token's PIN, come from the environment, a file that is named, or `ask`; never from the URI, which stands
    in specs. No message shows one.
    """

    scheme: ClassVar[str]
    """Of the URI, in lower case: what stands before the colon."""
    public_key: PublicKey
    """The key that verifies what this one signs; read when the signer is made."""

    @abstractmethod
    def __init__(self, uri: str, ask: Ask = nobody) -> None:
        """Read the public key of what `uri` names; `ask` is asked for the secret that opens it.

        Raises:
            UsageError: if it cannot be used.
        """

    @abstractmethod
    def remote_signature(self, data: bytes) -> bytes:
        """The signature over `data`, as `Algorithm` says for the key's kind.

        Raises:
            UsageError: if the holder of the key refuses.
        """

    @property
    def keyid(self) -> str:
        """sha256 of the public key's SubjectPublicKeyInfo in DER, hex."""
        return keys.keyid(self.public_key)

    @property
    def algorithm(self) -> Algorithm:
        """What the signature bytes mean."""
        return keys.algorithm_of(self.public_key)

    @final
    def sign(self, data: bytes) -> bytes:
        """The signature over `data`, which the public key verifies.

        Raises:
            UsageError: if the holder of the key refuses, or what it gives is no signature by this key.
        """
        with blamed("signers", self.scheme, self):
            signature = self.remote_signature(data)
        if not keys.verifies(self.public_key, signature, data):
            raise UsageError(
                f"{self.scheme}: what came back is no signature by the key {self.keyid[:16]}…",
                "check that private and public key belong together, and that the key was not replaced",
            )
        return signature
