"""Scores of one batch of evaluation examples, on the model of a re-run as it is."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from auditspec.behaviors.bound import Slice
from auditspec.behaviors.metrics import AS_LOGITS, Asked, Outputs
from auditspec.engine.interface import Engine
from auditspec.errors import EstimationError
from auditspec.record.generators import Generators, seed


class SharingShowsError(Exception):
    """Metrics that share predictions would not score as each alone."""


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
    asked: Asked = AS_LOGITS
    chance: int = 0
    """Where random numbers begin: another place is another scoring of the same models."""

    def batches(self, part: Slice) -> Iterator[slice]:
        """Rows of a slice's examples, one batch after another."""
        for start in range(0, len(part.ids), self.batch_size):
            yield slice(start, start + self.batch_size)

    def score(self, part: Slice, rows: slice) -> Tensor:
        """The scores of one batch, [B].

        Args:
            part: whose examples are scored.
            rows: the batch.

        Raises:
            EstimationError: if the model or the metric gives the wrong shape.
        """
        return self._score(part, rows, self.batch(part, rows), self.rerun.functions.predict)

    def scores(
        self, parts: Sequence[Slice], rows: slice, ahead: Iterator[Tensor] | None
    ) -> list[Tensor]:
        """The scores of one batch by each of several metrics, [B] each, for which it is predicted once.

        Args:
            parts: of the same examples; those that share predictions, if they are several.
            rows: the batch.
            ahead: gives what `predict` makes of it, where that is there already.

        Raises:
            EstimationError: if the model or a metric gives the wrong shape.
            SharingShowsError: if code draws random numbers, or a metric works in the predictions' place.
        """
        if ahead is None and len(parts) == 1:
            return [self.score(parts[0], rows)]
        scores = []
        with self.unseen(sharing=len(parts) > 1):
            batch = self.batch(parts[0], rows) if ahead is None else None
            once = _Once(self.rerun.functions.predict, self.rerun.model, batch)
            if ahead is not None:
                once.keep(next(ahead))
            for part in parts:
                scores.append(self._score(part, rows, batch, once))
                if len(parts) > 1 and once.edited:
                    raise SharingShowsError
        return scores

    @contextmanager
    def unseen(self, *, sharing: bool) -> Iterator[None]:
        """Make predictions that several metrics share, where code cannot tell that they do.

        Raises:
            SharingShowsError: if numbers were drawn; others would be drawn for the next metric.
        """
        before = Generators.now(self.rerun.device) if sharing else None
        yield
        if before is not None and before.drawn_from(Generators.now(self.rerun.device)):
            raise SharingShowsError

    def _score(
        self, part: Slice, rows: slice, batch: Any, predict: Callable[[nn.Module, Any], Tensor]
    ) -> Tensor:
        labels = part.labels[rows].to(self.rerun.device)

        def metric(model: nn.Module, batch: Any) -> Tensor:
            asked, size = self.asked, self.batch_size
            return part.metric.scores(
                Outputs(model, batch, labels, predict, self.custom, asked, size, self.chance)
            )

        scores: Tensor = self.rerun.outputs(metric, batch)
        if scores.shape != (len(part.ids[rows]),):
            raise EstimationError(
                f"behaviour '{part.behavior.id}' gave a tensor of shape {tuple(scores.shape)} "
                f"for {len(part.ids[rows])} examples",
                "a metric gives one number per example",
            )
        return scores

    def batch(self, part: Slice, rows: slice) -> Any:
        """A batch as the training code loads it, on the device of the model; of a metric of sequences, its examples."""
        if part.metric.of_sequences:
            return part.examples[rows]
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
            seed(self.chance)  # a predict that draws numbers draws the same ones in every world
            yield


@dataclass
class _Once:
    """`predict` of one batch, by whoever asks first."""

    predict: Callable[[nn.Module, Any], Tensor]
    model: nn.Module
    batch: Any
    _given: Tensor | None = None
    _edits: int = 0

    def __call__(self, model: nn.Module, batch: Any) -> Tensor:
        if model is not self.model or batch is not self.batch:
            return self.predict(model, batch)
        return self.keep(self.predict(model, batch)) if self._given is None else self._given

    def keep(self, given: Tensor) -> Tensor:
        """Take a prediction as that of the batch."""
        self._given, self._edits = given, _edits(given)
        return given

    @property
    def edited(self) -> bool:
        """Whether somebody worked in its place."""
        return self._given is not None and _edits(self._given) != self._edits


def _edits(tensor: Tensor) -> int:
    """How often a tensor was changed in place; what inference mode made cannot be outside of it."""
    counted = isinstance(tensor, Tensor) and not tensor.is_inference()
    return tensor._version if counted else 0
