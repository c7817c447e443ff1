"""The other side of the view: who, what, on which evidence, how checked, how to repeat it."""

from __future__ import annotations

from dataclasses import dataclass

from auditspec.report.charts import placebo_chart, replay_chart, window_chart
from auditspec.report.numbers import count, date, duration, moment, plain, size
from auditspec.report.parts import (
    EVIDENCE,
    MAX_ROWS,
    OUTCOMES,
    SHORT,
    Code,
    Column,
    Fact,
    Muted,
    Number,
    Phrase,
    Status,
    Table,
    capital,
    clean,
    table,
)
from auditspec.results import (
    AuditResult,
    CheckDetail,
    CheckResult,
    Estimate,
    Evidence,
    EvidenceGrade,
    Exclusion,
    Method,
    StageResult,
)

GRADES: dict[EvidenceGrade, str] = {
    "dense": "dense: every training step is recorded and can be re-run",
    "sparse": "sparse: states are recorded at intervals; the steps between them can be re-run",
    "boundaries": "boundaries: only the states where stages begin and end are recorded",
    "none": "none: no training record could be used",
}
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


WINDOWS = (
    "How far each re-run window lands from the next recorded state. Windows at the bottom are bitwise equal; "
    "dashed: the threshold."
)
REPLAYED = (
    "Hollow: the estimate; filled: exact replay of the same stage. Each line is in shares of its behaviour's "
    "largest replayed effect."
)
PLACEBOS = (
    "Dots: the stages' effects; ticks: what random displacements of the same size give. Each line is in shares "
    "of its own largest number."
)


@dataclass(frozen=True)
class CheckView:
    """One confidence check."""

    anchor: str
    title: str
    id: str
    status: Status
    reason: str
    measure: Phrase
    details: Table | None
    picture: tuple[str, str] = ("", "")
    """A chart and its caption; empty where a picture says no more."""


def document_control(result: AuditResult) -> tuple[Fact, ...]:
    """The cover's facts."""
    audit, run = result.audit, result.run
    approver = result.approver
    return (
        Fact("Report", (Code(audit.id),)),
        Fact(
            "System",
            (f"{clean(result.system.name, SHORT)}, {clean(result.system.version, SHORT)}",),
        ),
        Fact("Classification", (clean(audit.classification, 60),)),
        Fact("Date", (moment(run.created),)),
        Fact(
            "Author",
            (f"{clean(result.auditor.name, SHORT)}, {clean(result.auditor.organization, SHORT)}",),
        ),
        Fact(
            "Approver",
            (f"{clean(approver.name, SHORT)}, {clean(approver.role, SHORT)}",)
            if approver
            else ("not named",),
        ),
        Fact("Expires", (date(audit.expires) if audit.expires else "no date set",)),
        Fact(
            "Supersedes",
            (clean(audit.supersedes, SHORT) if audit.supersedes else "no earlier report",),
        ),
    )


def scope(result: AuditResult) -> tuple[Fact, ...]:
    """The auditor and the audited system."""
    auditor, system = result.auditor, result.system
    return (
        Fact("System", (f"{clean(system.name, SHORT)}, version {clean(system.version, SHORT)}",)),
        Fact("Owner", (clean(system.owner, SHORT),)),
        Fact("Intended use", (clean(system.intended_use),)),
        Fact("Auditor", (f"{clean(auditor.name, SHORT)} ({clean(auditor.role, SHORT)})",)),
        Fact("Organisation", (clean(auditor.organization, SHORT),)),
        Fact("Independence", (clean(auditor.independence),)),
    )


def exclusions(result: AuditResult) -> Table:
    """What the audit deliberately left out."""

    def row(index: int, item: Exclusion) -> tuple[Phrase, ...]:
        return (
            (clean(item.what, 400),),
            (clean(item.reason, 400),),
            count(item.count, f"/exclusions/{index}/count"),
        )

    columns = (Column("Left out"), Column("Reason"), Column("Count", numeric=True))
    return table("Exclusions", columns, result.exclusions, row)


def stages(result: AuditResult) -> Table:
    """The training stages in order."""

    def row(index: int, stage: StageResult) -> tuple[Phrase, ...]:
        ref = f"/stages/{index}"
        state = {"reset": "state reset", "carry": "state carried over"}.get(
            stage.boundary or "", "boundary unknown"
        )
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


def evidence(result: AuditResult) -> Table:
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
        note = item.note or (f"pinned in {item.pinned_in}" if item.pinned_in else "")
        if item.signed_by is not None:
            note += f"; signed by its trainer with key {item.signed_by[:16]}…"
        return (
            (clean(item.name, SHORT),),
            where,
            (*size(item.size, f"{ref}/size"), *files),
            (EVIDENCE[item.state], *((Muted(clean(note, 300)),) if note else ())),
        )

    columns = (
        Column("Artifact"),
        Column("Path and digest"),
        Column("Size", numeric=True),
        Column("State"),
    )
    return table("Evidence inventory", columns, result.evidence, row)


