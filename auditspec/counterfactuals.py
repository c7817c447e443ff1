"""Every arm's counterfactual by its chosen method: from the store, or computed and kept there."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import Any

from auditspec.engine.references import NO_REFERENCES, References
from auditspec.engine.rerun import Rerun
from auditspec.estimator.cache import NO_JOURNAL, Cache, Dependencies, Journal
from auditspec.estimator.interface import Counterfactual
from auditspec.estimator.interventions import INITIAL, Arm
from auditspec.estimator.krylov.krylov import krylov
from auditspec.estimator.krylov.segments import Declared
from auditspec.estimator.linear.tangent import sweep
from auditspec.estimator.paired.paired import paired_replay
from auditspec.estimator.paired.stored_gradients import StoredGradients
from auditspec.estimator.plan import Choice, by_method
from auditspec.estimator.prefixes import Known, Prefixes
from auditspec.estimator.replay.replay import repeated, replay_all
from auditspec.progress import SILENT, Progress
from auditspec.record.codec import tensors_digest
from auditspec.record.state import State
from auditspec.results import Method

Found = dict[str, Counterfactual]
"""By stage id."""


@dataclass(frozen=True)
class Store:
    """Where finished estimates are kept, and what they depend on."""

    cache: Cache
    on: Dependencies

    def key(self, arm: Arm, method: Method, **options: Any) -> str:
        """Name of an arm's estimate."""
        return self.on.key(arm=arm.name, method=method, **options)


@dataclass(frozen=True)
class Baseline:
    """The recorded run as the estimate has it: both worlds of an effect must round alike."""

    final: State
    """theta_K"""
    starts: dict[str, State]
    """theta_a of each stage; a stage that is missing starts from its recorded state."""
    path: dict[str, State] = field(default_factory=dict)
    """theta_b of each stage; a stage that is missing ends in its recorded state."""


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
    begin = rerun.carry_over(0, stages[0].first)
    with progress.phase("repeating the run", total) as advance:
        run = repeated(rerun, begin, 0, lambda _: advance(1), journal)
    return Baseline(run.final, run.starts, run.path)


def counterfactuals(
    rerun: Rerun,
    run: Baseline,
    choices: Sequence[Choice],
    progress: Progress = SILENT,
    *,
    budget: int | None = None,
    store: Store | None = None,
    kept: StoredGradients | None = None,
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
    found |= _paired_stages(rerun, run, choices, 0.0, progress, budget, store, kept)
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
    kept: StoredGradients | None = None,
) -> Found:
    """The twins of the stages that paired replay estimated: the same with other steps sampled.

    Where every step was sampled there is no error to estimate, and no twin. Their cost is not part
    of the budget, as that of no check is.
    """
    paired = _of(choices, "paired-replay")
    if all(found[choice.stage].exact for choice in paired):
        return {}
    twins = _paired_stages(rerun, run, paired, 0.5, progress, budget, store, kept)
    return {stage: twin for stage, twin in twins.items() if not found[stage].exact}


def replays(
    rerun: Rerun,
    run: Baseline,
    choices: Sequence[Choice],
    progress: Progress,
    store: Store | None = None,
) -> Found:
    """Exact counterfactuals in one pass, from the store, or from where an interrupted run left it."""
    arms = Arm.each(choice.stage for choice in _of(choices, "replay"))
    found = compute_arms(rerun, run, arms, progress, exact=True, store=store)
    return {made.stage: made for made in found.values()}


def compute_arms(
    rerun: Rerun,
    run: Baseline,
    arms: Sequence[Arm],
    progress: Progress = SILENT,
    *,
    exact: bool,
    gradients: int | None = None,
    shift: float = 0.0,
    store: Store | None = None,
    kept: StoredGradients | None = None,
    references: References | None = None,
    known: Iterable[Counterfactual] = (),
) -> dict[Arm, Counterfactual]:
    """The counterfactuals of any arms: from the store, or computed and kept there.

    An interrupted computation is taken up from its journal.

    Args:
        rerun: the record, on the device and in the precision of the estimate.
        run: the recorded run as the estimate has it.
        arms: what is done otherwise in each.
        progress: told of the long phases.
        exact: by replay; otherwise by paired replay, which takes arms that only leave stages out.
        gradients: minibatch gradients of paired replay, all arms together; None: no limit.
        shift: of paired replay's sampled steps; 0.5 gives the twins.
        store: finished estimates; None: everything is computed anew.
        kept: recorded gradients that a check computed.
        references: what takes the place of what the arms replace.
        known: arms that were made before, of the same kind; what the others share with them is not made
            again.

    Raises:
        EstimationError: if the budget is too small, or there is no reference for what is replaced.
        EvidenceError: if a reference cannot be used.
        UnsupportedError: if paired replay cannot follow an arm.
    """
    before = {made.arm: made for made in known}
    if exact:
        return _exactly(rerun, run, arms, progress, store, references or NO_REFERENCES, before)
    return _paired(rerun, run, arms, shift, progress, gradients, store, kept, before)


