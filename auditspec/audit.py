"""The whole audit: the first file to read.

    spec -> evidence -> record checked -> effects -> checks -> verdicts -> signed packet

Every step either gives results or says why it could not; nothing is guessed on the way.
"""

from __future__ import annotations

import datetime as dt
import json
import os
import platform
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version

import torch

from auditspec import findings
from auditspec.artifacts.digest import digest_bytes
from auditspec.attribute import Attribution, attribute
from auditspec.behaviors.reading import Reader
from auditspec.checks.evidence_integrity import EvidenceIntegrity
from auditspec.checks.optimizer_match import OptimizerMatch
from auditspec.checks.record_fidelity import RecordFidelity
from auditspec.checks.sampling import SamplingCheck
from auditspec.checks.spot_check import SpotCheck
from auditspec.errors import EvidenceError
from auditspec.estimator.execution import device_name, execution, resolve_device
from auditspec.evidence import inspect_all
from auditspec.gather import (
    Opened,
    changed_code,
    code_errors,
    load_functions,
    open_all,
    stage_result,
)
from auditspec.progress import SILENT, Progress
from auditspec.record.rerun import Rerun
from auditspec.report.html import render_html
from auditspec.report.pdf import render_pdf
from auditspec.results import (
    AuditResult,
    BehaviorResult,
    CheckResult,
    Evidence,
    EvidenceGrade,
    Run,
)
from auditspec.results import Signer as SignerInfo
from auditspec.sign import packet as names
from auditspec.sign.packet import PacketWriter
from auditspec.sign.signer import Signer
from auditspec.spec.lock import lock_path
from auditspec.spec.models import Spec, describe_metric
from auditspec.spec.source import LoadedSpec

LIBRARIES = (
    "torch",
    "numpy",
    "pandas",
    "pyarrow",
    "safetensors",
    "pydantic",
    "weasyprint",
    "altair",
)


@dataclass(frozen=True)
class Examined:
    """What came out of the evidence: checks always, an attribution where the evidence carries one."""

    opened: Opened | None
    attribution: Attribution | None
    checks: tuple[CheckResult, ...]
    device: str
    threads: int
    gradients: float


def audit(
    loaded: LoadedSpec,
    *,
    command: str,
    signer: Signer | None = None,
    announce: Callable[[str], None] = lambda line: None,
    progress: Progress = SILENT,
) -> AuditResult:
    """Run an audit; the result is the content of `results.json`.

    Args:
        loaded: the spec.
        command: how the audit was started, for the report.
        signer: who will sign the packet; None for an unsigned one.
        announce: told of every code file before it is executed.
        progress: told of the long phases.

    Raises:
        SpecError: if the lock file is malformed.
        EstimationError: if the evidence is sound but no estimate can be made.
    """
    began, spec = time.perf_counter(), loaded.spec
    created = _now()
    with progress.phase("checking the evidence"):
        evidence = inspect_all(loaded)
    examined = examine(loaded, evidence, announce, progress)
    attribution, opened = examined.attribution, examined.opened
    grade: EvidenceGrade = opened.trajectory.grade if opened else "none"
    behaviors = tuple(_behavior(spec, index, attribution) for index in range(len(spec.behaviors)))
    estimates = attribution.estimates if attribution else ()
    effects = attribution.effects if attribution else ()
    verdicts = tuple(
        findings.decide(
            behavior,
            [effect for effect in effects if effect.behavior == behavior.id],
            examined.checks,
            spec.checks.sampling.leads,
        )
        for behavior in behaviors
    )
    found = findings.findings_of(
        verdicts, behaviors, examined.checks, estimates, spec.policy, created.date()
    )
    recorded = {stage.id: stage for stage in opened.trajectory.stages} if opened else {}
    return AuditResult(
        run=Run(
            tool=f"auditspec {version('auditspec')}",
            created=created,
            command=command,
            spec_digest=digest_bytes(loaded.text),
            seconds=round(time.perf_counter() - began, 3),
            gradients=examined.gradients,
            device=examined.device,
            dtype=spec.estimator.dtype,
            threads=examined.threads,
            deterministic=spec.estimator.deterministic,
            seed=spec.checks.seed,
            python=platform.python_version(),
            platform=f"{platform.system()} {platform.machine()}, {os.cpu_count()} CPU cores",
            versions={library: version(library) for library in LIBRARIES},
        ),
        audit=spec.audit,
        auditor=spec.auditor,
        approver=spec.review.approver,
        exclusions=spec.review.exclusions,
        system=spec.system,
        signer=SignerInfo(keyid=signer.keyid, algorithm=signer.algorithm) if signer else None,
        evidence_grade=grade,
        evidence=evidence,
        stages=tuple(stage_result(stage, recorded.get(stage.id)) for stage in spec.stages),
        behaviors=behaviors,
        estimates=estimates,
        effects=effects,
        checks=examined.checks,
        verdicts=verdicts,
        findings=found,
        limitations=findings.limitations_of(
            evidence=evidence,
            grade=grade,
            checks=examined.checks,
            estimates=estimates,
            verdicts=verdicts,
            changed_code=changed_code(opened) if opened else (),
        ),
        gate=findings.gate_of(found, verdicts, examined.checks, spec.policy),
    )


