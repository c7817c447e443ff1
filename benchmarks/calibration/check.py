"""Hold the committed rows against the bars, and a few fresh pipelines against the committed rows.

    python -m benchmarks.calibration.check [--fresh 6] [--first-seed N] [--jobs 2] [--no-run]

1. Every figure, computed anew from the rows, beside its bar.
2. Some pipelines once more, with seeds drawn now. Of every share, as few fresh cases may hit as the
   committed share lets happen once in a thousand times; records that lie all have to be caught, and
   every audit of a sound one has to give a result.

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
from .families import FAMILIES
from .figures import SETTINGS, Row, Share, all_shares, common, shares
from .tables import number

COMMITTED = RESULTS / "calibration.json"
RARE = 1e-3
"""Probability below which fresh pipelines are said to differ from the committed ones."""
FRESH = 6
DRAWN_FROM = 10**6
"""Fresh seeds lie above all that were ever looked at."""


def against_bars(rows: Sequence[Row]) -> Iterator[Line]:
    """Every figure beside its bar."""
    for setting, share in all_shares(rows):
        what = f"{setting}: {share.what} ({share.counted})"
        yield Line(what, number(share.value), share.bar, share.reached)


def against_committed(committed: Sequence[Row], fresh: Sequence[Row]) -> Iterator[Line]:
    """Fresh pipelines, share by share, beside the committed ones."""
    for share in common(fresh):
        fine = share.reached or not share.of
        yield Line(f"fresh: {share.what}", share.counted, share.bar, fine)
    for setting in SETTINGS:
        for before, now in zip(shares(committed, setting), shares(fresh, setting), strict=True):
            wanted = f"{before.counted} before"
            what = f"fresh, {setting}: {now.what}"
            yield Line(what, now.counted, wanted, surprise(before, now) >= RARE)


def surprise(before: Share, now: Share) -> float:
    """Probability of a share at least as far out on its side as `now`, under `before`'s.

    That is taken as (hits + 1) / (of + 2) (Laplace), so that it is never 0 or 1; and every pipeline
    counts as one draw, since what happens in one pipeline hangs together.
    """
    p, n = (before.hits + 1) / (before.of + 2), now.pipelines
    hits = round(n * now.value) if now.of else 0
    low = math.fsum(_binomial(k, n, p) for k in range(hits + 1))
    high = math.fsum(_binomial(k, n, p) for k in range(hits, n + 1))
    return min(low, high)


def _binomial(k: int, n: int, p: float) -> float:
    return math.comb(n, k) * p**k * (1 - p) ** (n - k)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--committed", type=Path, default=COMMITTED)
    parser.add_argument("--fresh", type=int, default=FRESH, help="pipelines to run")
    parser.add_argument("--first-seed", type=int, help="default: drawn now")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--no-run", action="store_true", help="only the bars")
    options = parser.parse_args(arguments)
    committed = json.loads(options.committed.read_text())["pipelines"]
    fresh = () if options.no_run else _fresh(committed, options)
    return told(against_bars(committed), fresh)


def _fresh(committed: Sequence[Row], options: argparse.Namespace) -> Iterator[Line]:
    from .study import run_all, runnable

    if options.first_seed is None:  # from all over the families, the record that lies among them
        turns = len(FAMILIES)
        rounds = [DRAWN_FROM + turns * secrets.randbelow(10**4) for _ in range(options.fresh)]
        others = [secrets.randbelow(turns - 1) for _ in rounds[1:]]
        seeds = [start + turn for start, turn in zip(rounds, [turns - 1, *others], strict=True)]
    else:
        seeds = list(range(options.first_seed, options.first_seed + options.fresh))
    seeds, left_out = runnable(seeds)
    print(f"\nonce more: seeds {', '.join(map(str, seeds))}")
    for seed in left_out:
        print(f"left out: seed {seed}, which needs transformers")
    yield from against_committed(committed, run_all(seeds, options.jobs))


if __name__ == "__main__":
    sys.exit(main())
