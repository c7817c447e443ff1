"""Paired replay: the counterfactual from far fewer gradients than steps, beside the recorded run.

The counterfactual arm is carried through every later step with the optimizer's own update, but its
gradient h_k is computed at a few sampled steps only (`schedule`). In between, the recorded run's
gradient g_k on the same minibatch is the control variate: with s and n neighbouring sampled steps,
r_s = h_s - c g_s, and u = (k - s) / (n - s),

    h_k ~ c g_k + (1 - u) r_s + u r_n                                   for s < k < n

Window by window: a predictor with r_n := r_s goes from s to n, h_n is computed there (the window's
only gradient), and a corrector goes from s to n once more with r_n known. The coefficient is that
of least squares over the past windows, forgetting by 0.9 a window:

    num = 0.9 num + <g_n - g_s, h_n - h_s>;  den = 0.9 den + |g_n - g_s|^2;  c = clip(num / den, 0, 1)

Signals are clipped gradients and, of BatchNorm, batch statistics (c = 1). With every step sampled
this is exact replay. Control variates: Owen, Monte Carlo theory, methods and examples (2013), ch. 8.

Only first gradients are needed: any optimizer, model, and attention kernel.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor
from torch.optim import Optimizer

from auditspec.errors import EstimationError
from auditspec.estimator.interface import Counterfactual, difference
from auditspec.estimator.schedule import Schedule, schedule
from auditspec.estimator.signals import (
    Signal,
    Snapshot,
    Tensors,
    advance,
    observe,
    put_back,
    recorded_signals,
    require_known_buffers,
    snapshot,
)
from auditspec.record.rerun import Moment, Rerun
from auditspec.record.state import State, capture, restore
from auditspec.record.trajectory import StageTrajectory

FORGET = 0.9
TWIN_FACTOR = 2.1
"""Error of the estimate in units of its root-mean-square distance from the twin: the 95 % quantile
over stages of a prototype of the five digits settings, seeds 0-4 (docs/method.md)."""
TYPICAL = 0.3
"""Part of the typical relative error that every error has at least; chosen on pilot seeds of `make calibrate`."""

Visit = Callable[[Moment], None]


@dataclass
class Arm:
    """The counterfactual without one stage, inside one later stage."""

    left_out: int
    optimizer: Optimizer
    sampled: Sequence[int]
    held: Snapshot
    """xi at the last sampled step s."""
    signal: Signal
    """h_s"""
    window: int = 0
    """Number of the window: s = sampled[window]."""
    num: float = 0.0
    den: float = 0.0
    c: float = 1.0


@dataclass
class _Account:
    state: State
    """Where the arm stands between two stages."""
    gradients: float = 0.0
    seconds: float = 0.0


def paired_replay(
    rerun: Rerun,
    final: State,
    stages: Sequence[str],
    *,
    gradients: int,
    shift: float = 0.0,
    visit: Visit | None = None,
    starts: Mapping[str, State] | None = None,
) -> dict[str, Counterfactual]:
    """The counterfactuals without each of some stages, under one budget.

    Args:
        rerun: the record, in the precision of the estimate.
        final: theta_K as the same re-run reaches it.
        stages: ids of the stages to leave out.
        gradients: budget in minibatch gradients for all of them together.
        shift: 0.5 gives the twin: sampled steps moved by half a window.
        visit: called at every step whose gradient is computed (for progress).
        starts: theta_a per stage as the same re-run reaches it; missing: the recorded one.

    Returns:
        One counterfactual per stage. Gradients of the recorded run that had to be computed are
        shared equally by the stages that they served.

    Raises:
        RecordError: if the record has no such stage.
        EstimationError: if the budget is too small, a later stage was recorded without its steps,
            or its code fails.
        UnsupportedError: if training changes floating buffers other than BatchNorm's.
    """
    every = rerun.trajectory.stages
    plan = schedule(rerun.trajectory, stages, gradients, shift)
    require_known_buffers(rerun)
    left_out = sorted({rerun.trajectory.index(stage) for stage in stages})
    accounts = {
        i: _Account(state=(starts or {}).get(every[i].id) or every[i].first) for i in left_out
    }
    for j, stage in enumerate(every):
        crossing = {i: a for i, a in accounts.items() if i < j}
        if crossing:
            with rerun.training():
                _cross(rerun, stage, j, plan, crossing, visit)
    return {
        every[i].id: _counterfactual(every[i].id, account, final, exact=plan.exact(i))
        for i, account in accounts.items()
    }


def twin_error(effects: np.ndarray[Any, Any], twin: np.ndarray[Any, Any]) -> float:
    """Estimated error of a stage's effects: `TWIN_FACTOR` * RMS over examples of effects - twin.

    The twin samples other steps, so that the two estimates' sampling errors differ; what they share
    (a bias of the interpolation) it does not see, which the factor has to cover.

    Args:
        effects: effect per evaluation example [n].
        twin: the same from `paired_replay(..., shift=0.5)`.

    Returns:
        Estimated root-mean-square error over examples, in the behaviour's unit.

    Raises:
        EstimationError: if the two are not of the same examples.
    """
    if effects.shape != twin.shape or effects.ndim != 1 or not len(effects):
        raise EstimationError(
            f"an estimate of shape {effects.shape} has a twin of shape {twin.shape}",
            "read both on the same evaluation examples",
        )
    return TWIN_FACTOR * math.sqrt(float(np.mean((effects - twin) ** 2)))


def steadied(errors: np.ndarray[Any, Any], sizes: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Twin errors, none of them small by chance alone.

    Two estimates may come close to each other by chance. No error is taken to be less, beside the size
    of its effect, than `TYPICAL` of the median over all effects of the audit.

    Args:
        errors: estimated errors of several effects [n], from `twin_error`.
        sizes: root mean square over examples of each effect [n], in the same unit.

    Returns:
        The errors [n].
    """
    sized = sizes > 0
    if not sized.any():
        return errors
    typical = float(np.median(errors[sized] / sizes[sized]))
    held: np.ndarray[Any, Any] = np.maximum(errors, TYPICAL * typical * sizes)
    return held


