"""evidence-integrity: every artifact's bytes are those that the spec pins."""

from __future__ import annotations

from collections.abc import Sequence

from auditspec.checks.interface import Check
from auditspec.checks.subject import Artifacts, Subject
from auditspec.errors import EvidenceError
from auditspec.messages import message
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
    halts = message("artifact-bad-or-loose")

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
            reasons = [
                message(
                    "artifact-is-bad", artifact=e.name, path=e.path, state=e.state, notes=e.notes
                )
                for e in bad
            ]
        elif loose:
            reasons = [message("artifacts-not-pinned", artifacts=[e.name for e in loose])]
        else:
            reasons = [message("artifacts-pinned", artifacts=len(self.evidence))]
        return self.result(
            outcome,
            reasons,
            statistic=len(bad),
            threshold=0,
            details=[
                CheckDetail(
                    subject=e.name,
                    outcome=_OUTCOMES[e.state],
                    notes=(message("artifact-state", state=e.state), *e.notes),
                )
                for e in self.evidence
            ],
        )

    @staticmethod
    def unusable(result: CheckResult, error: EvidenceError) -> CheckResult:
        """The result where the digests are right, but an artifact is not what it should be."""
        reasons = [message("evidence-refused", error=error.message)]
        if error.remedy:
            reasons.append(message("evidence-remedy", remedy=error.remedy))
        line = CheckDetail(subject="use of the artifacts", outcome="fail", notes=tuple(reasons))
        changed = {"outcome": "fail", "reasons": tuple(reasons), "statistic": 1.0}
        return result.model_copy(update=changed | {"details": (*result.details, line)})
