"""How a stage is cut into segments, each with one state and a sample of minibatches for its curvature.

Time inside a stage is measured in learning rate, tau_k = sum over i < k of lr_i: that is how far
curvature acts. Segments have equal shares of it, a segment's curvature is taken at the recorded
state nearest to the middle of its share (the later one of two; where only the boundaries are known,
the stage's end, at home in the stage's data), and sampled steps are spread evenly over it.

Of a stage recorded with its boundaries only, the steps are assumed: as many as the header says, at
the declared schedule, on rows drawn from the stage's data sets.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch

from auditspec.artifacts.datasets import Dataset
from auditspec.engine.optimizers import linear_rule_of
from auditspec.errors import EstimationError, EvidenceError
from auditspec.record.trajectory import Microbatch, StageTrajectory, Step
from auditspec.schedules import Course


@dataclass(frozen=True)
class Declared:
    """What is declared of a stage whose steps were not recorded."""

    schedule: Course
    """How the rate runs over the stage."""
    lr: float | None = None
    """Largest learning rate of all groups; None: as at the stage's first step in the record."""
    batch: int = 64
    """Examples of a minibatch: the unit of cost, and the size at which clipping acts."""
    rows: int | None = None
    """Rows 0 … rows-1 of each data set are drawn from; None: all, where it is a table."""


@dataclass(frozen=True)
class Segment:
    """Steps [start, stop) of a stage under one curvature."""

    start: int
    stop: int
    state: int
    """The recorded state (before this step) at which the curvature is taken."""
    sample: tuple[int, ...]
    """Steps whose minibatches the curvature is the mean over."""


def steps_of(stage: StageTrajectory, declared: Declared | None) -> tuple[Step, ...]:
    """The stage's steps as recorded; else as declared, without their minibatches.

    Raises:
        EstimationError: if they were neither recorded nor declared.
    """
    if stage.steps or not stage.header.steps:
        return stage.steps
    if declared is None:
        raise EstimationError(
            f"stage '{stage.id}' was recorded without its steps, and its learning rates are not known",
            "declare its optimizer.schedule (docs/spec.md)",
        )
    total, course = stage.header.steps, declared.schedule
    rates = [_largest_rate(group.options, course.share(0, total)) for group in stage.header.groups]
    scale = 1.0 if declared.lr is None else declared.lr / (max(rates) or declared.lr)
    if not any(rates):
        rates = [declared.lr or 0.0 for _ in rates]
    steps = []
    for k in range(total):
        share = course.share(k, total)
        groups = tuple(
            {**group.options, "lr": rate * scale * share}
            for group, rate in zip(stage.header.groups, rates, strict=True)
        )
        steps.append(Step(k, groups, (), seconds=0.0, loss=None, grad_norm=None))
    return tuple(steps)


def _largest_rate(options: Mapping[str, object], share: float) -> float:
    """A group's largest rate, by that with which the stage began; 0 where a warm-up began with 0."""
    if share:
        return float(str(options["lr"])) / share
    return float(str(options.get("initial_lr", 0.0)))


def segments_of(
    stage: StageTrajectory,
    steps: Sequence[Step],
    *,
    count: int,
    examples: int,
    batch: int,
) -> tuple[Segment, ...]:
    """Cut a stage.

    Args:
        stage: the stage.
        steps: its steps, recorded or assumed.
        count: segments of equal learning-rate time; fewer where the stage has fewer steps.
        examples: of a segment's sample, in whole minibatches.
        batch: examples of an assumed step.
    """
    if not steps:
        return ()
    tau = _learning_rate_time(steps)
    borders = sorted({_at(tau, tau[-1] * i / count) for i in range(count)} | {0, len(steps)})
    h = steps[0].groups[0]
    unknown = linear_rule_of(stage.header.optimizer, h).preconditioner({}, h) is None
    fresh = unknown and stage.header.boundary == "reset"  # nothing tells it before the first step
    states = [k for k in stage.state_steps if k > 0 or not fresh]
    segments = []
    for start, stop in itertools.pairwise(borders):
        middle = (tau[start] + tau[stop]) / 2
        inside = [k for k in states if start <= k <= stop] or states
        state = min(inside, key=lambda k: (round(abs(tau[k] - middle) / tau[-1], 9), -k))
        size = _examples(steps[start]) or batch
        n = min(stop - start, math.ceil(examples / size))
        shares = [tau[start] + (tau[stop] - tau[start]) * (j + 0.5) / n for j in range(n)]
        sample = {min(max(_at(tau, share) - 1, start), stop - 1) for share in shares}
        if n == stop - start:
            sample = set(range(start, stop))
        segments.append(Segment(start, stop, state, tuple(sorted(sample))))
    return tuple(segments)


def minibatches_of(step: Step) -> int:
    """Minibatch gradients that the step takes; an assumed step takes one."""
    return len(step.batches) or 1


def with_batch(
    step: Step,
    stage: StageTrajectory,
    declared: Declared,
    datasets: Mapping[str, Dataset],
    *,
    seed: int | None = None,
    rows: int | None = None,
) -> Step:
    """An assumed step with a minibatch: rows of one of the stage's data sets, in turn.

    Args:
        step: the step.
        stage: the stage.
        declared: what is declared of it.
        datasets: by name.
        seed: of the draw of rows and random state, which are the same whenever it is asked for; None: the step's number.
        rows: how many of the minibatch's rows are taken; None: all.

    Raises:
        EstimationError: if the stage has no data set, or one is not at hand or of unknown length.
    """
    names = sorted(stage.datasets)
    if not names:
        raise EstimationError(
            f"stage '{stage.id}' names no data set to draw minibatches from",
            "record the run with every=N instead of every='boundaries'",
        )
    name = names[step.index % len(names)]
    draw = torch.Generator().manual_seed(step.index if seed is None else seed)
    order = torch.randperm(_rows(name, declared, datasets), generator=draw)
    ids = order[: declared.batch if rows is None else rows].tolist()
    rng = {"cpu": bytes(draw.get_state().numpy().tobytes())}
    return replace(step, batches=(Microbatch(name, tuple(ids), weight=1.0, rng=rng),))


def _learning_rate_time(steps: Sequence[Step]) -> list[float]:
    """tau_0 … tau_T; counts steps where no step has a learning rate."""
    rates = [max(float(h["lr"]) for h in step.groups) for step in steps]
    if not any(rates):
        rates = [1.0] * len(steps)
    return [0.0, *itertools.accumulate(rates)]


def _at(tau: Sequence[float], share: float) -> int:
    """The first k with tau_k >= share."""
    slack = 1e-12 * tau[-1]
    return next(k for k, t in enumerate(tau) if t >= share - slack)


def _examples(step: Step) -> int:
    return sum(batch.examples for batch in step.batches)


def _rows(name: str, declared: Declared, datasets: Mapping[str, Dataset]) -> int:
    if declared.rows is not None:
        return declared.rows
    if name not in datasets:
        raise EstimationError(
            f"the record's data set '{name}' is not among the artifacts",
            f"add artifacts.{name} to the spec",
        )
    try:
        return len(datasets[name].frame)
    except EvidenceError as error:
        raise EstimationError(
            f"the number of rows of data set '{name}' is not known: {error.message}",
            "record the run with every=N instead of every='boundaries'",
        ) from None
