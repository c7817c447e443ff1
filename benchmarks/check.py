"""Hold the committed table against the bars, and a fresh run against the committed table.

    python -m benchmarks.check [--setting NAME] [--seed N] [--no-run]

1. Every figure beside its bar; the costs beside theirs.
2. One setting once more, with a seed drawn now: each estimator's error over the middle stages has to
   lie within the committed seeds' spread, widened by a factor of 2 on both sides, and its cost in
   gradients has to be the committed one.

Exits 1, naming what falls short.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import secrets
import sys
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .bars import ERROR_AT_A_QUARTER, Bar, Result, bars, runs

COMMITTED = Path(__file__).resolve().parent / "results" / "ladder.json"
WIDEN = 2.0
"""Factor on the committed seeds' smallest and largest error."""
SAME_COST = 0.02
"""Largest relative difference of the cost in gradients: budgets round down, schedules differ by seed."""
DRAWN_FROM = tuple(ERROR_AT_A_QUARTER)


@dataclass(frozen=True)
class Line:
    """One figure beside what it is held against."""

    what: str
    measured: str
    wanted: str
    ok: bool

    def __str__(self) -> str:
        mark = "ok  " if self.ok else "MISS"
        return f"{mark} {self.what:<74} {self.measured:>9}  {self.wanted}"


def against_bars(result: Result) -> Iterator[Line]:
    """Every bar, and every row of the cost tables that has one."""
    for bar in bars():
        measured = bar.figure(result)
        yield Line(bar.what, _number(measured), _limit(bar), bar.reached(measured))
    for row in result["costs"]:
        if "not_run" in row:
            yield Line(row["table"], "not run", row["not_run"], ok=False)
        elif row["bar"] is not None:
            what = f"{row['table']}, {row['setting']}: {row['what']}"
            ok = bool(row["ok"])
            yield Line(what, _number(row["measured"]), f"bar {row['bar']:g}", ok)
    for name, setting in result["settings"].items():
        for seed, run in setting["seeds"].items():
            if "not_run" in run:
                yield Line(f"{name}, seed {seed}", "not run", run["not_run"], ok=False)


def against_committed(committed: Result, setting: str, fresh: dict[str, Any]) -> Iterator[Line]:
    """A fresh run of a setting within the committed seeds' spread."""
    if "not_run" in fresh:
        yield Line(setting, "not run", fresh["not_run"], ok=False)
        return
    for estimator, found in fresh["estimators"].items():
        held = [run for _, run in runs(committed, estimator, setting)]
        what = f"{setting}, {estimator}"
        if not held or "refused" in found:
            ok = not held and "refused" in found
            yield Line(what, "refused" if "refused" in found else "ran", f"{len(held)} ran", ok)
            continue
        errors = [run["error_middle"] for run in held]
        low, high = min(errors) / WIDEN, max(errors) * WIDEN
        error = found["error_middle"]
        inside = low <= error <= high or (estimator == "replay, batched" and error < 1e-2)
        yield Line(f"{what}: error", _number(error), f"{low:.3g} to {high:.3g}", inside)
        cost, before = found["cost"], sum(run["cost"] for run in held) / len(held)
        same = math.isclose(cost, before, rel_tol=SAME_COST, abs_tol=1e-9)
        yield Line(f"{what}: cost", _number(cost), f"{before:.3g} ± {SAME_COST:.0%}", same)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--committed", type=Path, default=COMMITTED)
    parser.add_argument("--setting", help="default: drawn from the digits settings")
    parser.add_argument("--seed", type=int, help="default: drawn now")
    parser.add_argument("--no-run", action="store_true", help="only the bars")
    options = parser.parse_args(arguments)
    committed = json.loads(options.committed.read_text())
    fresh = () if options.no_run else _fresh(committed, options.setting, options.seed)
    return told(against_bars(committed), fresh)


def told(committed: Iterable[Line], fresh: Iterable[Line]) -> int:
    """Print every line as it comes, then what falls short; the exit code."""
    short = []
    for line in itertools.chain(committed, fresh):
        print(line)
        if not line.ok:
            short.append(line)
    for line in short:
        print(f"falls short: {line.what}: {line.measured} ({line.wanted})", file=sys.stderr)
    return int(bool(short))


def _fresh(committed: Result, setting: str | None, seed: int | None) -> Iterator[Line]:
    from .ladder import compare, finite
    from .settings import SETTINGS, NotAvailableError

    setting = setting or secrets.choice(DRAWN_FROM)
    seed = secrets.randbelow(10**6) if seed is None else seed
    print(f"\nonce more: {setting}, seed {seed}")
    with tempfile.TemporaryDirectory() as work:
        try:
            fresh = finite(compare(SETTINGS[setting], seed, Path(work)))
        except NotAvailableError as error:
            fresh = {"not_run": str(error)}
    yield from against_committed(committed, setting, fresh)


def _number(value: float) -> str:
    return "none" if math.isnan(value) else f"{value:.3g}"


def _limit(bar: Bar) -> str:
    if bar.limit is None:
        return "no bar"
    return f"bar {'≥' if bar.at_least else '≤'} {bar.limit:g}"


if __name__ == "__main__":
    sys.exit(main())
