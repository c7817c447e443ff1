"""Metrics of the audited code itself."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar, Literal, final

from pydantic import Field

from auditspec.behaviors.metrics.interface import Metric, Outputs
from auditspec.results import Text
from auditspec.spec.models import EntryPoint, Times

if TYPE_CHECKING:  # whoever reads a spec needs no torch
    from torch import Tensor


@final
class Custom(Metric):
    """A callable (model, batch) -> [B] of the code artifact."""

    name: Literal["custom"]
    entrypoint: EntryPoint
    own_unit: Text = Field(alias="unit")
    is_binary: bool = Field(default=False, alias="binary")
    """True where every example scores 0 or 1."""
    repeats: Times = 1
    """How often the deployed model is scored, with other random numbers each time, to tell the metric's noise."""
    predicts: ClassVar[bool] = False

    @property
    def words(self) -> str:
        """Names the entry point."""
        return f"custom metric {self.entrypoint}"

    @property
    def unit(self) -> str:
        """As the spec states it."""
        return self.own_unit

    @property
    def binary(self) -> bool:
        """As the spec states it."""
        return self.is_binary

    @property
    def scorings(self) -> int:
        """As the spec states it."""
        return self.repeats

    @property
    def functions(self) -> Mapping[str, str]:
        """The entry point."""
        return {"entrypoint": self.entrypoint}

    def scores(self, outputs: Outputs) -> Tensor:
        """Whatever the callable gives."""
        return outputs.functions[self.entrypoint](outputs.model, outputs.batch)
