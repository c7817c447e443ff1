"""Hear a loop that hands its losses to an object of a library, which calls `backward` for it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor

from auditspec.artifacts.datasets import Dataset
from auditspec.recorder.events import OpenStage
from auditspec.recorder.torch_hooks import TorchHooks


class LibraryHooks(TorchHooks):
    """Hears a loop through such an object, its model, and its optimizer.

    Args:
        library: the object; while the stage is open, some of its methods are heard.
        stage: what to hear.
    """

    def __init__(self, library: Any, stage: OpenStage) -> None:
        super().__init__(stage)
        self._library = library
        self._weight = 1.0
        """Of the batch that was declared last, as the loop said."""

    @property
    def divisor(self) -> int:
        """What the library itself divides each loss by."""
        return 1

    def methods(self) -> Mapping[str, Callable[..., Any]]:
        """The library's methods that are heard, by name."""
        return {"backward": self._backward}

    def attach(self) -> None:
        """Put the hooks on."""
        super().attach()
        vars(self._library).update(self.methods())

    def detach(self) -> None:
        """Take the hooks off."""
        for name in self.methods():
            vars(self._library).pop(name, None)
        super().detach()

    def batch(
        self,
        ids: Any = None,
        *,
        tensors: Any = None,
        dataset: Dataset | None = None,
        weight: float = 1.0,
    ) -> None:
        """Declare the next microbatch, as `TorchHooks.batch` says.

        Args:
            ids: row numbers.
            tensors: the batch itself.
            dataset: that the ids point into.
            weight: the factor by which the loop itself multiplies the loss; what the library divides it by
                comes on top.
        """
        self._weight = weight
        super().batch(ids, tensors=tensors, dataset=dataset, weight=weight / self.divisor)

    def _original(self, name: str) -> Callable[..., Any]:
        """A method as the library has it."""
        method: Callable[..., Any] = getattr(type(self._library), name).__get__(self._library)
        return method

    def _backward(self, loss: Tensor, *args: Any, **options: Any) -> None:
        if self._weight == 1.0:  # else it is not the objective's own
            self.watch(loss)
        self._original("backward")(loss, *args, **options)
