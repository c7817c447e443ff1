"""What estimators, checks, and evaluators ask of whoever makes recorded training steps again.

An engine answers a few primitive questions, which are abstract here: enter a stage, build its
optimizer, give the gradient of a step or of one microbatch, make the update, multiply by the
Hessian. Everything else is composed of them, here and once, so that an engine that hands its
questions on to another sees every one of them.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from auditspec.artifacts.datasets import Dataset
from auditspec.artifacts.remote import RemoteFunction
from auditspec.engine.autocast import casting
from auditspec.engine.changes import Changes
from auditspec.engine.loading import Functions, load_microbatch, load_rows
from auditspec.engine.widening import Widening
from auditspec.errors import EstimationError
from auditspec.record.extension import carried
from auditspec.record.format import Autocast
from auditspec.record.generators import go_to, undisturbed
from auditspec.record.state import (
    State,
    capture,
    device_of,
    restore,
)
from auditspec.record.trajectory import Microbatch, StageTrajectory, Step, Trajectory

Objective = Callable[[nn.Module, Any], Tensor]
"""(model, batch) -> scalar loss."""


@dataclass
class StepGradient:
    """A step of a re-run at the point where its gradient is known and its update is not yet made."""

    step: Step
    stage: StageTrajectory
    optimizer: Optimizer
    parameters: dict[str, nn.Parameter]
    """theta_k"""
    gradients: dict[str, Tensor | None]
    """g_k before clipping, as the optimizer has it: None for a parameter that its step skips, zeros
    for one that the loss does not reach but the step does. With `create_graph` they can be
    differentiated once more."""
    loss: float
    frozen_gradients: dict[str, Tensor | None] = field(default_factory=dict)
    """Where asked for: d loss / d theta of the parameters that are frozen here and trained in another
    stage, or that this step skips though its loss reaches them. The optimizer does not see them; a
    derivative along them needs them."""

    def optimizer_state(self, name: str) -> dict[str, Any]:
        """Optimizer state of one parameter, s_k."""
        state: dict[str, Any] = self.optimizer.state.get(self.parameters[name], {})
        return state


class Engine(ABC):
    """Makes the steps of a record again, and reads its models.

    Args:
        trajectory: the record.
        functions: the training code.
        datasets: the data sets that the record's ids point into, by name.
        device: where to compute.
        dtype: precision of parameters, moments, and floating inputs; None keeps the record's. In
            another precision than the record's, autocast is left out (the run is repeated without
            its rounding), and the training code runs under `Widening`.
    """

    name: ClassVar[str]

    def __init__(
        self,
        trajectory: Trajectory,
        functions: Functions,
        datasets: Mapping[str, Dataset],
        *,
        device: torch.device | str = "cpu",
        dtype: torch.dtype | None = None,
    ) -> None:
        self.trajectory = trajectory
        self.functions = functions
        self.datasets = datasets
        self.dtype = dtype
        self.changes = Changes(trajectory, functions, datasets, torch.device(device))
        """Changes of the model between the stages."""
        self._gradients = 0

    # --- the primitive questions ------------------------------------------------------------------

    @property
    @abstractmethod
    def model(self) -> nn.Module:
        """The model of the stage entered last; before any, as the factory builds it.

        Its parameters are working memory: they hold whatever was put there last.
        """

    @abstractmethod
    def enter(self, stage: StageTrajectory, *, differentiate: bool = False) -> None:
        """Make `model` that of a stage: its architecture, and its parameters frozen as they were.

        `run`, `walk`, `optimizer`, and `gradient` enter their stage themselves. A model is built
        when it is first entered; its weights are whatever they were, to be restored.

        Args:
            stage: the stage to enter.
            differentiate: let frozen parameters that a stage so far trained take gradients too, so
                that a derivative along their displacement can be computed.

        Raises:
            EstimationError: if the training code does not build the recorded model.
        """

    @abstractmethod
    def optimizer(self, stage: StageTrajectory) -> Optimizer:
        """A fresh optimizer of the stage's class over its parameter groups.

        Raises:
            EstimationError: if neither torch nor the training code has such a class.
            RecordError: if a group holds a parameter that the stage's model does not have.
        """

    @abstractmethod
    def gradient(
        self,
        stage: StageTrajectory,
        step: Step,
        optimizer: Optimizer,
        *,
        create_graph: bool = False,
        differentiate: bool = False,
        objective: Objective | None = None,
    ) -> StepGradient:
        """Compute g_k at the model's present parameters, on step k's own minibatch.

        The gradient is summed over the step's microbatches with their weights; random states are
        those of the record. `create_graph` lets it be differentiated once more; that and
        `differentiate` give the gradient of what only this stage froze or this step skips too,
        `frozen_gradients`. `objective` is taken in place of the stage's.
        """

    @abstractmethod
    def back_pass(
        self,
        stage: StageTrajectory,
        microbatch: Microbatch,
        leaves: Sequence[Tensor],
        *,
        create_graph: bool = False,
        objective: Objective | None = None,
    ) -> tuple[Tensor, Sequence[Tensor | None]]:
        """One pass over a microbatch: its loss, and the gradient of its share, one tensor a leaf.

        Args:
            stage: whose objective is taken, with the random state as it is.
            microbatch: what to load, and its weight.
            leaves: what to differentiate by.
            create_graph: as in `gradient`; attention is then computed by a kernel that has second
                derivatives.
            objective: taken in place of the stage's.
        """

    @abstractmethod
    def update(self, step_gradient: StepGradient) -> None:
        """Make the step's update with the optimizer, clipping first where the loop did.

        Raises:
            RecordError: if an optimizer of torch.optim cannot work with the recorded state and
                hyperparameters; a class of the training code raises what it raises.
        """

    @abstractmethod
    def hessian_vector(
        self, step_gradient: StepGradient, directions: Mapping[str, Tensor]
    ) -> dict[str, Tensor]:
        """H w for several directions w of a step whose gradient has its graph.

        Args:
            step_gradient: of `gradient(create_graph=True)`, with the parameters still at theta_k.
            directions: w per trainable parameter, [n, *shape].

        Returns:
            H w per parameter of the directions, [n, *shape].

        Raises:
            UnsupportedError: if an operation of the model has no second derivative.
        """

    @abstractmethod
    def to_device(self, batch: Any) -> Any:
        """Move a batch to the device, floating tensors to the re-run's precision."""

    # --- counters ---------------------------------------------------------------------------------

    @property
    def gradients(self) -> int:
        """Minibatch gradients computed so far."""
        return self._gradients

    def count(self, gradients: int) -> None:
        """Add minibatch gradients that were computed on the engine's model by other means."""
        self._gradients += gradients

    # --- precision and place ----------------------------------------------------------------------

    @property
    def device(self) -> torch.device:
        """Where the computation runs."""
        return device_of(self.model)

    @property
    def in_recorded_precision(self) -> bool:
        """Whether parameters and buffers keep the precision in which they were trained."""
        same = self.dtype is None
        return same or self.trajectory.trained_in(str(self.dtype).removeprefix("torch."))

    def autocast(self, stage: StageTrajectory) -> Autocast | None:
        """The autocast under which a stage's gradients are computed; None without."""
        return stage.header.autocast if self.in_recorded_precision else None

    def cast(self, tensor: Tensor) -> Tensor:
        """A floating tensor in the re-run's precision; any other as it is."""
        return tensor.to(self.dtype) if tensor.is_floating_point() and self.dtype else tensor

    @contextmanager
    def training(self) -> Iterator[None]:
        """Train mode; puts the mode and the process's random state back afterwards."""
        with self._mode(training=True):
            yield

    @contextmanager
    def evaluating(self) -> Iterator[None]:
        """Eval mode; puts the mode and the process's random state back afterwards."""
        with self._mode(training=False):
            yield

    @contextmanager
    def _mode(self, *, training: bool) -> Iterator[None]:
        model, mode = self.model, self.model.training
        model.train(training)
        with undisturbed(self.device):
            try:
                yield
            finally:
                self.model.train(mode)

    def go_to_random_state(self, microbatch: Microbatch) -> None:
        """Set the random state that a microbatch's pass began with, where it drew numbers.

        Raises:
            RecordError: if this torch cannot use the recorded state.
        """
        go_to(microbatch.rng, self.device)

    def casting(self, stage: StageTrajectory) -> AbstractContextManager[Any]:
        """The stage's autocast; each pass has casts of its own, which end with it."""
        return casting(self.model, self.autocast(stage))

    # --- batches and outputs ----------------------------------------------------------------------

    def batch(self, microbatch: Microbatch) -> Any:
        """Load a microbatch onto the device, floating tensors in the re-run's precision.

        Raises:
            EstimationError: if its data set is not at hand.
        """
        return self.to_device(load_microbatch(self.functions, self.datasets, microbatch))

    def load(self, dataset: Dataset, ids: Sequence[int]) -> Any:
        """Load rows of a data set with the training code's own `load_batch`.

        Raises:
            RecordError: if that fails because a table does not have such rows.
        """
        return self.to_device(load_rows(self.functions, dataset, ids))

    def outputs(self, function: Callable[[nn.Module, Any], Any], batch: Any) -> Any:
        """What a function of the training code, or one that calls them, makes of the model and a batch.

        In another precision than the record's it runs under `Widening`, as the objectives do.
        """
        if self.dtype is None or self.in_recorded_precision:
            return function(self.model, batch)
        with Widening(self.trajectory.precision, self.dtype):
            return function(self.model, batch)

    def outputs_at(
        self,
        states: Sequence[State],
        function: Callable[[nn.Module, Any], Any],
        batches: Sequence[Any],
    ) -> list[list[Any]]:
        """`outputs` on several batches at each of several states of the model, which is left at the last; one question
        of a function in another process. Every state begins with the same random state.
        """
        if isinstance(function, RemoteFunction):
            asked = partial(function.outputs, states=states)
            found: list[list[Any]] = self.outputs(lambda m, b: asked(m, batches=b), batches)
            return found
        return [self._outputs_here(state, function, batches) for state in states]

    def _outputs_here(
        self, state: State, function: Callable[[nn.Module, Any], Any], batches: Sequence[Any]
    ) -> list[Any]:
        restore(state, self.model)
        with undisturbed(self.device):
            return [self.outputs(function, batch) for batch in batches]

    def loss(self, stage: StageTrajectory, step: Step, state: State) -> float:
        """The loss of a step at any parameters, in train mode under the step's random state; no gradient.

        Raises:
            EstimationError: if the training code fails or does not give a scalar.
        """
        self.enter(stage)
        restore(state, self.model)
        total = 0.0
        with self.training(), torch.no_grad(), self.casting(stage):
            for microbatch in (batch for batch in step.batches if batch.weight):
                self.go_to_random_state(microbatch)
                value = self.functions.objectives[stage.id](self.model, self.batch(microbatch))
                total += microbatch.weight * float(value)
        return total

    def forward(
        self, stage: StageTrajectory, microbatch: Microbatch, objective: Objective | None = None
    ) -> Tensor:
        """The loss of one pass that takes no gradient; buffers that it writes advance.

        Args:
            stage: whose objective is taken, with the model and the random state as they are.
            microbatch: what to load.
            objective: taken in place of the stage's.
        """
        with torch.no_grad(), self.casting(stage):
            taken = objective or self.functions.objectives[stage.id]
            return taken(self.model, self.batch(microbatch))

    # --- boundaries -------------------------------------------------------------------------------

    def carry_over(self, stage_index: int, state: State) -> State:
        """The state with which a stage begins, from the one with which the stage before ended.

        A `reset` boundary takes the parameters and buffers; `carry` takes the moments too; `given` has
        the recorded ones, which owe nothing to the stages before. Where the
        model was changed between the stages, so is the state (`Changes.begun`).

        Raises:
            RecordError: if the change cannot be made again as it was recorded.
            EstimationError: if its function or its data is not at hand.
        """
        stage = self.trajectory.stages[stage_index]
        carry = stage.header.boundary == "carry"
        begin = state if carry else state.without_optimizer()
        begun = self.changes.begun(stage_index, begin, self.dtype)
        if stage.header.boundary != "given":
            return begun
        first = stage.first
        given = {
            name: {
                slot: self.cast(value) if isinstance(value, Tensor) and value.dim() else value
                for slot, value in slots.items()
            }
            for name, slots in first.optimizer_state.items()
        }
        return replace(begun, optimizer_state=given)

    def displaced(self, stage_index: int, moved: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """A displacement of the parameters with which a stage ended, as the next one begins with it.

        Copies move with their source. What is derived is displaced by as much as the change of the
        model makes of the displaced values otherwise than of the recorded ones.

        Args:
            stage_index: of the stage that begins.
            moved: theta - theta_b of the stage before, by its names.
        """
        stage = self.trajectory.stages[stage_index]
        displacement = carried(moved, stage.origin)
        if stage.header.derived:
            left, first = self.trajectory.stages[stage_index - 1].last, stage.first
            parameters = {
                n: p + moved[n].to(p) if n in moved else p for n, p in left.parameters.items()
            }
            begun = self.carry_over(stage_index, State(parameters, left.buffers))
            ours, theirs = begun.parameters | begun.buffers, first.parameters | first.buffers
            for name in stage.header.derived:
                if theirs[name].is_floating_point():
                    displacement[name] = ours[name].to(theirs[name]) - theirs[name]
        return displacement

    # --- whole stages -----------------------------------------------------------------------------

    def steps_of(self, stage: StageTrajectory) -> tuple[Step, ...]:
        """The stage's steps.

        Raises:
            EstimationError: if only its boundaries were recorded.
        """
        if not stage.steps and stage.header.steps:
            raise EstimationError(
                f"stage '{stage.id}' was recorded without its steps",
                "record the run with every=N instead of every='boundaries'",
            )
        return stage.steps

    def run(
        self,
        stage: StageTrajectory,
        state: State,
        start: int = 0,
        stop: int | None = None,
        visit: Callable[[StepGradient], None] | None = None,
        steps: Sequence[Step] | None = None,
    ) -> State:
        """Make steps [start, stop) of a stage from `state`; give the state after the last.

        Args:
            stage: the stage whose minibatches, hyperparameters, and random states are used.
            state: xi at `start`; without moments for a fresh optimizer.
            start: first step.
            stop: end; None: the stage's end.
            visit: called at every step before its update.
            steps: all steps of the stage with other minibatches; None: the recorded ones.

        Raises:
            EstimationError: if the training code fails or the stage has no recorded steps.
        """
        every = self.steps_of(stage) if steps is None else steps
        optimizer = self.optimizer(stage)
        restore(state, self.model, optimizer)
        with self.training():
            for step in every[start:stop]:
                step_gradient = self.gradient(stage, step, optimizer)
                if visit is not None:
                    visit(step_gradient)
                self.update(step_gradient)
        return capture(self.model, optimizer)

    def walk(
        self, stage: StageTrajectory, start: int = 0, *, create_graph: bool = False
    ) -> Iterator[StepGradient]:
        """Go along the recorded trajectory of a stage from a recorded state.

        Yields every step before its update; the recorded states on the way replace the re-run ones.

        Raises:
            EstimationError: if the training code fails or the stage has no recorded steps.
        """
        optimizer = self.optimizer(stage)
        recorded = set(stage.state_steps)
        with self.training():
            for step in self.steps_of(stage)[start:]:
                if step.index in recorded:
                    restore(stage.state(step.index), self.model, optimizer)
                step_gradient = self.gradient(stage, step, optimizer, create_graph=create_graph)
                yield step_gradient
                self.update(step_gradient)
