"""What is too weak to vouch for anybody: keys, hashes, and certificates that are made for something else."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed448, ed25519, rsa

Purpose = Literal["sign", "timestamp"]
RSA_BITS, CURVE_BITS = 2048, 256
_STRONG = (
    hashes.SHA256,
    hashes.SHA384,
    hashes.SHA512,
    hashes.SHA3_256,
    hashes.SHA3_384,
    hashes.SHA3_512,
)
_ANY = x509.ObjectIdentifier("2.5.29.37.0")
_SUITABLE: dict[Purpose, frozenset[x509.ObjectIdentifier]] = {
    "sign": frozenset(
        x509.ObjectIdentifier(dotted)
        for dotted in (
            "1.3.6.1.5.5.7.3.36",  # document signing (RFC 9336)
            "1.3.6.1.5.5.7.3.4",  # email protection, with which people sign
            "1.3.6.1.4.1.311.10.3.12",  # document signing (Microsoft)
            "1.2.840.113583.1.1.5",  # authentic documents (Adobe)
        )
    ),
    "timestamp": frozenset({x509.oid.ExtendedKeyUsageOID.TIME_STAMPING}),
}


class RefusedCertificateError(Exception):
    """A certificate does not stand; the text says why."""


def require_floor(path: Sequence[x509.Certificate], purpose: Purpose) -> None:
    """Refuse a path on which somebody is too weak, or made for something else.

    Keys: RSA of 2048 bits, curves of 256, Ed25519, Ed448, or stronger. Hashes under signatures: SHA-256 or stronger, but for the root's
    own, which nobody relies on. Extended key usage, where a certificate below the root states it (RFC 5280, 4.2.1.12):
    one that people sign documents with, or timestamps.

    Args:
        path: from the root down to the certificate that is judged.
        purpose: what it is judged for.

    Raises:
        RefusedCertificateError: naming the first certificate that falls short.
    """
    for number, certificate in enumerate(path):
        name = certificate.subject.rfc4514_string()
        _require_key(certificate, name)
        if number > 0:
            _require_hash(certificate, f"the certificate of {name}")
            _require_purpose(certificate, name, purpose)


def require_lists(crls: Sequence[bytes], path: Sequence[x509.Certificate]) -> None:
    """Refuse revocation lists of the path's authorities that are signed over a weak hash.

    Raises:
        RefusedCertificateError: naming the first.
    """
    issuers = {certificate.issuer for certificate in path}
    for data in crls:
        crl = x509.load_der_x509_crl(data)
        if crl.issuer in issuers:
            _require_hash(crl, f"the revocation list of {crl.issuer.rfc4514_string()}")


def _require_key(certificate: x509.Certificate, name: str) -> None:
    try:
        key = certificate.public_key()
    except (ValueError, UnsupportedAlgorithm):
        raise RefusedCertificateError(f"the key of {name} is of an unsupported kind") from None
    strong = isinstance(key, ed25519.Ed25519PublicKey | ed448.Ed448PublicKey)
    if isinstance(key, rsa.RSAPublicKey):
        strong = key.key_size >= RSA_BITS
    if isinstance(key, ec.EllipticCurvePublicKey):
        strong = key.curve.key_size >= CURVE_BITS
    if not strong:
        raise RefusedCertificateError(
            f"the key of {name} is too weak: less than RSA {RSA_BITS} or a curve of {CURVE_BITS} bits"
        )


def _require_hash(signed: x509.Certificate | x509.CertificateRevocationList, what: str) -> None:
    try:
        used = signed.signature_hash_algorithm
    except UnsupportedAlgorithm:
        raise RefusedCertificateError(f"{what} is signed over an unsupported hash") from None
    if used is not None and not isinstance(used, _STRONG):  # EdDSA hashes by itself
        raise RefusedCertificateError(f"{what} is signed over {used.name}, which is too weak")


def _require_purpose(certificate: x509.Certificate, name: str, purpose: Purpose) -> None:
    try:
        usage = certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    except x509.ExtensionNotFound:
        return
    if not (_SUITABLE[purpose] | {_ANY}) & set(usage):
        raise RefusedCertificateError(f"{name} is made for something else (extended key usage)")
