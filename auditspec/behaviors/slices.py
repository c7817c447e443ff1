"""Which rows of a table a `where` selects.

A missing value satisfies no comparison and is in no list, negated or not: `x != 3` and
`x not in [3]` are false where x is missing. `not (x == 3)` is true there.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any, Literal, cast

import numpy as np
import pandas as pd

from auditspec.errors import EvidenceError
from auditspec.spec import where as grammar
from auditspec.spec.suggest import did_you_mean

Mask = np.ndarray[tuple[int], np.dtype[np.bool_]]
Rows = np.ndarray[tuple[int], np.dtype[np.int64]]
Kind = Literal["number", "text", "truth value", "missing"]

_COMPARE: dict[str, Callable[[Any, Any], Any]] = {
    "==": operator.eq,
    "!=": operator.ne,
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}
_KINDS: dict[str, Kind] = {
    "boolean": "truth value",
    "integer": "number",
    "floating": "number",
    "mixed-integer-float": "number",
    "string": "text",
    "empty": "missing",
}


def select(frame: pd.DataFrame, where: str | None) -> Rows:
    """Row numbers, ascending, of the rows for which `where` holds; of all rows where it is None.

    Raises:
        EvidenceError: if a column is missing or ambiguous, a comparison mixes kinds (a text with a
            number), or no row is left.
        WhereError: if `where` is not an expression of the grammar.
    """
    if where is None:
        rows = np.arange(len(frame), dtype=np.int64)
    else:
        rows = np.flatnonzero(matches(frame, grammar.parse(where))).astype(np.int64)
    if not rows.size:
        raise EvidenceError(
            f"no row of {len(frame)} matches where: {where}" if where else "the data has no rows",
            "correct the slice, or the data that it reads",
        )
    return rows


def matches(frame: pd.DataFrame, expression: grammar.Expression) -> Mask:
    """For which rows an expression holds.

    Raises:
        EvidenceError: as `select`, except that no row may be left.
    """
    match expression:
        case grammar.Comparison(left=left, operator=symbol, right=right):
            return _compare(frame, left, symbol, right)
        case grammar.Membership(column=column, values=values, negated=negated):
            symbol, combine = ("!=", np.logical_and) if negated else ("==", np.logical_or)
            return cast(Mask, combine.reduce([_compare(frame, column, symbol, v) for v in values]))
        case grammar.Not(term=term):
            return ~matches(frame, term)
        case grammar.And(terms=terms):
            return cast(Mask, np.logical_and.reduce([matches(frame, term) for term in terms]))
        case grammar.Or(terms=terms):
            return cast(Mask, np.logical_or.reduce([matches(frame, term) for term in terms]))


def _compare(
    frame: pd.DataFrame,
    left: grammar.Column | grammar.Literal,
    symbol: str,
    right: grammar.Column | grammar.Literal,
) -> Mask:
    """Compare where neither side is missing; false elsewhere."""
    sides = [_operand(frame, side) for side in (left, right)]
    kinds = {kind for _, kind in sides} - {"missing"}
    if len(kinds) > 1 or (kinds == {"truth value"} and symbol not in ("==", "!=")):
        (_, first), (_, second) = sides
        raise EvidenceError(
            f"where: {left} {symbol} {right} compares a {first} with a {second}",
            "compare numbers with numbers, quoted text with text, and true or false by == or !=",
        )
    present = np.ones(len(frame), dtype=np.bool_)
    for values, _ in sides:
        if isinstance(values, pd.Series):
            present &= values.notna().to_numpy(dtype=np.bool_)
    mask = np.zeros(len(frame), dtype=np.bool_)
    a, b = (v[present].to_numpy() if isinstance(v, pd.Series) else v for v, _ in sides)
    mask[present] = _COMPARE[symbol](a, b)
    return mask


def _operand(
    frame: pd.DataFrame, side: grammar.Column | grammar.Literal
) -> tuple[pd.Series[Any] | int | float | str | bool, Kind]:
    if isinstance(side, grammar.Literal):
        match side.value:
            case bool():
                return side.value, "truth value"
            case str():
                return side.value, "text"
            case _:
                return side.value, "number"
    values = _column(frame, side.name)
    kind = _KINDS.get(pd.api.types.infer_dtype(values, skipna=True))
    if kind is None:
        raise EvidenceError(
            f"column {side.name!r} ({values.dtype}) cannot be compared",
            "where reads columns of numbers, of text, or of truth values",
        )
    return values, kind


def _column(frame: pd.DataFrame, name: str) -> pd.Series[Any]:
    places = np.flatnonzero([label == name for label in frame.columns])
    if places.size == 0:
        raise EvidenceError(
            f"the data has no column {name!r}",
            did_you_mean(name, map(str, frame.columns), "columns"),
        )
    if places.size > 1:
        raise EvidenceError(f"the data has {places.size} columns {name!r}", "rename all but one")
    values = frame.iloc[:, int(places[0])]
    if isinstance(values.dtype, pd.CategoricalDtype):
        return values.astype(values.cat.categories.dtype)
    return values
