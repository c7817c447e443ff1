"""Make the runs that the rule asks for, until it has what it needs or may have no more."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from auditspec.answerable.certainty import Tallied, answer, tally
from auditspec.answerable.courses import Case
from auditspec.answerable.evidence import case_of
from auditspec.answerable.rule import MissingArmError
from auditspec.estimator.interventions import Arm
from auditspec.paths import PathEvaluator, Resampler, Walked
from auditspec.results import BehaviorResult, Draws, PartyResult, Tally
from auditspec.verdicts import runs_to_confirm

MOST_ARMS = 3
"""Runs beyond those without one stage each, in multiples of the number of stages."""
HEEDED = 0.05
"""Share of the resamples from which on a run that only they ask for is made."""
ROUNDS = 50
"""The rule asks for one run after another; more rounds than that it never took."""
Make = Callable[[Sequence[Arm], bool], Mapping[Arm, Walked]]
"""(runs, whether exactly) -> those of them that could be made, read."""


@dataclass
class Settlement:
    """The rule for every behaviour, on the runs that there are and on those that it asks for."""

    behaviors: Sequence[BehaviorResult]
    """With their concerns."""
    parties: Sequence[PartyResult]
    """Everything that formed the model."""
    draws: Sequence[Draws]
    """Levels of beginnings drawn again."""
    reader: PathEvaluator
    resampler: Resampler
    make: Make
    """Makes further runs; those that it cannot make are left out."""
    level: float
    """Share of the resamples that must agree."""
    walked: dict[Arm, Walked]
    """The recorded run and the runs that were made; further ones are added."""

    def settle(self) -> dict[str, tuple[Tally, ...]]:
        """How the rule ends for every behaviour on resampled examples."""
        most = MOST_ARMS * len(self.reader.stages)
        refused: set[Arm] = set()
        names = [behavior.id for behavior in self.behaviors]
        levels = {
            n: {a: self.resampler.levels(w, n) for a, w in self.walked.items()} for n in names
        }
        paths = {n: {a: self.reader.path(w, n) for a, w in self.walked.items()} for n in names}
        tallied: dict[str, Tallied | None] = {}
        for _ in range(ROUNDS):
            wanted: Counter[Arm] = Counter()
            confirm: set[Arm] = set()
            for b in self.behaviors:
                course = paths[b.id].values()
                case = case_of(b, self.parties, course, self.draws, levels[b.id])
                tallied[b.id] = ended = _tally(case, wanted)
                if ended is not None:
                    confirm |= _to_confirm(ended, self.walked, self.level)
            further = self._further(wanted, refused, confirm)[: max(most, 0)]
            exactly = sorted(confirm - refused, key=lambda arm: arm.name)
            if not further and not exactly:
                break
            runs = dict(self.make(further, False)) if further else {}
            runs |= self.make(exactly, True) if exactly else {}
            most -= sum(arm not in self.walked for arm in runs)
            refused |= {*further, *exactly} - runs.keys()
            refused |= {arm for arm in exactly if arm in runs and not runs[arm].exact}
            refused |= {arm for arm in further if arm in runs and not runs[arm].known}
            for arm, walk in runs.items():
                self.walked[arm] = walk
                for n in names:
                    levels[n][arm] = self.resampler.levels(walk, n)
                    paths[n][arm] = self.reader.path(walk, n)
            if not runs:
                break
        return {name: _published(ended) for name, ended in tallied.items()}

    def _further(self, wanted: Counter[Arm], refused: set[Arm], confirm: set[Arm]) -> list[Arm]:
        """Runs that the examples themselves ask for; where there are none, those that resamples do."""
        asked = [(arm, count) for arm, count in wanted.most_common() if arm not in refused]
        further = [arm for arm, count in asked if count == math.inf]
        if not further and not confirm - refused:
            further = [arm for arm, count in asked if count >= HEEDED * self.resampler.resamples]
        return further


def _tally(case: Case, wanted: Counter[Arm]) -> Tallied | None:
    """Tally, noting which runs are missing; None where the examples themselves lack one."""
    try:
        tallied = tally(case)
    except MissingArmError as missing:
        wanted[missing.arm] += math.inf  # type: ignore[assignment]
        return None
    for arm, count in tallied.wanted.items():
        wanted[arm] += count
    return tallied


def _to_confirm(found: Tallied, walked: Mapping[Arm, Walked], level: float) -> set[Arm]:
    """Estimated runs that must be made exactly before the parties of an answer may be named."""
    kind = answer(found.outcome, found.tallies, found.resamples, level).kind
    if kind in ("open", "nobody"):
        return set()
    return {arm for arm in runs_to_confirm(found.outcome) if not walked[arm].exact}


def _published(found: Tallied | None) -> tuple[Tally, ...]:
    if found is None:
        return ()
    ordered = sorted(found.tallies.items(), key=lambda item: (-item[1], sorted(item[0][0])))
    return tuple(
        Tally.model_validate({"parties": tuple(sorted(parties)), "ending": ending, "count": count})
        for (parties, ending), count in ordered
    )
