"""Verifying a packet: a numbered list of steps, each of which raises.

`verify` raises the first failure; `verify_all` records it instead, for whoever prints every step. The
packet is read once, so that what was hashed is what is parsed.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, TypeAlias

from auditspec.artifacts import strict_json
from auditspec.artifacts.digest import digest_bytes
from auditspec.artifacts.files import read_regular
from auditspec.artifacts.manifest import check_name
from auditspec.conclusions import RESTS_ON, concluded_again
from auditspec.errors import EvidenceError, SignatureError, UnknownSignerError
from auditspec.results import AuditResult
from auditspec.sign import redaction
from auditspec.sign.dsse import Envelope
from auditspec.sign.packet import (
    ENVELOPE,
    REQUIRED,
    RESOLVED,
    RESULTS,
    SIDECARS,
    SPEC,
    decode_results,
)
from auditspec.sign.pdf import PdfSignature
from auditspec.sign.redaction import Disclosures
from auditspec.sign.seen_checkpoints import SeenCheckpoints
from auditspec.sign.statement import PAYLOAD_TYPE, Predicate, Statement
from auditspec.spec.measures import AS_DECLARED
from auditspec.spec.models import Spec
from auditspec.verification import place_in_log, reports, signatures
from auditspec.verification.expectation import Expectation
from auditspec.verification.signatures import Signing
from auditspec.verification.trust import NO_WITNESSES, Trust, TrustedKey

Files: TypeAlias = dict[str, bytes]
"""The packet's files by name."""
STEPS = (
    "packet-readable",
    "envelope-present",
    "envelope-wellformed",
    "payload-type",
    "statement-wellformed",
    "files-listed",
    "files-present",
    "digests",
    "results-consistent",
    "conclusions",
    "pdf-signature",
    "report-numbers",
    "expected",
    "disclosures",
    "timestamps",
    "signatures",
    "validity",
    "thresholds",
    "log-inclusion",
    "log-consistency",
)
MAX_FILE = 2**28
"""Bytes; a packet holds reports, not weights."""


@dataclass(frozen=True)
class Step:
    """One step of a verification, and what came out."""

    number: int
    name: str
    outcome: Literal["pass", "fail", "skipped", "not-run"]
    """`skipped`: there is nothing to check; `not-run`: an earlier step failed."""
    detail: str = ""


@dataclass(frozen=True)
class Verification:
    """What verifying a packet found."""

    steps: tuple[Step, ...]
    signers: tuple[TrustedKey, ...] = ()
    """Trusted keys whose signature is good, each once."""
    unknown: tuple[str, ...] = ()
    """Key ids, as the envelope claims them, of signatures that no trusted key made."""
    result: AuditResult | None = None
    """The packet's results; None where a step failed before they were found to be consistent."""
    error: SignatureError | None = field(default=None, compare=False)
    """The first failure; None: everything holds."""

    @property
    def summary(self) -> str:
        """The outcome in one line."""
        if self.error is None:
            names = ", ".join(f"{s.name} ({s.role})" for s in self.signers)
            return f"valid: signed by {names}"
        if isinstance(self.error, UnknownSignerError):
            return "intact, but the signer is unknown"
        return f"invalid: step {self._failed.number} {self._failed.name} failed"

    @property
    def _failed(self) -> Step:
        return next(step for step in self.steps if step.outcome == "fail")


@dataclass(frozen=True)
class VerificationInputs:
    """What a packet is held against besides a trust policy, all of it the verifier's own."""

    at: dt.datetime | None = None
    """The moment that counts as now; None: the clock's."""
    expected: Expectation = field(default_factory=Expectation)
    disclosures: Disclosures | None = None
    """Withheld values that their holder wants to prove."""
    log: Path | None = None
    """Folder of the log; looked at where the trust policy names a log."""
    memory: SeenCheckpoints | None = None


def verify(
    packet: Path, trust: Trust | None, against: VerificationInputs | None = None
) -> Verification:
    """Verify a packet against a trust policy, which comes from the verifier, never from the packet.

    Raises:
        UnknownSignerError: if the packet is intact, but no trusted key signed it; always so with
            `trust=None`.
        SignatureError: if anything else does not hold; `step` names the first step that failed.
        UsageError: if the memory of logs is damaged.
    """
    verification = verify_all(packet, trust, against)
    if verification.error is not None:
        raise verification.error
    return verification


