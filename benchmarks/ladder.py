"""The ladder of estimators against exact replay: error, cost, and whether the leading stage is right.

    python -m benchmarks.ladder [--settings NAME …] [--seeds 3] [--first-seed 101] [--processes 2]
    python -m benchmarks.ladder --only-time      (on a quiet machine: times are ratios, and still move)

Writes `results/ladder.json` (every number), `ladder.md` (tables), `ladder.svg` and `ladder-time.svg` (error
against gradients and processor time, with the larger models of `larger.json`).
README.md beside this file says what is measured and how to read it.
"""

from __future__ import annotations

import argparse
import importlib
import json
import math
import multiprocessing
import os
import platform
import shlex
import shutil
import sys
import time
from collections.abc import Collection
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch

from auditspec.errors import AuditspecError
from auditspec.estimator.paired.twin import TWIN_FACTOR

from . import metrics
from .cost import Cost, measured
from .estimators import ESTIMATORS, Estimate, Job, exact_replay
from .readings import Effects, Evaluator
from .settings import SETTINGS, NotAvailableError, Run, Setting

ROOT = Path(__file__).resolve().parent
RESULTS = ROOT / "results"
WORK = ROOT.parent / "build" / "benchmarks"
SEEDS, FIRST_SEED = 3, 101
"""No estimator's constant was chosen on these seeds."""
TIMED = ("adjoint_cost", "batched_replay")
"""Modules beside this one whose `measure()` takes times: run alone, after the rest."""


def compare(
    setting: Setting,
    seed: int,
    work: Path = WORK,
    *,
    names: Collection[str] = tuple(ESTIMATORS),
    device: str = "cpu",
) -> dict[str, Any]:
    """Some estimators, by default all, on one recorded run, which was trained on the CPU."""
    torch.set_num_threads(1)
    run, recording = measured(lambda: setting.make(seed, work / f"{setting.name}-{seed}"))
    rerun, reader = run.rerun(device=device), Evaluator(run)
    exact, exact_cost = measured(lambda: exact_replay(run, rerun, reader))
    job = Job(run, rerun, reader, exact.gradients)
    found: dict[str, Any] = {}
    for name, estimator in ((n, e) for n, e in ESTIMATORS.items() if n in names):
        try:
            estimate, cost = measured(partial(estimator, job))
        except AuditspecError as error:
            found[name] = {"refused": error.message}
            continue
        price = _price(estimate, cost, exact, exact_cost)
        found[name] = price | _accuracy(run, estimate.effects, exact.effects, seed)
        for other, effects in estimate.also.items():
            found[other] = price | _accuracy(run, effects, exact.effects, seed)
        if estimate.twin is not None:
            found[name]["twin"] = _twin(run, estimate, exact.effects)
    return {
        "stages": list(run.stages),
        "recording_seconds": recording.wall,
        "exact": {
            "gradients": exact.gradients,
            "rms": dict(zip(run.stages, map(metrics.rms, exact.effects.examples), strict=False)),
            **asdict(exact_cost),
        },
        "estimators": found,
    }


def _price(estimate: Estimate, cost: Cost, exact: Estimate, exact_cost: Cost) -> dict[str, Any]:
    return {
        "gradients": estimate.gradients,
        "cost": estimate.gradients / exact.gradients,
        "cpu": cost.cpu,
        "cpu_ratio": cost.cpu / exact_cost.cpu,
        "wall_ratio": cost.wall / exact_cost.wall,
        "peak_mb": cost.peak_mb,
        "note": estimate.note,
    }


def _accuracy(run: Run, effects: Effects, exact: Effects, seed: int) -> dict[str, Any]:
    """Errors over examples x stages but the last; the middle stages leave the first out too."""
    guess, truth = effects.examples, exact.examples
    right, counted = metrics.leading(
        [b[1:] for b in exact.behaviours], [b[1:] for b in effects.behaviours], seed
    )
    return {
        "error": metrics.relative_error(guess, truth),
        "error_middle": metrics.relative_error(guess[1:], truth[1:]),
        "stages": {
            stage: {
                "error": metrics.relative_error(guess[row], truth[row]),
                "pearson": metrics.pearson(guess[row], truth[row]),
                "spearman": metrics.spearman(guess[row], truth[row]),
            }
            for row, stage in enumerate(run.stages[:-1])
        },
        "leading": {"right": right, "counted": counted, "behaviours": len(exact.behaviours)},
    }


def _twin(run: Run, estimate: Estimate, exact: Effects) -> dict[str, Any]:
    """The error that the twin estimates, beside the true one, per stage (RMS over examples)."""
    assert estimate.twin is not None
    twin = estimate.twin()
    guess, other = estimate.effects.examples, twin.effects.examples
    return {
        "gradients": twin.gradients,
        "stages": {
            stage: {
                "estimated": TWIN_FACTOR * metrics.rms(guess[row] - other[row]),
                "true": metrics.rms(guess[row] - exact.examples[row]),
            }
            for row, stage in enumerate(run.stages[:-1])
        },
    }


def job(name: str, seed: int) -> dict[str, Any]:
    """One setting and seed, in a process of its own."""
    try:
        return compare(SETTINGS[name], seed)
    except NotAvailableError as error:
        return {"not_run": str(error)}
    finally:
        shutil.rmtree(WORK / f"{name}-{seed}", ignore_errors=True)


