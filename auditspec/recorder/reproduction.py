"""A run that is made again beside what it had saved: who sees its steps before they are recorded.

`auditspec record import` gives one to a recorder. A trainer that saves checkpoints by itself asks for it, since
those of the run that is made again may not take the place of those that the run itself had saved.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any

from auditspec.recorder.events import OpenStage


class Reproduction(ABC):
    """Sees every step of a run that is made again, right after the optimizer made it."""

    arguments: Mapping[str, Any] = {}
    """Those of the trainer that trains now, by name, where it says them."""

    @abstractmethod
    def begin(self, stage: OpenStage) -> None:
        """See a stage before its first step, and before its first state is recorded."""

    @abstractmethod
    def step(self, stage: OpenStage, made: int) -> None:
        """See a stage after `made` of its steps, before the state is recorded; it may be changed here."""

    @abstractmethod
    def save(self) -> None:
        """Be told that the trainer would save now."""
