"""asked-again: whether the audited code answers alike in another process, at another time, in another order."""

from __future__ import annotations

import math

from auditspec.checks.interface import Check
from auditspec.checks.subject import AskedAgain, Subject
from auditspec.messages import message
from auditspec.results import CheckDetail, CheckResult
from auditspec.sealed.witness import Repeated

ROUNDING = 1e-4
"""Largest accepted difference of two answers, relative to them; on one machine there is none."""


class AskedAgainCheck(Check):
    """Largest relative difference between what the audit was answered and what a second process answers.

    A function of model, batch, and generators gives the same again. One that counts, looks at the clock, at its
    process, or at the order of the questions does not, and what it told the audit cannot be relied on.
    """

    id = "asked-again"
    title = "Asked again in another process, the code answers alike"
    statistic_name = "largest relative difference of an answer"
    source = (
        "a random sample of the audit's questions, asked again in a second process (docs/checks.md)"
    )
    bars = "all"
    bars_when = "failed"
    looks_at = (AskedAgain,)

    def __init__(self, repeated: Repeated) -> None:
        self.repeated = repeated

    @classmethod
    def of(cls, subject: Subject) -> AskedAgainCheck | CheckResult:
        """On what came of asking again."""
        repeated = subject[AskedAgain].repeated
        if repeated is None:
            return cls.skipped(message("code-in-own-process"))
        return cls(repeated) if repeated.questions else cls.skipped(message("nothing-was-asked"))

    def run(self) -> CheckResult:
        """Fails where an answer is another one."""
        details = []
        for function in sorted({*self.repeated.questions, *self.repeated.error}):
            difference = self.repeated.difference[function]
            notes = [message("asked-once-more", questions=self.repeated.questions.get(function, 0))]
            if function in self.repeated.error:
                notes.append(message("second-raised", error=self.repeated.error[function]))
            elif math.isinf(difference):
                notes.append(message("answers-of-another-form"))
            details.append(
                CheckDetail(
                    subject=function or "import",
                    outcome="pass" if difference <= ROUNDING else "fail",
                    statistic=difference if math.isfinite(difference) else None,
                    notes=tuple(notes),
                )
            )
        odd = [d.subject for d in details if d.outcome == "fail"]
        finite = [d for d in self.repeated.difference.values() if math.isfinite(d)]
        return self.result(
            "fail" if odd else "pass",
            [message("answers-differ", functions=odd)] if odd else message("answers-alike"),
            statistic=max(finite, default=None),
            threshold=ROUNDING,
            details=details,
        )
