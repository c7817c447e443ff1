"""Sentences as data: a code, and the values that its sentence is about."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Annotated, TypeAlias

from pydantic import Field, model_validator
from pydantic_core import PydanticCustomError

from auditspec.frozen import Frozen

CODE = r"^(?:[a-z0-9][a-z0-9._-]{0,63}:)?[a-z][a-z0-9-]{0,79}$"
"""What a code looks like: words of lower-case letters joined by '-'; those of a plug-in begin with its name
and a colon."""
DEEPEST = 8
"""Most messages within one another."""


class Message(Frozen):
    """A sentence as data: which one, and what it is about (docs/codes.md).

    A language's catalogue (`report.words`) turns it into words. Ids stand as they are, numbers unrounded;
    text that is no sentence of this tool, such as an error of the audited code, is a value.
    """

    code: Annotated[str, Field(pattern=CODE)]
    values: dict[str, Value] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _not_too_deep(self) -> Message:
        if self._depth() > DEEPEST:
            raise PydanticCustomError("too_deep", f"messages within messages, {DEEPEST} at most")
        return self

    def _depth(self) -> int:
        """How many messages stand within one another here, this one counted."""
        values = [v for value in self.values.values() for v in _listed(value)]
        return 1 + max((v._depth() for v in values if isinstance(v, Message)), default=0)

    def __hash__(self) -> int:
        return hash(self.model_dump_json())


Scalar: TypeAlias = str | bool | int | float | Message
Value: TypeAlias = Scalar | tuple[Scalar, ...]
"""Of a message: text, a number, a truth value, another message, or a list of these."""
Message.model_rebuild()


def _listed(value: Value) -> tuple[Scalar, ...]:
    return value if isinstance(value, tuple) else (value,)


def message(code: str, /, **values: Scalar | Sequence[Scalar]) -> Message:
    """A message of this code; the code is written out, so that every one that is made can be found.

    In the place of a number that is not finite stands the message that says so.
    """
    return Message.model_validate(
        {"code": code, "values": {name: _finite(value) for name, value in values.items()}}
    )


def _finite(value: Scalar | Sequence[Scalar]) -> Scalar | Sequence[Scalar]:
    if isinstance(value, float) and not math.isfinite(value):
        return message("not-finite")
    return value


def unique(messages: Iterable[Message]) -> tuple[Message, ...]:
    """The messages, each once, in order."""
    return tuple(dict.fromkeys(messages))
