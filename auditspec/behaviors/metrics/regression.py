"""Metrics of models that predict a number."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal, final

from pydantic import Field

from auditspec.behaviors.metrics.interface import Metric, Outputs
from auditspec.errors import EstimationError
from auditspec.results import Text
from auditspec.spec.measures import OutputKind

if TYPE_CHECKING:  # whoever reads a spec needs no torch
    from torch import Tensor


@final
class Error(Metric):
    """Predicted less true value: its mean is the bias; the statistics `mae` and `rmse` read its size."""

    name: Literal["error"]
    own_unit: Text = Field(alias="unit")
    """Of the values."""
    words: ClassVar[str] = "predicted less true value"
    reads: ClassVar[tuple[OutputKind, ...]] = ("values",)
    labelled: ClassVar[bool] = True

    @property
    def unit(self) -> str:
        """As the spec states it."""
        return self.own_unit

    def scores(self, outputs: Outputs) -> Tensor:
        """Predicted less true value, in float64.

        Raises:
            EstimationError: if predict gives more or fewer numbers than one an example.
        """
        values = outputs.predict(outputs.model, outputs.batch)
        if values.numel() != len(outputs.labels):
            raise EstimationError(
                f"predict gave a tensor of shape {tuple(values.shape)}",
                "return one value an example, of shape [batch]",
            )
        return values.reshape(-1).double() - outputs.labels
