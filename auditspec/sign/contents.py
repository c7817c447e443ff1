"""The files of a packet beside its reports that follow from results and spec, and from nothing else."""

from __future__ import annotations

import json
from collections.abc import Sequence

from auditspec.results import AuditResult
from auditspec.sign.packet import EVIDENCE, LOCK, RESOLVED
from auditspec.spec.lock import LOCK_SUFFIX, encode_lock
from auditspec.spec.models import Report, Spec


def accompanying_files(result: AuditResult, spec: Spec, formats: Sequence[str]) -> dict[str, bytes]:
    """The resolved spec, the list of evidence, and the lock where one pins any.

    Args:
        result: what was found; its evidence says which pins it was held against, whatever the lock says by now.
        spec: what was audited by.
        formats: names of the exports in the packet.
    """
    return {
        RESOLVED: resolved_file(spec, formats),
        EVIDENCE: evidence_file(result),
        **lock_file(result),
    }


def resolved_file(spec: Spec, formats: Sequence[str]) -> bytes:
    """The spec with every default, and the exports that were made."""
    resolved = spec.model_copy(update={"report": Report(formats=tuple(formats))})
    return (resolved.model_dump_json(indent=1, by_alias=True) + "\n").encode()


def evidence_file(result: AuditResult) -> bytes:
    """The list of evidence."""
    evidence = [item.model_dump(mode="json") for item in result.evidence]
    return (json.dumps(evidence, indent=1) + "\n").encode()


def lock_file(result: AuditResult) -> dict[str, bytes]:
    """The lock by its name; empty where it pins nothing."""
    locked = {
        item.name: item.expected
        for item in result.evidence
        if item.pinned_in is not None and item.pinned_in.endswith(LOCK_SUFFIX)
    }
    return {LOCK: encode_lock(locked)} if locked else {}
