"""Sign-off: who signed with which key."""

from __future__ import annotations

from dataclasses import dataclass

from auditspec.report.lookup import Lookup
from auditspec.report.parts import (
    SHORT,
    Code,
    Fact,
    Muted,
    clean,
)
from auditspec.report.sections.interface import Section
from auditspec.results import AuditResult, Signer


@dataclass(frozen=True)
class SignOffView:
    """Who stands for the report."""

    signed: bool
    signature: tuple[Fact, ...]
    auditor: tuple[str, str]
    approver: tuple[str, str]
    """Name and role; empty where nobody is named."""


class SignOff(Section):
    """Sign-off."""

    id = "signoff"
    title = "Sign-off"
    shows = ("approver",)

    def view(self, known: Lookup) -> SignOffView:
        """The signature, and the lines for auditor and approver."""
        result, approver = known.result, known.result.approver
        return SignOffView(
            signed=result.signer is not None,
            signature=signature(result),
            auditor=(clean(result.auditor.name, SHORT), clean(result.auditor.role, SHORT)),
            approver=(clean(approver.name, SHORT), clean(approver.role, SHORT))
            if approver
            else ("", ""),
        )


def signature(result: AuditResult) -> tuple[Fact, ...]:
    """Who signed with which key; empty for an unsigned packet."""
    signer = result.signer
    if signer is None:
        return ()
    return (
        Fact("Key id", (Code(clean(signer.keyid, 160)), " ", Muted("sha256 of the public key"))),
        Fact("Algorithm", (signer.algorithm,)),
        Fact(
            "Certificate",
            (Code(clean(signer.certificate, 160)), " ", Muted("sha256 of the X.509 certificate"))
            if signer.certificate
            else ("none: the key stands for itself",),
        ),
        Fact("Signature in the PDF", (_in_the_pdf(result, signer),)),
    )


def _in_the_pdf(result: AuditResult, signer: Signer) -> str:
    if signer.pdf is None:
        return "none"
    if result.withheld:
        return "none: the page was drawn again without what is withheld"
    return f"PAdES {signer.pdf}"
