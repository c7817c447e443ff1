"""The state of one piece of evidence, as a result rather than an error.

An audit goes on to say in its packet what was missing or changed, so nothing here raises for bad
evidence; whoever needs the bytes reads them through `digest.read_verified`.
"""

from __future__ import annotations

import os
from pathlib import Path

from auditspec.artifacts.digest import read_verified
from auditspec.artifacts.manifest import Differences, Manifest, Measured, digest_path
from auditspec.errors import EvidenceError
from auditspec.messages import Message, message
from auditspec.results import Evidence

OWN_MANIFEST = "manifest.json"
ITS_SIGNATURE = "manifest.dsse.json"
ITS_PLACE = "manifest.dsse.json.log"
"""Proof that the signature stands in a log."""


def without_own(found: Manifest) -> Manifest:
    """A folder's files without its own manifest and what is made of that."""
    return found.without(OWN_MANIFEST).without(ITS_SIGNATURE).without(ITS_PLACE)


def inspect(
    name: str, path: Path, shown_path: str, expected: str | None, pinned_in: str | None
) -> Evidence:
    """Compare an artifact with its pinned digest.

    The state is `verified` (the bytes are the pinned ones), `declared` (nothing pins them),
    `missing`, or `mismatched` (other bytes, or unsafe to read; `notes` say which).
    """
    if not os.path.lexists(path):
        return Evidence(
            name=name,
            kind="folder" if shown_path.endswith("/") else "file",
            path=shown_path,
            state="missing",
            expected=expected,
            pinned_in=pinned_in,
            notes=(message("artifact-absent"),),
        )
    try:
        found = digest_path(path)
    except EvidenceError as error:
        return Evidence(
            name=name,
            kind="folder" if path.is_dir() else "file",
            path=shown_path,
            state="mismatched",
            expected=expected,
            pinned_in=pinned_in,
            notes=(
                message("evidence-refused", error=error.message.replace(str(path), shown_path)),
            ),
        )
    matches = found.digest == expected
    return Evidence(
        name=name,
        kind=found.kind,
        path=shown_path,
        state="declared" if expected is None else "verified" if matches else "mismatched",
        expected=expected,
        found=found.digest,
        size=found.size,
        files=found.files,
        pinned_in=pinned_in,
        notes=() if matches or expected is None else (_what_changed(path, found),),
    )


def contradiction(path: Path) -> tuple[Message, ...]:
    """How a folder differs from the manifest that it holds itself; nothing where it does not.

    A folder without a manifest contradicts nothing.

    Raises:
        EvidenceError: if the folder or its manifest cannot be read.
    """
    found = Manifest.scan(path)
    if all(entry.path != OWN_MANIFEST for entry in found.files):
        return ()
    digest = found.entry(OWN_MANIFEST).digest
    own = Manifest.decode(read_verified(path / OWN_MANIFEST, digest), OWN_MANIFEST)
    return _differing(own.differences(without_own(found)))


def _what_changed(path: Path, found: Measured) -> Message:
    """Name the files that differ from the folder's own manifest, where it has one."""
    if found.manifest is None:
        return message("bytes-not-pinned")
    try:
        entry = found.manifest.entry(OWN_MANIFEST)
        own = Manifest.decode(read_verified(path / OWN_MANIFEST, entry.digest), OWN_MANIFEST)
    except EvidenceError:
        return message("files-not-pinned")
    differences = own.differences(without_own(found.manifest))
    if not differences:
        return message("folder-is-another", manifest=OWN_MANIFEST)
    return message(
        "differs-from-own-manifest", manifest=OWN_MANIFEST, differences=_differing(differences)
    )


def _differing(differences: Differences) -> tuple[Message, ...]:
    changed, added, removed = differences.changed, differences.added, differences.removed
    return (
        *((message("files-changed", paths=changed),) if changed else ()),
        *((message("files-added", paths=added),) if added else ()),
        *((message("files-removed", paths=removed),) if removed else ()),
    )
