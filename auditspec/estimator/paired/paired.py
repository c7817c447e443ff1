"""Paired replay: the counterfactual from far fewer gradients than steps, beside the recorded run.

The counterfactual arm is carried through every later step with the optimizer's own update, but its
gradient h_k is computed at a few sampled steps only (`schedule`). In between, the recorded run's
gradient g_k on the same minibatch is the control variate: with s and n neighbouring sampled steps,
r_s = h_s - c g_s, and u = (k - s) / (n - s),

    h_k ~ c g_k + 4a / (1 + 3a) ((1 - u) r_s + u r_n)                   for s < k < n

Window by window: a predictor c g_k + a r_s goes from s to n, h_n is computed there (the window's
only gradient), and a corrector goes from s to n once more with r_n known. c is the coefficient of
least squares over the past windows. a is the correlation of r between neighbouring samples: the
part of its variance that lasts longer than one minibatch, and so says something of other steps. Of
that part the mean of m samples predicts best with the weight m a / (1 + (m - 1) a): m = 1 for the
predictor. A corrector has two samples, but its errors partly cancel those of its neighbours: m = 4.

    num = 0.7 num + <g_n - g_s, h_n - h_s>;  den = 0.7 den + |g_n - g_s|^2;  c = clip(num / den, 0, 1)
    joint = 0.9 joint + <r_s, r_n>;  own = 0.9 own + (|r_s|^2 + |r_n|^2) / 2;  a = clip(joint / own, 0, 1)

Signals are clipped gradients and, of BatchNorm, batch statistics (c = a = 1). With every step sampled
this is exact replay. Control variates: Owen, Monte Carlo theory, methods and examples (2013), ch. 8.

Only first gradients are needed: any optimizer, model, and attention kernel.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from torch import Tensor
from torch.optim import Optimizer

from auditspec.engine.rerun import Rerun, StepGradient
from auditspec.errors import UnsupportedError
from auditspec.estimator.cache import NO_JOURNAL, Journal
from auditspec.estimator.interface import Counterfactual, difference
from auditspec.estimator.interventions import Arm
from auditspec.estimator.paired.sampled_steps import Schedule, schedule
from auditspec.estimator.paired.step_signals import (
    Signal,
    Snapshot,
    Tensors,
    advance,
    observe,
    put_back,
    recorded_signals,
    require_known_buffers,
    signal_of,
    snapshot,
    state_of,
)
from auditspec.estimator.paired.stored_gradients import StoredGradients
from auditspec.estimator.prefixes import Entry, Known, Prefixes
from auditspec.record.state import State, capture, restore
from auditspec.record.trajectory import StageTrajectory

FORGET, FORGET_SHARED = 0.7, 0.9
"""What a window leaves of the sums behind c, and of those behind a."""
POOLED = 4
"""m of a corrector."""
VARIANCE = "running_var"
"""Statistics that an interpolation must not make negative."""
Visit = Callable[[StepGradient], None]


@dataclass
class Course:
    """An arm inside one later stage."""

    arm: Arm
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
    joint: float = 0.0
    own: float = 0.0
    c: float = 1.0
    a: float = 1.0
    signal2: float = 0.0
    """Sum of |h_n|^2 over the sampled steps n that were predicted first."""
    missed2: float = 0.0
    """Sum of |h_n - (c g_n + a r_s)|^2 over them, c and a as they were before h_n was known."""
    c_sum: float = 0.0
    """Sum of c |h_n|^2."""
    a_sum: float = 0.0
    recorded2: float = 0.0
    """Sum of |g_n|^2."""

    def end(self, steps: int) -> int:
        """The sampled step n that ends the window; the stage's end for the last."""
        return [*self.sampled, steps][self.window + 1]


@dataclass
class _Account:
    number: int
    """The arm's, in a journal."""
    state: State
    """Where the arm stands between two stages."""
    path: dict[str, State]
    gradients: float = 0.0
    seconds: float = 0.0
    diagnostics: dict[str, float] = field(default_factory=dict)