def _exactly(
    rerun: Rerun,
    run: Baseline,
    arms: Sequence[Arm],
    progress: Progress,
    store: Store | None,
    references: References,
    known: Known,
) -> dict[Arm, Counterfactual]:
    """By replay. Each arm is kept by itself."""
    digests = {arm: _reference_digests(arm, references) if store else {} for arm in arms}
    held = {arm: _kept(store, arm, "replay", **digests[arm]) for arm in arms}
    found = {arm: made for arm, made in held.items() if made is not None}
    missing = [arm for arm in arms if arm not in found]
    if not missing:
        return {arm: found[arm] for arm in arms}
    known = {arm: made for arm, made in (*known.items(), *found.items()) if made.exact}
    prefixes = Prefixes(rerun.trajectory, missing, known)
    cost = prefixes.gradients()
    named = [arm for arm in missing if cost[arm]] or missing
    phase = progress.phase(_in_words(named), int(sum(cost.values())))
    along = [[*a.name, prefixes.entries[a].stage, digests[a]] for a in missing]
    with _journal(store, missing[0], "replay", along=along) as journal, phase as advance:
        fresh = replay_all(
            rerun,
            run.final,
            missing,
            visit=advance,
            starts=run.starts,
            journal=journal,
            references=references,
            known=known,
        )
        for arm, made in fresh.items():
            _keep(store, [made], **digests[arm])
    found |= fresh
    return {arm: found[arm] for arm in arms}


def _reference_digests(arm: Arm, references: References) -> dict[str, Any]:
    """What an arm depends on besides the record: nothing where it replaces nothing."""
    found: dict[str, str] = {}
    for party in sorted(arm.replaced):
        if party == INITIAL:
            found[party] = tensors_digest(references.weights or {})
        elif party in references.data:
            found[party] = references.data[party].digest
    return {"references": found} if found else {}


def _in_words(arms: Sequence[Arm]) -> str:
    if len(arms) == 1:
        return f"training {arms[0].words}"
    singles = all(len(arm.parties) == 1 and not arm.replaced for arm in arms)
    return (
        f"training without each of {len(arms)} stages" if singles else f"training {len(arms)} arms"
    )


def _sweeps(
    rerun: Rerun,
    run: Baseline,
    choices: Sequence[Choice],
    progress: Progress,
    store: Store | None,
) -> Found:
    """First-order and displacement in one sweep; each stage is kept by itself."""
    wanted = [*_of(choices, "first-order"), *_of(choices, "displacement")]
    found = {
        choice.stage: kept
        for choice in wanted
        if (kept := _kept(store, Arm.without(choice.stage), choice.method))
    }
    missing = [choice for choice in wanted if choice.stage not in found]
    if not missing:
        return found
    methods: Any = by_method(missing, "first-order", "displacement")
    stages = rerun.trajectory.stages[0 if "first-order" in methods.values() else 1 :]
    total = sum(len(stage.steps) for stage in stages)
    phase = progress.phase("following the stages' displacements", total)
    first = Arm.without(missing[0].stage)
    with (
        _journal(store, first, missing[0].method, methods=dict(methods)) as journal,
        phase as advance,
    ):
        fresh = sweep(rerun, run.final, methods, lambda _: advance(1), journal=journal)
        _keep(store, fresh.values())
    return found | fresh


