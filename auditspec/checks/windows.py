"""The windows of a record that were re-run, by whoever came along, and what each came to."""

from __future__ import annotations

import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from auditspec.engine.interface import Engine, StepGradient
from auditspec.errors import EstimationError, EvidenceError
from auditspec.messages import Message, message
from auditspec.progress import Advance
from auditspec.record.deviation import (
    LOSSES,
    MISSED_SHARE,
    Deviation,
    deviation_of,
    first_other_loss,
)
from auditspec.record.state import State
from auditspec.record.trajectory import StageTrajectory, Trajectory
from auditspec.team import Job, Team

KIND = "windows"
"""Of the jobs that re-run some."""
Place = tuple[str, int, int]
"""A window: its stage's id, its first step, and its end."""


@dataclass(frozen=True)
class Window:
    """A re-run window: where it landed, or why it could not be re-run."""

    stage: str
    subject: str
    arithmetic: Any
    """What its steps compute; windows of one arithmetic round alike."""
    landing: Deviation | None
    problem: Message | None = None

    @property
    def lands(self) -> bool:
        """Whether it ends on the recorded state itself."""
        return self.landing is not None and self.landing.bitwise


@dataclass
class Windows:
    """Windows that were re-run; those of some stages are re-run by the estimates on their way."""

    beside: frozenset[str] = frozenset()
    """Ids of the stages that are left to the estimates until they are `through`."""
    paid: int | Literal["all"] = "all"
    """How many the budget pays for."""
    through: bool = False
    """Whether the estimates have gone their way."""
    fresh: bool = False
    """Whether windows were passed that no check has looked at."""
    found: dict[Place, Window] = field(default_factory=dict)
    drawn: tuple[Place, ...] | None = None
    """Those that are re-run in any case; None before they are drawn."""
    gradients: int = 0
    """What re-running them took; what estimates pay for themselves is left out."""
    team: Team | None = None
    """The ranks among which they are shared out."""

    def draw(self, record: Trajectory, asked: int | Literal["auto", "all"]) -> tuple[Place, ...]:
        """Those that are re-run in any case: as many as asked for, or as the budget pays for.

        They are drawn when the audit runs, so that no trainer can know which windows are safe.
        """
        if self.drawn is None:
            every = [(stage.id, start, stop) for stage, start, stop in record.windows()]
            asked = self.paid if asked == "auto" else asked
            if asked == "all" or asked >= len(every):
                self.drawn = tuple(every)
            else:
                places = random.SystemRandom().sample(range(len(every)), asked)
                self.drawn = tuple(every[place] for place in sorted(places))
        return self.drawn

    def left(self) -> list[Place]:
        """Those of the drawn that are still to be re-run, but what is left to the estimates."""
        waiting = frozenset() if self.through else self.beside
        return [p for p in self.drawn or () if p not in self.found and p[0] not in waiting]

    def finish(self) -> bool:
        """Leave nothing more to the estimates; whether there are windows that no check has looked at."""
        self.through = True
        return self.fresh or bool(self.left())

    def rerun_all(self, engine: Engine, places: Sequence[Place], advance: Advance) -> None:
        """Re-run some windows, shared out among the ranks where there are several."""
        ranks = 1 if self.team is None else self.team.size
        jobs = [{"kind": KIND, "places": part} for n in range(ranks) if (part := places[n::ranks])]
        if self.team is None or len(jobs) < 2:
            self._rerun(engine, places, advance)
            return

        def make(job: Job) -> Mapping[str, Any]:
            self._rerun(engine, job["places"], advance)
            return {"windows": []}

        stages = {stage.id: stage for stage in engine.trajectory.stages}
        for made in self.team.share(jobs, make):
            for told in made["windows"]:
                stage, start, stop = told["place"]
                window = _read(told, stages[stage])
                self.found[stage, start, stop] = window
                self.gradients += _gradients(stages[stage], start, stop)

    def make_job(self, engine: Engine, job: Job) -> Mapping[str, Any]:
        """Re-run the windows of a job for another rank; what became of them."""
        places = [tuple(place) for place in job["places"]]
        self._rerun(engine, places, lambda _: None)
        return {"windows": [_told(place, self.found[place]) for place in places]}

    def _rerun(self, engine: Engine, places: Sequence[Place], advance: Advance) -> None:
        stages = {stage.id: stage for stage in engine.trajectory.stages}
        for stage, start, stop in places:
            self.rerun(engine, stages[stage], start, stop)
            advance(stop - start)

    def rerun(self, engine: Engine, stage: StageTrajectory, start: int, stop: int) -> None:
        """Re-run a window."""
        losses: dict[int, float] = {}

        def note(step_gradient: StepGradient) -> None:
            losses[step_gradient.step.index] = step_gradient.loss

        try:
            reached = engine.run(stage, stage.state(start), start, stop, visit=note)
        except (EstimationError, EvidenceError) as error:
            self._note(stage, start, stop, None, message("failed", error=error.message))
        else:
            self.landed(stage, start, stop, reached, losses)
        self.gradients += _gradients(stage, start, stop)

    def passed(
        self,
        stage: StageTrajectory,
        start: int,
        stop: int,
        reached: State,
        losses: Mapping[int, float],
    ) -> None:
        """Take note of a window that an estimate passed on its way; its arguments are those of `landed`."""
        if (stage.id, start, stop) in self.found:
            return
        if stage.id in self.beside:
            self.gradients += _gradients(stage, start, stop)
        self.fresh = True
        self.landed(stage, start, stop, reached, losses)

    def landed(
        self,
        stage: StageTrajectory,
        start: int,
        stop: int,
        reached: State,
        losses: Mapping[int, float],
    ) -> None:
        """Take note of a window that was re-run from its first recorded state.

        Args:
            stage: the window's.
            start: its first step.
            stop: its end.
            reached: where the re-run ended, moments included, on the CPU.
            losses: of its steps, by their numbers.
        """
        try:
            landing = deviation_of(stage.state(start), reached, stage.state(stop), stop - start)
        except EvidenceError as error:
            self._note(stage, start, stop, None, message("failed", error=error.message))
            return
        if landing.missed > MISSED_SHARE:
            problem: Message | None = message(
                "movement-missed", share=float(min(landing.missed, 1))
            )
        else:
            accepted = LOSSES if landing.conclusive else MISSED_SHARE
            problem = _other_loss(stage, losses, accepted)
        self._note(stage, start, stop, landing, problem)

    def _note(
        self,
        stage: StageTrajectory,
        start: int,
        stop: int,
        landing: Deviation | None,
        problem: Message | None,
    ) -> None:
        self.found[stage.id, start, stop] = Window(
            stage.id, f"{stage.id} {start}-{stop}", _arithmetic(stage), landing, problem
        )

    def in_order(self, record: Trajectory) -> Sequence[Window]:
        """Those that were re-run, in the order of the record."""
        self.fresh = False
        every: Iterable[Place] = ((s.id, start, stop) for s, start, stop in record.windows())
        return [self.found[place] for place in every if place in self.found]


