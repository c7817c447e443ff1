"""The view model: every value that a report displays, formatted, and nothing else.

HTML and PDF are printed from one `ReportView`. The parts are built in `sections`, one file each;
`parts` and `numbers` decide how a value looks.
"""

from __future__ import annotations

from dataclasses import dataclass

from auditspec.report import withheld
from auditspec.report.charts import (
    contribution_chart,
    effect_chart,
    matrix_chart,
    path_chart,
    timeline_chart,
)
from auditspec.report.charts.kit import MAX_BEHAVIORS, MAX_DOTS, MAX_STAGES
from auditspec.report.lookup import Lookup
from auditspec.report.numbers import date_and_time, timestamp
from auditspec.report.parts import (
    GATE,
    MAX_EFFECTS,
    MAX_ROWS,
    SEVERITY,
    SHORT,
    VERDICTS,
    Fact,
    Number,
    Phrase,
    Status,
    Table,
    clean,
)
from auditspec.report.sections import (
    checks,
    cover,
    effects,
    evidence,
    findings,
    method,
    opinion,
    reading,
    reproducibility,
    scope,
    signoff,
    system,
)
from auditspec.report.sections.checks import CheckView
from auditspec.report.sections.findings import FindingView
from auditspec.report.sections.opinion import VerdictView
from auditspec.results import SEVERITIES, AuditResult


@dataclass(frozen=True)
class GateView:
    """What the policy makes of the verdicts."""

    status: Status
    code: Phrase
    reasons: tuple[str, ...]
    policy: str


@dataclass(frozen=True)
class Pictures:
    """The charts of one behaviour; an empty text where there is none."""

    path: tuple[str, str]
    """Of its level along the recorded run, with its caption."""
    effects: str
    why: str
    """Why there is no chart of effects."""
    when: str
    """Of the steps that made it."""


@dataclass(frozen=True)
class ReportView:
    """Everything that the templates print, in the order of the report's sections."""

    # cover
    id: str
    title: str
    tool: str
    created: str
    created_iso: str
    classification: str
    author: str
    keywords: str
    signed: bool
    control: tuple[Fact, ...]
    summary: tuple[tuple[Status, int], ...]
    """How many behaviours have each verdict."""
    # opinion
    gate: GateView
    verdicts: tuple[VerdictView, ...]
    matrix: str
    left_out: str
    """What the pictures leave out because there is too much of it; empty where nothing is."""
    limitation: str
    # scope, system, evidence, method
    scope: tuple[Fact, ...]
    exclusions: Table
    stages: Table
    parties: Table
    timeline: str
    grade: str
    evidence: Table
    methods: tuple[Fact, ...]
    estimates: Table
    # checks, findings, limitations
    tally: tuple[tuple[Status, int], ...]
    checks: tuple[CheckView, ...]
    findings: tuple[tuple[FindingView, Pictures], ...]
    limitations: tuple[Fact, ...]
    # reproducibility, sign-off, appendix
    reproducibility: tuple[Fact, ...]
    versions: Table
    signature: tuple[Fact, ...]
    auditor: tuple[str, str]
    approver: tuple[str, str]
    """Name and role; empty where nobody is named."""
    effects: tuple[Table, ...]
    """One per behaviour."""
    levels: tuple[Table, ...]
    draws: Table
    meanings: tuple[tuple[Status, str], ...]
    """The verdicts explained."""
    roles: tuple[Fact, ...]
    """The roles explained."""
    rubric: tuple[tuple[Status, str], ...]
    """The severities explained, worst first."""
    withheld: dict[str, tuple[Fact, ...]]
    """What is withheld, by section."""
    hidden: frozenset[str]
    """Sections that are withheld as a whole."""
    more: dict[str, int]
    """Items that are only in results.json, by section."""