def krylov_rows() -> list[dict[str, Any]]:
    """Krylov's error on long stages, by options and by what was recorded; it has no bar."""
    from . import krylov_cost

    torch.set_num_threads(1)
    return [
        {
            "table": "krylov_cost",
            "setting": row["setting"],
            "what": _options(row),
            "measured": row["middle"],
            "bar": None,
            "ok": None,
        }
        for row in krylov_cost.medians(krylov_cost.measure())
    ]


def _options(row: dict[str, Any]) -> str:
    what = "none: error over middle stages"
    if row["method"] == "krylov":
        what = (
            f"krylov, {row['record']} states, {row['curvature']}, {row['segments']} × "
            f"{row['vectors']} vectors, at {row['cost']:.2f} of replay's gradients: error over middle stages"
        )
    return what


def run_all(
    names: list[str], seeds: list[int], processes: int
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Every setting and seed, and krylov's own table, `processes` at a time."""
    os.environ["OMP_NUM_THREADS"] = "1"
    context = multiprocessing.get_context("spawn")
    settings: dict[str, Any] = {
        name: {
            "title": SETTINGS[name].title,
            "fault": SETTINGS[name].fault,
            "steps": [stage.steps for stage in SETTINGS[name].stages],
            "seeds": {},
        }
        for name in names
    }
    began = time.perf_counter()
    with ProcessPoolExecutor(processes, mp_context=context, max_tasks_per_child=1) as pool:
        jobs = {pool.submit(job, name, seed): (name, seed) for seed in seeds for name in names}
        krylov = pool.submit(krylov_rows)
        for done in as_completed(jobs):
            name, seed = jobs[done]
            settings[name]["seeds"][str(seed)] = done.result()
            _say(f"{time.perf_counter() - began:6.0f} s  {name}, seed {seed}")
        rows = krylov.result()
    for held in settings.values():
        held["seeds"] = {str(seed): held["seeds"][str(seed)] for seed in seeds}
    return settings, rows


def timed_rows() -> list[dict[str, Any]]:
    """Rows of the other benchmarks that bars are set on."""
    torch.set_num_threads(1)
    rows = []
    for name in TIMED:
        _say(f"measuring {name}")
        module = importlib.import_module(f".{name}", __package__)
        rows += [{"table": name, **row} for row in module.measure()]
    return rows


def environment() -> dict[str, str]:
    """What the numbers depend on besides the code."""
    packages = ("auditspec", "torch", "numpy", "scikit-learn")
    found = {name: version(name) for name in packages}
    return found | {
        "python": platform.python_version(),
        "machine": platform.machine(),
        "threads": "1",
    }


def finite(value: Any) -> Any:
    """The same with NaN and infinity as None: JSON has no words for them."""
    if isinstance(value, dict):
        return {k: finite(v) for k, v in value.items()}
    if isinstance(value, list):
        return [finite(v) for v in value]
    if isinstance(value, np.floating | np.integer):
        value = value.item()
    if isinstance(value, float):
        return round(value, 6) if math.isfinite(value) else None
    return value


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def main() -> int:
    from .chart import draw_ladder
    from .peers import measure as measure_peers
    from .tables import ladder_tables

    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--settings", nargs="+", default=list(SETTINGS), choices=list(SETTINGS))
    parser.add_argument("--seeds", type=int, default=SEEDS)
    parser.add_argument("--first-seed", type=int, default=FIRST_SEED)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument(
        "--only-draw", action="store_true", help="from the ladder.json that is there"
    )
    parser.add_argument(
        "--only-time", action="store_true", help="measure the times anew, and keep the errors"
    )
    options = parser.parse_args()
    path = options.out / "ladder.json"
    if options.only_time:
        result = json.loads(path.read_text())
        kept = [row for row in result["costs"] if row["table"] not in TIMED]
        _write(path, result | {"costs": [*kept, *timed_rows()]})
    elif not options.only_draw:
        seeds = list(range(options.first_seed, options.first_seed + options.seeds))
        settings, krylov = run_all(options.settings, seeds, options.processes)
        result = {
            "command": f"python -m benchmarks.ladder {shlex.join(_arguments(options))}".strip(),
            "versions": environment(),
            "seeds": seeds,
            "settings": settings,
            "costs": [*krylov, *timed_rows()],
            "peers": measure_peers(),
        }
        _write(path, result)
    result = json.loads(path.read_text())
    (options.out / "ladder.md").write_text(ladder_tables(result))
    found = options.out / "larger.json"
    larger = json.loads(found.read_text()) if found.exists() else {"settings": {}}
    (options.out / "ladder.svg").write_text(draw_ladder(result, larger))
    (options.out / "ladder-time.svg").write_text(draw_ladder(result, larger, "cpu_ratio"))
    _say(f"wrote ladder.json, ladder.md, ladder.svg, ladder-time.svg in {options.out.name}/")
    return 0


def _write(path: Path, result: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(finite(result), indent=1, allow_nan=False) + "\n")


def _arguments(options: argparse.Namespace) -> list[str]:
    """The options that change the numbers, where they are not the default."""
    found = []
    if options.settings != list(SETTINGS):
        found += ["--settings", *options.settings]
    if options.seeds != SEEDS:
        found += ["--seeds", str(options.seeds)]
    if options.first_seed != FIRST_SEED:
        found += ["--first-seed", str(options.first_seed)]
    return found


if __name__ == "__main__":
    sys.exit(main())
