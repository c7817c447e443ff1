"""Scores that another tool made: an evaluation harness, a lab, people."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar, Literal, final

from pydantic import Field

from auditspec.behaviors.metrics.interface import Metric, Outputs
from auditspec.errors import EstimationError
from auditspec.results import Text
from auditspec.spec.models import Name

if TYPE_CHECKING:  # whoever reads a spec needs no torch
    from torch import Tensor


@final
class External(Metric):
    """Read from a table of scores of the models that `auditspec counterfactuals` writes."""

    name: Literal["external"]
    table: Name | None = Field(default=None, alias="scores")
    """Artifact with the scores; null: there are none yet, and the behaviour is not measured."""
    own_unit: Text = Field(alias="unit")
    is_binary: bool = Field(default=False, alias="binary")
    """True where every example scores 0 or 1."""
    predicts: ClassVar[bool] = False
    elsewhere: ClassVar[bool] = True

    @property
    def words(self) -> str:
        """Names the artifact."""
        return "scores made elsewhere" + (f" ('{self.table}')" if self.table else "")

    @property
    def unit(self) -> str:
        """As the spec states it."""
        return self.own_unit

    @property
    def binary(self) -> bool:
        """As the spec states it."""
        return self.is_binary

    @property
    def differentiable(self) -> bool:
        """Nothing is known of the way from parameters to scores."""
        return False

    @property
    def artifacts(self) -> Mapping[str, str]:
        """The table."""
        return {} if self.table is None else {"scores": self.table}

    def scores(self, outputs: Outputs) -> Tensor:
        """None: no model is asked.

        Raises:
            EstimationError: always.
        """
        raise EstimationError("scores that were made elsewhere stand in a table")
