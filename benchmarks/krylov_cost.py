"""Krylov's error against its cost, beside exact replay, on the digits pipelines.

    python -m benchmarks.krylov_cost [--seeds 0] [--short]

Error = ||estimate - exact|| / ||exact|| of the effects on the log-probability of the true label, over
test examples × all stages but the last / × middle stages; predicting zero scores 1. Cost = gradients
/ exact replay's. `none` follows nothing: delta_K := theta_a - theta_b.
"""

from __future__ import annotations

import argparse
import math
import statistics
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from auditspec.engine.rerun import Rerun
from auditspec.estimator.interface import Baseline, Context
from auditspec.estimator.interventions import Arm
from auditspec.estimator.krylov.curvature import CurvatureKind
from auditspec.estimator.krylov.krylov import Krylov
from auditspec.estimator.krylov.segments import Declared
from auditspec.estimator.replay.replay import Replay
from auditspec.record.state import State, restore
from auditspec.schedules import Cosine

from .settings import SETTINGS, Run, Setting
from .settings.pipeline import log_probability, predict, tensors

SHORT = ("digits-sgd-gentle", "digits-sgd-cnn", "digits-adamw-gentle", "digits-adamw-mlp")
LONG = ("digits-sgd-gentle", "digits-sgd-cnn", "digits-adamw-mlp", "digits-adamw-cnn")
LONG_STEPS = 500
EXAMPLES = 256
CHOICES: tuple[tuple[str, CurvatureKind, int, int], ...] = (
    ("sparse", "positive", 1, 5),
    ("sparse", "positive", 1, 10),
    ("sparse", "positive", 1, 20),
    ("sparse", "positive", 3, 5),
    ("sparse", "gauss-newton", 1, 10),
    ("boundaries", "positive", 1, 10),
    ("boundaries", "gauss-newton", 1, 10),
)
"""Record, curvature, segments, vectors."""
Effects = dict[str, Tensor]
"""Per stage, one number a test example."""


def measure(seeds: Sequence[int] = (0,), *, long: bool = True) -> list[dict[str, Any]]:
    """One row for each setting, seed, record, and choice of options."""
    settings = [(SETTINGS[name], 50) for name in SHORT]
    if long:
        settings += [(lengthened(SETTINGS[name], LONG_STEPS), 100) for name in LONG]
    with tempfile.TemporaryDirectory() as folder:
        return [
            row
            for setting, every in settings
            for seed in seeds
            for row in measure_setting(setting, seed, every, Path(folder))
        ]


def lengthened(setting: Setting, steps: int) -> Setting:
    """The same pipeline with later stages of `steps` steps."""
    first, *later = setting.stages
    stages = (first, *(replace(stage, steps=steps) for stage in later))
    return replace(setting, title=f"{setting.title} T{steps}", stages=stages)


def measure_setting(
    setting: Setting, seed: int, every: int, folder: Path
) -> Iterator[dict[str, Any]]:
    """The rows of one run."""
    place = folder / f"{setting.name}-{setting.stages[-1].steps}-{seed}"
    sparse = setting.make(seed, place / "sparse", every)
    bounds = setting.make(seed, place / "bounds", "boundaries")
    rerun = sparse.rerun()
    final = sparse.trajectory.stages[-1].last
    omitted = sparse.stages[:-1]
    context, arms = Context(engine=rerun, run=Baseline(final)), Arm.each(omitted)
    replays = {c.stage: c for c in Replay(batched=False).estimate(context, arms).values()}
    whole = sum(c.gradients for c in replays.values())
    exact = {s: effect(sparse, rerun, final, c.state) for s, c in replays.items()}
    kept = {s: effect(sparse, rerun, final, displaced(sparse, final, s)) for s in omitted}
    common = {"setting": setting.title, "seed": seed}
    yield common | {"method": "none", "record": "boundaries", "cost": 0.0} | errors(kept, exact)
    for record, curvature, segments, vectors in CHOICES:
        run, known = (sparse, {}) if record == "sparse" else (bounds, declared(bounds))
        options: dict[str, Any] = {"vectors": vectors, "segments": segments, "examples": EXAMPLES}
        estimator = Krylov(curvature=curvature, **options)
        given = Context(engine=run.rerun(), run=Baseline(final), declared=known)
        found = {c.stage: c for c in estimator.estimate(given, arms).values()}
        estimate = {s: effect(sparse, rerun, final, c.state) for s, c in found.items()}
        spent = sum(c.gradients for c in found.values())
        expected = estimator.forecast(run.trajectory, arms, given).gradients
        yield (
            common
            | {"method": "krylov", "record": record, "curvature": curvature}
            | options
            | {"cost": spent / whole, "forecast": expected / whole}
            | {"seconds": sum(c.seconds for c in found.values())}
            | {"diagnostics": {s: dict(c.diagnostics) for s, c in found.items()}}
            | errors(estimate, exact)
        )


