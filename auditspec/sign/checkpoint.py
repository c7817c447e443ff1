"""Checkpoints of a log: how large it is, the root over it, and who signed that.

The format is that of the C2SP: a signed note (c2sp.org/signed-note) whose text is a checkpoint
(c2sp.org/tlog-checkpoint), signed by the log's key, and by witnesses (c2sp.org/tlog-cosignature, Ed25519).

    example.org/audits                              origin, the log's name
    7                                               entries
    CsUYapGGPo4dkMgIAUqom/Xajj7h2fB2MPA3j2jxq2I=    root of their Merkle tree

    — example.org/audits Az3grlgt…                  key id (4 bytes), signature
    — witness.example/w1 jWbPPwAA…                  key id, time (8 bytes), cosignature
"""

from __future__ import annotations

import base64
import binascii
import datetime as dt
import hashlib
import re
from collections.abc import Iterable
from dataclasses import dataclass, replace

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519

from auditspec.errors import UsageError
from auditspec.sign import keys
from auditspec.sign.keys import PublicKey
from auditspec.sign.signer import Signer

MAX_ENTRIES = 10_000_000
MAX_SIGNATURES = 64
MAX_BYTES = 2**16
NAME = re.compile(r"[^\s+\x00-\x1f\x7f]{1,255}")
"""What names a log or a witness: no space, no plus sign."""
_LINE = re.compile(r"— (\S+) ([A-Za-z0-9+/=]+)")
_ED25519, _COSIGNATURE = b"\x01", b"\x04"
_TIME = 8
"""Bytes of a cosignature's time."""


class RefusedLogError(Exception):
    """A log, or a packet's place in it, does not stand; the text says why."""


@dataclass(frozen=True)
class Witness:
    """Who signs checkpoints after having checked that they extend what was seen before."""

    name: str
    key: ed25519.Ed25519PublicKey


@dataclass(frozen=True)
class NoteSignature:
    """A line below a checkpoint."""

    name: str
    data: bytes
    """Key id, then the signature."""

    def __str__(self) -> str:
        return f"— {self.name} {base64.b64encode(self.data).decode()}\n"


