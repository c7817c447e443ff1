"""Withholding parts of a packet, so that whoever holds them can prove them later.

A withheld value is replaced by a commitment, the sha256 of the canonical JSON (RFC 8785) of

    [what, salt, the value's JSON as text]

with 32 random bytes of salt (hex): without the salt even a short value cannot be guessed. `what` is a
JSON pointer into results.json, or the name of one of the packet's files. The disclosure, which
stays with its holder, is the salt and the value.
"""

from __future__ import annotations

import copy
import json
import secrets
from collections.abc import Iterator, Sequence
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from auditspec.artifacts import strict_json
from auditspec.artifacts.digest import canonical_json, digest_bytes
from auditspec.errors import EvidenceError, SignatureError, UsageError
from auditspec.results import AuditResult, Message, Withheld, message

STEP = "disclosures"
SHORT = 4
"""Characters below which a withheld text may stand elsewhere by chance."""


class _Strict(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)


class Disclosure(_Strict):
    """What proves one withheld value."""

    what: str
    salt: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    value: Any

    @property
    def commitment(self) -> str:
        """The commitment that this disclosure opens."""
        # Numbers as text: RFC 8785 cannot carry every integer.
        return digest_bytes(canonical_json([self.what, self.salt, json.dumps(self.value)]))


class Disclosures(_Strict):
    """The content of a disclosure file, version 1."""

    auditspec_disclosures: Literal["1"] = "1"
    disclosures: list[Disclosure]

    @classmethod
    def decode(cls, data: bytes, what: str) -> Disclosures:
        """Read a disclosure file strictly.

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


def commit(what: str, value: Any) -> Disclosure:
    """A fresh commitment to a value."""
    return Disclosure(what=what, salt=secrets.token_hex(32), value=value)


def withhold(
    result: AuditResult, pointers: Sequence[str]
) -> tuple[AuditResult, tuple[Disclosure, ...]]:
    """The result without some values, and what proves them.

    A text becomes `withheld (sha256:…)`, a sentence the message that says so, a list empty, and anything else
    absent.

    Raises:
        UsageError: if a pointer leads nowhere or to what a result cannot do without, or a withheld text
            still stands elsewhere in the results.
    """
    document = json.loads(result.model_dump_json())
    made = []
    for pointer in pointers:
        holder, key = _place(document, pointer)
        disclosure = commit(pointer, copy.deepcopy(holder[key]))
        holder[key] = _blank(holder[key], disclosure.commitment)
        made.append(disclosure)
    _refuse_repeats(document, made)
    try:
        return AuditResult.model_validate(document), tuple(made)
    except ValidationError as error:
        place = "/".join(map(str, error.errors()[0]["loc"]))
        raise UsageError(
            f"/{place} cannot be withheld: a result cannot do without it",
            "withhold a text, a list as a whole, or something optional",
        ) from None


def record(result: AuditResult, disclosures: Sequence[Disclosure], reason: str) -> AuditResult:
    """The result, which now says what is withheld, and why."""
    said = (Withheld(what=d.what, reason=reason, commitment=d.commitment) for d in disclosures)
    return result.model_copy(update={"withheld": (*result.withheld, *said)})


def blank_file(commitment: str) -> bytes:
    """What stands in the packet in place of a withheld file."""
    return f"withheld {commitment}\n".encode()


def require_proved(result: AuditResult, disclosures: Disclosures) -> int:
    """Check that each disclosed value is one that the packet commits to; gives how many there are.

    Raises:
        SignatureError: at step `disclosures`, naming the first that is not.
    """
    committed = {(item.what, item.commitment) for item in result.withheld}
    for disclosure in disclosures.disclosures:
        if (disclosure.what, disclosure.commitment) not in committed:
            raise SignatureError(
                STEP, f"the packet does not commit to this value of {disclosure.what}"
            )
    return len(disclosures.disclosures)


def _place(document: Any, pointer: str) -> tuple[Any, Any]:
    """The object or list that holds what a pointer points at, and the key or index there."""
    holder: Any = None
    key: Any = None
    value = document
    for part in pointer.split("/")[1:]:
        holder, key = value, part.replace("~1", "/").replace("~0", "~")
        if isinstance(holder, list) and key.isdecimal() and int(key) < len(holder):
            key = int(key)
        elif not isinstance(holder, dict) or key not in holder:
            holder = None
            break
        value = holder[key]
    if holder is None or pointer.startswith(("/withheld", "/auditspec_results", "/signer")):
        raise UsageError(
            f"{pointer!r}: nothing that can be withheld", "for example /evidence/0/path"
        )
    return holder, key


def _blank(value: Any, commitment: str) -> Any:
    if isinstance(value, str):
        return f"withheld ({commitment})"
    if _is_message(value):
        return message("withheld", commitment=commitment).model_dump()
    return [] if isinstance(value, list) else None


def _refuse_repeats(document: Any, made: Sequence[Disclosure]) -> None:
    """What stands elsewhere as well would not be withheld at all: a text, or a sentence with values."""
    texts, sentences = list(_texts(document, "")), list(_sentences(document, ""))
    for disclosure in made:
        value = disclosure.value
        if isinstance(value, str) and len(value) >= SHORT:
            places = [place for place, other in texts if value in other]
        else:
            held_back = value if isinstance(value, list) else [value]
            ours = [item for item in held_back if _is_message(item) and item["values"]]
            places = [place for place, other in sentences if other in ours]
        if places:
            raise UsageError(
                f"{disclosure.what}: the same text stands in {', '.join(places[:5])}",
                "withhold these as well",
            )


def _sentences(value: Any, place: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Every message, those within messages too."""
    if _is_message(value):
        yield place, value
    items = (
        value.items()
        if isinstance(value, dict)
        else enumerate(value)
        if isinstance(value, list)
        else ()
    )
    for key, item in items:
        yield from _sentences(item, f"{place}/{key}")


def _is_message(value: Any) -> bool:
    return isinstance(value, dict) and value.keys() == Message.model_fields.keys()


def _texts(value: Any, place: str) -> Iterator[tuple[str, str]]:
    if isinstance(value, str):
        yield place, value
    elif isinstance(value, dict):
        for key, item in value.items():
            yield f"{place}/{key}", key
            yield from _texts(item, f"{place}/{key}")
    elif isinstance(value, list):
        for index, item in enumerate(value):
            yield from _texts(item, f"{place}/{index}")
