"""Estimates at a quarter of exact replay's gradients on models of millions of weights, against exact retraining.

    python -m benchmarks.larger_models [--settings NAME ...] [--seeds 3] [--first-seed 201] [--share 0.25] [--only-exact]

Writes `results/larger.json` and `larger.md`, seed by seed; what else they hold stays. The exact effects are those of
a plain loop that does not import us. Error estimates are part of the share: an estimator that has a twin gets what is left for
both. With `--only-exact` no estimator runs and nothing is written: the effects are printed, by which settings were chosen.
"""

from __future__ import annotations

import argparse
import json
import math
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from auditspec import Recorder
from auditspec.engine.loading import Functions
from auditspec.engine.rerun import Rerun
from auditspec.errors import AuditspecError
from auditspec.estimator.counterfactual import Counterfactual
from auditspec.estimator.interface import Baseline, Context, Estimator
from auditspec.estimator.interventions import Arm
from auditspec.estimator.paired.paired import PairedReplay
from auditspec.estimator.paired.twin import TWIN_FACTOR, steadied
from auditspec.estimator.recorded_run import RecordedRun
from auditspec.estimator.subbatch.subbatch import SubBatchReplay
from auditspec.record.state import restore
from auditspec.record.trajectory import Trajectory

from .cost import measured
from .ladder import RESULTS, WORK, environment, finite
from .metrics import median, rms
from .settings.larger import LARGER, Larger, nll
from .settings.larger_tables import GIVEN
from .settings.pipeline import (
    HOLDOUT,
    _datasets,
    batch_ids,
    cross_entropy,
    load_batch,
    predict,
    tensors,
)

