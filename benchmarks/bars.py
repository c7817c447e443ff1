"""What the estimators have to reach: every bar, as data, with how its figure is read off a result.

A result is `results/ladder.json`. Figures are medians over seeds; NaN where they cannot be had,
which reaches no bar.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

from .metrics import coverage, median

Result = dict[str, Any]
FEWEST_SEEDS = 3

ERROR_AT_A_QUARTER = {
    "digits-sgd-gentle": 0.02,
    "digits-sgd-cnn": 0.32,
    "digits-adamw-gentle": 0.18,
    "digits-adamw-mlp": 0.42,
    "digits-adamw-cnn": 0.58,
}
ERROR_AT_A_HALF = {
    "digits-sgd-gentle": 0.008,
    "digits-sgd-cnn": 0.13,
    "digits-adamw-gentle": 0.08,
    "digits-adamw-mlp": 0.25,
    "digits-adamw-cnn": 0.50,
}
LEADING, COVERAGE, WIDTH = 0.90, 0.90, 3.0
PAIRED = ("paired-replay 1/8", "paired-replay 1/4", "paired-replay 1/2")


@dataclass(frozen=True)
class Bar:
    """One bar: a figure that has to be at most, or at least, `limit`; None: only shown."""

    what: str
    figure: Callable[[Result], float]
    limit: float | None = None
    at_least: bool = False

    def reached(self, measured: float) -> bool:
        """Whether a figure reaches the bar; one that only shows always does."""
        if self.limit is None:
            return True
        return measured >= self.limit if self.at_least else measured <= self.limit


def bars() -> Iterator[Bar]:
    """Every bar, in the order in which they are printed."""
    for name, fraction, limits in (
        ("paired-replay 1/4", "1/4", ERROR_AT_A_QUARTER),
        ("paired-replay 1/2", "1/2", ERROR_AT_A_HALF),
    ):
        for setting, limit in limits.items():
            figure = partial(error_middle, setting=setting, estimator=name)
            yield Bar(
                f"paired replay at {fraction}, error over middle stages, {setting}", figure, limit
            )
    yield Bar(
        "auto at 1/4, leading stage right",
        partial(leading_share, estimator="auto 1/4"),
        LEADING,
        at_least=True,
    )
    yield Bar("none, leading stage right", partial(leading_share, estimator="none"))
    for name in PAIRED:
        barred = name == "paired-replay 1/4"
        yield Bar(
            f"twin of {name}, true error covered",
            partial(twin_coverage, estimator=name),
            COVERAGE if barred else None,
            at_least=True,
        )
        yield Bar(
            f"twin of {name}, median of estimated / true error",
            partial(twin_width, estimator=name),
            WIDTH if barred else None,
        )


# --- figures --------------------------------------------------------------------------------------


def runs(
    result: Result, estimator: str, setting: str | None = None
) -> Iterator[tuple[str, Result]]:
    """(setting, what was measured) of every seed on which the estimator ran."""
    for name, held in result["settings"].items():
        if setting in (None, name):
            for seed in held["seeds"].values():
                found = seed.get("estimators", {}).get(estimator, {})
                if found and "refused" not in found:
                    yield name, found


def error_middle(result: Result, *, setting: str, estimator: str) -> float:
    """Median over seeds of the error over the middle stages; NaN of fewer than three seeds."""
    found = [run["error_middle"] for _, run in runs(result, estimator, setting)]
    return median(found) if len(found) >= FEWEST_SEEDS else math.nan


def leading_share(result: Result, *, estimator: str, setting: str | None = None) -> float:
    """Share of the decisive behaviours of all settings and seeds whose leading stage is right."""
    found = [run["leading"] for _, run in runs(result, estimator, setting)]
    counted = sum(lead["counted"] for lead in found)
    return sum(lead["right"] for lead in found) / counted if counted else math.nan


def twin_cases(
    result: Result, estimator: str, setting: str | None = None
) -> list[tuple[float, float]]:
    """(estimated, true) error of every stage, setting, and seed."""
    return [
        (stage["estimated"], stage["true"])
        for _, run in runs(result, estimator, setting)
        for stage in run.get("twin", {"stages": {}})["stages"].values()
    ]


def twin_coverage(result: Result, *, estimator: str, setting: str | None = None) -> float:
    """Share of stage x setting x seed whose true error the twin's estimate covers."""
    cases = twin_cases(result, estimator, setting)
    return coverage([e for e, _ in cases], [t for _, t in cases])


def twin_width(result: Result, *, estimator: str, setting: str | None = None) -> float:
    """Median over stage x setting x seed of estimated / true error."""
    return median([e / t for e, t in twin_cases(result, estimator, setting) if t])
