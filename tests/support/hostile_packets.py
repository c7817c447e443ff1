"""Packets that cost or mislead whoever verifies them: good ones, changed by grammar and by bytes, and sealed again by a trusted key.

A packet is a base and a tuple of changes, each a name and a seed, so that costly ones can be changed further.
"""

from __future__ import annotations

import contextlib
import json
import random
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from copy import deepcopy
from dataclasses import dataclass
from functools import cache
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import world as w
from sample_packet import (
    PAGE_SPEC,
    RESOLVED,
    certified,
    concluded_again,
    packet_files,
    packet_result,
)

from auditspec.artifacts.digest import digest_bytes
from auditspec.errors import SignatureError
from auditspec.report.exports import Source
from auditspec.results import AuditResult
from auditspec.sign.contents import accompanying_files
from auditspec.sign.credentials import Credentials
from auditspec.sign.disclosure import FILE as DISCLOSURE
from auditspec.sign.disclosure import Disclosure, root_of, salted
from auditspec.sign.dsse import Envelope
from auditspec.sign.pdf import sign_pdf
from auditspec.sign.statement import PAYLOAD_TYPE, Predicate, Statement

RESULTS, PAGE, PDF, SPEC, ENVELOPE = (
    *("results.json", "report.html", "report.pdf", "spec.yaml", "packet.dsse.json"),
)
LONGEST = 2**20
"""Items to which salts grow."""
MOST = 2**22
"""Most bytes of one file; a packet may have 64 MiB, and readers are to be linear."""
ATOMS = [b"[", b"{", b'"', b",", b":", b"\\u0041", b"<a ", b"<!--", b"<data ", b"BT ", b"/", b"\0", b"9" * 99, b"]", b"\xff", b"(", b"<<", b"<g>", b"&amp;", b"- ", b"*a ", b"&a ", b"{[", b"\n"]  # fmt: skip
CHARACTERS = ["a", "<", "&", "\u202e", "e\u0301", "\u3042", "W", " ", "a ", "-", "9", "\ufdfa", "a\u00ad", "\U0001f468\u200d", "{", "}", "%", "\\", "/"]  # fmt: skip
Change = tuple[str, int]


@dataclass(frozen=True)
class Packet:
    """How to make a hostile packet."""

    base: str
    changes: tuple[Change, ...]

    def files(self) -> dict[str, bytes]:
        """Its files, the envelope by the auditor's key among them."""
        files = dict(base(self.base))
        for name, seed in self.changes:
            if not name.startswith("sealed "):
                CHANGES[name](files, random.Random(seed))
        if self.base != "withheld":
            files |= sealed(files)
        for name, seed in self.changes:
            if name.startswith("sealed "):
                with contextlib.suppress(SignatureError, ValueError):  # what was changed before
                    CHANGES[name](files, random.Random(seed))
        return files


@cache
def base(name: str) -> dict[str, bytes]:
    """A good packet: with a page alone, with a signed PDF, by another renderer.

    It is drawn in another process: whoever has started what draws charts cannot fork any more.
    """
    with ProcessPoolExecutor(1, get_context("fork")) as pool:
        return pool.submit(_drawn, name).result()


def _drawn(name: str) -> dict[str, bytes]:
    credentials = Credentials(w.AUDITOR.signer, w.AUDITOR.chain, None, "B-B")
    if name == "page":
        return packet_files(packet_result(seed=1), pdf=False)
    result = certified(credentials)
    if name == "elsewhere":
        other = result.run.renderer | {"jinja2": "2.0"}
        result = result.model_copy(
            update={"run": result.run.model_copy(update={"renderer": other})}
        )
    files = packet_files(result, pdf=True)
    return files | {PDF: sign_pdf(files[PDF], credentials)}


def sealed(files: dict[str, bytes]) -> dict[str, bytes]:
    """The envelope and the salts, by the auditor's key, of files as they are."""
    disclosure = Disclosure.fresh(files)
    try:
        root = root_of(json.loads(files[RESULTS]), disclosure)
    except Exception:  # whatever no tree can be made of
        root = root_of({"no": "tree"}, disclosure)
    try:
        predicate = Predicate.of(AuditResult.model_validate_json(files[RESULTS]), root)
    except ValueError:
        predicate = Predicate.of(packet_result(), root)
    digests = [
        {"name": n, "digest": {"salted_sha256": salted(disclosure.files[n], data)}}
        for n, data in files.items()
    ]
    statement = Statement.model_validate(
        {"subject": digests, "predicate": predicate.model_dump()},
    )
    envelope = Envelope(PAYLOAD_TYPE, statement.encode())
    signed = envelope.signed_by(w.AUDITOR.signer, [w.AUDITOR.der])
    return {ENVELOPE: signed.encode(), DISCLOSURE: disclosure.encode()}


