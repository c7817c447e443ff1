"""What revisions add to a PDF: its signature, and with PAdES B-LTA a timestamp after it, and nothing else.

pyHanko judges any change, in time that grows with the square of the report's objects (a minute for
twelve pages). Here a revision may add an invisible field with its value and the evidence beside it, so only the objects
of that revision are looked at, entry by entry: whatever a reader could show, run, or open is refused.
"""

from __future__ import annotations

import io
from collections.abc import Mapping

from pyhanko.pdf_utils import generic
from pyhanko.pdf_utils.generic import (
    ArrayObject,
    DictionaryObject,
    PdfObject,
    Reference,
    StreamObject,
)
from pyhanko.pdf_utils.reader import HistoricalResolver, PdfFileReader

VALUE = {"/Contents", "/ByteRange", "/Type", "/Filter", "/SubFilter", "/M", "/Reference"}
FIELD = {"/FT", "/T", "/TU", "/Type", "/Subtype", "/F", "/Rect", "/P", "/V"}
CATALOG = {"/AcroForm", "/Perms", "/DSS", "/Extensions", "/Version"}
"""Entries of the catalogue that a signature brings."""
ENTRIES = {
    "/AcroForm": {"/Fields", "/SigFlags"},
    "/Perms": {"/DocMDP"},
    "/DSS": {"/Type", "/Certs", "/CRLs"},
    "/Extensions": {
        *("/ESIC", "/ISO_", "/ADBE", "/Type", "/BaseVersion"),
        *("/ExtensionLevel", "/URL", "/ExtensionRevision"),
    },
}
"""What each of these may hold, at whatever depth that is written in place."""


def adds_only(reader: PdfFileReader, revision: int, kind: str) -> bool:
    """Whether a revision adds one invisible signature field, and nothing that a reader shows or runs.

    Args:
        reader: of the PDF.
        revision: its number; it must not be the first, which has the number 0.
        kind: `/Sig` or `/DocTimeStamp`.
    """
    before = reader.get_historical_resolver(revision - 1)
    after = reader.get_historical_resolver(revision)
    if set(reader.xrefs.refs_freed_in_revision(revision)) or _trailer(before) != _trailer(after):
        return False
    added: list[Reference] = []
    redefined: list[Reference] = []
    for ref in reader.xrefs.explicit_refs_in_revision(revision):
        is_new = reader.xrefs.get_introducing_revision(ref) == revision
        (added if is_new else redefined).append(ref)
    root = after.root
    entered = {_reference(root, name): ENTRIES[name] for name in ("/AcroForm", "/DSS")}
    evidence = _evidence(root["/DSS"]) if "/DSS" in root else set()
    values = [ref for ref in added if _is_value(after(ref), kind)]
    rest = [ref for ref in added if ref not in values]
    return (
        len(values) == 1
        and sum(_is_field(after(ref), values[0]) for ref in rest) == 1
        and all(
            _is_field(after(ref), values[0])
            or _is_cross_reference(after(ref))
            or (ref in entered and set(after(ref)) <= entered[ref])
            or (ref in evidence and _is_plain_stream(after(ref)))
            for ref in rest
        )
        and all(_is_entered(before(ref), after(ref), ref == after.root_ref) for ref in redefined)
    )


def _trailer(resolver: HistoricalResolver) -> dict[str, PdfObject]:
    """What the trailer says of the document; a writer renews the rest."""
    view = resolver.trailer_view
    return {key: view.raw_get(key) for key in view if key in ("/Root", "/Info", "/Encrypt")}


def _is_value(new: PdfObject, kind: str) -> bool:
    return isinstance(new, DictionaryObject) and new.get("/Type") == kind and set(new) <= VALUE


def _is_field(new: PdfObject, value: Reference) -> bool:
    """The form field of the signature, which has no size and no look."""
    if not isinstance(new, DictionaryObject) or new.get("/FT") != "/Sig" or not set(new) <= FIELD:
        return False
    rectangle = [float(side) for side in new.get("/Rect", [0, 0, 1, 1])]
    return rectangle[:2] == rectangle[2:] and _reference(new, "/V") == value


def _is_cross_reference(new: PdfObject) -> bool:
    return isinstance(new, StreamObject) and new.get("/Type") == "/XRef"


def _evidence(store: DictionaryObject) -> set[Reference | None]:
    """Certificates and revocation lists."""
    lists = [store[name] for name in ("/Certs", "/CRLs") if name in store]
    return {_reference(items, index) for items in lists for index in range(len(items))}


def _is_plain_stream(new: PdfObject) -> bool:
    return isinstance(new, StreamObject) and set(new) <= {"/Length", "/Filter"}


def _is_entered(old: PdfObject, new: PdfObject, is_root: bool) -> bool:
    """The field is entered in its page and in the form, the signature and its evidence in the catalogue."""
    if not isinstance(old, DictionaryObject) or not isinstance(new, DictionaryObject):
        return False
    if is_root:
        return _same(old, new, except_for=CATALOG) and all(
            _holds_only(_raw(new, name), allowed)
            for name, allowed in ENTRIES.items()
            if name in new
        )
    if "/Fields" in old:
        return _grows(old, new, "/Fields")
    return old.get("/Type") == "/Page" and _grows(old, new, "/Annots")


def _holds_only(value: PdfObject, allowed: set[str]) -> bool:
    """No other entries in dictionaries that are written in place."""
    if isinstance(value, DictionaryObject):
        return set(value) <= allowed and all(
            _holds_only(_raw(value, key), allowed) for key in value
        )
    if isinstance(value, ArrayObject):
        return all(_holds_only(item, allowed) for item in _items(value))
    return True


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


def _reference(holder: PdfObject, key: str | int) -> Reference | None:
    """Where an entry points; None where it points nowhere."""
    try:
        value = holder.raw_get(key)  # type: ignore[attr-defined]
    except (KeyError, IndexError):
        return None
    return getattr(value, "reference", None)


def _raw(holder: Mapping[str, PdfObject], key: str) -> PdfObject:
    """An entry as it is written: a reference stays one."""
    return holder.raw_get(key) if isinstance(holder, DictionaryObject) else holder[key]


def _items(array: ArrayObject) -> list[PdfObject]:
    return [array.raw_get(index) for index in range(len(array))]


def _bytes(value: generic.PdfObject) -> bytes:
    out = io.BytesIO()
    value.write_to_stream(out, None)
    return out.getvalue()
