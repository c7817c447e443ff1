"""Scores of one batch of evaluation examples, on the model of a re-run as it is."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from auditspec.behaviors.bound import Slice
from auditspec.behaviors.metrics import Outputs
from auditspec.engine.interface import Engine
from auditspec.errors import EstimationError
from auditspec.record.generators import seed


@dataclass(frozen=True)
class Scoring:
    """Scores batches."""

    rerun: Engine
    """Gives the model, its device and precision, and `load_batch`."""
    custom: Mapping[str, Callable[[nn.Module, Any], Tensor]]
    """The callables of custom metrics, by entry point."""
    batch_size: int
    """Examples a forward pass."""
    memory: dict[tuple[str, int], Any] | None
    """Batches by behaviour and first example, where they are kept for the next state; None: they are not."""

    def batches(self, part: Slice) -> Iterator[slice]:
        """Rows of a slice's examples, one batch after another."""
        for start in range(0, len(part.ids), self.batch_size):
            yield slice(start, start + self.batch_size)

    def score(self, part: Slice, rows: slice, ahead: Iterator[Tensor] | None = None) -> Tensor:
        """The scores of one batch, [B].

        Args:
            part: whose examples are scored.
            rows: the batch.
            ahead: gives what `predict` makes of it, where that is there already.

        Raises:
            EstimationError: if the model or the metric gives the wrong shape.
        """
        ids = part.ids[rows]
        labels, predict = part.labels[rows].to(self.rerun.device), self.rerun.functions.predict
        batch: Any = None
        if ahead is None:
            batch = self.batch(part, rows)
        else:
            predict = _Predicted(next(ahead))

        def metric(model: nn.Module, batch: Any) -> Tensor:
            return part.metric.scores(Outputs(model, batch, labels, predict, self.custom))

        scores: Tensor = self.rerun.outputs(metric, batch)
        if scores.shape != (len(ids),):
            raise EstimationError(
                f"behaviour '{part.behavior.id}' gave a tensor of shape {tuple(scores.shape)} "
                f"for {len(ids)} examples",
                "a metric gives one number per example",
            )
        return scores

    def batch(self, part: Slice, rows: slice) -> Any:
        """A batch as the training code loads it, on the device of the model."""
        place = (part.behavior.id, rows.start)
        if self.memory is None or place not in self.memory:
            batch = self.rerun.load(part.dataset, part.ids[rows].tolist())
            if self.memory is None:
                return batch
            self.memory[place] = batch
        return deepcopy(self.memory[place])  # a predict may work in place

    @contextmanager
    def evaluating(self) -> Iterator[None]:
        """Eval mode, and random numbers from the same place each time; puts both back afterwards."""
        with self.rerun.evaluating():
            seed(0)  # a predict that draws numbers draws the same ones in every world
            yield


@dataclass(frozen=True)
class _Predicted:
    """A prediction that is there already, in place of the function that gave it."""

    value: Tensor

    def __call__(self, model: nn.Module, batch: Any) -> Tensor:
        return self.value
