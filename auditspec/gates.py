"""From evidence to effects, check by check: the middle of an audit."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, TypeAlias

import torch
from torch import Tensor

from auditspec import plugins
from auditspec.artifacts.scratch import scratch
from auditspec.as_deployed import AsDeployed
from auditspec.attribute import Attribution, attribute
from auditspec.audited_code import audited_code, load_functions
from auditspec.behaviors.evaluate import Evaluator
from auditspec.behaviors.metrics import Asked
from auditspec.behaviors.outputs import require_declared_outputs
from auditspec.behaviors.score_table import Elsewhere
from auditspec.budget import Allotment, allot
from auditspec.checks.evidence_integrity import EvidenceIntegrity
from auditspec.checks.examination import Examination
from auditspec.checks.record_fidelity import RecordFidelity, beside_estimates
from auditspec.checks.subject import Artifacts, AskedAgain, Rerunnable, Subject
from auditspec.checks.windows import Windows
from auditspec.data_evidence import AuditReads, TrainedRows
from auditspec.elsewhere import by_model, read_tables
from auditspec.engine import engine_named
from auditspec.engine.execution import device_name, execution, resolve_device
from auditspec.engine.interface import Engine
from auditspec.errors import BudgetError, EstimationError, EvidenceError, UsageError
from auditspec.estimator.cache import Cache, Dependencies, Store
from auditspec.estimator.interface import Baseline, Context, Terms
from auditspec.estimator.plan import expected
from auditspec.estimator.recorded_run import RecordedRun
from auditspec.gather import Opened, declared_of, open_all
from auditspec.messages import Message, message
from auditspec.record.numerics import numerics
from auditspec.record.trajectory import Trajectory
from auditspec.record.usage import Usage
from auditspec.results import CheckResult, Isolation
from auditspec.results import Evidence as ArtifactState
from auditspec.spec.models import Spec
from auditspec.spec.source import LoadedSpec
from auditspec.workplace import Workplace


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


Keep: TypeAlias = Callable[[AsDeployed, Attribution], None]
"""Given the form of deployed weights, and what was estimated."""


def run_gates(
    loaded: LoadedSpec,
    evidence: tuple[ArtifactState, ...],
    workplace: Workplace,
    keep: Keep | None = None,
) -> Examined:
    """Check the evidence check by check; estimate only behind those that bar every verdict.

    Code is executed only after its digest was found right, after it was announced, and with
    leave (`workplace.confinement.allowed`). Estimates that the cache holds for exactly this evidence are taken from there.
    `keep` is given what was estimated, in place of the checks that would follow.

    Raises:
        UsageError: if code would have to be executed without leave.
        EstimationError: if the evidence is sound but no estimate can be made.
    """
    examination = Examination(Subject(by_model(loaded.spec), progress=workplace.progress))
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
    allowed = workplace.confinement.allowed
    for file in opened.code.files:
        workplace.announce(
            f"{'executing' if allowed else 'not executing'} {file.path} ({file.digest})"
        )
    if not allowed:
        raise UsageError(
            "an audit executes the spec's code, which --no-code forbids",
            "read the files listed above, then run without it",
        )
    ran: dict[str, Any] = {}
    try:
        with _shared(workplace) as shared:
            return _execute(loaded, evidence, opened, examination, shared, ran, keep)
    except EvidenceError as error:
        examination.amend(EvidenceIntegrity.unusable(integrity, error))
        return Examined(examination.results(message("artifact-unusable")), opened, **ran)


def _execute(
    loaded: LoadedSpec,
    evidence: tuple[ArtifactState, ...],
    opened: Opened,
    examination: Examination,
    workplace: Workplace,
    ran: dict[str, Any],
    keep: Keep | None,
) -> Examined:
    """Run the audited code: repeat the record, then estimate; `ran` is told of the code as far as it came."""
    spec, trajectory, progress = loaded.spec, opened.trajectory, workplace.progress
    threads = spec.estimator.threads or trajectory.header.threads
    device = resolve_device(spec.estimator.device)
    allotment, terms = _allotted(spec, trajectory)
    windows = Windows(terms.recorded.shared, allotment.windows, team=workplace.team)
    with (
        audited_code(loaded, opened, workplace.confinement, device, again=keep is None) as code,
        execution(threads, deterministic=spec.estimator.deterministic),
        numerics(trajectory.header.numerics),
    ):
        ran["isolation"] = code.isolation
        functions, custom = load_functions(spec, code)
        with progress.phase("comparing the batches with the data"):
            trained = TrainedRows.of(spec, opened, functions)
        ran["usage"] = trained.usage
        engine = engine_named(spec.estimator.engine)
        again = engine(trajectory, functions, opened.datasets, device=device)
        examination.add(trained, Rerunnable(again, windows))
        if examination.halted:
            return Examined(examination.results(examination.halted), opened, **ran)
        dtype = getattr(torch, spec.estimator.dtype)
        rerun = engine(trajectory, functions, opened.datasets, device=device, dtype=dtype)
        form = partial(AsDeployed.of, opened.deployed, spec.model.conversion, rerun)
        reader = reader_of(loaded, rerun, opened, custom)
        reader = reader.with_scores(_scores_elsewhere(spec, opened, form))
        repeat = bool(examination[RecordFidelity].statistic)
        context = Context(
            engine=rerun,
            run=Baseline(trajectory.stages[-1].last),
            budget=allotment.estimates,
            recorded=terms.recorded.told(windows.passed if rerun.in_recorded_precision else None),
            declared=terms.declared,
            references=opened.references,
            progress=progress,
            store=store_of(spec, opened, workplace.cache, device_name(device), threads, repeat),
            team=workplace.team,
        )
        attributed = partial(_attributed, spec, reader, context, allotment, opened, repeat)
        found = _unless_halted(attributed, examination, windows)
        if isinstance(found, Message):
            return Examined(examination.results(found), opened, **ran)
        if keep is not None:
            keep(form(), found)
            return Examined(
                examination.results(message("nothing-to-look-at")), opened, found, **ran
            )
        examination.add(found.estimated, AuditReads(loaded, opened, evidence, code))
        with progress.phase("asking the code again"):
            repeated = code.asked_again()
        examination.add(AskedAgain(repeated))
    return Examined(
        examination.results(message("nothing-to-look-at")),
        opened,
        found,
        device_name(device),
        threads,
        round(found.gradients + examination.gradients, 3),
        **ran,
    )


@contextmanager
def _shared(workplace: Workplace) -> Iterator[Workplace]:
    """With a place for estimates where there are several ranks, in any case for as long as they work together."""
    if workplace.team is None:
        yield workplace
        return
    with contextlib.ExitStack() as stack:
        shared = workplace.cache or Cache(stack.enter_context(scratch("ranks")))
        workplace.team.open(shared.folder)
        yield replace(workplace, cache=shared)


def reader_of(
    loaded: LoadedSpec,
    rerun: Engine,
    opened: Opened,
    custom: Mapping[str, Callable[..., Tensor]],
) -> Evaluator:
    """What reads the spec's behaviours, those off models that are.

    Args:
        loaded: the spec.
        rerun: in the precision of the estimate.
        opened: the evidence.
        custom: the callables of custom metrics, by entry point.

    Raises:
        SpecError: if the deployed model gives other outputs than declared.
        EvidenceError: as `Evaluator`.
    """
    spec = loaded.spec
    labels, size = {n: a.label for n, a in spec.artifacts.items()}, spec.estimator.batch_size
    asked, behaviors = Asked(spec.model.outputs, opened.tokenizer), by_model(spec).behaviors
    reader = Evaluator(rerun, behaviors, opened.datasets, labels, custom, size, asked=asked)
    require_declared_outputs(loaded, reader, rerun.trajectory.stages[-1].last)
    return reader


def _scores_elsewhere(
    spec: Spec, opened: Opened, form: Callable[[], AsDeployed]
) -> Elsewhere | None:
    """The tables of scores that other tools made; None where there are none.

    Raises:
        EvidenceError: if one is not what it should be.
    """
    tables = read_tables(spec, opened.datasets)
    return Elsewhere(tables, form().digest) if tables else None


def _attributed(
    spec: Spec,
    reader: Evaluator,
    context: Context,
    allotment: Allotment,
    opened: Opened,
    repeat: bool,
) -> Attribution | Message:
    """What estimating found; on sound evidence of which the budget pays for nothing, why."""
    try:
        return attribute(spec, reader, context, allotment, given=opened.given, repeat=repeat)
    except BudgetError as error:
        if allotment.needed:
            return allotment.short
        return message("budget-pays-for-nothing", error=error.message, remedy=error.remedy)


def _unless_halted(
    attributed: Callable[[], Attribution | Message], examination: Examination, windows: Windows
) -> Attribution | Message:
    """What estimating found, unless the record does not carry a verdict, or is why nothing was found."""
    try:
        found = attributed()
    except (EstimationError, EvidenceError):  # the record itself may be why
        why = _halted(examination, windows)
        if why is None:
            raise
        return why
    return _halted(examination, windows) or found


def _halted(examination: Examination, windows: Windows) -> Message | None:
    """Why the record does not carry a verdict, now that the windows too are judged that were left to the estimates."""
    if windows.finish():
        examination.again(RecordFidelity)
    return examination.halted


def _allotted(spec: Spec, trajectory: Trajectory) -> tuple[Allotment, Terms]:
    """What may be spent, and on which terms: an estimate that goes along the record has its signals from the check's re-run."""
    recorded = RecordedRun(beside_estimates(spec, trajectory))
    terms = Terms(recorded=recorded, declared=declared_of(spec))
    allotment = allot(spec, trajectory, terms)
    estimator = expected(trajectory, spec.estimator.method, allotment.estimates)
    if not estimator.uses_recorded_gradients:
        terms = replace(terms, recorded=RecordedRun())
    return allotment, terms


def store_of(
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