def verify_all(
    packet: Path, trust: Trust | None, against: VerificationInputs | None = None
) -> Verification:
    """Like `verify`, but a failure is recorded in the verification and not raised."""
    found = _Found()
    try:
        _run_steps(packet, trust, against or VerificationInputs(), found)
    except SignatureError as error:
        found.error = error
    return Verification(
        found.complete(),
        tuple({s.signer.keyid: s.signer for s in found.signings}.values()),
        found.unknown,
        found.result,
        found.error,
    )


def _run_steps(
    packet: Path, trust: Trust | None, against: VerificationInputs, found: _Found
) -> None:
    files, envelope, statement = _sealed(packet, found)
    result = _coherent(files, statement, found)
    pdfs = _reported(files, result, against, found)
    now = against.at or dt.datetime.now(dt.UTC)
    _signed(envelope, result, trust, now, pdfs, found)
    _logged(files, envelope, trust, against, found)


def _sealed(packet: Path, found: _Found) -> tuple[Files, Envelope, Statement]:
    """The files are those that the envelope's statement lists, and no byte of them was changed."""
    # 1. A folder of plain files: no links, nothing hidden, no folders.
    with found.step("packet-readable"):
        files = _read(packet)
    # 2. There is an envelope.
    with found.step("envelope-present"):
        if ENVELOPE not in files:
            raise SignatureError(
                "envelope-present",
                f"no {ENVELOPE}: the packet was never signed, or its signature was removed",
                "ask the auditor for the signed packet",
            )
    # 3. It is a DSSE envelope, read strictly, with at least one signature.
    with found.step("envelope-wellformed"):
        envelope = Envelope.decode(files[ENVELOPE])
    # 4. Its payload claims to be an in-toto statement.
    with found.step("payload-type"):
        if envelope.payload_type != PAYLOAD_TYPE:
            raise SignatureError(
                "payload-type", f"is {envelope.payload_type!r}, not {PAYLOAD_TYPE!r}"
            )
    # 5. It is a statement about a packet, of this version.
    with found.step("statement-wellformed"):
        statement = Statement.decode(envelope.payload)
        listed = {s.name: f"sha256:{s.digest.sha256}" for s in statement.subject}
    # 6. Every file is listed.
    with found.step("files-listed"):
        extra = sorted(files.keys() - listed.keys() - set(SIDECARS))
        if extra:
            raise SignatureError(
                "files-listed",
                f"not part of what was signed: {', '.join(extra)}",
                "remove what was added to the packet",
            )
    # 7. Every listed file, and every file that makes a packet, is there.
    with found.step("files-present"):
        missing = sorted((listed.keys() | set(REQUIRED)) - files.keys())
        if missing:
            raise SignatureError(
                "files-present", f"missing: {', '.join(missing)}", "get the whole packet again"
            )
    # 8. Every file has the signed digest.
    with found.step("digests"):
        changed = sorted(name for name in listed if digest_bytes(files[name]) != listed[name])
        if changed:
            raise SignatureError(
                "digests",
                f"changed after signing: {', '.join(changed)}",
                "get the packet again from the auditor",
            )
    return files, envelope, statement


def _coherent(files: Files, statement: Statement, found: _Found) -> AuditResult:
    """The results say what the statement says, and follow from their own levels and checks."""
    # 9. The results can be read, and the statement says what they say.
    with found.step("results-consistent"):
        found.result = result = _consistent_results(files, statement.predicate)
    # 10. Verdicts, findings, and gate are what the levels and checks lead to.
    with found.step("conclusions") as step:
        step.note(*_same_conclusions(files, result))
    return result


