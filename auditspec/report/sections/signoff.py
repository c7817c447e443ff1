"""Sign-off: who signed with which key."""

from __future__ import annotations

from auditspec.report.parts import (
    Code,
    Fact,
    Muted,
    clean,
)
from auditspec.results import (
    AuditResult,
)


def signature(result: AuditResult) -> tuple[Fact, ...]:
    """Who signed with which key; empty for an unsigned packet."""
    signer = result.signer
    if signer is None:
        return ()
    return (
        Fact("Key id", (Code(clean(signer.keyid, 160)), Muted("sha256 of the public key"))),
        Fact("Algorithm", (signer.algorithm,)),
        Fact(
            "Certificate",
            (Code(clean(signer.certificate, 160)), Muted("sha256 of the X.509 certificate"))
            if signer.certificate
            else ("none: the key stands for itself",),
        ),
        Fact("Signature in the PDF", (f"PAdES {signer.pdf}" if signer.pdf else "none",)),
    )
