"""Record a loop that trains through Lightning Fabric.

::

    model, optimizer = fabric.setup(recorder.model, optimizer)
    loader = fabric.setup_dataloaders(loader)
    with recorder.stage(
        "tune", optimizer, objective, dataset=data, steps=len(loader), source=through(fabric)
    ) as run:
        for batch in recorded(loader, run):  # auditspec.integrations.loader
            fabric.backward(objective(model, batch))
            ...

Mixed precision is that of Fabric: around the model's own forward, of inputs that were cast before.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from auditspec.artifacts.datasets import Dataset
from auditspec.errors import RecordError
from auditspec.record.format import Autocast
from auditspec.recorder.events import OpenStage
from auditspec.recorder.torch_hooks import TorchHooks

if TYPE_CHECKING:
    from lightning.fabric import Fabric


def through(fabric: Fabric) -> Callable[[OpenStage], FabricHooks]:
    """The source of a stage that is trained through Fabric, for `recorder.stage(source=...)`.

    Raises:
        RecordError: once the stage begins, if Fabric trains on several processes.
    """
    return partial(FabricHooks, fabric)


class FabricHooks(TorchHooks):
    """Hears a loop through Fabric, its model, and its optimizer.

    Args:
        fabric: what the loop calls `backward` of.
        stage: what to hear.
    """

    def __init__(self, fabric: Fabric, stage: OpenStage) -> None:
        super().__init__(stage)
        self._fabric = fabric
        self._weight = 1.0
        """Of the batch that was declared last."""

    def attach(self) -> None:
        """Put the hooks on.

        Raises:
            RecordError: if Fabric trains on several processes.
        """
        fabric: Any = self._fabric
        if fabric.world_size > 1:
            raise RecordError(
                f"{fabric.world_size} processes of Fabric cannot be recorded",
                "train in one process",
            )
        super().attach()
        fabric.backward = self._backward
        fabric.clip_gradients = self._clip

    def detach(self) -> None:
        """Take the hooks off."""
        for name in ("backward", "clip_gradients"):
            vars(self._fabric).pop(name, None)
        super().detach()

    def batch(
        self,
        ids: Any = None,
        *,
        tensors: Any = None,
        dataset: Dataset | None = None,
        weight: float = 1.0,
    ) -> None:
        """Declare the next microbatch, as `TorchHooks.batch` says."""
        self._weight = weight
        super().batch(ids, tensors=tensors, dataset=dataset, weight=weight)

    def _entered(self, around: Any) -> Autocast | None:
        entered = super()._entered(around)
        if entered is None:
            return None
        return entered.model_copy(update={"around": "forward", "inputs": True})

    def _backward(self, tensor: Tensor, *args: Any, **options: Any) -> None:
        if self._weight == 1.0:  # else it is not the objective's own
            self.watch(tensor)
        type(self._fabric).backward(self._fabric, tensor, *args, **options)

    def _clip(self, module: nn.Module, optimizer: Any, *args: Any, **options: Any) -> Any:
        """Clip as Fabric does.

        Raises:
            RecordError: if it is by value, or by another norm.
        """
        if args or options.get("clip_val") is not None or float(options.get("norm_type", 2)) != 2:
            raise RecordError(
                f"{self._place}: clipping by value, or by another norm than the 2-norm, cannot be recorded",
                "clip with max_norm=, and pass clip_norm= to recorder.stage",
            )
        return type(self._fabric).clip_gradients(self._fabric, module, optimizer, **options)
