"""What an audit would cost by each estimator, which evidence each one needs, and what `auto` takes.

Reads the record only. With `measure`, a few steps of every stage are made and the behaviours are read once, which executes the
audited code; what the whole audit takes follows from that.
"""

from __future__ import annotations

import resource
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch

from auditspec.attempt import NotRun, attempt
from auditspec.audited_code import audited_code, load_functions
from auditspec.behaviors.evaluate import Evaluator
from auditspec.budget import Allotment, allot
from auditspec.checks.evidence_integrity import EvidenceIntegrity
from auditspec.checks.record_fidelity import beside_estimates
from auditspec.confinement import UNCONFINED, Confinement
from auditspec.consistency.check import check
from auditspec.data_evidence import TrainedRows
from auditspec.engine import engine_named
from auditspec.engine.execution import execution, resolve_device
from auditspec.engine.interface import Engine
from auditspec.errors import EstimationError, EvidenceError, UsageError
from auditspec.estimator.forecast import Pace
from auditspec.estimator.interface import Terms
from auditspec.estimator.linear.tangent import FirstOrder
from auditspec.estimator.plan import Choice, Prospect, choose, estimators, prospects
from auditspec.estimator.recorded_run import RecordedRun
from auditspec.gates import reader_of
from auditspec.gather import Opened, declared_of, open_all
from auditspec.how_much import is_large
from auditspec.record.numerics import numerics
from auditspec.record.trajectory import StageTrajectory
from auditspec.report.words import text
from auditspec.results import EvidenceGrade
from auditspec.spec.source import LoadedSpec
from auditspec.whole_audit import Measured, WholeAudit, whole_audit

FEW = 3
"""Steps of a stage that are timed together."""
KIB = 1024
"""Bytes in the unit of `ru_maxrss` (Linux)."""


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
    whole: WholeAudit | None = None
    """What the whole audit takes; None where its parts were not measured, or nothing fits."""


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
        measure: time a few steps of every stage and one reading; executes the spec's code, files announced first.
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
    measured, examples = _measured(loaded, opened, announce, confinement) if measure else (None, [])
    pace = measured.pace if measured is not None else Pace.recorded(trajectory)
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
    whole = None
    if measured is not None and allotment is not None and choices:
        whole = whole_audit(spec, trajectory, (allotment, choices, terms), measured, examples)
    return Plan(
        grade=trajectory.grade,
        allotment=allotment,
        prospects=prospects(trajectory, terms, pace),
        choices=choices,
        refused=refused,
        pace=pace,
        whole=whole,
    )


def _measured(
    loaded: LoadedSpec, opened: Opened, announce: Callable[[str], None], confinement: Confinement
) -> tuple[Measured, list[int]]:
    """What an audit's parts take here, and how many examples each behaviour has."""
    for file in opened.code.files:
        announce(f"executing {file.path} ({file.digest})")
    spec, trajectory = loaded.spec, opened.trajectory
    estimator, threads = spec.estimator, spec.estimator.threads or trajectory.header.threads
    device, began = resolve_device(estimator.device), time.perf_counter()
    with (
        audited_code(loaded, opened, confinement, device) as code,
        execution(threads, deterministic=estimator.deterministic),
        numerics(trajectory.header.numerics),
    ):
        functions, custom = load_functions(spec, code)
        TrainedRows.of(spec, opened, functions)
        start, resident = time.process_time() + time.perf_counter() - began, _resident()
        rerun = engine_named(estimator.engine)(
            trajectory,
            functions,
            opened.datasets,
            device=device,
            dtype=getattr(torch, estimator.dtype),
        )
        pace = Pace({stage.id: _pace(rerun, stage) for stage in trajectory.stages}, measured=True)
        reader = reader_of(loaded, rerun, opened, custom)
        light = _light(rerun, pace)
        sloped = not is_large(trajectory) or estimator.method == FirstOrder.name
        reading, slope = _reading(reader), _slope(reader) if sloped else 0.0
        examples = [len(part.ids) for part in reader.slices.values()]
    children = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * KIB
    own = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * KIB
    apart = children if confinement.wanted != "none" else 0
    return Measured(pace, start, reading, slope, resident, light, apart, own), examples


def _pace(rerun: Engine, stage: StageTrajectory) -> float:
    """Seconds of a gradient with its share of the update, from the first steps of a stage, the faster of two tries."""
    first, steps, timed = stage.first, min(FEW, len(stage.steps)), []
    for _ in range(2):
        began = time.perf_counter()
        rerun.run(stage, first, 0, steps)
        timed.append(time.perf_counter() - began)
    return min(timed) / max(sum(len(step.batches) for step in stage.steps[:steps]), 1)


def _light(rerun: Engine, pace: Pace) -> dict[str, float]:
    """Seconds of a light step of every estimator that makes some, in the last stage, what counts as gradients left out."""
    stage, found = rerun.trajectory.stages[-1], {}
    for name, kind in estimators().items():
        if not stage.steps or isinstance(attempted := attempt(partial(kind().light_step, rerun, stage)), NotRun):  # fmt: skip
            continue
        if attempted is not None:
            make, gradients = attempted
            with rerun.training():
                make()
                began = time.perf_counter()
                for _ in range(FEW):
                    make()
            took = (time.perf_counter() - began) / FEW
            found[name] = max(took - gradients * pace.seconds[stage.id], 0.0)
    return found


def _reading(reader: Evaluator) -> float:
    """Seconds of reading every behaviour once."""
    began = time.perf_counter()
    reader.plug_in(reader.rerun.trajectory.stages[-1].last)
    return time.perf_counter() - began


def _slope(reader: Evaluator) -> float:
    """Seconds of reading every slope along one displacement, from those of one batch."""
    thinned, rows = reader.thinned(reader.rerun, reader.batch_size)
    last = reader.rerun.trajectory.stages[-1].last
    began = time.perf_counter()
    thinned.linear(last, {"measured": last.parameters})
    seconds = time.perf_counter() - began
    whole = sum(len(part.ids) for part in reader.slices.values())
    return seconds * whole / max(sum(map(len, rows.values())), 1)


def _resident() -> int:
    """Bytes that this process holds now (Linux); elsewhere the most that it held."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except OSError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * KIB
    return pages * resource.getpagesize()
