"""Read a training record: its header, the steps that were made, and the states that were kept.

Reads what is whole and stops before what is not, so that the record of a killed run can be read.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pyarrow as pa
import torch
from pydantic import ValidationError
from torch import Tensor

from auditspec.artifacts.checkpoints import check_finite, map_checkpoint
from auditspec.artifacts.datasets import Dataset
from auditspec.artifacts.digest import check, read_verified
from auditspec.artifacts.manifest import Manifest
from auditspec.artifacts.parquet import read_table
from auditspec.errors import RecordError
from auditspec.record.batches import examples_in, put_together, tensors_in
from auditspec.record.codec import decoded
from auditspec.record.format import (
    HEADER,
    LEAST,
    STEPS_SCHEMA,
    BatchRow,
    Group,
    RecordHeader,
    StageHeader,
    StateInfo,
    StepRow,
    TensorInfo,
    batches_file,
    stage_folder,
    state_file,
    steps_file,
)
from auditspec.record.outline import read_header
from auditspec.record.state import State
from auditspec.results import EvidenceGrade


@dataclass(frozen=True)
class Microbatch:
    """One forward and backward pass of a step: rows of a data set, or the batch itself."""

    dataset: str | None
    ids: tuple[int, ...]
    """Its rows; beside `batch` they only say which ones it was made of."""
    weight: float
    """Factor of this microbatch's loss in the step's gradient: its share, whichever rank made it. 0: its
    loss was not differentiated, or the step was not made; its pass may still have drawn numbers."""
    rng: dict[str, bytes]
    """State before the pass of each random generator from which it drew: `cpu`, `device`, `numpy`,
    `python`."""
    batch: Any = None
    """What the objective was given: a tensor, or nested dicts, lists, and tuples of tensors and plain
    values. None: the rows are loaded by the training code's `load_batch`."""
    rank: int = 0
    """Of the process that made the pass: a data-parallel step has a microbatch or more of each."""
    scale: float = 1.0
    """Factor of a gradient scaler, which was divided out of the gradient again before the update."""
    source: Dataset | None = None
    """The data set itself, where it is none of the record's."""

    @cached_property
    def tensors(self) -> tuple[Tensor, ...]:
        """The tensors of the recorded batch; none where its rows are loaded."""
        return tensors_in(self.batch)

    @property
    def examples(self) -> int:
        """How many rows it has."""
        return len(self.ids) if self.dataset is not None else examples_in(self.batch)


@dataclass(frozen=True)
class Step:
    """Step k of a stage: what U and g_k need besides the state."""

    index: int
    groups: tuple[dict[str, Any], ...]
    """h_k: hyperparameters of each parameter group, as the optimizer used them."""
    batches: tuple[Microbatch, ...]
    seconds: float
    loss: float | None
    """None where it was not recorded, or not finite."""
    grad_norm: float | None
    without_gradient: tuple[str, ...] | None = None
    """Parameters of the optimizer that had no gradient, and were skipped; None for a step that was
    declared, not recorded. Others that the loss did not reach had a gradient of zeros, which decay and momentum
    follow."""

    @property
    def kept_passes(self) -> int:
        """How many of its passes change the buffers that are kept: those of rank 0."""
        return sum(batch.rank == 0 for batch in self.batches)


