"""What every party has to do with a behaviour, once it is settled who is named."""

from __future__ import annotations

from dataclasses import dataclass

from auditspec.answerable.courses import end_of
from auditspec.answerable.rule import TRAINED, Outcome, Rule
from auditspec.estimator.interventions import INITIAL, RECORDED, Arm, changed_stage, is_stage
from auditspec.messages import Message, message
from auditspec.results import Role, RoleResult


@dataclass(frozen=True)
class Named:
    """The answer that the roles are told beside."""

    parties: frozenset[str]
    undetermined: frozenset[str]
    one_or_more: bool = False
    """Whether at least one of the parties is answerable, and not each of them."""


def roles_of(rule: Rule, outcome: Outcome | None, named: Named) -> tuple[RoleResult, ...]:
    """The role of every party, in order of training.

    Args:
        rule: at the evaluation examples themselves.
        outcome: where it ended; None where a run that it needs was not made.
        named: who is answerable.
    """
    return tuple(_role(rule, outcome, named, party) for party in rule.pipeline.parties)


def _role(rule: Rule, outcome: Outcome | None, named: Named, party: str) -> RoleResult:
    rise = rule.recorded_rises.get(party)
    made = is_stage(party) and Arm.without(party) in rule.case.courses
    effect = rule.effect(party) if made else None
    role = _kind(rule, outcome, named, party, effect)
    notes: tuple[Message, ...] = ()
    if role == "none" and rise is not None and rise > rule.tolerance:
        gone = rule.end(RECORDED) <= rule.tolerance
        notes = (message("raised-and-gone") if gone else message("raised-and-not-missed"),)
    if role == "undetermined" and outcome is not None and party in outcome.untested:
        notes = (message("raised-and-untested"),)
    return RoleResult(party=party, role=role, rise=rise, effect=effect, notes=notes)


def _kind(
    rule: Rule, outcome: Outcome | None, named: Named, party: str, effect: float | None
) -> Role:
    if party in named.parties:
        return _answerable(outcome, named, party)
    if party in named.undetermined:
        return "undetermined"
    if effect is None:
        return "none"
    able = rule.able(Arm.without(party))
    beyond = rule.end(RECORDED) > rule.tolerance
    if effect < -rule.tolerance and able:
        return "repaired" if not beyond and _was_beyond(rule, party) else "masks"
    if effect > rule.tolerance and beyond:
        return "contributor" if able else "enabler"
    return "none"


def _answerable(outcome: Outcome | None, named: Named, party: str) -> Role:
    if named.one_or_more:
        return "one-or-more"
    if party == INITIAL:
        return "inherited"
    if changed_stage(party) is not None:
        return "introduced"
    return "joint-cause" if outcome is not None and outcome.joint else "cause"


def _was_beyond(rule: Rule, stage: str) -> bool:
    """Whether a trained state before a stage's end was beyond the limit."""
    states = list(rule.recorded.levels)
    end = end_of(stage)
    before = states[: states.index(end)] if end in states else states
    return any(
        rule.recorded.skills[state] >= TRAINED and rule.over(rule.recorded, state) > rule.tolerance
        for state in before
    )
