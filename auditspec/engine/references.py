"""Clean evidence in place of a party's own: a stage trained on reference data, other initial weights.

A stage is trained on its reference data as it was trained on its own: the same steps, batch sizes,
hyperparameters, and random states, other rows. Each example takes the next row of a permutation of
the reference rows where the stage first uses it, and the same one where it uses it again: what was
repeated stays repeated. The permutation follows from the stage's id alone.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor

from auditspec.artifacts.checkpoints import check_finite
from auditspec.artifacts.datasets import Dataset
from auditspec.engine.interface import Engine
from auditspec.errors import EvidenceError
from auditspec.record.state import State
from auditspec.record.trajectory import Microbatch, StageTrajectory, Step


@dataclass(frozen=True)
class References:
    """What takes the place of stages' data, and of the initial weights."""

    data: Mapping[str, Dataset] = field(default_factory=dict)
    """Clean rows, by the id of the stage that is trained on them."""
    weights: Mapping[str, Tensor] | None = None
    """Clean initial weights under the record's names, as a state dict has them."""

    def steps(self, engine: Engine, stage: StageTrajectory) -> tuple[Step, ...]:
        """A stage's steps with rows of its reference data in place of its own.

        Batches that the record holds as tensors take as many rows as their first dimension has.

        Raises:
            KeyError: if the stage has no reference data.
            EvidenceError: if they are not a table, or an empty one.
            EstimationError: if the stage was recorded without its steps.
        """
        dataset = self.data[stage.id]
        order = np.random.default_rng(list(stage.id.encode())).permutation(_size(dataset))
        rows: dict[Hashable, int] = {}

        def row(example: Hashable) -> int:
            return int(order[rows.setdefault(example, len(rows)) % len(order)])

        return tuple(
            replace(step, batches=tuple(_other(batch, dataset, row) for batch in step.batches))
            for step in engine.steps_of(stage)
        )

    def start(self, engine: Engine) -> State:
        """The state with which the first stage begins from the reference weights.

        Buffers that a state dict leaves out, and the moments, are the recorded ones.

        Raises:
            EvidenceError: if there are no reference weights, or they are not the first model's.
        """
        if self.weights is None:
            raise EvidenceError("there are no reference weights", "add them to the spec")
        stage = engine.trajectory.stages[0]
        first = stage.first
        engine.enter(stage)
        saved = engine.model.state_dict().keys()
        recorded = first.parameters | first.buffers
        given = {n: t for n, t in self.weights.items() if n not in stage.ties}
        for second, name in stage.ties.items():
            if second in self.weights:
                given.setdefault(name, self.weights[second])
        odd = (given.keys() - recorded.keys()) | (recorded.keys() & saved) - given.keys()
        odd |= {
            second
            for second, name in stage.ties.items()
            if second in self.weights and not _equal(self.weights[second], given[name])
        }
        odd |= {n for n, t in recorded.items() if n in given and given[n].shape != t.shape}
        if odd:
            raise EvidenceError(
                "the reference weights are not those of the first stage's model: "
                f"{', '.join(sorted(odd)[:3])} missing, unknown, of another shape, or not tied",
                "give a state dict of the model that the factory builds",
            )
        check_finite(given, "the reference weights")

        def taken(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
            return {
                n: engine.cast(given.get(n, t).detach().cpu().to(t.dtype))
                for n, t in tensors.items()
            }

        return State(
            taken(first.parameters), taken(first.buffers), first.optimizer_state, first.rng
        )


NO_REFERENCES = References()


def _other(batch: Microbatch, dataset: Dataset, row: Callable[[Hashable], int]) -> Microbatch:
    """The same pass over other rows; what the recorded batch holds that is no row's is loaded with them."""
    if batch.dataset is not None:
        ids = tuple(row((batch.dataset, i)) for i in batch.ids)
    else:
        ids = tuple(row(example) for example in _examples(batch.tensors))
    return replace(batch, dataset=dataset.name, ids=ids, source=dataset)


def _equal(left: Tensor, right: Tensor) -> bool:
    return left.dtype == right.dtype and torch.equal(left, right)


def _examples(tensors: tuple[Tensor, ...]) -> list[bytes]:
    """The bytes of each row of a batch that the record holds: the same example, the same bytes."""
    count = next((len(t) for t in tensors if t.dim()), 1)
    rows = [t for t in tensors if t.dim() and len(t) == count]
    flat = [t.contiguous().reshape(count, -1).view(torch.uint8).numpy() for t in rows]
    return [b"".join(t[i].tobytes() for t in flat) for i in range(count)]


def _size(dataset: Dataset) -> int:
    try:
        size = len(dataset)
    except EvidenceError as error:
        raise EvidenceError(
            f"rows of the reference data cannot be drawn: {error.message}",
            "give the reference data as a sound .parquet or .csv table",
        ) from None
    if not size:
        raise EvidenceError(
            f"the reference data '{dataset.name}' has no rows", "give a table that has some"
        )
    return size
