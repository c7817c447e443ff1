"""Run the study: many audits with drawn pipelines, each beside exact replay.

    python -m benchmarks.calibration.study [--audits 99] [--first-seed 2000] [--jobs 2] [--out FOLDER]

Writes `calibration.json` (a row per audit), `calibration.md` (tables), and `calibration.svg`.
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
from pathlib import Path
from typing import Any

from ..ladder import RESULTS, environment
from .audits import Row, row_of

AUDITS, FIRST_SEED = 99, 2000
"""No rule of a verdict, and no constant of an interval, was chosen on these seeds."""


def run_all(seeds: list[int], jobs: int) -> list[Row]:
    """The rows of all audits, by seed; each runs in a process with one thread."""
    os.environ["OMP_NUM_THREADS"] = "1"
    context = multiprocessing.get_context("spawn")
    began, rows = time.perf_counter(), {}
    with ProcessPoolExecutor(jobs, mp_context=context) as pool:
        running = {pool.submit(row_of, seed): seed for seed in seeds}
        for done in as_completed(running):
            seed = running[done]
            rows[seed] = done.result()
            spent = time.perf_counter() - began
            print(f"{spent:6.0f} s  {len(rows)} of {len(seeds)}: seed {seed}", file=sys.stderr)
    return [rows[seed] for seed in seeds]


def encode(result: dict[str, Any]) -> str:
    """JSON with one audit a line."""
    head = {key: value for key, value in result.items() if key != "audits"}
    lines = ",\n".join(json.dumps(row, allow_nan=False) for row in result["audits"])
    return f'{json.dumps(head, indent=1)[:-2]},\n "audits": [\n{lines}\n]}}\n'


def main() -> int:
    from .chart import draw_calibration
    from .tables import calibration_tables

    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--audits", type=int, default=AUDITS)
    parser.add_argument("--first-seed", type=int, default=FIRST_SEED)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--only-draw", action="store_true", help="from the rows that are there")
    options = parser.parse_args()
    path = options.out / "calibration.json"
    if not options.only_draw:
        seeds = list(range(options.first_seed, options.first_seed + options.audits))
        command = ["python", "-m", "benchmarks.calibration.study"]
        if options.audits != AUDITS or options.first_seed != FIRST_SEED:
            command += ["--audits", str(options.audits), "--first-seed", str(options.first_seed)]
        result = {
            "command": shlex.join(command),
            "versions": environment(),
            "seeds": seeds,
            "audits": run_all(seeds, options.jobs),
        }
        options.out.mkdir(parents=True, exist_ok=True)
        path.write_text(encode(result))
    result = json.loads(path.read_text())
    (options.out / "calibration.md").write_text(calibration_tables(result))
    (options.out / "calibration.svg").write_text(draw_calibration(result))
    print(f"wrote calibration.json, .md, .svg in {options.out.name}/", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
