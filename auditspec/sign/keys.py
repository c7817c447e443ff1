"""Keys: made, stored, loaded, named. Private keys are PKCS#8 PEM, public keys SPKI PEM.

A private key file may be encrypted; in any case its permissions leave it to its owner alone (0600).
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Literal, TypeGuard

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa

from auditspec.artifacts.files import read_regular, write_atomically
from auditspec.errors import EvidenceError, UsageError
from auditspec.sign.confidential import Ask, nobody, read_confidential

Algorithm = Literal["ecdsa-p256-sha256", "ed25519", "rsa-pss-sha256"]
"""`ecdsa-p256-sha256`: DER-encoded ECDSA over SHA-256; `ed25519`: 64 raw bytes (RFC 8032);
`rsa-pss-sha256`: RSASSA-PSS (RFC 8017) with SHA-256, MGF1 over SHA-256, and a salt of 32 bytes."""
PrivateKey = ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey | rsa.RSAPrivateKey
PublicKey = ec.EllipticCurvePublicKey | ed25519.Ed25519PublicKey | rsa.RSAPublicKey
KINDS = "ECDSA on P-256, Ed25519, or RSA of 2048 to 8192 bits"
RSA_BITS = 3072
PSS = padding.PSS(padding.MGF1(hashes.SHA256()), hashes.SHA256.digest_size)


def generate(algorithm: Algorithm) -> PrivateKey:
    """A new private key from the operating system's random source."""
    match algorithm:
        case "ecdsa-p256-sha256":
            return ec.generate_private_key(ec.SECP256R1())
        case "ed25519":
            return ed25519.Ed25519PrivateKey.generate()
        case "rsa-pss-sha256":
            return rsa.generate_private_key(65537, RSA_BITS)


def algorithm_of(key: PrivateKey | PublicKey) -> Algorithm:
    """The one algorithm that a key is used with."""
    if isinstance(key, ec.EllipticCurvePrivateKey | ec.EllipticCurvePublicKey):
        return "ecdsa-p256-sha256"
    if isinstance(key, rsa.RSAPrivateKey | rsa.RSAPublicKey):
        return "rsa-pss-sha256"
    return "ed25519"


def is_supported(key: object) -> TypeGuard[PublicKey]:
    """Whether a public key is of a kind that signatures may be made with."""
    if isinstance(key, rsa.RSAPublicKey):
        return 2048 <= key.key_size <= 8192
    if isinstance(key, ec.EllipticCurvePublicKey):
        return isinstance(key.curve, ec.SECP256R1)
    return isinstance(key, ed25519.Ed25519PublicKey)


def der(key: PublicKey) -> bytes:
    """The key's SubjectPublicKeyInfo in DER."""
    return key.public_bytes(
        serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    )


def from_der(data: bytes) -> PublicKey:
    """The key of a SubjectPublicKeyInfo in DER: the inverse of `der`.

    Raises:
        ValueError: if it is none, or of an unsupported kind.
    """
    key = serialization.load_der_public_key(data)
    if not is_supported(key):
        raise ValueError(f"a key that is not of {KINDS}")
    return key


def keyid(key: PublicKey) -> str:
    """sha256 of the key's SubjectPublicKeyInfo in DER, hex."""
    return hashlib.sha256(der(key)).hexdigest()


def verifies(key: PublicKey, signature: bytes, data: bytes) -> bool:
    """Whether `signature` is the key's over `data`."""
    try:
        if isinstance(key, ec.EllipticCurvePublicKey):
            key.verify(signature, data, ec.ECDSA(hashes.SHA256()))
        elif isinstance(key, rsa.RSAPublicKey):
            key.verify(signature, data, PSS, hashes.SHA256())
        else:
            key.verify(signature, data)
    except InvalidSignature:
        return False
    return True


def sign(key: PrivateKey, data: bytes) -> bytes:
    """The key's signature over `data`, as `Algorithm` says."""
    if isinstance(key, ec.EllipticCurvePrivateKey):
        return key.sign(data, ec.ECDSA(hashes.SHA256()))
    if isinstance(key, rsa.RSAPrivateKey):
        return key.sign(data, PSS, hashes.SHA256())
    return key.sign(data)


