"""What an estimator is: one way to counterfactuals, and everything that it may use for them.

An estimator is one frozen class of its own. Its fields are its options: two instances with equal fields
give the same numbers. It says what it needs of a record, what it would cost on it, and makes the
counterfactuals of any arms that it can make. Who plans, keeps, reads, and reports estimates goes by the class
variables and methods here, and never by a name.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

from auditspec.engine.interface import Engine
from auditspec.engine.references import NO_REFERENCES, References
from auditspec.errors import UnsupportedError
from auditspec.estimator.cache import NO_JOURNAL, Journal, Store
from auditspec.estimator.counterfactual import Counterfactuals, Known
from auditspec.estimator.interventions import Arm
from auditspec.estimator.krylov.segments import Declared
from auditspec.estimator.recorded_run import RecordedRun
from auditspec.estimator.requirements import require_steps
from auditspec.messages import Message, message
from auditspec.progress import SILENT, Progress
from auditspec.record.state import State
from auditspec.record.trajectory import StageTrajectory, Trajectory
from auditspec.team import Team


@dataclass(frozen=True)
class Baseline:
    """The recorded run as the estimate has it: both worlds of an effect must round alike."""

    final: State
    """theta_K"""
    starts: Mapping[str, State] = field(default_factory=dict)
    """theta_a of each stage; a stage that is missing starts from its recorded state."""
    path: Mapping[str, State] = field(default_factory=dict)
    """theta_b of each stage; a stage that is missing ends in its recorded state."""


@dataclass(frozen=True, kw_only=True)
class Terms:
    """What an estimate may go by besides the record, as far as its cost depends on it."""

    budget: int | None = None
    """Minibatch gradients of all arms together; None: no limit."""
    recorded: RecordedRun = field(default_factory=RecordedRun)
    """Gives the gradients of the recorded run, and says what each stage's cost."""
    declared: Mapping[str, Declared] = field(default_factory=dict)
    """What is declared of stages whose steps were not recorded, by id."""
    known: Known = field(default_factory=dict)
    """Arms that were made before; what others share with them need not be made again."""


@dataclass(frozen=True, kw_only=True)
class Context(Terms):
    """Everything that an estimate is made of."""

    engine: Engine
    """The record, on the device and in the precision of the estimate."""
    run: Baseline
    """The recorded run as the engine reaches it."""
    references: References = NO_REFERENCES
    """What takes the place of what arms replace."""
    progress: Progress = SILENT
    """Told of the long phases, in minibatch gradients or steps."""
    journal: Journal = NO_JOURNAL
    """Where an estimate notes how far it is; what it holds already is gone on from."""
    store: Store | None = None
    """Finished estimates; None: none is kept."""
    team: Team | None = None
    """The ranks among which arms are shared out; None: all are made here."""
    only: frozenset[Arm] | None = None
    """Of the arms that share a budget, those that are made here; None: all."""

    @property
    def record(self) -> Trajectory:
        """The record that the engine re-runs."""
        return self.engine.trajectory


@dataclass(frozen=True)
class Requirement:
    """Something that an estimator needs of the evidence."""

    what: str
    """In words."""
    check: Callable[[], object] = lambda: None
    """Raises UnsupportedError, EstimationError, or BudgetError where it is not there."""
    note: str = ""
    """Which part of the evidence serves it."""


@dataclass(frozen=True)
class Forecast:
    """What some arms would cost, from the record alone; activations, which depend on code, left out."""

    shares: Mapping[Arm, float]
    """Each arm's minibatch gradients; what arms share is divided among them."""
    gradients: float
    """Of all of them together."""
    memory: float
    """Bytes of the parameters and moments that are held at once, those of a twin that goes along and of what is written among them."""
    disk: int
    """Most bytes that store and journal take at once, those of the twin among them; a note is written beside the one before."""
    light: float = 0.0
    """Steps that are made on few rows or without a gradient, each as far as `gradients` does not count it."""


