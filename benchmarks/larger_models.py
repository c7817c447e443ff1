"""Estimates at a quarter of exact replay's gradients on models of millions of weights, against exact retraining.

    python -m benchmarks.larger_models [--settings NAME ...] [--seeds 3] [--first-seed 201] [--share 0.25]

Writes `results/larger.json` and `larger.md`. The exact effects are those of a plain loop that does not import us. Error
estimates are part of the share: an estimator that has a twin gets what is left for both.
"""

from __future__ import annotations

import argparse
import json
import math
import shlex
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from auditspec import Recorder
from auditspec.engine.loading import Functions
from auditspec.engine.rerun import Rerun
from auditspec.errors import AuditspecError
from auditspec.estimator.counterfactual import Counterfactual
from auditspec.estimator.interface import Baseline, Context, Estimator
from auditspec.estimator.interventions import Arm
from auditspec.estimator.paired.paired import PairedReplay
from auditspec.estimator.paired.twin import TWIN_FACTOR
from auditspec.estimator.recorded_run import RecordedRun
from auditspec.estimator.subbatch.subbatch import SubBatchReplay
from auditspec.record.state import restore
from auditspec.record.trajectory import Trajectory

from .cost import measured
from .ladder import RESULTS, WORK, environment, finite
from .metrics import relative_error, rms
from .settings.larger import GIVEN, LARGER, Larger, nll
from .settings.pipeline import (
    HOLDOUT,
    _datasets,
    batch_ids,
    cross_entropy,
    load_batch,
    predict,
    tensors,
)

TOLERANCE = 0.01
"""Nats: a stage whose exact effect on a slice is smaller is not counted there."""
ESTIMATORS: dict[str, Estimator] = {
    "paired-replay": PairedReplay(),
    "sub-batch-replay": SubBatchReplay(),
}


class Trained:
    """A setting, trained and recorded.

    Args:
        setting: what to train.
        seed: of the weights and the minibatches.
        folder: for data and record.
    """

    def __init__(self, setting: Larger, seed: int, folder: Path) -> None:
        self.setting, self.seed = setting, seed
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        tables = setting.tables()
        self.datasets = _datasets(tables, folder)
        self.slices = setting.slices(tables)
        self.model = self._begin()
        self.bounds = [_copy(self.model)]
        with Recorder(
            folder / "record", self.model, every=setting.steps,
            factory=setting.factory, load_batch=load_batch, self_check=False,
        ) as recorder:  # fmt: skip
            for index, name in enumerate(setting.stages):
                optimizer = torch.optim.AdamW(self.model.parameters(), setting.lr)
                with recorder.stage(
                    f"{index + 1}-{name}", optimizer, cross_entropy,
                    dataset=self.datasets[name], steps=setting.steps,
                ) as run:  # fmt: skip
                    for step in run.steps:
                        optimizer.param_groups[0]["lr"] = setting.rate(step)
                        loss = run.loss(self.ids(index, step))
                        optimizer.zero_grad()
                        loss.backward()
                        optimizer.step()
                self.bounds.append(_copy(self.model))
        self.trajectory = Trajectory.open(folder / "record")

    def ids(self, stage: int, step: int) -> list[int]:
        """Rows of a step's minibatch."""
        rows = len(tensors(self.datasets[self.setting.stages[stage]])[0])
        return batch_ids(self.seed, stage, step, rows, self.setting.batch)

    def _begin(self) -> nn.Module:
        torch.manual_seed(self.seed)
        model = self.setting.factory()
        optimizer = torch.optim.AdamW(model.parameters(), 3 * self.setting.lr)
        data = self.datasets[GIVEN]
        for step in range(self.setting.given):
            rows = batch_ids(self.seed, 99, step, len(tensors(data)[0]), self.setting.batch)
            optimizer.zero_grad()
            cross_entropy(model, load_batch(data, rows)).backward()
            optimizer.step()
        return model

    def without(self, omitted: int) -> np.ndarray[Any, Any]:
        """Scores after retraining without a stage, by a plain loop."""
        self.model.load_state_dict(self.bounds[omitted])
        self.model.train()
        for index in range(omitted + 1, len(self.setting.stages)):
            optimizer = torch.optim.AdamW(self.model.parameters(), self.setting.lr)
            data = self.datasets[self.setting.stages[index]]
            for step in range(self.setting.steps):
                optimizer.param_groups[0]["lr"] = self.setting.rate(step)
                optimizer.zero_grad()
                cross_entropy(self.model, load_batch(data, self.ids(index, step))).backward()
                optimizer.step()
        return self.scores()

    def final(self) -> np.ndarray[Any, Any]:
        """Scores of the deployed model."""
        self.model.load_state_dict(self.bounds[-1])
        return self.scores()

    def scores(self, model: nn.Module | None = None) -> np.ndarray[Any, Any]:
        """-log p of every held-out row, [n], of the model as it is."""
        model = model or self.model
        x, y = tensors(self.datasets[HOLDOUT])
        model.eval()
        with torch.no_grad():
            parts = [nll(model, pair) for pair in zip(x.split(40), y.split(40), strict=True)]
        return torch.cat(parts).double().numpy()

    def engine(self) -> Rerun:
        """Over the record."""
        objectives = {stage.id: cross_entropy for stage in self.trajectory.stages}
        functions = Functions(self.setting.factory, load_batch, objectives, predict)
        return Rerun(self.trajectory, functions, self.datasets)


