"""Run the study: drawn pipelines, each audited in four settings, beside exact retraining.

    python -m benchmarks.calibration.study [--pipelines 210] [--first-seed 6000] [--jobs 2] [--out FOLDER]

Writes `calibration.json` (a row per pipeline), `calibration.md` (tables), and `calibration.svg`.
`--cases` prints every verdict that wronged or cleared somebody, with all that it was read from.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import shlex
import sys
import time
from concurrent.futures import ProcessPoolExecutor, as_completed
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from ..ladder import RESULTS, environment
from .families import FAMILIES, draw
from .figures import Row

PIPELINES, FIRST_SEED = 7 * len(FAMILIES), 200 * len(FAMILIES)
"""No rule of a verdict, and no constant of an interval, was chosen on these seeds."""


def run_all(seeds: list[int], jobs: int) -> list[Row]:
    """The rows of all pipelines, by seed; each runs in a process with one thread."""
    from .audits import row_of

    os.environ["OMP_NUM_THREADS"] = "1"
    context = multiprocessing.get_context("spawn")
    began, rows = time.perf_counter(), {}
    with ProcessPoolExecutor(jobs, mp_context=context) as pool:
        running = {pool.submit(row_of, seed): seed for seed in seeds}
        for done in as_completed(running):
            seed = running[done]
            rows[seed] = done.result()
            spent, family = time.perf_counter() - began, rows[seed]["family"]
            told = f"{spent:6.0f} s  {len(rows)} of {len(seeds)}: seed {seed}, {family}"
            print(told, file=sys.stderr, flush=True)
    return [rows[seed] for seed in seeds]


def runnable(seeds: list[int]) -> tuple[list[int], list[int]]:
    """Those whose models can be built here, and those that need the package transformers, which is missing."""
    if find_spec("transformers") is not None:
        return seeds, []
    left = [seed for seed in seeds if draw(seed).needs_transformers]
    return [seed for seed in seeds if seed not in left], left


def encode(result: dict[str, Any]) -> str:
    """JSON with one pipeline a line."""
    head = {key: value for key, value in result.items() if key != "pipelines"}
    lines = ",\n".join(json.dumps(row, allow_nan=False) for row in result["pipelines"])
    return f'{json.dumps(head, indent=1)[:-2]},\n "pipelines": [\n{lines}\n]}}\n'


def main() -> int:
    from .chart import draw_calibration
    from .tables import calibration_tables, odd_cases

    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--pipelines", type=int, default=PIPELINES)
    parser.add_argument("--first-seed", type=int, default=FIRST_SEED)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--only-draw", action="store_true", help="from the rows that are there")
    parser.add_argument("--cases", action="store_true", help="print the odd ones of those rows")
    options = parser.parse_args()
    path = options.out / "calibration.json"
    if options.cases:
        print("\n".join(odd_cases(json.loads(path.read_text())["pipelines"])))
        return 0
    if not options.only_draw:
        options.out.mkdir(parents=True, exist_ok=True)
        path.write_text(encode(_run(options)))
    result = json.loads(path.read_text())
    (options.out / "calibration.md").write_text(calibration_tables(result))
    (options.out / "calibration.svg").write_text(draw_calibration(result))
    print(f"wrote calibration.json, .md, .svg in {options.out.name}/", file=sys.stderr)
    return 0


def _run(options: argparse.Namespace) -> dict[str, Any]:
    first, count = options.first_seed, options.pipelines
    seeds, left_out = runnable(list(range(first, first + count)))
    command = ["python", "-m", "benchmarks.calibration.study"]
    if count != PIPELINES or first != FIRST_SEED:
        command += ["--pipelines", str(count), "--first-seed", str(first)]
    return {
        "command": shlex.join(command),
        "versions": environment(),
        "seeds": [first, first + count - 1],
        "left_out": left_out,
        "pipelines": run_all(seeds, options.jobs),
    }


if __name__ == "__main__":
    sys.exit(main())
