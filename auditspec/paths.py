"""Every behaviour along every run: at the initial weights, after each change of the model, at each end.

States are read, then let go; what stays is one number per evaluation example, state, and behaviour.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from auditspec.answerable.courses import INITIAL_STATE, end_of, start_of
from auditspec.behaviors.bound import Scores
from auditspec.behaviors.evaluate import Evaluator
from auditspec.behaviors.skill import Skill, accuracies, skill_of
from auditspec.behaviors.statistics import Counts
from auditspec.effects import extrapolated, refuse_given_up, same
from auditspec.engine.references import NO_REFERENCES, References
from auditspec.errors import EstimationError
from auditspec.estimator.counterfactual import Counterfactual
from auditspec.estimator.interface import Baseline
from auditspec.estimator.interventions import INITIAL, RECORDED, Arm
from auditspec.estimator.paired.twin import TWIN_FACTOR
from auditspec.record.state import State
from auditspec.record.trajectory import StageTrajectory
from auditspec.results import Path
from auditspec.spec.models import Behavior

Read = dict[str, dict[str, Scores]]
"""Scores by state, then by behaviour; accuracies stand beside them."""
Placed = tuple[str, State, StageTrajectory]
"""A state's name, the state, and the stage whose model it belongs to."""
NO_NOISE: Mapping[str, float] = {}
COVERED = 1.645
"""What an estimator says of its error covers the true error in about nine cases of ten: so many standard
deviations of a normal."""


@dataclass(frozen=True)
class Walked:
    """One run, read."""

    arm: Arm
    scores: Read
    exact: bool
    errors: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    """The estimator's own error of the level, by state and behaviour; missing: none."""

    @property
    def known(self) -> bool:
        """Whether the error of every level is known."""
        return all(np.isfinite(e) for by in self.errors.values() for e in by.values())


class PathEvaluator:
    """Reads behaviours and skill at the states of runs.

    Args:
        reader: reads the spec's behaviours on the deployed model's states and those of the stages.
        run: the recorded run as the estimates have it.
        labels: the column of true classes, by artifact name.
        references: what arms were given in place of the recorded evidence.
        unsettled: parties without which recorded data would be other than it is; no run that leaves
            one out is exact.
    """

    def __init__(
        self,
        reader: Evaluator,
        run: Baseline,
        labels: Mapping[str, str | None],
        references: References = NO_REFERENCES,
        unsettled: Collection[str] = (),
    ) -> None:
        self._unsettled = frozenset(unsettled)
        self.reader, self.run = reader, run
        self._references = references
        self.rerun = reader.rerun
        self.stages = reader.rerun.trajectory.stages
        self.ids = [stage.id for stage in self.stages]
        self._labels = labels
        accuracy = self._accuracies()
        self._labelled = {behavior.data for behavior in accuracy}
        """Data sets on which accuracy can be read."""
        spoken = [part.behavior for part in reader.slices.values()]
        self._whole = reader.of([*spoken, *accuracy], labels) if accuracy else reader
        """Reads accuracies too."""
        self._slices = self._whole.slices
        final = run.final
        self.uninformed: dict[str, float | None] = {}
        self.bounded: dict[str, bool] = {}
        for name, part in reader.slices.items():
            self.uninformed[name] = part.uninformed(reader.classes(name, final))
            self.bounded[name] = part.bounded
        self.skills: dict[str, Skill | None] = {
            name: skill_of(part.behavior, reader, labels, self.uninformed)
            if self._readable(part.behavior.data, part.behavior.skill)
            else None
            for name, part in reader.slices.items()
        }
        self.recorded = Walked(RECORDED, self._read(self.recorded_states()), exact=True)

    def _accuracies(self) -> list[Behavior]:
        """The accuracy on each labelled data set; none where that cannot be read."""
        wanted = accuracies(self.reader, self._labels)
        parts = self.reader.of(wanted, self._labels).slices
        spoken = self.reader.slices.values()
        more = [b for b in wanted if not any(parts[b.id].scores_as(part) for part in spoken)]
        try:
            self.reader.of(more, self._labels).plug_in(self.run.final)
        except (EstimationError, IndexError, RuntimeError):
            return []
        return wanted

    def _readable(self, data: str, skill: str | None) -> bool:
        return skill is not None or data in self._labelled

    def of(self, reader: Evaluator) -> PathEvaluator:
        """The same runs by another reader.

        Raises:
            EstimationError: if it cannot read the end of the recorded run.
        """
        return PathEvaluator(reader, self.run, self._labels, self._references, self._unsettled)

    # --- states -------------------------------------------------------------------------------

    def recorded_states(self) -> Iterator[Placed]:
        """The states of the recorded run."""
        path = self.run.path
        first = self.stages[0]
        yield INITIAL_STATE, self.run.starts.get(first.id, first.first), first
        for index, stage in enumerate(self.stages):
            if self.changed(index):
                yield start_of(stage.id), self.run.starts.get(stage.id, stage.first), stage
            yield end_of(stage.id), path.get(stage.id, stage.last), stage

    def changed(self, index: int) -> bool:
        """Whether the model was changed before a stage that is not the first."""
        return index > 0 and self.stages[index].header.extend is not None

    def states_of(self, counterfactual: Counterfactual) -> Iterator[Placed]:
        """The states of an arm from where it differs from the recorded run on."""
        arm = counterfactual.arm
        begin = arm.first(self.ids)
        trained = [stage for stage in self.ids[begin:] if stage not in arm.omitted]
        if not counterfactual.path.keys() >= set(trained):  # the end is all there is
            yield end_of(self.ids[-1]), counterfactual.state, self.stages[-1]
            return
        stage = self.stages[begin]
        state = self.run.starts.get(stage.id, stage.first)
        if INITIAL in arm.replaced:
            state = self._references.start(self.rerun)
            yield INITIAL_STATE, state, stage
        for index in range(begin, len(self.stages)):
            stage = self.stages[index]
            if index > begin or (INITIAL in arm.replaced and self.changed(index)):
                state = self.rerun.carry_over(index, state)
                if self.changed(index):
                    yield start_of(stage.id), state, stage
            if stage.id in arm.omitted:
                continue
            state = counterfactual.path[stage.id]
            yield end_of(stage.id), state, stage

    def _read(self, states: Iterator[Placed]) -> Read:
        """Scores at each state that can be read: one under another head, or in the midst of training, may not
        be; a run whose end cannot be read is none.
        """
        scores: Read = {}
        end = end_of(self.ids[-1])
        for name, state, stage in states:
            try:
                scores[name] = self._whole.plug_in(state, stage)
            except (EstimationError, IndexError, RuntimeError):
                scores.pop(name, None)
                if name == end:
                    raise
        return scores

    # --- arms ---------------------------------------------------------------------------------

    def walk(self, counterfactual: Counterfactual, twin: Counterfactual | None = None) -> Walked:
        """Read an arm; where it is estimated, its twin tells the error of every level.

        Raises:
            EstimationError: if a behaviour cannot be read.
        """
        refuse_given_up(counterfactual)
        scores = self._read(self.states_of(counterfactual))
        errors: dict[str, dict[str, float]] = {}
        unsettled = bool(counterfactual.arm.parties & self._unsettled)
        exact = counterfactual.exact and not unsettled
        if not exact:
            told = twin is not None and not twin.given_up and not same(counterfactual, twin)
            used = twin if told and not unsettled else None
            other = self._read(self.states_of(used)) if used is not None else {}
            for state, by_behavior in scores.items():
                errors[state] = {
                    name: TWIN_FACTOR
                    * self._slices[name].statistic.distance(values, other[state][name])
                    if state in other
                    else float("inf")
                    for name, values in by_behavior.items()
                }
            scores = {
                state: {
                    name: extrapolated(counterfactual, self._slices[name], values, other.get(state))
                    for name, values in by_behavior.items()
                }
                for state, by_behavior in scores.items()
            }
        return Walked(counterfactual.arm, scores, exact, errors)

    # --- published, and resampled -------------------------------------------------------------

    def path(self, walked: Walked, behavior: str) -> Path:
        """A run as it is published."""
        states = list(walked.scores)
        skill, statistic = self.skills[behavior], self._slices[behavior].statistic
        shares = (
            skill.shares(walked.scores, self.recorded.scores)
            if skill is not None
            else dict.fromkeys(states)
        )
        return Path(
            behavior=behavior,
            arm=walked.arm.name,
            states=tuple(states),
            levels=tuple(statistic.level(walked.scores[s][behavior]) for s in states),
            errors=tuple(_known(walked.errors.get(s, {}).get(behavior, 0.0)) for s in states),
            skills=tuple(shares[s] for s in states),
            exact=walked.exact,
        )