Accounts = Mapping[Arm, _Account]


def paired_replay(
    rerun: Rerun,
    final: State,
    arms: Sequence[Arm],
    *,
    gradients: int,
    shift: float = 0.0,
    visit: Visit | None = None,
    starts: Mapping[str, State] | None = None,
    journal: Journal = NO_JOURNAL,
    kept: StoredGradients | None = None,
    known: Known | None = None,
) -> dict[Arm, Counterfactual]:
    """The counterfactuals of several arms that leave stages out, under one budget.

    Args:
        rerun: the record, in the precision of the estimate.
        final: theta_K as the same re-run reaches it.
        arms: the stages to leave out in each.
        gradients: budget in minibatch gradients for all of them together.
        shift: 0.5 gives the twin: sampled steps moved by half a window.
        visit: called at every step whose gradient is computed (for progress).
        starts: theta_a per stage as the same re-run reaches it; missing: the recorded one.
        journal: where the arms are noted after every window; what it holds already is gone on from.
            Recorded gradients of the open windows are then made once more, beside the cost.
        kept: recorded gradients that were computed before, of some stages or none.
        known: arms that were made before, as exactly as is wanted here; what others share with them is
            not made again, except where a stage goes on with moments, which a path does not hold.

    Returns:
        By arm, in the order of `arms`. Its diagnostics say whether it starts from untrained weights, and of
        every later stage how well its gradients were foretold (`_diagnosed`). Gradients of the
        recorded run that had to be computed are shared equally by the arms that they served.

    Raises:
        RecordError: if the record has no such stage.
        EstimationError: if the budget is too small, a later stage was recorded without its steps,
            or its code fails.
        UnsupportedError: if training changes floating buffers other than BatchNorm's, or an arm
            replaces something: its gradients have no recorded ones to be paired with.
    """
    if any(arm.replaced for arm in arms):
        raise UnsupportedError(
            "paired-replay follows no stage on other data, and no other initial weights",
            "use estimator.method: replay",
        )
    every = rerun.trajectory.stages
    held = kept.stages if kept is not None else ()
    plan = schedule(rerun.trajectory, arms, gradients, shift, held, known)
    require_known_buffers(rerun)
    prefixes = Prefixes(rerun.trajectory, arms, known or {})
    accounts = {
        arm: _Account(
            i,
            _opening(rerun, prefixes, arm, starts or {}),
            dict(entry.path),
            diagnostics={"untrained": float(_begins_untrained(every, arm))},
        )
        for i, (arm, entry) in enumerate(prefixes.entries.items())
    }
    first, made, courses = _go_on(rerun, plan, accounts, journal)
    for j, stage in enumerate(every[first:], first):
        begun = {arm: a for arm, a in accounts.items() if prefixes.entries[arm].stage <= j}
        through = {arm: a for arm, a in begun.items() if stage.id not in arm.omitted}
        if through and stage.header.steps:
            with rerun.training():
                courses = courses or [
                    _enter(rerun, stage, arm, plan.sampled[arm, j], account, visit)
                    for arm, account in through.items()
                ]
                _cross(rerun, stage, j, plan, begun, courses, made, visit, journal, kept)
        for arm, account in begun.items():
            if arm not in through or not stage.header.steps:
                account.state = _kept(rerun, prefixes.entries[arm], j, account.state)
            if arm in through:
                account.path[stage.id] = account.state.without_optimizer()
        _note(rerun, journal, j + 1, 0, begun, ())
        made, courses = 0, []
    for account in accounts.values():
        account.state = account.path.get(every[-1].id) or account.state.without_optimizer()
    return {
        arm: _counterfactual(
            arm, account, final, exact=plan.exact(arm) and prefixes.entries[arm].exact
        )
        for arm, account in accounts.items()
    }


