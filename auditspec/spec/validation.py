"""From a tree to a model: pydantic's errors in the words of the spec, each with its place."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any, TypeVar, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from auditspec.errors import Problem
from auditspec.spec.measures import Measure
from auditspec.spec.suggest import did_you_mean
from auditspec.spec.tree import Location, Node, Place

M = TypeVar("M", bound=BaseModel)


def validate(root: Node, model: type[M], file: str) -> tuple[M | None, list[Problem]]:
    """Build a model, strictly: nothing is coerced but an integer to a float.

    The model is None where there are problems.
    """
    try:
        # JSON mode reads lists as tuples and ISO text as dates, and stays strict otherwise.
        return model.model_validate_json(json.dumps(root.plain()), strict=True), []
    except ValidationError as error:
        details = error.errors(include_url=False, include_input=False)
        return None, list(_problems(details, root, model, file))


def shown(location: Location) -> str:
    """A location as a reader writes it: `stages[1].optimizer.lr`."""
    parts = (f"[{part}]" if isinstance(part, int) else f".{part}" for part in location)
    return "".join(parts).removeprefix(".") or "the document"


def _problems(
    details: list[ErrorDetails], root: Node, model: type[BaseModel], file: str
) -> Iterator[Problem]:
    values: dict[Location, list[ErrorDetails]] = {}
    for detail in details:
        location = _resolve(detail, root)
        node = root.nearest(location)
        match detail["type"]:
            case "missing" | "union_tag_not_found" if isinstance(node.content, dict | tuple):
                yield Problem("AS013", _missing(detail, location), file, *node.place)
            case "extra_forbidden":
                key = str(location[-1])
                hint = did_you_mean(key, _keys(model, detail["loc"]), "keys here")
                yield Problem("AS012", f"unknown key {key!r}", file, *node.key_place, hint)
            case _ if node.sound and not _is_echo(detail, node):
                values.setdefault(location, []).append(detail)
    for location, complaints in values.items():
        yield _wrong_value(complaints, location, root.nearest(location), file)


def _is_echo(detail: ErrorDetails, node: Node) -> bool:
    """True for a list that pydantic finds too short because it left out the items with errors."""
    return (
        detail["type"] == "too_short"
        and isinstance(node.content, tuple)
        and len(node.content) >= detail["ctx"]["min_length"]
    )


def _resolve(detail: ErrorDetails, root: Node) -> Location:
    """The location of an error in the document: pydantic's, less the tags of its unions."""
    location: list[str | int] = []
    node = root
    for part in detail["loc"]:
        below = node.child(part)
        if below is not None:
            location.append(part)
            node = below
    if detail["type"] == "union_tag_invalid":
        location.append(_discriminator(detail))
    return tuple(location)


def _discriminator(detail: ErrorDetails) -> str:
    return str(detail["ctx"]["discriminator"]).strip("'")


def _missing(detail: ErrorDetails, location: Location) -> str:
    if detail["type"] == "union_tag_not_found":
        return f"missing key {_discriminator(detail)!r} in {shown(location)}"
    key = detail["loc"][-1]
    if isinstance(key, int):
        return f"{shown(location)} needs at least {key + 1} values"
    return f"missing key {key!r} in {shown(location)}"


def _wrong_value(
    complaints: list[ErrorDetails], location: Location, node: Node, file: str
) -> Problem:
    """One problem for all that the members of a union say about a value."""
    first = complaints[0]
    if first["loc"][-1:] == ("[key]",):
        message = f"{shown(location)}: expected as key {_expected(first)}"
        return Problem("AS015", message, file, *node.key_place)
    if first["type"].startswith("AS"):
        line, column = _place_of_offset(node, first.get("ctx", {}).get("offset", 0))
        message = f"{shown(location)}: {first['msg']}"
        return Problem(first["type"], message, file, line, column)
    expected = " or ".join(dict.fromkeys(map(_expected, complaints)))
    code = "AS014" if all(detail["type"] in _TYPES for detail in complaints) else "AS015"
    return Problem(
        code,
        f"{shown(location)}: expected {expected}, found {_found(node)}",
        file,
        *node.place,
        _hint(complaints, node),
    )


def _place_of_offset(node: Node, offset: int) -> Place:
    """The place of a character of a text; of the text itself where it is folded or escaped."""
    line, column = node.place
    if node.source == node.content:
        return line, column + offset
    if node.source[1:-1] == node.content:
        return line, column + 1 + offset
    return line, column


# --- words -------------------------------------------------------------------------------------

