"""data-use: what evaluation, batches, and files outside the artifacts take from the conclusions."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from torch import Tensor

from auditspec.behaviors.overlap import Overlap, overlaps
from auditspec.behaviors.probing import Probe, deployed, probes, undisturbed
from auditspec.checks.interface import Check
from auditspec.checks.subject import Estimated, Subject
from auditspec.data_evidence import AuditReads, Outside, TrainedRows
from auditspec.engine.interface import Engine
from auditspec.gather import Opened
from auditspec.record.state import restore
from auditspec.record.usage import Usage
from auditspec.results import CheckDetail, CheckResult, Outcome


class DataUse(Check):
    """Counts what a reader must know about the data to judge the effects (threshold 0).

    Evaluation examples that are training examples; stages whose batches repeat few examples
    (`record/usage.py`); files that were read and that no artifact pins; and what the experiments on
    `load_batch` and `predict` showed (`behaviors/probing.py`).
    """

    id = "data-use"
    title = "Evaluation examples are new, batches vary, and nothing else is read"
    statistic_name = "matters to disclose"
    source = "row content: BLAKE2b; repetition: Chernoff 1952, Bonferroni; files: PEP 578"
    discloses = True
    looks_at = (Opened, TrainedRows, Estimated, AuditReads)

    def __init__(
        self,
        usages: Sequence[Usage],
        overlaps: Sequence[Overlap],
        outside: Sequence[Outside],
        probes: Sequence[Probe],
    ) -> None:
        self.usages = usages
        self.overlaps = overlaps
        self.outside = outside
        self.probes = probes

    @classmethod
    def of(cls, subject: Subject) -> DataUse:
        """On evaluation beside training, and on what was read besides.

        Raises:
            EstimationError: if the training code fails.
        """
        spec, opened, trained = subject.spec, subject[Opened], subject[TrainedRows]
        reader = subject[Estimated].reader
        functions, labels = reader.rerun.functions, {n: a.label for n, a in spec.artifacts.items()}
        load_batch = functions.load_batch
        names = dict.fromkeys(name for stage in spec.stages for name in stage.data)
        training = [opened.datasets[name] for name in names]
        with subject.progress.phase("comparing evaluation with training"):
            reads = any(b.metric.predicts for b in spec.behaviors)
            predict = _prediction(reader.rerun) if reads else None
            with undisturbed():
                shared = overlaps(reader.slices, trained.rows, opened.datasets, labels, load_batch)
                tried = tuple(probes(reader.slices, training, labels, load_batch, predict))
        outside = tuple(subject[AuditReads].outside(functions))
        return cls(tuple(trained.usage.values()), shared, outside, tried)

    def run(self) -> CheckResult:
        """Fail if there is anything to disclose."""
        details = [
            *_evaluation(self.overlaps),
            *_repetition(self.usages),
            *_files(self.outside),
            *(CheckDetail(subject=p.subject, outcome=p.outcome, note=p.note) for p in self.probes),
        ]
        failed = [d for d in details if d.outcome == "fail"]
        open_ = [d for d in details if d.outcome == "inconclusive"]
        outcome: Outcome = "fail" if failed else "inconclusive" if open_ else "pass"
        reason = "; ".join(f"{d.subject}: {d.note}" for d in failed or open_) or (
            "no evaluation example was trained on, no stage repeats a few examples, and nothing was "
            "read that no artifact pins"
        )
        return self.result(outcome, reason, statistic=len(failed), threshold=0, details=details)


def _prediction(rerun: Engine) -> Callable[[Any], Tensor]:
    """What the deployed model says of a batch."""
    last = rerun.trajectory.stages[-1]
    rerun.enter(last)
    restore(last.last, rerun.model)
    predict = deployed(rerun.model, rerun.functions.predict)
    return lambda batch: predict(rerun.to_device(batch))


def _evaluation(shared: Sequence[Overlap]) -> Iterator[CheckDetail]:
    for behavior in dict.fromkeys(o.behavior for o in shared):
        mine = [o for o in shared if o.behavior == behavior]
        parts = [text for o in mine if (text := _shared(o))]
        untold = [o.stage for o in mine if not o.told]
        if parts:
            note = (
                f"of its {mine[0].examples:,} evaluation examples {'; '.join(parts)}; its intervals "
                "do not speak for new examples"
            )
            outcome: Outcome = "fail"
        elif untold:
            outcome = "inconclusive"
            note = (
                "whether its evaluation examples were trained on cannot be told from their content "
                f"({', '.join(untold)})"
            )
        else:
            outcome = "pass"
            note = f"none of its {mine[0].examples:,} evaluation examples was trained on"
        yield CheckDetail(
            subject=f"evaluation of {behavior}",
            outcome=outcome,
            behavior=behavior,
            statistic=max(o.same + o.relabelled for o in mine),
            note=note,
        )


def _shared(overlap: Overlap) -> str:
    parts = []
    if overlap.same:
        parts.append(f"{overlap.same:,} are training examples of '{overlap.stage}'")
    if overlap.relabelled:
        stage = "" if overlap.same else f" of '{overlap.stage}'"
        parts.append(f"{overlap.relabelled:,} are training examples{stage} under another label")
    return " and ".join(parts)


def _repetition(usages: Iterable[Usage]) -> Iterator[CheckDetail]:
    for usage in usages:
        if not usage.steps:
            continue
        parts = []
        if usage.few and usage.expected is not None:
            parts.append(
                f"{usage.seen:,} rows are {usage.distinct:,} different ones; uniform sampling of the "
                f"declared {usage.declared:,} would give {usage.expected:,.0f}"
            )
        if usage.overused:
            held = (
                f"all {usage.steps:,}"
                if usage.overused_in == usage.steps
                else f"{usage.overused_in:,} or more of {usage.steps:,}"
            )
            parts.append(
                f"{usage.overused:,} examples are in {held} steps; uniform sampling would put each in "
                f"{usage.usual:,.0f}"
            )
        if usage.unread:
            parts.append(f"no row of {', '.join(usage.unread)} was read, which it declares")
        note = "; ".join(parts) or (
            f"{usage.seen:,} rows, {usage.distinct:,} different ones, each in at most {usage.most:,} "
            f"of {usage.steps:,} steps"
        )
        yield CheckDetail(
            subject=f"batches of {usage.stage}",
            outcome="fail" if parts else "pass",
            statistic=usage.distinct,
            note=note,
            stage=usage.stage,
        )


def _files(outside: Sequence[Outside]) -> Iterator[CheckDetail]:
    for file in outside:
        digest = file.digest or "not hashed"
        note = f"{' and '.join(file.by)} {file.path} ({digest}), which no artifact pins"
        yield CheckDetail(subject="files outside the artifacts", outcome="fail", note=note)
    if starts := [file.path for file in outside if file.starts]:
        note = f"they may come from {', '.join(starts)}, which no artifact pins: the start is unexplained"
        yield CheckDetail(subject="initial weights", outcome="fail", note=note)