def _opening(rerun: Rerun, prefixes: Prefixes, arm: Arm, starts: Mapping[str, State]) -> State:
    """Where an arm stands before it is carried through anything."""
    entry = prefixes.entries[arm]
    if entry.state is not None:
        return entry.state
    return prefixes.begin(rerun, prefixes.of(arm, entry.stage), entry.stage, starts)


def _kept(rerun: Rerun, entry: Entry, index: int, state: State) -> State:
    """Where a stage that an arm leaves out ends: where it begins."""
    at_its_start = index == entry.stage and entry.state is None
    return state if at_its_start else rerun.carry_over(index, state)


def _cross(
    rerun: Rerun,
    stage: StageTrajectory,
    index: int,
    plan: Schedule,
    accounts: Accounts,
    courses: Sequence[Course],
    made: int,
    visit: Visit | None,
    journal: Journal,
    kept: StoredGradients | None,
) -> None:
    """Carry every arm through one later stage, in step with the recorded run.

    Only the signals of the recorded run since the earliest open window are held. Steps before
    `made` were accounted for, and windows that end there closed, by an interrupted run.
    """
    steps = rerun.steps_of(stage)
    needed = [i for i in accounts if (i, index) in plan.skipping]
    oldest, signals = _oldest(courses), None
    if needed and kept is not None and stage.id in kept.stages:
        signals = kept.signals(stage, oldest, rerun.device)
    elif needed:
        signals = recorded_signals(rerun, stage, oldest, free=index not in plan.observed)
    recorded: dict[int, Signal] = {}
    for n in range(oldest, len(steps) + 1):
        if signals is not None and n < len(steps):
            began, before = time.perf_counter(), rerun.gradients
            recorded[n], step_gradient = next(signals)
            for i in needed if n >= made else ():
                accounts[i].gradients += (rerun.gradients - before) / len(needed)
                accounts[i].seconds += (time.perf_counter() - began) / len(needed)
            if visit is not None and step_gradient is not None:
                visit(step_gradient)
        ending = [course for course in courses if n == course.end(len(steps))]
        for course in ending:
            _window(rerun, stage, course, n, recorded, accounts[course.arm], visit)
        oldest = _oldest(courses)
        recorded = {k: signal for k, signal in recorded.items() if k >= oldest}
        if ending and n < len(steps):
            _note(rerun, journal, index, n + 1, accounts, courses)
    for course in courses:
        put_back(rerun, course.optimizer, course.held)
        accounts[course.arm].state = capture(rerun.model, course.optimizer)
        accounts[course.arm].diagnostics |= _diagnosed(stage.id, course)


def _oldest(courses: Sequence[Course]) -> int:
    """Start of the earliest open window."""
    return min(course.sampled[course.window] for course in courses)


def _note(
    rerun: Rerun,
    journal: Journal,
    stage: int,
    made: int,
    accounts: Accounts,
    courses: Sequence[Course],
) -> None:
    """Note where every arm stands: between two stages, or inside one with `made` steps behind."""
    if not journal.due:
        return
    states: dict[str, State] = {}
    for account in accounts.values():
        states[str(account.number)] = account.state
        states |= {f"{account.number} after {s}": held for s, held in account.path.items()}
    inside: dict[str, list[float]] = {}
    for c in courses:
        number = accounts[c.arm].number
        put_back(rerun, c.optimizer, c.held)
        states[str(number)] = capture(rerun.model, c.optimizer)
        states[f"signal of {number}"] = state_of(c.signal)
        inside[str(number)] = [
            *(c.window, c.num, c.den, c.joint, c.own, c.c, c.a),
            *(c.signal2, c.missed2, c.c_sum, c.a_sum, c.recorded2),
        ]
    position = {
        "stage": stage,
        "made": made,
        "accounts": {
            str(a.number): [a.gradients, a.seconds, [*a.path], a.diagnostics]
            for a in accounts.values()
        },
        "inside": inside,
    }
    journal.save(position, states)