_TYPES = {
    "string_type": "text",
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "bool_type": "true or false",
    "tuple_type": "a list",
    "dict_type": "a mapping",
    "model_type": "a mapping",
    "date_type": "a date like 2027-11-30",
}
_SHAPES = {
    r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$": "a name of up to 64 letters, digits, '.', '_', '-'",
    r"^[a-z0-9][a-z0-9._-]{0,63}$": "an id of up to 64 lower-case letters, digits, '.', '_', '-'",
    r"^[a-z][a-z0-9-]{0,63}$": "a name of up to 64 lower-case letters, digits, '-', beginning with a letter",
    r"^[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*$": "module:callable",
    r"^sha256:[0-9a-f]{64}$": "'sha256:' and 64 lower-case hex digits",
    r"^(auto|cpu|cuda(:\d+)?)$": "auto, cpu, cuda, or cuda:N",
    r"^https?://[^/\s]+(/\S*)?$": "an address that begins with http:// or https://",
    r"^severity>=(low|medium|high|critical)$": "severity>= and one of low, medium, high, critical",
}
_LIMITS: dict[str, Callable[[dict[str, Any]], str]] = {
    "date_parsing": lambda limit: "a date like 2027-11-30",
    "date_from_datetime_parsing": lambda limit: "a date like 2027-11-30",
    "date_from_datetime_inexact": lambda limit: "a date like 2027-11-30",
    "greater_than": lambda limit: f"a number > {limit['gt']:g}",
    "greater_than_equal": lambda limit: f"a number >= {limit['ge']:g}",
    "less_than": lambda limit: f"a number < {limit['lt']:g}",
    "less_than_equal": lambda limit: f"a number <= {limit['le']:g}",
    "literal_error": lambda limit: f"{limit['expected']}",
    "union_tag_invalid": lambda limit: f"one of {limit['expected_tags']}",
    "string_pattern_mismatch": lambda limit: _SHAPES.get(
        limit["pattern"], f"text that matches {limit['pattern']}"
    ),
    "string_too_short": lambda limit: "text that is not empty",
    "string_too_long": lambda limit: f"at most {limit['max_length']} characters",
    "too_short": lambda limit: f"at least {limit['min_length']} values",
    "too_long": lambda limit: f"at most {limit['max_length']} values",
}


def _expected(detail: ErrorDetails) -> str:
    kind = detail["type"]
    if kind in _TYPES:
        return _TYPES[kind]
    if kind in _LIMITS:
        return _LIMITS[kind](detail["ctx"])
    return detail["msg"].removeprefix("Input should be ")


def _found(node: Node) -> str:
    match node.content:
        case None:
            return "nothing"
        case bool():
            return node.source
        case int() | float():
            return f"the number {node.source}"
        case str(text):
            return repr(text if len(text) <= 60 else text[:60] + "…")
        case tuple(items):
            return f"a list of {len(items)}"
        case dict():
            return "a mapping"


def _hint(complaints: list[ErrorDetails], node: Node) -> str:
    kinds = {detail["type"] for detail in complaints}
    words = [word for detail in complaints for word in _literals(detail)]
    if "tuple_type" in kinds and node.source:
        return f"write a list: [{node.source}]"
    if isinstance(node.content, str):
        if kinds & {"int_type", "float_type"} and _is_number(node.content):
            return "remove the quotes"
        return did_you_mean(node.content, words, "known") if len(words) > 1 else ""
    if isinstance(node.content, int | float) and ("string_type" in kinds or node.source in words):
        return f'quote it: "{node.source}"'
    return ""


def _literals(detail: ErrorDetails) -> list[str]:
    context = detail.get("ctx", {})
    listed = str(context.get("expected", context.get("expected_tags", "")))
    return listed.replace("' or '", "', '").strip("'").split("', '") if listed else []


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


# --- the keys of a model -----------------------------------------------------------------------


def _keys(model: type[BaseModel], loc: tuple[int | str, ...]) -> list[str]:
    """The keys that the mapping around an unknown key may have."""
    types: list[Any] = [model]
    for part in loc[:-1]:
        types = [inner for kind in types for inner in _step(kind, part)]
    return [key for kind in types for key in _fields(kind)]


def _step(kind: Any, part: int | str) -> Iterator[Any]:
    """The types of what stands under a key, an index, or a union's tag."""
    origin, arguments = get_origin(kind), get_args(kind)
    if _is_model(kind):
        fields = _fields(kind)
        if part in fields:
            yield from _members(fields[str(part)])
        elif "name" in fields and part in get_args(fields["name"]):
            yield kind  # the tag of a discriminated union
    elif origin is dict:
        yield from _members(arguments[1])
    elif origin is tuple:
        yield from _members(arguments[0])


def _members(annotation: Any) -> Iterator[Any]:
    """The members of a union or of a kind, or the annotation itself."""
    if isinstance(annotation, type) and issubclass(annotation, Measure):
        yield from annotation.classes().values()
    elif hasattr(annotation, "__metadata__"):
        yield from _members(get_args(annotation)[0])
    elif get_origin(annotation) in (None, dict, tuple):
        yield annotation
    else:
        for member in get_args(annotation):
            yield from _members(member)


def _is_model(kind: Any) -> bool:
    return isinstance(kind, type) and get_origin(kind) is None and issubclass(kind, BaseModel)


def _fields(kind: Any) -> dict[str, Any]:
    if not _is_model(kind):
        return {}
    return {field.alias or name: field.annotation for name, field in kind.model_fields.items()}
