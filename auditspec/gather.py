"""Gather the evidence that a spec names: check its digests, then open exactly those bytes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from auditspec.artifacts.checkpoints import check_finite
from auditspec.artifacts.code import CodeBundle
from auditspec.artifacts.datasets import Dataset
from auditspec.artifacts.digest import read_verified
from auditspec.artifacts.tokenizer import Tokenizer
from auditspec.artifacts.weight_files import fitted
from auditspec.artifacts.weights import Weights, read_weights
from auditspec.engine.references import References
from auditspec.errors import EvidenceError, SignatureError
from auditspec.estimator.krylov.segments import Declared
from auditspec.record.adapters import adapted
from auditspec.record.format import RecordHeader
from auditspec.record.trajectory import StageTrajectory, Trajectory
from auditspec.record.usage import Usage
from auditspec.results import Curve, Evidence, StageResult
from auditspec.sign.record import verify_record
from auditspec.sign.sealing import Seal, SealedCommitment, Trainer, read_commitment
from auditspec.spec.groups import ParameterGroup
from auditspec.spec.models import Conversion, GivenStart, Spec, Stage
from auditspec.spec.source import LoadedSpec

CURVE_POINTS = 200
"""Most points of a stage's plotted course."""


@dataclass(frozen=True)
class Opened:
    """Every artifact that the audit computes with, opened from the bytes that were checked."""

    trajectory: Trajectory
    record_digest: str
    deployed: Weights
    base: dict[str, Tensor] | None
    """The base weights of deployed adapters; None where they are none."""
    datasets: dict[str, Dataset]
    """By artifact name."""
    code: CodeBundle
    references: References
    """Clean data and weights that the spec names."""
    given: dict[str, Tensor] | None
    """The pinned first weights; None where none are."""
    tokenizer: Tokenizer | None = None
    """Of the model's texts; None where none is named."""
    commitments: Mapping[str, SealedCommitment] = field(default_factory=dict)
    """What was committed to before a stage was trained, by the stage's id."""
    seal: Seal | None = None
    """The trainer's on the record; None where none is asked for."""


def open_all(loaded: LoadedSpec, evidence: Sequence[Evidence]) -> Opened:
    """Open the artifacts; each must still be what `inspect_all` saw.

    Raises:
        EvidenceError: if one is damaged, of the wrong kind, or changed meanwhile.
    """
    spec, where = loaded.spec, loaded.where
    seen = {item.name: item.found for item in evidence}

    trajectory = Trajectory.open(where("record"), seen["record"])
    conversion = spec.model.conversion
    deployed = read_weights(
        where(spec.model.checkpoint),
        seen[spec.model.checkpoint],
        names=deployed_names(trajectory.header, conversion),
        entry=None if conversion is None else conversion.entry,
    )
    check_finite(deployed.tensors, spec.artifacts[spec.model.checkpoint].path)
    used = {name for stage in spec.stages for name in stage.data}
    used |= {behavior.data for behavior in spec.behaviors}
    used |= {n for behavior in spec.behaviors for n in behavior.metric.artifacts.values()}
    used |= {stage.reference for stage in spec.stages if stage.reference is not None}
    datasets = {name: Dataset.open(where(name), name, seen[name]) for name in sorted(used)}

    def weights(name: str | None, names: Sequence[str] = ()) -> dict[str, Tensor] | None:
        if name is None:
            return None
        tensors = read_weights(where(name), seen[name], names=names).tensors
        return fitted(tensors, names, trajectory.header.ties) if names else tensors

    initial, start = spec.model.initial, start_names(trajectory.header)
    return Opened(
        trajectory=trajectory,
        record_digest=str(seen["record"]),
        deployed=deployed,
        base=weights(None if conversion is None else conversion.base),
        datasets=datasets,
        code=CodeBundle.read(where("code"), seen["code"]),
        references=References(
            {s.id: datasets[s.reference] for s in spec.stages if s.reference is not None},
            weights(initial.reference if initial is not None else None, start),
        ),
        given=weights(initial.weights if isinstance(initial, GivenStart) else None, start),
        tokenizer=_tokenizer(loaded, seen),
        commitments={
            stage.id: _commitment(loaded, stage.commitment, seen)
            for stage in spec.stages
            if stage.commitment is not None
        },
        seal=_record_seal(loaded),
    )


def _tokenizer(loaded: LoadedSpec, seen: Mapping[str, str | None]) -> Tokenizer | None:
    name = loaded.spec.model.tokenizer
    return None if name is None else Tokenizer.open(loaded.where(name), seen[name])


def _commitment(loaded: LoadedSpec, name: str, seen: Mapping[str, str | None]) -> SealedCommitment:
    artifact, path = loaded.spec.artifacts[name], loaded.where(name)
    try:
        data = read_verified(path, seen[name])
        return read_commitment(path, data, Trainer.of(artifact, loaded.path.parent))
    except SignatureError as error:
        raise EvidenceError(f"artifact '{name}': {error.message}", error.remedy) from None


