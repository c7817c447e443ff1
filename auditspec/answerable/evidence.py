"""From published results to what the rule looks at: the same for an audit and for whoever checks one."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from auditspec.answerable.courses import (
    INITIAL_STATE,
    Case,
    Concern,
    Course,
    Pipeline,
    Values,
    end_of,
    start_of,
    state_after,
)
from auditspec.estimator.interventions import INITIAL, RECORDED, Arm, change_before
from auditspec.results import BehaviorResult, Draws, PartyResult, Path

Levels = Mapping[Arm, Mapping[str, Values]]
"""A behaviour's levels over resamples, by run and state, signed towards the concern."""


def case_of(
    behavior: BehaviorResult,
    parties: Sequence[PartyResult],
    paths: Iterable[Path],
    draws: Iterable[Draws],
    resampled: Levels | None = None,
) -> Case:
    """Everything that the rule goes by, for one behaviour.

    Args:
        behavior: names the concern.
        parties: everything that formed the model, in order of training.
        paths: of all behaviours; those of this one are taken.
        draws: the same.
        resampled: levels of the same states over resamples too; None: the published ones alone.

    Raises:
        ValueError: if no path is that of the recorded run, or parties, arms, and states are not those of one
            training run.
    """
    concern = behavior.concern
    drawn = [d for d in draws if d.behavior == behavior.id]
    pipeline = pipeline_of(parties)
    fixed = frozenset(d.party for d in drawn if d.identical)
    own = {
        Arm.of(path.arm): path for path in paths if path.behavior == behavior.id and usable(path)
    }
    if RECORDED not in own:
        raise ValueError(f"the recorded run of '{behavior.id}' is missing")
    for arm, path in own.items():
        _require_states(arm, path, pipeline)

    def course(arm: Arm) -> Course:
        path = own[arm]
        given = resampled[arm] if resampled is not None else {}
        levels = {
            state: given[state] if state in given else (concern.signed(level),)
            for state, level in zip(path.states, path.levels, strict=True)
        }
        skills = {
            state: _assumed(state, arm, pipeline, fixed) if skill is None else skill
            for state, skill in zip(path.states, path.skills, strict=True)
        }
        return Course(levels, skills)

    recorded = course(RECORDED)
    courses = {RECORDED: recorded}
    for arm in own.keys() - {RECORDED}:
        ours = course(arm)
        shared = [s for s in _before(arm, pipeline) if s in recorded.levels]
        courses[arm] = Course(
            {state: recorded.levels[state] for state in shared} | ours.levels,
            {state: recorded.skills[state] for state in shared} | dict(ours.skills),
        )
    return Case(
        pipeline,
        Concern(
            tolerance=concern.tolerance,
            limit=None if concern.limit is None else concern.signed(concern.limit),
            uninformed=None if behavior.uninformed is None else concern.signed(behavior.uninformed),
            bounded=behavior.bounded,
        ),
        courses,
        {d.party: [concern.signed(level) for level in d.levels] for d in drawn},
    )


def usable(path: Path) -> bool:
    """Whether the rule may go by a run: one whose error is unknown says nothing."""
    return path.exact or all(error is not None for error in path.errors)


def pipeline_of(parties: Sequence[PartyResult]) -> Pipeline:
    """The training run that parties describe."""
    return Pipeline(
        stages=tuple(p.id for p in parties if p.kind == "stage"),
        changed=frozenset(p.stage for p in parties if p.kind == "change" and p.stage is not None),
        given=any(p.kind == "initial" and p.origin != "random" for p in parties),
        replaceable=frozenset(p.id for p in parties if p.reference is not None),
    )


def _require_states(arm: Arm, path: Path, pipeline: Pipeline) -> None:
    """Refuse a path that no training run of these parties has: the rule would look for what is not there."""
    words = f"the path of '{path.behavior}' {arm.words}"
    order = [state_after(party) for party in pipeline.parties]
    if not pipeline.stages or not (arm.parties <= {*pipeline.parties}):
        raise ValueError(f"{words} is of parties that are not listed")
    if list(path.states) != [state for state in order if state in path.states]:
        raise ValueError(f"{words} goes through states that are not those of the run")
    if not len(path.states) == len(path.levels) == len(path.errors) == len(path.skills):
        raise ValueError(f"{words} has states without a level, or levels without a state")
    ended = path.states[-1:] == (end_of(pipeline.stages[-1]),)
    if not (ended or path.states or _before(arm, pipeline)) or (arm == RECORDED and not ended):
        raise ValueError(f"{words} has no end")


def _before(arm: Arm, pipeline: Pipeline) -> list[str]:
    """The states that a run shares with the recorded one."""
    if INITIAL in arm.replaced:
        return []
    first, states = arm.first(pipeline.stages), [INITIAL_STATE]
    for number, stage in enumerate(pipeline.stages):
        if number > first:
            break
        if stage in pipeline.changed:
            states.append(start_of(stage))
        if number < first:
            states.append(end_of(stage))
    return states


def _assumed(state: str, arm: Arm, pipeline: Pipeline, fixed: frozenset[str]) -> float:
    """Skill where it cannot be read: what was trained is able, what was drawn at random is not."""
    if state == INITIAL_STATE:
        return 1.0 if pipeline.given or INITIAL in arm.replaced else 0.0
    stage = state.partition(":")[0]
    if state == start_of(stage) and change_before(stage) not in fixed:
        return 0.0
    untrained = not pipeline.given and pipeline.stages[0] in arm.omitted
    return 0.0 if untrained else 1.0
