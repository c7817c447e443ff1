"""The state of every artifact that a spec names: nothing is executed or unpacked."""

from __future__ import annotations

from pathlib import Path

from auditspec.artifacts.digest import read_verified
from auditspec.artifacts.inspect import contradiction, inspect
from auditspec.errors import AuditspecError
from auditspec.messages import Message, message
from auditspec.results import Evidence
from auditspec.sign.keys import keyid
from auditspec.sign.record import verify_record
from auditspec.sign.sealing import Trainer, read_commitment
from auditspec.spec.lock import Pin, pins
from auditspec.spec.models import Artifact
from auditspec.spec.source import LoadedSpec


def inspect_all(loaded: LoadedSpec, pinned: dict[str, Pin] | None = None) -> tuple[Evidence, ...]:
    """The state of every artifact; bad evidence is a state, not an error.

    An artifact with `signed_by` must also carry the trainer's signature by that key, dated as it says.

    Args:
        loaded: the spec.
        pinned: the digests to hold against the artifacts; by default those of spec and lock.

    Raises:
        SpecError: if the lock file is malformed or contradicts the spec.
    """
    pinned = pins(loaded) if pinned is None else pinned
    found = []
    for name, artifact in loaded.spec.artifacts.items():
        pin = pinned.get(name)
        digest, pinned_in = (pin.digest, pin.pinned_in) if pin else (None, None)
        path = loaded.where(name)
        item = inspect(name, path, artifact.path, digest, pinned_in)
        if name == "record":
            item = _with_manifest(item, path)
        found.append(_with_signature(item, artifact, path, loaded.path.parent))
    return tuple(found)


def _with_manifest(item: Evidence, path: Path) -> Evidence:
    """A record must be what its own manifest says, whatever pins it."""
    if item.state not in ("verified", "declared") or item.kind != "folder":
        return item
    differs: tuple[Message, ...] | str
    try:
        differs = contradiction(path)
    except AuditspecError as error:
        differs = error.message
    if not differs:
        return item
    notes = (message("record-contradicts-its-manifest", differences=differs),)
    return item.model_copy(update={"state": "mismatched", "notes": notes})


def _with_signature(item: Evidence, artifact: Artifact, path: Path, folder: Path) -> Evidence:
    if artifact.signed_by is None or item.state not in ("verified", "declared"):
        return item
    try:
        trainer = Trainer.of(artifact, folder)
        if trainer is None:
            return item
        if item.name == "record":
            verify_record(path, trainer)
        else:
            read_commitment(path, read_verified(path, item.found), trainer)
    except AuditspecError as error:
        notes = (message("evidence-refused", error=error.message),)
        return item.model_copy(update={"state": "mismatched", "notes": notes})
    return item.model_copy(update={"signed_by": keyid(trainer.key)})
