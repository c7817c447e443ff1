"""Verifying without a process of its own, and drawing equal results once: most tests verify the same few packets.

The fence itself has its tests (tests/verification/test_fence.py), and so has drawing in other processes.
"""

from __future__ import annotations

import pytest

from auditspec.errors import AuditspecError, SignatureError
from auditspec.report.exports import Export, Source
from auditspec.verification import verifier
from auditspec.verification.content import Content
from auditspec.verification.examination import examine
from auditspec.verification.steps import STEPS, Protocol

_DRAWN: dict[tuple[type[Export], bytes, str], bytes] = {}
_rendered = Source.rendered


def examine_here(content: Content, protocol: Protocol, times: int = 1) -> None:
    """What `examine_fenced` does, here."""
    try:
        examine(content, protocol)
    except AuditspecError:
        raise
    except Exception as error:
        step = STEPS[len(protocol.steps)]
        with protocol.step(step):
            raise SignatureError(
                step, f"it cannot be read ({type(error).__name__}: {error})"
            ) from None


def rendered_once(source: Source, export: Export) -> bytes:
    key = (type(export), source.data, str(source.result.signer))
    if type(export).__module__.startswith("auditspec."):
        if key not in _DRAWN:
            _DRAWN[key] = _rendered(source, export)
        return _DRAWN[key]
    return _rendered(source, export)


def unfence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verifier, "examine_fenced", examine_here)
    monkeypatch.setattr(Source, "rendered", rendered_once)
