"""Verifying a packet: a numbered list of steps, each of which raises.

`verify` raises the first failure; `verify_all` records it instead, for whoever prints every step. The
packet is read once, so that what was hashed is what is parsed. First stands who signed which bytes; what these say is
parsed last, behind the fence, whoever signed them.
"""

from __future__ import annotations

import datetime as dt
import itertools
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeAlias

from auditspec.artifacts.files import open_regular
from auditspec.artifacts.manifest import check_name
from auditspec.errors import (
    EvidenceError,
    NotRebuiltError,
    SignatureError,
    UnknownSignerError,
)
from auditspec.results import AuditResult
from auditspec.sign.disclosure import FILE as DISCLOSURE
from auditspec.sign.disclosure import Disclosure, salted
from auditspec.sign.dsse import Envelope
from auditspec.sign.packet import (
    AS_SIGNED,
    ENVELOPE,
    EVIDENCE,
    REQUIRED,
    RESULTS,
    SIDECARS,
    confusable,
    decode_results,
)
from auditspec.sign.redaction import Disclosures
from auditspec.sign.seen_checkpoints import SeenCheckpoints
from auditspec.sign.statement import MAX_SUBJECTS, PAYLOAD_TYPE, Statement
from auditspec.verification import place_in_log, signatures
from auditspec.verification.content import Content
from auditspec.verification.expectation import Expectation
from auditspec.verification.fence import examine_fenced
from auditspec.verification.signatures import Signing
from auditspec.verification.steps import Protocol, Step
from auditspec.verification.trust import NO_WITNESSES, Trust, TrustedKey

Files: TypeAlias = dict[str, bytes]
"""The packet's files by name."""
MAX_FILES, MAX_BYTES = MAX_SUBJECTS, 2**26
"""Of a packet, all its files together: it holds reports, not weights."""
MAX_ENVELOPE = 2**22
"""Bytes of the envelope, nearly all of them certificates and timestamps."""
UNKNOWN = "no known key signed it"


@dataclass(frozen=True)
class Verification:
    """What verifying a packet found."""

    steps: tuple[Step, ...]
    signers: tuple[TrustedKey, ...] = ()
    """Trusted keys whose signature is good, each once."""
    unknown: tuple[str, ...] = ()
    """Key ids, as the envelope claims them, of signatures that no trusted key made."""
    result: AuditResult | None = None
    """The packet's results; None where they are not shown to be what was signed."""
    withheld: tuple[str, ...] = ()
    """What is not shown: JSON pointers into the results, and names of files."""
    error: SignatureError | None = field(default=None, compare=False)
    """The first failure; None: everything holds."""

    @property
    def summary(self) -> str:
        """The outcome in one line."""
        names = ", ".join(f"{s.name} ({s.role})" for s in self.signers)
        if self.error is None:
            return f"valid: signed by {names}{self._less}"
        if isinstance(self.error, NotRebuiltError):
            return f"not rebuilt: signed by {names}{self._less}"
        if isinstance(self.error, UnknownSignerError):
            return f"intact, but the signer is unknown{self._less}"
        number = next(step.number for step in self.steps if step.name == self.error.step)
        return f"invalid: step {number} {self.error.step} failed"

    @property
    def _less(self) -> str:
        values = sum(what.startswith("/") for what in self.withheld)
        counts = ((values, "value"), (len(self.withheld) - values, "file"))
        told = [f"{count} {word}{'s' * (count != 1)}" for count, word in counts if count]
        return f"; {' and '.join(told)} withheld" if told else ""


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
    limit: int = 1
    """Times the bounds of `fence` that the packet's contents may take."""


