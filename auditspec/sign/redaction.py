"""Withholding values of a packet under the signatures that it has, so that whoever holds them can prove them later.

It takes no key: a leaf's value gives way to its commitment, its salt is taken out of what is handed on, and the signed root stays
what it was (`disclosure`). What proves a value is its salt; it stays with whoever withholds.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from auditspec.artifacts import strict_json
from auditspec.errors import EvidenceError, SignatureError, UsageError
from auditspec.messages import Message
from auditspec.sign import salts
from auditspec.sign.disclosure import Disclosure, Hex, committed, salted
from auditspec.sign.packet import AS_SIGNED, EVIDENCE, RESULTS
from auditspec.sign.statement import Statement
from auditspec.withheld import LONGEST_REASON, Withheld, is_marker, leaves, marker

STEP = "disclosures"
SHORT = 4
"""Characters below which a withheld text may stand elsewhere by chance."""
NEVER = ("/auditspec_results", "/audit/id", "/run/tool", "/run/created", "/signer")
"""What names the packet, its format, and its signer."""
MEASURED = (
    "methods",
    "estimates",
    "effects",
    "paths",
    "draws",
    "contributions",
    "checks",
    "verdicts",
    "findings",
    "gate",
    "limitations",
)
"""Fields that no spec states: where nothing else is withheld, the spec may stay."""


class _Strict(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)


class Opening(_Strict):
    """What proves one withheld value."""

    what: str
    """JSON pointer into results.json to a leaf, or the name of a file."""
    salt: Hex
    value: Any
    """Of a leaf; of a file, its text."""


class Disclosures(_Strict):
    """The content of a file of openings, version 2."""

    auditspec_disclosures: Literal["2"] = "2"
    disclosures: Annotated[list[Opening], Field(max_length=2**18)]

    @classmethod
    def decode(cls, data: bytes, what: str) -> Disclosures:
        """Read such a file strictly.

        Raises:
            UsageError: if it is malformed.
        """
        try:
            return strict_json.load(cls, data, what)
        except EvidenceError as error:
            raise UsageError(error.message, "name the file that `auditspec redact` wrote") from None

    def encode(self) -> bytes:
        """The file's content."""
        return (self.model_dump_json(indent=1) + "\n").encode()


def is_never_withheld(pointer: str) -> bool:
    """Whether a leaf names the packet, its format, or its signer, or is a part of what does."""
    return any(pointer == never or pointer.startswith(f"{never}/") for never in NEVER)


@dataclass(frozen=True)
class Redacted:
    """A packet from which something was withheld."""

    document: Any
    """Of results.json."""
    files: Mapping[str, bytes]
    """Those that are made of no results, or of results that are all there: as they were."""
    disclosure: Disclosure
    openings: tuple[Opening, ...]


def withhold(
    files: Mapping[str, bytes], disclosure: Disclosure, pointers: Sequence[str], reason: str
) -> Redacted:
    """Withhold leaves, each named by itself or as part of what a pointer leads to.

    Args:
        files: those of the packet, by name; reports may be among them, and are left out of what comes back.
        disclosure: the salts of what it discloses.
        pointers: JSON pointers into results.json.
        reason: why; it is shown beside the marker, and not signed.

    Raises:
        UsageError: if a pointer leads nowhere, or to what is never withheld; if a text that is withheld by itself
            still stands elsewhere; if the reason is too long, or a file cannot be withheld.
    """
    if not 0 < len(reason) <= LONGEST_REASON:
        raise UsageError(f"a reason has 1 to {LONGEST_REASON} characters")
    document = strict_json.parse(files[RESULTS], RESULTS)
    before = list(leaves(document))
    known = disclosure.known(document)
    chosen = _chosen(before, pointers)
    removed = _files_that_tell(files, document, pointers)
    if removed:
        chosen = _chosen(before, [*pointers, "/run/spec_digest", "/run/environment"])
    salt_of = dict(salts.salts(known))
    openings = [
        Opening(what=before[i][0], salt=salt_of[i].hex(), value=before[i][1]) for i in chosen
    ]
    hidden = copy.deepcopy(document)
    for opening in openings:
        holder, key = _place(hidden, opening.what)
        holder[key] = marker(committed(bytes.fromhex(opening.salt), opening.value), reason)
    for pointer in pointers:
        _refuse_repeats(hidden, pointer, _value(document, pointer))
    kept = {name: files[name] for name in AS_SIGNED if name in files and name not in removed}
    if hidden["evidence"] == document["evidence"]:
        kept[EVIDENCE] = files[EVIDENCE]
    return Redacted(
        hidden,
        kept,
        Disclosure(
            seeds=[part.seed.hex() for part in salts.narrowed(known, chosen)],
            files={name: salt for name, salt in disclosure.files.items() if name in kept},
        ),
        (*openings, *(_opening_of_file(name, files[name], disclosure) for name in removed)),
    )