def examine(
    loaded: LoadedSpec,
    evidence: tuple[Evidence, ...],
    announce: Callable[[str], None],
    progress: Progress,
) -> Examined:
    """Check the evidence gate by gate; estimate only behind all of them.

    Code is executed only after its digest was found right, and after it was announced.
    """
    spec = loaded.spec
    integrity = EvidenceIntegrity(evidence).run()
    checks = [integrity]
    if integrity.outcome != "pass":
        return _stopped(None, checks, "an artifact is missing, mismatched, or not pinned")
    try:
        opened = open_all(loaded, evidence)
        match = OptimizerMatch(spec.stages, opened.trajectory).run()
        checks.append(match)
    except EvidenceError as error:
        return _stopped(None, _unreadable(checks, error), "an artifact cannot be read")
    if match.outcome == "fail":
        return _stopped(opened, checks, "the record is not the declared training")
    for file in opened.code.files:
        announce(f"executing {file.path} ({file.digest})")
    record = opened.trajectory.header
    threads = spec.estimator.threads or record.threads
    device = resolve_device(spec.estimator.device)
    with (
        opened.code.importable(),
        code_errors(opened.code),
        execution(threads, deterministic=spec.estimator.deterministic),
    ):
        try:
            functions, custom = load_functions(spec, opened.code)
        except EvidenceError as error:
            return _stopped(opened, _unreadable(checks, error), "the code cannot be loaded")
        fidelity = RecordFidelity(
            Rerun(opened.trajectory, functions, opened.datasets, device=device),
            opened.checkpoint,
            spec.model.tolerance,
            spec.checks.record_fidelity,
            spec.checks.seed,
            progress,
        ).run()
        checks.append(fidelity)
        if fidelity.outcome != "pass":
            return _stopped(opened, checks, "the record does not reproduce itself")
        rerun = Rerun(
            opened.trajectory,
            functions,
            opened.datasets,
            device=device,
            dtype=getattr(torch, spec.estimator.dtype),
        )
        labels = {name: artifact.label for name, artifact in spec.artifacts.items()}
        reader = Reader(
            rerun, spec.behaviors, opened.datasets, labels, custom, spec.estimator.batch_size
        )
        attribution = attribute(spec, rerun, reader, progress)
    return Examined(
        opened,
        attribution,
        (*checks, *attribution.checks),
        device_name(device),
        threads,
        fidelity.gradients + attribution.gradients,
    )


def write_packet(
    packet: PacketWriter,
    result: AuditResult,
    loaded: LoadedSpec,
    *,
    signer: Signer | None = None,
    progress: Progress = SILENT,
) -> None:
    """Write the packet's files: results, then the reports made from them, then the envelope.

    Raises:
        UsageError: if a file cannot be written.
    """
    results = (result.model_dump_json(indent=1) + "\n").encode()
    packet.write(names.SPEC, loaded.text)
    if lock_path(loaded.path).exists():
        packet.write(names.LOCK, lock_path(loaded.path).read_bytes())
    resolved = loaded.spec.model_dump_json(indent=1, by_alias=True)
    packet.write(names.RESOLVED, (resolved + "\n").encode())
    evidence = [item.model_dump(mode="json") for item in result.evidence]
    packet.write(names.EVIDENCE, (json.dumps(evidence, indent=1) + "\n").encode())
    packet.write(names.RESULTS, results)
    formats = loaded.spec.report.formats
    with progress.phase("drawing the report"):
        html = render_html(result)
        if "html" in formats:
            packet.write(names.HTML, html.encode())
        if "pdf" in formats:
            packet.write(names.PDF, render_pdf(result, results, html=html))
    if signer is not None:
        packet.seal(signer, result)


def _stopped(opened: Opened | None, checks: list[CheckResult], why: str) -> Examined:
    """Evidence that carries no estimate: the checks that did not run say so."""
    ran = {check.id for check in checks}
    left = (OptimizerMatch, RecordFidelity, SpotCheck, SamplingCheck)
    skipped = [kind.skipped(why) for kind in left if kind.id not in ran]
    return Examined(opened, None, (*checks, *skipped), "none", 0, 0)


def _unreadable(checks: list[CheckResult], error: EvidenceError) -> list[CheckResult]:
    """The digests are right, but an artifact is not what it should be."""
    integrity = checks[0].model_copy(update={"outcome": "fail", "reason": error.message})
    return [integrity, *checks[1:]]


def _behavior(spec: Spec, index: int, attribution: Attribution | None) -> BehaviorResult:
    behavior = spec.behaviors[index]
    metric, unit = describe_metric(behavior.metric)
    return BehaviorResult(
        id=behavior.id,
        description=behavior.description,
        metric=metric,
        unit=unit,
        data=behavior.data,
        where=behavior.where,
        examples=attribution.examples[behavior.id] if attribution else None,
        value=attribution.values[behavior.id] if attribution else None,
        concern=behavior.concern,
    )


def _now() -> dt.datetime:
    """The present in UTC, or SOURCE_DATE_EPOCH where a reproducible packet is wanted."""
    epoch = os.environ.get("SOURCE_DATE_EPOCH")
    moment = dt.datetime.fromtimestamp(int(epoch), dt.UTC) if epoch else dt.datetime.now(dt.UTC)
    return moment.replace(microsecond=0)
