"""Counterfactuals from the store, or computed and kept there; the same for every estimator.

A kept estimate goes by the arm, the estimator's name and options, and everything that it depends on. Where
arms depend on one another, all come from the store or none. An interrupted computation is taken up from its
journal, which goes by the same, and by what the arms begin with. Where several ranks audit, arms are shared out among
them, and what they made is taken from the store.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, is_dataclass, replace
from typing import Any, NamedTuple

from auditspec.attempt import NotRun, attempt
from auditspec.engine.interface import Engine
from auditspec.estimator.cache import NO_JOURNAL, Store
from auditspec.estimator.counterfactual import Counterfactuals
from auditspec.estimator.handed_out import HandedOut, shared_out
from auditspec.estimator.interface import Baseline, Context, Estimator
from auditspec.estimator.interventions import Arm
from auditspec.estimator.prefixes import Prefixes
from auditspec.estimator.replay.replay import Replay, repeated
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
    keys, final = _keys(store, estimator, context, arms), context.run.final.parameters
    ready = {arm: c for arm, key in keys.items() if (c := store.take(key, final)) is not None}
    if not estimator.independent and len(ready) < len(arms):
        ready = {}
    missing = [arm for arm in arms if arm not in ready]
    if missing:
        context = replace(context, known={**context.known, **ready})
        if hand_out(estimator, context, missing):
            ready |= counterfactuals(estimator, replace(context, team=None), missing)
        else:
            ready |= _made(estimator, context, missing)
    return {arm: ready[arm] for arm in arms}


def _made(estimator: Estimator, context: Context, arms: Sequence[Arm]) -> Counterfactuals:
    """Those of some arms that are made here (`Context.only`), which are kept then."""
    store = context.store
    if store is None:
        return estimator.estimate(context, arms)
    journal = store.cache.journal(_journal_key(store, estimator, context, arms))
    fresh = estimator.estimate(replace(context, journal=journal), arms)
    keys, final = _keys(store, estimator, context, arms), context.run.final.parameters
    for arm, counterfactual in fresh.items():
        store.cache.put(keys[arm], counterfactual, final)
    journal.clear()  # not reached where the estimate was interrupted
    return fresh


def ahead(estimator: Estimator, context: Context, arms: Sequence[Arm]) -> None:
    """Let several ranks make at once what will be asked for one after another; alone, nothing happens.

    Raises:
        EstimationError: as `counterfactuals`.
    """
    store = context.store
    if context.team is not None and store is not None and estimator.independent:
        keys = _keys(store, estimator, context, arms)
        hand_out(estimator, context, [a for a, key in keys.items() if not store.cache.holds(key)])


def hand_out(
    estimator: Estimator, context: Context, arms: Sequence[Arm], *, with_twin: bool = False
) -> bool:
    """Let all ranks make some arms, into the store; whether there was anything to share out.

    Args:
        estimator: makes them.
        context: what they are made of.
        arms: of which the store has none.
        with_twin: whether their twins are made with them.

    Raises:
        EstimationError: as `counterfactuals`, of those that are made here.
    """
    team, store = context.team, context.store
    if team is None or store is None or not (estimator.independent or estimator.divisible):
        return False
    groups = shared_out(estimator.forecast(context.record, arms, context).shares, team.size)
    if len(groups) < 2:
        return False
    exact = [run.arm for run in context.known.values() if run.exact]
    known = list(_keys(store, Replay(), context, exact).values())
    parts = [HandedOut(estimator, arms, group, with_twin, known) for group in groups]
    jobs = [part.job(context) for part in parts]
    for made in team.share(jobs, lambda job: make_job(parts[jobs.index(job)], context)):
        store.fresh.update(made["made"])
    return True


def make_job(part: HandedOut, context: Context) -> Mapping[str, Any]:
    """Make a part of an estimate; the names that its arms have in the store then.

    Raises:
        EstimationError: as `counterfactuals`.
    """
    store, estimator, twin = context.store, part.estimator, part.estimator.twin()
    if store is None:
        raise ValueError("without a store nothing is handed out")
    arms = part.only if estimator.independent else part.arms
    context = replace(context, team=None, only=frozenset(part.only))
    if not part.with_twin or twin is None:
        twin = None
        _made(estimator, context, arms)
    else:
        _together(estimator, twin, context, arms)
    kinds = [estimator] if twin is None else [estimator, twin]
    keys = [_keys(store, kind, context, arms)[arm] for kind in kinds for arm in part.only]
    return {"made": [key for key in keys if store.cache.holds(key)]}


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
    kinds, final = (estimator, twin), context.run.final.parameters
    keys = [_keys(store, kind, context, arms) for kind in kinds]
    mine = arms if context.only is None else context.only
    if any(store.cache.holds(of[arm]) for of in keys for arm in mine):
        return None
    if hand_out(estimator, context, arms, with_twin=True):
        taken = [{a: store.take(key, final) for a, key in of.items()} for of in keys]
        estimates, twins = ({a: run for a, run in of.items() if run is not None} for of in taken)
        return (estimates, twins) if len(estimates) == len(arms) else None
    journal = store.cache.journal(_journal_key(store, estimator, context, arms, with_twin=True))
    found = estimator.together(twin, replace(context, journal=journal), arms)
    if found is not None:
        for of, made in zip(keys, found, strict=True):
            for arm, counterfactual in made.items():
                store.cache.put(of[arm], counterfactual, final)
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


def _keys(
    store: Store, estimator: Estimator, context: Context, arms: Sequence[Arm]
) -> dict[Arm, str]:
    """Names of the arms' estimates: each alone where it is independent, else as one of several."""
    if estimator.independent:
        return {arm: store.key(arm, **_options(estimator, context, [arm])) for arm in arms}
    named = {"arms": [arm.name for arm in arms]}
    return {arm: store.key(arm, **_options(estimator, context, arms), **named) for arm in arms}


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
    only = sorted(arm.name for arm in context.only or ())
    named = {"arms": [arm.name for arm in arms], "only": only}
    return store.key(arms[0], **options, **named, journal=begun, with_twin=with_twin)


def _options(estimator: Estimator, context: Context, arms: Sequence[Arm]) -> dict[str, Any]:
    return {
        "method": estimator.name,
        "options": asdict(estimator) if is_dataclass(estimator) else {},
        "depends_on": estimator.depends_on(context, arms),
    }
