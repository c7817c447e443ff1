"""commitment: every stage is the one that was committed to before it was trained."""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from auditspec.checks.interface import Check
from auditspec.checks.subject import Subject
from auditspec.gather import Opened
from auditspec.messages import Message, message
from auditspec.record.commitment import Commitment
from auditspec.record.plan import recorded_commitment
from auditspec.results import CheckDetail, CheckResult, Outcome
from auditspec.sign.sealing import Seal, SealedCommitment


@dataclass(frozen=True)
class StageAsMade:
    """A recorded stage beside what was committed to for it."""

    stage: str
    committed: SealedCommitment | None
    """None where nothing was."""
    recorded: Commitment | None
    """What the record amounts to; None where it holds no steps."""
    seconds: float = 0.0
    """That the record says this stage and those after it took."""


class CommitmentCheck(Check):
    """Counts stages that are not those that were committed to, or not beforehand (threshold 0).

    A stage amounts to a commitment of its own, which must be equal to that of the spec: beginning, code, data,
    hyperparameters, and the root over its steps. The commitment's signature must be older than the record's: by
    timestamps, with time between them for the steps as recorded, or by its place in the same log.
    """

    id = "commitment"
    title = "Stages are those that were committed to before they were trained"
    statistic_name = "stages that differ from what was committed to"
    unit = "stages"
    source = "Merkle roots (RFC 6962) over planned and recorded steps; timestamps (RFC 3161)"
    bars = "all"
    bars_when = "failed"
    looks_at = (Opened,)

    def __init__(self, stages: Sequence[StageAsMade], record: Seal | None) -> None:
        self.stages = stages
        self.record = record

    @classmethod
    def of(cls, subject: Subject) -> CommitmentCheck | CheckResult:
        """On the record, none of whose code is executed."""
        opened = subject[Opened]
        if not opened.commitments:
            return cls.skipped(message("nothing-committed"))
        return cls([*_as_made(opened)], opened.seal)

    @classmethod
    def stops(cls, result: CheckResult, spec: object) -> Message | None:
        """A stage that is not the one that was committed to ends the audit."""
        return message("not-as-committed") if result.outcome == "fail" else None

    def run(self) -> CheckResult:
        """Fails where one differs, or is dated after the record; inconclusive where nothing dates it."""
        details = [self._line(stage) for stage in self.stages]
        outcomes = [detail.outcome for detail in details]
        worst: Outcome = next((o for o in ("fail", "inconclusive") if o in outcomes), "pass")
        reasons = [d.line for d in details if d.outcome == worst]
        if worst == "pass":
            reasons = [message("as-committed", stages=len(details))]
        return self.result(
            worst, reasons, statistic=outcomes.count("fail"), threshold=0, details=details
        )

    def _line(self, made: StageAsMade) -> CheckDetail:
        outcome, note = self._judged(made)
        return CheckDetail(subject=made.stage, stage=made.stage, outcome=outcome, notes=(note,))

    def _judged(self, made: StageAsMade) -> tuple[Outcome, Message]:
        if made.committed is None:
            return "inconclusive", message("stage-not-committed")
        if made.recorded is None:
            return "inconclusive", message("no-steps-to-compare")
        if odd := made.committed.commitment.differing(made.recorded):
            return "fail", message("differs-from-commitment", fields=odd)
        seal, record = made.committed.seal, self.record
        if seal is None or record is None:
            return "inconclusive", message("commitment-unsigned")
        if seal.entry is not None and record.entry is not None:
            if seal.entry >= record.entry:
                return "fail", message("entered-after-record", entry=seal.entry + 1)
            if seal.moment is None or record.moment is None:
                return "pass", message("entered-before-record", entry=seal.entry + 1)
        if seal.moment is None or record.moment is None:
            return "inconclusive", message("commitment-undated")
        return _dated(seal.moment, record.moment, made.seconds)


def _dated(committed: dt.datetime, sealed: dt.datetime, seconds: float) -> tuple[Outcome, Message]:
    """Whether the recorded steps can have been made between two moments, which are known to a second."""
    between = (sealed - committed).total_seconds()
    if between < 0 or between + 1 < seconds:
        return "fail", message(
            "dated-too-late", moment=committed.isoformat(), seconds=seconds, between=between
        )
    return "pass", message("dated-before-record", moment=committed.isoformat(), between=between)


def _as_made(opened: Opened) -> Iterator[StageAsMade]:
    stages, committed = opened.trajectory.stages, opened.commitments
    left = _seconds_left(opened)
    for stage in stages:
        sealed = committed.get(stage.id)
        steps = opened.trajectory.grade != "boundaries" and sealed is not None
        recorded = recorded_commitment(stage, opened.code.digest) if steps else None
        yield StageAsMade(stage.id, sealed, recorded, left[stage.id])


def _seconds_left(opened: Opened) -> Mapping[str, float]:
    """Seconds that each stage and those after it took, as recorded."""
    left, total = {}, 0.0
    for stage in reversed(opened.trajectory.stages):
        total += sum(step.seconds for step in stage.steps)
        left[stage.id] = total
    return left
