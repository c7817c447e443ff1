"""What the key's holder may put into a PDF as it is signed: each changes what a reader shows, runs, or carries."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

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

from auditspec.sign import pdf as signing

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


HOSTILE = (
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
)


def signing_with(monkeypatch: pytest.MonkeyPatch, hostile: Callable[[Writer], None]) -> None:
    """From now on signing puts this into the revision that is signed."""

    class Hostile(signing._Writer):
        def __init__(self, stream: io.BytesIO) -> None:
            super().__init__(stream)
            hostile(self)

    monkeypatch.setattr(signing, "_Writer", Hostile)
