"""Method: how each stage's counterfactual was obtained."""

from __future__ import annotations

from dataclasses import dataclass

from auditspec.report.lookup import Lookup, heading
from auditspec.report.numbers import count, duration, plain
from auditspec.report.parts import (
    Column,
    Fact,
    Muted,
    Phrase,
    Table,
    clean,
    table,
)
from auditspec.report.sections.interface import Section
from auditspec.results import (
    AuditResult,
    Estimate,
    Method,
)

METHODS: dict[Method, tuple[str, str]] = {
    "first-order": (
        "First-order",
        "The stage's updates are removed infinitesimally, and the change is carried to the end of "
        "training through the linearised steps.",
    ),
    "displacement": (
        "Displacement",
        "The stage's own displacement is known exactly; the later stages carry it to the end "
        "through their linearised steps.",
    ),
    "krylov": (
        "Krylov",
        "The stage's own displacement is known exactly; each later stage acts on it through the "
        "curvature of its loss, in a small subspace.",
    ),
    "paired-replay": (
        "Paired replay",
        "The later stages are trained again with gradients computed at some of their steps only; in "
        "between, the recorded run's own gradients stand in, corrected by the last difference seen.",
    ),
    "replay": (
        "Exact replay",
        "The later stages are trained again from the state in which the stage began. For the last "
        "stage that state is the answer itself.",
    ),
}


@dataclass(frozen=True)
class MethodView:
    """What was estimated, and how."""

    methods: tuple[Fact, ...]
    estimates: Table
    tool: str


class MethodOfEstimation(Section):
    """Method."""

    id = "method"
    title = "Method"
    shows = ("estimates",)

    def view(self, known: Lookup) -> MethodView:
        """The methods that were used, and the one of each stage."""
        result = known.result
        return MethodView(methods(result), estimates(result), clean(result.run.tool, 60))


def methods(result: AuditResult) -> tuple[Fact, ...]:
    """The methods that were used, each explained once."""
    used = {item.method for item in result.estimates}
    return tuple(Fact(name, (text,)) for method, (name, text) in METHODS.items() if method in used)


def estimates(result: AuditResult) -> Table:
    """How each stage's counterfactual was obtained."""

    def row(index: int, item: Estimate) -> tuple[Phrase, ...]:
        ref = f"/estimates/{index}"
        return (
            (heading(item),),
            (
                METHODS[item.method][0],
                Muted(("exact" if item.exact else "estimate") + (", kept" if item.cached else "")),
            ),
            (clean(item.reason, 400), *((Muted(clean(item.note, 300)),) if item.note else ())),
            count(item.gradients, f"{ref}/gradients"),
            duration(item.seconds, f"{ref}/seconds"),
            plain(item.displacement, f"{ref}/displacement"),
        )

    columns = (
        Column("Stage"),
        Column("Method"),
        Column("Why this method"),
        Column("Gradients", numeric=True),
        Column("Time", numeric=True),
        Column("Displacement", numeric=True),
    )
    return table("Estimator used for each stage", columns, result.estimates, row)