def _go_on(
    rerun: Rerun, plan: Schedule, accounts: Accounts, journal: Journal
) -> tuple[int, int, list[Course]]:
    """What `_note` noted: the stage to go on with, its steps behind, and the arms inside it."""
    noted = journal.load()
    if noted is None:
        return 0, 0, []
    position, states = noted
    index, courses = position["stage"], []
    numbered = {str(account.number): arm for arm, account in accounts.items()}
    for i, (gradients, seconds, path, diagnostics) in position["accounts"].items():
        account = accounts[numbered[i]]
        account.state, account.gradients, account.seconds = states[i], gradients, seconds
        account.path = {stage: states[f"{i} after {stage}"] for stage in path}
        account.diagnostics = diagnostics
    for i, place in position["inside"].items():
        arm, optimizer = numbered[i], rerun.optimizer(rerun.trajectory.stages[index])
        restore(states[i], rerun.model, optimizer)
        held = snapshot(rerun, optimizer)
        signal = signal_of(states[f"signal of {i}"], rerun.device)
        courses.append(Course(arm, optimizer, plan.sampled[arm, index], held, signal, *place))
    return index, position["made"], courses


def _enter(
    rerun: Rerun,
    stage: StageTrajectory,
    arm: Arm,
    sampled: Sequence[int],
    account: _Account,
    visit: Visit | None,
) -> Course:
    """Begin a stage from where the one before ended (`Rerun.carry_over`)."""
    began = time.perf_counter()
    optimizer = rerun.optimizer(stage)
    begin = rerun.carry_over(rerun.trajectory.index(stage.id), account.state)
    restore(begin, rerun.model, optimizer)
    held = snapshot(rerun, optimizer)
    signal = _sample(rerun, stage, 0, optimizer, account, visit)
    account.seconds += time.perf_counter() - began
    return Course(arm, optimizer, sampled, held, signal)