class StageTrajectory:
    """One stage of a record."""

    def __init__(
        self,
        folder: Path,
        header: StageHeader,
        record: RecordHeader,
        manifest: Manifest | None = None,
    ) -> None:
        self.folder = folder
        self.header = header
        self.record = record
        self._manifest = manifest

    @property
    def id(self) -> str:
        """The stage's id."""
        return self.header.id

    @property
    def parameters(self) -> tuple[TensorInfo, ...]:
        """Parameters of the stage's model."""
        own = self.header.parameters
        return self.record.parameters if own is None else own

    @property
    def buffers(self) -> tuple[TensorInfo, ...]:
        """Buffers of the stage's model."""
        own = self.header.buffers
        return self.record.buffers if own is None else own

    @property
    def ties(self) -> dict[str, str]:
        """Second names of shared tensors of the stage's model, each with its first name."""
        return self.record.ties if self.header.ties is None else self.header.ties

    @cached_property
    def survivors(self) -> dict[str, str]:
        """Parameters and buffers whose object went on from the stage before, with its name there."""
        header = self.header
        brought = {*header.added, *header.copied, *header.derived} - set(header.rewritten)
        names = (info.name for info in (*self.parameters, *self.buffers))
        return {name: header.renamed.get(name, name) for name in names if name not in brought}

    @cached_property
    def carried(self) -> dict[str, str]:
        """Those of them that kept their values too."""
        rewritten = set(self.header.rewritten)
        return {name: old for name, old in self.survivors.items() if name not in rewritten}

    @cached_property
    def origin(self) -> dict[str, str]:
        """Where the stage's first values are those of the stage before: carried ones and copies."""
        return self.carried | self.header.copied

    @cached_property
    def steps(self) -> tuple[Step, ...]:
        """Every recorded step, in order; empty where only boundaries were recorded.

        Raises:
            RecordError: if a complete stage lacks steps or a part cannot be read.
        """
        steps: list[Step] = []
        while (path := self.folder / steps_file(len(steps))).exists():
            part = _read_part(path, self._digest(path))
            steps.extend(self._steps(part, len(steps)))
            if not part:
                break
        if (
            self.header.complete
            and self.record.every != "boundaries"
            and len(steps) != self.header.steps
        ):
            raise RecordError(
                f"{self.folder.name}: {len(steps)} of {self.header.steps} steps are recorded",
                "ask the trainer for the complete record",
            )
        return tuple(steps)

    @cached_property
    def groups(self) -> tuple[Group, ...]:
        """The optimizer's parameter groups, with the hyperparameters that the first step used.

        Those of `record.json` where no steps were recorded: re-running checks what steps used.

        Raises:
            RecordError: if the first step has other groups than `record.json`.
        """
        declared = self.header.groups
        if not self.steps:
            return declared
        used = self.steps[0].groups
        if len(used) != len(declared):
            raise RecordError(
                f"{self.folder.name}: {len(declared)} parameter groups in {HEADER}, {len(used)} at step 0",
                "ask the trainer for the record again",
            )
        return tuple(
            Group(parameters=group.parameters, options=options)
            for group, options in zip(declared, used, strict=True)
        )

    @cached_property
    def state_steps(self) -> tuple[int, ...]:
        """Steps whose state was kept, ascending."""
        names = (
            path.stem.removeprefix("state-") for path in self.folder.glob("state-*.safetensors")
        )
        return tuple(sorted(int(name) for name in names if name.isdigit()))

    @property
    def datasets(self) -> dict[str, str]:
        """Digest of each data set that the stage's ids point into."""
        return self.header.datasets

    def state(self, step: int) -> State:
        """The recorded state before step `step`.

        Raises:
            RecordError: if it was not kept, cannot be read, has other tensors than the header
                says, or holds NaN or infinity.
        """
        path = self.folder / state_file(step)
        if not path.exists():
            raise RecordError(
                f"{self.folder.name}: the state before step {step} is not in the record",
                f"states were kept at steps {', '.join(map(str, self.state_steps)) or 'none'}",
            )
        tensors, metadata = map_checkpoint(path, self._digest(path))
        info = _state_info(path, metadata)
        try:
            state = decoded(tensors, info.scalars)
        except ValueError as error:
            raise RecordError(
                f"{path.name}: {error}", "ask the trainer for the record again"
            ) from None
        self._check_tensors(path, state.parameters, state.buffers)
        check_finite(tensors, f"{self.folder.name}/{path.name}")
        if (info.stage, info.step) != (self.id, step):
            raise RecordError(
                f"{self.folder.name}/{path.name}: holds the state before step {info.step} of "
                f"stage '{info.stage}'",
                "the record was altered; ask the trainer for it again",
            )
        if odd := sorted(state.optimizer_state.keys() - state.parameters.keys()):
            raise RecordError(
                f"{self.folder.name}/{path.name}: optimizer state of {odd[0]!r}, which is no parameter",
                "ask the trainer for the record again",
            )
        return state

    @property
    def first(self) -> State:
        """The state where the stage began, theta_a."""
        return self.state(0)

    @property
    def last(self) -> State:
        """The state where the stage ended, theta_b."""
        return self.state(self.header.steps)

    def _digest(self, path: Path) -> str | None:
        """The digest that a file must still have; None where the record is not pinned."""
        if self._manifest is None:
            return None
        return self._manifest.entry(f"{self.folder.name}/{path.name}").digest

    def _steps(self, rows: list[StepRow], start: int) -> Iterator[Step]:
        tensors: dict[str, Tensor] = {}
        if any(batch.tensors is not None for row in rows for batch in row.batches):
            path = self.folder / batches_file(start)
            tensors, _ = map_checkpoint(path, self._digest(path))
        for index, row in enumerate(rows, start):
            if row.step != index:
                raise RecordError(
                    f"{self.folder.name}/{steps_file(start)}: step {row.step} stands where "
                    f"step {index} belongs",
                    "the record was altered; ask the trainer for it again",
                )
            if any(type(group.get("lr")) not in (int, float) for group in row.groups):
                raise RecordError(
                    f"{self.folder.name}/{steps_file(start)}: step {index} has no learning rate",
                    "ask the trainer for the record again",
                )
            place = f"{self.folder.name}, step {index}"
            self.record.layout.check_ranks((batch.rank for batch in row.batches), place)
            yield Step(
                index=index,
                groups=tuple(dict(group) for group in row.groups),
                batches=tuple(_microbatch(batch, tensors, place) for batch in row.batches),
                seconds=row.seconds,
                loss=row.loss,
                grad_norm=row.grad_norm,
                without_gradient=row.without_gradient,
            )

    def _check_tensors(
        self, path: Path, parameters: dict[str, Tensor], buffers: dict[str, Tensor]
    ) -> None:
        for given, declared in (
            (parameters, self.parameters),
            (buffers, self.buffers),
        ):
            wanted = {info.name: (info.shape, info.dtype) for info in declared}
            present = {
                name: (tuple(t.shape), str(t.dtype).removeprefix("torch."))
                for name, t in given.items()
            }
            if present != wanted:
                odd = sorted(
                    name
                    for name in wanted.keys() | present.keys()
                    if wanted.get(name) != present.get(name)
                )
                raise RecordError(
                    f"{self.folder.name}/{path.name}: tensors differ from record.json: {', '.join(odd)}",
                    "ask the trainer for the record again",
                )


