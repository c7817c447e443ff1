"""memorization: what a segment is said to have been trained on is fitted better by it than rows that nobody drew yet."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from auditspec.checks.interface import Check
from auditspec.checks.subject import Rerunnable, Subject
from auditspec.engine.interface import Engine
from auditspec.errors import EvidenceError
from auditspec.gather import Opened
from auditspec.messages import message
from auditspec.record.state import State
from auditspec.record.trajectory import StageTrajectory
from auditspec.results import CheckDetail, CheckResult, Outcome
from auditspec.spec.checks import Memorization as Options

SEGMENTS = 4
"""Parts of a stage that are looked at, from one recorded state to another."""
FEWEST = 6
"""Rows that either side of a segment must have."""
PERMUTATIONS = 9999
FITTED, CONTRARY = 0.05, 0.001
"""Largest p by which rows are fitted better, or, divided by the number of stages, worse."""
DETECTED = 1.645 + 0.842
"""Standard errors between no difference and one that a test at 0.05 finds four times of five."""


@dataclass(frozen=True)
class Fit:
    """By how much each row's loss fell from a segment's beginning to its end."""

    trained: np.ndarray
    """Of rows that its steps hold."""
    held_back: np.ndarray
    """Of rows of the same file that no step up to its end holds."""

    @property
    def advantage(self) -> float:
        """How much more it fell for rows that were trained on, on average."""
        return float(self.trained.mean() - self.held_back.mean())

    @property
    def error(self) -> float:
        """Standard error of that (Welch)."""
        sides = (self.trained, self.held_back)
        return math.sqrt(sum(side.var(ddof=1) / len(side) for side in sides))


@dataclass(frozen=True)
class StageFit:
    """The segments of a stage that were looked at; none where it has no rows that were held back."""

    stage: str
    segments: Sequence[Fit] = ()

    @property
    def advantage(self) -> float:
        """Mean over the segments."""
        return float(np.mean([fit.advantage for fit in self.segments]))

    @property
    def detectable(self) -> float:
        """The advantage that this many rows, scattered like these, would show four times of five."""
        squares = sum(fit.error**2 for fit in self.segments)
        return DETECTED * math.sqrt(squares) / len(self.segments)

    def p(self, rng: np.random.Generator) -> tuple[float, float]:
        """One-sided p that rows are fitted better, and worse, than held-back ones (Phipson & Smyth 2010).

        Labels are exchanged within segments.
        """
        total = np.zeros(PERMUTATIONS)
        for fit in self.segments:
            both, first = np.concatenate([fit.trained, fit.held_back]), len(fit.trained)
            mixed = rng.permuted(np.tile(both, (PERMUTATIONS, 1)), axis=1)
            total += mixed[:, :first].mean(axis=1) - mixed[:, first:].mean(axis=1)
        seen = self.advantage * len(self.segments)
        better, worse = (total >= seen).sum(), (total <= seen).sum()
        return (1 + better) / (1 + PERMUTATIONS), (1 + worse) / (1 + PERMUTATIONS)


class MemorizationCheck(Check):
    """Counts stages by which held-back rows are fitted better than those said to be trained on (threshold 0).

    For the quarters of a stage, and a few rows of each side, the loss of single rows in eval mode at both
    recorded states around the segment.
    """

    id = "memorization"
    title = "Rows said to be trained on are fitted better than held-back ones"
    statistic_name = "stages that fit held-back rows better"
    unit = "stages"
    source = (
        "Choi, Shavit & Duvenaud 2023 (arXiv 2307.00682); permutation test, Phipson & Smyth 2010"
    )
    section = Options
    looks_at = (Opened, Rerunnable)

    def __init__(self, stages: Sequence[StageFit], seed: int) -> None:
        self.stages = stages
        self.seed = seed

    @classmethod
    def of(cls, subject: Subject) -> MemorizationCheck | CheckResult:
        """On the recorded states, and rows of the data sets."""
        rows = subject.spec.checks.of(cls.id, Options).rows
        if rows == 0:
            return cls.skipped(message("no-rows-asked-for"))
        rng = np.random.default_rng(subject.spec.checks.seed)
        stages = [*_fits(subject[Rerunnable].rerun, rows, rng)]
        if not any(stage.segments for stage in stages):
            return cls.skipped(message("no-rows-held-back"))
        return cls(stages, subject.spec.checks.seed)

    def run(self) -> CheckResult:
        """Fails where the contrary is seen; inconclusive where nothing is, or no row was held back."""
        rng = np.random.default_rng(self.seed)
        details = [self._line(stage, rng) for stage in self.stages]
        outcomes = [detail.outcome for detail in details]
        outcome: Outcome = "pass"
        if "fail" in outcomes:
            outcome = "fail"
        elif "inconclusive" in outcomes:
            outcome = "inconclusive"
        reasons = [d.line for d in details if d.outcome == outcome]
        return self.result(
            outcome, reasons, statistic=outcomes.count("fail"), threshold=0, details=details
        )

    def _line(self, fit: StageFit, rng: np.random.Generator) -> CheckDetail:
        if not fit.segments:
            return CheckDetail(
                subject=fit.stage,
                stage=fit.stage,
                outcome="inconclusive",
                notes=(message("no-rows-held-back"),),
            )
        better, worse = fit.p(rng)
        outcome: Outcome = "inconclusive"
        if better <= FITTED:
            outcome = "pass"
        elif worse <= CONTRARY / len(self.stages):
            outcome = "fail"
        note = message(
            "rows-fitted",
            segments=len(fit.segments),
            trained=sum(len(s.trained) for s in fit.segments),
            held=sum(len(s.held_back) for s in fit.segments),
            advantage=fit.advantage,
            p=worse if outcome == "fail" else better,
            detectable=fit.detectable,
        )
        return CheckDetail(
            subject=fit.stage,
            stage=fit.stage,
            outcome=outcome,
            statistic=fit.advantage,
            notes=(note,),
        )


def _fits(rerun: Engine, rows: int, rng: np.random.Generator) -> Iterator[StageFit]:
    """The fit of every stage; rows that an earlier stage drew are not held back."""
    drawn: dict[str, set[int]] = {}
    for stage in rerun.trajectory.stages:
        yield StageFit(stage.id, [*_segments(rerun, stage, drawn, rows, rng)])
        for name, ids in _rows(stage, 0, len(stage.steps)).items():
            drawn.setdefault(name, set()).update(ids)


def _segments(
    rerun: Engine,
    stage: StageTrajectory,
    drawn: dict[str, set[int]],
    rows: int,
    rng: np.random.Generator,
) -> Iterator[Fit]:
    kept = stage.state_steps if stage.steps else (0,)
    places = sorted({round(k) for k in np.linspace(0, len(kept) - 1, SEGMENTS + 1)})
    for start, stop in itertools.pairwise(kept[k] for k in places):
        for name, trained in _rows(stage, start, stop).items():
            earlier = _rows(stage, 0, stop)[name] | drawn.get(name, set())
            held_back = set(range(_length(rerun, name))) - earlier
            if min(len(trained), len(held_back)) < FEWEST:
                continue
            sides = [rng.permutation(sorted(side))[:rows].tolist() for side in (trained, held_back)]
            ids, count = [*sides[0], *sides[1]], len(sides[0])
            fell = _losses(rerun, stage, stage.state(start), name, ids)
            fell -= _losses(rerun, stage, stage.state(stop), name, ids)
            if any(group.get("maximize") for group in stage.steps[start].groups):
                fell = -fell
            yield Fit(fell[:count], fell[count:])


def _rows(stage: StageTrajectory, start: int, stop: int) -> dict[str, set[int]]:
    """Rows of the batches of some steps, by data set."""
    rows: dict[str, set[int]] = {}
    for step in stage.steps[start:stop]:
        for batch in step.batches:
            if batch.dataset is not None and batch.weight:
                rows.setdefault(batch.dataset, set()).update(batch.ids)
    return rows


def _length(rerun: Engine, name: str) -> int:
    """Rows of a data set; 0 where it is no table."""
    try:
        return len(rerun.datasets[name]) if name in rerun.datasets else 0
    except EvidenceError:
        return 0


def _losses(
    rerun: Engine, stage: StageTrajectory, state: State, name: str, ids: Sequence[int]
) -> np.ndarray:
    """The loss of single rows at a state, [rows]."""
    objective, dataset = rerun.functions.objectives[stage.id], rerun.datasets[name]
    rerun.enter(stage)
    with rerun.evaluating(), torch.no_grad(), rerun.casting(stage):
        batches = [rerun.load(dataset, [row]) for row in ids]
        (losses,) = rerun.outputs_at([state], objective, batches)
        return np.array([*map(float, losses)])
