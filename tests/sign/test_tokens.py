"""Keys on a token, through SoftHSM."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from auditspec.errors import UsageError
from auditspec.sign import keys
from auditspec.sign.dsse import Envelope
from auditspec.sign.keys import Algorithm
from auditspec.sign.tokens import TokenSigner

MODULES = [
    Path(folder) / "softhsm/libsofthsm2.so"
    for folder in ("/usr/lib", "/usr/lib/x86_64-linux-gnu", "/usr/lib/aarch64-linux-gnu")
]
MODULE = next((path for path in MODULES if path.exists()), None)
pytestmark = pytest.mark.skipif(
    MODULE is None or shutil.which("softhsm2-util") is None, reason="needs softhsm2"
)


@pytest.fixture(scope="module")
def token(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a fresh token, whose PIN is in `pin`."""
    folder = tmp_path_factory.mktemp("token")
    (folder / "tokens").mkdir()
    (folder / "pin").write_text("1234\n")
    (folder / "pin").chmod(0o600)
    (folder / "softhsm2.conf").write_text(f"directories.tokendir = {folder}/tokens\n")
    os.environ["SOFTHSM2_CONF"] = str(folder / "softhsm2.conf")
    made = ["--init-token", "--free", "--label", "auditor", "--pin", "1234", "--so-pin", "4321"]
    subprocess.run(["softhsm2-util", *made], check=True, capture_output=True)
    for number, algorithm in enumerate(("ecdsa-p256-sha256", "rsa-pss-sha256"), 1):
        keys.write_private(folder / algorithm, keys.generate(algorithm))
        put = ["--import", str(folder / algorithm), "--token", "auditor", "--label", algorithm]
        put += ["--id", f"0{number}", "--pin", "1234"]
        subprocess.run(["softhsm2-util", *put], check=True, capture_output=True)
    return folder


def uri(token: Path, label: str, pin: str = "pin") -> str:
    return f"pkcs11:token=auditor;object={label}?module-path={MODULE}&pin-source={token}/{pin}"


@pytest.mark.parametrize("algorithm", ["ecdsa-p256-sha256", "rsa-pss-sha256"])
def test_it_signs_as_the_key_does(token: Path, algorithm: Algorithm) -> None:
    signer = TokenSigner(uri(token, algorithm))
    private = keys.load_private(token / algorithm)
    assert signer.algorithm == algorithm
    assert signer.keyid == keys.keyid(private.public_key())
    envelope = Envelope("application/x", b"payload").signed_by(signer)
    (signature,) = envelope.signatures
    assert keys.verifies(private.public_key(), signature.sig, envelope.pae)
    assert not keys.verifies(private.public_key(), signature.sig, b"other")


def test_clear_errors(token: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (token / "wrong").write_text("0000")
    (token / "wrong").chmod(0o600)
    for bad in (
        "pkcs11:token=auditor",
        uri(token, "none"),
        uri(token, "rsa-pss-sha256", "wrong"),
        uri(token, "rsa-pss-sha256").replace("token=auditor", "token=other"),
        uri(token, "rsa-pss-sha256").replace(str(MODULE), "/nowhere.so"),
    ):
        with pytest.raises(UsageError, match="pkcs11:"):
            TokenSigner(bad)
    without = uri(token, "rsa-pss-sha256").partition("&")[0]
    monkeypatch.delenv("AUDITSPEC_PIN", raising=False)
    with pytest.raises(UsageError, match="nobody to ask"):
        TokenSigner(without)
    assert TokenSigner(without, lambda what: b"1234").algorithm == "rsa-pss-sha256"
    monkeypatch.setenv("AUDITSPEC_PIN", "1234")
    assert TokenSigner(without).algorithm == "rsa-pss-sha256"


def test_without_the_library_a_token_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pkcs11", None)
    with pytest.raises(UsageError, match="needs python-pkcs11"):
        TokenSigner("pkcs11:token=t;object=o?module-path=/none.so")
