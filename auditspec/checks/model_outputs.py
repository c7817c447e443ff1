"""model-outputs: whether recorded batches hold what the model of an earlier stage says of their rows."""

from __future__ import annotations

from collections.abc import Sequence

from auditspec.checks.interface import Check
from auditspec.checks.subject import Estimated, Subject
from auditspec.estimator.model_outputs import Borrowed
from auditspec.messages import message
from auditspec.results import CheckDetail, CheckResult


class ModelOutputs(Check):
    """Tensors of batches that an earlier stage's model gives: reference log-probabilities, a teacher's logits.

    They stay as recorded in every run, those without the stages that made them what they are included.
    """

    id = "model-outputs"
    title = "No batch holds what an earlier stage's model says"
    statistic_name = "stages whose batches hold outputs of an earlier model"
    unit = "stages"
    source = "forward passes of the recorded boundary models (docs/checks.md)"
    looks_at = (Estimated,)

    def __init__(self, borrowed: Sequence[Borrowed]) -> None:
        self.borrowed = borrowed

    @classmethod
    def of(cls, subject: Subject) -> ModelOutputs | CheckResult:
        """On the batches that the attribution held against earlier models, as `predict` reads those."""
        if subject.spec.model.predict is None:
            return cls.skipped(message("no-predict"))
        return cls(subject[Estimated].borrowed)

    def run(self) -> CheckResult:
        """Fails where a batch holds such a tensor."""
        details = [
            CheckDetail(
                subject=b.stage,
                outcome="fail",
                stage=b.stage,
                notes=(message("batches-hold-outputs", output=b.what, source=b.source),),
            )
            for b in self.borrowed
        ]
        reasons = [*(d.line for d in details), message("outputs-make-effects-inexact")]
        return self.result(
            "fail" if details else "pass",
            reasons if details else message("no-outputs-in-batches"),
            statistic=len(details),
            threshold=0,
            details=details,
        )