def compare(setting: Larger, seed: int, share: float, folder: Path) -> dict[str, Any]:
    """Every estimator on one seed of a setting."""
    torch.set_num_threads(1)
    trained, training = measured(lambda: Trained(setting, seed, folder))
    base = trained.final()
    last = len(setting.stages) - 1
    exact, exactly = measured(lambda: np.stack([base - trained.without(s) for s in range(last)]))
    whole = setting.steps * sum(range(len(setting.stages)))
    found: dict[str, Any] = {}
    engine = trained.engine()
    _, rerun = measured(lambda: _rerun(engine))
    for name, estimator in ESTIMATORS.items():
        context = Context(
            engine=engine,
            run=Baseline(trained.trajectory.stages[-1].last),
            recorded=RecordedRun(beside(trained.trajectory)),
            budget=int(share * whole / estimator.with_twin),
        )
        try:
            found[name] = _estimated(trained, estimator, context, base, exact, exactly.cpu)
        except AuditspecError as error:
            found[name] = {"refused": error.message}
    shutil.rmtree(folder, ignore_errors=True)
    return {
        "parameters": sum(p.numel() for p in trained.model.parameters()),
        "exact": {
            "effects": _means(trained, exact),
            "cpu": exactly.cpu,
            "rms": [rms(row) for row in exact],
        },
        "training_cpu": training.cpu,
        "rerun_cpu": rerun.cpu,
        "whole": whole,
        "estimators": found,
    }


def beside(record: Trajectory) -> frozenset[str]:
    """Ids of the later stages whose re-run is the check's."""
    return frozenset(stage.id for stage in record.stages[1:])


def _rerun(engine: Rerun) -> None:
    for stage, start, stop in engine.trajectory.windows():
        engine.run(stage, stage.state(start), start, stop)


def _estimated(
    trained: Trained,
    estimator: Estimator,
    context: Context,
    base: np.ndarray[Any, Any],
    exact: np.ndarray[Any, Any],
    exactly: float,
) -> dict[str, Any]:
    """One estimator's errors, costs, and what it says of its own error."""
    arms = Arm.each([stage.id for stage in trained.trajectory.stages[:-1]])
    found, cost = measured(lambda: estimator.estimate(context, arms))
    twin = estimator.twin()
    assert twin is not None
    twins, more = measured(lambda: twin.estimate(context, arms))
    ours, others = (
        np.stack([base - _read(trained, context, c) for c in made.values()])
        for made in (found, twins)
    )
    beyond = np.array([c.beyond for c in found.values()])
    effects = ours.copy()
    for rows in (r.numpy() for r in trained.slices.values()):
        effects[:, rows] += (beyond * (ours - others)[:, rows].mean(1))[:, None]
    means, guesses, seconds = (_means(trained, e) for e in (exact, effects, others))
    plain = _means(trained, ours)
    counted = [
        (s, name)
        for s in range(len(exact))
        for name in trained.slices
        if abs(means[s][name]) > TOLERANCE
    ]
    off = {(s, n): abs(guesses[s][n] - means[s][n]) for s, n in counted}
    decided = [n for n in trained.slices if max(means[s][n] for s in range(len(exact))) > TOLERANCE]
    return {
        "gradients": sum(c.gradients for made in (found, twins) for c in made.values()),
        "cpu": cost.cpu, "twin_cpu": more.cpu, "cpu_ratio": (cost.cpu + more.cpu) / exactly,
        "peak_mb": cost.peak_mb,
        "effects": guesses,
        "slice_error": math.sqrt(sum(e**2 for e in off.values()) / max(sum(means[s][n] ** 2 for s, n in counted), 1e-12)) if counted else math.nan,
        "row_error": relative_error(effects, exact),
        "row_error_unextrapolated": relative_error(ours, exact),
        "stages": [relative_error(e, t) for e, t in zip(effects, exact, strict=True)],
        "leading": [
            int(np.argmax([g[n] for g in guesses]) == np.argmax([m[n] for m in means])) for n in decided
        ],
        "twin": [
            {"estimated": TWIN_FACTOR * rms(a - b), "true": rms(e - t)}
            for e, a, b, t in zip(effects, ours, others, exact, strict=True)
        ],
        "slices": [
            {"estimated": TWIN_FACTOR * abs(plain[s][n] - seconds[s][n]), "true": off[s, n], "effect": means[s][n]}
            for s, n in counted
        ],
        "diagnostics": {c.stage: dict(c.diagnostics) for c in found.values()},
    }  # fmt: skip


