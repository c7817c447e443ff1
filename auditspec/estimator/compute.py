"""Counterfactuals from the store, or computed and kept there; the same for every estimator.

A kept estimate goes by the arm, the estimator's name and options, and everything that it depends on. Where
arms depend on one another, all come from the store or none. An interrupted computation is taken up from its
journal, which goes by the same, and by what the arms begin with.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, is_dataclass, replace
from typing import Any

from auditspec.engine.interface import Engine
from auditspec.estimator.cache import NO_JOURNAL, Store
from auditspec.estimator.counterfactual import Counterfactual, Counterfactuals
from auditspec.estimator.interface import Baseline, Context, Estimator
from auditspec.estimator.interventions import Arm
from auditspec.estimator.prefixes import Prefixes
from auditspec.estimator.replay.replay import repeated
from auditspec.progress import SILENT, Progress

ByStage = dict[str, Counterfactual]
"""Counterfactuals without one stage, by its id."""


def baseline(
    rerun: Engine, *, repeat: bool = False, progress: Progress = SILENT, store: Store | None = None
) -> Baseline:
    """The recorded states themselves, or the whole run repeated.

    It is repeated if asked for, or where the record has another precision: then neither theta_K nor
    any stage's start is the recorded one. The store keeps its journal: at its end that is the run.
    """
    stages = rerun.trajectory.stages
    if rerun.in_recorded_precision and not repeat:
        return Baseline(stages[-1].last)
    total = sum(len(stage.steps) for stage in stages)
    journal = store.cache.journal(store.on.key(method="repeat")) if store else NO_JOURNAL
    with progress.phase("repeating the run", total) as advance:
        return repeated(rerun, advance, journal)


def counterfactuals(estimator: Estimator, context: Context, arms: Sequence[Arm]) -> Counterfactuals:
    """The counterfactuals of any arms, in their order.

    Raises:
        BudgetError: if the budget is too small.
        UnsupportedError: if the estimator cannot make an arm, or cannot follow the run.
        EstimationError: if the record lacks something, or its code fails.
        EvidenceError: if the evidence turns out to be damaged.
    """
    estimator.require_arms(arms)
    arms, store = list(dict.fromkeys(arms)), context.store
    if store is None:
        return estimator.estimate(context, arms)
    keys = {arm: _key(store, estimator, context, arm, arms) for arm in arms}
    ready = {arm: c for arm, key in keys.items() if (c := store.cache.get(key)) is not None}
    if not estimator.independent and len(ready) < len(arms):
        ready = {}
    missing = [arm for arm in arms if arm not in ready]
    if missing:
        context = replace(context, known={**context.known, **ready})
        journal = store.cache.journal(_journal_key(store, estimator, context, missing))
        fresh = estimator.estimate(replace(context, journal=journal), missing)
        for arm, counterfactual in fresh.items():
            store.cache.put(keys[arm], counterfactual)
        journal.clear()  # not reached where the estimate was interrupted
        ready |= fresh
    return {arm: ready[arm] for arm in arms}


def chosen_counterfactuals(context: Context, choices: Mapping[str, Estimator]) -> ByStage:
    """Every stage's counterfactual by its chosen estimator, in the order of the choices."""
    by_stage: ByStage = {}
    for estimator in dict.fromkeys(choices.values()):
        stages = [stage for stage, taken in choices.items() if taken == estimator]
        for counterfactual in counterfactuals(estimator, context, Arm.each(stages)).values():
            by_stage[counterfactual.stage] = counterfactual
    return {stage: by_stage[stage] for stage in choices}


def twins_of(
    context: Context, choices: Mapping[str, Estimator], estimates: Mapping[str, Counterfactual]
) -> ByStage:
    """The twins of the estimates that have one: the same by other choices.

    An exact estimate has no error to be told, and no twin. Their cost is not part of the budget, as that
    of no check is.
    """
    paired: dict[str, Estimator] = {}
    for estimator in dict.fromkeys(choices.values()):
        twin = estimator.twin()
        stages = [stage for stage, taken in choices.items() if taken == estimator]
        if twin is not None and not all(estimates[stage].exact for stage in stages):
            paired |= dict.fromkeys(stages, twin)
    pairs = chosen_counterfactuals(context, paired)
    return {stage: twin for stage, twin in pairs.items() if not estimates[stage].exact}


def _key(
    store: Store, estimator: Estimator, context: Context, arm: Arm, arms: Sequence[Arm]
) -> str:
    """Name of an arm's estimate: alone where it is independent, else as one of several."""
    together = [arm] if estimator.independent else arms
    named = {} if estimator.independent else {"arms": [other.name for other in arms]}
    return store.key(arm, **_options(estimator, context, together), **named)


def _journal_key(store: Store, estimator: Estimator, context: Context, arms: Sequence[Arm]) -> str:
    entries = Prefixes(context.record, arms, context.known).entries.values()
    begun = [entry.stage for entry in entries]
    options = _options(estimator, context, arms)
    return store.key(arms[0], **options, arms=[arm.name for arm in arms], journal=begun)


def _options(estimator: Estimator, context: Context, arms: Sequence[Arm]) -> dict[str, Any]:
    return {
        "method": estimator.name,
        "options": asdict(estimator) if is_dataclass(estimator) else {},
        "depends_on": estimator.depends_on(context, arms),
    }
