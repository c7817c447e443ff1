"""What an audit would cost by each estimator, which evidence each one needs, and what `auto` takes.

Reads the record only. With `measure`, one step of every stage is made, which executes the audited
code.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch

from auditspec.audited_code import audited_code, load_functions
from auditspec.budget import Allotment, allot
from auditspec.checks.evidence_integrity import EvidenceIntegrity
from auditspec.checks.record_fidelity import beside_estimates
from auditspec.confinement import UNCONFINED, Confinement
from auditspec.consistency.check import check
from auditspec.engine import engine_named
from auditspec.engine.execution import execution, resolve_device
from auditspec.errors import EstimationError, EvidenceError, UsageError
from auditspec.estimator.forecast import Pace
from auditspec.estimator.interface import Terms
from auditspec.estimator.plan import Choice, Prospect, choose, prospects
from auditspec.estimator.recorded_run import RecordedRun
from auditspec.gather import Opened, declared_of, open_all
from auditspec.record.numerics import numerics
from auditspec.report.words import text
from auditspec.results import EvidenceGrade
from auditspec.spec.source import LoadedSpec


@dataclass(frozen=True)
class Plan:
    """Every estimator's forecast, and the choice for each stage under the spec's budget."""

    grade: EvidenceGrade
    allotment: Allotment | None
    """How the budget is shared out; None where it does not go far enough."""
    prospects: tuple[Prospect, ...]
    choices: tuple[Choice, ...]
    """Empty where nothing fits; `refused` then says why."""
    refused: str
    pace: Pace


def plan_audit(
    loaded: LoadedSpec,
    *,
    measure: bool = False,
    announce: Callable[[str], None] = lambda line: None,
    confinement: Confinement = UNCONFINED,
) -> Plan:
    """Forecast every estimator on a spec's record.

    Args:
        loaded: the spec.
        measure: time one step of every stage; executes the spec's code, files announced first.
        announce: told of every code file before it is executed.
        confinement: how the audited code is kept apart.

    Raises:
        SpecError: if the spec does not fit what it names.
        EvidenceError: if an artifact is missing, changed, not pinned, or unreadable.
        EstimationError: if a measured step fails.
    """
    checked = check(loaded)
    checked.require_fitting()
    integrity = EvidenceIntegrity(evidence := checked.evidence).run()
    if integrity.outcome == "fail" or (measure and integrity.outcome != "pass"):
        raise EvidenceError(
            text(integrity.reasons), "run auditspec validate for every problem with its place"
        )
    opened = open_all(loaded, evidence)
    spec, trajectory = loaded.spec, opened.trajectory
    pace = (
        _measured(loaded, opened, announce, confinement) if measure else Pace.recorded(trajectory)
    )
    recorded = RecordedRun(beside_estimates(spec, trajectory))
    terms = Terms(recorded=recorded, declared=declared_of(spec))
    choices: tuple[Choice, ...] = ()
    allotment, refused = None, ""
    try:
        allotment = allot(spec, trajectory, terms)
        terms = replace(terms, budget=allotment.estimates)
        choices = choose(trajectory, spec.estimator.method, terms)
    except (EstimationError, UsageError) as error:
        refused = str(error)
    return Plan(
        grade=trajectory.grade,
        allotment=allotment,
        prospects=prospects(trajectory, terms, pace),
        choices=choices,
        refused=refused,
        pace=pace,
    )


def _measured(
    loaded: LoadedSpec, opened: Opened, announce: Callable[[str], None], confinement: Confinement
) -> Pace:
    """Seconds of one gradient and update of every stage's first step, the faster of two."""
    for file in opened.code.files:
        announce(f"executing {file.path} ({file.digest})")
    estimator, trajectory = loaded.spec.estimator, opened.trajectory
    threads = estimator.threads or trajectory.header.threads
    device = resolve_device(estimator.device)
    with (
        audited_code(loaded, opened, confinement, device) as code,
        execution(threads, deterministic=estimator.deterministic),
        numerics(trajectory.header.numerics),
    ):
        functions, _ = load_functions(loaded.spec, code)
        rerun = engine_named(estimator.engine)(
            trajectory,
            functions,
            opened.datasets,
            device=device,
            dtype=getattr(torch, estimator.dtype),
        )
        seconds = {}
        for stage in trajectory.stages:
            first = stage.first
            timed = []
            for _ in range(2):
                began = time.perf_counter()
                rerun.run(stage, first, 0, 1)
                timed.append(time.perf_counter() - began)
            seconds[stage.id] = min(timed) / max(len(stage.steps[0].batches), 1)
    return Pace(seconds, measured=True)