def verify(
    packet: Path, trust: Trust | None, against: VerificationInputs | None = None
) -> Verification:
    """Verify a packet against a trust policy, which comes from the verifier, never from the packet.

    Raises:
        UnknownSignerError: if the packet is intact, but no trusted key signed it; always so with
            `trust=None`.
        NotRebuiltError: if all else holds, and reports were not made again.
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
    if found.error is None:
        found.error = next((_not_rebuilt(s) for s in found.steps if s.outcome == "weaker"), None)
    return Verification(
        found.complete(),
        tuple({s.signer.keyid: s.signer for s in found.signings}.values()),
        found.unknown,
        found.result,
        found.withheld,
        found.error,
    )


def _not_rebuilt(step: Step) -> NotRebuiltError:
    return NotRebuiltError(
        step.name,
        step.detail,
        "verify with the renderer that the results name (run.renderer), or with a higher --limit",
    )


def _run_steps(
    packet: Path, trust: Trust | None, against: VerificationInputs, found: _Found
) -> None:
    files, envelope, statement = _enveloped(packet, found)
    now = against.at or dt.datetime.now(dt.UTC)
    _signed(envelope, trust, now, found)
    disclosure = _whole(files, statement, found)
    content = Content(
        {name: data for name, data in files.items() if name not in SIDECARS},
        statement,
        disclosure,
        found.signings,
        signatures.makers_by_certificate(envelope) | {s.signer.keyid for s in found.signings},
        trust,
        now,
        against.expected,
        against.disclosures,
    )
    examine_fenced(content, found, against.limit)
    found.result = decode_results(files[RESULTS], RESULTS)
    absent = sorted(statement.listed.keys() - files.keys())
    found.withheld = (*(item.pointer for item in found.result.withheld), *absent)
    _logged(files, envelope, trust if found.signings else None, against, found)


def _enveloped(packet: Path, found: _Found) -> tuple[Files, Envelope, Statement]:
    """There is an envelope, around a statement about a packet."""
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
        if len(files[ENVELOPE]) > MAX_ENVELOPE:
            raise SignatureError("envelope-wellformed", f"larger than {MAX_ENVELOPE} bytes")
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
    return files, envelope, statement


def _signed(envelope: Envelope, trust: Trust | None, now: dt.datetime, found: _Found) -> None:
    """Those whom the trust policy asks for signed, while their keys were good."""
    # 6. Signers whom the policy names made good signatures, with allowed algorithms.
    try:
        with found.step("signatures"):
            found.signings, found.unknown = signatures.signings_of(envelope, trust, now)
            signatures.require_known(found.signings, found.unknown, trust)
    except UnknownSignerError as error:  # not the end: the packet may not even be intact
        found.error = error
    # 7. Timestamps are by trusted authorities, over these signatures.
    with found.step("timestamps") as step:
        found.signings = signatures.dated(found.signings, trust)
        earliest = min((s.moment for s in found.signings if s.moment != now), default=None)
        step.note(f"earliest {earliest:%Y-%m-%d %H:%M} UTC" if earliest else "", "none to rely on")
    # 8. Keys and certificates were good when the signatures were made.
    with found.step("validity") as step:
        signatures.require_valid(found.signings, trust)
        step.note(f"{len(found.signings)} signatures" * bool(found.signings), UNKNOWN)
    # 9. Each role has as many signers as the policy asks for.
    with found.step("thresholds") as step:
        if found.signings:
            signatures.require_thresholds(found.signings, trust)
        step.note("all met" * bool(found.signings), UNKNOWN)


def _whole(files: Files, statement: Statement, found: _Found) -> Disclosure:
    """The files are those that the statement lists, and no byte changed of those that its reader can hold against it."""
    listed = statement.listed
    # 10. Every file is listed.
    with found.step("files-listed"):
        extra = sorted(files.keys() - listed.keys() - set(SIDECARS))
        if extra:
            raise SignatureError(
                "files-listed",
                f"not part of what was signed: {', '.join(extra)}",
                "remove what was added to the packet",
            )
        for name in sorted(listed):
            if why := confusable(name):
                raise SignatureError("files-listed", f"{name!a}: {why}", "ask for another packet")
    # 11. Every file that makes a packet is there, and every listed file whose salt is there.
    with found.step("files-present"):
        needed = {RESULTS, EVIDENCE, DISCLOSURE}
        if DISCLOSURE in files:
            disclosure = Disclosure.decode(files[DISCLOSURE])
            needed |= disclosure.files.keys()
        missing = sorted(needed - files.keys()) + sorted(set(REQUIRED) - listed.keys())
        if missing:
            raise SignatureError(
                "files-present", f"missing: {', '.join(missing)}", "get the whole packet again"
            )
    # 12. Every file has the signed digest; one that was made again, from results of which something is withheld,
    # has none, and is compared with what these give.
    with found.step("digests"):
        changed = sorted(
            name
            for name in listed.keys() & files.keys()
            if (
                salted(disclosure.files[name], files[name]) != listed[name]
                if name in disclosure.files
                else name in AS_SIGNED
            )
        )
        if changed:
            raise SignatureError(
                "digests",
                f"changed after signing: {', '.join(changed)}",
                "get the packet again from the auditor",
            )
    return disclosure


def _logged(
    files: Files,
    envelope: Envelope,
    trust: Trust | None,
    against: VerificationInputs,
    found: _Found,
) -> None:
    """The packet stands in the log that the trust policy names, and that log only grew."""
    # 20. The packet stands in the log.
    key = trust.log if trust else None
    with found.step("log-inclusion") as step:
        place = place_in_log.require_inclusion(
            files, envelope, key, trust.witnesses if trust else NO_WITNESSES
        )
        step.note(f"entry {place[0].index + 1}" if place and key else "", "the policy names no log")
    # 21. The log only ever grew.
    with found.step("log-consistency") as step:
        compared, why = "", "the policy names no log"
        if place and key:
            compared = place_in_log.require_consistency(place[1], against.log, key, against.memory)
            why = "not compared with the checkpoint seen before: give the log, --log"
        step.note(compared, why)


class _Found(Protocol):
    """What the steps found so far."""

    def __init__(self) -> None:
        super().__init__()
        self.result: AuditResult | None = None
        self.signings: tuple[Signing, ...] = ()
        self.unknown: tuple[str, ...] = ()
        self.withheld: tuple[str, ...] = ()
        self.error: SignatureError | None = None


def _read(packet: Path) -> Files:
    step = "packet-readable"
    if packet.is_symlink() or not packet.is_dir():
        raise SignatureError(step, f"{packet}: not a folder", "name the packet's folder")
    files: Files = {}
    left = MAX_BYTES
    try:
        for path in sorted(itertools.islice(packet.iterdir(), MAX_FILES + 1)):
            check_name(path.name, path.name)
            if path.is_dir() and not path.is_symlink():
                raise SignatureError(step, f"{path.name}: a packet has no folders", "remove it")
            with open_regular(path) as file:
                files[path.name] = file.read(left + 1)
            left -= len(files[path.name])
            if left < 0:
                raise SignatureError(
                    step, f"{path.name}: larger than a packet of {MAX_BYTES} bytes"
                )
            if len(files) > MAX_FILES:
                raise SignatureError(step, f"{packet}: holds more than {MAX_FILES} files")
    except EvidenceError as error:
        raise SignatureError(step, error.message, error.remedy) from None
    except OSError as error:
        raise SignatureError(step, f"{packet}: cannot be read ({error.strerror})") from None
    return files