def _reported(
    files: Files, result: AuditResult, against: VerificationInputs, found: _Found
) -> tuple[PdfSignature, ...]:
    """The reports say what the results say, and these what the verifier asked for; gives the PDFs' signatures."""
    # 11. A PDF carries the signature that the results announce, and it covers every byte.
    with found.step("pdf-signature") as step:
        pdfs = reports.pdf_signatures(files, result)
        step.note(f"PAdES {pdfs[0].level}" if pdfs else "", "the packet announces none")
    # 12. Every number that the reports show is the one in the results.
    with found.step("report-numbers") as step:
        step.note(reports.require_same_numbers(files, result), "the packet has no report")
    # 13. The packet is about what the verifier asked for.
    with found.step("expected") as step:
        against.expected.require(result)
        step.note(
            f"{against.expected.count} compared" * bool(against.expected.count),
            "nothing was asked for",
        )
    # 14. Values that somebody discloses are those that the packet commits to.
    with found.step("disclosures") as step:
        proved = 0
        if against.disclosures is not None:
            proved = redaction.require_proved(result, against.disclosures)
        step.note(f"{proved} proved" * bool(proved), "nothing was disclosed")
    return pdfs


def _signed(
    envelope: Envelope,
    result: AuditResult,
    trust: Trust | None,
    now: dt.datetime,
    pdfs: Sequence[PdfSignature],
    found: _Found,
) -> None:
    """Those whom the trust policy asks for signed, while their keys were good."""
    # 15. Timestamps are by trusted authorities, over these signatures.
    with found.step("timestamps") as step:
        proven = signatures.proven_moments(envelope, trust)
        proven_pdfs = [signatures.proven_moment_of_pdf(pdf, trust) for pdf in pdfs]
        earliest = min(
            (moment for moment in (*proven, *proven_pdfs) if moment),
            default=None,
        )
        step.note(f"earliest {earliest:%Y-%m-%d %H:%M} UTC" if earliest else "", "none to rely on")
    # 16. Signers whom the policy names made good signatures, with allowed algorithms.
    with found.step("signatures"):
        found.signings, found.unknown = signatures.signings_of(envelope, trust, proven, now)
        signatures.require_known(found.signings, found.unknown, trust)
        _require_named_signer(result, found.signings, envelope)
    # 17. Keys and certificates were good when the signatures were made.
    with found.step("validity"):
        signatures.require_valid(found.signings, trust)
        for pdf, moment in zip(pdfs, proven_pdfs, strict=True):
            signing = signatures.signing_of_pdf(pdf, found.signings, moment or now)
            signatures.require_valid(signing, trust)
    # 18. Each role has as many signers as the policy asks for.
    with found.step("thresholds"):
        signatures.require_thresholds(found.signings, trust)


def _logged(
    files: Files,
    envelope: Envelope,
    trust: Trust | None,
    against: VerificationInputs,
    found: _Found,
) -> None:
    """The packet stands in the log that the trust policy names, and that log only grew."""
    # 19. The packet stands in the log.
    key = trust.log if trust else None
    with found.step("log-inclusion") as step:
        place = place_in_log.require_inclusion(
            files, envelope, key, trust.witnesses if trust else NO_WITNESSES
        )
        step.note(f"entry {place[0].index + 1}" if place and key else "", "the policy names no log")
    # 20. The log only ever grew.
    with found.step("log-consistency") as step:
        compared, why = "", "the policy names no log"
        if place and key:
            compared = place_in_log.require_consistency(place[1], against.log, key, against.memory)
            why = "not compared with the checkpoint seen before: give the log, --log"
        step.note(compared, why)


class _Noted:
    """What a step that holds has to say."""

    def __init__(self) -> None:
        self.outcome: Literal["pass", "skipped"] = "pass"
        self.detail = ""

    def note(self, detail: str, otherwise: str) -> None:
        """Say what was checked; where that is nothing, the step is skipped, and says why."""
        self.outcome, self.detail = ("pass", detail) if detail else ("skipped", otherwise)


