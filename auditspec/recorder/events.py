"""What a run in training says of itself, and who hears it.

A `Source` hears one stage. It is given the `OpenStage`, and tells it of every optimizer step as soon
as the step was made. When a stage begins and ends the training script says itself, by entering and
leaving `Recorder.stage`; which states are written the record decides, and asks the source for them.

One event a step is enough: what a pass was weighted with may be known only once its gradient is
there, whether it drew random numbers only after it, and the ranks of a data-parallel step are told
together.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from auditspec.artifacts.datasets import Dataset
from auditspec.errors import RecordError
from auditspec.record.format import Autocast, StageHeader
from auditspec.record.state import State, device_of, random_state
from auditspec.record.trajectory import Microbatch
from auditspec.recorder.states import States

Objective = Callable[[nn.Module, Any], Tensor]


@dataclass(frozen=True)
class Pass:
    """One forward and backward pass of a step."""

    microbatch: Microbatch
    """Rows or the batch itself (copies on the CPU), the factor of its loss in the step's gradient, the rank
    that made it, and the random state before it where it drew numbers."""
    loss: Tensor | None = None
    """The loss before that factor, detached; None where the source does not see it."""


@dataclass(frozen=True)
class StepMade:
    """An optimizer step was made."""

    passes: tuple[Pass, ...]
    """Rank by rank, in the order in which their gradients were summed; those of steps that were skipped
    since the last one come first, with the weight 0."""
    groups: tuple[dict[str, Any], ...]
    """Hyperparameters of each parameter group as the step used them, plain values."""
    without_gradient: tuple[str, ...] = ()
    """Parameters of the optimizer whose gradient was None: the step skipped them."""
    gradient_norm: Tensor | None = None
    """2-norm over all parameters after clipping, where the stage declares a `clip_norm`."""
    autocast: Autocast | None = None
    """The `torch.autocast` of every pass; None without."""


@dataclass(frozen=True)
class OpenStage:
    """A stage that is being recorded, as its source is given it."""

    header: StageHeader
    """As declared; what the source is to find out stands in the events."""
    model: nn.Module
    called: nn.Module
    """What the loop calls: the model, or the DistributedDataParallel around it."""
    optimizer: Optimizer
    states: States
    objective: Objective
    load_batch: Callable[[Any, Any], Any] | None
    datasets: Mapping[str, Dataset]
    """By name, the default first."""
    start: int
    """The first step that is still to be made; above 0 where a record is resumed."""
    tell: Callable[[StepMade], None]
    """To be called after every step.

    Raises:
        RecordError: if the record cannot hold the step.
        OSError: if an earlier part could not be written.
    """

    passing: Callable[[], None]
    """To be called as a pass of the model begins in training.

    Raises:
        RecordError: if it goes through a wrapper whose gradients a re-run could not make.
    """
    skip: Callable[[], None]
    """To be called for a step that was not made, such as one that a gradient scaler skipped; the next one
    tells of its passes."""
    stop: Callable[[int], None]
    """To be called before the stage ends, if the run stopped as many steps early."""

    @property
    def device(self) -> torch.device:
        """Where the model lies."""
        return device_of(self.model)

    def place(self, step: int) -> str:
        """A step, for messages."""
        return f"stage '{self.header.id}', step {step}"


class Source(ABC):
    """Hears one stage of a run in training.

    A source tells of every step of the stage, of each once and in order, and of nothing that it did
    not see: a record is held against a re-run, which lands elsewhere if a step was other than told.

    Args:
        stage: what to hear.
    """

    def __init__(self, stage: OpenStage) -> None:
        self.stage = stage

    @property
    def steps(self) -> range:
        """The steps that are still to be made; empty for a stage that the record holds whole."""
        return range(self.stage.start, self.stage.header.steps)

    @abstractmethod
    def attach(self) -> None:
        """Begin to hear; the stage's first state has been taken."""

    @abstractmethod
    def detach(self) -> None:
        """Hear no more; called in any case, whatever happened in the stage."""

    def state(self) -> State:
        """The state as it stands between two steps, on the CPU, with the random state that follows.

        Raises:
            RecordError: if the optimizer keeps state that belongs to no parameter of the model.
        """
        return replace(self.stage.states.now(), rng=random_state(self.stage.device))


def other_autocast(place: str, now: Autocast | None, before: Autocast | None) -> RecordError:
    """The error for a pass under another autocast than the passes before it."""
    return RecordError(
        f"{place}: {_words(now)}, before {_words(before)}",
        "train a whole stage under one precision of autocast",
    )


def _words(autocast: Autocast | None) -> str:
    if autocast is None:
        return "no autocast"
    cache = "" if autocast.cache else " without its cache"
    inputs = " of cast inputs" if autocast.inputs else ""
    return f"autocast to {autocast.dtype} around the {autocast.around}{inputs}{cache}"
