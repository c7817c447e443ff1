"""Deviation of every re-run window of the record, on a logarithmic scale, beside the threshold."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby

from auditspec.report.charts.kit import STRIP, bands, heads, upwards
from auditspec.report.charts.scales import Logarithmic
from auditspec.report.charts.svg import Pen, Picture
from auditspec.report.numbers import significant
from auditspec.report.parts import SHORT, clean
from auditspec.results import CheckDetail, CheckResult

WIDTH, HEIGHT = 560, 110
"""In CSS pixels."""
MAX_POINTS = 240
"""Most windows that are drawn; of more, the worst of neighbours is."""
FLOOR = 1e-12
"""Where windows that re-run bitwise are drawn."""


def window_chart(check: CheckResult, key: str) -> str:
    """A dot for every window; filled in the concern's colour where it failed."""
    windows = [d for d in check.details if d.stage is not None and d.statistic is not None]
    if len(windows) < 2 or not check.threshold:
        return ""
    shown = list(_thinned(windows))
    slot = WIDTH / len(shown)
    starts, names = _stages(shown)
    edges = [slot * start for start in starts]
    top = max(check.threshold, max(d.statistic or 0.0 for d in shown))
    y = Logarithmic(FLOOR / 3, 3 * top, HEIGHT, 0)
    picture = Picture(WIDTH, HEIGHT, STRIP)
    bands(picture, edges, 0, HEIGHT)
    upwards(picture, y, 5, "relative deviation")
    limit = y(check.threshold)
    picture.lines([((0, limit), (WIDTH, limit))], Pen("concern", dash="4,3"))
    for i, d in enumerate(shown):
        at = (slot * (i + 0.5), y(max(d.statistic or 0.0, FLOOR)))
        picture.mark(at, 22, "concern" if d.outcome == "fail" else "accent")
    heads(picture, edges, names)
    failed = sum(d.outcome == "fail" for d in windows)
    bitwise = sum(d.statistic == 0 for d in windows)
    lost = sum(d.stage is not None and d.statistic is None for d in check.details)
    missing = f", {lost} more could not be compared and are not drawn" if lost else ""
    worst = max(windows, key=lambda d: d.statistic or 0.0)
    return picture.drawn(
        key,
        "Relative deviation of every re-run window of the record, in order of training",
        f"{len(windows)} windows, {bitwise} of them re-run bitwise, {failed} failed{missing}; the largest deviation "
        f"is {significant(worst.statistic or 0.0)}, in {clean(worst.subject, SHORT)}.",
    )


def _thinned(windows: Sequence[CheckDetail]) -> Iterator[CheckDetail]:
    """Of neighbours in one stage, the one that failed, or deviates most."""
    every = -(-len(windows) // MAX_POINTS)
    for _, stage in groupby(windows, key=lambda d: d.stage):
        windows_of_stage = list(stage)
        for start in range(0, len(windows_of_stage), every):
            yield max(
                windows_of_stage[start : start + every],
                key=lambda d: (d.outcome == "fail", d.statistic or 0.0),
            )


def _stages(windows: Sequence[CheckDetail]) -> tuple[list[int], list[str]]:
    """Where each stage's windows begin, and the last ones end; and the stages' names."""
    starts, names = [0], []
    for stage, windows_of_stage in groupby(windows, key=lambda d: d.stage):
        starts.append(starts[-1] + len(list(windows_of_stage)))
        names.append(clean(stage or "", SHORT))
    return starts, names