def estimates(result: AuditResult) -> Table:
    """How each stage's counterfactual was obtained."""

    def row(index: int, item: Estimate) -> tuple[Phrase, ...]:
        ref = f"/estimates/{index}"
        return (
            (clean(item.stage, SHORT),),
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


def methods(result: AuditResult) -> tuple[Fact, ...]:
    """The methods that were used, each explained once."""
    used = {item.method for item in result.estimates}
    return tuple(Fact(name, (text,)) for method, (name, text) in METHODS.items() if method in used)


def checks(result: AuditResult) -> tuple[CheckView, ...]:
    """Every confidence check, also those that were not run."""
    return tuple(_check(result, i, check) for i, check in enumerate(result.checks[:MAX_ROWS]))


def tally(result: AuditResult) -> tuple[tuple[Status, int], ...]:
    """How many checks had each outcome."""
    return tuple(
        (status, sum(check.outcome == outcome for check in result.checks))
        for outcome, status in OUTCOMES.items()
    )


def reproducibility(result: AuditResult) -> tuple[Fact, ...]:
    """Everything that someone needs to run the audit again."""
    run = result.run
    return (
        Fact("Command", (Code(clean(run.command)),)),
        Fact("Tool", (clean(run.tool, SHORT),)),
        Fact("Spec", (Code(clean(run.spec_digest, 160)),)),
        Fact("Run on", (moment(run.created),)),
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
        Fact("Python", (f"{clean(run.python, 60)} on {clean(run.platform, SHORT)}",)),
    )


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


def signature(result: AuditResult) -> tuple[Fact, ...]:
    """Who signed with which key; empty for an unsigned packet."""
    signer = result.signer
    if signer is None:
        return ()
    return (
        Fact("Key id", (Code(clean(signer.keyid, 160)), Muted("sha256 of the public key"))),
        Fact("Algorithm", (signer.algorithm,)),
        Fact(
            "Certificate",
            (Code(clean(signer.certificate, 160)), Muted("sha256 of the X.509 certificate"))
            if signer.certificate
            else ("none: the key stands for itself",),
        ),
        Fact("Signature in the PDF", (f"PAdES {signer.pdf}" if signer.pdf else "none",)),
    )


def _check(result: AuditResult, index: int, check: CheckResult) -> CheckView:
    ref = f"/checks/{index}"
    unit = clean(check.unit, 40)
    role = "Gate. " if check.role == "gate" else "Descriptive. "
    statistic = plain(check.statistic, f"{ref}/statistic", unit)
    measure: Phrase = (f"{role}{capital(clean(check.statistic_name, 200))}: ",)
    measure = (*measure, *(("not measured",) if check.statistic is None else statistic))
    if check.threshold is not None:
        limit = plain(check.threshold, f"{ref}/threshold", unit, typed=True)
        measure = (*measure, "; threshold ", *limit)
    if check.gradients:
        cost = count(check.gradients, f"{ref}/gradients", "minibatch gradients")
        measure = (*measure, "; cost ", *cost)

    def row(line: int, detail: CheckDetail) -> tuple[Phrase, ...]:
        return (
            (clean(detail.subject, 200),),
            (OUTCOMES[detail.outcome],),
            plain(detail.statistic, f"{ref}/details/{line}/statistic"),
            (clean(detail.note, 300) or "–",),
        )

    columns = (
        Column("Subject"),
        Column("Outcome"),
        Column("Statistic", numeric=True),
        Column("Note"),
    )
    details = (
        table(f"Details of {clean(check.id, SHORT)}", columns, check.details, row)
        if check.details
        else None
    )
    return CheckView(
        anchor=f"check-{index + 1}",
        title=clean(check.title, 200),
        id=clean(check.id, SHORT),
        status=OUTCOMES[check.outcome],
        reason=clean(check.reason, 600),
        measure=(
            *measure,
            ".",
            *((f" Source: {clean(check.source, 200)}.",) if check.source else ()),
        ),
        details=details,
        picture=_picture(result, check, f"check-{index + 1}-picture"),
    )


def _picture(result: AuditResult, check: CheckResult, key: str) -> tuple[str, str]:
    """The chart of a check that is better looked at than read, and its caption."""
    match check.id:
        case "record-fidelity":
            chart, caption = window_chart(check, key), WINDOWS
        case "spot-check":
            chart, caption = replay_chart(result, check, key), REPLAYED
        case "placebo":
            chart, caption = placebo_chart(result, check, key), PLACEBOS
        case _:
            chart, caption = "", ""
    return (chart, caption) if chart else ("", "")
