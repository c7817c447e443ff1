"""Timestamps (RFC 3161): an authority's word that some bytes existed at a moment.

Asking for one opens a network connection, and only to the address that the spec or the command names. Checking one needs
no network.
"""

from __future__ import annotations

import asyncio
import datetime as dt
import hashlib
import logging
import urllib.request
from http.client import HTTPException
from urllib.parse import urlsplit

from asn1crypto import cms, tsp
from cryptography import x509
from pyhanko.sign.general import SignedDataCerts, extract_certificate_info
from pyhanko.sign.timestamps import TimeStamper
from pyhanko.sign.timestamps.common_utils import TimestampRequestError
from pyhanko.sign.validation.generic_cms import validate_tst_signed_data
from pyhanko_certvalidator import ValidationContext

from auditspec.errors import UsageError
from auditspec.sign import certificates, http
from auditspec.sign.certificates import Authorities
from auditspec.sign.floor import RefusedCertificateError

for _library in ("pyhanko", "pyhanko_certvalidator"):  # what they have to say comes out as an error
    logging.getLogger(_library).addHandler(logging.NullHandler())

MAX_TOKEN = 2**16
"""Bytes of a timestamp."""
NOBODY = ValidationContext(trust_roots=[], allow_fetching=False)
"""For reading what a token says; whether its authority counts is asked separately."""


class RefusedTimestampError(Exception):
    """A timestamp does not stand; the text says why."""


class TimestampAuthority(TimeStamper):
    """An authority behind an HTTP address.

    Raises:
        UsageError: if the address is not an http or https one.
    """

    def __init__(self, url: str) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        if urlsplit(url).scheme not in ("http", "https") or not urlsplit(url).hostname:
            raise UsageError(f"timestamp authority {url!r}: not an http or https address")
        self.url = url
        self._opener = http.opener()

    def stamp(self, data: bytes) -> bytes:
        """A timestamp over sha256 of `data`: a DER ContentInfo.

        Raises:
            UsageError: if the authority does not answer, or refuses.
        """
        token = asyncio.run(self.async_timestamp(hashlib.sha256(data).digest(), "sha256"))
        encoded: bytes = token.dump()
        return encoded

    async def async_request_tsa_response(self, req: tsp.TimeStampReq) -> tsp.TimeStampResp:
        """Send one request (pyHanko's interface)."""
        request = urllib.request.Request(  # noqa: S310 - the scheme was checked
            self.url, req.dump(), {"Content-Type": "application/timestamp-query"}
        )
        try:
            with self._opener.open(request, timeout=http.TIMEOUT) as response:
                return tsp.TimeStampResp.load(response.read(MAX_TOKEN))
        except (OSError, HTTPException, ValueError) as error:
            raise UsageError(
                f"timestamp authority {self.url}: {getattr(error, 'reason', error)}",
                "check the address, or sign without one",
            ) from None

    async def async_timestamp(self, message_digest: bytes, md_algorithm: str) -> cms.ContentInfo:
        """A timestamp over a digest (pyHanko's interface)."""
        try:
            return await super().async_timestamp(message_digest, md_algorithm)
        except (TimestampRequestError, ValueError) as error:
            raise UsageError(f"timestamp authority {self.url}: {error}") from None


def check(token: bytes, data: bytes, authorities: Authorities) -> dt.datetime:
    """The moment at which a trusted authority saw `data`.

    Raises:
        RefusedTimestampError: if the token is malformed, is over other data, or its authority is not one of
            `authorities`, or was expired or revoked when it made it.
    """
    try:
        content = cms.ContentInfo.load(token, strict=True)
        if content["content_type"].native != "signed_data":
            raise RefusedTimestampError("it is not a timestamp")
        signed = content["content"]
        status = asyncio.run(
            validate_tst_signed_data(
                signed, NOBODY, lambda name: hashlib.new(_strong(name), data).digest()
            )
        )
        info: SignedDataCerts = extract_certificate_info(signed)
        moment: dt.datetime = status["timestamp"]
    except RefusedTimestampError:
        raise
    except Exception as error:  # hostile tokens can fail anywhere in their reader
        raise RefusedTimestampError(f"it cannot be read ({error})") from None
    if not (status["intact"] and status["valid"]):
        raise RefusedTimestampError("it is over other data, or was altered")
    chain = [info.signer_cert, *info.other_certs]
    try:
        known = [x509.load_der_x509_certificate(c.dump()) for c in chain]
    except Exception as error:  # cryptography names no common base
        raise RefusedTimestampError(f"its certificate cannot be read ({error})") from None
    try:
        certificates.judge(known, authorities, moment, "timestamp")
        certificates.require_uncompromised(known, authorities)
    except RefusedCertificateError as error:
        raise RefusedTimestampError(f"its authority is not trusted: {error}") from None
    return moment


def _strong(name: str) -> str:
    if name not in ("sha256", "sha384", "sha512"):
        raise RefusedTimestampError(f"it uses the digest {name}")
    return name
