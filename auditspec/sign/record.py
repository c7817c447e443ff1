"""The trainer's signature over a training record: a DSSE envelope around the record's manifest."""

from __future__ import annotations

from pathlib import Path

from auditspec.artifacts.files import read_regular
from auditspec.artifacts.inspect import ITS_PLACE, ITS_SIGNATURE, OWN_MANIFEST, without_own
from auditspec.artifacts.manifest import Manifest
from auditspec.errors import SignatureError, UsageError
from auditspec.sign.dsse import Envelope
from auditspec.sign.sealing import STEP, Seal, Sealer, Trainer, seal_of

PAYLOAD_TYPE = "application/vnd.auditspec.record-manifest.v1+json"


def sign_record(folder: Path, sealer: Sealer) -> None:
    """Sign a finished record, in `manifest.dsse.json`.

    Raises:
        UsageError: if the record is unfinished (it has no manifest), or its files are not those of
            its manifest; or as `Sealer.seal`.
        EvidenceError: if the folder cannot be read safely.
    """
    if not (folder / OWN_MANIFEST).exists():
        raise UsageError(
            f"{folder}: has no {OWN_MANIFEST}", "finish the recording, then sign the record"
        )
    payload = read_regular(folder / OWN_MANIFEST)
    changes = _changes(folder, payload)
    if changes:
        raise UsageError(f"{folder}: {changes} since the record was finished", "record it again")
    sealer.seal(PAYLOAD_TYPE, payload, folder / ITS_SIGNATURE, folder / ITS_PLACE)


def record_signers(folder: Path) -> tuple[str, ...]:
    """Key ids that the envelope claims; whether they really signed is for `verify_record`.

    Raises:
        SignatureError: if the envelope is malformed.
        EvidenceError: if it cannot be read safely.
    """
    envelope = Envelope.decode(read_regular(folder / ITS_SIGNATURE))
    return tuple(signature.keyid or "unnamed key" for signature in envelope.signatures)


def verify_record(folder: Path, trainer: Trainer) -> Seal:
    """Check that a trainer signed exactly the files of a record; when, as far as anybody is asked.

    Raises:
        SignatureError: if there is no envelope, it is malformed or of another type, no signature is
            the trainer's, what dates it does not hold, or the folder's files are not those of the signed manifest.
        EvidenceError: if the folder cannot be read safely.
    """
    if not (folder / ITS_SIGNATURE).exists():
        raise SignatureError(
            STEP, f"the record has no {ITS_SIGNATURE}", "ask the trainer to sign it"
        )
    envelope = Envelope.decode(read_regular(folder / ITS_SIGNATURE))
    if envelope.payload_type != PAYLOAD_TYPE:
        raise SignatureError(STEP, f"the envelope holds {envelope.payload_type}, not a manifest")
    seal = seal_of(envelope, trainer, folder / ITS_PLACE)
    changes = _changes(folder, envelope.payload)
    if changes:
        raise SignatureError(STEP, f"since the trainer signed: {changes}")
    return seal


def _changes(folder: Path, payload: bytes) -> str:
    """How the folder differs from the manifest, in words; empty where it does not."""
    listed = Manifest.decode(payload, OWN_MANIFEST)
    found = without_own(Manifest.scan(folder))
    if read_regular(folder / OWN_MANIFEST) != payload:
        raise SignatureError(STEP, f"{OWN_MANIFEST} is not the one that was signed")
    return str(listed.differences(found))
