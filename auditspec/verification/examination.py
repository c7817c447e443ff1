"""What a packet's files say: that they agree with what was signed, with one another, and with what was asked for.

Every function here parses bytes that may be hostile, and runs behind the fence (`fence`).
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

from auditspec.artifacts import strict_json
from auditspec.artifacts.digest import digest_bytes
from auditspec.conclusions import Conclusions, concluded_again, decided_again
from auditspec.errors import EvidenceError, SignatureError, WithheldError
from auditspec.results import AuditResult, VerdictResult
from auditspec.sign import redaction
from auditspec.sign.packet import ENVIRONMENT, RESOLVED, RESULTS, SPEC, decode_results
from auditspec.sign.statement import Predicate
from auditspec.spec.measures import AS_DECLARED
from auditspec.spec.models import Spec
from auditspec.verification import reports, signatures, withholding
from auditspec.verification.content import Content
from auditspec.verification.rebuild import rebuild
from auditspec.verification.steps import Protocol
from auditspec.withheld import is_withheld, unless_withheld


def examine(content: Content, protocol: Protocol) -> None:
    """Run the steps of `steps.CONTENT`, in their order.

    Raises:
        SignatureError: at the first that does not hold.
        UsageError: if a plug-in cannot be used.
    """
    files = content.files
    # 13. The results can be read, and the statement says what they say.
    with protocol.step("results-consistent") as step:
        result = _consistent_results(content)
        if content.signings:  # without one, the signer is unknown, and step 6 has said so
            _require_named_signer(result, content.makers)
        step.note(
            f"audited code {unless_withheld(lambda: _where_it_ran(result), 'ran: withheld')}", ""
        )
    # 14. Nothing is withheld that the trust policy wants to see.
    with protocol.step("withheld") as step:
        if content.trust is not None:
            withholding.require_allowed(result, content.trust.never_withheld)
        step.note(", ".join(item.pointer for item in result.withheld), "nothing")
    # 15. Verdicts, findings, and gate are what the levels and checks lead to.
    with protocol.step("conclusions") as step:
        step.note(*same_conclusions(files, result))
    # 16. A PDF carries the signature that the results announce, it covers every byte, and it counts.
    with protocol.step("pdf-signature") as step:
        pdfs = reports.pdf_signatures(files, result, content.again)
        for pdf in pdfs:
            moment = signatures.proven_moment_of_pdf(pdf, content.trust) or content.now
            signing = signatures.signing_of_pdf(pdf, content.signings, moment)
            signatures.require_valid(signing, content.trust, "pdf-signature")
        step.note(f"PAdES {pdfs[0].level}" if pdfs else "", "the packet announces none")
    # 17. The packet is about what the verifier asked for.
    with protocol.step("expected") as step:
        count = content.expected.count
        content.expected.require(result)
        step.note(f"{count} compared" * bool(count), "nothing was asked for")
    # 18. Values that somebody discloses are those that the packet commits to.
    with protocol.step("disclosures") as step:
        proved = 0
        if content.disclosures is not None:
            proved = redaction.require_proved(
                result.withheld, content.statement, content.disclosures
            )
        step.note(f"{proved} proved" * bool(proved), "nothing was disclosed")
    # 19. Results and spec give every other file, byte for byte.
    with protocol.step("rebuild") as step:
        rebuilt = rebuild(files, result, content.again)
        step.note(f"every byte of {', '.join(rebuilt.same)}", "")
        if rebuilt.because:
            step.weaken(f"{', '.join(rebuilt.read)}; {', '.join(sorted(rebuilt.because))}")


def _where_it_ran(result: AuditResult) -> str:
    ran = result.run.isolation
    return ran.words if ran else "was not executed"


def _consistent_results(content: Content) -> AuditResult:
    step, predicate = "results-consistent", content.statement.predicate
    try:
        result = decode_results(content.files[RESULTS], RESULTS)
    except EvidenceError as error:
        raise SignatureError(step, error.message, error.remedy) from None
    root = withholding.require_committed(content.files, content.again, content.disclosure, result)
    expected = Predicate.of(result, root)
    for name in Predicate.model_fields:
        signed, found = getattr(predicate, name), getattr(expected, name)
        if signed != found:
            raise SignatureError(step, f"the statement's {name} is {signed}, the packet's {found}")
    named = ((SPEC, result.run.spec_digest), (ENVIRONMENT, result.run.environment))
    for name, digest in named:
        there = digest_bytes(content.files[name]) if name in content.files else None
        if not is_withheld(digest) and name not in content.again and there != digest:
            raise SignatureError(
                step, f"{RESULTS} is about {name} {digest}, the packet's is {there}"
            )
    return result


def same_conclusions(files: Mapping[str, bytes], result: AuditResult) -> tuple[str, str]:
    """Compare the published conclusions with those that are drawn from the results here.

    Where one rests on something that is withheld, the verdicts that do not are still compared, and those that do are named.

    Returns:
        What was compared, empty where nothing was; and why that is.

    Raises:
        SignatureError: at step `conclusions`, naming the first that differs.
    """
    if RESOLVED not in files:
        return "", f"not re-derived: withheld: {RESOLVED}"
    try:
        spec = strict_json.load(Spec, files[RESOLVED], RESOLVED, AS_DECLARED)
        try:
            return _all_conclusions(result, concluded_again(result, spec)), "there are none"
        except WithheldError as error:
            return unless_withheld(
                partial(_some_verdicts, result, spec), ("", f"not re-derived: {error.message}")
            )
    except (EvidenceError, ValueError, KeyError) as error:
        raise SignatureError("conclusions", f"cannot be drawn again: {error}") from None


def _all_conclusions(result: AuditResult, again: Conclusions) -> str:
    for verdict, ours in zip(result.verdicts, again.verdicts, strict=False):
        _require_same(verdict, ours)
    for name in ("verdicts", "findings", "gate"):
        if getattr(result, name) != getattr(again, name):
            raise SignatureError(
                "conclusions", f"the {name} are not those that levels and checks lead to"
            )
    return f"{len(again.verdicts)} drawn again" * bool(again.verdicts)


def _some_verdicts(result: AuditResult, spec: Spec) -> tuple[str, str]:
    """Compare the verdicts that do not rest on what is withheld."""
    left = []
    for behavior, verdict in zip(result.behaviors, result.verdicts, strict=False):
        try:
            _require_same(verdict, decided_again(behavior, verdict, result, spec))
        except WithheldError as error:
            left.append(f"{behavior.id} ({error.message})")
    drawn = len(result.behaviors) - len(left)
    words = f"not re-derived: findings, gate, and the verdicts on {'; '.join(left) or 'none'}"
    return f"{drawn} drawn again; {words}" * bool(drawn), words


def _require_same(verdict: VerdictResult, ours: VerdictResult) -> None:
    if verdict != ours:
        raise SignatureError(
            "conclusions",
            f"the verdict on '{verdict.behavior}' is {verdict.verdict} {list(verdict.parties)}; levels and "
            f"checks lead to {ours.verdict} {list(ours.parties)}",
            "ask the auditor for a packet that follows from its own results",
        )


def _require_named_signer(result: AuditResult, makers: frozenset[str]) -> None:
    """The report prints its signer; that key must be among those that signed."""
    named = result.signer.keyid if result.signer else None
    # An envelope's keyid is a hint: only a signature that verifies shows who made it.
    if named is not None and named not in makers:
        raise SignatureError(
            "results-consistent",
            f"the report names the signer {named[:16]}…, and no signature is shown to be by that key",
            "if it is the auditor's, add it to the trust file",
        )
