"""What is withheld of published results: the marker in the document, and what stands for it in memory.

In `results.json` a marker stands in the place of a withheld leaf:

    {"$withheld": "<commitment, 64 hex digits>", "reason": "<by whoever withheld it>"}

In memory an `Undisclosed` stands in the place of a field that is withheld, or that holds a withheld item. No type names it: whoever
uses it, be it to compare, to count, or to print, gets a `WithheldError`. So nothing can take it for 0, for an empty text, or for
what was never measured; what can show that something is withheld asks `is_withheld` first.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from types import NoneType
from typing import Any, NoReturn, TypeVar, get_args

from pydantic import BaseModel, TypeAdapter

from auditspec.errors import WithheldError

MARKER = "$withheld"
LONGEST_REASON = 300
"""Characters."""
_COMMITMENT = re.compile(r"[0-9a-f]{64}")
Model = TypeVar("Model", bound=BaseModel)
T = TypeVar("T")


@dataclass(frozen=True)
class Withheld:
    """A leaf that is withheld."""

    pointer: str
    """Into results.json (RFC 6901)."""
    commitment: str
    """64 hex digits."""
    reason: str
    """In the words of whoever withheld it, which nobody signed."""


def is_marker(value: Any) -> bool:
    """Whether a value of a document stands for a withheld leaf."""
    return isinstance(value, dict) and MARKER in value


def marker(commitment: str, reason: str) -> dict[str, str]:
    """What stands in a document in the place of a leaf."""
    return {MARKER: commitment, "reason": reason}


def leaves(value: Any, pointer: str = "") -> Iterator[tuple[str, Any]]:
    """Every leaf of a document with its pointer, in the document's order: what is no list or object, or an empty one, or a marker."""
    if isinstance(value, dict) and value and MARKER not in value:
        for key, item in value.items():
            yield from leaves(item, f"{pointer}/{key.replace('~', '~0').replace('/', '~1')}")
    elif isinstance(value, list) and value:
        for index, item in enumerate(value):
            yield from leaves(item, f"{pointer}/{index}")
    else:
        yield pointer, value


def withheld_in(document: Any) -> tuple[Withheld, ...]:
    """The withheld leaves of a document, in its order.

    Raises:
        ValueError: if a marker is malformed.
    """
    found = ((pointer, value) for pointer, value in leaves(document) if is_marker(value))
    return tuple(_withheld(pointer, value) for pointer, value in found)


def _withheld(pointer: str, value: Mapping[str, Any]) -> Withheld:
    commitment, reason = value[MARKER], value.get("reason")
    if (
        value.keys() != {MARKER, "reason"}
        or not isinstance(commitment, str)
        or not _COMMITMENT.fullmatch(commitment)
        or not isinstance(reason, str)
        or not 0 < len(reason) <= LONGEST_REASON
    ):
        raise ValueError(f"{pointer}: what marks it as withheld is malformed")
    return Withheld(pointer, commitment, reason)


# --- in memory ------------------------------------------------------------------------------------


class Undisclosed:
    """In the place of a field that is withheld; any use of it raises `WithheldError`."""

    def __init__(self, pointer: str) -> None:
        object.__setattr__(self, "_pointer", pointer)

    def __repr__(self) -> str:
        return f"<withheld: {object.__getattribute__(self, '_pointer')}>"

    def __getattr__(self, name: str) -> NoReturn:
        if name.startswith("__"):  # what Python itself looks for
            raise AttributeError(name)
        _refuse(self)


def _refuse(self: Undisclosed, *_: object) -> NoReturn:
    raise WithheldError(object.__getattribute__(self, "_pointer"))


for _name in [
    "eq",
    "ne",
    "lt",
    "le",
    "gt",
    "ge",
    "hash",
    "bool",
    "len",
    "iter",
    "next",
    "contains",
    "getitem",
    "call",
    "str",
    "format",
    "int",
    "float",
    "index",
    "round",
    "abs",
    "neg",
    "pos",
    "add",
    "radd",
    "sub",
    "rsub",
    "mul",
    "rmul",
    "truediv",
    "rtruediv",
    "floordiv",
    "rfloordiv",
    "mod",
    "rmod",
    "pow",
    "rpow",
    "and",
    "rand",
    "or",
    "ror",
]:
    setattr(Undisclosed, f"__{_name}__", _refuse)


def is_withheld(*values: object) -> bool:
    """Whether one of these fields is withheld."""
    return any(isinstance(value, Undisclosed) for value in values)


def unless_withheld(make: Callable[[], T], otherwise: T) -> T:
    """What is made of some fields, or something else where one that it uses is withheld."""
    try:
        return make()
    except WithheldError:
        return otherwise


def opened(model: type[Model], document: Any, pointer: str = "") -> Model:
    """The model that a document with markers is, an `Undisclosed` in the place of each field that holds one.

    Fields without markers are validated as ever; rules across fields of an object with markers are not.

    Raises:
        ValueError: if the rest does not fit the model, or a marker is malformed.
    """
    if not isinstance(document, dict) or not document.keys() <= model.model_fields.keys():
        raise ValueError(f"{pointer or 'the document'}: is no {model.__name__}")
    fields = {
        name: _field(model, name, value, f"{pointer}/{name}") for name, value in document.items()
    }
    for name, field in model.model_fields.items():
        if name not in fields and field.is_required():
            raise ValueError(f"{pointer}/{name}: missing")
    return model.model_construct(None, **fields)


def _field(model: type[BaseModel], name: str, value: Any, pointer: str) -> Any:
    if not (markers := withheld_in(value)):
        return _adapter(model, name).validate_python(value)
    inner = _model_within(model.model_fields[name].annotation)
    if inner is not None and isinstance(value, dict) and not is_marker(value):
        return opened(inner, value, pointer)
    if inner is not None and isinstance(value, list):
        return tuple(
            Undisclosed(f"{pointer}/{index}")
            if is_marker(item)
            else opened(inner, item, f"{pointer}/{index}")
            for index, item in enumerate(value)
        )
    return Undisclosed(f"{pointer}{markers[0].pointer}")


@cache
def _adapter(model: type[BaseModel], name: str) -> TypeAdapter[Any]:
    field = model.model_fields[name]
    return TypeAdapter(_annotated(field.annotation, tuple(field.metadata)))


def _annotated(annotation: Any, metadata: tuple[Any, ...]) -> Any:
    from typing import Annotated

    for item in metadata:
        annotation = Annotated[annotation, item]
    return annotation


def _model_within(annotation: Any) -> type[BaseModel] | None:
    """The one model that a field holds, alone, optional, or in a tuple; None where it holds something else."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    arguments = [a for a in get_args(annotation) if a not in (NoneType, Ellipsis)]
    return _model_within(arguments[0]) if len(arguments) == 1 else None
