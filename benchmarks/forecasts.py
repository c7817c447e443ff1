"""What `auditspec plan --measure` says that an audit takes, beside what it then takes.

    python -m benchmarks.forecasts [--steps 16] [--rows 8]

Two sizes of a GPT, each audited exactly and at a quarter (audit_cost.py). Exits 1 where a forecast is off by more than a fifth.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from .audit_cost import AUDITS, Size, lines_of_forecast, measure_audits

MODELS = ((4, 192), (6, 256))
"""Layers and width: 1.9 and 4.8 million weights, as many as are replayed arm by arm."""


def table(found: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    """Forecast and measurement of every audit, in Markdown."""
    yield "| audit | | forecast | measured | off |"
    yield "|---|---|---|---|---|"
    for name, audit in found.items():
        for what, unit, figure in (("seconds", 1, "cpu"), ("memory", 1e6, "memory"), ("disk", 1e6, "disk")):  # fmt: skip
            said, was = audit["forecast"][what] / unit, audit[figure] / unit
            yield f"| {name} | {what}{', MB' if unit > 1 else ''} | {said:,.0f} | {was:,.0f} | {was / said - 1:+.0%} |"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--steps", type=int, default=16)
    parser.add_argument("--rows", type=int, default=8)
    asked = parser.parse_args()
    found: dict[str, Mapping[str, Any]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for layers, width in MODELS:
            size = Size(layers, width, asked.rows, asked.steps)
            audits = measure_audits(size, Path(folder) / f"{width}", AUDITS[:2])
            found |= {f"{layers} x {width}, {name}": audits[name] for name in AUDITS[:2]}
    print("\n".join(table(found)))
    lines = [line for name, audit in found.items() for line in lines_of_forecast(name, audit)]
    return 0 if all(off <= bar for _, off, bar in lines) else 1


if __name__ == "__main__":
    sys.exit(main())
