"""Changing the model that is recorded, between two stages, and seeing whether re-runs can do so too."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import nn

from auditspec.artifacts.datasets import Dataset
from auditspec.errors import RecordError
from auditspec.record.describe import refuse_unrecordable
from auditspec.record.extension import BoundExtend, Extension, Made, make, tensors_of
from auditspec.record.format import FunctionRef
from auditspec.record.generators import generators
from auditspec.record.provenance import explained, on_other_values, provenance
from auditspec.record.state import device_of
from auditspec.recorder.joins import ModelChange


@dataclass(frozen=True)
class Extended:
    """A model that was changed, and what the same change makes of models with other values."""

    extension: Extension
    made: Made
    others: Sequence[Made]

    @classmethod
    def by(cls, extension: Extension, model: nn.Module) -> Extended:
        """Change a model, once the change was tried on others.

        Raises:
            RecordError: if it fails on one of them.
        """
        others = on_other_values(extension, tensors_of(model))
        return cls(extension, make(model, extension.extend), others)

    def recorded(self, function: FunctionRef, datasets: Sequence[Dataset]) -> ModelChange:
        """The change as the record is to hold it.

        Args:
            function: that made it.
            datasets: what the function was given.

        Raises:
            RecordError: if the model cannot be recorded any more, or the change cannot be repeated.
        """
        refuse_unrecordable(self.made.model)
        name, made, first = self.extension.name, self.made, self.others[0]
        origins = provenance(name, made, self.others)
        if odd := [n for n, t in first.after.items() if not explained(made.after[n], t)]:
            raise RecordError(
                f"{name} makes other values of the same ones each time: {odd[0]}",
                "let it depend on the model alone, in train mode and frozen as in the stage before, "
                "and draw from the generators of torch, numpy, or random",
            )
        return ModelChange(function, made, origins, self.extension.generators, datasets)


def extension_of(
    model: nn.Module,
    function: FunctionRef,
    extend: BoundExtend,
    factory: Callable[[], nn.Module],
    earlier: Sequence[BoundExtend],
    frozen: tuple[str, ...] | None,
) -> Extension:
    """A change that is about to be made, with the random generators as they are now.

    Args:
        model: that is to be changed.
        function: that changes it.
        extend: the same with its data sets.
        factory: that built the model.
        earlier: what changed it before.
        frozen: parameters that the stage before froze; None before the first.
    """
    device = device_of(model)
    return Extension(
        name=function.name.rpartition(":")[2],
        factory=factory,
        earlier=tuple(earlier),
        extend=extend,
        frozen=frozen,
        generators=generators(device),
        device=device,
    )


def refuse_to_extend(open_stage: str | None, change: ModelChange | None, *, sharded: bool) -> None:
    """Refuse a change of the model inside a stage, a second one between two, or one of a sharded model.

    Args:
        open_stage: id of the stage that is open, if one is.
        change: of the model since the last stage, where there was one.
        sharded: whether this process holds a part of the model only.

    Raises:
        RecordError: if any of them is so.
    """
    if sharded:
        raise RecordError(
            "a model that fully_shard was given cannot be changed between stages",
            "let the factory build all of it, and freeze what is not trained yet",
        )
    if open_stage is not None or change is not None:
        raise RecordError(
            f"stage '{open_stage}' is still open"
            if open_stage is not None
            else "the model was changed already since the last stage",
            "change the model between stages, by one function",
        )
