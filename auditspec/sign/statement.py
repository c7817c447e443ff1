"""What a signature says: an in-toto Statement v1 about every file of a packet.

The payload is the RFC 8785 encoding of

    {"_type": "https://in-toto.io/Statement/v1",
     "predicateType": "urn:auditspec:packet:1",
     "subject": [{"name": "results.json", "digest": {"salted_sha256": "<64 hex digits>"}}, ...],
     "predicate": {"audit": ..., "created": ..., "results": {"leaves": ..., "root": "<64 hex digits>"},
                   "tool": ...}}

Whatever else results say may be withheld from some of their readers, so it stands in no statement, nor does any
digest by which it could be guessed (`disclosure`).
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

from auditspec.artifacts import strict_json
from auditspec.artifacts.digest import canonical_json
from auditspec.artifacts.manifest import check_name
from auditspec.errors import EvidenceError, SignatureError
from auditspec.results import AuditResult
from auditspec.sign.disclosure import Disclosure, Hex, Root, require_no_marker, root_of, salted

PAYLOAD_TYPE = "application/vnd.in-toto+json"
STEP = "statement-wellformed"
MAX_SUBJECTS, MAX_BYTES = 256, 2**18
"""Most files that a statement is about, and most bytes of it."""

RESULTS = "results.json"


class _Strict(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid", frozen=True, allow_inf_nan=False)


class FileDigest(_Strict):
    """The digest of one file."""

    salted_sha256: Hex
    """sha256 over the file's salt and the file."""


class Subject(_Strict):
    """One file of the packet."""

    name: str
    digest: FileDigest

    @field_validator("name")
    @classmethod
    def _plain(cls, name: str) -> str:
        try:
            check_name(name, name)
        except EvidenceError as error:
            raise ValueError(error.message) from None
        if "/" in name:
            raise ValueError(f"{name!r} is not the name of a file in the packet")
        return name


class Predicate(_Strict):
    """What is stated about the files, version 1."""

    audit: str
    """Report id."""
    tool: str
    created: str
    """UTC, ISO 8601."""
    results: Root
    """Over the leaves of `results.json`."""

    @classmethod
    def of(cls, result: AuditResult, root: Root) -> Predicate:
        """The predicate that results ask for."""
        return cls(
            audit=result.audit.id,
            tool=result.run.tool,
            created=_utc(result.run.created),
            results=root,
        )


class Statement(_Strict):
    """An in-toto Statement v1 with auditspec's predicate.

    `Statement.decode(statement.encode()) == statement`.
    """

    type_: Literal["https://in-toto.io/Statement/v1"] = Field(
        default="https://in-toto.io/Statement/v1", alias="_type"
    )
    predicate_type: Literal["urn:auditspec:packet:1"] = Field(
        default="urn:auditspec:packet:1", alias="predicateType"
    )
    subject: Annotated[list[Subject], Field(min_length=1, max_length=MAX_SUBJECTS)]
    predicate: Predicate

    @field_validator("subject")
    @classmethod
    def _once(cls, subject: list[Subject]) -> list[Subject]:
        names: set[str] = set()
        for item in subject:
            if item.name in names:
                raise ValueError(f"{item.name} is listed twice")
            names.add(item.name)
        return subject

    @property
    def listed(self) -> dict[str, str]:
        """The salted digest of every file, hex, by its name."""
        return {subject.name: subject.digest.salted_sha256 for subject in self.subject}

    @classmethod
    def of(
        cls, result: AuditResult, files: Mapping[str, bytes], disclosure: Disclosure
    ) -> Statement:
        """The statement about a whole packet.

        Args:
            result: what `results.json` says.
            files: every file by its name.
            disclosure: the salts of all of them.

        Raises:
            SignatureError: if `results.json` cannot be committed to.
        """
        document = strict_json.parse(files[RESULTS], RESULTS)
        require_no_marker(document)
        return cls(
            subject=[
                Subject(
                    name=name,
                    digest=FileDigest(salted_sha256=salted(disclosure.files[name], files[name])),
                )
                for name in sorted(files)
            ],
            predicate=Predicate.of(result, root_of(document, disclosure)),
        )

    def encode(self) -> bytes:
        """The canonical payload."""
        return canonical_json(self.model_dump(by_alias=True))

    @classmethod
    def decode(cls, payload: bytes) -> Statement:
        """Read a payload strictly: a repeated or unknown field is an error.

        Raises:
            SignatureError: if it is not an in-toto Statement v1 with the predicate of this version.
        """
        if len(payload) > MAX_BYTES:
            raise SignatureError(STEP, f"larger than {MAX_BYTES} bytes")
        try:
            return strict_json.load(cls, payload, "statement")
        except EvidenceError as error:
            raise SignatureError(STEP, error.message) from None


def _utc(moment: dt.datetime) -> str:
    """ISO 8601 in UTC; a moment without a zone is in UTC already."""
    aware = moment if moment.tzinfo else moment.replace(tzinfo=dt.UTC)
    return aware.astimezone(dt.UTC).isoformat()
