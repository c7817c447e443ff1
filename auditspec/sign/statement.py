"""What a signature says: an in-toto Statement v1 about every file of a packet.

The payload is the RFC 8785 encoding of

    {"_type": "https://in-toto.io/Statement/v1",
     "predicateType": "urn:auditspec:packet:1",
     "subject": [{"name": "results.json", "digest": {"sha256": "<64 hex digits>"}}, ...],
     "predicate": {"audit": ..., "created": ..., "gate": {...}, "results": "sha256:...",
                   "spec": "sha256:...", "tool": ..., "verdicts": {"<behavior>": "<verdict>"}}}

The predicate repeats what matters of the results, so that a reader of the envelope alone sees what
was signed; `verify` compares the two.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

from auditspec.artifacts import strict_json
from auditspec.artifacts.digest import canonical_json, digest_bytes
from auditspec.artifacts.manifest import check_name
from auditspec.errors import EvidenceError, SignatureError
from auditspec.results import AuditResult, Verdict

PAYLOAD_TYPE = "application/vnd.in-toto+json"
STEP = "statement-wellformed"
MAX_SUBJECTS, MAX_BYTES = 256, 2**18
"""Most files that a statement is about, and most bytes of it."""

Hex = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Digest = Annotated[str, Field(pattern=r"^sha256:[0-9a-f]{64}$")]


class _Strict(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid", frozen=True, allow_inf_nan=False)


class FileDigest(_Strict):
    """The digests of one file."""

    sha256: Hex


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


class GateSummary(_Strict):
    """What the policy made of the verdicts."""

    passed: bool
    exit_code: int


class Predicate(_Strict):
    """What is stated about the files, version 1."""

    audit: str
    """Report id."""
    tool: str
    created: str
    """UTC, ISO 8601."""
    spec: Digest
    """Of `spec.yaml`."""
    results: Digest
    """Of `results.json`."""
    verdicts: dict[str, Verdict]
    """By behaviour id."""
    gate: GateSummary

    @classmethod
    def of(cls, result: AuditResult, files: Mapping[str, bytes]) -> Predicate:
        """The predicate that a packet's contents ask for."""
        return cls(
            audit=result.audit.id,
            tool=result.run.tool,
            created=_utc(result.run.created),
            spec=digest_bytes(files["spec.yaml"]),
            results=digest_bytes(files["results.json"]),
            verdicts={v.behavior: v.verdict for v in result.verdicts},
            gate=GateSummary(passed=result.gate.passed, exit_code=result.gate.exit_code),
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

    @classmethod
    def of(cls, result: AuditResult, files: Mapping[str, bytes]) -> Statement:
        """The statement about a packet: every file's digest, and the facts of its results."""
        return cls(
            subject=[
                Subject(
                    name=name,
                    digest=FileDigest(sha256=digest_bytes(files[name]).removeprefix("sha256:")),
                )
                for name in sorted(files)
            ],
            predicate=Predicate.of(result, files),
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