def encode_results(document: Any) -> bytes:
    """The one encoding of results of which something is withheld."""
    return (json.dumps(document, indent=1, ensure_ascii=False) + "\n").encode()


def encode_evidence(document: Any) -> bytes:
    """The list of evidence of results of which something is withheld."""
    return (json.dumps(document["evidence"], indent=1) + "\n").encode()


def require_proved(
    withheld: Sequence[Withheld], statement: Statement, disclosures: Disclosures
) -> int:
    """Check that each disclosed value is the one that the packet commits to; gives how many there are.

    Raises:
        SignatureError: at step `disclosures`, naming the first that is not.
    """
    commitments = {item.pointer: item.commitment for item in withheld}
    for opening in disclosures.disclosures:
        if opening.what.startswith("/"):
            right = commitments.get(opening.what)
            mine = committed(bytes.fromhex(opening.salt), opening.value)
        else:
            right = statement.listed.get(opening.what)
            mine = salted(opening.salt, str(opening.value).encode())
        if mine != right:
            raise SignatureError(
                STEP, f"the packet does not commit to this value of {opening.what}"
            )
    return len(disclosures.disclosures)


def _chosen(before: Sequence[tuple[str, Any]], pointers: Sequence[str]) -> list[int]:
    """Indices of the leaves that are to be withheld and are not yet, ascending."""
    chosen: set[int] = set()
    for pointer in pointers:
        below = [
            i
            for i, (leaf, _) in enumerate(before)
            if leaf == pointer or leaf.startswith(f"{pointer}/")
        ]
        never = any(is_never_withheld(before[i][0]) for i in below)
        if not pointer.startswith("/") or not below or never:
            raise UsageError(
                f"{pointer!r}: nothing that can be withheld", "for example /evidence/0/path"
            )
        chosen |= set(below)
    return sorted(i for i in chosen if not is_marker(before[i][1]))


def _files_that_tell(
    files: Mapping[str, bytes], document: Any, pointers: Sequence[str]
) -> list[str]:
    """The files of spec and environment that are to be left out: all, where one of them may repeat what is withheld."""
    here = [name for name in AS_SIGNED if name in files]
    stated = any(pointer.split("/")[1] not in MEASURED for pointer in pointers)
    texts = [
        value
        for pointer in pointers
        for _, value in leaves(_value(document, pointer))
        if isinstance(value, str) and len(value) >= SHORT
    ]
    told = any(text in files[name].decode("utf-8", "replace") for text in texts for name in here)
    return here if stated or told else []


def _opening_of_file(name: str, data: bytes, disclosure: Disclosure) -> Opening:
    try:
        return Opening(what=name, salt=disclosure.files[name], value=data.decode())
    except UnicodeDecodeError:
        raise UsageError(f"{name}: not UTF-8, so it cannot be withheld") from None


def _place(document: Any, pointer: str) -> tuple[Any, Any]:
    """The object or list that holds what a pointer points at, and the key or index there."""
    holder, key = None, None
    for part in pointer.split("/")[1:]:
        holder = document if holder is None else holder[key]
        name = part.replace("~1", "/").replace("~0", "~")
        key = int(name) if isinstance(holder, list) else name
    return holder, key


def _value(document: Any, pointer: str) -> Any:
    try:
        holder, key = _place(document, pointer)
        return holder[key]
    except (KeyError, IndexError, ValueError, TypeError):
        raise UsageError(
            f"{pointer!r}: nothing that can be withheld", "for example /evidence/0/path"
        ) from None


def _refuse_repeats(hidden: Any, pointer: str, value: Any) -> None:
    """What stands elsewhere as well would not be withheld at all: a text, or a sentence with values."""
    if isinstance(value, str):
        if len(value) < SHORT:
            return
        places = [place for place, other in _texts(hidden, "") if value in other]
    else:
        sentences = value if isinstance(value, list) else [value]
        ours = [item for item in sentences if _is_message(item) and item["values"]]
        places = [place for place, other in _sentences(hidden, "") if other in ours]
    if places:
        raise UsageError(
            f"{pointer}: the same text stands in {', '.join(places[:5])}", "withhold these as well"
        )


def _sentences(value: Any, place: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Every message, those within messages too."""
    if _is_message(value):
        yield place, value
    for key, item in _items(value):
        yield from _sentences(item, f"{place}/{key}")


def _is_message(value: Any) -> bool:
    return isinstance(value, dict) and value.keys() == Message.model_fields.keys()


def _texts(value: Any, place: str) -> Iterator[tuple[str, str]]:
    """Every text, and every key; not what whoever withheld wrote."""
    if is_marker(value):
        return
    if isinstance(value, str):
        yield place, value
    for key, item in _items(value):
        if isinstance(key, str):
            yield f"{place}/{key}", key
        yield from _texts(item, f"{place}/{key}")


def _items(value: Any) -> Iterator[tuple[Any, Any]]:
    if isinstance(value, dict):
        yield from value.items()
    elif isinstance(value, list):
        yield from enumerate(value)
