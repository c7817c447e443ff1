"""Propose a limit: how high a behaviour's level is on models that are clean, or as clean as the run has them.

From clean models the limit is their mean level, and beyond it the tolerance or twice their standard
deviation, whichever is more: an honest model trained once more should keep it. Executes the audited code.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from auditspec.answerable.rule import ABLE
from auditspec.artifacts.weight_files import fitted
from auditspec.artifacts.weights import read_weights
from auditspec.audited_code import audited_code, load_functions
from auditspec.behaviors.evaluate import Evaluator
from auditspec.checks.evidence_integrity import EvidenceIntegrity
from auditspec.confinement import UNCONFINED, Confinement
from auditspec.consistency.check import check
from auditspec.engine import Engine, engine_named
from auditspec.engine.execution import execution, resolve_device
from auditspec.errors import EvidenceError
from auditspec.estimator.compute import counterfactuals
from auditspec.estimator.counterfactual import Counterfactual
from auditspec.estimator.interface import Baseline, Context
from auditspec.estimator.interventions import INITIAL, Arm
from auditspec.estimator.replay.replay import Replay
from auditspec.gates import reader_of
from auditspec.gather import Opened, open_all
from auditspec.paths import PathEvaluator, Walked
from auditspec.progress import SILENT, Progress
from auditspec.record.numerics import numerics
from auditspec.record.state import State, named_buffers, named_parameters, ties
from auditspec.report.words import text
from auditspec.spec.models import Spec
from auditspec.spec.source import LoadedSpec

Source = Literal["clean models", "reference", "the run itself"]
SPREADS = 2.0
"""Standard deviations of clean models that a limit leaves room for."""


@dataclass(frozen=True)
class Level:
    """A behaviour's level on one model."""

    name: str
    level: float


@dataclass(frozen=True)
class Proposal:
    """A limit for one behaviour, and what it rests on."""

    behavior: str
    unit: str
    source: Source
    levels: tuple[Level, ...]
    limit: float
    deployed: float
    tolerance: float
    """As the limit has it, in the metric's unit."""

    @property
    def mean(self) -> float:
        """Of the levels."""
        return float(np.mean([level.level for level in self.levels]))

    @property
    def spread(self) -> float | None:
        """Their standard deviation; None for a single model."""
        values = [level.level for level in self.levels]
        return float(np.std(values, ddof=1)) if len(values) > 1 else None


def propose(
    loaded: LoadedSpec,
    clean: Mapping[str, Path],
    announce: Callable[[str], None] = lambda line: None,
    progress: Progress = SILENT,
    confinement: Confinement = UNCONFINED,
) -> tuple[Proposal, ...]:
    """Propose a limit for every behaviour.

    Where clean models are given, from them; else from the runs in which everything that has reference
    evidence is given it; else from the able states of the run itself, which a fault of its beginning
    would share.

    Args:
        loaded: the spec.
        clean: weights of clean models of the deployed architecture, by name.
        announce: told of every code file before it is executed.
        progress: told of the long phases.
        confinement: how the audited code is kept apart.

    Raises:
        SpecError: if the spec does not fit what it names.
        EvidenceError: if evidence is missing, changed, or not pinned, or weights are of another model.
        EstimationError: if the audited code fails.
    """
    checked = check(loaded, signing=False)
    checked.require_fitting()
    integrity = EvidenceIntegrity(evidence := checked.evidence).run()
    if integrity.outcome != "pass":
        raise EvidenceError(text(integrity.reasons), "run auditspec validate for every problem")
    opened = open_all(loaded, evidence)
    spec, trajectory = loaded.spec, opened.trajectory
    for file in opened.code.files:
        announce(f"executing {file.path} ({file.digest})")
    threads = spec.estimator.threads or trajectory.header.threads
    device, dtype = resolve_device(spec.estimator.device), getattr(torch, spec.estimator.dtype)
    with (
        audited_code(loaded, opened, confinement, device) as code,
        execution(threads, deterministic=spec.estimator.deterministic),
        numerics(trajectory.header.numerics),
    ):
        functions, custom = load_functions(spec, code)
        rerun = engine_named(spec.estimator.engine)(
            trajectory, functions, opened.datasets, device=device, dtype=dtype
        )
        labels = {name: artifact.label for name, artifact in spec.artifacts.items()}
        reader = reader_of(loaded, rerun, opened, custom)
        run = Baseline(trajectory.stages[-1].last)
        context = Context(engine=rerun, run=run, references=opened.references, progress=progress)
        paths = PathEvaluator(reader, run, labels, opened.references)
        if clean:
            source: Source = "clean models"
            levels = _of_models(reader, rerun, clean)
        elif arm := _with_references(spec, opened):
            source = "reference"
            levels = _of_arm(paths, counterfactuals(Replay(), context, [arm])[arm])
        else:
            source = "the run itself"
            singles = [Arm.without(stage.id) for stage in trajectory.stages]
            replayed = counterfactuals(Replay(), context, singles)
            levels = _of_run(paths, [paths.walk(run) for run in replayed.values()])
        deployed = reader.plug_in(run.final)
    return tuple(
        _proposal(spec, name, source, levels[name], part.statistic.level(deployed[name]))
        for name, part in reader.slices.items()
    )


