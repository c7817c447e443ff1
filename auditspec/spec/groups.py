"""Parameter groups: which parameters train with other hyperparameters than the rest, told by their names."""

from __future__ import annotations

import re
from fnmatch import fnmatchcase
from typing import Annotated, Any, Literal

from pydantic import Field

from auditspec.frozen import Frozen
from auditspec.results import Text

NonNegative = Annotated[float, Field(ge=0)]
Decay = Annotated[float, Field(ge=0, lt=1)]
BIASES_AND_NORMS = "biases-and-norms"
_NAMES = re.compile(r"bias|layernorm|rmsnorm|(^|\.)norm($|\.)|_norm($|\.)")
"""Parameters that transformers' Trainer spares weight decay, by their lower-case names."""


class ParameterGroup(Frozen):
    """Parameters with hyperparameters of their own; what is left out is as in the optimizer."""

    parameters: Literal["biases-and-norms"] | Annotated[tuple[Text, ...], Field(min_length=1)]
    """biases-and-norms: those that transformers' Trainer gives no weight decay; or patterns of names, in which
    `*` stands for any text."""
    lr: NonNegative | None = None
    """The largest learning rate of the group."""
    weight_decay: NonNegative | None = None
    momentum: NonNegative | None = None
    betas: tuple[Decay, Decay] | None = None
    eps: NonNegative | None = None
    options: dict[str, float | bool | str | tuple[float, ...]] = Field(default_factory=dict)
    """Further hyperparameters."""

    @property
    def own(self) -> dict[str, Any]:
        """The hyperparameters that it states, by name; without the learning rate."""
        names = ("weight_decay", "momentum", "betas", "eps")
        stated = {name: value for name in names if (value := getattr(self, name)) is not None}
        return stated | self.options

    def holds(self, name: str, dimensions: int) -> bool | None:
        """Whether a parameter is of the group; None where its name does not tell.

        Trainer spares LayerNorm layers by their class, which a record does not name: a vector that is no bias, such
        as `ln_1.weight`, may be of either.
        """
        if self.parameters != BIASES_AND_NORMS:
            return any(fnmatchcase(name, pattern) for pattern in self.parameters)
        if _NAMES.search(name.lower()):
            return True
        return None if dimensions == 1 else False
