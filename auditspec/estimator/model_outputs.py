"""Whether recorded batches hold what the model of an earlier stage says of their rows."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from auditspec.engine.interface import Engine
from auditspec.estimator.interventions import INITIAL
from auditspec.record.state import restore
from auditspec.record.trajectory import StageTrajectory

CLOSE = 1e-3
"""Largest difference from an output, in its standard deviations over the batch, that is taken for it."""
FEWEST, MOST_CLASSES = 8, 100
"""Different numbers, and classes, between which agreement with one class a row is no chance."""


@dataclass(frozen=True)
class Borrowed:
    """A tensor of a stage's batches that the model at the end of an earlier stage gives."""

    stage: str
    source: str
    """The last stage whose end gives it."""
    what: str
    """The output that it is."""


def borrowed(rerun: Engine) -> list[Borrowed]:
    """Hold floating tensors of batches against logits, probabilities, and log-probabilities.

    The first and the last minibatch of every stage are held against the models with which the stages
    before ended, read by `predict` in eval mode. What another function of the model gave, or with a
    temperature, is not recognized.

    Args:
        rerun: the record.
    """
    tensors = []
    stages = rerun.trajectory.stages
    for index, stage in enumerate(stages):
        for source in reversed(stages[:index]):
            what = next(_given(rerun, stage, source), None)
            if what is not None:
                tensors.append(Borrowed(stage.id, source.id, what))
                break
    return tensors


def depending(rerun: Engine, lent: Sequence[Borrowed]) -> frozenset[str]:
    """The parties without which borrowed tensors would be others: those up to the source of each."""
    ids = [stage.id for stage in rerun.trajectory.stages]
    before = {stage for b in lent for stage in ids[: ids.index(b.source) + 1]}
    return frozenset(before | ({INITIAL} if before else set()))


def _given(rerun: Engine, stage: StageTrajectory, source: StageTrajectory) -> Iterator[str]:
    for step in {id(s): s for s in (*stage.steps[:1], *stage.steps[-1:])}.values():
        batch = rerun.batch(step.batches[0])
        tensors = [x for x in pytree.tree_leaves(batch) if isinstance(x, Tensor)]
        wanted = [x.double() for x in tensors if x.is_floating_point() and x.dim() in (1, 2)]
        logits = _logits(rerun, source, batch) if wanted else None
        if logits is None or logits.dim() != 2:
            continue
        views = {
            "logits": logits,
            "log-probabilities": logits.log_softmax(1),
            "probabilities": logits.softmax(1),
        }
        for tensor in wanted:
            yield from (name for name, view in views.items() if agrees(tensor, view))


def _logits(rerun: Engine, stage: StageTrajectory, batch: object) -> Tensor | None:
    """None where the stage's model cannot read the batch."""
    rerun.enter(stage)
    restore(stage.last, rerun.model)
    try:
        with rerun.evaluating(), torch.no_grad():
            outputs: Tensor = rerun.outputs(rerun.functions.predict, batch)
            return outputs.double()
    except Exception:  # batches of another form than an evaluation's
        return None


def agrees(tensor: Tensor, view: Tensor) -> bool:
    """Whether a tensor is a view [B, C] as a whole, one of its columns, or one class of each row.

    One of few different numbers is not: zeros and ones agree with every sure probability.
    """
    rows, classes = view.shape
    if len(tensor) != rows or len(torch.unique(tensor)) < FEWEST or not bool(view.std() > 0):
        return False
    close = CLOSE * view.std()
    if tensor.dim() == 2 and tensor.shape[1] > 1:
        return tensor.shape == view.shape and bool(((tensor - view).abs() <= close).all())
    alike = (tensor.reshape(rows, 1) - view).abs() <= close
    return bool(alike.all(0).any()) or (classes <= MOST_CLASSES and bool(alike.any(1).all()))
