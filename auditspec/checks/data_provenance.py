"""data-provenance: every row that a stage trained on is a row of the data that it declares."""

from __future__ import annotations

from collections.abc import Sequence

from auditspec.checks.interface import Check
from auditspec.checks.subject import Subject
from auditspec.data_evidence import TrainedRows
from auditspec.record.matching import StageRows
from auditspec.results import CheckDetail, CheckResult, Outcome

REMEDY = (
    "rows that the loop changed or made match nothing; record row numbers (run.loss(ids), "
    "run.batch(ids)), so that load_batch changes them under the recorded random state"
)


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
            failed = [f"{d.subject}: {d.note}" for d in details if d.outcome == "fail"]
            outcome: Outcome = "fail"
            reason = f"undeclared data: {'; '.join(failed)}; {REMEDY}"
        elif "inconclusive" in outcomes:
            outcome = "inconclusive"
            reason = "the record does not say which rows the stages were trained on"
        else:
            outcome = "pass"
            seen, held = (sum(getattr(s, key) for s in self.stages) for key in ("seen", "held"))
            by_content = f", {held:,} of them by content" if held else ""
            reason = f"all {seen:,} rows of the batches are of the declared data{by_content}"
        return self.result(outcome, reason, statistic=odd, threshold=0, details=details)


def _line(stage: StageRows) -> CheckDetail:
    if not stage.steps:
        note = "no step is recorded: which rows it was trained on is not known"
        return CheckDetail(
            subject=stage.stage, stage=stage.stage, outcome="inconclusive", note=note
        )
    if not stage.undeclared:
        how = "rows by number" if not stage.held else "rows"
        note = f"{stage.seen:,} {how}, of {', '.join(sorted(stage.used))}"
        if stage.held:
            note += f"; {stage.held:,} recorded as tensors, each found there by its content"
        return CheckDetail(
            subject=stage.stage, stage=stage.stage, outcome="pass", statistic=0, note=note
        )
    parts = [
        f"{count:,} are of '{name}', which the stage does not declare"
        for name, count in sorted(stage.foreign.items())
    ]
    if stage.nowhere:
        parts.append(f"{stage.nowhere:,} match no row of any data set at hand")
    parts += [f"'{name}' was not compared ({why})" for name, why in stage.unreadable.items()]
    note = (
        f"{stage.undeclared:,} of {stage.seen:,} rows are not of {', '.join(stage.declared)}: "
        f"{'; '.join(parts)}"
    )
    return CheckDetail(
        subject=stage.stage,
        stage=stage.stage,
        outcome="fail",
        statistic=stage.undeclared,
        note=note,
    )
