"""Replay: the exact counterfactual, training once more without a stage from its boundary on.

theta_b := theta_a, and every later step keeps its own minibatch, hyperparameters, and random state
(method: estimand). It is the ground truth of every comparison.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from auditspec.estimator.cache import NO_JOURNAL, Journal
from auditspec.estimator.interface import Counterfactual, difference
from auditspec.record.rerun import Moment, Rerun
from auditspec.record.state import State


def replay(
    rerun: Rerun,
    final: State,
    stage: str,
    visit: Callable[[Moment], None] | None = None,
    start: State | None = None,
    journal: Journal = NO_JOURNAL,
) -> Counterfactual:
    """The counterfactual without `stage`, by re-running every later stage.

    Args:
        rerun: the record, in the precision of the estimate.
        final: theta_K as the same re-run reaches it.
        stage: id of the stage to leave out. For the last stage nothing is left to run.
        visit: called at every re-run step (for progress).
        start: theta_a as the same re-run reaches it; None: the recorded one.
        journal: where every finished window is noted; what it holds already is gone on from.

    Raises:
        RecordError: if the record has no such stage.
        EstimationError: if a later stage was recorded without its steps, or its code fails.
    """
    began, gradients = time.perf_counter(), rerun.gradients
    index = rerun.trajectory.index(stage)
    start = rerun.trajectory.stages[index].first if start is None else start
    state = _continue(rerun, start, index + 1, visit, journal)
    return Counterfactual(
        stage=stage,
        method="replay",
        exact=True,
        state=state,
        delta=difference(state.parameters, final.parameters),
        gradients=rerun.gradients - gradients,
        seconds=time.perf_counter() - began,
    )


def _continue(
    rerun: Rerun,
    start: State,
    stage_index: int,
    visit: Callable[[Moment], None] | None,
    journal: Journal,
) -> State:
    """As `Rerun.continue_from`, noting the state at the end of every window."""
    state, step = start, 0
    noted = journal.load()
    if noted is not None:
        position, states = noted
        stage_index, step, state = position["stage"], position["step"], states["arm"]
    for index, stage in enumerate(rerun.trajectory.stages[stage_index:], stage_index):
        if not step:
            state = rerun.carry_over(index, state)
        for stop in (*(k for k in stage.state_steps if step < k), stage.header.steps):
            if step < stop:
                state, step = rerun.run(stage, state, step, stop, visit), stop
                journal.save({"stage": index, "step": step}, {"arm": state})
        step = 0
    return state