class Estimator(ABC):
    """One way from a record to counterfactuals."""

    name: ClassVar[str]
    """How specs and results call it: lower case, words joined by '-'."""
    title: ClassVar[str]
    """How readers are told its name."""
    words: ClassVar[Message]
    """What it does, to a reader of the report."""
    exact: ClassVar[bool] = False
    """Whether it trains every arm as it would have been trained, up to rounding."""
    budgeted: ClassVar[bool] = False
    """Whether it makes of any budget what that allows: more gradients, a better estimate."""
    needs_steps: ClassVar[bool] = True
    """Whether it needs the recorded steps, and not only the states where stages begin and end."""
    sentences: ClassVar[Mapping[str, str]] = {}
    """Templates (`report.words.template`) by code of the messages that a plug-in makes, whose codes begin with its name
    and a colon; those of built-in estimators stand in the catalogue."""
    several: ClassVar[bool] = False
    """Whether its arms may leave out several stages at once."""
    replaces: ClassVar[bool] = False
    """Whether its arms may replace a stage's data or the initial weights."""
    independent: ClassVar[bool] = False
    """Whether an arm's estimate is the same, whichever arms are made along with it."""
    with_twin: ClassVar[float] = 2.0
    """What an estimate and its twin cost, in estimates."""
    uses_recorded_gradients: ClassVar[bool] = False
    """Whether it asks `Terms.recorded` for gradients."""
    divisible: ClassVar[bool] = False
    """Whether it can make some of the arms that share a budget (`Context.only`), and gives the same of them."""

    def requirements(
        self, record: Trajectory, arms: Sequence[Arm], terms: Terms
    ) -> tuple[Requirement, ...]:
        """What it needs of the evidence, in the order in which it is checked."""
        later = record.stages[1:]
        if not self.needs_steps:
            return (data_of(record),)
        steps = Requirement("the steps of every later stage", lambda: require_steps(later))
        return steps, data_of(record)

    def require(self, record: Trajectory, arms: Sequence[Arm], terms: Terms) -> None:
        """Refuse a record that it does not cover.

        Raises:
            BudgetError: if the budget is too small.
            UnsupportedError: naming the feature that it does not cover.
            EstimationError: naming what the record lacks.
        """
        for requirement in self.requirements(record, arms, terms):
            requirement.check()

    def require_arms(self, arms: Sequence[Arm]) -> None:
        """Refuse arms that it cannot make.

        Raises:
            UnsupportedError: naming the first of them.
        """
        for arm in arms:
            if arm.replaced and not self.replaces:
                what = "follows no stage on other data, and no other initial weights"
            elif len(arm.omitted) > 1 and not self.several:
                what = "leaves out one stage at a time"
            else:
                continue
            raise UnsupportedError(
                f"{self.name} {what}; the run {arm.words} was asked for",
                "use estimator.method: replay",
            )

    @abstractmethod
    def forecast(self, record: Trajectory, arms: Sequence[Arm], terms: Terms) -> Forecast:
        """What the arms would cost; nothing is run.

        Raises:
            BudgetError: if the budget is too small.
            EstimationError: if the record lacks what the cost follows from.
        """

    def least(self, record: Trajectory, arms: Sequence[Arm], terms: Terms) -> int:
        """The smallest budget with which the arms can be made, in minibatch gradients.

        Raises:
            EstimationError: if the record lacks what the cost follows from.
        """
        return math.ceil(self.forecast(record, arms, terms).gradients)

    @abstractmethod
    def estimate(self, context: Context, arms: Sequence[Arm]) -> Counterfactuals:
        """The arms' counterfactuals, in their order.

        It opens a phase of `context.progress`, notes in `context.journal`, and goes on from what that
        holds; the same numbers come out, bit by bit, as if it had not been interrupted. Finished arms are
        kept by the caller.

        Raises:
            BudgetError: if the budget is too small.
            UnsupportedError: naming the feature of the run that it does not cover.
            EstimationError: if the record lacks steps, or its code fails.
            EvidenceError: if the evidence turns out to be damaged.
        """

    def together(
        self, twin: Estimator, context: Context, arms: Sequence[Arm]
    ) -> tuple[Counterfactuals, Counterfactuals] | None:
        """What `estimate` and the twin's give, in one pass along the record; None where each goes its own way.

        Of the twin nothing where every estimate turns out exact.
        """
        return None

    def light_step(
        self, engine: Engine, stage: StageTrajectory
    ) -> tuple[Callable[[], object], float] | None:
        """Something that makes one of `Forecast.light`, to be timed, and what of it counts as gradients; None where it makes none."""
        return None

    def depends_on(self, context: Context, arms: Sequence[Arm]) -> dict[str, object]:
        """What the arms' estimates depend on besides the record, its code and data, and the options.

        Values as JSON can hold them. Equal values, equal numbers: from then on a kept estimate serves.
        """
        return {}

    def instead_of_replay(self, record: Trajectory, gradients: float) -> Message:
        """Why it is chosen where the budget does not pay for exact replay.

        Args:
            record: the trainer's.
            gradients: what exact replay of every stage needs.
        """
        return message("replay-over-budget", gradients=gradients)

    def twin(self) -> Estimator | None:
        """The same estimate by other choices, whose distance tells the error; None where it has none."""
        return None


def data_of(record: Trajectory) -> Requirement:
    """The training data, by name; they are opened and checked before any estimate."""
    names = sorted({name for stage in record.stages for name in stage.datasets})
    return Requirement("the data sets that its ids point into", note=", ".join(names))
