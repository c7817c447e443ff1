"""Method: how each stage's counterfactual was obtained."""

from __future__ import annotations

from dataclasses import dataclass

from auditspec.report.lookup import Lookup, heading
from auditspec.report.numbers import count, duration, plain
from auditspec.report.parts import (
    SHORT,
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
    Estimate,
)


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
        return MethodView(methods(known), estimates(known), clean(result.run.tool, 60))


def methods(known: Lookup) -> tuple[Fact, ...]:
    """The methods that were used, each explained once."""
    return tuple(
        Fact(clean(method.title, SHORT), known.words.sentence(method.words, f"/methods/{i}/words"))
        for i, method in enumerate(known.result.methods)
    )


def estimates(known: Lookup) -> Table:
    """How each stage's counterfactual was obtained."""
    titles = {method.name: method.title for method in known.result.methods}

    def row(index: int, item: Estimate) -> tuple[Phrase, ...]:
        ref = f"/estimates/{index}"
        return (
            (heading(item),),
            (
                clean(titles.get(item.method, item.method), SHORT),
                Muted(("exact" if item.exact else "estimate") + (", kept" if item.cached else "")),
            ),
            (
                *known.words.sentence(item.reason, f"{ref}/reason"),
                *((Muted(known.words.text(*item.notes)),) if item.notes else ()),
            ),
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
    return table("Estimator used for each stage", columns, known.result.estimates, row)