def write_private(path: Path, key: PrivateKey, passphrase: bytes | None = None) -> None:
    """Write PKCS#8 PEM that only the owner can read; encrypted (PBES2, AES-256) where a passphrase is given.

    Raises:
        UsageError: if the file exists, or its folder cannot be written.
    """
    pem = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.BestAvailableEncryption(passphrase)
        if passphrase
        else serialization.NoEncryption(),
    )
    write_new(path, pem, mode=0o600)


def write_public(path: Path, key: PublicKey) -> None:
    """Write SubjectPublicKeyInfo PEM.

    Raises:
        UsageError: if the file exists, or its folder cannot be written.
    """
    write_new(path, public_pem(key))


def public_pem(key: PublicKey) -> bytes:
    """SubjectPublicKeyInfo PEM."""
    return key.public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )


def load_private(path: Path, ask: Ask = nobody) -> PrivateKey:
    """Read a private key; `ask` is asked for the passphrase of an encrypted one.

    Raises:
        UsageError: if the file is missing, not of a supported kind, others than its owner can use it, or the
            passphrase is not the key's.
    """
    pem = read_private(path)
    passphrase = ask(f"{path}: the private key is encrypted: it") if is_encrypted(pem) else None
    try:
        key = serialization.load_pem_private_key(pem, passphrase)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        if passphrase is not None:
            raise UsageError(
                f"{path}: the passphrase does not open it",
                "try again; an error may be a damaged file",
            ) from None
        hint = "it holds a public key" if b"PUBLIC KEY" in pem else "it is not PKCS#8 PEM"
        raise UsageError(
            f"{path}: not a private key; {hint}", "make one: auditspec keys new NAME"
        ) from None
    if isinstance(key, PrivateKey) and is_supported(key.public_key()):
        return key
    raise _unsupported(path)


def read_private(path: Path) -> bytes:
    """The PEM of a private key, unopened.

    Raises:
        UsageError: if the file is missing, or others than its owner can use it.
    """
    if not path.exists():
        raise UsageError(f"{path}: no such file", f"make one: auditspec keys new {path.stem}")
    return read_confidential(path)


def is_encrypted(pem: bytes) -> bool:
    """Whether a private key needs a passphrase: PKCS#8, or OpenSSL's older form."""
    return b"BEGIN ENCRYPTED PRIVATE KEY" in pem or b"Proc-Type: 4,ENCRYPTED" in pem


def load_public(path: Path) -> PublicKey:
    """Read a public key.

    Raises:
        UsageError: if the file is missing, or not of a supported kind.
    """
    pem = _read(path)
    try:
        key = serialization.load_pem_public_key(pem)
    except (ValueError, UnsupportedAlgorithm):
        hint = "it holds a private key" if b"PRIVATE KEY" in pem else "it is not SPKI PEM"
        raise UsageError(f"{path}: not a public key; {hint}", "name the .pub file") from None
    if is_supported(key):
        return key
    raise _unsupported(path)


def write_new(path: Path, data: bytes, mode: int = 0o644) -> None:
    """Write a file that must not exist yet.

    Raises:
        UsageError: if it exists, or its folder cannot be written.
    """
    try:
        write_atomically(path, data, mode=mode, overwrite=False)
    except FileExistsError:
        raise UsageError(
            f"{path}: exists already, and is never overwritten", "choose another name"
        ) from None
    except OSError as error:
        raise UsageError(f"{path}: cannot be written ({error.strerror})") from None


def _read(path: Path) -> bytes:
    try:
        return read_regular(path)
    except EvidenceError as error:
        raise UsageError(error.message, error.remedy) from None


def _unsupported(path: Path) -> UsageError:
    return UsageError(
        f"{path}: unsupported kind of key",
        f"use {KINDS}: auditspec keys new NAME",
    )
