"""Programs and libraries of others accept what is good and refuse what was tampered with."""

import json
import re
import shutil
import subprocess
from pathlib import Path

import pki
import pytest
from asn1crypto import cms
from pyhanko.pdf_utils.reader import PdfFileReader
from sample_packet import packet_result, trusting, write_certified, write_packet
from securesystemslib.dsse import Envelope as TheirEnvelope
from securesystemslib.exceptions import VerificationError
from securesystemslib.signer import CryptoSigner, SSlibKey

from auditspec.errors import SignatureError
from auditspec.sign.credentials import Credentials
from auditspec.sign.dsse import Envelope, Signature
from auditspec.sign.pdf import read_signature
from auditspec.sign.signer import KeySigner
from auditspec.verification.verifier import verify

ROOT = pki.root()
needs_pdfsig = pytest.mark.skipif(shutil.which("pdfsig") is None, reason="needs poppler-utils")
needs_openssl = pytest.mark.skipif(shutil.which("openssl") is None, reason="needs openssl")


def theirs(signer: KeySigner) -> SSlibKey:
    return SSlibKey.from_crypto(signer.public_key, keyid=signer.keyid)


def spelled(made: TheirEnvelope) -> bytes:
    """The envelope of another library in the one spelling that is read (docs/trust.md)."""
    signatures = (
        Signature(bytes.fromhex(s.signature), keyid, (), ()) for keyid, s in made.signatures.items()
    )
    return Envelope(made.payload_type, made.payload, tuple(signatures)).encode()


def test_another_library_verifies_our_envelope(packet: Path, any_signer: KeySigner) -> None:
    ours = Envelope.decode((packet / "packet.dsse.json").read_bytes())
    envelope = ours.signed_by(any_signer, [b"certificate"])
    read = TheirEnvelope.from_dict(json.loads(envelope.encode()))
    assert read.pae() == envelope.pae
    key = theirs(any_signer)
    assert read.verify([key], 1) == {any_signer.keyid: key}
    read.payload += b" "
    with pytest.raises(VerificationError):
        read.verify([key], 1)


def test_we_verify_the_envelope_of_another_library(tmp_path: Path, any_signer: KeySigner) -> None:
    packet = write_packet(tmp_path / "packet", any_signer, result=packet_result(seed=1))
    ours = Envelope.decode((packet / "packet.dsse.json").read_bytes())
    made = TheirEnvelope(ours.payload, ours.payload_type, {})
    made.sign(CryptoSigner(any_signer._key, theirs(any_signer)))
    (packet / "packet.dsse.json").write_bytes(spelled(made))
    assert verify(packet, trusting(any_signer)).summary.startswith("valid")
    made.signatures[any_signer.keyid].signature = (
        "00" + made.signatures[any_signer.keyid].signature[2:]
    )
    (packet / "packet.dsse.json").write_bytes(spelled(made))
    with pytest.raises(SignatureError, match="does not verify"):
        verify(packet, trusting(any_signer))


@pytest.fixture(scope="module")
def certified_packet(tmp_path_factory: pytest.TempPathFactory) -> Path:
    holder = ROOT.issue("Lead auditor")
    credentials = Credentials(holder.signer, holder.chain, None, "B-B")
    return write_certified(tmp_path_factory.mktemp("certified") / "packet", credentials)


def pdfsig(pdf: Path) -> str:
    ran = subprocess.run(["pdfsig", "-nocert", pdf], capture_output=True, text=True)
    found = re.findall(r"Signature Validation: (.*)", ran.stdout)
    whole = "Total document signed" in ran.stdout
    return f"{found[0]} {'whole' if whole else 'part'}"


@needs_pdfsig
def test_pdfsig(certified_packet: Path, tmp_path: Path) -> None:
    good = (certified_packet / "report.pdf").read_bytes()
    pdf = tmp_path / "report.pdf"
    pdf.write_bytes(good)
    assert pdfsig(pdf) == "Signature is Valid. whole"
    pdf.write_bytes(good[:5000] + bytes([good[5000] ^ 1]) + good[5001:])
    assert "Valid" not in pdfsig(pdf)
    pdf.write_bytes(good + b"\n% more\n")
    assert pdfsig(pdf).endswith("part")


def openssl(*arguments: str, cwd: Path) -> bool:
    return subprocess.run(["openssl", *arguments], cwd=cwd, capture_output=True).returncode == 0


@needs_openssl
def test_openssl_verifies_the_pdf_and_the_certificate(
    certified_packet: Path, tmp_path: Path
) -> None:
    pdf = (certified_packet / "report.pdf").read_bytes()
    with (certified_packet / "report.pdf").open("rb") as file:
        (found,) = PdfFileReader(file).embedded_signatures
        _, before, after, _ = found.byte_range
        (tmp_path / "signature.der").write_bytes(cms.ContentInfo.load(found.pkcs7_content).dump())
    ROOT.write(tmp_path, "root")
    command = ("cms", "-verify", "-binary", "-inform", "DER", "-in", "signature.der", "-content")
    options = ("-CAfile", "root.pem", "-purpose", "any", "-out", "out")
    (tmp_path / "signed").write_bytes(pdf[:before] + pdf[after:])
    assert openssl(*command, "signed", *options, cwd=tmp_path)
    (tmp_path / "signed").write_bytes(pdf[:before] + pdf[after:] + b" ")
    assert not openssl(*command, "signed", *options, cwd=tmp_path)

    leaf = read_signature(pdf).chain[0]
    (tmp_path / "leaf.der").write_bytes(leaf)
    (tmp_path / "root.crl").write_bytes(ROOT.crl())
    check = ("verify", "-crl_check", "-CRLfile", "root.crl", "-CAfile", "root.pem", "leaf.der")
    assert openssl(*check, cwd=tmp_path)
    holder = pki.Holder(ROOT.key, (pki.x509.load_der_x509_certificate(leaf),))
    (tmp_path / "root.crl").write_bytes(ROOT.crl(holder))
    assert not openssl(*check, cwd=tmp_path)


@needs_openssl
def test_openssl_verifies_our_timestamp(tmp_path: Path) -> None:
    authority = pki.root("Example TSA Root")
    authority.write(tmp_path, "root")
    with pki.serving(pki.timestamping(authority), tmp_path / "tsa") as url:
        holder = ROOT.issue("Lead auditor")
        holder.write(tmp_path, "auditor")
        credentials = Credentials.load(holder.signer, tmp_path, "auditor.pem", url)
        assert credentials.authority is not None and credentials.level == "B-T"
        token = credentials.authority.stamp(b"data")
    (tmp_path / "token").write_bytes(token)
    for data, good in ((b"data", True), (b"other", False)):
        (tmp_path / "data").write_bytes(data)
        check = (
            "ts",
            "-verify",
            "-data",
            "data",
            "-in",
            "token",
            "-token_in",
            "-CAfile",
            "root.pem",
        )
        assert openssl(*check, cwd=tmp_path) == good
