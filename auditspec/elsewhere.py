"""Behaviours whose scores other tools made, along the runs that an audit made.

A model is told by the digest of its weights: scores count for the very state that was scored. States without
scores are missing, as those are that no model can be read at; what a verdict needs and lacks, it says.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import numpy as np

from auditspec.answerable.courses import end_of
from auditspec.artifacts.datasets import Dataset
from auditspec.behaviors.bound import Scores, bind
from auditspec.behaviors.evaluate import Evaluator
from auditspec.behaviors.score_table import Elsewhere, ScoreTable
from auditspec.checks.subject import Rescored
from auditspec.effects import StageEffects
from auditspec.errors import EstimationError, EvidenceError
from auditspec.estimator.interventions import RECORDED, Arm
from auditspec.intervals import Interval, Sample, repeatability
from auditspec.measured import described, measured_behavior
from auditspec.messages import Message, message
from auditspec.paths import PathEvaluator, Resampler, Walked
from auditspec.record.state import State
from auditspec.results import BehaviorResult, Draws, Effect, PartyResult, Path, Tally
from auditspec.runs import MadeRun, Maker
from auditspec.settle import Make, Settlement
from auditspec.spec.models import Behavior, Spec


@dataclass(frozen=True)
class ReadElsewhere:
    """One behaviour by scores that were made elsewhere."""

    behavior: BehaviorResult
    rescored: Rescored
    paths: tuple[Path, ...] = ()
    tallies: tuple[Tally, ...] = ()
    sample: Sample | None = None
    """What stages change; None where no run without a stage was scored."""
    walks: tuple[Walked, ...] = ()
    """The runs that the sample's changes are of, in its order."""

    def effects(self, intervals: Mapping[str, Interval]) -> tuple[Effect, ...]:
        """Every scored stage's effect, with its interval."""
        if self.sample is None:
            return ()
        sample, interval = self.sample, intervals[self.behavior.id]
        level = sample.statistic.level(sample.deployed)
        effects = []
        for row, walk in enumerate(self.walks):
            value = sample.statistic.effect(sample.deployed, sample.changes[:, row])
            known = bool(np.isfinite(sample.errors[row]))
            effects.append(
                Effect(
                    behavior=self.behavior.id,
                    arm=walk.arm.name,
                    value=value,
                    counterfactual=level - value,
                    low=float(interval.low[row]) if known else None,
                    high=float(interval.high[row]) if known else None,
                    error=float(sample.errors[row]) if known else None,
                    leads=float(interval.leads[row]) if known else None,
                    exact=walk.exact,
                )
            )
        return tuple(effects)


def read_tables(spec: Spec, datasets: Mapping[str, Dataset]) -> dict[str, ScoreTable]:
    """The table of each behaviour that has one.

    Args:
        spec: names them.
        datasets: every data set at hand, by name.

    Raises:
        EvidenceError: as `ScoreTable.read`.
    """
    tables = {}
    for behavior in spec.behaviors:
        name = behavior.metric.artifacts.get("scores") if behavior.metric.elsewhere else None
        if name is not None:
            part = bind(behavior, datasets[behavior.data], None)
            tables[behavior.id] = ScoreTable.read(datasets[name], part)
    return tables


class ModelOf(NamedTuple):
    """A model that a run went through."""

    arm: Arm
    place: str
    """The state's name."""
    state: State
    exact: bool
    method: str = "recorded"
    twin: bool = False
    """Whether it is that of the second estimate, by which the error of the first is told."""


def models_of(paths: PathEvaluator, runs: Mapping[Arm, MadeRun]) -> Iterator[ModelOf]:
    """Every model of the recorded run and of further ones; those that runs share more than once."""
    for place, state, _ in paths.recorded_states():
        yield ModelOf(RECORDED, place, state, exact=True)
    for arm, (_, run, twin) in runs.items():
        for made in (run,) if twin is None else (run, twin):
            if not made.given_up:
                for place, state, _ in paths.states_of(made):
                    yield ModelOf(arm, place, state, made.exact, made.method, made is twin)


def by_model(spec: Spec) -> Spec:
    """The same spec with the behaviours that are read off models."""
    asked = tuple(b for b in spec.behaviors if not b.metric.elsewhere)
    return spec.model_copy(update={"behaviors": asked})


