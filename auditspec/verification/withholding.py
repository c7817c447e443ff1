"""What a packet withholds: that the rest is what was signed, and that a trust policy allows it."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

from auditspec.artifacts import strict_json
from auditspec.errors import SignatureError
from auditspec.results import AuditResult, CheckResult
from auditspec.sign.disclosure import STEP, Disclosure, Root, root_of
from auditspec.sign.packet import EVIDENCE, RESULTS
from auditspec.sign.redaction import encode_evidence, encode_results, is_never_withheld
from auditspec.verification.trust import FAILED_CHECKS
from auditspec.withheld import is_withheld


def require_committed(
    files: Mapping[str, bytes],
    again: Collection[str],
    disclosure: Disclosure,
    result: AuditResult,
) -> Root:
    """The root that `results.json` opens, withheld leaves by their commitments.

    Args:
        files: the packet's files.
        again: those that are not as they were signed.
        disclosure: the salts.
        result: `results.json`, read.

    Raises:
        SignatureError: at step `results-consistent`, if something is withheld that names the packet, or a file that was made
            again is not what the rest gives.
    """
    document = strict_json.parse(files[RESULTS], RESULTS)
    for item in result.withheld:
        if is_never_withheld(item.pointer):
            raise SignatureError(STEP, f"{item.pointer} is withheld, which names the packet")
    for name, encode in ((RESULTS, encode_results), (EVIDENCE, encode_evidence)):
        if name in again and files[name] != encode(document):
            raise SignatureError(STEP, f"{name} is not written as it is where values are withheld")
    return root_of(document, disclosure)


def require_allowed(result: AuditResult, never: Sequence[str]) -> None:
    """Nothing is withheld that a trust policy wants to see.

    Args:
        result: the packet's results.
        never: JSON pointers, where `*` is any one part, to what may not be withheld; `failed-checks`: all about checks that
            did not pass.

    Raises:
        SignatureError: at step `withheld`, naming the first such value.
    """
    for item in result.withheld:
        parts = item.pointer.split("/")
        for pattern in never:
            if pattern == FAILED_CHECKS:
                refused = parts[1] == "checks" and not _passed(result, parts)
            else:
                refused = _leads_to(pattern.split("/"), parts)
            if refused:
                raise SignatureError(
                    "withheld",
                    f"{item.pointer} is withheld, which the trust policy does not allow ({pattern})",
                    "ask for it, or name in the trust file what must not be withheld: never_withheld",
                )


def _leads_to(pattern: Sequence[str], parts: Sequence[str]) -> bool:
    """Whether a pattern names a leaf, or something that it is part of, or a part of it."""
    return all(p in ("*", part) for p, part in zip(pattern, parts, strict=False))


def _passed(result: AuditResult, parts: Sequence[str]) -> bool:
    """Whether the check that a pointer leads to is shown to have passed."""
    if len(parts) < 3 or is_withheld(result.checks):
        return False
    check: CheckResult = result.checks[int(parts[2])]
    return not is_withheld(check) and not is_withheld(check.outcome) and check.outcome == "pass"