class Trajectory:
    """A training record on disk."""

    def __init__(
        self, folder: Path, header: RecordHeader, manifest: Manifest | None = None
    ) -> None:
        self.folder = folder
        self.header = header
        self.stages = tuple(
            StageTrajectory(folder / stage_folder(index, stage.id), stage, header, manifest)
            for index, stage in enumerate(header.stages)
        )

    @classmethod
    def open(cls, folder: Path, expected: str | None = None) -> Trajectory:
        """Open a record, finished or not.

        With a pinned digest, every file that is read later must still be the one that was hashed.

        Raises:
            RecordError: if `record.json` is missing or not a record of a known version.
            EvidenceError: if the folder does not have the pinned digest.
        """
        manifest = None
        if expected is not None:
            manifest = Manifest.scan(folder)
            check(folder, expected, manifest.digest)
        return cls(folder, read_header(folder, manifest), manifest)

    def index(self, stage_id: str) -> int:
        """Position of a stage.

        Raises:
            RecordError: if the record has no such stage.
        """
        for index, stage in enumerate(self.stages):
            if stage.id == stage_id:
                return index
        known = ", ".join(stage.id for stage in self.stages)
        raise RecordError(f"the record has no stage '{stage_id}'", f"its stages: {known}")

    @property
    def grade(self) -> EvidenceGrade:
        """How much of the run was kept: a state for every step, for some, or for boundaries only.

        A run that was made again is none of which anything was kept but its checkpoints.
        """
        if self.header.every == "boundaries":
            return "boundaries"
        if self.header.regenerated is not None:
            return "regenerated"
        dense = all(len(s.state_steps) == s.header.steps + 1 for s in self.stages)
        return "dense" if dense else "sparse"

    def trained_in(self, precision: str) -> bool:
        """Whether all floating parameters and buffers were trained in a precision, such as "float32"."""
        infos = [*self.header.parameters, *self.header.buffers]
        for stage in self.stages:
            infos += [*stage.parameters, *stage.buffers]
        precisions = {info.dtype for info in infos if "float" in info.dtype}
        return precisions <= {precision}

    @property
    def precision(self) -> torch.dtype:
        """Of the first floating parameter; torch's default where there is none."""
        kinds = [info.dtype for info in self.header.parameters if "float" in info.dtype]
        dtype: torch.dtype = getattr(torch, kinds[0]) if kinds else torch.get_default_dtype()
        return dtype

    def windows(self) -> Iterator[tuple[StageTrajectory, int, int]]:
        """Every stretch between two neighbouring recorded states: (stage, first step, end step)."""
        for stage in self.stages:
            steps = stage.state_steps
            for start, stop in itertools.pairwise(steps):
                yield stage, start, stop