class _Found:
    """What the steps found so far."""

    def __init__(self) -> None:
        self._steps: list[Step] = []
        self.result: AuditResult | None = None
        self.signings: tuple[Signing, ...] = ()
        self.unknown: tuple[str, ...] = ()
        self.error: SignatureError | None = None

    @contextmanager
    def step(self, name: str) -> Iterator[_Noted]:
        number, noted = STEPS.index(name) + 1, _Noted()
        try:
            yield noted
        except SignatureError as error:
            detail = error.message.removeprefix(f"{name}: ")
            self._steps.append(Step(number, name, "fail", detail))
            raise
        self._steps.append(Step(number, name, noted.outcome, noted.detail))

    def complete(self) -> tuple[Step, ...]:
        """All steps, those after a failure as not run."""
        done = len(self._steps)
        rest = (Step(n, name, "not-run") for n, name in enumerate(STEPS, 1) if n > done)
        return (*self._steps, *rest)


def _read(packet: Path) -> Files:
    step = "packet-readable"
    if packet.is_symlink() or not packet.is_dir():
        raise SignatureError(step, f"{packet}: not a folder", "name the packet's folder")
    try:
        files = {}
        for path in sorted(packet.iterdir()):
            check_name(path.name, path.name)
            if path.is_dir() and not path.is_symlink():
                raise SignatureError(step, f"{path.name}: a packet has no folders", "remove it")
            if path.lstat().st_size > MAX_FILE:
                raise SignatureError(step, f"{path.name}: larger than {MAX_FILE} bytes")
            files[path.name] = read_regular(path)
    except EvidenceError as error:
        raise SignatureError(step, error.message, error.remedy) from None
    except OSError as error:
        raise SignatureError(step, f"{packet}: cannot be read ({error.strerror})") from None
    return files


def _consistent_results(files: Files, predicate: Predicate) -> AuditResult:
    step = "results-consistent"
    try:
        result = decode_results(files[RESULTS], RESULTS)
    except EvidenceError as error:
        raise SignatureError(step, error.message, error.remedy) from None
    expected = Predicate.of(result, files)
    for name in Predicate.model_fields:
        signed, found = getattr(predicate, name), getattr(expected, name)
        if signed != found:
            raise SignatureError(step, f"the statement's {name} is {signed}, the packet's {found}")
    if result.run.spec_digest != predicate.spec:
        raise SignatureError(
            step, f"{RESULTS} is about spec {result.run.spec_digest}, {SPEC} is {predicate.spec}"
        )
    return result


def _same_conclusions(files: Files, result: AuditResult) -> tuple[str, str]:
    """Compare the published conclusions with those that are drawn from the results here."""
    step = "conclusions"
    withheld = {item.what.split("/")[1] for item in result.withheld if item.what.startswith("/")}
    if hidden := sorted(withheld & {*RESTS_ON, "findings", "gate"}):
        return "", f"not drawn again: {', '.join(hidden)} is withheld, at least in part"
    if any(item.what == RESOLVED for item in result.withheld):
        return "", f"not drawn again: {RESOLVED} is withheld"
    try:
        spec = strict_json.load(Spec, files[RESOLVED], RESOLVED, AS_DECLARED)
        again = concluded_again(result, spec)
    except (EvidenceError, ValueError, KeyError) as error:
        raise SignatureError(step, f"cannot be drawn again: {error}") from None
    for verdict, ours in zip(result.verdicts, again.verdicts, strict=False):
        if verdict != ours:
            raise SignatureError(
                step,
                f"the verdict on '{verdict.behavior}' is {verdict.verdict} {list(verdict.parties)}; levels and "
                f"checks lead to {ours.verdict} {list(ours.parties)}",
                "ask the auditor for a packet that follows from its own results",
            )
    for name in ("verdicts", "findings", "gate"):
        if getattr(result, name) != getattr(again, name):
            raise SignatureError(step, f"the {name} are not those that levels and checks lead to")
    return f"{len(again.verdicts)} drawn again", "there are none"


def _require_named_signer(
    result: AuditResult, signings: tuple[Signing, ...], envelope: Envelope
) -> None:
    """The report prints its signer; that key must be among those that signed."""
    named = result.signer.keyid if result.signer else None
    # An envelope's keyid is a hint: only a signature that verifies shows who made it.
    signed = {s.signer.keyid for s in signings} | signatures.makers_by_certificate(envelope)
    if named is not None and named not in signed:
        raise SignatureError(
            "signatures",
            f"the report names the signer {named[:16]}…, and no signature is shown to be by that key",
            "if it is the auditor's, add it to the trust file",
        )