# --- by bytes


def _mutated(data: bytes, rng: random.Random) -> bytes:
    """A few bits flipped, pieces put in, doubled, or cut out."""
    for _ in range(rng.randint(1, 3)):
        at, length = rng.randrange(len(data) + 1), rng.randint(0, 40)
        piece = rng.choice(
            [rng.choice(ATOMS), data[at : at + length] * 2, b"", bytes([rng.randrange(256)])]
        )
        data = data[:at] + piece + data[at + length :]
    return data


def _built(rng: random.Random) -> bytes:
    """Atoms repeated and nested, which is what costs readers most."""
    parts = [rng.choice(ATOMS) * 4 ** rng.randint(0, 10) for _ in range(rng.randint(1, 4))]
    return b"".join(parts)[:MOST]


def _bytes_of_any(files: dict[str, bytes], rng: random.Random) -> None:
    name = rng.choice(sorted(files))
    how = rng.random()
    if how < 0.5:
        files[name] = _mutated(files[name], rng)
    elif how < 0.7:
        files[name] = _built(rng)
    else:
        at = rng.randrange(len(files[name]) + 1)
        files[name] = files[name][:at] + _built(rng) + files[name][at:]


# --- results.json by grammar


def _nodes(value: Any, place: tuple[Any, ...] = ()) -> Iterator[tuple[tuple[Any, ...], Any]]:
    """Every value of a document with its place."""
    if place:
        yield place, value
    items = value.items() if isinstance(value, dict) else ()
    for key, item in enumerate(value) if isinstance(value, list) else items:
        yield from _nodes(item, (*place, key))


def _text(rng: random.Random) -> str:
    return "".join(
        rng.choice(CHARACTERS) * 4 ** rng.randint(0, 7) for _ in range(rng.randint(1, 3))
    )


def _nested(rng: random.Random) -> Any:
    value: Any = rng.choice([0, "x", None])
    for _ in range(rng.choice([5, 50, 400, 900])):
        value = [value] if rng.random() < 0.5 else {"a": value}
    return value


def _value(rng: random.Random) -> Any:
    return rng.choice(
        [
            *(None, True, -1, 0, 2**53 + 1, 10**300, 1e308, 5e-324, -0.0, 1e-17, "", [], {}),
            *(_text(rng), _nested(rng), [0.1] * 10 ** rng.randint(1, 5)),
            {f"k{n}": n for n in range(10 ** rng.randint(1, 4))},
        ]
    )


def _in_results(change: Callable[[Any, Any, random.Random], Any], kinds: Any) -> Any:
    def changed(files: dict[str, bytes], rng: random.Random) -> None:
        try:
            document = json.loads(files[RESULTS])
        except (ValueError, RecursionError):
            return
        # First a part of the results, then a place in it: else most changes would be to levels.
        parts = [part for part in document if isinstance(document[part], dict | list)]
        part = rng.choice(parts)
        places = [(p, v) for p, v in _nodes(document[part], (part,)) if isinstance(v, kinds)]
        if not places:
            return
        place, value = rng.choice(places)
        holder = document
        for key in place[:-1]:
            holder = holder[key]
        holder[place[-1]] = change(value, document, rng)
        data = json.dumps(document, ensure_ascii=rng.random() < 0.2).encode(errors="replace")
        if len(data) < MOST:
            files[RESULTS] = data

    return changed


def _wide(value: Any, _: Any, rng: random.Random) -> Any:
    """Many items, told apart by their ids where they have some."""
    times = 2 ** rng.randint(1, 9)
    return [_renamed(item, n) for n in range(times) for item in value][:20_000]


def _renamed(item: Any, number: int) -> Any:
    if not isinstance(item, dict):
        return item
    named = {key: f"{item[key]}-{number}" for key in ("id", "behavior") if key in item}
    return item | named


def _long(value: str, _: Any, rng: random.Random) -> str:
    return rng.choice([value * 4 ** rng.randint(1, 6), _text(rng), value + _text(rng)])


def _other(value: Any, document: Any, rng: random.Random) -> Any:
    """A value of the same kind from elsewhere, or any other."""
    alike = [v for _, v in _nodes(document) if type(v) is type(value)]
    # a copy: it may hold the place where it is put
    return deepcopy(rng.choice(alike)) if rng.random() < 0.5 else _value(rng)