def build(result: AuditResult) -> ReportView:
    """Format everything that a report shows of `result`."""
    run, audit, auditor, approver = result.run, result.audit, result.auditor, result.approver
    shown = result.model_copy(update={"behaviors": result.behaviors[:MAX_ROWS]})
    found = findings.finding_views(shown)
    left_out = _left_out(result)
    levels, hidden_levels = effects.level_tables(result)
    drawn = MAX_DOTS // (2 * max(1, min(MAX_STAGES, len(result.stages))))
    return ReportView(
        id=clean(audit.id, 64),
        title=clean(audit.title, 160),
        tool=clean(run.tool, 60),
        created=date_and_time(run.created),
        created_iso=timestamp(run.created),
        classification=clean(audit.classification, 60),
        author=f"{clean(auditor.name, SHORT)}, {clean(auditor.organization, SHORT)}",
        keywords=f"audit, accountability, training stages, {clean(audit.id, 64)}",
        signed=result.signer is not None,
        control=cover.document_control(result),
        summary=opinion.tally(result),
        gate=GateView(
            GATE[result.gate.passed],
            (Number(str(result.gate.exit_code), result.gate.exit_code, "/gate/exit_code"),),
            tuple(clean(reason, 300) for reason in result.gate.reasons[:12]),
            clean(result.gate.policy, 300),
        ),
        verdicts=tuple(finding.verdict for finding in found),
        matrix=matrix_chart(result, "matrix"),
        left_out=left_out,
        limitation=clean(result.limitations[0].text, 400) if result.limitations else "",
        scope=scope.scope(result),
        exclusions=scope.exclusions(result),
        stages=system.stages(result),
        parties=system.parties_table(Lookup(result)),
        timeline=timeline_chart(result, "timeline"),
        grade=evidence.GRADES[result.evidence_grade],
        evidence=evidence.evidence(result),
        methods=method.methods(result),
        estimates=method.estimates(result),
        tally=checks.tally(result),
        checks=checks.checks(result),
        findings=tuple((finding, _pictures(result, i, drawn)) for i, finding in enumerate(found)),
        limitations=tuple(
            Fact(clean(item.id, SHORT), (clean(item.text),))
            for item in result.limitations[:MAX_ROWS]
        ),
        reproducibility=reproducibility.reproducibility(result),
        versions=reproducibility.versions(result),
        signature=signoff.signature(result),
        auditor=(clean(auditor.name, SHORT), clean(auditor.role, SHORT)),
        approver=(clean(approver.name, SHORT), clean(approver.role, SHORT))
        if approver
        else ("", ""),
        effects=effects.effects_tables(result),
        levels=levels,
        draws=effects.draws_table(result),
        meanings=tuple((VERDICTS[kind], text) for kind, text in reading.VERDICT_MEANINGS.items()),
        roles=reading.glossary(),
        rubric=tuple(
            (SEVERITY[severity], clean(result.rubric[severity], 400))
            for severity in reversed(SEVERITIES)
            if severity in result.rubric
        ),
        withheld=withheld.notices(result),
        hidden=withheld.hidden(result),
        more={
            "behaviors": max(0, len(result.behaviors) - MAX_ROWS),
            "checks": max(0, len(result.checks) - MAX_ROWS),
            "limitations": max(0, len(result.limitations) - MAX_ROWS),
            "effects": max(0, len(result.effects) - MAX_EFFECTS),
            "levels": hidden_levels,
            "reasons": max(0, len(result.gate.reasons) - 12),
        },
    )


def _left_out(result: AuditResult) -> str:
    """Which part of a very large audit the pictures show."""
    sizes = (
        (len(result.stages), MAX_STAGES, "stages"),
        (len(result.behaviors), MAX_BEHAVIORS, "behaviours"),
    )
    parts = [f"the first {limit} of {size} {name}" for size, limit, name in sizes if size > limit]
    return f"Pictures show {' and '.join(parts)}." if parts else ""


def _pictures(result: AuditResult, index: int, drawn: int) -> Pictures:
    """The charts of a behaviour, or why there is none; only the first `drawn` are drawn."""
    behavior = result.behaviors[index]
    if index >= drawn:
        only = f"Only the first {drawn} behaviours are drawn; results.json holds every number."
        return Pictures(("", ""), "", only, "")
    path = path_chart(result, behavior, f"path-{index + 1}")
    if not any(effect.behavior == behavior.id for effect in result.effects):
        return Pictures(path, "", "No effect on this behaviour was estimated.", "")
    when = contribution_chart(result, behavior, f"when-{index + 1}")
    return Pictures(path, effect_chart(result, behavior, f"effect-{index + 1}"), "", when)
