"""Every stage's counterfactual by its chosen method: from the store, or computed and kept there."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

from auditspec.estimator.cache import NO_JOURNAL, Cache, Dependencies, Journal
from auditspec.estimator.forecast import replay_cost
from auditspec.estimator.interface import Counterfactual
from auditspec.estimator.kept import KeptGradients
from auditspec.estimator.krylov import krylov
from auditspec.estimator.paired import paired_replay
from auditspec.estimator.plan import Choice, by_method
from auditspec.estimator.replay import repeated, replay_all
from auditspec.estimator.segments import Declared
from auditspec.estimator.tangent import sweep
from auditspec.progress import SILENT, Progress
from auditspec.record.rerun import Rerun
from auditspec.record.state import State

Found = dict[str, Counterfactual]
"""By stage id."""


@dataclass(frozen=True)
class Store:
    """Where finished estimates are kept, and what they depend on."""

    cache: Cache
    on: Dependencies

    def key(self, choice: Choice, **options: Any) -> str:
        """Name of a stage's estimate."""
        return self.on.key(stage=choice.stage, method=choice.method, **options)


@dataclass(frozen=True)
class Baseline:
    """The recorded run as the estimate has it: both worlds of an effect must round alike."""

    final: State
    """theta_K"""
    starts: dict[str, State]
    """theta_a of each stage; a stage that is missing starts from its recorded state."""


def baseline(
    rerun: Rerun,
    *,
    repeat: bool = False,
    progress: Progress = SILENT,
    store: Store | None = None,
) -> Baseline:
    """The recorded states themselves, or the whole run repeated.

    It is repeated if asked for, or where the record has another precision: then neither theta_K nor
    any stage's start is the recorded one. The store keeps its journal: at its end that is the run.
    """
    stages = rerun.trajectory.stages
    if rerun.in_recorded_precision and not repeat:
        return Baseline(stages[-1].last, {})
    total = sum(len(stage.steps) for stage in stages)
    journal = store.cache.journal(store.on.key(method="repeat")) if store else NO_JOURNAL
    with progress.phase("repeating the run", total) as advance:
        return Baseline(*repeated(rerun, stages[0].first, 0, lambda _: advance(1), journal))


def counterfactuals(
    rerun: Rerun,
    run: Baseline,
    choices: Sequence[Choice],
    progress: Progress = SILENT,
    *,
    budget: int | None = None,
    store: Store | None = None,
    kept: KeptGradients | None = None,
    declared: Mapping[str, Declared] | None = None,
) -> Found:
    """Every stage's counterfactual by its chosen method, in order of training.

    What the store holds is taken from there; what is computed is kept in it.

    Args:
        rerun: the record, on the device and in the precision of the estimate.
        run: the recorded run as the estimate has it.
        choices: the method of each stage.
        progress: told of the long phases.
        budget: minibatch gradients of paired replay, all stages together; None: no limit.
        store: finished estimates; None: everything is computed anew.
        kept: recorded gradients that a check computed.
        declared: what krylov goes by where a stage's steps were not recorded.
    """
    found = _sweeps(rerun, run, choices, progress, store)
    found |= _krylov(rerun, run, choices, progress, store, declared or {})
    paired = _of(choices, "paired-replay")
    found |= _paired(rerun, run, paired, 0.0, progress, budget, store, kept)
    found |= replays(rerun, run, choices, progress, store)
    return {choice.stage: found[choice.stage] for choice in choices}


def twins_of(
    rerun: Rerun,
    run: Baseline,
    choices: Sequence[Choice],
    found: Mapping[str, Counterfactual],
    progress: Progress = SILENT,
    *,
    budget: int | None = None,
    store: Store | None = None,
    kept: KeptGradients | None = None,
) -> Found:
    """The twins of the stages that paired replay estimated: the same with other steps sampled.

    Where every step was sampled there is no error to estimate, and no twin. Their cost is not part
    of the budget, as that of no check is.
    """
    paired = _of(choices, "paired-replay")
    if all(found[choice.stage].exact for choice in paired):
        return {}
    twins = _paired(rerun, run, paired, 0.5, progress, budget, store, kept)
    return {stage: twin for stage, twin in twins.items() if not found[stage].exact}


def replays(
    rerun: Rerun,
    run: Baseline,
    choices: Sequence[Choice],
    progress: Progress,
    store: Store | None = None,
) -> dict[str, Counterfactual]:
    """Exact counterfactuals in one pass, from the store, or from where an interrupted run left it."""
    wanted = _of(choices, "replay")
    found = {c.stage: kept for c in wanted if (kept := _kept(store, c))}
    missing = [choice for choice in wanted if choice.stage not in found]
    if not missing:
        return found
    names = [choice.stage for choice in missing]
    every = replay_cost(rerun.trajectory.stages)
    cost = {stage: int(every[stage]) for stage in names}
    named = [stage for stage in names if cost[stage]] or names
    without = named[0] if len(named) == 1 else f"each of {len(named)} stages"
    phase = progress.phase(f"training without {without}", sum(cost.values()))
    with _journal(store, missing[0], stages=names) as journal, phase as advance:
        fresh = replay_all(
            rerun, run.final, names, visit=advance, starts=run.starts, journal=journal
        )
        return found | _keep(store, missing, fresh)


