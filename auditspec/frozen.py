"""What every published type is: immutable, and strict about what it holds."""

from __future__ import annotations

from typing import ClassVar, Self

from pydantic import BaseModel, ConfigDict, model_validator
from pydantic_core import PydanticCustomError


class Frozen(BaseModel):
    """Base of every published type: immutable, strict about keys, finite numbers only."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)
    parallel: ClassVar[tuple[str, ...]] = ()
    """Lists that hold one item each for the same things, and so are of one length."""

    @model_validator(mode="after")
    def _of_one_length(self) -> Self:
        lists = {name: getattr(self, name) for name in self.parallel}
        lengths = {name: len(items) for name, items in lists.items() if isinstance(items, tuple)}
        if len(set(lengths.values())) > 1:
            told = ", ".join(f"{name} {length}" for name, length in lengths.items())
            raise PydanticCustomError(
                "unequal", "lists that are to be of one length: {told}", {"told": told}
            )
        return self
