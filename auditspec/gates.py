"""From evidence to effects, gate by gate: the middle of an audit."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

import torch

from auditspec import confidence
from auditspec.attribute import Attribution, attribute
from auditspec.behaviors.evaluate import Evaluator
from auditspec.budget import allot
from auditspec.checks.data_provenance import DataProvenance
from auditspec.checks.data_use import DataUse
from auditspec.checks.evidence_integrity import EvidenceIntegrity
from auditspec.checks.optimizer_match import OptimizerMatch
from auditspec.checks.record_fidelity import RecordFidelity, kept_by_check
from auditspec.counterfactuals import Store
from auditspec.data_evidence import AuditReads, data_use, trained_rows, usages
from auditspec.engine.execution import device_name, execution, resolve_device
from auditspec.engine.rerun import Rerun
from auditspec.errors import BudgetError, EvidenceError, UsageError
from auditspec.estimator.cache import Cache, Dependencies
from auditspec.estimator.paired.stored_gradients import stored_gradients
from auditspec.estimator.plan import pairs
from auditspec.gather import Opened, code_errors, declared_of, load_functions, open_all
from auditspec.progress import Progress
from auditspec.record.numerics import numerics
from auditspec.record.usage import Usage
from auditspec.results import CheckDetail, CheckResult
from auditspec.results import Evidence as ArtifactState
from auditspec.runs import Evidence
from auditspec.spec.source import LoadedSpec

GATES = (OptimizerMatch, DataProvenance, RecordFidelity)
"""Gates of evidence after the first, in order."""


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


def run_gates(
    loaded: LoadedSpec,
    evidence: tuple[ArtifactState, ...],
    announce: Callable[[str], None],
    progress: Progress,
    cache: Cache | None = None,
    allow_code: bool = True,
) -> Examined:
    """Check the evidence gate by gate; estimate only behind all of them.

    Code is executed only after its digest was found right, after it was announced, and with
    `allow_code`. Estimates that the cache holds for exactly this evidence are taken from there.

    Raises:
        UsageError: if code would have to be executed without `allow_code`.
        EstimationError: if the evidence is sound but no estimate can be made.
    """
    integrity = EvidenceIntegrity(evidence).run()
    if integrity.outcome != "pass":
        return _stopped((integrity,), "an artifact is missing, mismatched, or not pinned")
    try:
        opened = open_all(loaded, evidence)
        match = OptimizerMatch(loaded.spec.stages, opened.trajectory).run()
    except EvidenceError as error:
        return _stopped((_unusable(integrity, error),), "an artifact cannot be read")
    if match.outcome != "pass":
        return _stopped((integrity, match), "the record is not the declared training", opened)
    for file in opened.code.files:
        announce(f"{'executing' if allow_code else 'not executing'} {file.path} ({file.digest})")
    if not allow_code:
        raise UsageError(
            "an audit executes the spec's code, which --no-code forbids",
            "read the files listed above, then run without it",
        )
    try:
        return _execute(loaded, evidence, opened, (integrity, match), progress, cache)
    except EvidenceError as error:
        return _stopped((_unusable(integrity, error), match), "an artifact cannot be used", opened)


def _execute(
    loaded: LoadedSpec,
    evidence: tuple[ArtifactState, ...],
    opened: Opened,
    checks: tuple[CheckResult, ...],
    progress: Progress,
    cache: Cache | None,
) -> Examined:
    """Run the audited code: repeat the record, then estimate."""
    spec, trajectory = loaded.spec, opened.trajectory
    threads = spec.estimator.threads or trajectory.header.threads
    device = resolve_device(spec.estimator.device)
    kept_stages = kept_by_check(spec, trajectory)
    allotment = allot(spec, trajectory, kept_stages)
    if not pairs(trajectory, spec.estimator.method, allotment.estimates):
        kept_stages = frozenset()
    folder = cache.folder if cache is not None else None
    with (
        AuditReads(loaded, opened, evidence) as reads,
        opened.code.importable(),
        code_errors(opened.code),
        execution(threads, deterministic=spec.estimator.deterministic),
        numerics(trajectory.header.numerics),
        stored_gradients(kept_stages, folder) as kept,
    ):
        functions, custom = load_functions(spec, opened.code)
        with progress.phase("comparing the batches with the data"):
            rows = trained_rows(spec, opened, functions)
            usage = usages(rows, opened)
        checks = (*checks, DataProvenance(rows).run())
        fidelity = RecordFidelity(
            Rerun(trajectory, functions, opened.datasets, device=device),
            opened.checkpoint,
            spec.model.tolerance,
            spec.checks.record_fidelity,
            progress,
            kept.keep,
        ).run()
        bare = fidelity.outcome == "inconclusive" and spec.estimator.method == "krylov"
        if (
            fidelity.outcome != "pass" and not bare
        ):  # krylov needs no steps, and its verdict is open
            why = "the record does not reproduce itself"
            return replace(_stopped((*checks, fidelity), why, opened), usage=usage)
        dtype = getattr(torch, spec.estimator.dtype)
        rerun = Rerun(trajectory, functions, opened.datasets, device=device, dtype=dtype)
        labels = {name: artifact.label for name, artifact in spec.artifacts.items()}
        size = spec.estimator.batch_size
        reader = Evaluator(rerun, spec.behaviors, opened.datasets, labels, custom, size)
        repeat = bool(fidelity.statistic)
        store = None
        if cache is not None:
            on = Dependencies(
                record=opened.record_digest,
                code=opened.code.digest,
                datasets={
                    name: opened.datasets[name].digest for s in spec.stages for name in s.data
                },
                dtype=spec.estimator.dtype,
                device=device_name(device),
                threads=threads,
                deterministic=spec.estimator.deterministic,
                repeat=repeat,
            )
            store = Store(cache, on)
        try:
            attribution = attribute(
                spec,
                rerun,
                reader,
                allotment,
                progress,
                evidence=Evidence(opened.references, opened.given, declared_of(spec), kept),
                repeat=repeat,
                store=store,
            )
        except BudgetError as error:  # sound evidence, and nothing estimated
            why = allotment.short if allotment.needed else f"{error.message}: {error.remedy}"
            return replace(_stopped((*checks, fidelity), why, opened), usage=usage)
        with progress.phase("comparing evaluation with training"):
            use = data_use(spec, opened, reader, rows, tuple(usage.values()), reads)
    return Examined(
        (*checks, fidelity, *attribution.checks, use),
        opened,
        attribution,
        device_name(device),
        threads,
        fidelity.gradients + attribution.gradients,
        usage,
    )


def _stopped(checks: tuple[CheckResult, ...], why: str, opened: Opened | None = None) -> Examined:
    """Evidence that carries no estimate: the checks that did not run say so."""
    ran = {check.id for check in checks}
    left = (c.skipped(why) for c in GATES if c.id not in ran)
    return Examined((*checks, *left, *confidence.skipped(why), DataUse.skipped(why)), opened)


def _unusable(integrity: CheckResult, error: EvidenceError) -> CheckResult:
    """The digests are right, but an artifact is not what it should be."""
    reason = f"{error.message} ({error.remedy})" if error.remedy else error.message
    line = CheckDetail(subject="use of the artifacts", outcome="fail", note=reason)
    changed = {"outcome": "fail", "reason": reason, "statistic": 1.0}
    return integrity.model_copy(update=changed | {"details": (*integrity.details, line)})
