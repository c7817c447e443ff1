"""Verifying a packet: a numbered list of steps, each of which raises.

`verify` raises the first failure; `examine` records it instead, for whoever prints every step. The
packet is read once, so that what was hashed is what is parsed.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from auditspec.artifacts import strict_json
from auditspec.artifacts.digest import digest_bytes
from auditspec.artifacts.files import read_regular
from auditspec.artifacts.manifest import check_name
from auditspec.errors import EvidenceError, SignatureError, UnknownSignerError
from auditspec.results import AuditResult
from auditspec.sign import keys
from auditspec.sign.dsse import Envelope, Signature
from auditspec.sign.packet import ENVELOPE, REQUIRED, RESULTS, SPEC
from auditspec.sign.statement import PAYLOAD_TYPE, Predicate, Statement
from auditspec.sign.trust import Trust, TrustedKey

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
    "signatures",
    "thresholds",
)
MAX_FILE = 2**28
"""Bytes; a packet holds reports, not weights."""


@dataclass(frozen=True)
class Step:
    """One step of a verification, and what came out."""

    number: int
    name: str
    outcome: Literal["pass", "fail", "not-run"]
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


def verify(packet: Path, trust: Trust | None) -> Verification:
    """Verify a packet against a trust policy, which comes from the verifier, never from the packet.

    Raises:
        UnknownSignerError: if the packet is intact, but no trusted key signed it; always so with
            `trust=None`.
        SignatureError: if anything else does not hold; `step` names the first step that failed.
    """
    verification = examine(packet, trust)
    if verification.error is not None:
        raise verification.error
    return verification


def examine(packet: Path, trust: Trust | None) -> Verification:
    """Like `verify`, but a failure is recorded in the verification and not raised."""
    log = _Log()
    result: AuditResult | None = None
    signers: tuple[TrustedKey, ...] = ()
    unknown: tuple[str, ...] = ()
    try:
        # 1. A folder of plain files: no links, nothing hidden, no folders.
        with log.step("packet-readable"):
            files = _read(packet)
        # 2. There is an envelope.
        with log.step("envelope-present"):
            if ENVELOPE not in files:
                raise SignatureError(
                    "envelope-present",
                    f"no {ENVELOPE}: the packet was never signed, or its signature was removed",
                    "ask the auditor for the signed packet",
                )
        # 3. It is a DSSE envelope, read strictly, with at least one signature.
        with log.step("envelope-wellformed"):
            envelope = Envelope.decode(files.pop(ENVELOPE))
        # 4. Its payload claims to be an in-toto statement.
        with log.step("payload-type"):
            if envelope.payload_type != PAYLOAD_TYPE:
                raise SignatureError(
                    "payload-type", f"is {envelope.payload_type!r}, not {PAYLOAD_TYPE!r}"
                )
        # 5. It is a statement about a packet, of this version.
        with log.step("statement-wellformed"):
            statement = Statement.decode(envelope.payload)
            listed = {s.name: f"sha256:{s.digest.sha256}" for s in statement.subject}
        # 6. Every file is listed.
        with log.step("files-listed"):
            extra = sorted(files.keys() - listed.keys())
            if extra:
                raise SignatureError(
                    "files-listed",
                    f"not part of what was signed: {', '.join(extra)}",
                    "remove what was added to the packet",
                )
        # 7. Every listed file, and every file that makes a packet, is there.
        with log.step("files-present"):
            missing = sorted((listed.keys() | set(REQUIRED)) - files.keys())
            if missing:
                raise SignatureError(
                    "files-present", f"missing: {', '.join(missing)}", "get the whole packet again"
                )
        # 8. Every file has the signed digest.
        with log.step("digests"):
            changed = sorted(name for name in listed if digest_bytes(files[name]) != listed[name])
            if changed:
                raise SignatureError(
                    "digests",
                    f"changed after signing: {', '.join(changed)}",
                    "get the packet again from the auditor",
                )
        # 9. The results can be read, and the statement says what they say.
        with log.step("results-consistent"):
            result = _consistent_results(files, statement.predicate)
        # 10. Trusted keys made good signatures, with allowed algorithms.
        with log.step("signatures"):
            signers, unknown = _signers(envelope, trust)
            _require_known(signers, unknown, trust)
            _require_named_signer(result, signers, envelope)
        # 11. Each role has as many signers as the policy asks for.
        with log.step("thresholds"):
            _require_thresholds(signers, trust)
    except SignatureError as error:
        return Verification(log.complete(), signers, unknown, result, error)
    return Verification(log.complete(), signers, unknown, result)


class _Log:
    """Outcomes of the steps so far."""

    def __init__(self) -> None:
        self._steps: list[Step] = []

    @contextmanager
    def step(self, name: str) -> Iterator[None]:
        number = STEPS.index(name) + 1
        try:
            yield
        except SignatureError as error:
            detail = error.message.removeprefix(f"{name}: ")
            self._steps.append(Step(number, name, "fail", detail))
            raise
        self._steps.append(Step(number, name, "pass"))

    def complete(self) -> tuple[Step, ...]:
        """All steps, those after a failure as not run."""
        done = len(self._steps)
        rest = (Step(n, name, "not-run") for n, name in enumerate(STEPS, 1) if n > done)
        return (*self._steps, *rest)


def _read(packet: Path) -> dict[str, bytes]:
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


def _consistent_results(files: dict[str, bytes], predicate: Predicate) -> AuditResult:
    step = "results-consistent"
    try:
        result = strict_json.load(AuditResult, files[RESULTS], RESULTS)
    except EvidenceError as error:
        raise SignatureError(step, error.message) from None
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


def _signers(
    envelope: Envelope, trust: Trust | None
) -> tuple[tuple[TrustedKey, ...], tuple[str, ...]]:
    """Trusted keys that signed, each once, and the claimed ids of signatures by other keys."""
    known: dict[str, TrustedKey] = {}
    unknown: list[str] = []
    for signature in envelope.signatures:
        key = _maker(signature, envelope.pae, trust.keys if trust else ())
        if key is None:
            unknown.append(signature.keyid or "no keyid")
        elif trust and key.algorithm not in trust.algorithms:
            raise SignatureError(
                "signatures",
                f"{key.name}'s key uses {key.algorithm}, which the trust policy does not allow",
            )
        else:
            known[key.keyid] = key
    return tuple(known.values()), tuple(unknown)


def _maker(signature: Signature, data: bytes, trusted: tuple[TrustedKey, ...]) -> TrustedKey | None:
    """The trusted key that made a signature; None if none did.

    Raises:
        SignatureError: if the signature names a trusted key that did not make it, or a trusted key
            made it under a foreign name.
    """
    for key in trusted:
        good = keys.verifies(key.key, signature.sig, data)
        if key.keyid == signature.keyid and not good:
            raise SignatureError(
                "signatures", f"the signature of {key.name} ({key.keyid[:16]}…) does not verify"
            )
        if good and signature.keyid not in (None, key.keyid):
            raise SignatureError(
                "signatures", f"a signature of {key.name} carries the keyid of another key"
            )
        if good:
            return key
    return None


def _require_known(
    signers: tuple[TrustedKey, ...], unknown: tuple[str, ...], trust: Trust | None
) -> None:
    if not signers:
        raise UnknownSignerError(
            "signatures",
            f"the files are those that the envelope lists, but no known key signed it ({', '.join(unknown)})",
            "add the auditor's public key, obtained from the auditor, to the trust file"
            if trust
            else "say whom you trust: --trust trust.yaml",
        )


def _require_named_signer(
    result: AuditResult, signers: tuple[TrustedKey, ...], envelope: Envelope
) -> None:
    """The report prints its signer; that key must be among those that signed."""
    named = result.signer.keyid if result.signer else None
    claimed = {s.keyid for s in envelope.signatures} | {s.keyid for s in signers}
    if named is not None and named not in claimed:
        raise SignatureError(
            "signatures", f"the report names the signer {named[:16]}…, who did not sign it"
        )


def _require_thresholds(signers: tuple[TrustedKey, ...], trust: Trust | None) -> None:
    counts = Counter(signer.role for signer in signers)
    for role, needed in sorted((trust.require if trust else {}).items()):
        if counts[role] < needed:
            raise SignatureError(
                "thresholds",
                f"{counts[role]} of {needed} required signatures in role '{role}'",
                f"have the packet signed by another {role}",
            )
