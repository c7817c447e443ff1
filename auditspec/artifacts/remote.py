"""A function of the audited code that lives in another process, as the audit sees it.

It is called like any other. What looks *into* a function, or computes with its inner steps, has to be done where
the function is: that is asked of it here.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from auditspec.artifacts.datasets import Dataset


class RemoteFunction(ABC):
    """A function of another process."""

    @abstractmethod
    def __call__(self, *arguments: Any) -> Any:
        """Call it. Derivatives go through it; a model that it changes or gives is seen as it is afterwards."""

    @abstractmethod
    def outputs(
        self, model: nn.Module, states: Sequence[Any], batches: Sequence[Any]
    ) -> list[list[Any]]:
        """Call it on several batches at each of several states of a model (`record.state.State`), without gradients; one
        question for all.

        Every state begins with the same random state; the model is left at the last one.
        """

    @abstractmethod
    def expect(self, batches: Iterable[tuple[Dataset, Sequence[int]]]) -> None:
        """Be told, where it loads batches, in what order they will mostly be asked for."""

    @abstractmethod
    def widened(self, drawn: torch.dtype, dtype: torch.dtype) -> RemoteFunction:
        """The same under `Widening` (engine/widening.py)."""

    @abstractmethod
    def through_output(self, model: nn.Module, batch: Any) -> tuple[Tensor, Tensor, Tensor]:
        """As `model_output.through_output`."""

    @abstractmethod
    def batched(self, model: nn.Module, trained: Sequence[str], buffers: Sequence[str]) -> Any:
        """As `batched_gradient.batched_gradient`."""

    @abstractmethod
    def named_files(self, folders: Iterable[Path]) -> set[Path]:
        """As `named_files.named_files`, among the code's own sources."""

    @abstractmethod
    def unregistered(self, model: nn.Module) -> dict[str, Tensor]:
        """As `unregistered.unregistered`."""
