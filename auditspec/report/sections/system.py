"""System and stages: what formed the model, in order."""

from __future__ import annotations

from dataclasses import dataclass

from auditspec.estimator.interventions import in_words
from auditspec.report.charts import timeline_chart
from auditspec.report.lookup import Lookup
from auditspec.report.numbers import (
    count,
    duration,
)
from auditspec.report.parts import (
    SHORT,
    Column,
    Muted,
    Phrase,
    Table,
    capital,
    clean,
    table,
)
from auditspec.report.sections.interface import Section
from auditspec.results import (
    AuditResult,
    PartyResult,
    StageResult,
)

ORIGINS: dict[str | None, str] = {
    "random": "drawn at random",
    "given": "taken over from elsewhere",
    "unknown": "unknown: neither declared nor seen in the record",
    None: "changed the model between two stages",
}


@dataclass(frozen=True)
class SystemView:
    """What formed the model."""

    timeline: str
    """A picture; empty where no learning rate or loss was recorded."""
    parties: Table
    stages: Table


class SystemAndStages(Section):
    """System and stages."""

    id = "system"
    title = "System and stages"
    shows = ("stages", "parties")

    def view(self, known: Lookup) -> SystemView:
        """The timeline, what formed the model before and between the stages, and the stages."""
        timeline = timeline_chart(known.result, "timeline")
        return SystemView(timeline, parties_table(known), stages(known.result))


def stages(result: AuditResult) -> Table:
    """The training stages in order."""

    def row(index: int, stage: StageResult) -> tuple[Phrase, ...]:
        ref = f"/stages/{index}"
        state = {
            "reset": "state reset",
            "carry": "state carried over",
            "given": "state given, of unrecorded origin",
        }.get(stage.boundary or "", "boundary unknown")
        return (
            (clean(stage.id, SHORT), Muted(clean(stage.description, 300))),
            (clean(stage.owner, SHORT),),
            (clean(", ".join(stage.data), 300),),
            (clean(stage.optimizer, 300), Muted(state)),
            count(stage.steps, f"{ref}/steps"),
            (*count(stage.examples, f"{ref}/examples"), *_variety(stage, ref)),
            duration(stage.seconds, f"{ref}/seconds"),
        )

    columns = (
        Column("Stage"),
        Column("Owner"),
        Column("Data"),
        Column("Optimizer"),
        Column("Steps", numeric=True),
        Column("Examples", numeric=True),
        Column("Time", numeric=True),
    )
    return table("Training stages, in order", columns, result.stages, row)


def _variety(stage: StageResult, ref: str) -> Phrase:
    """How many different examples a stage saw, and how many of them in every step."""
    if stage.distinct is None:
        return ()
    words: Phrase = (", ", *count(stage.distinct, f"{ref}/distinct", "different"))
    if stage.constant:
        words = (*words, ", ", *count(stage.constant, f"{ref}/constant", "in every step"))
    return words


def parties_table(known: Lookup) -> Table:
    """What formed the model before and between the stages."""

    def row(_: int, item: PartyResult) -> tuple[Phrase, ...]:
        notes = [item.provenance] if item.provenance else []
        notes += [f"clean reference: {item.reference}"] if item.reference else []
        said = tuple(Muted(clean(note, 400)) for note in notes)
        return (
            (capital(clean(in_words(item.id), SHORT)),),
            (clean(item.owner, SHORT) or "nobody is named",),
            (ORIGINS[item.origin], *said),
        )

    columns = (Column("What"), Column("Owner"), Column("Origin"))
    others = [party for party in known.result.parties if party.kind != "stage"]
    return table("Before and between the stages", columns, others, row)
