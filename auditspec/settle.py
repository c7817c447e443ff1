"""Make the runs that the rule asks for, until it has what it needs or may have no more."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence

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


def settle(
    behaviors: Sequence[BehaviorResult],
    parties: Sequence[PartyResult],
    draws: Sequence[Draws],
    reader: PathEvaluator,
    resampler: Resampler,
    walked: dict[Arm, Walked],
    make: Make,
    level: float,
) -> dict[str, tuple[Tally, ...]]:
    """How the rule ends for every behaviour on resampled examples.

    Args:
        behaviors: with their concerns.
        parties: everything that formed the model.
        draws: levels of beginnings drawn again.
        reader: reads runs.
        resampler: resamples them.
        walked: the recorded run and the runs without one stage each; further runs are added to it.
        make: makes further runs; those that it cannot make are left out.
        level: share of the resamples that must agree.
    """
    most = MOST_ARMS * len(reader.stages)
    refused: set[Arm] = set()
    levels = {b.id: {a: resampler.levels(w, b.id) for a, w in walked.items()} for b in behaviors}
    paths = {b.id: {a: reader.path(w, b.id) for a, w in walked.items()} for b in behaviors}
    tallied: dict[str, Tallied | None] = {}
    for _ in range(ROUNDS):
        wanted: Counter[Arm] = Counter()
        confirm: set[Arm] = set()
        for behavior in behaviors:
            case = case_of(
                behavior, parties, paths[behavior.id].values(), draws, levels[behavior.id]
            )
            found = _tally(case, wanted)
            tallied[behavior.id] = found
            if found is not None:
                confirm |= _to_confirm(found, walked, level)
        open_ = [(arm, count) for arm, count in wanted.most_common() if arm not in refused]
        further = [arm for arm, count in open_ if count == math.inf]  # the examples' own come first
        if not further and not confirm - refused:
            further = [arm for arm, count in open_ if count >= HEEDED * resampler.resamples]
        further = further[: max(most, 0)]
        exactly = sorted(confirm - refused, key=lambda arm: arm.name)
        if not further and not exactly:
            break
        made = dict(make(further, False)) if further else {}
        made |= make(exactly, True) if exactly else {}
        most -= sum(arm not in walked for arm in made)
        refused |= {*further, *exactly} - made.keys()
        refused |= {arm for arm in exactly if arm in made and not made[arm].exact}
        refused |= {arm for arm in further if arm in made and not made[arm].known}
        for arm, walk in made.items():
            walked[arm] = walk
            for b in behaviors:
                levels[b.id][arm] = resampler.levels(walk, b.id)
                paths[b.id][arm] = reader.path(walk, b.id)
        if not made:
            break
    return {name: _published(found) for name, found in tallied.items()}


def _tally(case: Case, wanted: Counter[Arm]) -> Tallied | None:
    """Tally, noting which runs are missing; None where the examples themselves lack one."""
    try:
        found = tally(case)
    except MissingArmError as missing:
        wanted[missing.arm] += math.inf  # type: ignore[assignment]
        return None
    for arm, count in found.wanted.items():
        wanted[arm] += count
    return found


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
