"""Re-run recorded steps with the real optimizer class, from any state, in one process.

From a recorded state it lands on the next recorded state: the evidence check, and the source of
the states in between. From another state it is the exact counterfactual.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils import _pytree as pytree

from auditspec.artifacts.datasets import Dataset
from auditspec.engine.data_parallel import Gradients, add_to, averaged, by_rank, turns
from auditspec.engine.hessian_products import along, hessian_vector
from auditspec.engine.interface import Engine, Objective, StepGradient
from auditspec.engine.loading import Functions, expect
from auditspec.engine.sharded import norm_in_parts, reduced
from auditspec.engine.stage_models import StageModels
from auditspec.engine.widening import widened
from auditspec.errors import EstimationError, RecordError
from auditspec.record.describe_optimizer import build, match_skipped_gradients
from auditspec.record.numerics import twice_differentiable
from auditspec.record.state import named_buffers, named_parameters
from auditspec.record.trajectory import Microbatch, StageTrajectory, Step, Trajectory
from auditspec.record.uncompiled import uncompiled

__all__ = ["Rerun", "StepGradient"]


class Rerun(Engine):
    """The engine of one process and one device; its arguments are those of `Engine`."""

    name = "rerun"

    def __init__(
        self,
        trajectory: Trajectory,
        functions: Functions,
        datasets: Mapping[str, Dataset],
        *,
        device: torch.device | str = "cpu",
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(trajectory, functions, datasets, device=device, dtype=dtype)
        self._entered: set[str] = set()
        self._models = StageModels(trajectory, functions, self.changes, torch.device(device), dtype)
        if dtype is not None and not self.in_recorded_precision:
            objectives = {
                stage: widened(objective, trajectory.precision, dtype)
                for stage, objective in functions.objectives.items()
            }
            self.functions = replace(functions, objectives=objectives)

    @property
    def model(self) -> nn.Module:
        """The model of the stage entered last; before any, as the factory builds it."""
        return self._models.present

    def enter(self, stage: StageTrajectory, *, differentiate: bool = False) -> None:
        """Make `model` that of a stage, as `Engine.enter` says."""
        self._models.enter(stage, differentiate=differentiate)
        if stage.id not in self._entered:
            self._entered.add(stage.id)
            expect(self.functions, self.datasets, stage)

    def optimizer(self, stage: StageTrajectory) -> Optimizer:
        """A fresh optimizer, as `Engine.optimizer` says."""
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
        in_groups = {name for group in stage.groups for name in group.parameters}
        if odd := sorted(in_groups - parameters.keys()):
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
        objective: Objective | None = None,
    ) -> StepGradient:
        """Compute g_k, as `Engine.gradient` says."""
        self.enter(stage, differentiate=create_graph or differentiate)
        parameters, frozen = self._models.parameters, stage.header.frozen
        trained = {name: p for name, p in parameters.items() if p.requires_grad}
        total: Gradients = dict.fromkeys(parameters)
        loss_sum, layout = 0.0, stage.record.layout
        average = reduced if layout.sharding == "sharded" else averaged
        buckets = stage.header.buckets_at(step.index)
        for turn in turns(step.batches, each=buckets.passes == "each"):
            ranks: list[Gradients] = []
            for passes in by_rank(turn, named_buffers(self.model)):
                ranks.append({})
                for microbatch in passes:
                    self.go_to_random_state(microbatch)
                    self.count(1)
                    if not microbatch.weight:
                        self.forward(stage, microbatch, objective)
                        continue
                    own = replace(microbatch, weight=microbatch.weight * layout.world_size)
                    loss, shares = self.back_pass(
                        stage,
                        own,
                        [*trained.values()],
                        create_graph=create_graph,
                        objective=objective,
                    )
                    loss_sum += microbatch.weight * float(loss)  # as the recorder notes it
                    add_to(ranks[-1], dict(zip(trained, shares, strict=True)))
            add_to(total, average(ranks, layout.world_size, parameters, buckets.parameters))
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
        create_graph: bool = False,
        objective: Objective | None = None,
    ) -> tuple[Tensor, Sequence[Tensor | None]]:
        """One pass over a microbatch, as `Engine.back_pass` says."""
        kernel = twice_differentiable() if create_graph else nullcontext()
        with self.casting(stage), kernel:
            batch = self.batch(microbatch)
            loss = (objective or self.functions.objectives[stage.id])(self.model, batch)
            if not isinstance(loss, Tensor) or loss.dim() != 0:
                shape = f" of shape {tuple(loss.shape)}" if isinstance(loss, Tensor) else ""
                raise EstimationError(
                    f"stage '{stage.id}': its objective gave a {type(loss).__name__}{shape}",
                    "return the scalar mean of the loss",
                )
            factor = microbatch.weight * microbatch.scale
            share = loss if factor == 1 else loss * factor
        shares = torch.autograd.grad(share, leaves, create_graph=create_graph, allow_unused=True)
        return loss.detach(), _unscaled(shares, microbatch.scale)

    def update(self, step_gradient: StepGradient) -> None:
        """Make the step's update, as `Engine.update` says."""
        for name, parameter in step_gradient.parameters.items():
            gradient = step_gradient.gradients[name]
            parameter.grad = None if gradient is None else gradient.detach()
        limit = step_gradient.stage.header.clip_norm
        if limit is not None:
            self._clip(step_gradient, limit)
        for group, options in zip(
            step_gradient.optimizer.param_groups, step_gradient.step.groups, strict=True
        ):
            group.update(options)
        name = step_gradient.stage.header.optimizer
        try:
            with uncompiled():
                step_gradient.optimizer.step()
        except Exception as error:
            if ":" in name:
                raise
            raise RecordError(
                f"stage '{step_gradient.stage.id}', step {step_gradient.step.index}: {name} cannot work with the "
                f"recorded state and hyperparameters: {type(error).__name__}: {error}",
                "ask the trainer for the record again",
            ) from error
        with uncompiled():
            step_gradient.optimizer.zero_grad()

    @staticmethod
    def _clip(step_gradient: StepGradient, limit: float) -> None:
        """Clip the gradients in place, as the loop did."""
        parameters = step_gradient.parameters.values()
        gradients = [p.grad for p in parameters if p.grad is not None]
        ranks = {batch.rank for batch in step_gradient.step.batches}
        sharded = step_gradient.stage.record.layout.sharding == "sharded"
        if sharded and gradients and len(ranks) > 1:
            norm = norm_in_parts(gradients, len(ranks))
            torch.nn.utils.clip_grads_with_norm_(parameters, limit, norm)
        else:
            torch.nn.utils.clip_grad_norm_(parameters, limit)

    def hessian_vector(
        self, step_gradient: StepGradient, directions: Mapping[str, Tensor]
    ) -> dict[str, Tensor]:
        """H w, as `Engine.hessian_vector` says, by double reverse-mode differentiation."""
        return hessian_vector(along(step_gradient), step_gradient.parameters, directions)

    def to_device(self, batch: Any) -> Any:
        """Move a batch to the device, floating tensors to the re-run's precision."""

        def move(value: Any) -> Any:
            if not isinstance(value, Tensor):
                return value
            floating = self.dtype is not None and value.is_floating_point()
            return value.to(self.device, self.dtype if floating else None)

        return pytree.tree_map(move, batch)


def _unscaled(shares: Sequence[Tensor | None], scale: float) -> Sequence[Tensor | None]:
    """Gradients of a scaled loss, as a gradient scaler gives them to the optimizer."""
    if scale == 1:
        return shares
    return [None if share is None else share * (1 / scale) for share in shares]
