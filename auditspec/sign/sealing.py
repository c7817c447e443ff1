"""What a trainer signs, records and commitments to them, and who says when it was signed.

A moment comes from timestamps over the signature (RFC 3161), a place from an append-only log of signatures. The log's
proof stands in a file of its own.
"""

from __future__ import annotations

import datetime as dt
from dataclasses import dataclass
from pathlib import Path

from auditspec.artifacts.files import read_regular, write_into
from auditspec.errors import SignatureError
from auditspec.record.commitment import Commitment
from auditspec.sign import keys, log, timestamps
from auditspec.sign.certificates import Authorities, Revocation, der, read_chain, read_crls
from auditspec.sign.checkpoint import RefusedLogError
from auditspec.sign.dsse import Envelope, Signature
from auditspec.sign.keys import PublicKey
from auditspec.sign.seen_checkpoints import SeenCheckpoints
from auditspec.sign.signer import Signer
from auditspec.sign.timestamps import RefusedTimestampError, TimestampAuthority
from auditspec.spec.models import Artifact

COMMITMENT_TYPE = "application/vnd.auditspec.commitment.v1+json"
STEP = "trainer-signature"


@dataclass(frozen=True)
class Sealer:
    """A trainer's key, and what dates its signatures.

    Args:
        signer: the key.
        authority: asked for a timestamp; None: none is made.
        folder: of a log that the signature is entered into; None: no log.
        keeper: the log's key.
        memory: the log keeper's.
    """

    signer: Signer
    authority: TimestampAuthority | None = None
    folder: Path | None = None
    keeper: Signer | None = None
    memory: SeenCheckpoints | None = None

    def seal(self, payload_type: str, payload: bytes, path: Path, place: Path) -> None:
        """Sign, date, and write: the envelope, and the log's proof where there is a log.

        Args:
            payload_type: of the payload.
            payload: what is signed.
            path: of the envelope.
            place: of the log's proof.

        Raises:
            UsageError: if the authority does not answer, the log cannot be kept, or a file cannot be written.
        """
        stamp = self.authority.stamp if self.authority else None
        envelope = Envelope(payload_type, payload).signed_by(self.signer, stamp=stamp)
        if self.folder is not None and self.keeper is not None:
            inclusion = log.append(self.folder, envelope, self.keeper, memory=self.memory)
            write_into(place.parent, place.name, inclusion.encode())
        write_into(path.parent, path.name, envelope.encode())


@dataclass(frozen=True)
class DatedBy:
    """Who is believed about when something was signed."""

    authorities: Authorities | None = None
    """Of timestamps."""
    log: PublicKey | None = None

    @classmethod
    def load(
        cls, folder: Path, roots: str | None, crls: tuple[str, ...], log: str | None
    ) -> DatedBy:
        """From files relative to a folder; without revocation lists nobody is asked for any.

        Raises:
            UsageError: if one cannot be read.
        """
        known = tuple(der(c) for c in read_chain(folder / roots)) if roots else ()
        lists = tuple(crl for name in crls for crl in read_crls(folder / name))
        revocation: Revocation = "required" if lists else "not-checked"
        return cls(
            Authorities(known, lists, revocation) if roots else None,
            keys.load_public(folder / log) if log else None,
        )


UNDATED = DatedBy()


@dataclass(frozen=True)
class Seal:
    """A trainer's signature that holds, and when it was made."""

    moment: dt.datetime | None = None
    """By a trusted authority; None: none was asked for."""
    entry: int | None = None
    """Its place in the log, from 0; None: no log was asked for."""


@dataclass(frozen=True)
class Trainer:
    """Whose signature an artifact must carry, and who dates it."""

    key: PublicKey
    dated: DatedBy = UNDATED

    @classmethod
    def of(cls, artifact: Artifact, folder: Path) -> Trainer | None:
        """Of an artifact of a spec in `folder`; None where nobody's signature is asked for.

        Raises:
            UsageError: if a key or certificate cannot be read.
        """
        if artifact.signed_by is None:
            return None
        key, who = keys.load_public(folder / artifact.signed_by), artifact.dated_by
        if who is None:
            return cls(key)
        return cls(key, DatedBy.load(folder, who.timestamps, who.crls, who.log))


@dataclass(frozen=True)
class SealedCommitment:
    """A commitment, and the seal on it; None where nobody says whose signature it should be."""

    commitment: Commitment
    seal: Seal | None


def place_beside(path: Path) -> Path:
    """Where the log's proof of a sealed file stands."""
    return path.with_name(f"{path.name}.log")


def seal_commitment(data: bytes, sealer: Sealer, path: Path) -> Commitment:
    """Sign a commitment, given as it is encoded, and write the envelope to `path`.

    Raises:
        EvidenceError: if it is no commitment.
        UsageError: as `Sealer.seal`.
    """
    commitment = Commitment.decode(data, path.name)
    sealer.seal(COMMITMENT_TYPE, commitment.encode(), path, place_beside(path))
    return commitment


def read_commitment(path: Path, data: bytes, trainer: Trainer | None) -> SealedCommitment:
    """A sealed commitment, by its file's name and content; signed by its trainer, where one is named.

    Raises:
        SignatureError: if it is malformed, or its signature, timestamp, or place in the log does not hold.
        EvidenceError: if its content is no commitment, or the log's proof is unsafe to read.
    """
    envelope = Envelope.decode(data)
    if envelope.payload_type != COMMITMENT_TYPE:
        raise SignatureError(STEP, f"the envelope holds {envelope.payload_type}, no commitment")
    commitment = Commitment.decode(envelope.payload, path.name)
    seal = None if trainer is None else seal_of(envelope, trainer, place_beside(path))
    return SealedCommitment(commitment, seal)


def seal_of(envelope: Envelope, trainer: Trainer, place: Path) -> Seal:
    """A trainer's signature on an envelope, dated as was asked for.

    Args:
        envelope: what was signed.
        trainer: who must have signed it.
        place: file of the log's proof.

    Raises:
        SignatureError: if there is none, or what dates it does not hold.
        EvidenceError: if the log's proof is unsafe to read.
    """
    key, dated = trainer.key, trainer.dated
    own = [s for s in envelope.signatures if keys.verifies(key, s.sig, envelope.pae)]
    if not own:
        raise SignatureError(STEP, f"no signature is by the key {keys.keyid(key)[:16]}…")
    moment, entry = None, None
    if dated.authorities is not None:
        moment = _moment(own, dated.authorities)
    if dated.log is not None:
        if not place.exists():
            raise SignatureError(STEP, f"no {place.name}: it was never entered into the log")
        try:
            inclusion = log.Inclusion.decode(read_regular(place))
            inclusion.check(log.entry_of(envelope), dated.log)
        except RefusedLogError as error:
            raise SignatureError(STEP, f"{place.name}: {error}") from None
        entry = inclusion.index
    return Seal(moment, entry)


def _moment(signatures: list[Signature], authorities: Authorities) -> dt.datetime:
    """The earliest moment by which a trusted authority saw one of the signatures.

    Raises:
        SignatureError: if none did.
    """
    tokens = [(s.sig, token) for s in signatures for token in s.timestamps]
    moments, problem = [], "there is none"
    for sig, token in tokens:
        try:
            moments.append(timestamps.check(token, sig, authorities))
        except RefusedTimestampError as error:
            problem = str(error)
    if not moments:
        raise SignatureError(STEP, f"no timestamp over the signature stands: {problem}")
    return min(moments)
