"""The other ranks of an audit: they hold the evidence too, and make what the first hands out (`team`)."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache as once
from typing import Any

import torch

from auditspec.audited_code import audited_code, load_functions
from auditspec.behaviors.evaluate import Evaluator
from auditspec.checks import placebo_draws
from auditspec.checks import windows as window_jobs
from auditspec.checks.examination import Examination
from auditspec.checks.subject import Artifacts, Subject
from auditspec.checks.windows import Windows
from auditspec.confinement import Confinement
from auditspec.consistency.check import check
from auditspec.engine import engine_named
from auditspec.engine.execution import device_name, execution, resolve_device
from auditspec.errors import EvidenceError
from auditspec.estimator import handed_out
from auditspec.estimator.cache import Cache
from auditspec.estimator.compute import baseline, make_job
from auditspec.estimator.handed_out import HandedOut
from auditspec.estimator.interface import Context
from auditspec.estimator.plan import estimators
from auditspec.gates import reader_of, store_of
from auditspec.gather import Opened, declared_of, open_all
from auditspec.record.numerics import numerics
from auditspec.spec.source import LoadedSpec
from auditspec.team import Job, Team


def assist(loaded: LoadedSpec, team: Team, confinement: Confinement) -> None:
    """Make jobs for the first rank until it ends; the code is executed only on evidence that is what was pinned.

    Nothing is made on evidence that is not: the first rank does it all, and says what is wrong with its own.

    Args:
        loaded: the spec.
        team: this process is not its first.
        confinement: how the spec's code is kept apart.

    Raises:
        UsageError: if the code cannot be isolated as required, or the folder that the ranks share is not there.
        SpecError: if the spec does not fit what it names.
        EstimationError: if the code cannot be imported.
    """
    checked = check(loaded, signing=False)
    checked.require_fitting()
    examination = Examination(Subject(loaded.spec))
    examination.add(Artifacts(checked.evidence))
    if examination.halted:
        return
    try:
        opened = open_all(loaded, checked.evidence)
        examination.add(opened)
    except EvidenceError:
        return
    folder = None if examination.halted else team.exchange()
    if folder is not None:
        _serve(loaded, opened, team, Cache(folder), confinement)


def _serve(
    loaded: LoadedSpec, opened: Opened, team: Team, cache: Cache, confinement: Confinement
) -> None:
    spec, trajectory = loaded.spec, opened.trajectory
    threads = spec.estimator.threads or trajectory.header.threads
    device = resolve_device(spec.estimator.device)
    with (
        audited_code(loaded, opened, confinement, device) as code,
        execution(threads, deterministic=spec.estimator.deterministic),
        numerics(trajectory.header.numerics),
    ):
        functions, custom = load_functions(spec, code)
        engine = engine_named(spec.estimator.engine)
        again = engine(trajectory, functions, opened.datasets, device=device)
        dtype = getattr(torch, spec.estimator.dtype)
        rerun = engine(trajectory, functions, opened.datasets, device=device, dtype=dtype)

        @once
        def context(repeat: bool) -> Context:
            store = store_of(spec, opened, cache, device_name(device), threads, repeat)
            return Context(
                engine=rerun,
                run=baseline(rerun, repeat=repeat, store=store),
                declared=declared_of(spec),
                references=opened.references,
                store=store,
            )

        def arms(job: Job) -> Mapping[str, Any]:
            return make_job(*HandedOut.read(job, estimators(), context(job["repeat"])))

        def windows(job: Job) -> Mapping[str, Any]:
            return Windows().make_job(again, job)

        @once
        def reader() -> Evaluator:
            return reader_of(loaded, rerun, opened, custom)

        def placebos(job: Job) -> Mapping[str, Any]:
            return placebo_draws.make_job(reader(), cache.folder, job)

        makers = {handed_out.KIND: arms, window_jobs.KIND: windows, placebo_draws.KIND: placebos}
        team.serve(makers)