class Resampler:
    """Resamples evaluation examples: of each data set by itself, all its behaviours together.

    Args:
        reader: names the slices.
        resamples: R.
        seed: of the draws.
        noise: standard deviation of a level by what is random in scoring, by behaviour; missing: none.
    """

    def __init__(
        self,
        reader: Evaluator,
        resamples: int,
        seed: int,
        noise: Mapping[str, float] = NO_NOISE,
    ) -> None:
        self.resamples = resamples
        self._slices = reader.slices
        self._seed, self._noise = seed, noise
        generator = np.random.default_rng(seed)
        sizes = {part.behavior.data: len(part.dataset.frame) for part in reader.slices.values()}
        drawn: dict[str, Counts] = {}
        for data in sorted(sizes):
            rows = sizes[data]
            counts = generator.multinomial(rows, np.full(rows, 1 / rows), size=resamples)
            drawn[data] = counts
        self._counts: dict[str, Counts] = {}
        for name, part in reader.slices.items():
            counts = drawn[part.behavior.data][:, part.ids]
            counts[counts.sum(1) == 0] = 1  # no example of the slice was drawn: as they are
            self._counts[name] = counts

    def levels(self, walked: Walked, behavior: str) -> dict[str, NDArray[np.float64]]:
        """Levels [1 + R] at each state of a run, signed towards the concern.

        An estimated level is off by an error that is drawn once for a resample and run: its states share a
        cause, so that they are off together. What is random in scoring, every state has for itself.
        """
        counts, part = self._counts[behavior], self._slices[behavior]
        key = [self._seed, *(ord(c) for c in " ".join((behavior, *walked.arm.name)))]
        off = np.random.default_rng(key).normal(size=self.resamples) / COVERED
        levels = {}
        for state, scores in walked.scores.items():
            values = scores[behavior]
            error = walked.errors.get(state, {}).get(behavior, 0.0)
            resampled = part.statistic.resampled(values, counts) + (
                off * error if np.isfinite(error) else 0.0
            )
            if noise := self._noise.get(behavior, 0.0):
                own = np.random.default_rng([*key, *map(ord, state)])
                resampled = resampled + noise * own.normal(size=self.resamples)
            drawn = np.concatenate([[part.statistic.level(values)], resampled])
            levels[state] = part.behavior.concern.signed(drawn)
        return levels


def _known(error: float) -> float | None:
    return error if np.isfinite(error) else None