@dataclass(frozen=True)
class ElsewhereReader:
    """Reads behaviours by scores that were made elsewhere.

    Raises:
        EvidenceError: if a table has scores of a model that is none of this audit's runs.
    """

    spec: Spec
    reader: Evaluator
    """Of the behaviours that are read off models."""
    recorded: PathEvaluator
    """Of the same."""
    parties: Sequence[PartyResult]
    draws: Sequence[Draws]
    maker: Maker

    def read_all(self, readings: Mapping[str, StageEffects]) -> tuple[ReadElsewhere, ...]:
        """Every such behaviour, in the spec's order.

        Args:
            readings: the runs without one stage, as they are published.
        """
        chosen = [n for n, b in enumerate(self.spec.behaviors) if b.metric.elsewhere]
        return tuple(self._read(index, readings) for index in chosen)

    def _read(self, index: int, readings: Mapping[str, StageEffects]) -> ReadElsewhere:
        behavior, elsewhere = self.spec.behaviors[index], self.reader.elsewhere
        table = None if elsewhere is None else elsewhere.tables.get(behavior.id)
        if elsewhere is None or table is None:
            return self._unmeasured(index, message("scores-none", behavior=behavior.id))
        reader = self._reader_of(behavior)
        try:
            paths = self.recorded.of(reader)
        except EstimationError:
            self._refuse_others(behavior, table, elsewhere)
            why = message("scores-not-of-deployed", behavior=behavior.id, artifact=table.artifact)
            return self._unmeasured(index, why)
        noise = table.noise(reader.slices[behavior.id])
        walked, lacking = self._walk(paths)
        known = {RECORDED: paths.recorded, **walked}
        make = partial(self._make, paths, table, elsewhere)
        rule = self._rule(index, paths, known, noise or 0.0, make)
        (tallies,) = rule.settle().values()
        self._refuse_others(behavior, table, elsewhere)
        singles = [walked[arm] for stage in readings if (arm := Arm.without(stage)) in walked]
        return ReadElsewhere(
            rule.behaviors[0],
            Rescored(
                behavior.id,
                behavior.concern.tolerance,
                noise,
                missing=tuple(message("scores-lack-run", arm=arm.name) for arm in lacking),
            ),
            tuple(paths.path(walk, behavior.id) for walk in rule.walked.values()),
            tallies,
            self._sample(paths, behavior, singles, noise or 0.0) if singles else None,
            tuple(singles),
        )

    def _reader_of(self, behavior: Behavior) -> Evaluator:
        """Of a behaviour, and of those that skill is read by."""
        every, wanted = {b.id: b for b in self.spec.behaviors}, {behavior.id: behavior}
        while (skill := [*wanted.values()][-1].skill) is not None and skill not in wanted:
            wanted[skill] = every[skill]
        labels = {name: artifact.label for name, artifact in self.spec.artifacts.items()}
        return self.reader.of([*wanted.values()], labels)

    def _walk(self, paths: PathEvaluator) -> tuple[dict[Arm, Walked], list[Arm]]:
        """The runs that were made and scored, and those that were only made."""
        walked, lacking = {}, []
        for arm, run in self.maker.runs.items():
            try:
                paths.reader.plug_in(run.counterfactual.state)
                walked[arm] = paths.walk(run.counterfactual, run.twin)
            except EstimationError:
                lacking.append(arm)
        return walked, lacking

    def _rule(
        self, index: int, paths: PathEvaluator, walked: dict[Arm, Walked], noise: float, make: Make
    ) -> Settlement:
        name, sampling = self.spec.behaviors[index].id, self.spec.checks.sampling
        deployed = paths.recorded.scores[end_of(paths.ids[-1])]
        result = measured_behavior(self.spec, index, paths, deployed, deployed)
        resampler = Resampler(
            paths.reader, sampling.verdicts, self.spec.checks.seed, noise={name: noise}
        )
        return Settlement(
            behaviors=(result,),
            parties=self.parties,
            draws=self.draws,
            reader=paths,
            resampler=resampler,
            make=make,
            level=sampling.level,
            walked=walked,
        )

    def _make(
        self,
        paths: PathEvaluator,
        table: ScoreTable,
        elsewhere: Elsewhere,
        arms: Sequence[Arm],
        exactly: bool,
    ) -> Mapping[Arm, Walked]:
        """Further runs, while there are scores of models that are none of those that were made."""
        unknown, _ = self._others(table, elsewhere)
        return self.maker.make(paths, arms, exactly) if unknown else {}

    def _sample(
        self, paths: PathEvaluator, behavior: Behavior, walks: Sequence[Walked], noise: float
    ) -> Sample:
        part, last = paths.reader.slices[behavior.id], end_of(paths.ids[-1])
        deployed = paths.recorded.scores[last][behavior.id]

        def without(walk: Walked) -> Scores:
            if last in walk.scores:
                return walk.scores[last][behavior.id]
            run = self.maker.runs[walk.arm].counterfactual  # it ends where a stage before ended
            return paths.reader.plug_in(run.state)[behavior.id]

        errors = [walk.errors.get(last, {}).get(behavior.id, 0.0) for walk in walks]
        level = self.spec.checks.sampling.level
        return Sample(
            behavior=behavior.id,
            dataset=behavior.data,
            ids=part.ids,
            deployed=deployed,
            changes=np.stack([deployed - without(walk) for walk in walks], axis=1),
            errors=np.array(errors),
            statistic=part.statistic,
            binary=part.metric.binary,
            concern=behavior.concern,
            noise=repeatability(noise, level),
        )

    def _unmeasured(self, index: int, why: Message) -> ReadElsewhere:
        behavior = self.spec.behaviors[index]
        rescored = Rescored(behavior.id, behavior.concern.tolerance, unmeasured=why)
        return ReadElsewhere(described(self.spec, index), rescored)

    def _others(self, table: ScoreTable, elsewhere: Elsewhere) -> tuple[list[str], list[str]]:
        """Digests of the table that no run has, and those of runs that the table lacks."""
        ours = dict.fromkeys(
            digest
            for model in models_of(self.recorded, self.maker.runs)
            if (digest := elsewhere.digest_of(model.state)) is not None
        )
        return [d for d in table.scores if d not in ours], [
            d for d in ours if d not in table.scores
        ]

    def _refuse_others(self, behavior: Behavior, table: ScoreTable, elsewhere: Elsewhere) -> None:
        unknown, lacking = self._others(table, elsewhere)
        if unknown:
            more = f", and {len(unknown) - 1} more" if len(unknown) > 1 else ""
            beside = (
                f"; models of this audit without scores: {', '.join(lacking)}" if lacking else ""
            )
            raise EvidenceError(
                f"scores '{table.artifact}' of behaviour '{behavior.id}': {unknown[0]}{more} is no model of this "
                f"audit{beside}",
                "score the models that auditspec counterfactuals writes with this spec, on this kind of machine",
            )
