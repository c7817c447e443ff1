"""Gradients and Hessian products of one stage run from tapes, where calls take most of their time.

The first minibatch of its form is computed as ever and written down; the next is computed both ways, and
so are those after 16, 64, … more. A tape that gives something else than the ordinary gradient up to
rounding, or a computation that cannot be written down, is left to the ordinary way.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from auditspec.engine.hessian_products import hessian_vector
from auditspec.engine.rerun import Rerun
from auditspec.engine.trace import Outputs, Tape, form
from auditspec.errors import EstimationError
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

        def compute(batch: Any) -> Outputs:
            loss, found = self.rerun.back_pass(self.stage, microbatch, leaves, batch=batch)
            return [loss, *found]

        loss, *found = self._run(compute, microbatch, leaves, ())
        return cast(Tensor, loss), found

    def products(
        self, microbatch: Microbatch, leaves: Sequence[Tensor], directions: Sequence[Tensor]
    ) -> Outputs:
        """H w of a microbatch's share, exact, [n, *shape] a leaf.

        Args:
            microbatch: to take the loss of.
            leaves: what to differentiate by.
            directions: w, [n, *shape] a leaf.

        Raises:
            EstimationError: as a call.
        """

        def compute(batch: Any, *directions: Tensor) -> Outputs:
            _, found = self.rerun.back_pass(
                self.stage, microbatch, leaves, batch=batch, create_graph=True
            )
            names = [str(i) for i in range(len(leaves))]
            theta, w = (dict(zip(names, x, strict=True)) for x in (leaves, directions))
            g = dict(zip(names, found, strict=True))
            return [*hessian_vector(g, theta, w).values()]

        self.rerun.count(1)
        self.rerun.go_to_random_state(microbatch)
        return self._run(compute, microbatch, leaves, directions)

    def _run(
        self,
        compute: Callable[..., Outputs],
        microbatch: Microbatch,
        leaves: Sequence[Tensor],
        more: Sequence[Tensor],
    ) -> Outputs:
        """A computation on a batch and more tensors, run from a tape where that gives the same."""
        batch = self.rerun.batch(microbatch)
        given, spec = pytree.tree_flatten(batch)
        forms = (microbatch.weight, *map(id, leaves), *map(form, more))
        try:
            key = (spec, forms, *map(form, given))
            known, kept = key in self._tapes, self._tapes.get(key)
        except TypeError:  # a part of the batch that cannot be told from another
            return compute(batch, *more)
        inputs = [*more, *(x for x in given if isinstance(x, Tensor))]
        if kept is not None:
            found = kept.tape(inputs)
            if not kept.due():
                return found
            self.rerun.go_to_random_state(microbatch)
            usual = compute(batch, *more)
            if not _same(found, usual):
                self._drop(key, kept)
            return usual
        if known or len(self._tapes) >= MOST:
            return compute(batch, *more)

        def on(*inputs: Tensor) -> Outputs:
            left = [*inputs[len(more) :]]
            filled = [left.pop(0) if isinstance(x, Tensor) else x for x in given]
            return compute(pytree.tree_unflatten(filled, spec), *inputs[: len(more)])

        try:
            found, tape = Tape.record(on, inputs)
        except Exception:  # NotTapedError, or whatever the training code raises of being watched
            self._tapes[key] = None
            self.rerun.go_to_random_state(microbatch)
            return compute(batch, *more)
        self._tapes[key] = _Kept(tape)
        return found

    def _drop(self, key: Hashable, kept: _Kept) -> None:
        if kept.uses > 1:
            raise EstimationError(
                f"stage '{self.stage.id}': its objective's gradient is no function of model and batch",
                "make it depend on them and on torch's random numbers alone",
            )
        self._tapes[key] = None


def _same(taped: Sequence[Tensor | None], usual: Sequence[Tensor | None]) -> bool:
    """Whether two gradients are the same up to rounding."""
    if [g is None for g in taped] != [g is None for g in usual]:
        return False
    pairs = [(a, b) for a, b in zip(taped, usual, strict=True) if a is not None and b is not None]
    off = sum(float((a - b).double().square().sum()) for a, b in pairs)
    size = sum(float(b.double().square().sum()) for _, b in pairs)
    unit = max((torch.finfo(b.dtype).eps / 2 for _, b in pairs), default=0.0)
    return bool(off <= (TOLERANCE * unit) ** 2 * size)
