"""The revision of a signature holds the signature, and nothing that a reader shows, runs, or opens."""

import io
from collections.abc import Callable

import pki
import pytest
from hostile_pdf import HOSTILE, Writer, opens_a_script, second_results, signing_with
from pyhanko.pdf_utils.incremental_writer import IncrementalPdfFileWriter
from weasyprint import HTML, Attachment

from auditspec.sign.credentials import Credentials
from auditspec.sign.pdf import RefusedPdfError, is_signed_over, read_signature, sign_pdf

HOLDER = pki.root().issue("Lead auditor")
CREDENTIALS = Credentials(HOLDER.signer, HOLDER.chain, level="B-B")


@pytest.fixture(scope="module")
def plain() -> bytes:
    attached = Attachment(string="{}", name="results.json")
    made: bytes = HTML(string="<title>t</title><p>three</p>").write_pdf(attachments=[attached])
    return made


def test_a_signature_alone_holds(plain: bytes) -> None:
    signed = sign_pdf(plain, CREDENTIALS)
    assert read_signature(signed).level == "B-B"
    assert is_signed_over(signed, plain)


@pytest.mark.parametrize("hostile", HOSTILE)
def test_what_comes_with_the_signature_is_refused(
    plain: bytes, monkeypatch: pytest.MonkeyPatch, hostile: Callable[[Writer], None]
) -> None:
    """The key's holder puts it into the very revision that is signed."""
    signing_with(monkeypatch, hostile)
    signed = sign_pdf(plain, CREDENTIALS)
    assert is_signed_over(signed, plain)
    with pytest.raises(RefusedPdfError, match="there is more than a signature"):
        read_signature(signed)


@pytest.mark.parametrize("hostile", [opens_a_script, second_results])
def test_what_comes_before_the_signature_is_refused(
    plain: bytes, hostile: Callable[[Writer], None]
) -> None:
    writer = IncrementalPdfFileWriter(io.BytesIO(plain))
    hostile(writer)
    out = io.BytesIO()
    writer.write(out)
    signed = sign_pdf(out.getvalue(), CREDENTIALS)
    assert is_signed_over(signed, plain)
    with pytest.raises(RefusedPdfError, match="there is more than a signature"):
        read_signature(signed)


def test_another_document_behind_the_rendered_one(plain: bytes) -> None:
    """Its cross-references lead to none of the bytes before, so no reader shows what was rendered."""
    whole, places = plain, []
    for number, content in enumerate(
        (
            b"<< /Type /Catalog /Pages 2 0 R >>",
            b"<< /Type /Pages /Kids [3 0 R] /Count 1 >>",
            b"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 9 9] /Resources << >> >>",
        ),
        start=1,
    ):
        places.append(len(whole))
        whole += b"%d 0 obj\n%b\nendobj\n" % (number, content)
    table = b"".join(b"%010d 00000 n \n" % place for place in places)
    start = len(whole)
    whole += b"xref\n0 4\n0000000000 65535 f \n" + table
    whole += b"trailer\n<< /Size 4 /Root 1 0 R >>\nstartxref\n%d\n%%%%EOF\n" % start
    signed = sign_pdf(whole, CREDENTIALS)
    assert signed.startswith(plain)
    assert read_signature(signed).level == "B-B"
    assert not is_signed_over(signed, plain)
