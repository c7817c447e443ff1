"""Certificates that break their reader are refused, whatever the reader raises."""

from __future__ import annotations

import pki
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization

from auditspec.sign import certificates
from auditspec.sign.certificates import Authorities
from auditspec.sign.floor import RefusedCertificateError

ROOT = pki.root()
GOOD = ROOT.issue("Lead auditor").der
TRUSTED = Authorities((ROOT.der,), (ROOT.crl(),))


def judged(der: bytes) -> None:
    chain = certificates.load_der([der])
    certificates.subject(chain[0])
    certificates.judge(chain, TRUSTED, pki.NOW)


def test_a_good_one_stands() -> None:
    judged(GOOD)


def test_a_version_that_there_is_not() -> None:
    assert GOOD.count(b"\xa0\x03\x02\x01\x02") == 1
    with pytest.raises(RefusedCertificateError, match="cannot be read"):
        judged(GOOD.replace(b"\xa0\x03\x02\x01\x02", b"\xa0\x03\x02\x01\x05"))


def test_an_extension_that_stands_twice() -> None:
    """The last byte of one extension's name is changed to that of another."""
    usage, constraints = b"\x06\x03\x55\x1d\x0f", b"\x06\x03\x55\x1d\x13"
    held = {e.oid.dotted_string for e in x509.load_der_x509_certificate(GOOD).extensions}
    assert {"2.5.29.15", "2.5.29.19"} <= held
    with pytest.raises(RefusedCertificateError):
        judged(GOOD.replace(usage, constraints))


def test_der_is_what_is_carried() -> None:
    (certificate,) = certificates.load_der([GOOD])
    assert certificate.public_bytes(serialization.Encoding.DER) == GOOD
