"""What every party has to do with a behaviour: its role in words, and the numbers behind it."""

from __future__ import annotations

from dataclasses import replace

from auditspec.estimator.interventions import in_words, is_stage
from auditspec.report.lookup import Lookup, state_of
from auditspec.report.numbers import Unit, level, moved, unit_of
from auditspec.report.parts import (
    ROLES,
    SHORT,
    Column,
    Muted,
    Phrase,
    Table,
    capital,
    clean,
    table,
)
from auditspec.results import BehaviorResult, Path, Role, RoleResult, VerdictResult

MANY = 16
"""Parties beyond which those that have no part in it are counted, not listed."""
OVER = {
    "stated": "Excess over the limit in its turn",
    "self": "Excess over the run’s best in its turn",
}


def roles_table(known: Lookup, behavior: BehaviorResult) -> Table:
    """Every party's role in one behaviour, in order of training; of very many, those that have a part in it."""
    verdict, ref = known.verdicts.entry(behavior.id)
    recorded = known.path(behavior.id)
    unit = unit_of(behavior.unit)
    bare, given = replace(unit, change=""), f", {unit.change}" if unit.change else ""

    numbered = list(enumerate(verdict.roles)) if verdict else []
    shown = [(i, r) for i, r in numbered if r.role != "none"] if len(numbered) > MANY else numbered

    def row(_: int, numbered_role: tuple[int, RoleResult]) -> tuple[Phrase, ...]:
        index, item = numbered_role
        place = f"{ref}/roles/{index}"
        return (
            _party(known, item.party),
            (ROLES[item.role],),
            _after(recorded, item.party, unit),
            moved(item.rise, f"{place}/rise", bare, "grew by", "shrank by"),
            _left_out(item, f"{place}/effect", bare, behavior),
            known.words.clauses(item.notes, f"{place}/notes") or ("–",),
        )

    columns = (
        Column("Party"),
        Column("Role"),
        Column("Level after it"),
        Column(f"{OVER[(verdict.limit if verdict else None) or 'stated']}{given}"),
        Column(f"Level without it{given}"),
        Column("Note"),
    )
    roles = table("Who has what to do with it", columns, shown, row)
    return replace(roles, more=roles.more + len(numbered) - len(shown))


def parties_with(verdict: VerdictResult, *roles: Role) -> tuple[str, ...]:
    """The parties that have one of these roles."""
    return tuple(item.party for item in verdict.roles if item.role in roles)


def _party(known: Lookup, party: str) -> Phrase:
    words = capital(clean(in_words(party), SHORT))
    holder = clean(known.owner(party), SHORT)
    return (words, Muted(holder)) if holder else (words,)


def _after(recorded: tuple[Path, str] | None, party: str, unit: Unit) -> Phrase:
    """The level in the state in which the party's turn ended, along the recorded run."""
    if recorded is None or state_of(party) not in recorded[0].states:
        return ("–",)
    path, ref = recorded
    at = path.states.index(state_of(party))
    return level(path.levels[at], f"{ref}/levels/{at}", unit)


def _left_out(item: RoleResult, ref: str, unit: Unit, behavior: BehaviorResult) -> Phrase:
    if item.effect is None:
        return ("–",) if is_stage(item.party) else ("cannot be left out",)
    words = ("lower by", "higher by")
    more, less = words if behavior.concern.rises else reversed(words)
    return moved(item.effect, ref, unit, more, less, "the same")