def _consistent(files: dict[str, bytes], rng: random.Random) -> None:
    """Whatever follows from results that can be read follows again, so that later steps are reached."""
    try:
        result = AuditResult.model_validate_json(files[RESULTS])
        again = concluded_again(result, RESOLVED)
        drawn = {"verdicts": again.verdicts, "findings": again.findings, "gate": again.gate}
        if rng.random() < 0.7:
            result = result.model_copy(update=drawn)
        formats = ("html", "pdf") if PDF in files else ("html",)
        files |= {RESULTS: Source(result).data, **accompanying_files(result, RESOLVED, formats)}
    except Exception:  # whatever the results say: only what can be made to follow does
        return


# --- the other files by grammar


def _markup(files: dict[str, bytes], rng: random.Random) -> None:
    pieces = [
        *("<div>", "<table><tr><td colspan=100000>", "<svg>" * 3, "</p>", "<data value='1' data-ref='/a'>"),
        *("<style>*{}</style>", "<!--", "<![CDATA[", "&#x41;", "<a b='", "</data>", "<g ", "<p " + "a=b " * 9),
    ]  # fmt: skip
    added = "".join(rng.choice(pieces) * 4 ** rng.randint(0, 8) for _ in range(rng.randint(1, 3)))
    at = rng.randrange(len(files[PAGE]) + 1)
    page = files[PAGE][:at] + added.encode()[:MOST] + files[PAGE][at:]
    files[PAGE] = page if rng.random() < 0.8 else added.encode()[:MOST]


def _yaml(files: dict[str, bytes], rng: random.Random) -> None:
    n = 4 ** rng.randint(1, 7)
    hostile = rng.choice(
        [
            "a: " + "[" * n,
            "\n".join(f"k{i}: v" for i in range(n)),
            "a: &a [x]\n" + "".join(f"b{i}: &b{i} [*a, *a]\n" for i in range(min(n, 5000))),
            "a: |\n" + " x\n" * n,
            'a: "' + "\\u0041" * n + '"',
            "- " * n,
            "? " * n,
            "a: '" + "x" * n + "'",
            "{" * n,
            "# " + "x" * n,
            "a:\n" + "".join(" " * min(i, 2000) + "b:\n" for i in range(min(n, 2000))),
        ]
    )
    spec = (PAGE_SPEC.decode() if rng.random() < 0.7 else "") + hostile + "\n"
    files[SPEC] = spec.encode()[:MOST]
    try:
        document = json.loads(files[RESULTS])
        document["run"]["spec_digest"] = digest_bytes(files[SPEC])
        files[RESULTS] = json.dumps(document).encode()
    except (ValueError, RecursionError, KeyError, TypeError):
        return
    _consistent(files, rng)


def _pdf(files: dict[str, bytes], rng: random.Random) -> None:
    n = 4 ** rng.randint(1, 8)
    data = zlib.compress(b"\0" * min(16 * n, 2**28), 9)
    flate = b"<</Length %d/Filter/FlateDecode" % len(data)
    numbers = b" ".join(b"%d 0" % i for i in range(n))
    catalog = b"<</Type/Catalog/Pages 2 0 R>>"
    pages = b"<</Type/Pages/Kids[3 0 R]/Count 1>>"
    page = b"<</Type/Page/Parent 2 0 R/Contents 4 0 R/Resources<</Font<<>>>>>>"
    bodies = {
        "loop": [catalog, b"<</Type/Pages/Kids[2 0 R 2 0 R]/Count 1>>"],
        "wide": [catalog, b"<</Type/Pages/Kids[" + b"3 0 R " * n + b"]/Count 1>>", page, b"null"],
        "parents": [b"<</Type/Catalog/Pages 1 0 R/Kids[1 0 R]>>"],
        "bomb": [catalog, pages, page, flate + b">>\nstream\n" + data + b"\nendstream"],
        "twice": [
            *(catalog, pages, page),
            flate.replace(b"/FlateDecode", b"[/FlateDecode/FlateDecode]")
            + b">>\nstream\n"
            + data
            + b"\nendstream",
        ],
        "objects": [
            *(catalog, pages, page),
            b"<</Type/ObjStm/N %d/First %d/Length %d>>\nstream\n" % (n, len(numbers), len(numbers))
            + numbers
            + b"\nendstream",
        ],
        "text": [
            *(catalog, pages, page),
            b"<</Length %d>>\nstream\n" % (4 * n) + b"BT [" * n + b"\nendstream",
        ],
        "deep": [catalog, b"[" * n + b"]" * n],
        "keys": [b"<</Type/Catalog" + b"".join(b"/K%d 0" % i for i in range(n)) + b">>"],
        "string": [b"<</Type/Catalog/A(" + b"(" * n + b")" * n + b")>>"],
    }
    objects = bodies[rng.choice(sorted(bodies))]
    if rng.random() < 0.5:  # a file of its own
        out, offset = b"%PDF-1.7\n", 0
    else:  # a revision of the one that is there
        out = files.get(PDF, b"%PDF-1.7\n")
        offset = rng.choice([0, 10, 1000])
    places = []
    for number, body in enumerate(objects, 1):
        places.append(len(out))
        out += b"%d 0 obj\n" % (number + offset) + body[:MOST] + b"\nendobj\n"
    start = len(out)
    table = b"".join(b"%010d 00000 n \n" % place for place in places)
    back = rng.choice([b"", b"/Prev %d" % start, b"/XRefStm %d" % start, b"/Prev 9"])
    size = rng.choice([len(objects) + offset + 1, n, 10**9])
    trailer = b"trailer\n<</Root %d 0 R/Size %d%s>>\n" % (1 + offset, size, back)
    out += b"xref\n%d %d\n" % (1 + offset, len(objects)) + table + trailer
    files[PDF] = (out + b"startxref\n%d\n%%%%EOF\n" % start)[: 2 * MOST]


