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
from auditspec.messages import Message, message
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
            fed = {
                name: part for name, part in reader.slices.items() if not part.metric.of_sequences
            }
            reads = any(part.metric.predicts for part in fed.values())
            predict = _prediction(reader.rerun) if reads else None
            with undisturbed():
                shared = overlaps(reader.slices, trained.rows, opened.datasets, labels, load_batch)
                tried = tuple(probes(fed, training, labels, load_batch, predict))
        outside = tuple(subject[AuditReads].outside(functions))
        return cls(tuple(trained.usage.values()), shared, outside, tried)

    def run(self) -> CheckResult:
        """Fail if there is anything to disclose."""
        details = [
            *_evaluation(self.overlaps),
            *_repetition(self.usages),
            *_files(self.outside),
            *(
                CheckDetail(subject=p.subject, outcome=p.outcome, notes=(p.note,))
                for p in self.probes
            ),
        ]
        failed = [d for d in details if d.outcome == "fail"]
        open_ = [d for d in details if d.outcome == "inconclusive"]
        outcome: Outcome = "fail" if failed else "inconclusive" if open_ else "pass"
        reasons = [d.line for d in failed or open_] or [message("data-used-as-it-should-be")]
        return self.result(outcome, reasons, statistic=len(failed), threshold=0, details=details)


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
        parts = [part for o in mine for part in _shared(o)]
        untold = [o.stage for o in mine if not o.told]
        if parts:
            outcome: Outcome = "fail"
            note = message("examples-trained-on", examples=mine[0].examples, parts=parts)
        elif untold:
            outcome, note = "inconclusive", message("examples-not-told-apart", stages=untold)
        else:
            outcome, note = "pass", message("examples-new", examples=mine[0].examples)
        yield CheckDetail(
            subject=f"evaluation of {behavior}",
            outcome=outcome,
            behavior=behavior,
            statistic=max(o.same + o.relabelled for o in mine),
            notes=(note,),
        )


def _shared(overlap: Overlap) -> list[Message]:
    parts, stage = [], overlap.stage
    if overlap.same:
        parts.append(message("examples-of-stage", examples=overlap.same, stage=stage))
    if overlap.relabelled:
        parts.append(message("examples-relabelled", examples=overlap.relabelled, stage=stage))
    return parts


def _repetition(usages: Iterable[Usage]) -> Iterator[CheckDetail]:
    for usage in usages:
        if not usage.steps:
            continue
        parts = []
        if usage.few and usage.expected is not None:
            parts.append(
                message(
                    "few-different-rows",
                    rows=usage.seen,
                    distinct=usage.distinct,
                    declared=usage.declared or 0,
                    expected=float(usage.expected),
                )
            )
        if usage.overused:
            parts.append(_overused(usage))
        if usage.unread:
            parts.append(message("declared-and-unread", datasets=usage.unread))
        varied = message(
            "rows-varied",
            rows=usage.seen,
            distinct=usage.distinct,
            most=usage.most,
            steps=usage.steps,
        )
        yield CheckDetail(
            subject=f"batches of {usage.stage}",
            outcome="fail" if parts else "pass",
            statistic=usage.distinct,
            notes=tuple(parts) or (varied,),
            stage=usage.stage,
        )


def _overused(usage: Usage) -> Message:
    examples, steps, usual = usage.overused, usage.steps, float(usage.usual)
    if usage.overused_in == steps:
        return message("examples-in-every-step", examples=examples, steps=steps, usual=usual)
    return message(
        "examples-in-many-steps",
        examples=examples,
        least=usage.overused_in,
        steps=steps,
        usual=usual,
    )


def _files(outside: Sequence[Outside]) -> Iterator[CheckDetail]:
    for file in outside:
        note = message("file-not-hashed", readers=file.by, path=file.path)
        if file.digest is not None:
            note = message("file-outside", readers=file.by, path=file.path, digest=file.digest)
        yield CheckDetail(subject="files outside the artifacts", outcome="fail", notes=(note,))
    if starts := [file.path for file in outside if file.starts]:
        note = message("weights-from-outside", paths=starts)
        yield CheckDetail(subject="initial weights", outcome="fail", notes=(note,))