def _told(place: Place, window: Window) -> dict[str, Any]:
    """A window as JSON holds it."""
    landing, problem = window.landing, window.problem
    return {
        "place": place,
        "landing": None if landing is None else asdict(landing),
        "problem": None if problem is None else problem.model_dump(mode="json"),
    }


def _read(told: Mapping[str, Any], stage: StageTrajectory) -> Window:
    """What `_told` gave."""
    (_, start, stop), landing, problem = told["place"], told["landing"], told["problem"]
    return Window(
        stage.id,
        f"{stage.id} {start}-{stop}",
        _arithmetic(stage),
        None if landing is None else Deviation(**landing),
        None if problem is None else Message.model_validate(problem),
    )


def _gradients(stage: StageTrajectory, start: int, stop: int) -> int:
    return sum(len(step.batches) for step in stage.steps[start:stop])


def _arithmetic(stage: StageTrajectory) -> tuple[object, ...]:
    """What decides how a stage's steps round: its model, objective, and optimizer's class."""
    header = stage.header
    return (
        stage.parameters,
        header.frozen,
        header.objective.name,
        header.optimizer,
        header.autocast,
        header.clip_norm is not None,
    )


def _other_loss(
    stage: StageTrajectory, losses: Mapping[int, float], accepted: float
) -> Message | None:
    """What to say of the first step whose recorded loss is not that of the re-run, if any."""
    k = first_other_loss(stage, losses, accepted)
    if k is None:
        return None
    return message("other-loss", step=k, recorded=float(stage.steps[k].loss or 0), rerun=losses[k])
