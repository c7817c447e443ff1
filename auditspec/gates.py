"""From evidence to effects, check by check: the middle of an audit."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from auditspec import plugins
from auditspec.attribute import Attribution, attribute
from auditspec.audited_code import audited_code, load_functions
from auditspec.behaviors.evaluate import Evaluator
from auditspec.budget import Allotment, allot
from auditspec.checks.evidence_integrity import EvidenceIntegrity
from auditspec.checks.examination import Examination
from auditspec.checks.record_fidelity import RecordFidelity, stored_by_check
from auditspec.checks.subject import Artifacts, AskedAgain, Rerunnable, Subject
from auditspec.confinement import UNCONFINED, Confinement
from auditspec.data_evidence import AuditReads, TrainedRows
from auditspec.engine import engine_named
from auditspec.engine.execution import device_name, execution, resolve_device
from auditspec.errors import BudgetError, EvidenceError, UsageError
from auditspec.estimator.cache import Cache, Dependencies, Store
from auditspec.estimator.interface import Baseline, Context, Terms
from auditspec.estimator.plan import expected
from auditspec.estimator.recorded_gradients import RecordedGradients, temporarily_stored
from auditspec.gather import Opened, declared_of, open_all
from auditspec.messages import message
from auditspec.progress import Progress
from auditspec.record.numerics import numerics
from auditspec.record.trajectory import Trajectory
from auditspec.record.usage import Usage
from auditspec.results import CheckResult, Isolation
from auditspec.results import Evidence as ArtifactState
from auditspec.spec.models import Spec
from auditspec.spec.source import LoadedSpec


@dataclass(frozen=True)
class Examined:
    """What came out of the evidence: checks always, an attribution where the evidence carries one."""

    checks: tuple[CheckResult, ...]
    opened: Opened | None = None
    attribution: Attribution | None = None
    device: str = "none"
    threads: int = 0
    gradients: float = 0.0
    """Cost of re-running and estimating, in minibatch gradients."""
    usage: Mapping[str, Usage] = field(default_factory=dict)
    """Which examples each stage's batches hold."""
    isolation: Isolation | None = None
    """What the audited code was kept from; None where none was executed."""


def run_gates(
    loaded: LoadedSpec,
    evidence: tuple[ArtifactState, ...],
    announce: Callable[[str], None],
    progress: Progress,
    cache: Cache | None = None,
    confinement: Confinement = UNCONFINED,
) -> Examined:
    """Check the evidence check by check; estimate only behind those that bar every verdict.

    Code is executed only after its digest was found right, after it was announced, and with
    leave (`confinement.allowed`). Estimates that the cache holds for exactly this evidence are taken from there.

    Raises:
        UsageError: if code would have to be executed without leave.
        EstimationError: if the evidence is sound but no estimate can be made.
    """
    examination = Examination(Subject(loaded.spec, progress=progress))
    examination.add(Artifacts(evidence))
    if examination.halted:
        return Examined(examination.results(examination.halted))
    integrity = examination[EvidenceIntegrity]
    try:
        opened = open_all(loaded, evidence)
        examination.add(opened)
    except EvidenceError as error:
        examination.amend(EvidenceIntegrity.unusable(integrity, error))
        return Examined(examination.results(message("artifact-unreadable")))
    if examination.halted:
        return Examined(examination.results(examination.halted), opened)
    for file in opened.code.files:
        announce(
            f"{'executing' if confinement.allowed else 'not executing'} {file.path} ({file.digest})"
        )
    if not confinement.allowed:
        raise UsageError(
            "an audit executes the spec's code, which --no-code forbids",
            "read the files listed above, then run without it",
        )
    ran: dict[str, Any] = {}
    try:
        return _execute(loaded, evidence, opened, examination, cache, confinement, ran)
    except EvidenceError as error:
        examination.amend(EvidenceIntegrity.unusable(integrity, error))
        return Examined(examination.results(message("artifact-unusable")), opened, **ran)


