"""The models of a record's stages: built where the architecture changes, entered stage by stage."""

from __future__ import annotations

import torch
from torch import nn

from auditspec.engine.changes import Changes, function_of
from auditspec.engine.loading import Functions
from auditspec.errors import EstimationError
from auditspec.record.extension import build
from auditspec.record.state import named_parameters
from auditspec.record.trajectory import StageTrajectory, Trajectory


class StageModels:
    """One model for each architecture that a record goes through.

    Args:
        trajectory: the record.
        functions: the training code.
        changes: the changes of the model between the stages.
        device: where the models lie.
        dtype: their precision; None keeps the record's.
    """

    def __init__(
        self,
        trajectory: Trajectory,
        functions: Functions,
        changes: Changes,
        device: torch.device,
        dtype: torch.dtype | None,
    ) -> None:
        self._trajectory = trajectory
        self._functions = functions
        self._changes = changes
        self._device = device
        self._dtype = dtype
        self._models = {0: build(functions.factory, ())[0].to(device, dtype)}
        self.present: nn.Module = self._models[0]
        """The model of the stage entered last; before any, as the factory builds it."""
        self.parameters: dict[str, nn.Parameter] = {}
        """Its parameters, by name."""
        self._entered: tuple[str, bool] | None = None
        self._trained: dict[str, set[str]] = {}
        trained: set[str] = set()
        for stage in trajectory.stages:
            trained = {name for name, old in stage.origin.items() if old in trained}
            trained |= set(stage.header.derived)
            trained |= {info.name for info in stage.parameters} - set(stage.header.frozen)
            self._trained[stage.id] = trained

    def enter(self, stage: StageTrajectory, *, differentiate: bool) -> None:
        """Make `present` that of a stage, as `Engine.enter` says.

        Raises:
            EstimationError: if the training code does not build the recorded model.
        """
        if self._entered == (stage.id, differentiate):
            return
        model = self._of(stage)
        model.train(self.present.training)
        self.present = model
        frozen = set(stage.header.frozen)
        if differentiate:
            frozen -= self._trained[stage.id]
        self.parameters = named_parameters(model)
        for name, parameter in self.parameters.items():
            parameter.requires_grad_(name not in frozen)
        self._entered = (stage.id, differentiate)

    def _of(self, stage: StageTrajectory) -> nn.Module:
        index = self._trajectory.index(stage.id)
        changed = [s for s in self._trajectory.stages[: index + 1] if s.header.extend is not None]
        if len(changed) not in self._models:
            model, change = build(self._functions.factory, self._changes.up_to(index))
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
            self._models[len(changed)] = model.to(self._device, self._dtype)
        return self._models[len(changed)]
