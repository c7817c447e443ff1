"""Hold the committed rows against the bars, and a few fresh audits against the committed rows.

    python -m benchmarks.calibration.check [--fresh 6] [--first-seed N] [--jobs 2] [--no-run]

1. Every figure, computed anew from the rows, beside its bar.
2. Some audits once more, with seeds drawn now. Of every share, as few fresh cases may hit as the
   committed share lets happen once in a thousand times; records that lie all have to be caught.

Exits 1, naming what falls short.
"""

from __future__ import annotations

import argparse
import json
import math
import secrets
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from ..check import Line, told
from ..ladder import RESULTS
from .draw import KINDS
from .figures import ARMS, Row, Share, caught, gave_estimates, shares
from .tables import all_figures, bar, number

COMMITTED = RESULTS / "calibration.json"
RARE = 1e-3
"""Probability below which fresh audits are said to differ from the committed ones."""
FRESH = 6


def against_bars(rows: Sequence[Row]) -> Iterator[Line]:
    """Every figure beside its bar."""
    for arm, figure in all_figures(rows):
        what = f"{arm}: {figure.what} ({figure.counted})"
        yield Line(what, number(figure.value), bar(figure), figure.reached)


def against_committed(committed: Sequence[Row], fresh: Sequence[Row]) -> Iterator[Line]:
    """Fresh audits, share by share, beside the committed ones."""
    for figure in (caught(fresh), *(gave_estimates(fresh, arm) for arm in ARMS)):
        yield Line(f"fresh: {figure.what}", figure.counted, bar(figure), figure.reached)
    for arm in ARMS:
        for before, now in zip(shares(committed, arm), shares(fresh, arm), strict=True):
            chance = surprise(before, now)
            wanted = f"{before.hits} of {before.of} before"
            what = f"fresh, {arm}: {now.what}"
            yield Line(what, f"{now.hits} of {now.of}", wanted, chance >= RARE)


def surprise(before: Share, now: Share) -> float:
    """Probability of a count at least as far out on its side as `now`, under `before`'s share.

    The share is taken as (hits + 1) / (of + 2) (Laplace), so that it is never 0 or 1.
    """
    p = (before.hits + 1) / (before.of + 2)
    low = math.fsum(_binomial(k, now.of, p) for k in range(now.hits + 1))
    high = math.fsum(_binomial(k, now.of, p) for k in range(now.hits, now.of + 1))
    return min(low, high)


def _binomial(k: int, n: int, p: float) -> float:
    return math.comb(n, k) * p**k * (1 - p) ** (n - k)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--committed", type=Path, default=COMMITTED)
    parser.add_argument("--fresh", type=int, default=FRESH, help="audits to run")
    parser.add_argument("--first-seed", type=int, help="default: drawn now")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--no-run", action="store_true", help="only the bars")
    options = parser.parse_args(arguments)
    committed = json.loads(options.committed.read_text())["audits"]
    fresh = () if options.no_run else _fresh(committed, options)
    return told(against_bars(committed), fresh)


def _fresh(committed: Sequence[Row], options: argparse.Namespace) -> Iterator[Line]:
    from .study import run_all

    first = options.first_seed
    if first is None:  # a multiple, so that a record that lies is among the first few
        first = len(KINDS) * (2000 + secrets.randbelow(10**5))
    print(f"\nonce more: seeds {first} to {first + options.fresh - 1}")
    yield from against_committed(
        committed, run_all(list(range(first, first + options.fresh)), options.jobs)
    )


if __name__ == "__main__":
    sys.exit(main())
