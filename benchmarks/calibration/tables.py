"""The study's figures as Markdown."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

from .figures import ARMS, Figure, Row, cases, caught, figures, gave_estimates

TITLES = {
    "quarter": "A quarter of exact replay's gradients",
    "lifted": "Budget lifted: exact replay",
}
VERDICTS = ("attributed", "shared", "no-effect", "inconclusive")


def calibration_tables(result: dict[str, Any]) -> str:
    """All tables."""
    return "\n".join(_lines(result)) + "\n"


def all_figures(rows: Sequence[Row]) -> list[tuple[str, Figure]]:
    """(arm, figure) of everything that is held against a bar or shown beside."""
    found = [("quarter", caught(rows))]
    for arm in ARMS:
        found += [(arm, gave_estimates(rows, arm)), *((arm, f) for f in figures(rows, arm))]
    return found


def number(value: float) -> str:
    """A figure in three digits."""
    return "none" if math.isnan(value) else f"{value:.3g}"


def bar(figure: Figure) -> str:
    """What it is held against."""
    if figure.limit is None:
        return "no bar"
    return f"{'≥' if figure.at_least else '≤'} {figure.limit:g}"


def _lines(result: dict[str, Any]) -> Iterator[str]:
    rows, seeds = result["audits"], result["seeds"]
    versions = ", ".join(f"{name} {v}" for name, v in result["versions"].items())
    kinds = Counter(row["kind"] for row in rows)
    yield "# How well calibrated verdicts and intervals are"
    yield ""
    yield f"`{result['command']}`; seeds {seeds[0]} to {seeds[-1]}; {versions}."
    yield "[README.md](../README.md#calibration) says what is measured and how to read it."
    yield ""
    yield f"{len(rows)} audits: {kinds['clean']} without a planted fault, {kinds['one']} with one,"
    yield f"{kinds['two']} with two, {kinds['lie']} whose record lies."
    yield ""
    found = all_figures(rows)
    for arm in ARMS:
        yield f"## {TITLES[arm]}"
        yield ""
        yield "| figure | measured | counted | bar |"
        yield "|---|---|---|---|"
        for _, figure in (pair for pair in found if pair[0] == arm):
            mark = "" if figure.reached else " **missed**"
            yield f"| {figure.what} | {number(figure.value)} | {figure.counted} | {bar(figure)}{mark} |"
        yield ""
        yield from _verdicts(rows, arm)


def _verdicts(rows: Sequence[Row], arm: str) -> Iterator[str]:
    """Verdicts by how large the leading exact effect is, in tolerances."""
    yield "Verdicts, by the leading exact effect in tolerances:"
    yield ""
    yield f"| leading effect | {' | '.join(VERDICTS)} |"
    yield f"|---|{'---|' * len(VERDICTS)}"
    held = cases(rows, arm)
    for name, low, high in (
        ("at most 1", -math.inf, 1.0),
        ("1 to 2", 1.0, 2.0),
        ("2 to 5", 2.0, 5.0),
        ("above 5", 5.0, math.inf),
    ):
        among = Counter(c.verdict for c in held if low < c.leading / c.tolerance <= high)
        yield f"| {name} | {' | '.join(str(among[v]) for v in VERDICTS)} |"
    yield ""
