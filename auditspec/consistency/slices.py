"""Slices of the data: every comparison fits its column, means something there, and leaves rows."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

from auditspec.behaviors.slices import Rows, matches, select
from auditspec.consistency.inquiry import Inquiry
from auditspec.errors import EvidenceError
from auditspec.spec import where
from auditspec.spec.models import Behavior
from auditspec.spec.suggest import nearest
from auditspec.spec.tree import Location

if TYPE_CHECKING:
    import pandas as pd

SHOWN = 12
"""Most values of a column that are listed."""
_FLIPPED: dict[str, where.Operator] = {"<": ">", "<=": ">=", ">": "<", ">=": "<="}


def check_slice(inquiry: Inquiry, index: int, behavior: Behavior) -> tuple[int, int] | None:
    """Note what is wrong with a behaviour's slice; gives its rows and those of the table, or None."""
    held = inquiry.columns(behavior.data)
    expression = None if behavior.where is None else where.parse(behavior.where)
    columns = where.columns(expression) if expression is not None else frozenset()
    if held is None or not columns <= set(held):
        return None
    frame = inquiry.frame(behavior.data, columns)
    if frame is None:
        return None
    location: Location = ("behaviors", index, "where" if expression is not None else "data")
    if not len(frame):
        path = inquiry.spec.artifacts[behavior.data].path
        inquiry.fault("AS033", f"{path} has no rows", location, "name data with examples")
        return None
    if expression is None:
        return len(frame), len(frame)
    for term, kept in _terms(expression):
        try:
            mask = matches(frame, term)
        except EvidenceError as error:
            message = error.message.removeprefix("where: ")
            inquiry.fault("AS032", message, location, _other_kind(frame, term) or error.remedy)
            return None
        if wrong := _idle(frame, term, kept, int(mask.sum())):
            inquiry.fault("AS033", *_and_place(wrong, location))
            return None
    selected = int(matches(frame, expression).sum())
    if not selected:
        message = f"no row of {len(frame)} matches {expression}"
        inquiry.fault("AS033", message, location, "each part holds for some rows, not all at once")
        return None
    return selected, len(frame)


def rows_of(
    inquiry: Inquiry, behavior: Behavior, columns: Iterable[str]
) -> tuple[pd.DataFrame, Rows] | None:
    """Columns of a behaviour's table, and the rows of its slice, which has some; None where a column cannot be read."""
    expression = None if behavior.where is None else where.parse(behavior.where)
    read = {*columns} | (where.columns(expression) if expression is not None else frozenset())
    if not read <= {*(inquiry.columns(behavior.data) or ())}:
        return None
    frame = inquiry.frame(behavior.data, read)
    if frame is None:
        return None
    return frame, select(frame, behavior.where)


def _and_place(wrong: tuple[str, str], location: Location) -> tuple[str, Location, str]:
    return wrong[0], location, wrong[1]


def _terms(expression: where.Expression) -> Iterator[tuple[where.Comparison, bool]]:
    """The comparisons of an expression; with each, whether it may hold for no row.

    A list is one comparison for each of its values. A value that `not in` lists beside others may be
    absent from the data.
    """
    match expression:
        case where.Comparison():
            yield expression, False
        case where.Membership(column=column, values=values, negated=negated):
            for value in values:
                yield where.Comparison(column, "==", value), negated and len(values) > 1
        case where.Not(term=term):
            yield from _terms(term)
        case where.And(terms=terms) | where.Or(terms=terms):
            for term in terms:
                yield from _terms(term)


def _idle(
    frame: pd.DataFrame, term: where.Comparison, may_be: bool, selected: int
) -> tuple[str, str] | None:
    """Message and hint where a comparison decides nothing, which nobody writes on purpose."""
    column, symbol, value = _sides(term)
    if column is None or value is None:
        return (f"{term} holds for no row", "correct it, or leave it out") if not selected else None
    values = frame[column.name].dropna()
    holds = _values(column, values)
    if symbol in ("==", "!="):
        equal = selected if symbol == "==" else len(values) - selected
        alike = (
            nearest(str(value), map(str, values.unique()[:10_000]))
            if isinstance(value, str)
            else None
        )
        if equal or (may_be and alike is None):
            return None
        hint = f"did you mean {alike!r}?" if alike else holds
        return f"no row has {column} {where.Literal(value)}", hint
    if not selected:
        return f"{term} holds for no row", holds
    if selected == len(values) and _is_far(values, value):
        return f"{term} holds for every row", holds
    return None


def _sides(
    term: where.Comparison,
) -> tuple[where.Column | None, str, int | float | str | bool | None]:
    """Column, operator, and literal, the column first; None where a comparison has no such side."""
    match term.left, term.right:
        case where.Column() as column, where.Literal(value=value):
            return column, term.operator, value
        case where.Literal(value=value), where.Column() as column:
            return column, _FLIPPED.get(term.operator, term.operator), value
        case _:
            return None, term.operator, None


def _is_far(values: pd.Series[Any], value: object) -> bool:
    """Whether a number lies further from a column's values than they lie from one another."""
    if isinstance(value, str) or not len(values):
        return False
    least, most = float(values.min()), float(values.max())
    number = float(value)  # type: ignore[arg-type]  # only numbers are ordered with a column of numbers
    return not least - (most - least) <= number <= most + (most - least)


def _values(column: where.Column, values: pd.Series[Any]) -> str:
    """The values that a column holds, in words."""
    unique = values.unique()
    if len(unique) <= SHOWN:
        listed = sorted(unique, key=lambda v: (str(type(v)), v))
        return f"{column} holds {', '.join(_shown(v) for v in listed)}"
    if values.dtype.kind in "iuf":
        return f"{column} holds {values.min():g} to {values.max():g}"
    return f"{column} holds {', '.join(_shown(v) for v in unique[:SHOWN])}, and others"


def _shown(value: Any) -> str:
    if hasattr(value, "item"):
        value = value.item()
    return str(where.Literal(value)) if isinstance(value, str | int | float) else str(value)


def _other_kind(frame: pd.DataFrame, term: where.Comparison) -> str:
    """How the literal would be written for the column's kind, where it could be."""
    column, symbol, value = _sides(term)
    if column is None or value is None or isinstance(value, bool):
        return ""
    values = frame[column.name].dropna()
    if isinstance(value, str):
        try:
            number = float(value)
        except ValueError:
            return _values(column, values)
        plain = int(number) if number.is_integer() else number
        is_number = values.dtype.kind in "iuf"
        return f"write {column} {symbol} {plain}" if is_number else _values(column, values)
    if values.dtype.kind == "b" and value in (0, 1):
        return f"write {column} {symbol} {'true' if value else 'false'}"
    if values.dtype.kind == "O":
        return f"write {column} {symbol} {where.Literal(str(value))}"
    return _values(column, values)
