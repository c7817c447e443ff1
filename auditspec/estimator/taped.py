"""Gradients of one stage run from tapes, where the ordinary ones spend their time in calls.

The first minibatch of its form is computed as ever and written down; the next is computed both ways, and
so are those after 16, 64, … more. A tape that gives something else than the ordinary gradient up to
rounding, or a computation that cannot be written down, is left to the ordinary way.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from auditspec.errors import EstimationError
from auditspec.estimator.tape import Outputs, Tape, form
from auditspec.record.rerun import Rerun
from auditspec.record.trajectory import Microbatch, StageTrajectory

MOST = 8
"""Tapes kept at once: minibatches of more different forms than that run untaped."""
TOLERANCE = 100
"""Units of rounding, relative to the gradient's norm, by which a taped one may be off: a parallel sum may
change its order."""


@dataclass
class _Kept:
    tape: Tape
    uses: int = 0
    next_check: int = 0

    def due(self) -> bool:
        """Whether this use is to be held against the ordinary gradient."""
        self.uses += 1
        if self.uses <= self.next_check:
            return False
        self.next_check = max(16, 4 * self.next_check)
        return True


class TapedPasses:
    """`Rerun.back_pass` of one stage, on parameters that stay where they are in memory.

    Args:
        rerun: whose model holds the parameters.
        stage: the stage.
    """

    def __init__(self, rerun: Rerun, stage: StageTrajectory) -> None:
        self.rerun, self.stage = rerun, stage
        self._tapes: dict[Hashable, _Kept | None] = {}

    def __call__(
        self, microbatch: Microbatch, leaves: Sequence[Tensor]
    ) -> tuple[Tensor, Sequence[Tensor | None]]:
        """The loss and the gradient of a microbatch's share, one tensor a leaf.

        Raises:
            EstimationError: if the objective turns out to depend on more than model and batch.
        """
        batch = self.rerun.batch(microbatch)
        given, spec = pytree.tree_flatten(batch)
        try:
            key = (spec, microbatch.weight, *map(id, leaves), *map(form, given))
            known, kept = key in self._tapes, self._tapes.get(key)
        except TypeError:  # a part of the batch that cannot be told from another
            return self._ordinary(microbatch, leaves, batch)
        tensors = [x for x in given if isinstance(x, Tensor)]
        if kept is not None:
            loss, *found = kept.tape(tensors)
            if not kept.due():
                return cast(Tensor, loss), found
            self.rerun.go_to_random_state(microbatch)
            usual = self._ordinary(microbatch, leaves, batch)
            if not _same(found, usual[1]):
                self._drop(key, kept)
            return usual
        if known or len(self._tapes) >= MOST:
            return self._ordinary(microbatch, leaves, batch)

        def compute(*tensors: Tensor) -> Outputs:
            left = [*tensors]
            filled = [left.pop(0) if isinstance(x, Tensor) else x for x in given]
            loss, found = self._ordinary(microbatch, leaves, pytree.tree_unflatten(filled, spec))
            return [loss, *found]

        try:
            (loss, *found), tape = Tape.record(compute, tensors)
        except Exception:  # NotTapedError, or whatever the training code raises of being watched
            self._tapes[key] = None
            self.rerun.go_to_random_state(microbatch)
            return self._ordinary(microbatch, leaves, batch)
        self._tapes[key] = _Kept(tape)
        return cast(Tensor, loss), found

    def _drop(self, key: Hashable, kept: _Kept) -> None:
        if kept.uses > 1:
            raise EstimationError(
                f"stage '{self.stage.id}': its objective's gradient is no function of model and batch",
                "make it depend on them and on torch's random numbers alone",
            )
        self._tapes[key] = None

    def _ordinary(
        self, microbatch: Microbatch, leaves: Sequence[Tensor], batch: Any
    ) -> tuple[Tensor, Sequence[Tensor | None]]:
        return self.rerun.back_pass(self.stage, microbatch, leaves, batch=batch)


def _same(taped: Sequence[Tensor | None], usual: Sequence[Tensor | None]) -> bool:
    """Whether two gradients are the same up to rounding."""
    if [g is None for g in taped] != [g is None for g in usual]:
        return False
    pairs = [(a, b) for a, b in zip(taped, usual, strict=True) if a is not None and b is not None]
    off = sum(float((a - b).double().square().sum()) for a, b in pairs)
    size = sum(float(b.double().square().sum()) for _, b in pairs)
    unit = max((torch.finfo(b.dtype).eps / 2 for _, b in pairs), default=0.0)
    return bool(off <= (TOLERANCE * unit) ** 2 * size)