Array = NDArray[Any]
TOLERANCE = 0.01
"""Nats: a stage whose exact effect on a slice is smaller is not counted there."""
BARS = {"given weights": (0.1, 0.15), "random weights": (0.25, 0.6)}
"""Errors of slice means and of rows."""
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
        self.model = self._begin()
        self.bounds = [_copy(self.model)]
        with Recorder(
            folder / "record", self.model, every=setting.every,
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

    def without(self, omitted: int) -> Array:
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

    def final(self) -> Array:
        """Scores of the deployed model."""
        self.model.load_state_dict(self.bounds[-1])
        return self.scores()

    def scores(self, model: nn.Module | None = None) -> Array:
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
    """Every estimator on one seed of a setting; none at a share of 0."""
    torch.set_num_threads(1)
    trained, training = measured(lambda: Trained(setting, seed, folder))
    base = trained.final()
    last = len(setting.stages) - 1
    exact, exactly = measured(lambda: np.stack([base - trained.without(s) for s in range(last)]))
    found: dict[str, Any] = {}
    if share:
        found = _all_estimated(trained, share, base, exact)
    shutil.rmtree(folder, ignore_errors=True)
    for estimate in found.values():
        if "cpu" in estimate:
            estimate["cpu_ratio"] = estimate["cpu"] / exactly.cpu
    return {
        "parameters": sum(p.numel() for p in trained.model.parameters()),
        "exact": {"effects": _means(setting, exact), "cpu": exactly.cpu},
        "training_cpu": training.cpu,
        "estimators": found,
    }


def _all_estimated(trained: Trained, share: float, base: Array, exact: Array) -> dict[str, Any]:
    """Every estimator, its twin and the re-run of the later stages with it, for which the check of an audit pays."""
    setting, engine = trained.setting, trained.engine()
    whole = setting.steps * sum(range(len(setting.stages)))
    found: dict[str, Any] = {}
    for name, estimator in ESTIMATORS.items():
        context = Context(
            engine=engine,
            run=Baseline(trained.trajectory.stages[-1].last),
            recorded=RecordedRun(frozenset(s.id for s in trained.trajectory.stages[1:])),
            budget=int(share * whole / estimator.with_twin),
        )
        try:
            found[name] = _estimated(trained, estimator, context, base, exact)
        except AuditspecError as error:
            found[name] = {"refused": error.message}
    return found


def _estimated(
    trained: Trained, estimator: Estimator, context: Context, base: Array, exact: Array
) -> dict[str, Any]:
    """One estimator's errors, costs, and what an audit would state of its error."""
    setting = trained.setting
    arms = Arm.each([stage.id for stage in trained.trajectory.stages[:-1]])
    twin = estimator.twin()
    assert twin is not None
    made, cost = measured(lambda: estimator.together(twin, context, arms))
    assert made is not None
    found, twins = made
    ours, others = (
        np.stack([base - _read(trained, context, c) for c in made.values()])
        for made in (found, twins)
    )
    effects = ours.copy()
    for row, c in enumerate(found.values()):
        for rows in setting.slices.values():
            effects[row, rows] += c.beyond * (ours - others)[row, rows].mean()
    lost = np.array([c.unreliable is not None for c in found.values()])
    cases = cases_of(setting, exact, effects, _stated(setting, ours, others, effects, lost))
    return {
        "gradients": sum(c.gradients for made in (found, twins) for c in made.values()),
        "cpu": cost.cpu, "peak_mb": cost.peak_mb,
        **summary(cases, exact=_means(setting, exact), effects=_means(setting, effects), concerns=setting.concerns),
        "effects": _means(setting, effects),
        "cases": cases,
        "diagnostics": {c.stage: dict(c.diagnostics) for c in found.values()},
    }  # fmt: skip


def _stated(
    setting: Larger, ours: Array, others: Array, effects: Array, lost: Array
) -> dict[tuple[int, str], float]:
    """The error that an audit states of every stage's effect on every slice (`effects.with_steady_errors`)."""
    keys = [(stage, name) for stage in range(len(ours)) for name in setting.slices]
    errors, sizes = (
        np.array([of(stage, setting.slices[name]) for stage, name in keys])
        for of in (
            lambda stage, rows: math.inf if lost[stage] else TWIN_FACTOR * rms((ours - others)[stage, rows]),
            lambda stage, rows: rms(effects[stage, rows]),
        )
    )  # fmt: skip
    return dict(zip(keys, map(float, steadied(errors, sizes)), strict=True))


def cases_of(
    setting: Larger, exact: Array, effects: Array, stated: Mapping[tuple[int, str], float]
) -> list[dict[str, Any]]:
    """Every stage on every slice where its exact effect exceeds the tolerance.

    Args:
        setting: names the slices.
        exact: effects, [stages, rows].
        effects: as estimated.
        stated: the estimates' own errors.
    """
    return [
        {
            "stage": stage,
            "slice": name,
            "exact": float(truth.mean()),
            "error": float(off.mean()),
            "exact_rows": rms(truth),
            "error_rows": rms(off),
            "stated": stated[stage, name],
        }
        for stage in range(len(exact))
        for name, rows in setting.slices.items()
        for truth, off in [(exact[stage, rows], (effects - exact)[stage, rows])]
        if abs(truth.mean()) > TOLERANCE
    ]


def summary(
    cases: Sequence[Mapping[str, Any]],
    *,
    exact: Sequence[Mapping[str, float]],
    effects: Sequence[Mapping[str, float]],
    concerns: Mapping[str, int],
) -> dict[str, Any]:
    """Errors relative to the exact effects, over slices of one size, and which slices' leading stage is right.

    Args:
        cases: of `cases_of`.
        exact: mean effects by slice, of each stage.
        effects: as estimated.
        concerns: direction of harm, by slice.
    """

    def relative(part: str, first: int) -> float:
        counted = [c for c in cases if c["stage"] >= first]
        size = math.hypot(*(c[f"exact{part}"] for c in counted))
        return math.hypot(*(c[f"error{part}"] for c in counted)) / size if size else math.nan

    harm = {n: [sign * e[n] for e in exact] for n, sign in concerns.items()}
    guess = {n: [sign * e[n] for e in effects] for n, sign in concerns.items()}
    return {
        "slice_error": relative("", 0),
        "slice_error_middle": relative("", 1),
        "row_error": relative("_rows", 0),
        "row_error_middle": relative("_rows", 1),
        "leading": {
            n: bool(np.argmax(guess[n]) == np.argmax(harm[n]))
            for n in concerns
            if max(harm[n]) > TOLERANCE
        },
    }


def _read(trained: Trained, context: Context, c: Counterfactual) -> Array:
    """Scores of a counterfactual; of one that was given up those of the deployed model: no effect, of unknown error."""
    if c.given_up:
        return trained.final()
    restore(c.state, context.engine.model)
    return trained.scores(context.engine.model)


def _means(setting: Larger, effects: Array) -> list[dict[str, float]]:
    """Mean effect of every stage on every slice."""
    return [{n: float(row[rows].mean()) for n, rows in setting.slices.items()} for row in effects]


def _copy(model: nn.Module) -> dict[str, Tensor]:
    return {n: t.detach().clone() for n, t in model.state_dict().items()}


def table(result: Mapping[str, Any]) -> str:
    """Medians over seeds beside their bars, in Markdown."""
    share = result["share"]
    lines = [
        f"At {share:g} of exact replay's gradients, the error estimate included; medians over seeds, "
        f"effects beyond {TOLERANCE:g} nats. Errors in units of the exact effects: of all stages but the last, of the two middle ones.",
        "",
        "| setting, seeds | estimator | slice means | rows | leading right | stated error covers rows | covers means | width (rows) | CPU against retraining |",
        "|---|---|---|---|---|---|---|---|---|",
        *(
            f"| *bar, {start}* | | *{bars[0]:g}* | *{bars[1]:g}* | *90 %* | *90 %* | *90 %* | *3* | |"
            for start, bars in BARS.items()
        ),
    ]
    for name, seeds in result["settings"].items():
        for estimator in ESTIMATORS if seeds else ():
            made = {
                s: e
                for s, row in seeds.items()
                if "refused" not in (e := row["estimators"][estimator])
            }
            title = f"{LARGER[name].title}, {', '.join(seeds)} | {estimator}"
            lines.append(
                f"| {title} | {_figures(list(made.values())) if made else 'refused | | | | | |'} |"
            )
    return "\n".join(lines) + "\n"  # fmt: skip


def _figures(made: Sequence[Mapping[str, Any]]) -> str:
    cases = [case for run in made for case in run["cases"]]
    stated = [math.inf if c["stated"] is None else c["stated"] for c in cases]
    rows = [s >= c["error_rows"] for s, c in zip(stated, cases, strict=True)]
    means = [s >= abs(c["error"]) for s, c in zip(stated, cases, strict=True)]
    width = np.median([s / c["error_rows"] for s, c in zip(stated, cases, strict=True)])
    right = [x for run in made for x in run["leading"].values()]
    errors = (
        f"{median([r[part] for r in made]):.3f}, {median([r[f'{part}_middle'] for r in made]):.3f}"
        for part in ("slice_error", "row_error")
    )
    counts = (f"{sum(held)} of {len(held)}" for held in (right, rows, means))
    cpu = median([r["cpu_ratio"] for r in made])
    return " | ".join([*errors, *counts, f"{width:.2f}", f"{cpu:.2f}"])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--settings", nargs="+", default=list(LARGER), choices=list(LARGER))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--first-seed", type=int, default=201)
    parser.add_argument("--share", type=float, default=0.25)
    parser.add_argument("--only-exact", action="store_true")
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    path = options.out / "larger.json"
    settings = json.loads(path.read_text())["settings"] if path.exists() else {}
    for seed in range(options.first_seed, options.first_seed + options.seeds):
        for name in options.settings:
            row = compare(
                LARGER[name],
                seed,
                0 if options.only_exact else options.share,
                WORK / f"{name}-{seed}",
            )
            if options.only_exact:
                print(name, seed, json.dumps(finite(row["exact"])), flush=True)
                continue
            settings.setdefault(name, {})[str(seed)] = finite(row)
            result = {
                "versions": environment(), "share": options.share, "settings": settings,
            }  # fmt: skip
            options.out.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(result, indent=1, allow_nan=False) + "\n")
            (options.out / "larger.md").write_text(table(result))
            print(f"{name}, seed {seed}: done", file=sys.stderr, flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
