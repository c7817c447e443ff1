"""The envelope around a signed payload: DSSE 1.0 (github.com/secure-systems-lab/dsse).

What is signed is not the payload but PAE(type, payload), which binds the payload's type:

    "DSSEv1" SP len(type) SP type SP len(payload) SP payload
"""

from __future__ import annotations

import base64
import binascii
import json
from dataclasses import dataclass, replace
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

from auditspec.artifacts import strict_json
from auditspec.errors import EvidenceError, SignatureError
from auditspec.sign.signer import Signer

MAX_SIGNATURES = 64
STEP = "envelope-wellformed"


def pae(payload_type: str, payload: bytes) -> bytes:
    """Pre-authentication encoding: the bytes that a signature covers."""
    kind = payload_type.encode()
    return b"DSSEv1 %d %s %d %s" % (len(kind), kind, len(payload), payload)


@dataclass(frozen=True)
class Signature:
    """One signature of an envelope; `keyid` is a hint, and may be missing."""

    sig: bytes
    keyid: str | None = None


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

    def signed_by(self, signer: Signer) -> Envelope:
        """The same envelope with one more signature."""
        signature = Signature(signer.sign(self.pae), signer.keyid)
        return replace(self, signatures=(*self.signatures, signature))

    def encode(self) -> bytes:
        """The envelope's JSON."""
        document = {
            "payload": base64.b64encode(self.payload).decode(),
            "payloadType": self.payload_type,
            "signatures": [
                {"keyid": s.keyid, "sig": base64.b64encode(s.sig).decode()}
                if s.keyid is not None
                else {"sig": base64.b64encode(s.sig).decode()}
                for s in self.signatures
            ],
        }
        return json.dumps(document, indent=1).encode() + b"\n"

    @classmethod
    def decode(cls, data: bytes) -> Envelope:
        """Read an envelope strictly, so that two readers cannot see two envelopes in it.

        Raises:
            SignatureError: for anything but strict JSON with exactly the fields of DSSE, canonical
                base64, and at least one signature.
        """
        try:
            stored = strict_json.load(_Envelope, data, "envelope")
        except EvidenceError as error:
            raise SignatureError(STEP, error.message) from None
        return cls(
            stored.payload_type,
            _unbase64(stored.payload, "payload"),
            tuple(Signature(_unbase64(s.sig, "sig"), s.keyid) for s in stored.signatures),
        )


class _Stored(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)


class _Signature(_Stored):
    sig: Annotated[str, Field(min_length=1)]
    keyid: str | None = None


class _Envelope(_Stored):
    payload: str
    payload_type: str = Field(alias="payloadType")
    signatures: Annotated[list[_Signature], Field(min_length=1, max_length=MAX_SIGNATURES)]


def _unbase64(text: str, what: str) -> bytes:
    """Decode canonical base64: one spelling per value (QQ== and QR== decode alike)."""
    try:
        data = base64.b64decode(text.encode("ascii"), validate=True)
    except (binascii.Error, UnicodeEncodeError):
        raise SignatureError(STEP, f"{what} is not base64") from None
    if base64.b64encode(data).decode() != text:
        raise SignatureError(STEP, f"{what} is not canonical base64")
    return data
