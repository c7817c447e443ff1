"""precision: would the effects be others in float64?"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from auditspec.attempt import NotRun, attempt
from auditspec.behaviors.evaluate import Evaluator
from auditspec.checks.interface import Check
from auditspec.checks.subject import Estimated, Subject
from auditspec.engine.interface import Engine
from auditspec.how_much import most_examples, most_steps
from auditspec.messages import Message, message
from auditspec.record.state import State
from auditspec.results import CheckDetail, CheckResult
from auditspec.spec.checks import Precision as Options
from auditspec.spot_checks import leading

IN_FLOAT64 = message("estimate-in-float64")


@dataclass(frozen=True)
class TwoPrecisions:
    """One number in the estimate's precision and in float64, and what their difference is held against."""

    subject: str
    narrow: float
    wide: float
    scale: float
    """In the numbers' own unit; their relative change is |narrow - wide| / scale."""
    stage: str
    behavior: str | None = None
    """None for a number that every behaviour rests on."""
    examples: int | None = None
    """How many both were read on, where those are not all of the behaviour's."""

    @property
    def change(self) -> float:
        """Relative change; 0 where both are equal, whatever the scale."""
        off = abs(self.narrow - self.wide)
        return off / self.scale if off and self.scale else (np.inf if off else 0.0)


class Precision(Check):
    """Largest relative change from the estimate's precision to float64.

    Two things are repeated in float64 on a subsample: the reading of every effect, and the first
    training steps of the leading stage's counterfactual, after which the behaviours are read. What
    changes is held against the behaviour's largest effect, or the tolerance if that is larger: weights
    that differ and give the same outputs (a bias before BatchNorm) decide nothing, and neither does a
    stage that hardly moves anything. One example of a rate, and the rounding of the reading itself, are
    no change.

    Where the training code cannot run in float64, the same is repeated in the estimate's own precision
    from weights that are all moved by one unit of rounding.
    """

    id = "precision"
    title = "Rounding does not decide the effects"
    statistic_name = "largest relative change from the estimate's precision to float64"
    source = "the same computation in two precisions (docs/checks.md)"
    bars = "behavior"
    remedy = message("settle-float64")
    section = Options
    looks_at = (Estimated,)

    def __init__(
        self,
        pairs: Sequence[TwoPrecisions],
        examples: int,
        gradients: float,
        options: Options,
        without_float64: str = "",
        nothing: Message = IN_FLOAT64,
    ) -> None:
        self.pairs = pairs
        self.examples = examples
        """Most examples of a behaviour that were read."""
        self.gradients = gradients
        self.options = options
        self.without_float64 = without_float64
        """Why the code could not run in float64, where the weights were moved in its place."""
        self.nothing = nothing
        """Why nothing is compared, where nothing is."""

    @classmethod
    def of(cls, subject: Subject) -> Precision | CheckResult:
        """On every effect, and on the first steps without the stage that leads, in both precisions."""
        options = subject.spec.checks.of(cls.id, Options)
        reader = subject[Estimated].reader
        if not reader.slices:
            return cls([], 0, 0.0, options, nothing=message("no-behavior-read"))
        rerun = reader.rerun
        if options.examples == 0:
            return cls.skipped(message("no-float64-examples"))
        if rerun.dtype == torch.float64:
            return cls([], 0, 0.0, options)
        with subject.progress.phase("checking the precision"):
            pairs = attempt(lambda: _repeated(subject, torch.float64, lambda state: state))
            if not isinstance(pairs, NotRun):
                return cls(*pairs, options)
            return cls(*_repeated(subject, rerun.dtype, _neighbour), options, pairs.reason)

    def run(self) -> CheckResult:
        """Fail where float64 gives another effect; nothing to compare passes."""
        threshold = self.options.threshold
        other = message("in-float64")
        if self.without_float64:
            other = message("with-weights-moved")
        details = [
            CheckDetail(
                subject=pair.subject,
                stage=pair.stage,
                behavior=pair.behavior,
                outcome="pass" if pair.change <= threshold else "fail",
                statistic=pair.change if np.isfinite(pair.change) else None,
                examples=pair.examples,
                notes=()
                if pair.change <= threshold
                else (message("two-precisions", narrow=pair.narrow, other=other, wide=pair.wide),),
            )
            for pair in self.pairs
        ]
        if not self.pairs:
            return self.result("pass", self.nothing, threshold=threshold)
        worst = max(self.pairs, key=lambda pair: pair.change)
        failed = [d.subject for d in details if d.outcome == "fail"]
        reasons = [message("rounding-changes", other=other, numbers=failed)]
        if not failed:
            share = float(worst.change)
            reasons = [
                message("rounding-harmless", other=other, share=share, examples=self.examples)
            ]
        if self.without_float64:
            reasons.append(message("no-float64", error=self.without_float64))
        return self.result(
            "fail" if failed else "pass",
            reasons,
            statistic=worst.change if np.isfinite(worst.change) else None,
            threshold=threshold,
            gradients=self.gradients,
            details=details,
        )


