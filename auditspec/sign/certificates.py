"""X.509: who holds a key, in the eyes of authorities that the verifier trusts.

A certificate is judged at one moment, offline: the path from it to a trusted root (RFC 5280), the
validity of every certificate on it, and revocation lists, which come from the verifier. Without a
list that covers a certificate the judgement fails, unless the policy says not to look.
"""

from __future__ import annotations

import asyncio
import datetime as dt
import hashlib
import secrets
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from asn1crypto import crl as asn1_crl
from asn1crypto import x509 as asn1_x509
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ed25519
from cryptography.x509.oid import NameOID
from pyhanko_certvalidator import CertificateValidator, ValidationContext
from pyhanko_certvalidator.errors import PathError, ValidationError
from pyhanko_certvalidator.policy_decl import (
    CertRevTrustPolicy,
    RevocationCheckingPolicy,
    RevocationCheckingRule,
)

from auditspec.artifacts.files import read_regular
from auditspec.errors import EvidenceError, UsageError
from auditspec.sign.floor import Purpose, RefusedCertificateError, require_floor, require_lists
from auditspec.sign.keys import PrivateKey, PublicKey, is_supported

Revocation = Literal["required", "not-checked"]
MAX_CHAIN = 8
SELF_SIGNED_DAYS = 2 * 366
_UNCHECKED = RevocationCheckingPolicy(
    ee_certificate_rule=RevocationCheckingRule.NO_CHECK,
    intermediate_ca_cert_rule=RevocationCheckingRule.NO_CHECK,
)
_USAGES: dict[Purpose, tuple[set[str], set[str]]] = {
    "sign": ({"digital_signature"}, set()),
    "timestamp": (set(), {"time_stamping"}),
}


@dataclass(frozen=True)
class Authorities:
    """Trusted roots, and their revocation lists; all DER."""

    roots: tuple[bytes, ...] = ()
    crls: tuple[bytes, ...] = ()
    revocation: Revocation = "required"


def judge(
    chain: Sequence[x509.Certificate],
    authorities: Authorities,
    moment: dt.datetime,
    purpose: Purpose = "sign",
) -> None:
    """Check that a trusted root vouched, at `moment`, for the first certificate of `chain`.

    Raises:
        RefusedCertificateError: if no path leads to a root, a certificate on it was expired, not yet valid or
            revoked at `moment`, no revocation list covers it, it is made for another purpose, or a key or hash is
            weaker than `require_floor` and `require_lists` allow.
    """
    leaf, *others = chain
    if purpose == "sign" and _is_made_for_timestamps(leaf):
        raise RefusedCertificateError("it is made for timestamps, not for signing reports")
    context = ValidationContext(
        trust_roots=[asn1_x509.Certificate.load(root) for root in authorities.roots],
        other_certs=[_asn1(certificate) for certificate in others],
        crls=[asn1_crl.CertificateList.load(crl) for crl in authorities.crls],
        ocsps=[],
        moment=moment,
        allow_fetching=False,
        revinfo_policy=CertRevTrustPolicy(_UNCHECKED)
        if authorities.revocation == "not-checked"
        else None,
        revocation_mode="require",
        retroactive_revinfo=True,
    )
    validator = CertificateValidator(_asn1(leaf), validation_context=context)
    try:
        found = asyncio.run(validator.async_validate_usage(*_USAGES[purpose]))  # type: ignore[no-untyped-call]
        path = [x509.load_der_x509_certificate(certificate.dump()) for certificate in found]
        require_floor(path, purpose)
        if authorities.revocation == "required":
            require_lists(authorities.crls, path)
    except RefusedCertificateError:
        raise
    except (PathError, ValidationError) as error:
        raise RefusedCertificateError(" ".join(str(error).split())) from None
    except Exception as error:  # hostile certificates can fail anywhere in their reader
        raise RefusedCertificateError(f"it cannot be read ({error})") from None


_HARMLESS = {
    x509.ReasonFlags.affiliation_changed,
    x509.ReasonFlags.superseded,
    x509.ReasonFlags.cessation_of_operation,
    x509.ReasonFlags.unspecified,
}
"""Reasons of revocation that leave what was made before standing (RFC 3161, section 4)."""


def require_uncompromised(chain: Sequence[x509.Certificate], authorities: Authorities) -> None:
    """Refuse a chain with a certificate whose key may have been in other hands, at whatever moment.

    Whoever has a leaked key of a timestamp authority writes any moment into a token; so a revocation
    for another than a harmless reason, or for none that is given, spoils its earlier tokens too.

    Raises:
        RefusedCertificateError: then.
    """
    for data in authorities.crls:
        crl = x509.load_der_x509_crl(data)
        for certificate in chain:
            if certificate.issuer != crl.issuer:
                continue
            entry = crl.get_revoked_certificate_by_serial_number(certificate.serial_number)
            if entry is not None and _reason(entry) not in _HARMLESS:
                raise RefusedCertificateError("its key may have been in other hands")


def _reason(entry: x509.RevokedCertificate) -> x509.ReasonFlags | None:
    try:
        return entry.extensions.get_extension_for_class(x509.CRLReason).value.reason
    except x509.ExtensionNotFound:
        return None