def _read(trained: Trained, context: Context, c: Counterfactual) -> np.ndarray[Any, Any]:
    restore(c.state, context.engine.model)
    return trained.scores(context.engine.model)


def _means(trained: Trained, effects: np.ndarray[Any, Any]) -> list[dict[str, float]]:
    """Mean effect of every stage on every slice."""
    return [{n: float(row[r.numpy()].mean()) for n, r in trained.slices.items()} for row in effects]


def _copy(model: nn.Module) -> dict[str, Tensor]:
    return {n: t.detach().clone() for n, t in model.state_dict().items()}


def table(result: dict[str, Any]) -> str:
    """Medians over seeds, in Markdown."""
    lines = [
        f"At {result['share']:g} of exact replay's gradients, the error estimate included; medians over seeds {result['seeds']}.",
        "",
        "| setting | estimator | slice means | rows | leading right | error covered (rows) | width | CPU against retraining |",
        "|---|---|---|---|---|---|---|---|",
    ]
    measured_ones = {name: seeds for name, seeds in result["settings"].items() if seeds}
    for name, seeds in measured_ones.items():
        for estimator in ESTIMATORS:
            runs = [
                s["estimators"][estimator]
                for s in seeds.values()
                if "refused" not in s["estimators"][estimator]
            ]
            if not runs:
                lines.append(f"| {LARGER[name].title} | {estimator} | refused | | | | | |")
                continue
            pairs = [t for r in runs for t in r["twin"] if t["true"]]
            covered = sum(t["estimated"] >= t["true"] for t in pairs)
            right = [x for r in runs for x in r["leading"]]
            lines.append(
                f"| {LARGER[name].title} | {estimator} | {_median(runs, 'slice_error'):.3f} | {_median(runs, 'row_error'):.3f} "
                f"| {sum(right)} of {len(right)} | {covered} of {len(pairs)} "
                f"| {np.median([t['estimated'] / t['true'] for t in pairs]):.2f} | {_median(runs, 'cpu_ratio'):.2f} |"
            )
    return "\n".join(lines) + "\n"


def _median(runs: Sequence[dict[str, Any]], key: str) -> float:
    return float(np.median([r[key] for r in runs if r[key] is not None] or [math.nan]))


def _write(folder: Path, result: dict[str, Any]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "larger.json").write_text(json.dumps(result, indent=1, allow_nan=False) + "\n")
    (folder / "larger.md").write_text(table(result))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--settings", nargs="+", default=list(LARGER), choices=list(LARGER))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--first-seed", type=int, default=201)
    parser.add_argument("--share", type=float, default=0.25)
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    seeds = list(range(options.first_seed, options.first_seed + options.seeds))
    result: dict[str, Any] = {
        "command": f"python -m benchmarks.larger_models {shlex.join(sys.argv[1:])}".strip(),
        "versions": environment(),
        "seeds": seeds,
        "share": options.share,
        "settings": {name: {} for name in options.settings},
    }
    for seed in seeds:
        for name in options.settings:
            folder = WORK / f"{name}-{seed}"
            row = compare(LARGER[name], seed, options.share, folder)
            result["settings"][name][str(seed)] = finite(row)
            print(name, seed, json.dumps(finite({e: {k: r.get(k) for k in ("slice_error", "row_error", "stages", "cpu_ratio", "gradients", "refused")} for e, r in row["estimators"].items()})), file=sys.stderr, flush=True)  # fmt: skip
            _write(options.out, result)
    print(table(result))
    return 0


if __name__ == "__main__":
    sys.exit(main())
