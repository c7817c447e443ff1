"""What the last revision of a PDF changes: PAdES B-LTA adds a timestamp after the signature.

pyHanko judges any change, in time that grows with the square of the report's objects (a minute for
twelve pages). Here only one is allowed, so only the objects of that revision are looked at.
"""

from __future__ import annotations

import io
from collections.abc import Mapping

from pyhanko.pdf_utils import generic
from pyhanko.pdf_utils.generic import ArrayObject, DictionaryObject, PdfObject, Reference
from pyhanko.pdf_utils.reader import PdfFileReader

DESCRIPTIVE = {"/ModDate", "/Producer"}
"""Entries of the document's information that every writer renews; no reader shows them as content."""


def adds_only_a_timestamp(reader: PdfFileReader) -> bool:
    """Whether the last revision adds an invisible document timestamp, and nothing else."""
    last = reader.xrefs.total_revisions - 1
    before, after = reader.get_historical_resolver(last - 1), reader.get_historical_resolver(last)
    if set(reader.xrefs.refs_freed_in_revision(last)) or before.root_ref != after.root_ref:
        return False
    added: list[Reference] = []
    redefined: list[Reference] = []
    for ref in reader.xrefs.explicit_refs_in_revision(last):
        is_new = reader.xrefs.get_introducing_revision(ref) == last
        (added if is_new else redefined).append(ref)
    return all(_is_timestamp(after(ref)) for ref in added) and all(
        _is_bookkeeping(before(ref), after(ref)) for ref in redefined
    )


def _is_timestamp(new: PdfObject) -> bool:
    """The timestamp itself, its form field, which has no size, or the revision's cross-references."""
    if not isinstance(new, DictionaryObject):
        return False
    if new.get("/Type") in ("/DocTimeStamp", "/XRef"):
        return True
    rectangle = [float(side) for side in new.get("/Rect", [0, 0, 1, 1])]
    return (
        new.get("/FT") == "/Sig"
        and rectangle[:2] == rectangle[2:]
        and not {"/A", "/AA", "/AP"} & new.keys()
    )


def _is_bookkeeping(old: PdfObject, new: PdfObject) -> bool:
    """The field is entered in its page and in the form; descriptions of the file are renewed."""
    if not isinstance(old, DictionaryObject) or not isinstance(new, DictionaryObject):
        return False
    if old.get("/Type") == new.get("/Type") == "/Metadata":
        return True
    if "/Fields" in old:
        return _grows(old, new, "/Fields")
    if old.get("/Type") == "/Page":
        return _grows(old, new, "/Annots")
    return _same(old, new, except_for=DESCRIPTIVE if "/Type" not in old else set())


def _grows(old: Mapping[str, PdfObject], new: Mapping[str, PdfObject], key: str) -> bool:
    """Equal but for one item at the end of a list."""
    was, now = old.get(key, ArrayObject()), new.get(key, ArrayObject())
    return (
        isinstance(was, ArrayObject)
        and isinstance(now, ArrayObject)
        and len(now) <= len(was) + 1
        and [_bytes(item) for item in _items(now)[: len(was)]] == [_bytes(i) for i in _items(was)]
        and _same(old, new, except_for={key})
    )


def _same(
    old: Mapping[str, PdfObject], new: Mapping[str, PdfObject], *, except_for: set[str]
) -> bool:
    return {k: _bytes(_raw(old, k)) for k in old if k not in except_for} == {
        k: _bytes(_raw(new, k)) for k in new if k not in except_for
    }


def _raw(holder: Mapping[str, PdfObject], key: str) -> PdfObject:
    """An entry as it is written: a reference stays one."""
    return holder.raw_get(key) if isinstance(holder, DictionaryObject) else holder[key]


def _items(array: ArrayObject) -> list[PdfObject]:
    return [array.raw_get(index) for index in range(len(array))]


def _bytes(value: generic.PdfObject) -> bytes:
    out = io.BytesIO()
    value.write_to_stream(out, None)
    return out.getvalue()