@dataclass(frozen=True)
class Checkpoint:
    """How large a log is, the root over its entries (hex), and the signatures below that."""

    origin: str
    size: int
    root: str
    signatures: tuple[NoteSignature, ...] = ()

    @property
    def text(self) -> bytes:
        """What the log's key signs."""
        root = base64.b64encode(bytes.fromhex(self.root)).decode()
        return f"{self.origin}\n{self.size}\n{root}\n".encode()

    def encode(self) -> bytes:
        """The signed note."""
        return self.text + ("\n" + "".join(map(str, self.signatures))).encode()

    @classmethod
    def decode(cls, data: bytes) -> Checkpoint:
        """Read a signed note strictly; `decode(data).encode() == data`.

        Raises:
            RefusedLogError: if it is malformed, or larger than any checkpoint.
        """
        try:
            origin, size, root, empty, *below = data[: MAX_BYTES + 1].decode().split("\n")
            lines = [_LINE.fullmatch(line) for line in below[:-1]]
            signed = tuple(NoteSignature(m[1], base64.b64decode(m[2])) for m in lines if m)
            found = cls(origin, int(size), base64.b64decode(root).hex(), signed)
        except (ValueError, binascii.Error):
            raise RefusedLogError("its checkpoint cannot be read: not a signed note") from None
        if found.encode() != data or empty or not 0 < len(signed) <= MAX_SIGNATURES:
            raise RefusedLogError("its checkpoint cannot be read: not written as a signed note is")
        if (
            not NAME.fullmatch(origin)
            or len(found.root) != 64
            or not 0 <= found.size <= MAX_ENTRIES
        ):
            raise RefusedLogError("its checkpoint cannot be read: no log of this kind writes it")
        return found

    def signed_by(self, signer: Signer) -> Checkpoint:
        """The checkpoint with the log's signature, and no other.

        Raises:
            UsageError: if the key is of a kind that signs no notes.
        """
        data = _key_id(self.origin, signer.public_key) + signer.sign(self.text)
        return replace(self, signatures=(NoteSignature(self.origin, data),))

    def cosigned_by(self, signer: Signer, name: str, now: dt.datetime) -> Checkpoint:
        """The checkpoint with a witness's cosignature as of `now` in place of an earlier one of this witness.

        Raises:
            UsageError: if the key is not Ed25519, or the name cannot stand in a note.
        """
        witness = witness_of(name, signer.public_key)
        time = int(now.timestamp())
        signature = signer.sign(self._cosigned(time))
        line = NoteSignature(name, _witness_id(witness) + time.to_bytes(_TIME, "big") + signature)
        others = (s for s in self.signatures if not _is_of(s, witness))
        return replace(self, signatures=(*others, line))

    def require_signed(self, key: PublicKey) -> None:
        """Check the signature of the log's key.

        Raises:
            RefusedLogError: if there is none, or one that is not over this checkpoint.
        """
        try:
            wanted = _key_id(self.origin, key)
        except UsageError as error:
            raise RefusedLogError(error.message) from None
        own = [s for s in self.signatures if s.name == self.origin and s.data[:4] == wanted]
        if not own or not all(keys.verifies(key, s.data[4:], self.text) for s in own):
            raise RefusedLogError(
                f"its checkpoint is not signed by the log's key {keys.keyid(key)[:16]}…"
            )

    def witnesses(self, known: Iterable[Witness]) -> tuple[Witness, ...]:
        """Those who cosigned it.

        Raises:
            RefusedLogError: if a cosignature in the name of one of them does not verify.
        """
        return tuple(witness for witness in known if self._has(witness))

    def _has(self, witness: Witness) -> bool:
        own = [s.data[4:] for s in self.signatures if _is_of(s, witness)]
        for data in own:
            time, signature = int.from_bytes(data[:_TIME], "big"), data[_TIME:]
            if time >= 2**63 or not keys.verifies(witness.key, signature, self._cosigned(time)):
                raise RefusedLogError(f"the cosignature of {witness.name} does not verify")
        return bool(own)

    def _cosigned(self, time: int) -> bytes:
        return b"cosignature/v1\ntime %d\n" % time + self.text


def require_name(name: str) -> str:
    """A name that can stand in a note.

    Raises:
        UsageError: if it cannot.
    """
    if not NAME.fullmatch(name):
        raise UsageError(
            f"{name!r}: names no log or witness", "1 to 255 characters without spaces and +"
        )
    return name


def witness_of(name: str, key: PublicKey) -> Witness:
    """A witness.

    Raises:
        UsageError: if the key is not Ed25519, or the name cannot stand in a note.
    """
    if not isinstance(key, ed25519.Ed25519PublicKey):
        raise UsageError(
            f"{name}: witnesses sign with Ed25519", "auditspec keys new NAME --algorithm ed25519"
        )
    return Witness(require_name(name), key)


def _is_of(signature: NoteSignature, witness: Witness) -> bool:
    return signature.name == witness.name and signature.data[:4] == _witness_id(witness)


def _witness_id(witness: Witness) -> bytes:
    return _id(witness.name, _COSIGNATURE + _raw(witness.key))


def _key_id(origin: str, key: PublicKey) -> bytes:
    if isinstance(key, ed25519.Ed25519PublicKey):
        return _id(origin, _ED25519 + _raw(key))
    if isinstance(key, ec.EllipticCurvePublicKey):
        return bytes.fromhex(keys.keyid(key))[:4]
    raise UsageError(
        "an RSA key signs no checkpoints", "keep the log with a key of ECDSA P-256 or Ed25519"
    )


def _id(name: str, key: bytes) -> bytes:
    return hashlib.sha256(name.encode() + b"\n" + key).digest()[:4]


def _raw(key: ed25519.Ed25519PublicKey) -> bytes:
    return key.public_bytes(serialization.Encoding.Raw, serialization.PublicFormat.Raw)