def _repeated(
    subject: Subject, dtype: torch.dtype | None, other: Callable[[State], State]
) -> tuple[list[TwoPrecisions], int, float]:
    """Every number as it was computed and again, the most examples that were read, and the cost in gradients."""
    estimated, options = subject[Estimated], subject.spec.checks.of(Precision.id, Options)
    rerun = estimated.reader.rerun
    beside = type(rerun)(
        rerun.trajectory, rerun.functions, rerun.datasets, device=rerun.device, dtype=dtype
    )
    before = rerun.gradients
    reader, rows = estimated.reader.thinned(
        beside, most_examples(options.examples, rerun.trajectory)
    )
    readings = _readings_twice(subject, reader, rows, other, options.threshold)
    steps = most_steps(options.steps, rerun.trajectory)
    pairs = [*readings, *_first_steps(subject, reader, readings, other, steps)]
    most = max(len(examples) for examples in rows.values())
    return pairs, most, float(beside.gradients + rerun.gradients - before)


def _readings_twice(
    subject: Subject,
    reader: Evaluator,
    rows: Mapping[str, NDArray[np.int64]],
    other: Callable[[State], State],
    threshold: float,
) -> list[TwoPrecisions]:
    """Every effect as it was read, and by another reader of the same examples."""
    estimated = subject[Estimated]
    fewer = estimated.reader.fewer(rows)
    base = reader.plug_in(other(estimated.run.final))
    again = {
        stage: {
            behavior: reader.slices[behavior].statistic.effect(
                base[behavior], base[behavior] - without
            )
            for behavior, without in reader.plug_in(other(effects.counterfactual.state)).items()
        }
        for stage, effects in estimated.effects.items()
    }
    unit = torch.finfo(estimated.reader.rerun.dtype or torch.float32).eps
    pairs = []
    for concerned in subject.spec.behaviors:
        behavior, tolerance = concerned.id, concerned.concern.tolerance
        part, examples = reader.slices[behavior], rows[behavior]
        # what no change says anything below: one example of a rate, the rounding of a score
        grain = (
            part.statistic.largest_step(base[behavior])
            if part.metric.binary
            else unit * float(np.abs(base[behavior]).mean())
        )
        largest = max(abs(twice[behavior]) for twice in again.values())
        scale = max(largest, tolerance, grain / threshold)
        pairs += [
            TwoPrecisions(
                subject=f"reading of {stage} / {behavior}",
                narrow=part.statistic.effect(
                    estimated.base[behavior][examples], effects.plug_in[behavior][examples]
                ),
                wide=again[stage][behavior],
                scale=scale,
                stage=stage,
                behavior=behavior,
                examples=fewer.get(behavior),
            )
            for stage, effects in estimated.effects.items()
        ]
    return pairs


def _first_steps(
    subject: Subject,
    reader: Evaluator,
    readings: Sequence[TwoPrecisions],
    other: Callable[[State], State],
    most: int,
) -> Iterator[TwoPrecisions]:
    """What the first steps without the leading stage make of the behaviours, in both precisions.

    Where the model of those steps cannot be read, having another head, their last loss is compared. The
    last stage is passed over, after which no step is made. Under autocast, whose rounding is part of
    the training that is repeated, none is made in float64.
    """
    estimated = subject[Estimated]
    rerun = estimated.reader.rerun
    last = rerun.trajectory.stages[-1].id
    stages = [s for s in leading(subject.spec, estimated.effects, estimated=False) if s != last]
    if not stages:
        return
    stage = stages[0]
    index = rerun.trajectory.index(stage)
    after = rerun.trajectory.stages[index + 1]
    steps = min(most, len(after.steps))
    if not steps or after.header.autocast is not None:
        return
    start = estimated.run.starts.get(stage, rerun.trajectory.stages[index].first)
    begin = rerun.carry_over(index + 1, start)

    def train(engine: Engine, begin: State) -> tuple[State, list[float]]:
        losses: list[float] = []
        end = engine.run(
            after, begin, 0, steps, visit=lambda step_gradient: losses.append(step_gradient.loss)
        )
        return end, losses

    (narrow, lost), (wide, lost_wide) = train(rerun, begin), train(reader.rerun, other(begin))
    read = attempt(lambda: (reader.plug_in(narrow, after), reader.plug_in(wide, after)))
    if isinstance(read, NotRun):
        yield TwoPrecisions(
            subject=f"loss after {steps} steps of {after.id} without {stage}",
            narrow=lost[-1],
            wide=lost_wide[-1],
            scale=max(map(abs, lost_wide)),
            stage=stage,
        )
        return
    for pair in readings:
        if pair.stage == stage and pair.behavior is not None:
            level = reader.slices[pair.behavior].statistic.level
            yield replace(
                pair,
                subject=f"{pair.behavior} after {steps} steps of {after.id} without {stage}",
                narrow=level(read[0][pair.behavior]),
                wide=level(read[1][pair.behavior]),
            )


def _neighbour(state: State) -> State:
    """Every floating parameter moved by one unit of its rounding, up or down at random."""
    draw = torch.Generator().manual_seed(0)

    def beside(p: Tensor) -> Tensor:
        ahead = torch.where(torch.rand(p.shape, generator=draw) < 0.5, math.inf, -math.inf)
        return torch.nextafter(p, ahead.to(p)) if p.is_floating_point() else p

    return replace(state, parameters={n: beside(p) for n, p in state.parameters.items()})