Levels = dict[str, list[Level]]
"""By behaviour."""


def _of_models(reader: Evaluator, rerun: Engine, clean: Mapping[str, Path]) -> Levels:
    levels: Levels = {name: [] for name in reader.slices}
    rerun.enter(rerun.trajectory.stages[-1])
    names, tied = named_parameters(rerun.model), ties(rerun.model)
    own = [name for name in names if name not in tied.values()]
    for model, path in clean.items():
        weights = fitted(read_weights(path, names=own).tensors, list(names), tied)
        scores = reader.plug_in(_state_of(rerun, weights, str(path)))
        for name, part in reader.slices.items():
            levels[name].append(Level(model, part.statistic.level(scores[name])))
    return levels


def _state_of(rerun: Engine, weights: Mapping[str, Tensor], path: str) -> State:
    kinds = (named_parameters(rerun.model), named_buffers(rerun.model))
    for name, tensor in {**kinds[0], **kinds[1]}.items():
        if name not in weights or weights[name].shape != tensor.shape:
            raise EvidenceError(
                f"{path}: no weights of the deployed model: {name} is missing or of another shape",
                "give weights of the same architecture",
            )
    parameters, buffers = ({n: weights[n] for n in kind} for kind in kinds)
    return State(parameters, buffers)


def _with_references(spec: Spec, opened: Opened) -> Arm | None:
    parties = set(opened.references.data)
    if opened.references.weights is not None:
        parties.add(INITIAL)
    return Arm(replaced=frozenset(parties)) if parties else None


def _of_arm(paths: PathEvaluator, counterfactual: Counterfactual) -> Levels:
    """The able ends of stages in a run on reference evidence."""
    return _able(paths, {"with references": paths.walk(counterfactual)})


def _of_run(paths: PathEvaluator, arms: list[Walked]) -> Levels:
    """The lowest level of the able ends of the run and of the runs without one stage."""
    runs = {"as recorded": paths.recorded}
    runs |= {f"without {', '.join(sorted(walk.arm.omitted))}": walk for walk in arms}
    levels = _able(paths, runs)
    for name, part in paths.reader.slices.items():
        concern = part.behavior.concern
        levels[name] = [min(levels[name], key=lambda level, c=concern: c.signed(level.level))]  # type: ignore[misc]
    return levels


def _able(paths: PathEvaluator, runs: Mapping[str, Walked]) -> Levels:
    levels: Levels = {name: [] for name in paths.reader.slices}
    for name in levels:
        for words, walk in runs.items():
            path = paths.path(walk, name)
            for state, level, skill in zip(path.states, path.levels, path.skills, strict=True):
                if state.endswith(":end") and (skill is None or skill >= ABLE):
                    levels[name].append(Level(f"{words}, at the end of {state[:-4]}", level))
        if not levels[name]:
            last = next(iter(runs.values()))
            path = paths.path(last, name)
            levels[name].append(Level("at the end of the run", path.levels[-1]))
    return levels


def _proposal(
    spec: Spec, name: str, source: Source, levels: list[Level], deployed: float
) -> Proposal:
    behavior = next(b for b in spec.behaviors if b.id == name)
    concern, unit = behavior.concern, behavior.statistic.unit(behavior.metric.unit)
    values = np.array([level.level for level in levels])
    spread = float(values.std(ddof=1)) if len(values) > 1 else 0.0
    tolerance = concern.tolerance
    if concern.tolerance_share is not None:
        tolerance = concern.tolerance_share * abs(float(values.mean()))
    room = max(tolerance, SPREADS * spread)
    limit = float(values.mean()) + concern.signed(room)
    return Proposal(name, unit, source, tuple(levels), limit, deployed, tolerance)
