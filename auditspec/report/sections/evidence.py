"""Evidence: every artifact with its digest and its state."""

from __future__ import annotations

from dataclasses import dataclass

from auditspec.report.lookup import Lookup
from auditspec.report.numbers import count, size
from auditspec.report.parts import (
    EVIDENCE,
    SHORT,
    Code,
    Column,
    Muted,
    Phrase,
    Table,
    clean,
    table,
)
from auditspec.report.sections.interface import Section
from auditspec.report.words import plain
from auditspec.results import (
    Evidence,
    EvidenceGrade,
)

GRADES: dict[EvidenceGrade, str] = {
    "dense": "dense: every training step is recorded and can be re-run",
    "sparse": "sparse: states are recorded at intervals; the steps between them can be re-run",
    "regenerated": "regenerated: nobody recorded the run; it was made again, and met the checkpoints that it had saved",
    "boundaries": "boundaries: only the states where stages begin and end are recorded",
    "none": "none: no training record could be used",
}


@dataclass(frozen=True)
class EvidenceView:
    """The inventory."""

    grade: str
    inventory: Table


class EvidenceInventory(Section):
    """Evidence."""

    id = "evidence"
    title = "Evidence"
    shows = ("evidence",)

    def view(self, known: Lookup) -> EvidenceView:
        """The grade of the training record, and every artifact."""
        return EvidenceView(GRADES[known.result.evidence_grade], evidence(known))


def evidence(known: Lookup) -> Table:
    """Every artifact with its whole digest and its state."""

    def row(index: int, item: Evidence) -> tuple[Phrase, ...]:
        ref = f"/evidence/{index}"
        files: Phrase = ()
        if item.files is not None:
            files = (" in ", *count(item.files, f"{ref}/files", "files"))
        where: Phrase = (Code(clean(item.path, 300)),)
        if item.found is not None and item.found == item.expected:
            where = (*where, Muted(clean(item.found, 160)))
        else:
            if item.expected is not None:
                where = (*where, Muted(f"pinned {clean(item.expected, 160)}"))
            if item.found is not None:
                where = (*where, Muted(f"found {clean(item.found, 160)}"))
        pinned = f"pinned in {clean(item.pinned_in, SHORT)}" if item.pinned_in else ""
        note = known.words.clauses(item.notes, f"{ref}/notes") or (pinned,)
        if item.signed_by is not None:
            note = (*note, f"; signed by its trainer with key {clean(item.signed_by[:16], 20)}…")
        return (
            (clean(item.name, SHORT),),
            where,
            (*size(item.size, f"{ref}/size"), *files),
            (EVIDENCE[item.state], *((Muted(plain(note)),) if any(note) else ())),
        )

    columns = (
        Column("Artifact"),
        Column("Path and digest"),
        Column("Size", numeric=True),
        Column("State"),
    )
    return table("Evidence inventory", columns, known.result.evidence, row)
