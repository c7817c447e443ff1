import hashlib
import shutil
import subprocess
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from auditspec.errors import UsageError
from auditspec.sign import keys
from auditspec.sign.keys import Algorithm
from auditspec.sign.signer import KeySigner


@pytest.mark.parametrize("algorithm", ["ecdsa-p256-sha256", "ed25519", "rsa-pss-sha256"])
def test_round_trip(tmp_path: Path, algorithm: Algorithm) -> None:
    key = keys.generate(algorithm)
    keys.write_private(tmp_path / "a.key", key)
    keys.write_public(tmp_path / "a.pub", key.public_key())
    assert (tmp_path / "a.key").stat().st_mode & 0o777 == 0o600
    public = keys.load_public(tmp_path / "a.pub")
    signer = KeySigner.from_file(tmp_path / "a.key")
    assert signer.keyid == keys.keyid(public)
    assert signer.algorithm == keys.algorithm_of(public) == algorithm
    assert keys.verifies(public, signer.sign(b"data"), b"data")
    assert not keys.verifies(public, signer.sign(b"data"), b"Data")
    assert not keys.verifies(public, b"", b"data")
    assert not keys.verifies(keys.generate(algorithm).public_key(), signer.sign(b"data"), b"data")


def test_keyid_is_the_sha256_of_the_spki(tmp_path: Path) -> None:
    if shutil.which("openssl") is None:
        pytest.skip("openssl is not installed")
    key = keys.generate("ecdsa-p256-sha256").public_key()
    keys.write_public(tmp_path / "a.pub", key)
    der = subprocess.run(
        ["openssl", "pkey", "-pubin", "-in", tmp_path / "a.pub", "-outform", "DER"],
        capture_output=True,
        check=True,
    ).stdout
    assert keys.keyid(key) == hashlib.sha256(der).hexdigest()


def test_keys_are_never_overwritten(tmp_path: Path) -> None:
    path = tmp_path / "a.key"
    keys.write_private(path, keys.generate("ed25519"))
    before = path.read_bytes()
    with pytest.raises(UsageError, match="never overwritten"):
        keys.write_private(path, keys.generate("ed25519"))
    assert path.read_bytes() == before
    with pytest.raises(UsageError, match="cannot be written"):
        keys.write_private(tmp_path / "none" / "a.key", keys.generate("ed25519"))


def test_clear_errors(tmp_path: Path) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    other = ec.generate_private_key(ec.SECP384R1())
    pem, pkcs8 = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
    spki, plain = serialization.PublicFormat.SubjectPublicKeyInfo, serialization.NoEncryption()
    secret = serialization.BestAvailableEncryption(b"secret")
    contents = {
        "encrypted": key.private_bytes(pem, pkcs8, secret),
        "p384": other.private_bytes(pem, pkcs8, plain),
        "p384.pub": other.public_key().public_bytes(pem, spki),
        "rsa": rsa.generate_private_key(65537, 1024).private_bytes(pem, pkcs8, plain),
        "key": key.private_bytes(pem, pkcs8, plain),
        "pub": key.public_key().public_bytes(pem, spki),
        "text": b"hello",
    }
    for name, data in contents.items():
        (tmp_path / name).write_bytes(data)
        (tmp_path / name).chmod(0o600)
    for name, said in [
        ("encrypted", "is encrypted"),
        ("p384", "unsupported kind"),
        ("rsa", "unsupported kind"),
        ("pub", "holds a public key"),
        ("text", "not PKCS#8 PEM"),
        ("none", "no such file"),
    ]:
        with pytest.raises(UsageError, match=said):
            keys.load_private(tmp_path / name)
    for name, said in [
        ("p384.pub", "unsupported kind"),
        ("key", "holds a private key"),
        ("text", "not SPKI PEM"),
        ("none", "no such file"),
    ]:
        with pytest.raises(UsageError, match=said):
            keys.load_public(tmp_path / name)
