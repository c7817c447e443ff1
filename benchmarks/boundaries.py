"""Estimates from the stages' boundaries alone, against exact replay: krylov, SOURCE's averages, simulated replay.

    python -m benchmarks.boundaries [--settings NAME ...] [--seeds 3] [--first-seed 101] [--out FOLDER]

Writes `results/boundaries.json` and `boundaries.md`. Error and the settings are those of the ladder (README.md); every estimator has
a record of the same run that holds no step, and what a spec would declare: schedule, batch size, data.
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from auditspec.errors import AuditspecError
from auditspec.estimator.interface import Baseline, Context, Estimator
from auditspec.estimator.interventions import Arm
from auditspec.estimator.krylov.krylov import Krylov
from auditspec.estimator.krylov.segments import Declared
from auditspec.estimator.paired.twin import TWIN_FACTOR
from auditspec.estimator.simulated.simulated import SimulatedReplay
from auditspec.schedules import Course

from .estimators import Estimate, Job, by_stage, exact_replay, no_propagation
from .ladder import RESULTS, environment, finite
from .metrics import coverage, median, relative_error, rms
from .readings import Evaluator
from .settings import SETTINGS, Run, Setting, Stage
from .settings.pipeline import tensors
from .source import source

MEASURED = (
    "digits-sgd-gentle",
    "digits-sgd-cnn",
    "digits-adamw-gentle",
    "digits-adamw-mlp",
    "digits-adamw-cnn",
    "adult-mlp",
)
SIMULATED = {
    "without a limit": (None, SimulatedReplay()),
    "1": (1.0, SimulatedReplay()),
    "1/2": (0.5, SimulatedReplay()),
    "1/4": (0.5, SimulatedReplay(coarser=0.5)),
}
"""Budgets in shares of exact replay's gradients; a quarter is below what it accepts, and is half of the rows at a half."""


class Planned(Course):
    """A stage's rates as its setting has them: what is declared is what was done."""

    setting: Any
    stage: Any

    def share(self, step: int, steps: int) -> float:
        """Of the largest rate."""
        return float(self.setting.rate(self.stage, step) / self.stage.lr)


def declared(run: Run) -> dict[str, Declared]:
    """What is declared of each stage."""

    def of(stage: Stage) -> Declared:
        rows = len(tensors(run.datasets[stage.data])[0])
        course = Planned(name="planned", setting=run.setting, stage=stage)
        return Declared(course, stage.lr, run.setting.batch, rows)

    return {stage.id: of(stage) for stage in run.setting.stages}


def compare(setting: Setting, seed: int, folder: Path) -> dict[str, Any]:
    """Every estimator on the boundaries of one run."""
    torch.set_num_threads(1)
    dense = setting.make(seed, folder / "dense")
    exact = exact_replay(dense, dense.rerun(), Evaluator(dense))
    bounds = setting.make(seed, folder / "bounds", "boundaries")
    job = Job(bounds, bounds.rerun(), Evaluator(bounds), exact.gradients)
    found = {
        "none": _row(no_propagation(job), exact),
        "krylov": _attempt(job, Krylov(), exact),
        "source": _row(source(job), exact),
        "source, known displacement": _row(source(job, known=True), exact),
    }
    for words, (share, estimator) in SIMULATED.items():
        budget = None if share is None else int(share * exact.gradients)
        row = _attempt(job, estimator, exact, budget)
        found[f"simulated-replay {words}"] = row
    return found


def _attempt(job: Job, estimator: Estimator, exact: Estimate, budget: int | None = None) -> Any:
    try:
        ours, twin = _estimate(job, estimator, budget), estimator.twin()
        row = _row(ours, exact)
        if twin is not None:
            theirs = _estimate(job, twin, budget)
            row["twin"] = {
                stage: {"apart": rms(a - b), "true": rms(a - x), "effect": rms(x)}
                for stage, a, b, x in zip(
                    job.stages,
                    ours.effects.examples,
                    theirs.effects.examples,
                    exact.effects.examples,
                    strict=True,
                )
            }
    except AuditspecError as error:
        return {"refused": error.message}
    return row