def _krylov(
    rerun: Rerun,
    run: Baseline,
    choices: Sequence[Choice],
    progress: Progress,
    store: Store | None,
    declared: Mapping[str, Declared],
) -> Found:
    """The displacements of all its stages through the later stages' Krylov spaces."""
    wanted = _of(choices, "krylov")

    def make(journal: Journal) -> dict[Arm, Counterfactual]:
        names = [choice.stage for choice in wanted]
        with progress.phase("following the curvature"):
            fresh = krylov(
                rerun, run.final, names, starts=run.starts, declared=used, journal=journal
            )
        return {made.arm: made for made in fresh.values()}

    bare = [stage.id for stage in rerun.trajectory.stages if not stage.steps]
    used = {stage: declared[stage] for stage in bare if stage in declared}
    named = {stage: asdict(known) for stage, known in used.items()}
    arms = Arm.each(choice.stage for choice in wanted)
    found = _together(store, arms, "krylov", make, declared=named)
    return {made.stage: made for made in found.values()}


def _paired_stages(
    rerun: Rerun,
    run: Baseline,
    choices: Sequence[Choice],
    shift: float,
    progress: Progress,
    budget: int | None,
    store: Store | None,
    kept: StoredGradients | None,
) -> Found:
    arms = Arm.each(choice.stage for choice in _of(choices, "paired-replay"))
    found = _paired(rerun, run, arms, shift, progress, budget, store, kept, {})
    return {made.stage: made for made in found.values()}


def _paired(
    rerun: Rerun,
    run: Baseline,
    arms: Sequence[Arm],
    shift: float,
    progress: Progress,
    budget: int | None,
    store: Store | None,
    kept: StoredGradients | None,
    known: Known,
) -> dict[Arm, Counterfactual]:
    """Paired replay of arms that share one budget."""
    prefixes = Prefixes(rerun.trajectory, arms, known)
    gradients = int(sum(prefixes.gradients().values())) if budget is None else budget
    name = "replaying sampled steps" if not shift else "replaying other steps, for the error"

    def make(journal: Journal) -> dict[Arm, Counterfactual]:
        with progress.phase(name, gradients) as advance:
            return paired_replay(
                rerun,
                run.final,
                arms,
                gradients=gradients,
                shift=shift,
                visit=lambda step_gradient: advance(len(step_gradient.step.batches)),
                starts=run.starts,
                journal=journal,
                kept=kept,
                known=known,
            )

    begun = [[e.stage, _state_digest(e.state)] for e in prefixes.entries.values()]
    held = sorted(kept.stages) if kept is not None else []
    options = {"gradients": gradients, "shift": shift, "kept": held, "begun": begun}
    return _together(store, arms, "paired-replay", make, **options)


def _state_digest(state: State | None) -> str:
    return "" if state is None else tensors_digest(state.parameters | state.buffers)


def _together(
    store: Store | None,
    arms: Sequence[Arm],
    method: Method,
    make: Callable[[Journal], dict[Arm, Counterfactual]],
    **options: Any,
) -> dict[Arm, Counterfactual]:
    """Estimates that depend on one another: all from the store, or all computed."""
    options |= {"arms": [arm.name for arm in arms]}
    kept = {arm: _kept(store, arm, method, **options) for arm in arms}
    held = {arm: made for arm, made in kept.items() if made is not None}
    if len(held) == len(arms):
        return held
    with _journal(store, arms[0], method, **options) as journal:
        fresh = make(journal)
        _keep(store, fresh.values(), **options)
        return fresh


@contextmanager
def _journal(store: Store | None, arm: Arm, method: Method, **options: Any) -> Iterator[Journal]:
    """Where an estimate of several arms notes how far it is, until it is kept.

    It goes by the key of the first arm's estimate, the names of all among its options.
    """
    if store is None:
        yield NO_JOURNAL
        return
    journal = store.cache.journal(store.key(arm, method, **options))
    yield journal
    journal.clear()  # not reached where the estimate was interrupted


def _of(choices: Sequence[Choice], method: str) -> list[Choice]:
    return [choice for choice in choices if choice.method == method]


def _kept(store: Store | None, arm: Arm, method: Method, **options: Any) -> Counterfactual | None:
    return store.cache.get(store.key(arm, method, **options)) if store is not None else None


def _keep(store: Store | None, fresh: Iterable[Counterfactual], **options: Any) -> None:
    if store is None:
        return
    for made in fresh:
        store.cache.put(store.key(made.arm, made.method, **options), made)
