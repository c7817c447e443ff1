"""The trainer's signature over a training record: a DSSE envelope around the record's manifest."""

from __future__ import annotations

from pathlib import Path

from auditspec.artifacts.files import read_regular
from auditspec.artifacts.inspect import ITS_SIGNATURE, OWN_MANIFEST
from auditspec.artifacts.manifest import Manifest
from auditspec.errors import SignatureError, UsageError
from auditspec.sign import keys
from auditspec.sign.dsse import Envelope
from auditspec.sign.keys import PublicKey
from auditspec.sign.signer import Signer

PAYLOAD_TYPE = "application/vnd.auditspec.record-manifest.v1+json"
STEP = "trainer-signature"


def sign_record(folder: Path, signer: Signer) -> bytes:
    """The envelope for a finished record; the caller writes it to `manifest.dsse.json`.

    Raises:
        UsageError: if the record is unfinished (it has no manifest), or its files are not those of
            its manifest.
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
    return Envelope(PAYLOAD_TYPE, payload).signed_by(signer).encode()


def record_signers(folder: Path) -> tuple[str, ...]:
    """Key ids that the envelope claims; whether they really signed is for `verify_record`.

    Raises:
        SignatureError: if the envelope is malformed.
        EvidenceError: if it cannot be read safely.
    """
    envelope = Envelope.decode(read_regular(folder / ITS_SIGNATURE))
    return tuple(signature.keyid or "unnamed key" for signature in envelope.signatures)


def verify_record(folder: Path, key: PublicKey) -> None:
    """Check that a key signed exactly the files of a record.

    Raises:
        SignatureError: if there is no envelope, it is malformed or of another type, no signature is
            by the key, or the folder's files are not those of the signed manifest.
        EvidenceError: if the folder cannot be read safely.
    """
    if not (folder / ITS_SIGNATURE).exists():
        raise SignatureError(
            STEP, f"the record has no {ITS_SIGNATURE}", "ask the trainer to sign it"
        )
    envelope = Envelope.decode(read_regular(folder / ITS_SIGNATURE))
    if envelope.payload_type != PAYLOAD_TYPE:
        raise SignatureError(STEP, f"the envelope holds {envelope.payload_type}, not a manifest")
    if not any(keys.verifies(key, s.sig, envelope.pae) for s in envelope.signatures):
        raise SignatureError(STEP, f"no signature is by the key {keys.keyid(key)[:16]}…")
    changes = _changes(folder, envelope.payload)
    if changes:
        raise SignatureError(STEP, f"since the trainer signed: {changes}")


def _changes(folder: Path, payload: bytes) -> str:
    """How the folder differs from the manifest, in words; empty where it does not."""
    listed = Manifest.decode(payload, OWN_MANIFEST)
    found = Manifest.scan(folder)
    for own in (OWN_MANIFEST, ITS_SIGNATURE):
        found = found.without(own)
    if read_regular(folder / OWN_MANIFEST) != payload:
        raise SignatureError(STEP, f"{OWN_MANIFEST} is not the one that was signed")
    return str(listed.differences(found))
