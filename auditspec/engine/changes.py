"""The recorded changes of the model between stages, made again: on recorded values, and on others.

A counterfactual comes to a change with values of its own. The pinned function is run on them, with the
random numbers of the recorded run, and so is every tensor right that it copies from them, derives from
them, or mixes with noise. What it makes of them just as it made it of the recorded values owes them
nothing, and has its recorded initial value.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor

from auditspec.artifacts.datasets import Dataset
from auditspec.engine.loading import Functions
from auditspec.engine.redraw import drawing_anew
from auditspec.errors import EstimationError, RecordError
from auditspec.record.extension import BoundExtend, Extension, Tensors, bound, carried
from auditspec.record.generators import generators
from auditspec.record.provenance import Provenance, explained, on_other_values, provenance, same
from auditspec.record.state import OptimizerState, State
from auditspec.record.trajectory import StageTrajectory, Trajectory


class Changes:
    """The changes of the model that a record names.

    Args:
        trajectory: the record.
        functions: the training code.
        datasets: the data sets that the functions are given, by name.
        device: where to make the changes; in the record's precision, whatever the re-run's.
    """

    def __init__(
        self,
        trajectory: Trajectory,
        functions: Functions,
        datasets: Mapping[str, Dataset],
        device: torch.device,
    ) -> None:
        self._trajectory = trajectory
        self._functions = functions
        self._datasets = datasets
        self._device = device
        self._again: dict[int, Tensors] = {}

    def up_to(self, stage_index: int) -> list[BoundExtend]:
        """The functions that changed the model up to a stage, each with its data sets.

        Raises:
            EstimationError: if one was not loaded, or its data is not at hand.
        """
        functions = []
        for stage in self._trajectory.stages[: stage_index + 1]:
            if stage.header.extend is None:
                continue
            name = stage.header.extend.name
            if name not in self._functions.extensions:
                raise EstimationError(
                    f"stage '{stage.id}': the training code's {name}, which changed the model, "
                    "was not loaded",
                    "name it as the stage's extend in the spec",
                )
            if missing := [n for n in stage.header.extend_data if n not in self._datasets]:
                raise EstimationError(
                    f"stage '{stage.id}': {name} is given the data set '{missing[0]}', which is "
                    "not among the artifacts",
                    f"add artifacts.{missing[0]} to the spec, and name it in the stage's data",
                )
            given = [self._datasets[n] for n in stage.header.extend_data]
            functions.append(bound(self._functions.extensions[name], given))
        return functions

    def begun(self, stage_index: int, state: State, dtype: torch.dtype | None) -> State:
        """The state with which a stage begins, from the one that its change of the model finds.

        What survived goes by its new name, and takes its moments along; what depends on the values
        before is made anew; all else has its recorded initial value. What is gone is dropped.

        Args:
            stage_index: of the stage.
            state: xi at the end of the stage before, without moments for a fresh optimizer.
            dtype: precision of what is given; None keeps the record's.

        Raises:
            RecordError: if the change does not make the recorded initial values of the recorded ones.
            EstimationError: if its function or its data is not at hand.
        """
        stage = self._trajectory.stages[stage_index]
        if stage.header.extend is None or not stage_index:
            return state
        first = stage.first
        left = state.parameters | state.buffers
        origin = carried(left, stage.origin)
        made = self._made(stage_index, left, first.parameters | first.buffers)

        def value(name: str, recorded: Tensor) -> Tensor:
            source = origin.get(name)
            remade = made.get(name, recorded)
            if source is not None:  # as it is: it may be more precise than the record
                unchanged = name in stage.carried and name not in made
                if unchanged or same(source.cpu().to(recorded.dtype), remade):
                    return source
            return remade.to(dtype) if dtype is not None and remade.is_floating_point() else remade

        optimizer_state: OptimizerState = {}
        if state.optimizer_state:
            optimizer_state = {
                n: m for n, m in first.optimizer_state.items() if n not in stage.survivors
            }
            optimizer_state |= carried(state.optimizer_state, stage.survivors)
        return State(
            {name: value(name, recorded) for name, recorded in first.parameters.items()},
            {name: value(name, recorded) for name, recorded in first.buffers.items()},
            optimizer_state,
            state.rng,
        )

    def check(self, stage_index: int) -> Tensors:
        """Make the change before a stage anew, of the recorded values and of others.

        Returns:
            Every parameter and buffer as the change makes it of the recorded values.

        Raises:
            RecordError: if a tensor follows the values before the change otherwise than the record
                says, or the change cannot be made on other values.
        """
        stage, extension = self._trajectory.stages[stage_index], self._extension(stage_index)
        again, *others = on_other_values(extension, self._recorded(stage_index))
        header = stage.header
        said = Provenance(
            header.added, header.copied, header.derived, header.renamed, header.rewritten
        )
        if odd := said.differences(provenance(extension.name, again, others)):
            raise RecordError(
                f"stage '{stage.id}': the first values of {', '.join(odd[:3])} come from elsewhere "
                f"than the record says of {extension.name}",
                "ask the trainer for the record again",
            )
        self._again[stage_index] = again.after
        return again.after

    def redrawn(self, stage_index: int, seed: int) -> State:
        """The model right after the change before a stage, made of the recorded values under other random
        numbers.

        Raises:
            RecordError: if the record holds no random state for the change.
            EstimationError: if its function or its data is not at hand.
        """
        stage, extension = self._trajectory.stages[stage_index], self._extension(stage_index)
        with drawing_anew(seed, self._device):
            drawn = replace(extension, generators=generators(self._device))
            tensors = drawn.on(self._recorded(stage_index)).after
        first = stage.first
        return State(
            {n: tensors[n] for n in first.parameters}, {n: tensors[n] for n in first.buffers}
        )

    def _made(self, stage_index: int, left: Tensors, first: Tensors) -> Tensors:
        """What the change makes of `left` otherwise than of the recorded values."""
        recorded = self._recorded(stage_index)
        ours = {n: t.cpu().to(recorded[n].dtype) for n, t in left.items()}
        if all(same(tensor, recorded[name]) for name, tensor in ours.items()):
            return {}
        extension = self._extension(stage_index)
        if stage_index not in self._again:
            self._again[stage_index] = extension.on(recorded).after
        again, after = self._again[stage_index], extension.on(ours).after
        otherwise = {name: t for name, t in after.items() if not same(t, again[name])}
        if odd := [name for name in otherwise if not explained(again[name], first[name])]:
            raise RecordError(
                f"stage '{self._trajectory.stages[stage_index].id}': {extension.name} does not make "
                f"the recorded initial value of {odd[0]} again, which depends on the weights before",
                "audit on the kind of device and with the versions that trained the model, or ask "
                "for the record again",
            )
        return otherwise

    def _recorded(self, stage_index: int) -> Tensors:
        left = self._trajectory.stages[stage_index - 1].last
        return left.parameters | left.buffers

    def _extension(self, stage_index: int) -> Extension:
        """The change before a stage, to be made as it was.

        Raises:
            RecordError: if the record holds no random state for it.
        """
        stage, before = (
            self._trajectory.stages[stage_index],
            self._trajectory.stages[stage_index - 1],
        )
        drawn = stage.first.generators
        if not drawn:
            raise RecordError(
                f"stage '{stage.id}': the record holds no random state for the change of its model",
                "ask the trainer for the record again",
            )
        *earlier, extend = self.up_to(stage_index)
        return Extension(
            name=function_of(stage),
            factory=self._functions.factory,
            earlier=earlier,
            extend=extend,
            frozen=before.header.frozen,
            generators=drawn,
            device=self._device,
        )


def function_of(stage: StageTrajectory) -> str:
    """The name of the function that changed the model before a stage."""
    return stage.header.extend.name if stage.header.extend is not None else "nothing"
