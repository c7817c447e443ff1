"""Reproducibility: everything that someone needs to run the audit again."""

from __future__ import annotations

from dataclasses import dataclass

from auditspec.artifacts.digest import canonical_json, digest_bytes
from auditspec.report.lookup import Lookup
from auditspec.report.numbers import count, date_and_time, duration
from auditspec.report.parts import (
    HIDDEN,
    SHORT,
    Code,
    Column,
    Fact,
    Number,
    Phrase,
    Table,
    clean,
    table,
)
from auditspec.report.sections.interface import Section
from auditspec.results import AuditResult, Plugin, Run
from auditspec.withheld import is_withheld


@dataclass(frozen=True)
class ReproducibilityView:
    """How the audit ran."""

    facts: tuple[Fact, ...]
    versions: Table
    plugins: Table | None
    """None where there is none."""


class Reproducibility(Section):
    """Reproducibility; also where it is said what is withheld of fields that no section shows."""

    id = "reproducibility"
    title = "Reproducibility"

    def view(self, known: Lookup) -> ReproducibilityView:
        """Command, device, seed, and the versions of the libraries."""
        return ReproducibilityView(
            reproducibility(known),
            versions(known.result),
            plugins(known.result) if known.result.run.plugins else None,
        )


def reproducibility(known: Lookup) -> tuple[Fact, ...]:
    """Everything that someone needs to run the audit again, and which results the report is drawn from."""
    run = known.result.run
    return (
        Fact("Command", (Code(clean(run.command)),)),
        Fact("Tool", (clean(run.tool, SHORT),)),
        Fact("Spec", (Code(clean(run.spec_digest, 160)),)),
        *([Fact("Results", (Code(known.digest),))] if known.digest else []),
        Fact("Run on", (date_and_time(run.created),)),
        Fact("Duration", duration(run.seconds, "/run/seconds")),
        Fact("Cost", count(run.gradients, "/run/gradients", "minibatch gradients")),
        Fact("Device", (f"{clean(run.device, SHORT)}, {clean(run.dtype, 40)}",)),
        Fact("Threads", count(run.threads, "/run/threads")),
        Fact("Seed", (Number(str(run.seed), run.seed, "/run/seed"),)),
        Fact(
            "Kernels",
            (
                "deterministic kernels were required"
                if run.deterministic
                else "deterministic kernels were not required",
            ),
        ),
        *_isolation(run),
        Fact("Engine", (clean(run.engine, SHORT),)),
        Fact("Renderer", _renderer(run)),
        Fact("Python", (f"{clean(run.python, 60)} on {clean(run.platform, SHORT)}",)),
    )


def _renderer(run: Run) -> Phrase:
    if is_withheld(run.renderer):
        return (HIDDEN,)
    return (Code(digest_bytes(canonical_json(run.renderer))),)


def _isolation(run: Run) -> tuple[Fact, ...]:
    if run.isolation is None:
        return ()
    return (Fact("Audited code", (run.isolation.words,)),)


def versions(result: AuditResult) -> Table:
    """Versions of the libraries that the numbers depend on."""

    def row(_: int, item: tuple[str, str]) -> tuple[Phrase, ...]:
        return ((clean(item[0], SHORT),), (clean(item[1], SHORT),))

    return table(
        "Library versions",
        (Column("Library"), Column("Version")),
        sorted(result.run.versions.items()),
        row,
    )


def plugins(result: AuditResult) -> Table:
    """Classes of other distributions that were installed."""

    def row(_: int, plugin: Plugin) -> tuple[Phrase, ...]:
        return (
            (f"{clean(plugin.name, SHORT)} ({clean(plugin.kind, SHORT)})",),
            (f"{clean(plugin.distribution, SHORT)} {clean(plugin.version, SHORT)}",),
            (Code(clean(plugin.digest, 160)),),
        )

    columns = (Column("Plug-in"), Column("Distribution"), Column("Digest of its code"))
    return table("Plug-ins that were installed", columns, result.run.plugins, row)
