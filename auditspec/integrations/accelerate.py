"""Record a loop that trains through an `accelerate.Accelerator`.

::

    model, optimizer, loader, scheduler = accelerator.prepare(model, optimizer, loader, scheduler)
    with recorder.stage(
        "tune", optimizer, objective, dataset=data, steps=steps, source=through(accelerator)
    ) as run:
        for batch in recorded(loader, run):  # auditspec.integrations.loader
            with accelerator.accumulate(model):
                accelerator.backward(objective(model, batch))
                ...

What `Accelerator.backward` divides a loss by, or scales it by, is read off its gradient; the autocast that
`prepare` puts into the model's forward is seen inside of it.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

from torch import Tensor

from auditspec.artifacts.datasets import Dataset
from auditspec.errors import RecordError
from auditspec.recorder.events import OpenStage
from auditspec.recorder.torch_hooks import TorchHooks

if TYPE_CHECKING:
    from accelerate import Accelerator


def through(accelerator: Accelerator) -> Callable[[OpenStage], AcceleratorHooks]:
    """The source of a stage that is trained through an accelerator, for `recorder.stage(source=...)`.

    Raises:
        RecordError: once the stage begins, if the accelerator trains on several processes, by an engine of
            its own, or on a compiled model.
    """
    return partial(AcceleratorHooks, accelerator)


class AcceleratorHooks(TorchHooks):
    """Hears a loop through its accelerator, its model, and its optimizer.

    Args:
        accelerator: what the loop calls `backward` of.
        stage: what to hear.
    """

    def __init__(self, accelerator: Accelerator, stage: OpenStage) -> None:
        super().__init__(stage)
        self._accelerator = accelerator
        self._weight = 1.0
        """Of the batch that was declared last, as the loop said."""

    def attach(self) -> None:
        """Put the hooks on.

        Raises:
            RecordError: if the accelerator trains in a way that no re-run on one device repeats.
        """
        accelerator: Any = self._accelerator
        _refuse(accelerator)
        super().attach()
        accelerator.backward = self._backward
        accelerator.clip_grad_value_ = self._clip_by_value

    def detach(self) -> None:
        """Take the hooks off."""
        for name in ("backward", "clip_grad_value_"):
            vars(self._accelerator).pop(name, None)
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
            weight: the factor by which the loop itself multiplies the loss; what `Accelerator.backward`
                divides by comes on top.
        """
        self._weight = weight
        share = weight / self._accelerator.gradient_accumulation_steps
        super().batch(ids, tensors=tensors, dataset=dataset, weight=share)

    def _backward(self, loss: Tensor, **options: Any) -> None:
        if self._weight == 1.0:  # else it is not the objective's own
            self.watch(loss)
        type(self._accelerator).backward(self._accelerator, loss, **options)

    def _clip_by_value(self, *args: Any, **options: Any) -> None:
        raise RecordError(
            f"{self._place}: clipping by value cannot be recorded",
            "clip with accelerator.clip_grad_norm_, and pass clip_norm= to recorder.stage",
        )


def _refuse(accelerator: Any) -> None:
    """Refuse what one process without an engine of its own cannot repeat.

    Raises:
        RecordError: naming it.
    """
    if accelerator.num_processes > 1:
        raise RecordError(
            f"an accelerator of {accelerator.num_processes} processes cannot be recorded",
            "train in one process",
        )
    kind = accelerator.distributed_type.value
    if kind not in ("NO", "MULTI_CPU", "MULTI_GPU"):
        raise RecordError(f"training by {kind} cannot be recorded", "train without it")
    if accelerator.state.dynamo_plugin.backend.value != "NO":
        raise RecordError(
            "a model that accelerate compiles cannot be recorded",
            "compile it in the factory, or train without dynamo_backend",
        )
