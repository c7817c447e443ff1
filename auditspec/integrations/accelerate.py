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

from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

from auditspec.errors import RecordError
from auditspec.integrations.library_hooks import LibraryHooks
from auditspec.recorder.events import OpenStage

if TYPE_CHECKING:
    from accelerate import Accelerator


def through(accelerator: Accelerator) -> Callable[[OpenStage], AcceleratorHooks]:
    """The source of a stage that is trained through an accelerator, for `recorder.stage(source=...)`.

    Raises:
        RecordError: once the stage begins, if the accelerator trains on several processes, by an engine of
            its own, or on a compiled model.
    """
    return partial(AcceleratorHooks, accelerator)


class AcceleratorHooks(LibraryHooks):
    """Hears a loop through its accelerator."""

    @property
    def divisor(self) -> int:
        """Passes of a step, as the accelerator was told."""
        return int(self._library.gradient_accumulation_steps)

    def methods(self) -> Mapping[str, Callable[..., Any]]:
        """`backward`, and clipping, which is refused by value and by other norms."""
        clipping = {"clip_grad_value_": self._clip_by_value, "clip_grad_norm_": self._clip}
        return {**super().methods(), **clipping}

    def attach(self) -> None:
        """Put the hooks on.

        Raises:
            RecordError: if the accelerator trains in a way that no re-run on one device repeats.
        """
        _refuse(self._library)
        super().attach()

    def _clip(self, parameters: Any, max_norm: float, norm_type: float = 2) -> Any:
        if float(norm_type) != 2:
            raise self._refused("clipping by another norm than the 2-norm")
        return self._original("clip_grad_norm_")(parameters, max_norm, norm_type)

    def _clip_by_value(self, *args: Any, **options: Any) -> None:
        raise self._refused("clipping by value")

    def _refused(self, clipping: str) -> RecordError:
        return RecordError(
            f"{self._place}: {clipping} cannot be recorded",
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
