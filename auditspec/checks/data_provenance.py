"""data-provenance: every row that a stage trained on is a row of the data that it declares."""

from __future__ import annotations

from collections.abc import Sequence

from auditspec.checks.interface import Check
from auditspec.checks.subject import Subject
from auditspec.data_evidence import TrainedRows
from auditspec.messages import message
from auditspec.record.matching import StageRows
from auditspec.results import CheckDetail, CheckResult, Outcome


class DataProvenance(Check):
    """Counts training rows that are no rows of the stage's declared data (threshold 0).

    Batches of row numbers say themselves which rows they hold; those of tensors are compared by
    content with everything that `load_batch` gives of the data at hand (`record/matching.py`).
    """

    id = "data-provenance"
    title = "Every training row is one of the data that its stage declares"
    statistic_name = "training rows of no declared data"
    unit = "rows"
    source = "rows as load_batch gives them, compared by BLAKE2b over their float32 values"
    bars = "all"
    discloses = True
    looks_at = (TrainedRows,)

    def __init__(self, stages: Sequence[StageRows]) -> None:
        self.stages = stages

    @classmethod
    def of(cls, subject: Subject) -> DataProvenance:
        """On the rows of every stage's batches."""
        return cls(subject[TrainedRows].rows)

    def run(self) -> CheckResult:
        """Fail on any other row; inconclusive where no step is recorded."""
        details = [_line(stage) for stage in self.stages]
        odd = sum(stage.undeclared for stage in self.stages)
        outcomes = {detail.outcome for detail in details}
        if odd:
            outcome: Outcome = "fail"
            failed = [d.line for d in details if d.outcome == "fail"]
            reasons = [message("undeclared-data", lines=failed), message("record-row-numbers")]
        elif "inconclusive" in outcomes:
            outcome, reasons = "inconclusive", [message("rows-not-recorded")]
        else:
            outcome = "pass"
            seen, held = (sum(getattr(s, key) for s in self.stages) for key in ("seen", "held"))
            reasons = [message("rows-declared", rows=seen)]
            reasons += [message("rows-by-content", rows=held)] if held else []
        return self.result(outcome, reasons, statistic=odd, threshold=0, details=details)


def _line(stage: StageRows) -> CheckDetail:
    if not stage.steps:
        return CheckDetail(
            subject=stage.stage,
            stage=stage.stage,
            outcome="inconclusive",
            notes=(message("no-step-recorded"),),
        )
    if not stage.undeclared:
        used = sorted(stage.used)
        notes = [message("rows-by-number", rows=stage.seen, datasets=used)]
        if stage.held:
            notes = [
                message("rows-of", rows=stage.seen, datasets=used),
                message("tensors-found", rows=stage.held),
            ]
        return CheckDetail(
            subject=stage.stage, stage=stage.stage, outcome="pass", statistic=0, notes=tuple(notes)
        )
    parts = [
        message("rows-of-undeclared", rows=count, dataset=name)
        for name, count in sorted(stage.foreign.items())
    ]
    if stage.nowhere:
        parts.append(message("rows-of-nowhere", rows=stage.nowhere))
    parts += [
        message("data-not-compared", dataset=name, error=why)
        for name, why in stage.unreadable.items()
    ]
    note = message(
        "rows-undeclared",
        undeclared=stage.undeclared,
        rows=stage.seen,
        datasets=stage.declared,
        parts=parts,
    )
    return CheckDetail(
        subject=stage.stage,
        stage=stage.stage,
        outcome="fail",
        statistic=stage.undeclared,
        notes=(note,),
    )
