"""The PDF's own signature: every level and kind of key, and what programs of others say of it."""

import io
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pki
import pypdf
import pytest
from sample_packet import packet_files, packet_result

from auditspec.errors import UsageError
from auditspec.sign import timestamps
from auditspec.sign.certificates import Authorities
from auditspec.sign.credentials import Credentials, Level
from auditspec.sign.keys import Algorithm
from auditspec.sign.pdf import RefusedPdfError, is_signed, read_signature, sign_pdf
from auditspec.sign.timestamps import RefusedTimestampError, TimestampAuthority

ROOT, TSA_ROOT = pki.root(), pki.root("Example TSA Root")
TSA = pki.timestamping(TSA_ROOT)
TRUSTED = Authorities((TSA_ROOT.der,), (TSA_ROOT.crl(),))
needs_openssl = pytest.mark.skipif(shutil.which("openssl") is None, reason="needs openssl")


@pytest.fixture(scope="module")
def plain() -> bytes:
    return packet_files(packet_result())["report.pdf"]


@pytest.fixture(scope="module")
def tsa(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with pki.serving(TSA, tmp_path_factory.mktemp("tsa") / "tsa") as url:
        yield url


def credentials(holder: pki.Holder, level: Level, url: str | None = None) -> Credentials:
    return Credentials(
        holder.signer,
        holder.chain,
        TimestampAuthority(url) if url else None,
        level,
        (ROOT.crl(), TSA_ROOT.crl()),
        (ROOT.certificate, TSA_ROOT.certificate),
    )


@pytest.mark.parametrize("algorithm", ["ecdsa-p256-sha256", "ed25519", "rsa-pss-sha256"])
def test_every_kind_of_key(plain: bytes, algorithm: Algorithm, tmp_path: Path) -> None:
    holder = ROOT.issue("Lead auditor", algorithm=algorithm)
    signed = sign_pdf(plain, credentials(holder, "B-B"))
    assert signed.startswith(plain) and is_signed(signed) and not is_signed(plain)
    found = read_signature(signed)
    assert (found.level, found.timestamps, found.chain[0]) == ("B-B", (), holder.der)
    if shutil.which("pdfsig") and algorithm != "ed25519":  # which poppler does not know
        assert pdfsig(signed, tmp_path) == "Signature is Valid."


@needs_openssl
@pytest.mark.parametrize(("level", "stamps"), [("B-T", 1), ("B-LT", 1), ("B-LTA", 2)])
def test_levels_with_a_timestamp(
    plain: bytes, tsa: str, level: Level, stamps: int, tmp_path: Path
) -> None:
    signed = sign_pdf(plain, credentials(ROOT.issue("Lead auditor"), level, tsa))
    found = read_signature(signed)
    assert (found.level, len(found.timestamps)) == (level, stamps)
    for stamp in found.timestamps:
        moment = timestamps.check(stamp.token, stamp.data, TRUSTED)
        assert abs(moment - pki.NOW) < pki.DAY
        with pytest.raises(RefusedTimestampError, match="other data"):
            timestamps.check(stamp.token, stamp.data + b"x", TRUSTED)
    if shutil.which("pdfsig"):
        assert pdfsig(signed, tmp_path) == "Signature is Valid."


def pdfsig(pdf: bytes, folder: Path) -> str:
    """What poppler says about the first signature."""
    (folder / "report.pdf").write_bytes(pdf)
    ran = subprocess.run(["pdfsig", "-nocert", "report.pdf"], cwd=folder, capture_output=True)
    return re.findall(r"Signature Validation: (.*)", ran.stdout.decode())[0]


def test_the_reader_sees_the_same_document(plain: bytes) -> None:
    signed = sign_pdf(plain, credentials(ROOT.issue("Lead auditor"), "B-B"))
    before, after = (pypdf.PdfReader(io.BytesIO(data)) for data in (plain, signed))
    assert len(before.pages) == len(after.pages)
    assert before.pages[1].extract_text() == after.pages[1].extract_text()
    assert before.attachments == after.attachments


@needs_openssl
def test_what_is_added_after_the_timestamp_is_refused(plain: bytes, tsa: str) -> None:
    signed = sign_pdf(plain, credentials(ROOT.issue("Lead auditor"), "B-LTA", tsa))
    writer = pypdf.PdfWriter(io.BytesIO(signed), incremental=True)
    writer.add_metadata({"/Title": "another"})
    out = io.BytesIO()
    writer.write(out)
    assert out.getvalue().startswith(signed)
    with pytest.raises(RefusedPdfError, match="was changed after it was signed"):
        read_signature(out.getvalue())


def test_a_pdf_that_is_none(plain: bytes) -> None:
    for data in (b"", b"%PDF-1.7\n", plain, plain[: len(plain) // 2]):
        with pytest.raises(RefusedPdfError):
            read_signature(data)


def test_what_signing_needs(plain: bytes, tmp_path: Path) -> None:
    holder, other = ROOT.issue("Lead auditor"), ROOT.issue("Other")
    with pytest.raises(UsageError, match="needs a certificate"):
        sign_pdf(plain, Credentials(holder.signer))
    with pytest.raises(UsageError, match="the certificate is for the key"):
        Credentials(holder.signer, other.chain)
    with pytest.raises(UsageError, match="needs a timestamp authority"):
        Credentials(holder.signer, holder.chain, level="B-T")
    with pytest.raises(UsageError, match="not an http or https address"):
        TimestampAuthority("file:///etc/passwd")


@needs_openssl
def test_lasting_levels_need_revocation_lists(plain: bytes, tsa: str) -> None:
    holder = ROOT.issue("Lead auditor")
    bare = Credentials(
        holder.signer,
        holder.chain,
        TimestampAuthority(tsa),
        "B-LT",
        known=(ROOT.certificate, TSA_ROOT.certificate),
    )
    with pytest.raises(UsageError, match="level B-LT"):
        sign_pdf(plain, bare)


def test_an_authority_that_does_not_answer(plain: bytes) -> None:
    nobody = credentials(ROOT.issue("Lead auditor"), "B-T", "http://127.0.0.1:9/")
    with pytest.raises(UsageError, match=r"127\.0\.0\.1:9"):
        sign_pdf(plain, nobody)
