"""First-order terms beside the effects that they should add up to."""

from __future__ import annotations

from auditspec.report.charts.contributions import Fit, StageTerms, stage_terms
from auditspec.report.numbers import effect_in_words, moved, unit_of
from auditspec.report.parts import SHORT, Column, Muted, Phrase, Table, clean, table
from auditspec.results import AuditResult, BehaviorResult

FITS: dict[Fit, str] = {
    "agrees": "drawn",
    "misses": "hatched: the sum misses the effect by more than a quarter of it",
    "contradicts": "not drawn: the sum misses the effect by as much as the effect is, or more",
}


def terms_table(result: AuditResult, behavior: BehaviorResult) -> Table:
    """Of every stage the sum of its terms, its effect, and what follows for the picture."""
    unit = unit_of(behavior.unit)

    def row(_: int, term: StageTerms) -> tuple[Phrase, ...]:
        total = moved(
            term.contribution.total,
            f"{term.place}/total",
            unit,
            "raised by",
            "lowered by",
            "left unchanged",
        )
        effect: Phrase = ("not estimated",)
        drawn = "not drawn: there is no effect to hold it against"
        if term.effect is not None:
            effect = (
                *effect_in_words(term.effect, term.effect_place, unit, interval=False),
                Muted("exact" if term.effect.exact else "estimated"),
            )
            drawn = FITS[term.fit]
        return ((clean(term.contribution.stage, SHORT),), total, effect, (drawn,))

    columns = (Column("Stage"), Column("Sum of the terms"), Column("Effect"), Column("Picture"))
    name = clean(behavior.id, SHORT)
    return table(
        f"First-order terms of {name} beside its effects",
        columns,
        stage_terms(result, behavior),
        row,
    )
