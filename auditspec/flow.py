"""The whole audit: the first file to read.

    spec -> held against evidence -> record checked -> effects -> checks -> verdicts -> signed packet

Every step either gives results or says why it could not; nothing is guessed on the way.
"""

from __future__ import annotations

import datetime as dt
import os
import platform
import time
from dataclasses import asdict
from importlib.metadata import version

from auditspec import bill_of_materials, findings, plugins
from auditspec.artifacts.digest import digest_bytes
from auditspec.checks.examination import available
from auditspec.conclusions import conclude
from auditspec.consistency.check import check
from auditspec.errors import UsageError
from auditspec.estimator.plan import estimators
from auditspec.forgery import price_of
from auditspec.gates import Examined, run_gates
from auditspec.gather import Opened, changed_code, stage_result
from auditspec.measured import Measured, nothing_measured
from auditspec.messages import Message, message
from auditspec.progress import SILENT, Progress
from auditspec.report.exports import Source, chosen
from auditspec.report.renderer import renderer
from auditspec.report.words.vocabulary import vocabulary_of
from auditspec.results import RUBRIC, AuditResult, CheckResult, EvidenceGrade, Plugin, Run
from auditspec.sign import packet as names
from auditspec.sign.contents import accompanying_files
from auditspec.sign.credentials import Credentials
from auditspec.sign.packet import PacketWriter
from auditspec.spec.models import Spec
from auditspec.spec.source import LoadedSpec
from auditspec.verdicts import Published
from auditspec.workplace import ALONE, Workplace

LIBRARIES = (
    "torch",
    "numpy",
    "pandas",
    "pyarrow",
    "safetensors",
    "pydantic",
    "weasyprint",
)


def run_audit(
    loaded: LoadedSpec,
    *,
    command: str,
    credentials: Credentials | None = None,
    workplace: Workplace = ALONE,
) -> AuditResult:
    """Run an audit; the result is the content of `results.json`.

    Args:
        loaded: the spec.
        command: how the audit was started, for the report.
        credentials: who will sign the packet; None for an unsigned one.
        workplace: what is around it.

    Raises:
        UsageError: if it would have to be, and may not; or if SOURCE_DATE_EPOCH lies before the end of a
            suppression that has expired.
        SpecError: if the lock file is malformed, or the spec does not fit what it names: no code was
            executed, and no evidence is blamed.
        EstimationError: if the evidence is sound but no estimate can be made.
    """
    began, spec = time.perf_counter(), loaded.spec
    created = _now()
    _refuse_revived(spec, created.date())
    with workplace.progress.phase("checking the evidence"):
        checked = check(loaded, signing=False)  # whoever signs holds the keys already
        checked.require_fitting()
    evidence = checked.evidence
    examined = run_gates(loaded, evidence, workplace)
    opened, measured = examined.opened, examined.attribution or nothing_measured(spec)
    grade: EvidenceGrade = opened.trajectory.grade if opened else "none"
    published = _published(spec, measured, examined.checks, grade)
    concluded = conclude(
        measured.behaviors, published, measured.tallies, measured.estimates, spec, created.date()
    )
    recorded = {stage.id: stage for stage in opened.trajectory.stages} if opened else {}
    result = AuditResult(
        run=_run(loaded, examined, command, created, time.perf_counter() - began),
        audit=spec.audit,
        auditor=spec.auditor,
        approver=spec.review.approver,
        exclusions=spec.review.exclusions,
        system=spec.system,
        signer=credentials.info if credentials else None,
        evidence_grade=grade,
        evidence=evidence,
        stages=tuple(
            stage_result(stage, recorded.get(stage.id), examined.usage.get(stage.id))
            for stage in spec.stages
        ),
        parties=published.parties,
        behaviors=measured.behaviors,
        methods=measured.methods,
        estimates=measured.estimates,
        effects=measured.effects,
        paths=published.paths,
        draws=published.draws,
        contributions=measured.contributions,
        checks=examined.checks,
        verdicts=concluded.verdicts,
        findings=concluded.findings,
        limitations=findings.limitations_of(
            evidence=evidence,
            grade=grade,
            checks=examined.checks,
            estimates=measured.estimates,
            verdicts=concluded.verdicts,
            laxer=findings.laxer_than_default(spec),
            besides=[
                *findings.limits_of_groups(measured.behaviors),
                *(_limits_of_record(opened, examined.checks) if opened else ()),
                *(findings.limits_of_isolation(examined.isolation) if examined.isolation else ()),
            ],
        ),
        gate=concluded.gate,
        rubric=RUBRIC | spec.policy.rubric,
    )
    return _with_vocabulary(result)


