"""How to read this report: the verdicts and the roles explained."""

from __future__ import annotations

from dataclasses import dataclass

from auditspec.report.lookup import Lookup
from auditspec.report.parts import (
    ROLES,
    SEVERITY,
    VERDICTS,
    Fact,
    Status,
    clean,
)
from auditspec.report.sections.interface import Section
from auditspec.results import (
    SEVERITIES,
    Role,
    Verdict,
)

VERDICT_MEANINGS: dict[Verdict, str] = {
    "attributed": "One party is answerable: a stage, the initial weights (then the word is “inherited”), or a "
    "change of the model between two stages (“introduced between stages”).",
    "shared": "Several parties are answerable: each brings the fault by itself, or a part of it, or only all of them "
    "together do; the table of roles says which.",
    "one-or-more": "At least one of the parties named is answerable; the evidence does not tell which.",
    "absent": "The deployed model does not pass the stated limit, so there is nothing to answer for. What was "
    "repaired or is masked is listed.",
    "no-effect": "No limit is stated. The deployed model is no worse, beyond the tolerance, than the best state of "
    "its own run. That is no all-clear: a fault that the run began with would not be seen.",
    "inconclusive": "The evidence cannot decide; the report says what would settle it.",
}
ROLE_MEANINGS: dict[Role, str] = {
    "cause": "Answerable: the fault, or a part of it, came while this stage trained, and goes where the stage is "
    "left out or trained on clean data.",
    "joint-cause": "Answerable together with others: together they bring the fault, and none of them alone a part "
    "of it that matters.",
    "inherited": "Answerable: the fault stood in the initial weights before any recorded stage trained, and "
    "stayed.",
    "introduced": "Answerable: the fault came when the model was changed between two stages (new layers, "
    "adapters, weights copied in), not while a stage trained.",
    "one-or-more": "At least one of the parties with this role is answerable; the evidence does not tell which.",
    "contributor": "The fault would be smaller without it, but it is not what brought it: it amplifies what another "
    "caused, and is not answerable.",
    "enabler": "Without it there is no model that could show the fault, as without pretraining there is no "
    "reading at all. Being needed is not being at fault.",
    "masks": "The level would be worse without this stage.",
    "repaired": "The model was beyond the limit before it, and would be again without it.",
    "none": "Nothing was found that ties it to the behaviour.",
    "undetermined": "The evidence does not tell: neither named nor cleared.",
}


@dataclass(frozen=True)
class ReadingView:
    """The words of the report explained."""

    verdicts: tuple[tuple[Status, str], ...]
    roles: tuple[Fact, ...]
    rubric: tuple[tuple[Status, str], ...]
    """The severities, worst first."""


class Reading(Section):
    """How to read this report."""

    id = "reading"
    title = "How to read this report"
    appendix = True

    def view(self, known: Lookup) -> ReadingView:
        """Verdicts, roles, and severities with their meaning."""
        rubric = known.result.rubric
        return ReadingView(
            tuple((VERDICTS[kind], text) for kind, text in VERDICT_MEANINGS.items()),
            glossary(),
            tuple(
                (SEVERITY[severity], clean(rubric[severity], 400))
                for severity in reversed(SEVERITIES)
                if severity in rubric
            ),
        )


def glossary() -> tuple[Fact, ...]:
    """The roles explained."""
    return tuple(Fact(ROLES[role].word, (text,)) for role, text in ROLE_MEANINGS.items())
