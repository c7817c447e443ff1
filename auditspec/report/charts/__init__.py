"""The report's pictures, drawn as SVG.

Each function returns one inline `<svg>`, or an empty string where there is nothing to draw.
"""

from auditspec.report.charts.comparison import placebo_chart, replay_chart
from auditspec.report.charts.contributions import contribution_chart
from auditspec.report.charts.effects import effect_chart
from auditspec.report.charts.matrix import matrix_chart
from auditspec.report.charts.path import path_chart
from auditspec.report.charts.timeline import timeline_chart
from auditspec.report.charts.windows import window_chart

__all__ = [
    "contribution_chart",
    "effect_chart",
    "matrix_chart",
    "path_chart",
    "placebo_chart",
    "replay_chart",
    "timeline_chart",
    "window_chart",
]