def _estimate(job: Job, estimator: Estimator, budget: int | None) -> Estimate:
    given = declared(job.run)
    context = Context(engine=job.rerun, run=Baseline(job.final), budget=budget, declared=given)
    made = by_stage(estimator.estimate(context, Arm.each(job.stages)))
    effects = job.reader.plug_in({stage: c.state for stage, c in made.items()})
    return Estimate(effects, sum(c.gradients for c in made.values()))


def _row(estimate: Estimate, exact: Estimate) -> dict[str, Any]:
    guess, truth = estimate.effects.examples, exact.effects.examples
    return {
        "error": relative_error(guess, truth),
        "error_middle": relative_error(guess[1:], truth[1:]),
        "stages": [relative_error(guess[i], truth[i]) for i in range(len(truth))],
        "cost": estimate.gradients / exact.gradients,
    }


def table(result: dict[str, Any]) -> str:
    """The numbers as Markdown."""
    return "\n".join(_lines(result)) + "\n"


def _lines(result: dict[str, Any]) -> Iterator[str]:
    settings = result["settings"]
    names = list(dict.fromkeys(n for s in settings.values() for run in s.values() for n in run))
    titles = [SETTINGS[name].title for name in settings]
    yield f"`{result['command']}`; medians over seeds {result['seeds']}."
    yield ""
    for key, what in (
        ("error_middle", "Error over the middle stages; predicting no effect scores 1"),
        ("error", "Error over all stages but the last"),
        ("cost", "Cost in minibatch gradients, exact replay of all stages = 1, twins left out"),
    ):
        yield f"{what}:"
        yield ""
        yield from _head("estimator", titles)
        for name in names:
            rows = (median([run[name].get(key) for run in s.values()]) for s in settings.values())
            yield f"| {name} | {' | '.join(f'{row:.2g}' for row in rows)} |"
        yield ""
    yield f"Error estimates, {TWIN_FACTOR} times the distance to the twin, over stages and seeds: share of true errors covered, median of"
    yield "estimated / true; and the 95 % quantile of true error / distance:"
    yield ""
    yield from _head("estimator", [*titles, "all"])
    for name in (n for n in names if n.startswith("simulated")):
        cells = [_twins(settings, name, [s]) for s in settings]
        yield f"| {name} | {' | '.join([*cells, _twins(settings, name, list(settings))])} |"


def _head(first: str, titles: list[str]) -> Iterator[str]:
    yield f"| {first} | {' | '.join(titles)} |"
    yield f"|---{'|---:' * len(titles)}|"


def _twins(settings: dict[str, Any], name: str, of: list[str]) -> str:
    cases = [
        (case["apart"], case["true"])
        for setting in of
        for run in settings[setting].values()
        for case in run[name].get("twin", {}).values()
    ]
    if not cases:
        return "refused"
    stated = [TWIN_FACTOR * apart for apart, _ in cases]
    true = [t for _, t in cases]
    width = median([s / t for s, t in zip(stated, true, strict=True)])
    ratios = torch.tensor([t / apart for apart, t in cases])
    return f"{coverage(stated, true):.0%}, {width:.1f}×, {ratios.quantile(0.95):.2f}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--settings", nargs="+", default=list(MEASURED), choices=list(SETTINGS))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--first-seed", type=int, default=101)
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    seeds = list(range(options.first_seed, options.first_seed + options.seeds))
    result: dict[str, Any] = {
        "command": f"python -m benchmarks.boundaries {shlex.join(sys.argv[1:])}".strip(),
        "versions": environment(),
        "seeds": seeds,
        "settings": {name: {} for name in options.settings},
    }
    for name in options.settings:
        for seed in seeds:
            with tempfile.TemporaryDirectory() as folder:
                row = finite(compare(SETTINGS[name], seed, Path(folder)))
            result["settings"][name][str(seed)] = row
            errors = {n: r.get("error_middle", r.get("refused")) for n, r in row.items()}
            print(name, seed, errors, file=sys.stderr, flush=True)
            (options.out / "boundaries.json").write_text(json.dumps(result, indent=1) + "\n")
            (options.out / "boundaries.md").write_text(table(result))
    return 0


if __name__ == "__main__":
    sys.exit(main())
