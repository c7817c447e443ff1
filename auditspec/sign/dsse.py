"""The envelope around a signed payload: DSSE 1.0 (github.com/secure-systems-lab/dsse).

What is signed is not the payload but PAE(type, payload), which binds the payload's type:

    "DSSEv1" SP len(type) SP type SP len(payload) SP payload

Beside each signature may stand what DSSE leaves to its users, and what its readers skip: X.509
certificates that name the signer, and timestamps over the signature. No signature covers these, so a checksum stands
beside all signatures: it proves nothing, but no byte of an envelope changes by accident and unseen.
"""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

from auditspec.artifacts import strict_json
from auditspec.artifacts.digest import canonical_json, digest_bytes
from auditspec.errors import EvidenceError, SignatureError
from auditspec.sign.signer import Signer

MAX_SIGNATURES = 64
MAX_EXTRAS = 8
"""Most certificates and most timestamps beside one signature."""
STEP = "envelope-wellformed"


def pae(payload_type: str, payload: bytes) -> bytes:
    """Pre-authentication encoding: the bytes that a signature covers."""
    kind = payload_type.encode()
    return b"DSSEv1 %d %s %d %s" % (len(kind), kind, len(payload), payload)


@dataclass(frozen=True)
class Signature:
    """One signature of an envelope, and what helps to judge it; none of that is covered by it."""

    sig: bytes
    keyid: str | None = None
    """A hint; it may be missing."""
    certificates: tuple[bytes, ...] = ()
    """X.509 in DER, the signer's own first."""
    timestamps: tuple[bytes, ...] = ()
    """RFC 3161 tokens (DER ContentInfo) over `sig`."""


@dataclass(frozen=True)
class Envelope:
    """A payload, its type, and signatures over both.

    `Envelope.decode(envelope.encode()) == envelope` for an envelope with at least one signature.
    """

    payload_type: str
    payload: bytes
    signatures: tuple[Signature, ...] = ()

    @property
    def pae(self) -> bytes:
        """The bytes that every signature covers."""
        return pae(self.payload_type, self.payload)

    def signed_by(
        self,
        signer: Signer,
        certificates: Sequence[bytes] = (),
        stamp: Callable[[bytes], bytes] | None = None,
    ) -> Envelope:
        """The same envelope with one more signature.

        Args:
            signer: whoever signs.
            certificates: what names the signer, in DER, its own first.
            stamp: gives a timestamp over some bytes.
        """
        sig = signer.sign(self.pae)
        stamps = () if stamp is None else (stamp(sig),)
        signature = Signature(sig, signer.keyid, tuple(certificates), stamps)
        return replace(self, signatures=(*self.signatures, signature))

    def encode(self) -> bytes:
        """The envelope's JSON."""
        signatures = [_encode(signature) for signature in self.signatures]
        document = {
            "payload": base64.b64encode(self.payload).decode(),
            "payloadType": self.payload_type,
            "signatures": signatures,
            "checksum": digest_bytes(canonical_json(signatures)),
        }
        return json.dumps(document, indent=1).encode() + b"\n"

    @classmethod
    def decode(cls, data: bytes) -> Envelope:
        """Read an envelope strictly: `decode(data).encode() == data`, so that every byte counts.

        Raises:
            SignatureError: for anything but strict JSON with exactly these fields, written as `encode` does, canonical base64, and
                at least one signature.
        """
        try:
            stored = strict_json.load(_Envelope, data, "envelope")
        except EvidenceError as error:
            raise SignatureError(STEP, error.message) from None
        envelope = cls(
            stored.payload_type,
            _unbase64(stored.payload, "payload"),
            tuple(
                Signature(
                    _unbase64(s.sig, "sig"),
                    s.keyid,
                    tuple(_unbase64(data, "certificates") for data in s.certificates),
                    tuple(_unbase64(data, "timestamps") for data in s.timestamps),
                )
                for s in stored.signatures
            ),
        )
        if envelope.encode() != data:
            raise SignatureError(
                STEP,
                "it was changed: it is not written as signing writes it",
                "get the packet again",
            )
        return envelope


class _Stored(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)


class _Signature(_Stored):
    sig: Annotated[str, Field(min_length=1)]
    keyid: str | None = None
    certificates: Annotated[list[str], Field(max_length=MAX_EXTRAS)] = []
    timestamps: Annotated[list[str], Field(max_length=MAX_EXTRAS)] = []


class _Envelope(_Stored):
    payload: str
    payload_type: str = Field(alias="payloadType")
    signatures: Annotated[list[_Signature], Field(min_length=1, max_length=MAX_SIGNATURES)]
    checksum: str = ""


def _encode(signature: Signature) -> dict[str, Any]:
    document: dict[str, Any] = {"sig": base64.b64encode(signature.sig).decode()}
    if signature.keyid is not None:
        document = {"keyid": signature.keyid, **document}
    for name in ("certificates", "timestamps"):
        if getattr(signature, name):
            document[name] = [base64.b64encode(d).decode() for d in getattr(signature, name)]
    return document


def _unbase64(text: str, what: str) -> bytes:
    """Decode canonical base64: one spelling per value (QQ== and QR== decode alike)."""
    try:
        data = base64.b64decode(text.encode("ascii"), validate=True)
    except (binascii.Error, UnicodeEncodeError):
        raise SignatureError(STEP, f"{what} is not base64") from None
    if base64.b64encode(data).decode() != text:
        raise SignatureError(STEP, f"{what} is not canonical base64")
    return data