def _cross(
    rerun: Rerun,
    stage: StageTrajectory,
    index: int,
    plan: Schedule,
    accounts: Mapping[int, _Account],
    visit: Visit | None,
) -> None:
    """Carry every arm through one later stage, in step with the recorded run.

    Only the signals of the recorded run since the earliest open window are held.
    """
    steps = rerun.steps_of(stage)
    if not steps:
        return
    arms = [
        _enter(rerun, stage, i, plan.sampled[i, index], account, visit)
        for i, account in accounts.items()
    ]
    needed = [i for i in accounts if (i, index) in plan.skipping]
    signals = recorded_signals(rerun, stage, free=index not in plan.observed) if needed else None
    recorded: dict[int, Signal] = {}
    for n in range(len(steps) + 1):
        if signals is not None and n < len(steps):
            began, before = time.perf_counter(), rerun.gradients
            recorded[n], moment = next(signals)
            for i in needed:
                accounts[i].gradients += (rerun.gradients - before) / len(needed)
                accounts[i].seconds += (time.perf_counter() - began) / len(needed)
            if visit is not None and moment is not None:
                visit(moment)
        for arm in arms:
            ahead = arm.sampled[arm.window + 1 :]
            if n == (ahead[0] if ahead else len(steps)):
                _window(rerun, stage, arm, n, recorded, accounts[arm.left_out], visit)
        oldest = min(arm.sampled[arm.window] for arm in arms)
        recorded = {k: signal for k, signal in recorded.items() if k >= oldest}
    for arm in arms:
        put_back(rerun, arm.optimizer, arm.held)
        accounts[arm.left_out].state = capture(rerun.model, arm.optimizer)


def _enter(
    rerun: Rerun,
    stage: StageTrajectory,
    left_out: int,
    sampled: Sequence[int],
    account: _Account,
    visit: Visit | None,
) -> Arm:
    """Begin a stage from where the one before ended (`Rerun.carry_over`)."""
    began = time.perf_counter()
    optimizer = rerun.optimizer(stage)
    begin = rerun.carry_over(rerun.trajectory.index(stage.id), account.state)
    restore(begin, rerun.model, optimizer)
    held = snapshot(rerun, optimizer)
    signal = _sample(rerun, stage, 0, optimizer, account, visit)
    account.seconds += time.perf_counter() - began
    return Arm(left_out, optimizer, sampled, held, signal)


