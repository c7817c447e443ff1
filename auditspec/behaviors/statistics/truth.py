"""A column that says of each example whether it is what a class means."""

from __future__ import annotations

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from auditspec.behaviors.statistics.interface import Columns, Misfit
from auditspec.spec.measures import DeclaredMetric

Value = bool | int | str
"""Of a column, as a spec writes it."""
SHOWN = 8
"""Most values of a column that are listed."""


def missing(columns: Columns, column: str, option: str) -> Misfit | None:
    """A column that says nothing of some examples; None where it speaks of all."""
    lacking = int(pd.isna(columns[column]).sum())
    if not lacking:
        return None
    reason = f"{lacking} of {len(columns[column])} examples have no value of {column!r}"
    return Misfit(option, reason, f"leave them out: where, with the values of {column} that count")


def listed(values: NDArray[np.generic]) -> str:
    """The values that a column holds, in words."""
    unique = sorted(map(str, pd.unique(pd.Series(values).dropna())))
    return ", ".join(unique[:SHOWN]) + (", and others" if len(unique) > SHOWN else "")


def is_value(values: NDArray[np.generic], value: Value) -> NDArray[np.bool_]:
    """Where a column is a value; text is no number, and true no 1."""
    if isinstance(value, bool) != (values.dtype.kind == "b"):
        return np.zeros(len(values), dtype=bool)
    return np.asarray(values == value, dtype=bool)


def misfit_of(columns: Columns, column: str, positive: Value) -> Misfit | None:
    """Why a column does not tell examples that are positive from others; None where it does."""
    if wrong := missing(columns, column, "truth"):
        return wrong
    share = is_value(columns[column], positive).mean()
    if 0 < share < 1:
        return None
    who = "every" if share else "no"
    hint = f"{column} holds {listed(columns[column])}"
    return Misfit("positive", f"{who} example has {column} {positive!r}", hint)


def other_class(metric: DeclaredMetric, positive: Value) -> str:
    """Why a metric scores another class than the positive one; empty where it may be that one."""
    named = metric.named_classes.values()
    if isinstance(positive, str | bool) or not named or positive in named:
        return ""
    return f"positive is {positive}, and the metric's class is {', '.join(map(str, named))}"
