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

Mixed precision is that of Fabric: around the model's own forward, of inputs that were cast before; inside
`fabric.autocast()` around the rest of the objective too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

from torch import nn

from auditspec.errors import RecordError
from auditspec.integrations.library_hooks import LibraryHooks
from auditspec.record.format import Autocast
from auditspec.recorder.events import OpenStage

if TYPE_CHECKING:
    from lightning.fabric import Fabric


def through(fabric: Fabric) -> Callable[[OpenStage], FabricHooks]:
    """The source of a stage that is trained through Fabric, for `recorder.stage(source=...)`.

    Raises:
        RecordError: once the stage begins, if Fabric trains on several processes.
    """
    return partial(FabricHooks, fabric)


class FabricHooks(LibraryHooks):
    """Hears a loop through Fabric."""

    _around = "forward"
    """What the autocast of this moment lies around, if there is one."""

    def methods(self) -> Mapping[str, Callable[..., Any]]:
        """`backward`, clipping, and autocast that the loop enters itself."""
        return {
            **super().methods(),
            "clip_gradients": self._clip,
            "autocast": self._autocast_around,
        }

    def attach(self) -> None:
        """Put the hooks on.

        Raises:
            RecordError: if Fabric trains on several processes.
        """
        if self._library.world_size > 1:
            raise RecordError(
                f"{self._library.world_size} processes of Fabric cannot be recorded",
                "train in one process",
            )
        super().attach()

    def _entered(self, around: Any) -> Autocast | None:
        entered = super()._entered(around)
        if entered is None:
            return None
        return entered.model_copy(update={"around": self._around, "inputs": True})

    @contextmanager
    def _autocast_around(self) -> Iterator[None]:
        """Autocast as Fabric has it, around more than the model."""
        self._around = "objective"
        try:
            with self._original("autocast")():
                yield
        finally:
            self._around = "forward"

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
        return self._original("clip_gradients")(module, optimizer, **options)