def _window(
    rerun: Rerun,
    stage: StageTrajectory,
    arm: Arm,
    n: int,
    recorded: Mapping[int, Signal],
    account: _Account,
    visit: Visit | None,
) -> None:
    """One window [s, n): predict, compute the gradient at n, correct."""
    began, s = time.perf_counter(), arm.sampled[arm.window]
    put_back(rerun, arm.optimizer, arm.held)
    _sweep(rerun, stage, arm, s, n, recorded, None)
    if n < len(rerun.steps_of(stage)):
        found = _sample(rerun, stage, n, arm.optimizer, account, visit)
        if recorded:
            _fit(arm, recorded[s], recorded[n], found)
        if n > s + 1:
            put_back(rerun, arm.optimizer, arm.held)
            _sweep(rerun, stage, arm, s, n, recorded, found)
        arm.signal = found
        arm.window += 1
    arm.held = snapshot(rerun, arm.optimizer)
    account.seconds += time.perf_counter() - began


def _sample(
    rerun: Rerun,
    stage: StageTrajectory,
    k: int,
    optimizer: Optimizer,
    account: _Account,
    visit: Visit | None,
) -> Signal:
    """h_k at the model's present state."""
    before = rerun.gradients
    signal, moment = observe(rerun, stage, rerun.steps_of(stage)[k], optimizer)
    account.gradients += rerun.gradients - before
    if visit is not None:
        visit(moment)
    return signal


def _sweep(
    rerun: Rerun,
    stage: StageTrajectory,
    arm: Arm,
    s: int,
    n: int,
    recorded: Mapping[int, Signal],
    end: Signal | None,
) -> None:
    """Carry the arm from s to n; `end` is h_n, None while it is unknown."""
    steps = rerun.steps_of(stage)
    advance(rerun, arm.optimizer, steps[s], arm.signal)
    for k in range(s + 1, n):
        u = 0.0 if end is None else (k - s) / (n - s)
        ends = (arm.signal, arm.signal, recorded[s], recorded[s])
        if end is not None:
            ends = (arm.signal, end, recorded[s], recorded[n])
        advance(rerun, arm.optimizer, steps[k], _between(arm.c, u, recorded[k], *ends))


def _between(
    c: float, u: float, g_k: Signal, h_s: Signal, h_n: Signal, g_s: Signal, g_n: Signal
) -> Signal:
    """Signal of step k: c g_k + (1 - u)(h_s - c g_s) + u (h_n - c g_n); statistics with c = 1."""
    return Signal(
        _blend(c, u, g_k.gradients, h_s.gradients, h_n.gradients, g_s.gradients, g_n.gradients),
        _blend(
            1.0, u, g_k.statistics, h_s.statistics, h_n.statistics, g_s.statistics, g_n.statistics
        ),
        g_k.counts,
    )


def _blend(
    c: float, u: float, g_k: Tensors, h_s: Tensors, h_n: Tensors, g_s: Tensors, g_n: Tensors
) -> Tensors:
    """Per tensor; one that an end of the window lacks takes the recorded value."""
    found: dict[str, Tensor] = {}
    for name, g in g_k.items():
        if name not in h_s or name not in g_s or name not in h_n or name not in g_n:
            found[name] = g
        elif u == 0:
            found[name] = c * (g - g_s[name]) + h_s[name]
        else:
            r_s, r_n = h_s[name] - c * g_s[name], h_n[name] - c * g_n[name]
            found[name] = c * g + (1 - u) * r_s + u * r_n
    return found


def _fit(arm: Arm, g_s: Signal, g_n: Signal, h_n: Signal) -> None:
    """Take one more window into the coefficient c."""
    num = den = 0.0
    for name, h in h_n.gradients.items():
        h_s = arm.signal.gradients.get(name)
        if h_s is None or name not in g_s.gradients or name not in g_n.gradients:
            continue
        moved = (g_n.gradients[name] - g_s.gradients[name]).double()
        num += float((moved * (h - h_s)).sum())
        den += float(moved.square().sum())
    arm.num, arm.den = FORGET * arm.num + num, FORGET * arm.den + den
    if arm.den > 0:
        arm.c = min(max(arm.num / arm.den, 0.0), 1.0)


def _counterfactual(stage: str, account: _Account, final: State, *, exact: bool) -> Counterfactual:
    return Counterfactual(
        stage=stage,
        method="paired-replay",
        exact=exact,
        state=account.state,
        delta=difference(account.state.parameters, final.parameters),
        gradients=account.gradients,
        seconds=account.seconds,
    )
