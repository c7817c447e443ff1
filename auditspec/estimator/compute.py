"""Counterfactuals from the store, or computed and kept there; the same for every estimator.

A kept estimate goes by the arm, the estimator's name and options, and everything that it depends on. Where
arms depend on one another, all come from the store or none. An interrupted computation is taken up from its
journal, which goes by the same, and by what the arms begin with.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, is_dataclass, replace
from typing import Any, NamedTuple

from auditspec.attempt import NotRun, attempt
from auditspec.engine.interface import Engine
from auditspec.estimator.cache import NO_JOURNAL, Store
from auditspec.estimator.counterfactual import Counterfactuals
from auditspec.estimator.interface import Baseline, Context, Estimator
from auditspec.estimator.interventions import Arm
from auditspec.estimator.prefixes import Prefixes
from auditspec.estimator.replay.replay import repeated
from auditspec.progress import SILENT, Progress


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


class WithTwins(NamedTuple):
    """Counterfactuals, and the twins of those that are not exact: the same by other choices."""

    estimates: Counterfactuals
    twins: Counterfactuals
    refused: str = ""
    """Why there is no twin though the estimator has one; empty where that is not so."""


def with_twins(estimator: Estimator, context: Context, arms: Sequence[Arm]) -> WithTwins:
    """The counterfactuals of any arms with their twins, by one pass along the record where the estimator can do that.

    Raises:
        EstimationError: as `counterfactuals`.
        EvidenceError: as `counterfactuals`.
    """
    estimator.require_arms(arms)
    arms, twin, refused = list(dict.fromkeys(arms)), estimator.twin(), ""
    both = None if twin is None else _together(estimator, twin, context, arms)
    if both is None:
        estimates, twins = counterfactuals(estimator, context, arms), Counterfactuals()
        if twin is not None and not all(c.exact for c in estimates.values()):
            tried = attempt(lambda: counterfactuals(twin, context, arms))
            if isinstance(tried, NotRun):
                refused = tried.reason
            else:
                twins = tried
        both = estimates, twins
    estimates, twins = both
    unsure = {arm: twin for arm, twin in twins.items() if not estimates[arm].exact}
    return WithTwins(estimates, unsure, refused)


def _together(
    estimator: Estimator, twin: Estimator, context: Context, arms: Sequence[Arm]
) -> tuple[Counterfactuals, Counterfactuals] | None:
    """Estimates and twins in one pass; None where that is not possible, or some are kept already."""
    store = context.store
    if store is None:
        return estimator.together(twin, context, arms)
    keys = {
        (kind, arm): _key(store, kind, context, arm, arms)
        for kind in (estimator, twin)
        for arm in arms
    }
    if any(store.cache.get(key) is not None for key in keys.values()):
        return None
    journal = store.cache.journal(_journal_key(store, estimator, context, arms, with_twin=True))
    found = estimator.together(twin, replace(context, journal=journal), arms)
    if found is not None:
        for kind, made in zip((estimator, twin), found, strict=True):
            for arm, counterfactual in made.items():
                store.cache.put(keys[kind, arm], counterfactual)
        journal.clear()  # not reached where the estimate was interrupted
    return found


def chosen_counterfactuals(context: Context, choices: Mapping[str, Estimator]) -> WithTwins:
    """Every stage's counterfactual by its chosen estimator, with the twins that there are."""
    estimates, twins, refused = Counterfactuals(), Counterfactuals(), ""
    for estimator in dict.fromkeys(choices.values()):
        arms = Arm.each([stage for stage, taken in choices.items() if taken == estimator])
        found = with_twins(estimator, context, arms)
        estimates |= found.estimates
        twins |= found.twins
        refused = refused or found.refused
    return WithTwins(estimates, twins, refused)


def _key(
    store: Store, estimator: Estimator, context: Context, arm: Arm, arms: Sequence[Arm]
) -> str:
    """Name of an arm's estimate: alone where it is independent, else as one of several."""
    together = [arm] if estimator.independent else arms
    named = {} if estimator.independent else {"arms": [other.name for other in arms]}
    return store.key(arm, **_options(estimator, context, together), **named)


def _journal_key(
    store: Store,
    estimator: Estimator,
    context: Context,
    arms: Sequence[Arm],
    *,
    with_twin: bool = False,
) -> str:
    entries = Prefixes(context.record, arms, context.known).entries.values()
    begun = [entry.stage for entry in entries]
    options = _options(estimator, context, arms)
    return store.key(
        arms[0], **options, arms=[arm.name for arm in arms], journal=begun, with_twin=with_twin
    )


def _options(estimator: Estimator, context: Context, arms: Sequence[Arm]) -> dict[str, Any]:
    return {
        "method": estimator.name,
        "options": asdict(estimator) if is_dataclass(estimator) else {},
        "depends_on": estimator.depends_on(context, arms),
    }
