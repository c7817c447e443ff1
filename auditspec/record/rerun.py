"""Re-run recorded steps with the real optimizer class, from any state.

From a recorded state it lands on the next recorded state: the evidence check, and the source of
the states in between. From another state it is the exact counterfactual.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils import _pytree as pytree

from auditspec.artifacts.datasets import Dataset
from auditspec.errors import EstimationError, RecordError
from auditspec.record.optimizers import build
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


@dataclass(frozen=True)
class Functions:
    """The training code, loaded: what a re-run calls."""

    factory: Callable[[], nn.Module]
    load_batch: Callable[[Dataset, Sequence[int]], Any]
    objectives: Mapping[str, Callable[[nn.Module, Any], Tensor]]
    """By stage id."""
    predict: Callable[[nn.Module, Any], Tensor]
    optimizers: Mapping[str, Callable[..., Any]] = field(default_factory=dict)
    """Optimizer classes of the training code, by `module:Class`."""


@dataclass
class Moment:
    """A step of a re-run at the point where its gradient is known and its update is not yet made."""

    step: Step
    stage: StageTrajectory
    optimizer: Optimizer
    parameters: dict[str, nn.Parameter]
    """theta_k"""
    gradients: dict[str, Tensor | None]
    """g_k before clipping; None for a parameter that is frozen or that the loss does not reach. With
    `create_graph` they can be differentiated once more."""
    loss: float
    frozen_gradients: dict[str, Tensor | None] = field(default_factory=dict)
    """With `create_graph`: d loss / d theta of the parameters that are frozen here and trained in
    another stage. The optimizer does not see them; a derivative along them needs them."""

    def moments(self, name: str) -> dict[str, Any]:
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
        dtype: precision of parameters, moments, and floating inputs; None keeps the record's.
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
        self.functions = functions
        self.datasets = datasets
        self.dtype = dtype
        with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
            self.model = functions.factory().to(device=device, dtype=dtype)
        self.gradients = 0
        """Minibatch gradients computed so far."""
        frozen = [set(stage.header.frozen) for stage in trajectory.stages]
        self._never_trained = set.intersection(*frozen) if frozen else set()
        self._entered: tuple[str, bool] | None = None

    @property
    def device(self) -> torch.device:
        """Where the computation runs."""
        return device_of(self.model)

    def enter(self, stage: StageTrajectory, *, differentiate: bool = False) -> None:
        """Make `model` that of a stage: its parameters take gradients as they did there.

        `optimizer` and `gradient` enter their stage themselves.

        Args:
            stage: the stage to enter.
            differentiate: let frozen parameters that another stage trained take gradients too, so
                that a derivative along their displacement can be computed.
        """
        if self._entered == (stage.id, differentiate):
            return
        frozen = set(stage.header.frozen)
        if differentiate:
            frozen &= self._never_trained
        for name, parameter in named_parameters(self.model).items():
            parameter.requires_grad_(name not in frozen)
        self._entered = (stage.id, differentiate)

    def run(
        self,
        stage: StageTrajectory,
        state: State,
        start: int = 0,
        stop: int | None = None,
        visit: Callable[[Moment], None] | None = None,
    ) -> State:
        """Make steps [start, stop) of a stage from `state`; give the state after the last.

        Args:
            stage: the stage whose minibatches, hyperparameters, and random states are used.
            state: xi at `start`; without moments for a fresh optimizer.
            start: first step.
            stop: end; None: the stage's end.
            visit: called at every step before its update.

        Raises:
            EstimationError: if the training code fails or the stage has no recorded steps.
        """
        steps = self.steps_of(stage)[start:stop]
        optimizer = self.optimizer(stage)
        restore(state, self.model, optimizer)
        with self.training():
            for step in steps:
                moment = self.gradient(stage, step, optimizer)
                if visit is not None:
                    visit(moment)
                self.update(moment)
        return capture(self.model, optimizer)

    def walk(
        self, stage: StageTrajectory, start: int = 0, *, create_graph: bool = False
    ) -> Iterator[Moment]:
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
                moment = self.gradient(stage, step, optimizer, create_graph=create_graph)
                yield moment
                self.update(moment)

    def continue_from(
        self, state: State, stage_index: int, visit: Callable[[Moment], None] | None = None
    ) -> State:
        """Run every stage from `stage_index` to the end of training, from `state`.

        A `reset` boundary takes the parameters and buffers; `carry` takes the whole state.
        """
        for stage in self.trajectory.stages[stage_index:]:
            begin = state if stage.header.boundary == "carry" else state.without_optimizer()
            state = self.run(stage, begin, visit=visit)
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
        groups = [
            {"params": [parameters[n] for n in group.parameters], **group.options}
            for group in stage.header.groups
        ]
        return build(kind, groups)

    def gradient(
        self,
        stage: StageTrajectory,
        step: Step,
        optimizer: Optimizer,
        *,
        create_graph: bool = False,
    ) -> Moment:
        """Compute g_k at the model's present parameters, on step k's own minibatch.

        The gradient is summed over the step's microbatches with their weights; random states are
        those of the record.
        """
        self.enter(stage, differentiate=create_graph)
        parameters = named_parameters(self.model)
        frozen = set(stage.header.frozen)
        trained = {name: p for name, p in parameters.items() if p.requires_grad}
        total: dict[str, Tensor | None] = dict.fromkeys(parameters)
        loss_sum = 0.0
        for microbatch in step.batches:
            self.go_to_random_state(microbatch)
            batch = self.batch(microbatch)
            loss = self.functions.objectives[stage.id](self.model, batch) * microbatch.weight
            if loss.dim() != 0:
                raise EstimationError(
                    f"stage '{stage.id}': its objective gave a tensor of shape {tuple(loss.shape)}",
                    "return the scalar mean of the loss",
                )
            found = torch.autograd.grad(
                loss, list(trained.values()), create_graph=create_graph, allow_unused=True
            )
            for name, gradient in zip(trained, found, strict=True):
                before = total[name]
                if gradient is not None:
                    total[name] = gradient if before is None else before + gradient
            loss_sum += float(loss.detach())
            self.gradients += 1
        asleep = {name: total[name] for name in trained if name in frozen}
        total |= dict.fromkeys(asleep)
        return Moment(step, stage, optimizer, parameters, total, loss_sum, asleep)

    def go_to_random_state(self, microbatch: Microbatch) -> None:
        """Set the random state that a microbatch's pass began with, where it drew numbers.

        Raises:
            RecordError: if this torch cannot use the recorded state.
        """
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

    def update(self, moment: Moment) -> None:
        """Make the step's update with the optimizer, clipping first where the loop did."""
        for name, parameter in moment.parameters.items():
            gradient = moment.gradients[name]
            parameter.grad = None if gradient is None else gradient.detach()
        limit = moment.stage.header.clip_norm
        if limit is not None:
            torch.nn.utils.clip_grad_norm_(moment.parameters.values(), limit)
        for group, options in zip(moment.optimizer.param_groups, moment.step.groups, strict=True):
            group.update(options)
        moment.optimizer.step()
        moment.optimizer.zero_grad()

    def batch(self, microbatch: Microbatch) -> Any:
        """Load a microbatch onto the device, floating tensors in the re-run's precision.

        Raises:
            EstimationError: if its data set is not at hand.
        """
        if microbatch.dataset is None:
            held = [tensor.clone() for tensor in microbatch.tensors]
            return self.to_device(held[0] if len(held) == 1 else tuple(held))
        if microbatch.dataset not in self.datasets:
            raise EstimationError(
                f"the record's data set '{microbatch.dataset}' is not among the artifacts",
                f"add artifacts.{microbatch.dataset} to the spec",
            )
        return self.load(self.datasets[microbatch.dataset], microbatch.ids)

    def load(self, dataset: Dataset, ids: Sequence[int]) -> Any:
        """Load rows of a data set with the training code's own `load_batch`."""
        return self.to_device(self.functions.load_batch(dataset, list(ids)))

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
