"""evidence-integrity: every artifact's bytes are those that the spec pins."""

from __future__ import annotations

from collections.abc import Sequence

from auditspec.checks.interface import Check
from auditspec.checks.subject import Artifacts, Subject
from auditspec.errors import EvidenceError
from auditspec.results import CheckDetail, CheckResult, Evidence, Outcome

_OUTCOMES: dict[str, Outcome] = {
    "verified": "pass",
    "declared": "inconclusive",
    "missing": "fail",
    "mismatched": "fail",
}


class EvidenceIntegrity(Check):
    """Counts artifacts that are mismatched or missing (threshold 0)."""

    id = "evidence-integrity"
    title = "Every artifact is the one that the spec pins"
    statistic_name = "artifacts mismatched or missing"
    unit = "artifacts"
    source = "FIPS 180-4 (SHA-256)"
    bars = "all"
    looks_at = (Artifacts,)
    halts = "an artifact is missing, mismatched, or not pinned"

    def __init__(self, evidence: Sequence[Evidence]) -> None:
        self.evidence = evidence

    @classmethod
    def of(cls, subject: Subject) -> EvidenceIntegrity:
        """On every artifact that the spec names."""
        return cls(subject[Artifacts].evidence)

    def run(self) -> CheckResult:
        """Fail on any bad artifact; inconclusive where nothing pins one."""
        bad = [e for e in self.evidence if e.state in ("missing", "mismatched")]
        loose = [e for e in self.evidence if e.state == "declared"]
        outcome: Outcome = "fail" if bad else "inconclusive" if loose else "pass"
        if bad:
            reason = "; ".join(
                f"{e.name} ({e.path}) is {e.state}" + (f": {e.note}" if e.note else "") for e in bad
            )
        elif loose:
            names = ", ".join(e.name for e in loose)
            reason = f"no digest pins {names} (`auditspec digest --lock` does)"
        else:
            reason = f"all {len(self.evidence)} artifacts have the pinned digest"
        return self.result(
            outcome,
            reason,
            statistic=len(bad),
            threshold=0,
            details=[
                CheckDetail(
                    subject=e.name,
                    outcome=_OUTCOMES[e.state],
                    note=f"{e.state}; {e.note}" if e.note else e.state,
                )
                for e in self.evidence
            ],
        )

    @staticmethod
    def unusable(result: CheckResult, error: EvidenceError) -> CheckResult:
        """The result where the digests are right, but an artifact is not what it should be."""
        reason = f"{error.message} ({error.remedy})" if error.remedy else error.message
        line = CheckDetail(subject="use of the artifacts", outcome="fail", note=reason)
        changed = {"outcome": "fail", "reason": reason, "statistic": 1.0}
        return result.model_copy(update=changed | {"details": (*result.details, line)})
