"""Paired replay against exact replay on the benchmark settings: error, error estimate, cost.

    python -m benchmarks.paired_replay --seeds 5 --first-seed 10 [--settings digits-adamw-cnn …]

Effects are those on the log-probability of each held-out row's true label, read plug-in. Error is
||estimate - exact|| / ||exact|| over rows and stages; the *middle* stages are all but the first
and the last. The last stage, exact for every estimator, is left out of both.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from auditspec.engine.rerun import Rerun
from auditspec.estimator.interface import Baseline, Context
from auditspec.estimator.interventions import Arm
from auditspec.estimator.paired.paired import PairedReplay
from auditspec.estimator.paired.twin import TWIN_FACTOR
from auditspec.estimator.replay.replay import Replay
from auditspec.record.state import State, restore

from .settings import SETTINGS, Run
from .settings.pipeline import log_probability

DIGITS = [name for name in SETTINGS if name.startswith("digits") and "t300" not in name]
FRACTIONS = (0.25, 0.5)


def main() -> None:
    """Measure, print a table, and write every number as JSON lines."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--settings", nargs="*", default=DIGITS)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--first-seed", type=int, default=10)
    parser.add_argument("--folder", type=Path, default=Path("build/benchmarks/paired"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows = []
    for name in options.settings:
        for seed in range(options.first_seed, options.first_seed + options.seeds):
            run = SETTINGS[name].make(seed, options.folder / f"{name}-{seed}")
            rows.extend(measure(run, name, seed))
        report([row for row in rows if row["setting"] == name])
    report_twin(rows)
    path = options.folder / f"seeds-{options.first_seed}.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def measure(run: Run, name: str, seed: int) -> list[dict[str, object]]:
    """One row per fraction of exact replay's cost, with numbers per stage."""
    rerun = run.rerun()
    final = run.trajectory.stages[-1].last
    stages = run.stages[:-1]
    arms = Arm.each(stages)
    context = Context(engine=rerun, run=Baseline(final))
    exact = [*Replay(batched=False).estimate(context, arms).values()]
    cost = sum(counterfactual.gradients for counterfactual in exact)
    whole = scores(run, rerun, final)
    truth = np.stack([whole - scores(run, rerun, e.state) for e in exact])
    rows: list[dict[str, object]] = []
    for fraction in FRACTIONS:
        budget = int(fraction * cost)
        effects = []
        spent = 0.0
        for paired in (PairedReplay(), PairedReplay().twin()):
            found = paired.estimate(replace(context, budget=budget), arms)
            spent = sum(c.gradients for c in found.values())
            effects.append(np.stack([whole - scores(run, rerun, found[a].state) for a in arms]))
        estimate, twin = effects
        off = estimate - truth
        rows.append(
            {
                "setting": name,
                "seed": seed,
                "fraction": fraction,
                "cost": spent / cost,
                "all": norm(off) / norm(truth),
                "middle": norm(off[1:]) / norm(truth[1:]),
                "stages": [norm(off[i]) / norm(truth[i]) for i in range(len(stages))],
                "error": [rms(off[i]) for i in range(len(stages))],
                "mean_error": [
                    rms((estimate + twin)[i] / 2 - truth[i]) for i in range(len(stages))
                ],
                "estimated": [TWIN_FACTOR * rms((estimate - twin)[i]) for i in range(len(stages))],
            }
        )
    return rows


def scores(run: Run, rerun: Rerun, state: State) -> NDArray[np.float64]:
    """Log-probability of each held-out row's true label."""
    restore(state, rerun.model)
    rerun.model.eval()
    with torch.no_grad():
        logits = rerun.functions.predict(rerun.model, (run.evaluation.x, run.evaluation.y))
    return log_probability(logits, run.evaluation.y).double().numpy()


def norm(x: NDArray[np.float64]) -> float:
    """2-norm over everything."""
    return float(np.sqrt((x**2).sum()))


def rms(x: NDArray[np.float64]) -> float:
    """Root mean square."""
    return float(np.sqrt((x**2).mean()))


def report(rows: list[dict[str, Any]]) -> None:
    """Medians over seeds, per fraction."""
    for fraction in FRACTIONS:
        of = [row for row in rows if row["fraction"] == fraction]
        per_stage = np.median([row["stages"] for row in of], axis=0)
        print(
            f"{of[0]['setting']:22s} {fraction}  cost {max(row['cost'] for row in of):.3f}  "
            f"all {statistics.median(row['all'] for row in of):.3f}  "
            f"middle {statistics.median(row['middle'] for row in of):.3f}  per stage "
            + " ".join(f"{x:.3f}" for x in per_stage)
        )
    sys.stdout.flush()


def report_twin(rows: list[dict[str, object]]) -> None:
    """Coverage and width of the error estimate, and the factor that would cover 95 %."""
    for label in [*sorted({str(row["setting"]) for row in rows}), "all"]:
        of = [row for row in rows if label in ("all", row["setting"])]
        error = np.concatenate([row["error"] for row in of])
        estimated = np.concatenate([row["estimated"] for row in of])
        mean = np.concatenate([row["mean_error"] for row in of])
        print(
            f"twin {label:22s} covers {np.mean(error <= estimated):.3f}  median width "
            f"{np.median(estimated / error):.2f}  factor for 95 % "
            f"{np.quantile(error / estimated, 0.95) * TWIN_FACTOR:.2f}  mean of both / estimate "
            f"{np.exp(np.mean(np.log(mean / error))):.2f}"
        )


if __name__ == "__main__":
    main()