def _read_part(path: Path, expected: str | None) -> list[StepRow]:
    data = read_verified(path, expected)
    try:
        table = read_table(data, least=LEAST).cast(STEPS_SCHEMA)
        return [StepRow.model_validate(row) for row in table.to_pylist()]
    except (pa.ArrowException, OSError, ValueError) as error:
        why = str(error).partition("\n")[0]
        raise RecordError(
            f"{path.parent.name}/{path.name}: cannot be read: {why}", "restore the file"
        ) from None


def _microbatch(row: BatchRow, tensors: dict[str, Tensor], place: str) -> Microbatch:
    rng = {kind: getattr(row, f"rng_{kind}") for kind in ("cpu", "device", "numpy", "python")}
    batch, parts = None, list[Tensor]()
    if row.tensors is not None and row.form is not None:
        while (key := f"{row.tensors}/{len(parts)}") in tensors:
            parts.append(tensors[key])
        try:
            batch = put_together(parts, row.form)
        except ValueError as error:
            raise RecordError(
                f"{place}: its batch cannot be put together: {error}",
                "ask the trainer for the record again",
            ) from None
    if row.dataset is None and batch is None:
        raise RecordError(
            f"{place}: a batch of neither rows nor tensors", "ask the trainer for the record again"
        )
    if not (math.isfinite(row.weight) and math.isfinite(row.scale) and row.scale > 0):
        raise RecordError(
            f"{place}: a loss of weight {row.weight:g}, scaled by {row.scale:g}",
            "ask the trainer for the record again",
        )
    return Microbatch(
        dataset=row.dataset,
        ids=row.ids or (),
        weight=row.weight,
        rng={kind: value for kind, value in rng.items() if value is not None},
        batch=batch,
        rank=row.rank,
        scale=row.scale,
    )


def _state_info(path: Path, metadata: Mapping[str, str]) -> StateInfo:
    try:
        return StateInfo.model_validate_json(metadata["auditspec"])
    except (KeyError, ValidationError):
        raise RecordError(
            f"{path.parent.name}/{path.name}: has no auditspec metadata",
            "ask the trainer for the record again",
        ) from None