def _record_seal(loaded: LoadedSpec) -> Seal | None:
    trainer = Trainer.of(loaded.spec.artifacts["record"], loaded.path.parent)
    try:
        return None if trainer is None else verify_record(loaded.where("record"), trainer)
    except SignatureError as error:
        raise EvidenceError(f"artifact 'record': {error.message}", error.remedy) from None


def start_names(record: RecordHeader) -> tuple[str, ...]:
    """Names by which first weights are told from others in their file: those of the factory's model that the first
    stage trains too, shared tensors left out.
    """
    first = record.stages[0].parameters if record.stages else None
    trained = {info.name for info in first or record.parameters} - {*record.ties.values()}
    return tuple(info.name for info in record.parameters if info.name in trained)


def deployed_names(record: RecordHeader, conversion: Conversion | None) -> tuple[str, ...]:
    """Names by which the deployed state dict is told from others in its file; shared tensors may have others."""
    stages = [stage for stage in record.stages if stage.parameters is not None]
    parameters = (stages[-1].parameters if stages else None) or record.parameters
    ties = (stages[-1].ties if stages else None) or record.ties
    names = [info.name for info in parameters if info.name not in ties.values()]
    if conversion is None or conversion.adapters is None:
        return tuple(names)
    model = adapted(names)
    if conversion.adapters == "merged":
        return (*model.plain, *model.adapters)
    return ()


def declared_of(spec: Spec) -> dict[str, Declared]:
    """What the spec says of the steps of the stages that declare a schedule."""
    return {
        stage.id: Declared(course, stage.optimizer.lr, stage.batch_size)
        for stage in spec.stages
        if (course := stage.optimizer.course) is not None
    }


def changed_code(opened: Opened) -> tuple[str, ...]:
    """Functions and classes of the record whose source file is not among the audited code's files."""
    files = {file.digest for file in opened.code.files}
    header = opened.trajectory.header
    used = [header.factory, header.load_batch]
    for stage in header.stages:
        used += [f for f in (stage.objective, stage.extend, stage.optimizer_code) if f is not None]
    return tuple(dict.fromkeys(f.name for f in used if f.digest not in files))


def stage_result(
    stage: Stage, trajectory: StageTrajectory | None, usage: Usage | None = None
) -> StageResult:
    """A stage as the spec declares it and, where there is a record, as it was recorded.

    Args:
        stage: the stage of the spec.
        trajectory: that of the record.
        usage: which examples its batches hold, where they were told apart.
    """
    declared = stage.optimizer
    options = {
        key: value
        for key, value in declared.model_dump(exclude_none=True).items()
        if key not in ("name", "state", "options", "groups")
    } | declared.options
    course = declared.schedule
    options["schedule"] = {"name": course.name} | course.model_dump(exclude_defaults=True)
    options |= {_selection(group): group.own | _rate(group) for group in declared.groups}
    facts: dict[str, Any] = {
        "id": stage.id,
        "owner": stage.owner,
        "description": stage.description,
        "data": stage.data,
        "objective": stage.objective,
        "optimizer": f"{declared.name} ({', '.join(f'{k} {_text(v)}' for k, v in options.items())})",
    }
    if trajectory is not None:
        steps = trajectory.steps
        facts |= {
            "boundary": trajectory.header.boundary,
            "steps": trajectory.header.steps,
            "examples": sum(batch.examples for step in steps for batch in step.batches),
            "seconds": sum(step.seconds for step in steps),
            "curve": _curve(trajectory) if steps else None,
        }
    if usage is not None and usage.steps:
        facts |= {"distinct": usage.distinct, "constant": usage.constant}
    return StageResult(**facts)


def _curve(trajectory: StageTrajectory) -> Curve:
    steps = trajectory.steps
    stride = max(1, -(-len(steps) // CURVE_POINTS))
    shown = [*steps[::stride], steps[-1]] if (len(steps) - 1) % stride else steps[::stride]
    return Curve(
        step=tuple(step.index for step in shown),
        learning_rate=tuple(float(step.groups[0]["lr"]) for step in shown),
        loss=tuple(step.loss for step in shown),
    )


def _selection(group: ParameterGroup) -> str:
    names = group.parameters
    return names if isinstance(names, str) else " ".join(names)


def _rate(group: ParameterGroup) -> dict[str, float]:
    return {} if group.lr is None else {"lr": group.lr}


def _text(value: object) -> str:
    if isinstance(value, dict):
        named = {key: v for key, v in value.items() if key != "name"}
        inner = ", ".join(f"{key} {_text(v)}" for key, v in named.items())
        return " ".join(filter(None, (value.get("name", ""), inner and f"[{inner}]")))
    if isinstance(value, tuple):
        return "(" + ", ".join(f"{v:g}" for v in value) + ")"
    return f"{value:g}" if isinstance(value, float) else str(value)