def read_chain(path: Path) -> tuple[x509.Certificate, ...]:
    """The certificates of a PEM file, the signer's own first.

    Raises:
        UsageError: if the file cannot be read or holds no certificate, too many, or one with a key of
            an unsupported kind.
    """
    try:
        chain = tuple(x509.load_pem_x509_certificates(_read(path)))
        public_key(chain[0])
    except (ValueError, RefusedCertificateError) as error:
        raise UsageError(f"{path}: not PEM certificates ({error})", "name a .pem file") from None
    if len(chain) > MAX_CHAIN:
        raise UsageError(f"{path}: holds more than {MAX_CHAIN} certificates")
    return chain


def read_crls(path: Path) -> tuple[bytes, ...]:
    """The revocation lists of a file, in DER: one in DER, or several in PEM.

    Raises:
        UsageError: if the file cannot be read, or holds something else.
    """
    data = _read(path)
    parts = data.split(b"-----BEGIN X509 CRL-----")[1:]
    try:
        if not parts:
            return (_crl_der(x509.load_der_x509_crl(data)),)
        pem = (b"-----BEGIN X509 CRL-----" + part for part in parts)
        return tuple(_crl_der(x509.load_pem_x509_crl(part)) for part in pem)
    except ValueError as error:
        raise UsageError(f"{path}: not a revocation list ({error})", "name a .crl file") from None


def load_der(certificates: Iterable[bytes]) -> tuple[x509.Certificate, ...]:
    """Certificates that a packet carries.

    Raises:
        RefusedCertificateError: if one cannot be read, or the first holds a key of an unsupported kind.
    """
    try:
        chain = tuple(x509.load_der_x509_certificate(data) for data in certificates)
    except Exception as error:  # cryptography names no common base
        raise RefusedCertificateError(f"it cannot be read ({error})") from None
    public_key(chain[0])
    return chain


def public_key(certificate: x509.Certificate) -> PublicKey:
    """The key that a certificate names.

    Raises:
        RefusedCertificateError: if it is of an unsupported kind.
    """
    try:
        key = certificate.public_key()
    except Exception as error:  # cryptography names no common base
        raise RefusedCertificateError(f"its key cannot be read ({error})") from None
    if not is_supported(key):
        raise RefusedCertificateError("its key is of an unsupported kind")
    return key


def der(certificate: x509.Certificate) -> bytes:
    """The certificate's bytes."""
    return certificate.public_bytes(serialization.Encoding.DER)


def from_der(data: bytes) -> x509.Certificate:
    """The certificate of its bytes: the inverse of `der`."""
    return x509.load_der_x509_certificate(data)


def fingerprint(certificate: x509.Certificate) -> str:
    """sha256 of the certificate's bytes, hex."""
    return hashlib.sha256(der(certificate)).hexdigest()


def subject(certificate: x509.Certificate) -> str:
    """Whom the certificate names, as RFC 4514 writes it: `CN=Lead auditor,O=Example`.

    Raises:
        RefusedCertificateError: if that cannot be read.
    """
    try:
        return certificate.subject.rfc4514_string()
    except Exception as error:  # cryptography names no common base
        raise RefusedCertificateError(f"its subject cannot be read ({error})") from None


def self_signed(key: PrivateKey, name: str, now: dt.datetime) -> bytes:
    """A certificate in PEM by which a key names itself, for the signature inside the PDF.

    Whether it counts is for the verifier, who must know the key.
    """
    holder = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    certificate = (
        x509.CertificateBuilder()
        .subject_name(holder)
        .issuer_name(holder)
        .public_key(key.public_key())
        .serial_number(secrets.randbits(127) + 1)
        .not_valid_before(now)
        .not_valid_after(now + dt.timedelta(days=SELF_SIGNED_DAYS))
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_SIGNS, critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(key, None if isinstance(key, ed25519.Ed25519PrivateKey) else hashes.SHA256())
    )
    return certificate.public_bytes(serialization.Encoding.PEM)


_SIGNS = x509.KeyUsage(
    digital_signature=True,
    content_commitment=True,
    key_encipherment=False,
    data_encipherment=False,
    key_agreement=False,
    key_cert_sign=False,
    crl_sign=False,
    encipher_only=False,
    decipher_only=False,
)


def _is_made_for_timestamps(certificate: x509.Certificate) -> bool:
    try:
        usage = certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    except x509.ExtensionNotFound:
        return False
    except Exception as error:  # cryptography names no common base
        raise RefusedCertificateError(f"it cannot be read ({error})") from None
    return x509.oid.ExtendedKeyUsageOID.TIME_STAMPING in usage


def _asn1(certificate: x509.Certificate) -> asn1_x509.Certificate:
    return asn1_x509.Certificate.load(der(certificate))


def _crl_der(crl: x509.CertificateRevocationList) -> bytes:
    return crl.public_bytes(serialization.Encoding.DER)


def _read(path: Path) -> bytes:
    try:
        return read_regular(path)
    except EvidenceError as error:
        raise UsageError(error.message, error.remedy) from None