def _limits_of_record(opened: Opened, checks: tuple[CheckResult, ...]) -> list[Message]:
    """Whose code it was made with, and what a false one that would pass costs."""
    files, price = changed_code(opened), price_of(opened.trajectory, checks)
    changed = [message("code-changed", files=files)] if files else []
    return changed + ([] if price is None else [price])


def _published(
    spec: Spec, measured: Measured, checks: tuple[CheckResult, ...], grade: EvidenceGrade
) -> Published:
    """What verdicts go by, here and again where a packet is verified."""
    return Published(
        parties=measured.parties,
        paths=measured.paths,
        draws=measured.draws,
        checks=checks,
        grade=grade,
        resamples=spec.checks.sampling.verdicts,
        level=spec.checks.sampling.level,
    )


def _with_vocabulary(result: AuditResult) -> AuditResult:
    """The same, with the templates of the plug-ins' codes that it uses."""
    speakers = (*available().items(), *estimators().items())
    return result.model_copy(update={"vocabulary": vocabulary_of(result, speakers)})


def _run(
    loaded: LoadedSpec, examined: Examined, command: str, created: dt.datetime, seconds: float
) -> Run:
    """How and where the audit ran."""
    spec = loaded.spec
    return Run(
        tool=f"auditspec {version('auditspec')}",
        created=created,
        command=command,
        spec_digest=digest_bytes(loaded.text),
        seconds=round(seconds, 3),
        gradients=examined.gradients,
        device=examined.device,
        dtype=spec.estimator.dtype,
        threads=examined.threads,
        deterministic=spec.estimator.deterministic,
        seed=spec.checks.seed,
        python=platform.python_version(),
        platform=f"{platform.system()} {platform.machine()}, {os.cpu_count()} CPU cores",
        versions={library: version(library) for library in LIBRARIES},
        engine=spec.estimator.engine,
        plugins=tuple(Plugin(**asdict(plugin)) for plugin in plugins.installed()),
        renderer=renderer(),
        isolation=examined.isolation,
        environment=digest_bytes(bill_of_materials.environment()),
    )


def write_packet(
    packet: PacketWriter,
    result: AuditResult,
    loaded: LoadedSpec,
    *,
    credentials: Credentials | None = None,
    progress: Progress = SILENT,
) -> None:
    """Write the packet's files: results, then what is made from them, then the envelope.

    Raises:
        UsageError: if a file cannot be written, or an export of the spec is not there.
    """
    wanted = chosen(loaded.spec.report.formats)
    packet.write(names.SPEC, loaded.text)
    formats = [export.name for export in wanted]
    for name, data in accompanying_files(result, loaded.spec, formats).items():
        packet.write(name, data)
    packet.write(names.ENVIRONMENT, bill_of_materials.environment())
    with progress.phase("drawing the report"):
        packet.write_exports(Source(result), wanted, credentials)
    if credentials is not None:
        packet.seal(credentials.signer, result, *credentials.extras)


def _refuse_revived(spec: Spec, day: dt.date) -> None:
    """Suppressions count on the packet's day, which may be given; one that has expired must not count again.

    Raises:
        UsageError: naming the behaviour.
    """
    for suppression in spec.policy.suppress:
        if day <= suppression.expires < dt.datetime.now(dt.UTC).date():
            raise UsageError(
                f"SOURCE_DATE_EPOCH is {day}: the suppression of '{suppression.behavior}', which expired on "
                f"{suppression.expires}, would count again",
                "remove the suppression from the spec, or unset SOURCE_DATE_EPOCH",
            )


def _now() -> dt.datetime:
    """The present in UTC, or SOURCE_DATE_EPOCH where a reproducible packet is wanted.

    Raises:
        UsageError: if SOURCE_DATE_EPOCH is not a number of seconds.
    """
    epoch = os.environ.get("SOURCE_DATE_EPOCH")
    try:
        present = (
            dt.datetime.fromtimestamp(int(epoch), dt.UTC) if epoch else dt.datetime.now(dt.UTC)
        )
    except (ValueError, OverflowError, OSError):
        raise UsageError(
            f"SOURCE_DATE_EPOCH is {epoch!r}, not a number of seconds", "unset it"
        ) from None
    return present.replace(microsecond=0)