def _sweeps(
    rerun: Rerun,
    run: Baseline,
    choices: Sequence[Choice],
    progress: Progress,
    store: Store | None,
) -> Found:
    """First-order and displacement in one sweep; each stage is kept by itself."""
    wanted = [*_of(choices, "first-order"), *_of(choices, "displacement")]
    found = {c.stage: kept for c in wanted if (kept := _kept(store, c))}
    missing = [choice for choice in wanted if choice.stage not in found]
    if not missing:
        return found
    methods: Any = by_method(missing, "first-order", "displacement")
    stages = rerun.trajectory.stages[0 if "first-order" in methods.values() else 1 :]
    total = sum(len(stage.steps) for stage in stages)
    phase = progress.phase("following the stages' displacements", total)
    with _journal(store, missing[0], methods=dict(methods)) as journal, phase as advance:
        fresh = sweep(rerun, run.final, methods, lambda _: advance(1), journal=journal)
        return found | _keep(store, missing, fresh)


def _krylov(
    rerun: Rerun,
    run: Baseline,
    choices: Sequence[Choice],
    progress: Progress,
    store: Store | None,
    declared: Mapping[str, Declared],
) -> Found:
    """The displacements of all its stages through the later stages' Krylov spaces."""

    def make(stages: list[str], journal: Journal) -> Found:
        with progress.phase("following the curvature"):
            return krylov(
                rerun, run.final, stages, starts=run.starts, declared=used, journal=journal
            )

    bare = [stage.id for stage in rerun.trajectory.stages if not stage.steps]
    used = {stage: declared[stage] for stage in bare if stage in declared}
    named = {stage: asdict(known) for stage, known in used.items()}
    return _together(store, _of(choices, "krylov"), make, declared=named)


def _paired(
    rerun: Rerun,
    run: Baseline,
    choices: Sequence[Choice],
    shift: float,
    progress: Progress,
    budget: int | None,
    store: Store | None,
    kept: KeptGradients | None,
) -> Found:
    """Paired replay of all its stages, which share one budget."""
    whole = int(sum(replay_cost(rerun.trajectory.stages).values()))
    gradients = whole if budget is None else budget
    name = "replaying sampled steps" if not shift else "replaying other steps, for the error"

    def make(stages: list[str], journal: Journal) -> Found:
        with progress.phase(name, gradients) as advance:
            return paired_replay(
                rerun,
                run.final,
                stages,
                gradients=gradients,
                shift=shift,
                visit=lambda moment: advance(len(moment.step.batches)),
                starts=run.starts,
                journal=journal,
                kept=kept,
            )

    held = sorted(kept.stages) if kept is not None else []
    return _together(store, choices, make, gradients=gradients, shift=shift, kept=held)


def _together(
    store: Store | None,
    choices: Sequence[Choice],
    make: Callable[[list[str], Journal], Found],
    **options: Any,
) -> Found:
    """Estimates that depend on one another: all from the store, or all computed."""
    stages = [choice.stage for choice in choices]
    kept = {c.stage: _kept(store, c, stages=stages, **options) for c in choices}
    held = {stage: c for stage, c in kept.items() if c is not None}
    if len(held) == len(stages):
        return held
    with _journal(store, choices[0], stages=stages, **options) as journal:
        return _keep(store, choices, make(stages, journal), stages=stages, **options)


@contextmanager
def _journal(store: Store | None, choice: Choice, **options: Any) -> Iterator[Journal]:
    """Where an estimate of several stages notes how far it is, until it is kept.

    It goes by the key of the first stage's estimate, the names of all among its options.
    """
    if store is None:
        yield NO_JOURNAL
        return
    journal = store.cache.journal(store.key(choice, **options))
    yield journal
    journal.clear()  # not reached where the estimate was interrupted


def _of(choices: Sequence[Choice], method: str) -> list[Choice]:
    return [choice for choice in choices if choice.method == method]


def _kept(store: Store | None, choice: Choice, **options: Any) -> Counterfactual | None:
    return store.cache.get(store.key(choice, **options)) if store is not None else None


def _keep(store: Store | None, choices: Sequence[Choice], fresh: Found, **options: Any) -> Found:
    for choice in choices:
        if store is not None:
            store.cache.put(store.key(choice, **options), fresh[choice.stage])
    return fresh