def _window(
    rerun: Rerun,
    stage: StageTrajectory,
    arm: Course,
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
    signal, step_gradient = observe(rerun, stage, rerun.steps_of(stage)[k], optimizer)
    account.gradients += rerun.gradients - before
    if visit is not None:
        visit(step_gradient)
    return signal


def _sweep(
    rerun: Rerun,
    stage: StageTrajectory,
    arm: Course,
    s: int,
    n: int,
    recorded: Mapping[int, Signal],
    end: Signal | None,
) -> None:
    """Carry the arm from s to n; `end` is h_n, None while it is unknown."""
    steps = rerun.steps_of(stage)
    advance(rerun, arm.optimizer, steps[s], arm.signal)
    shrink = arm.a if end is None else POOLED * arm.a / (1 + (POOLED - 1) * arm.a)
    for k in range(s + 1, n):
        u = 0.0 if end is None else (k - s) / (n - s)
        ends = (arm.signal, arm.signal, recorded[s], recorded[s])
        if end is not None:
            ends = (arm.signal, end, recorded[s], recorded[n])
        advance(rerun, arm.optimizer, steps[k], _between(arm.c, shrink, u, recorded[k], *ends))


def _between(
    c: float,
    shrink: float,
    u: float,
    g_k: Signal,
    h_s: Signal,
    h_n: Signal,
    g_s: Signal,
    g_n: Signal,
) -> Signal:
    """Signal of step k: c g_k + shrink ((1 - u)(h_s - c g_s) + u (h_n - c g_n)); statistics with 1, 1."""
    gradients = (x.gradients for x in (g_k, h_s, h_n, g_s, g_n))
    statistics = (x.statistics for x in (g_k, h_s, h_n, g_s, g_n))
    blended = _blend(1.0, 1.0, u, *statistics)
    moved = {n: t.clamp_min(0) if n.endswith(VARIANCE) else t for n, t in blended.items()}
    return Signal(_blend(c, shrink, u, *gradients), moved, g_k.counts)


def _blend(
    c: float,
    shrink: float,
    u: float,
    g_k: Tensors,
    h_s: Tensors,
    h_n: Tensors,
    g_s: Tensors,
    g_n: Tensors,
) -> Tensors:
    """Per tensor; one that an end of the window lacks takes the recorded value."""
    found: dict[str, Tensor] = {}
    for name, g in g_k.items():
        if name not in h_s or name not in g_s or name not in h_n or name not in g_n:
            found[name] = g
            continue
        r = h_s[name] - c * g_s[name]
        if u:
            r = (1 - u) * r + u * (h_n[name] - c * g_n[name])
        found[name] = c * g + shrink * r
    return found


def _fit(arm: Course, g_s: Signal, g_n: Signal, h_n: Signal) -> None:
    """Take one more window into the coefficients c and a."""
    ends = [
        (arm.signal.gradients[name], h, g_s.gradients[name], g_n.gradients[name])
        for name, h in h_n.gradients.items()
        if all(name in signal.gradients for signal in (arm.signal, g_s, g_n))
    ]
    _judge(arm, ends)
    num, den = FORGET * arm.num, FORGET * arm.den
    for h_first, h_last, g_first, g_last in ends:
        moved = (g_last - g_first).double()
        num += float((moved * (h_last - h_first)).sum())
        den += float(moved.square().sum())
    arm.num, arm.den = num, den
    if den > 0:
        arm.c = min(max(num / den, 0.0), 1.0)
    joint, own = FORGET_SHARED * arm.joint, FORGET_SHARED * arm.own
    for h_first, h_last, g_first, g_last in ends:
        r_s, r_n = (h_first - arm.c * g_first).double(), (h_last - arm.c * g_last).double()
        joint += float((r_s * r_n).sum())
        own += float((r_s.square() + r_n.square()).sum()) / 2
    arm.joint, arm.own = joint, own
    if own > 0:
        arm.a = min(max(joint / own, 0.0), 1.0)


def _judge(arm: Course, ends: Sequence[tuple[Tensor, Tensor, Tensor, Tensor]]) -> None:
    """Hold h_n against what c and a made of g_n, h_s, and g_s before it was known."""
    signal = 0.0
    for h_s, h_n, g_s, g_n in ends:
        foreseen = arm.c * g_n + arm.a * (h_s - arm.c * g_s)
        signal += float(h_n.double().square().sum())
        arm.missed2 += float((h_n - foreseen).double().square().sum())
        arm.recorded2 += float(g_n.double().square().sum())
    arm.signal2 += signal
    arm.c_sum += arm.c * signal
    arm.a_sum += arm.a * signal


def _begins_untrained(stages: Sequence[StageTrajectory], arm: Arm) -> bool:
    """Whether an arm goes on from the first weights, or from what a change of the model added."""
    first = arm.first([stage.id for stage in stages])
    return not first or (first < len(stages) and bool(stages[first].header.added))


def _diagnosed(stage: str, arm: Course) -> dict[str, float]:
    """What `Counterfactual.diagnostics` says of an arm's way through one later stage.

    Means of c and a, weighted by |h|^2; the share of |h|^2 that was foretold wrongly (more than 1 where
    nothing would have been better); and |h|^2 in units of the recorded |g|^2.
    """
    if not arm.signal2:
        return {}
    return {
        f"{stage}: c": arm.c_sum / arm.signal2,
        f"{stage}: a": arm.a_sum / arm.signal2,
        f"{stage}: missed": arm.missed2 / arm.signal2,
        f"{stage}: size": arm.signal2 / arm.recorded2 if arm.recorded2 else math.inf,
    }


def _counterfactual(arm: Arm, account: _Account, final: State, *, exact: bool) -> Counterfactual:
    return Counterfactual(
        arm=arm,
        method="paired-replay",
        exact=exact,
        state=account.state,
        delta=difference(account.state.parameters, final.parameters),
        gradients=account.gradients,
        seconds=account.seconds,
        path=account.path,
        diagnostics=account.diagnostics,
    )
