"""How a stage that begins joins the stage before it: its model, its values, its optimizer's state."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from auditspec.artifacts.datasets import Dataset
from auditspec.errors import RecordError
from auditspec.record.describe import same_moments, tensor_infos
from auditspec.record.extension import Made, carried
from auditspec.record.format import FunctionRef, RecordHeader
from auditspec.record.provenance import Provenance, same
from auditspec.record.state import State, named_buffers, named_parameters, ties
from auditspec.recorder.states import States
from auditspec.results import Boundary


@dataclass(frozen=True)
class ModelChange:
    """A change of the model that was made before a stage."""

    function: FunctionRef
    made: Made
    provenance: Provenance
    generators: Mapping[str, Tensor]
    """The random generators right before it."""
    datasets: Sequence[Dataset]
    """What the function was given."""


def architecture(
    model: nn.Module, header: RecordHeader, index: int, change: ModelChange | None
) -> dict[str, Any]:
    """The header's words for the model of a stage that begins.

    Args:
        model: as it is now.
        header: of the record.
        index: of the stage.
        change: of the model before the stage, where there was one.

    Raises:
        RecordError: if the model is another than that of the stage before, and no function made it so.
    """
    now = {
        "parameters": tuple(tensor_infos(named_parameters(model))),
        "buffers": tuple(tensor_infos(named_buffers(model))),
        "ties": ties(model),
    }
    own = {key: None if value == getattr(header, key) else value for key, value in now.items()}
    if change is not None:
        given = tuple(data.name for data in change.datasets)
        return own | vars(change.provenance) | {"extend": change.function, "extend_data": given}
    before = header.stages[index - 1] if index else None
    if any(value != getattr(before, key, None) for key, value in own.items()):
        raise RecordError(
            "the model has other parameters or buffers than in the stage before",
            "change it with recorder.extend(function) between the stages",
        )
    return own


def boundary(states: States, before: State | None, change: ModelChange | None) -> Boundary:
    """Whether the optimizer begins anew, goes on, or brings state from elsewhere.

    Args:
        states: of the model and the optimizer, as the stage begins.
        before: the state that the stage before left; None for the first stage.
        change: of the model before the stage, where there was one.

    Raises:
        RecordError: if values changed otherwise than by `change`.
    """
    state, fresh = states.now(), states.fresh()
    if before is not None:
        now, left = state.parameters | state.buffers, before.parameters | before.buffers
        if change is not None:
            _refuse_changed(left, change.made.before)
        _refuse_changed(left if change is None else change.made.after, now)
        objects = None if change is None else change.made.change
        survivors = {n: n if objects is None else objects.before(n) for n in now}
        moments = {n: slots for n, slots in fresh.items() if survivors[n] is None}
        moments |= carried(before.optimizer_state, {n: old for n, old in survivors.items() if old})
        if state.optimizer_state and same_moments(moments, state.optimizer_state):
            return "carry"
    return "reset" if same_moments(fresh, state.optimizer_state) else "given"


def refuse_other_data(
    stage_id: str, datasets: Mapping[str, Dataset], change: ModelChange | None
) -> None:
    """Refuse a stage that does not name what the function that changed its model was given.

    Raises:
        RecordError: naming the first such data set.
    """
    for data in change.datasets if change is not None else ():
        named = datasets.get(data.name)
        if named is None or named.digest != data.digest:
            raise RecordError(
                f"stage '{stage_id}' does not name the data set '{data.name}', which the "
                "function that changed its model was given",
                "name it among the stage's data sets",
            )


def _refuse_changed(wanted: Mapping[str, Tensor], now: Mapping[str, Tensor]) -> None:
    for name, tensor in wanted.items():
        if not same(tensor, now[name]):
            raise RecordError(
                f"parameters or buffers changed between the stages: {name}",
                "begin a stage from the weights with which the stage before ended, changed by "
                "nothing but the function given to recorder.extend",
            )
