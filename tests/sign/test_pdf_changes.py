"""The revision of a signature holds the signature, and nothing that a reader shows, runs, or opens."""

import io
from collections.abc import Callable
from typing import Any

import pki
import pytest
from pyhanko.pdf_utils import embed
from pyhanko.pdf_utils.generic import (
    ArrayObject,
    DictionaryObject,
    NameObject,
    NumberObject,
    StreamObject,
    TextStringObject,
)
from pyhanko.pdf_utils.incremental_writer import IncrementalPdfFileWriter
from weasyprint import HTML, Attachment

from auditspec.sign import pdf as signing
from auditspec.sign.credentials import Credentials
from auditspec.sign.pdf import RefusedPdfError, is_signed_over, read_signature, sign_pdf

HOLDER = pki.root().issue("Lead auditor")
CREDENTIALS = Credentials(HOLDER.signer, HOLDER.chain, level="B-B")
Writer = Any


def name(text: str) -> NameObject:
    return NameObject(f"/{text}")


def page(writer: Writer) -> Any:
    return writer.root["/Pages"]["/Kids"][0]


def script() -> DictionaryObject:
    return DictionaryObject(
        {name("S"): name("JavaScript"), name("JS"): TextStringObject("app.alert('CLEARED')")}
    )


def opens_a_script(writer: Writer) -> None:
    writer.root[name("OpenAction")] = writer.add_object(script())
    writer.update_root()


def script_when_a_page_opens(writer: Writer) -> None:
    page(writer)[name("AA")] = DictionaryObject({name("O"): script()})
    writer.update_container(page(writer))


def stamp_over_the_page(writer: Writer) -> None:
    content = writer.add_object(StreamObject(stream_data=b"1 1 1 rg 0 0 600 900 re f"))
    old = page(writer).raw_get("/Contents")
    page(writer)[name("Contents")] = ArrayObject([old, content])
    writer.update_container(page(writer))


def stamp_as_annotation(writer: Writer) -> None:
    look = writer.add_object(StreamObject(stream_data=b"1 1 1 rg 0 0 600 900 re f"))
    stamp = DictionaryObject(
        {
            name("Type"): name("Annot"),
            name("Subtype"): name("Stamp"),
            name("Rect"): ArrayObject([NumberObject(side) for side in (0, 0, 600, 900)]),
            name("AP"): DictionaryObject({name("N"): look}),
        }
    )
    page(writer)[name("Annots")] = ArrayObject([writer.add_object(stamp)])
    writer.update_container(page(writer))


def second_results(writer: Writer) -> None:
    file = embed.EmbeddedFileObject.from_file_data(writer, data=b'{"verdicts": []}')
    embed.embed_file(writer, embed.FileSpec("results.json", embedded_data=file))


def replaced_content(writer: Writer) -> None:
    content = page(writer)["/Contents"]
    content._data = b"BT ET"
    content._encoded_data = None
    writer.update_container(content)


def another_title(writer: Writer) -> None:
    info = writer.prev.trailer["/Info"]
    info[name("Title")] = TextStringObject("CLEARED")
    writer.update_container(info)


def form_by_xfa(writer: Writer) -> None:
    form = DictionaryObject({name("Fields"): ArrayObject(), name("XFA"): ArrayObject()})
    writer.root[name("AcroForm")] = writer.add_object(form)
    writer.update_root()


def unreferenced_object(writer: Writer) -> None:
    writer.add_object(DictionaryObject({name("Anything"): TextStringObject("hidden")}))


def layers(writer: Writer) -> None:
    writer.root[name("OCProperties")] = DictionaryObject()
    writer.update_root()


def other_extensions(writer: Writer) -> None:
    writer.root[name("Extensions")] = DictionaryObject({name("EVIL"): script()})
    writer.update_root()


@pytest.fixture(scope="module")
def plain() -> bytes:
    attached = Attachment(string="{}", name="results.json")
    made: bytes = HTML(string="<title>t</title><p>three</p>").write_pdf(attachments=[attached])
    return made


def test_a_signature_alone_holds(plain: bytes) -> None:
    signed = sign_pdf(plain, CREDENTIALS)
    assert read_signature(signed).level == "B-B"
    assert is_signed_over(signed, plain)


@pytest.mark.parametrize(
    "hostile",
    [
        opens_a_script,
        script_when_a_page_opens,
        stamp_over_the_page,
        stamp_as_annotation,
        second_results,
        replaced_content,
        another_title,
        form_by_xfa,
        unreferenced_object,
        layers,
        other_extensions,
    ],
)
def test_what_comes_with_the_signature_is_refused(
    plain: bytes, monkeypatch: pytest.MonkeyPatch, hostile: Callable[[Writer], None]
) -> None:
    """The key's holder puts it into the very revision that is signed."""

    class Hostile(signing._Writer):
        def __init__(self, stream: io.BytesIO) -> None:
            super().__init__(stream)
            hostile(self)

    monkeypatch.setattr(signing, "_Writer", Hostile)
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
