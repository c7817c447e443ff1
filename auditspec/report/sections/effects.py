"""The appendix: every effect, and every level along the recorded run and the counterfactual ones."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from auditspec.estimator.interventions import in_words
from auditspec.report.lookup import Lookup, arm_in_words, at, heading, party_of
from auditspec.report.numbers import Unit, interval, level, percent, signed, unit_of
from auditspec.report.parts import (
    MAX_EFFECTS,
    MAX_LEVELS,
    SHORT,
    Column,
    Muted,
    Number,
    Phrase,
    Table,
    capital,
    clean,
    table,
)
from auditspec.report.sections.interface import Section
from auditspec.results import AuditResult, BehaviorResult, Draws, Path, Verdict

MARKS: dict[Verdict, str] = {
    "attributed": "● answerable",
    "shared": "◐ answerable with others",
    "one-or-more": "◔ one or more of these",
}
"""How the tables mark the parties that a verdict names."""
ARMS = 5
"""Most counterfactual runs beside the recorded one in a table."""

Placed = tuple[Path, str]


@dataclass(frozen=True)
class EffectsView:
    """Every number of the effects, and of the levels along the runs."""

    effects: tuple[Table, ...]
    """One per behaviour."""
    more_effects: int
    levels: tuple[Table, ...]
    more_levels: int
    draws: Table


class EffectsAndLevels(Section):
    """All effects and levels."""

    id = "effects"
    title = "All effects and levels"
    appendix = True
    shows = ("effects", "paths", "draws")

    def view(self, known: Lookup) -> EffectsView:
        """The tables, and how much of them is only in results.json."""
        result = known.result
        more_effects = max(0, len(result.effects) - MAX_EFFECTS)
        levels, more_levels = level_tables(result)
        return EffectsView(
            effects_tables(result), more_effects, levels, more_levels, draws_table(result)
        )


def effects_tables(result: AuditResult) -> tuple[Table, ...]:
    """Every effect, with everything that is known about it: one table per behaviour."""
    known = Lookup(result)
    indices: dict[str, list[int]] = {}
    for index, effect in enumerate(result.effects[:MAX_EFFECTS]):
        indices.setdefault(effect.behavior, []).append(index)
    return tuple(_effects(known, name, rows) for name, rows in indices.items())


def _effects(known: Lookup, name: str, indices: Sequence[int]) -> Table:
    behavior, _ = known.behaviors.entry(name)
    verdict, _ = known.verdicts.entry(name)
    unit = unit_of(behavior.unit if behavior else "")
    change = replace(unit, level="")
    named = verdict.parties if verdict else ()
    mark = MARKS.get(verdict.verdict, "") if verdict else ""

    def row(_: int, index: int) -> tuple[Phrase, ...]:
        effect, ref = known.result.effects[index], f"/effects/{index}"
        remark = (Muted(mark),) if mark and effect.stage in named else ()
        return (
            (heading(effect), *remark),
            signed(effect, ref, unit),
            interval(effect, ref, unit),
            level(effect.counterfactual, f"{ref}/counterfactual", unit),
            ("exact",) if effect.exact else level(effect.error, f"{ref}/error", change, 2),
            level(effect.linear, f"{ref}/linear", change, 3),
            percent(effect.leads, f"{ref}/leads"),
        )

    columns = (
        Column("Left out"),
        Column("Effect", numeric=True),
        Column("Interval", numeric=True),
        Column("Without it", numeric=True),
        Column("Estimator’s error", numeric=True),
        Column("Linear reading", numeric=True),
        Column("Leads", numeric=True),
    )
    return table(f"{clean(name, SHORT)}, in {unit.change}", columns, indices, row)


def level_tables(result: AuditResult) -> tuple[tuple[Table, ...], int]:
    """Levels of every behaviour at each state of the recorded run and of every arm; and how many are left out."""
    known, left = Lookup(result), MAX_LEVELS
    tables: list[Table] = []
    for behavior in result.behaviors:
        recorded, arms = known.path(behavior.id), known.arms(behavior.id)
        if recorded is None:
            continue
        for number, group in enumerate(_grouped(arms)):
            left -= sum(len(path.levels) for path, _ in (recorded, *group))
            if left < 0:
                return tuple(tables), sum(len(p.levels) for p in result.paths) - _shown(tables)
            tables.append(_levels(behavior, recorded, group, skills=number == 0))
    return tuple(tables), 0


def draws_table(result: AuditResult) -> Table:
    """Levels after the same beginning with other random numbers."""
    known = Lookup(result)

    def row(index: int, item: Draws) -> tuple[Phrase, ...]:
        behavior, _ = known.behaviors.entry(item.behavior)
        unit = unit_of(behavior.unit if behavior else "")
        shown: Phrase = ()
        for place, value in enumerate(item.levels[: 1 if item.identical else 24]):
            number = level(value, f"/draws/{index}/levels/{place}", replace(unit, level=""), 3)
            shown = (*shown, *((", ",) if shown else ()), *number)
        same = "every draw gave the very same model: nothing about it is random"
        return (
            (clean(item.behavior, SHORT),),
            (capital(clean(in_words(item.party), SHORT)),),
            (*shown, *((f" {unit.level}",) if unit.level else ())),
            (same if item.identical else "–",),
        )

    columns = (Column("Behaviour"), Column("Drawn again"), Column("Levels"), Column("Note"))
    return table("The same beginning with other random numbers", columns, result.draws, row)


def _grouped(arms: Sequence[Placed]) -> Iterator[Sequence[Placed]]:
    """Arms by the table that shows them; one empty group where there are none."""
    for start in range(0, max(1, len(arms)), ARMS):
        yield arms[start : start + ARMS]


def _shown(tables: Sequence[Table]) -> int:
    """Distinct levels in tables."""
    refs = {
        part.ref
        for shown in tables
        for row in shown.rows
        for cell in row
        for part in cell
        if isinstance(part, Number) and part.ref.split("/")[3] == "levels"
    }
    return len(refs)


def _levels(
    behavior: BehaviorResult, recorded: Placed, arms: Sequence[Placed], *, skills: bool
) -> Table:
    unit = unit_of(behavior.unit)
    path, ref = recorded
    readable = skills and any(skill is not None for skill in path.skills)

    def row(index: int, state: str) -> tuple[Phrase, ...]:
        skill = (percent(path.skills[index], f"{ref}/skills/{index}"),) if readable else ()
        return (
            (capital(at(state)),),
            *skill,
            _level(recorded, state, path.states, unit),
            *(_level(arm, state, path.states, unit) for arm in arms),
        )

    given = f", in {unit.level}" if unit.level else ""
    unit = replace(unit, level="")
    heads = [f"{arm_in_words(arm.arm)}{'' if arm.exact else ' (estimated)'}" for arm, _ in arms]
    columns = (
        Column("State"),
        *((Column("Skill", numeric=True),) if readable else ()),
        Column("As recorded", numeric=True),
        *(Column(capital(head), numeric=True) for head in heads),
    )
    return table(
        f"{clean(behavior.id, SHORT)}: levels along the runs{given}", columns, path.states, row
    )


def _level(placed: Placed, state: str, order: Sequence[str], unit: Unit) -> Phrase:
    """The level in a state. Up to where an arm differs it is the recorded one, what is left out has no end, and an
    estimate may give the end of the run only.
    """
    path, ref = placed
    if state in path.states:
        at_ = path.states.index(state)
        shown = level(path.levels[at_], f"{ref}/levels/{at_}", unit)
        error = path.errors[at_]
        if error is None:
            return (*shown, " ± ?")
        return (*shown, " ± ", *level(error, f"{ref}/errors/{at_}", unit, 2)) if error else shown
    kinds = dict(reversed(part.partition(" ")[::2]) for part in path.arm)
    if kinds.get(party_of(state)) == "omit":
        return ("left out",)
    differs = [place for place, s in enumerate(order) if party_of(s) in kinds]
    return ("as recorded" if order.index(state) < min(differs, default=0) else "not read",)