def _execute(
    loaded: LoadedSpec,
    evidence: tuple[ArtifactState, ...],
    opened: Opened,
    examination: Examination,
    cache: Cache | None,
    confinement: Confinement,
    ran: dict[str, Any],
) -> Examined:
    """Run the audited code: repeat the record, then estimate; `ran` is told of the code as far as it came."""
    spec, trajectory, progress = loaded.spec, opened.trajectory, examination.subject.progress
    threads = spec.estimator.threads or trajectory.header.threads
    device = resolve_device(spec.estimator.device)
    allotment, terms, stored = _allotted(spec, trajectory)
    with (
        audited_code(loaded, opened, confinement, device, again=True) as code,
        execution(threads, deterministic=spec.estimator.deterministic),
        numerics(trajectory.header.numerics),
        temporarily_stored(stored, cache.folder if cache else None) as recorded,
    ):
        ran["isolation"] = code.isolation
        functions, custom = load_functions(spec, code)
        with progress.phase("comparing the batches with the data"):
            trained = TrainedRows.of(spec, opened, functions)
        ran["usage"] = trained.usage
        engine = engine_named(spec.estimator.engine)
        again = engine(trajectory, functions, opened.datasets, device=device)
        examination.add(trained, Rerunnable(again, recorded.put))
        if examination.halted:
            return Examined(examination.results(examination.halted), opened, **ran)
        dtype = getattr(torch, spec.estimator.dtype)
        rerun = engine(trajectory, functions, opened.datasets, device=device, dtype=dtype)
        labels, size = {n: a.label for n, a in spec.artifacts.items()}, spec.estimator.batch_size
        reader = Evaluator(rerun, spec.behaviors, opened.datasets, labels, custom, size)
        repeat = bool(examination[RecordFidelity].statistic)
        try:
            context = Context(
                engine=rerun,
                run=Baseline(trajectory.stages[-1].last),
                budget=allotment.estimates,
                recorded=recorded,
                declared=terms.declared,
                references=opened.references,
                progress=progress,
                store=_store(spec, opened, cache, device_name(device), threads, repeat),
            )
            attribution = attribute(
                spec, reader, context, allotment, given=opened.given, repeat=repeat
            )
        except BudgetError as error:  # sound evidence, and nothing estimated
            why = message("budget-pays-for-nothing", error=error.message, remedy=error.remedy)
            if allotment.needed:
                why = allotment.short
            return Examined(examination.results(why), opened, **ran)
        examination.add(attribution.estimated, AuditReads(loaded, opened, evidence, code))
        with progress.phase("asking the code again"):
            repeated = code.asked_again()
        examination.add(AskedAgain(repeated))
    return Examined(
        examination.results(message("nothing-to-look-at")),
        opened,
        attribution,
        device_name(device),
        threads,
        round(attribution.gradients + examination.gradients, 3),
        **ran,
    )


def _allotted(spec: Spec, trajectory: Trajectory) -> tuple[Allotment, Terms, frozenset[str]]:
    """What may be spent, on which terms, and the stages whose recorded gradients are stored for the estimates."""
    stored = stored_by_check(spec, trajectory)
    terms = Terms(recorded=RecordedGradients(stored), declared=declared_of(spec))
    allotment = allot(spec, trajectory, terms)
    estimator = expected(trajectory, spec.estimator.method, allotment.estimates)
    return allotment, terms, stored if estimator.uses_recorded_gradients else frozenset()


def _store(
    spec: Spec, opened: Opened, cache: Cache | None, device: str, threads: int, repeat: bool
) -> Store | None:
    """Where estimates on exactly this evidence are kept; None without a cache."""
    if cache is None:
        return None
    names = {name for stage in spec.stages for name in stage.data}
    on = Dependencies(
        record=opened.record_digest,
        code=opened.code.digest,
        datasets={name: opened.datasets[name].digest for name in names},
        dtype=spec.estimator.dtype,
        device=device,
        threads=threads,
        deterministic=spec.estimator.deterministic,
        repeat=repeat,
        engine=spec.estimator.engine,
        plugins=tuple(sorted({plugin.digest for plugin in plugins.installed()})),
    )
    return Store(cache, on)