# --- after sealing


def _envelope(files: dict[str, bytes], rng: random.Random) -> None:
    """Certificates and timestamps are no part of what is signed; the checksum over them is made right."""
    envelope = Envelope.decode(files[ENVELOPE])
    der = w.AUDITOR.der
    many = rng.choice(
        [[der] * 2 ** rng.randint(0, 9), [_mutated(der, rng)] * 2 ** rng.randint(0, 9)]
    )
    signer = w.AUDITOR.signer if rng.random() < 0.8 else w.OWNER.signer
    again = Envelope(PAYLOAD_TYPE, envelope.payload)
    for _ in range(2 ** rng.choice([0, 0, 0, 5, 9])):
        again = again.signed_by(signer, many, lambda _: _built(rng)[: 2**16])
        if len(many) > 8:
            break
    files[ENVELOPE] = again.encode()


def _statement(files: dict[str, bytes], rng: random.Random) -> None:
    """A statement that a trusted key signed, and is none."""
    document = json.loads(Envelope.decode(files[ENVELOPE]).payload)
    document[rng.choice(list(document))] = _value(rng)
    payload = json.dumps(document).encode()
    if rng.random() < 0.3:
        payload = _built(rng)
    files[ENVELOPE] = Envelope(PAYLOAD_TYPE, payload).signed_by(w.AUDITOR.signer).encode()


def _salts(files: dict[str, bytes], rng: random.Random) -> None:
    document = json.loads(files[DISCLOSURE])
    if rng.random() < 0.5:
        seeds, times = document["seeds"], 4 ** rng.randint(1, 8)
        document["seeds"] = seeds * min(times, 1 + LONGEST // max(len(seeds), 1))
    else:
        document[rng.choice(list(document))] = _value(rng)
    files[DISCLOSURE] = json.dumps(document, separators=(",", ":"), sort_keys=True).encode()


def _unsealed(files: dict[str, bytes], rng: random.Random) -> None:
    _bytes_of_any(files, rng)


CHANGES: dict[str, Callable[[dict[str, bytes], random.Random], None]] = {
    "bytes": _bytes_of_any,
    "wide": _in_results(_wide, list),
    "long": _in_results(_long, str),
    "other": _in_results(_other, object),
    "consistent": _consistent,
    "markup": _markup,
    "yaml": _yaml,
    "pdf": _pdf,
    "sealed envelope": _envelope,
    "sealed statement": _statement,
    "sealed salts": _salts,
    "sealed bytes": _unsealed,
}
_OFTEN = ["wide", "wide", "long", "long", "other", "other", "other", "markup", "yaml", "pdf", "bytes", "sealed envelope", "sealed statement", "sealed salts", "sealed bytes"]  # fmt: skip


def drawn(rng: random.Random, costly: list[Packet]) -> Packet:
    """A new packet: every third one a costly one changed further."""
    if costly and rng.random() < 0.35:
        parent = rng.choice(costly)
        changes = list(parent.changes)
        if rng.random() < 0.4:
            changes[rng.randrange(len(changes))] = _change(rng)
        else:
            changes.insert(rng.randrange(len(changes) + 1), _change(rng))
        return Packet(parent.base, tuple(changes[:6]))
    changes = [_change(rng) for _ in range(rng.choice([1, 1, 2, 3]))]
    if rng.random() < 0.8 and any(name in ("wide", "long", "other") for name, _ in changes):
        changes.append(("consistent", rng.randrange(2**32)))
    kind = "page" if rng.random() < 0.4 else rng.choice(["signed", "elsewhere"])
    return Packet(kind, tuple(changes))


def _change(rng: random.Random) -> Change:
    return rng.choice(_OFTEN), rng.randrange(2**32)


def write(files: dict[str, bytes], folder: Path) -> None:
    for name, data in files.items():
        (folder / name).write_bytes(data)
