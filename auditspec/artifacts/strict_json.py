"""JSON that means one thing only.

Python's parser takes `{"a": 1, "a": 2}`, `NaN`, and `1e999`, where two readers may see two
different documents. Here each of these is an error. Integers keep every digit.
"""

from __future__ import annotations

import json
import math
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from auditspec.errors import EvidenceError, shortened

Model = TypeVar("Model", bound=BaseModel)


def parse(data: bytes, what: str) -> Any:
    """The value that `data` (UTF-8, no byte order mark) encodes; `what` names it in errors.

    Raises:
        EvidenceError: if it is not JSON, or is ambiguous: repeated keys, numbers that are not
            finite, text that is not Unicode.
    """
    try:
        value = json.loads(
            data.decode("utf-8"),
            object_pairs_hook=_object,
            parse_constant=_constant,
            parse_float=_float,
        )
        if b"\\u" in data:  # an escape can spell half of a surrogate pair
            json.dumps(value, ensure_ascii=False).encode("utf-8")
    except RecursionError:
        raise EvidenceError(f"{what}: nested too deeply") from None
    except ValueError as error:  # decoding, syntax, and what the hooks below refuse
        raise EvidenceError(f"{what}: not strict JSON ({error})") from None
    return value


def load(model: type[Model], data: bytes, what: str, context: object = None) -> Model:
    """The pydantic model that `data` encodes; `context` is for its own validation.

    Raises:
        EvidenceError: as `parse` and `fit`.
    """
    return fit(model, parse(data, what), what, context)


def fit(model: type[Model], value: Any, what: str, context: object = None) -> Model:
    """The pydantic model that a parsed value is; `context` is for its own validation.

    Raises:
        EvidenceError: if it does not fit the model; gives the first place.
    """
    try:
        return model.model_validate(value, context=context)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        where = f"{what}: {place}" if place else what
        raise EvidenceError(f"{where}: {first['msg']}") from None


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result: dict[str, Any] = {}
    for key, value in pairs:
        if key in result:
            raise ValueError(f"key {shortened(key, 80)!r} stands twice")
        result[key] = value
    return result


def _constant(name: str) -> float:
    raise ValueError(f"{name} is not a JSON number")


def _float(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{shortened(text, 80)} is out of range")
    return value