def declared(run: Run) -> dict[str, Declared]:
    """What a spec would declare of each stage of a run whose steps were not recorded."""
    return {
        stage.id: Declared(
            Cosine(), stage.lr, run.setting.batch, len(tensors(run.datasets[stage.data])[0])
        )
        for stage in run.setting.stages
    }


def displaced(run: Run, final: State, stage: str) -> State:
    """theta_K + theta_a - theta_b."""
    recorded = run.trajectory.stages[run.trajectory.index(stage)]
    a, b = recorded.first.parameters, recorded.last.parameters
    return State({n: p + a[n] - b[n] for n, p in final.parameters.items()}, final.buffers)


def effect(run: Run, rerun: Rerun, final: State, other: State) -> Tensor:
    """Log-probability of the true label at theta_K less that without the stage, per test example."""
    scores = []
    rerun.model.eval()
    for state in (final, other):
        restore(state, rerun.model)
        with torch.no_grad():
            logits = predict(rerun.model, (run.evaluation.x, run.evaluation.y))
        scores.append(log_probability(logits, run.evaluation.y))
    return scores[0] - scores[1]


def errors(estimate: Effects, exact: Effects) -> dict[str, Any]:
    """Relative error over all stages, over the middle stages, and stage by stage."""

    def relative(stages: Sequence[str]) -> float:
        off = sum(float((estimate[s] - exact[s]).square().sum()) for s in stages)
        return (off / sum(float(exact[s].square().sum()) for s in stages)) ** 0.5

    stages = list(exact)
    return {
        "all": relative(stages),
        "middle": relative(stages[1:]),
        "stages": {s: relative([s]) for s in stages},
    }


def medians(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """One row for each setting, record, and choice of options: medians over seeds."""
    keys = ("setting", "method", "record", "curvature", "segments", "vectors")
    grouped: dict[tuple[Any, ...], list[Mapping[str, Any]]] = {}
    for row in rows:
        grouped.setdefault(tuple(row.get(key) for key in keys), []).append(row)
    return [
        dict(zip(keys, choice, strict=True))
        | {x: statistics.median(row[x] for row in held) for x in ("cost", "all", "middle")}
        for choice, held in grouped.items()
    ]


def by_nonlinearity(rows: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """Error of single stages, by what the estimate says of its own linearisation."""
    pairs = [
        (row["diagnostics"][stage]["nonlinearity"], error)
        for row in rows
        if row["method"] == "krylov"
        for stage, error in row["stages"].items()
    ]
    for low, high in ((0.0, 0.3), (0.3, 0.5), (0.5, 1.0), (1.0, math.inf)):
        found = [error for value, error in pairs if low < value <= high]
        if found:
            share = sum(error > 0.5 for error in found) / len(found)
            yield (
                f"nonlinearity {low} to {high}: {len(found)} stages, median error "
                f"{statistics.median(found):.2f}, above 0.5 in {share:.0%}"
            )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--short", action="store_true", help="leave the stages of 500 steps out")
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows = measure(options.seeds, long=not options.short)
    for row in medians(rows):
        print(line(row))
    for text in by_nonlinearity(rows):
        print(text)


def line(row: Mapping[str, Any]) -> str:
    """A row in words."""
    head = f"{row['setting']:18} {row['method']:6} {row['record']:10} "
    if row["method"] == "krylov":
        head += f"{row['curvature']:12} segments {row['segments']} vectors {row['vectors']:2} "
    return f"{head}cost {row['cost']:5.2f} error {row['all']:6.3g} / {row['middle']:6.3g}"


if __name__ == "__main__":
    main()
