"""Re-run recorded steps with the real optimizer class, from any state.

From a recorded state it lands on the next recorded state: the evidence check, and the source of
the states in between. From another state it is the exact counterfactual.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils import _pytree as pytree

from auditspec.artifacts.datasets import Dataset
from auditspec.engine.changes import Changes, function_of
from auditspec.engine.loading import Functions, load_microbatch, load_rows
from auditspec.engine.widening import Widening, widened
from auditspec.errors import EstimationError, RecordError
from auditspec.record.describe_optimizer import build, match_skipped_gradients
from auditspec.record.extension import build as build_model
from auditspec.record.extension import carried
from auditspec.record.numerics import twice_differentiable
from auditspec.record.state import (
    State,
    capture,
    device_of,
    named_parameters,
    random_state,
    restore,
    set_random_state,
)
from auditspec.record.trajectory import Microbatch, StageTrajectory, Step, Trajectory

Pass = Callable[[Microbatch, Sequence[Tensor]], tuple[Tensor, Sequence[Tensor | None]]]
"""(a microbatch, what to differentiate by) -> as `Rerun.back_pass`."""


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


class Rerun:
    """Re-runs the steps of a record.

    Args:
        trajectory: the record.
        functions: the training code.
        datasets: the data sets that the record's ids point into, by name.
        device: where to compute.
        dtype: precision of parameters, moments, and floating inputs; None keeps the record's. In
            another precision than the record's, autocast is left out (the run is repeated without
            its rounding), and the training code runs under `Widening`.
    """

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
        self.datasets = datasets
        self.dtype = dtype
        self.functions = functions
        if dtype is not None and not self.in_recorded_precision:
            objectives = {
                stage: widened(objective, trajectory.precision, dtype)
                for stage, objective in functions.objectives.items()
            }
            self.functions = replace(functions, objectives=objectives)
        self._target = torch.device(device)
        self.changes = Changes(trajectory, functions, datasets, self._target)
        """Changes of the model between the stages."""
        self._models = {0: build_model(functions.factory, ())[0].to(self._target, dtype)}
        self.model: nn.Module = self._models[0]
        """The model of the stage entered last; before any, as the factory builds it."""
        self.gradients = 0
        """Minibatch gradients computed so far."""
        self._moved: dict[str, set[str]] = {}
        moved: set[str] = set()
        for stage in trajectory.stages:
            moved = {name for name, old in stage.origin.items() if old in moved}
            moved |= set(stage.header.derived)
            moved |= {info.name for info in stage.parameters} - set(stage.header.frozen)
            self._moved[stage.id] = moved
        self._entered: tuple[str, bool] | None = None
        self._parameters: dict[str, nn.Parameter] = {}

    @property
    def device(self) -> torch.device:
        """Where the computation runs."""
        return device_of(self.model)

    @property
    def in_recorded_precision(self) -> bool:
        """Whether parameters and buffers keep the precision in which they were trained."""
        kept = self.dtype is None
        return kept or self.trajectory.trained_in(str(self.dtype).removeprefix("torch."))

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
        if self._entered == (stage.id, differentiate):
            return
        model = self._model_of(stage)
        model.train(self.model.training)
        self.model = model
        frozen = set(stage.header.frozen)
        if differentiate:
            frozen -= self._moved[stage.id]
        self._parameters = named_parameters(self.model)
        for name, parameter in self._parameters.items():
            parameter.requires_grad_(name not in frozen)
        self._entered = (stage.id, differentiate)

    def _model_of(self, stage: StageTrajectory) -> nn.Module:
        index = self.trajectory.index(stage.id)
        changed = [s for s in self.trajectory.stages[: index + 1] if s.header.extend is not None]
        if len(changed) not in self._models:
            model, change = build_model(self.functions.factory, self.changes.up_to(index))
            last = changed[-1]
            names = {info.name for info in (*last.parameters, *last.buffers)}
            brought, renamed = names - last.survivors.keys(), last.header.renamed
            same = (set(change.brought), change.renamed) == (brought, renamed)
            shapes = {n: tuple(p.shape) for n, p in named_parameters(model).items()}
            if not same or shapes != {info.name: info.shape for info in stage.parameters}:
                raise EstimationError(
                    f"stage '{last.id}': {function_of(last)} makes another model than the recorded",
                    "audit with the code that trained the model",
                )
            self._models[len(changed)] = model.to(self._target, self.dtype)
        return self._models[len(changed)]

    def carry_over(self, stage_index: int, state: State) -> State:
        """The state with which a stage begins, from the one with which the stage before ended.

        A `reset` boundary takes the parameters and buffers; `carry` takes the moments too. Where the
        model was changed between the stages, so is the state (`Changes.begun`).

        Raises:
            RecordError: if the change cannot be made again as it was recorded.
            EstimationError: if its function or its data is not at hand.
        """
        carry = self.trajectory.stages[stage_index].header.boundary == "carry"
        begin = state if carry else state.without_optimizer()
        return self.changes.begun(stage_index, begin, self.dtype)

    def displaced(self, stage_index: int, moved: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """A displacement of the parameters with which a stage ended, as the next one begins with it.

        Copies move with their source. What is derived is displaced by as much as the change of the
        model makes of the displaced values otherwise than of the recorded ones.

        Args:
            stage_index: of the stage that begins.
            moved: theta - theta_b of the stage before, by its names.
        """
        stage = self.trajectory.stages[stage_index]
        found = carried(moved, stage.origin)
        if stage.header.derived:
            left, first = self.trajectory.stages[stage_index - 1].last, stage.first
            parameters = {
                n: p + moved[n].to(p) if n in moved else p for n, p in left.parameters.items()
            }
            begun = self.carry_over(stage_index, State(parameters, left.buffers))
            ours, theirs = begun.parameters | begun.buffers, first.parameters | first.buffers
            for name in stage.header.derived:
                if theirs[name].is_floating_point():
                    found[name] = ours[name].to(theirs[name]) - theirs[name]
        return found

    def cast(self, tensor: Tensor) -> Tensor:
        """A floating tensor in the re-run's precision; any other as it is."""
        return tensor.to(self.dtype) if tensor.is_floating_point() and self.dtype else tensor

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
        kept = set(stage.state_steps)
        with self.training():
            for step in self.steps_of(stage)[start:]:
                if step.index in kept:
                    restore(stage.state(step.index), self.model, optimizer)
                step_gradient = self.gradient(stage, step, optimizer, create_graph=create_graph)
                yield step_gradient
                self.update(step_gradient)

    def continue_from(
        self, state: State, stage_index: int, visit: Callable[[StepGradient], None] | None = None
    ) -> State:
        """Run every stage from `stage_index` to the end of training.

        `state` is that with which the stage before ended; `carry_over` leads from stage to stage.
        """
        for index, stage in enumerate(self.trajectory.stages[stage_index:], stage_index):
            state = self.run(stage, self.carry_over(index, state), visit=visit)
        return state

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

    def optimizer(self, stage: StageTrajectory) -> Optimizer:
        """A fresh optimizer of the stage's class over its parameter groups.

        Raises:
            EstimationError: if neither torch nor the training code has such a class.
            RecordError: if a group holds a parameter that the stage's model does not have.
        """
        name = stage.header.optimizer
        kind: Any = (
            self.functions.optimizers.get(name) if ":" in name else getattr(torch.optim, name, None)
        )
        if not isinstance(kind, type) or not issubclass(kind, Optimizer):
            where = "the training code" if ":" in name else "torch.optim"
            raise EstimationError(
                f"stage '{stage.id}': {where} has no optimizer '{name}'",
                "name the class that trained as optimizer.name in the spec"
                if ":" in name
                else "audit with the torch version that trained the model",
            )
        self.enter(stage)
        parameters = named_parameters(self.model)
        held = {name for group in stage.groups for name in group.parameters}
        if odd := sorted(held - parameters.keys()):
            raise RecordError(
                f"stage '{stage.id}': its optimizer holds {odd[0]}, which its model does not",
                "ask the trainer for the record again",
            )
        groups = [
            {"params": [parameters[n] for n in group.parameters], **group.options}
            for group in stage.groups
        ]
        return build(kind, groups)

    def gradient(
        self,
        stage: StageTrajectory,
        step: Step,
        optimizer: Optimizer,
        *,
        create_graph: bool = False,
        differentiate: bool = False,
        passes: Pass | None = None,
    ) -> StepGradient:
        """Compute g_k at the model's present parameters, on step k's own minibatch.

        The gradient is summed over the step's microbatches with their weights; random states are
        those of the record. `create_graph` lets it be differentiated once more; that and
        `differentiate` give the gradient of what only this stage froze or this step skips too,
        `frozen_gradients`.
        `passes` makes the passes over microbatches in place of `back_pass`.
        """
        self.enter(stage, differentiate=create_graph or differentiate)
        parameters, frozen = self._parameters, stage.header.frozen
        trained = {name: p for name, p in parameters.items() if p.requires_grad}
        total: dict[str, Tensor | None] = dict.fromkeys(parameters)
        loss_sum = 0.0
        for microbatch in step.batches:
            self.go_to_random_state(microbatch)
            leaves = list(trained.values())
            if passes is None:
                loss, found = self.back_pass(stage, microbatch, leaves, create_graph=create_graph)
            else:
                loss, found = passes(microbatch, leaves)
            loss_sum += microbatch.weight * float(loss)  # as the recorder notes it
            for name, gradient in zip(trained, found, strict=True):
                before = total[name]
                if gradient is not None:
                    total[name] = gradient if before is None else before + gradient
            self.gradients += 1
        asleep = {name: total[name] for name in trained if name in frozen}
        total |= dict.fromkeys(asleep)
        reached = dict(total)
        match_skipped_gradients(stage, step, total, parameters)
        if create_graph or differentiate:
            asleep |= {n: g for n, g in reached.items() if g is not None and total[n] is None}
        return StepGradient(step, stage, optimizer, parameters, total, loss_sum, asleep)

    def back_pass(
        self,
        stage: StageTrajectory,
        microbatch: Microbatch,
        leaves: Sequence[Tensor],
        *,
        batch: Any = None,
        create_graph: bool = False,
    ) -> tuple[Tensor, Sequence[Tensor | None]]:
        """One pass over a microbatch: its loss, and the gradient of its share, one tensor a leaf.

        Args:
            stage: whose objective is taken, with the random state as it is.
            microbatch: what to load, and its weight.
            leaves: what to differentiate by.
            batch: the loaded microbatch, where it is at hand.
            create_graph: as in `gradient`; attention is then computed by a kernel that has second
                derivatives.
        """
        kernel = twice_differentiable() if create_graph else nullcontext()
        with self._casting(stage), kernel:
            batch = self.batch(microbatch) if batch is None else batch
            loss = self.functions.objectives[stage.id](self.model, batch)
            if loss.dim() != 0:
                raise EstimationError(
                    f"stage '{stage.id}': its objective gave a tensor of shape {tuple(loss.shape)}",
                    "return the scalar mean of the loss",
                )
            share = loss if microbatch.weight == 1 else loss * microbatch.weight
        found = torch.autograd.grad(share, leaves, create_graph=create_graph, allow_unused=True)
        return loss.detach(), found

    def loss(self, stage: StageTrajectory, step: Step, state: State) -> float:
        """The loss of a step at any parameters, in train mode under the step's random state; no gradient.

        Raises:
            EstimationError: if the training code fails or does not give a scalar.
        """
        self.enter(stage)
        restore(state, self.model)
        total = 0.0
        with self.training(), torch.no_grad(), self._casting(stage):
            for microbatch in step.batches:
                self.go_to_random_state(microbatch)
                value = self.functions.objectives[stage.id](self.model, self.batch(microbatch))
                total += microbatch.weight * float(value)
        return total

    def autocast(self, stage: StageTrajectory) -> torch.dtype | None:
        """Precision of the autocast under which a stage's gradients are computed; None without."""
        name = stage.header.autocast
        return getattr(torch, name) if name and self.in_recorded_precision else None

    def _casting(self, stage: StageTrajectory) -> AbstractContextManager[Any]:
        """The stage's autocast; each pass has casts of its own, which end with it."""
        dtype = self.autocast(stage)
        return nullcontext() if dtype is None else torch.autocast(self.device.type, dtype)

    def go_to_random_state(self, microbatch: Microbatch) -> None:
        """Set the random state that a microbatch's pass began with, where it drew numbers.

        Raises:
            RecordError: if this torch cannot use the recorded state.
        """
        if not microbatch.rng:
            return
        state = {
            kind: torch.frombuffer(bytearray(value), dtype=torch.uint8)
            for kind, value in microbatch.rng.items()
        }
        try:
            set_random_state(state, self.device)
        except (RuntimeError, TypeError) as error:
            raise RecordError(
                f"a recorded random state cannot be used: {error}",
                "audit with the torch version that trained the model, or ask for the record again",
            ) from None

    def update(self, step_gradient: StepGradient) -> None:
        """Make the step's update with the optimizer, clipping first where the loop did.

        Raises:
            RecordError: if an optimizer of torch.optim cannot work with the recorded state and
                hyperparameters; a class of the training code raises what it raises.
        """
        for name, parameter in step_gradient.parameters.items():
            gradient = step_gradient.gradients[name]
            parameter.grad = None if gradient is None else gradient.detach()
        limit = step_gradient.stage.header.clip_norm
        if limit is not None:
            torch.nn.utils.clip_grad_norm_(step_gradient.parameters.values(), limit)
        for group, options in zip(
            step_gradient.optimizer.param_groups, step_gradient.step.groups, strict=True
        ):
            group.update(options)
        name = step_gradient.stage.header.optimizer
        try:
            step_gradient.optimizer.step()
        except Exception as error:
            if ":" in name:
                raise
            raise RecordError(
                f"stage '{step_gradient.stage.id}', step {step_gradient.step.index}: {name} cannot work with the "
                f"recorded state and hyperparameters: {type(error).__name__}: {error}",
                "ask the trainer for the record again",
            ) from error
        step_gradient.optimizer.zero_grad()

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

    def widening(self) -> AbstractContextManager[Any]:
        """The context for calls of the training code; the objectives of `functions` enter it themselves."""
        if self.dtype is None or self.in_recorded_precision:
            return nullcontext()
        return Widening(self.trajectory.precision, self.dtype)

    def to_device(self, batch: Any) -> Any:
        """Move a batch to the device, floating tensors to the re-run's precision."""

        def move(value: Any) -> Any:
            if not isinstance(value, Tensor):
                return value
            floating = self.dtype is not None and value.is_floating_point()
            return value.to(self.device, self.dtype if floating else None)

        return pytree.tree_map(move, batch)

    @contextmanager
    def training(self) -> Iterator[None]:
        """Train mode; puts the mode and the process's random state back afterwards."""
        mode, before = self.model.training, random_state(self.device)
        self.model.train()
        try:
            yield
        finally:
            self.model.train(mode)
            set_random_state(before, self.device)
