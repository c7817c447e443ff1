"""The training record, version 1: what stands on disk, and where.

A record is a folder::

    record.json                      RecordHeader: versions, parameters, stages (docs/record.md)
    00-pretrain/                     one folder per stage, numbered in order of training
        state-000000.safetensors     parameters, buffers, optimizer state, random state
        steps-000000.parquet         steps 0 … 49: hyperparameters, loss, ids, random state
        batches-000000.safetensors   the batches themselves, where data is not addressable
        state-000050.safetensors     the state after step 49
    manifest.json                    digest of every other file; written last

A file appears under its name only when it is whole (written aside, then renamed).
"""

from __future__ import annotations

import datetime as dt
import json
import math
from collections.abc import Iterable, Sequence
from typing import Annotated, Any, Literal

import pyarrow as pa
from pydantic import Field, Json, model_validator

from auditspec.errors import RecordError
from auditspec.frozen import Frozen
from auditspec.results import Boundary

HEADER = "record.json"
FIRST = 8
"""Steps of a first part at least, where states stand closer."""

Scalar = bool | int | float | str | None
Options = dict[str, Scalar | tuple[float | None, ...]]
"""Hyperparameters of one parameter group, as torch.optim holds them."""


class TensorInfo(Frozen):
    """A parameter or buffer of the model."""

    name: str
    shape: tuple[int, ...]
    dtype: str


class FunctionRef(Frozen):
    """A function of the training code, and the digest of the file that defines it."""

    name: str
    """`module:callable`"""
    digest: str


class Group(Frozen):
    """A parameter group of the optimizer."""

    parameters: tuple[str, ...]
    options: Options


class FileRead(Frozen):
    """A file that the training process opened for reading while it was recorded."""

    path: str
    """Relative to the folder that the process ran in, where it lies below it."""
    digest: str | None
    """None where it was gone, or too large to be hashed, when its stage ended."""
    size: int | None
    """Bytes."""
    by: tuple[Literal["factory", "extend", "training", "named"], ...]
    """Where it was read: while a model was built, while one was changed, or otherwise; named: a function
    that does either names it, so that a library may have read it unseen."""


class Autocast(Frozen):
    """The `torch.autocast` under which a stage's losses were computed."""

    dtype: Literal["bfloat16", "float16"]
    around: Literal["objective", "forward"] = "objective"
    """objective: around the whole objective; forward: around the model's own forward, which gives its
    outputs as float32."""
    cache: bool = True
    """Whether a pass casts each weight once."""
    inputs: bool = False
    """Whether the model's floating inputs are cast before its forward, and its outputs to float32 after it, as
    Lightning Fabric does."""


class SelfChecked(Frozen):
    """What came of re-running a stage's first steps in a fresh process, beside the training."""

    outcome: Literal["bitwise", "close", "unchecked"]
    """bitwise: it ended on the recorded state itself; close: within what record-fidelity accepts."""
    steps: int
    """How many were re-run."""
    deviation: float | None = None
    """Largest relative deviation."""
    reason: str | None = None
    """Why nothing could be checked."""


class Buckets(Frozen):
    """How gradients were laid side by side to sum them over ranks."""

    step: Annotated[int, Field(ge=0)]
    """The first that was summed so."""
    parameters: tuple[tuple[str, ...], ...]
    """Those of each bucket, in their order; none where that is not known."""
    passes: Literal["together", "each"] = "together"
    """together: a rank's passes were summed first; each: those of one pass over ranks, before the next pass."""


class StageHeader(Frozen):
    """One training stage."""

    id: str
    objective: FunctionRef
    extend: FunctionRef | None = None
    """Function that changed the model in place before the stage, where one did."""
    extend_data: tuple[str, ...] = ()
    """The stage's data sets that it was given, by name."""
    added: tuple[str, ...] = ()
    """Parameters and buffers whose values it made, and which owe nothing to those that it found; those
    that are neither added, copied, nor derived were carried on from the stage before."""
    copied: dict[str, str] = Field(default_factory=dict)
    """Those that it gave the values of another, with the name of that in the stage before."""
    derived: tuple[str, ...] = ()
    """Those whose values depend otherwise on the ones that it found."""
    renamed: dict[str, str] = Field(default_factory=dict)
    """New name of a parameter or buffer whose object survived, with its name in the stage before."""
    rewritten: tuple[str, ...] = ()
    """Those added, copied, or derived whose object survived: the function wrote into it."""
    parameters: tuple[TensorInfo, ...] | None = None
    """Those of the stage; None: those of the record. So for `buffers` and `ties`."""
    buffers: tuple[TensorInfo, ...] | None = None
    ties: dict[str, str] | None = None
    optimizer: str
    """Class name in torch.optim, or `module:Class` of the training code."""
    optimizer_code: FunctionRef | None = None
    """A class of the training code, with the digest of its file; None for one of torch.optim."""
    groups: tuple[Group, ...]
    """Options as the stage began; those that a step used stand with the step."""
    boundary: Boundary
    """reset: the optimizer began without state; carry: with the state that the stage before left; given:
    with some that no recorded stage left, which stands in the stage's first state."""
    frozen: tuple[str, ...] = ()
    """Parameters without a gradient in this stage (`requires_grad=False`)."""
    autocast: Autocast | None = None
    """Where the loop uses one."""
    clip_norm: Annotated[float, Field(gt=0)] | None = None
    """Largest gradient norm (2-norm over all parameters), where the loop clips."""
    datasets: dict[str, str]
    """Digest of each named data set; ids are row numbers in it."""
    steps: int
    """Steps planned while the stage is open, steps made once it is complete."""
    skipped: Annotated[int, Field(ge=0)] = 0
    """Planned steps that were not made, such as those that a gradient scaler skipped."""
    buckets: tuple[Buckets, ...] = ()
    """In the order of their steps. More than two ranks of gloo sum each part of a bucket in an order of its own, by which
    the sum rounds."""
    self_check: SelfChecked | None = None
    """None where none was asked for, or it is not over."""
    complete: bool = False

    def buckets_at(self, step: int) -> Buckets:
        """How a step's gradients were summed; without parameters where that is not known."""
        known = (b for b in reversed(self.buckets) if b.step <= step)
        return next(known, Buckets(step=0, parameters=()))


class Layout(Frozen):
    """How the run was spread over processes."""

    world_size: Annotated[int, Field(ge=1)] = 1
    """Processes that trained together; each microbatch says which of them made it, its rank."""
    sharding: Literal["single", "replicated", "sharded"] = "single"
    """single: one process held the whole model and its optimizer's state; replicated: every process did, and
    gradients were averaged over them; sharded: each held a part of every tensor, and of its averaged gradient."""

    @model_validator(mode="after")
    def _single_is_alone(self) -> Layout:
        if (self.world_size == 1) != (self.sharding == "single"):
            raise ValueError("a single process has world_size 1, several have more")
        return self

    def check_ranks(self, ranks: Iterable[int], place: str) -> None:
        """Refuse microbatches of processes that there were not.

        Raises:
            RecordError: naming the first such rank.
        """
        odd = next((rank for rank in ranks if not 0 <= rank < self.world_size), None)
        if odd is not None:
            raise RecordError(
                f"{place}: a microbatch of rank {odd}, of {self.world_size} "
                f"process{'es' if self.world_size > 1 else ''}",
                "let every microbatch have the rank of the process that made it, counted from 0",
            )


Part = Annotated[float, Field(ge=0, allow_inf_nan=False)] | Literal["other"] | None
"""Relative deviation of one part of a saved checkpoint, 0 where bitwise; other: of other tensors, kinds, or
counters, or not finite; null: it was not saved."""
CLOSE = 1e-4
"""Largest relative deviation that passes for another rounding of the same run."""


class CheckpointMatch(Frozen):
    """A checkpoint that the original run saved, beside the run that was made again, at its step."""

    stage: str
    step: int
    """Steps made before it."""
    path: str
    """Name of the file or folder."""
    digest: str
    weights: Part
    buffers: Part
    optimizer: Part
    """Of the optimizer's state."""
    random: bool | None
    """Whether the random generators stood alike; null where their state was not saved."""

    @property
    def bitwise(self) -> bool:
        """Whether whatever was saved was met bit for bit."""
        parts = (self.weights, self.buffers, self.optimizer)
        return all(part in (0, None) for part in parts) and self.random is not False

    @property
    def deviation(self) -> float:
        """Of weights and buffers, whichever lies farther off; infinite where one cannot be compared."""
        return max(_as_number(self.weights), _as_number(self.buffers))

    @property
    def met(self) -> bool:
        """Whether weights and buffers are those of the same run, up to rounding."""
        return self.deviation <= CLOSE


def _as_number(part: float | Literal["other"] | None) -> float:
    return math.inf if part == "other" else part or 0.0


class Regenerated(Frozen):
    """Of a run that nobody recorded: how close the run that was made again came to what it had saved."""

    checkpoints: tuple[CheckpointMatch, ...]
    """Every saved checkpoint in order. From one that was missed the run that was made again went on, so that the
    next one says how close the steps between the two came."""
    arguments: tuple[str, ...] = ()
    """Arguments of a trainer (but for paths and reports), and options of an optimizer that was missed
    (`optimizer.lr`), that a checkpoint holds with another value."""

    @property
    def farthest(self) -> CheckpointMatch:
        """The checkpoint that was met worst."""
        return max(self.checkpoints, key=lambda match: match.deviation)

    @property
    def missed(self) -> tuple[CheckpointMatch, ...]:
        """Those that lie farther off than rounding, in order."""
        return tuple(match for match in self.checkpoints if not match.met)


class RecordHeader(Frozen):
    """`record.json`, version 1."""

    auditspec_record: Literal["1"] = "1"
    created: dt.datetime
    versions: dict[str, str]
    device: str
    threads: Annotated[int, Field(ge=1)]
    deterministic: bool
    numerics: dict[str, bool] = Field(default_factory=dict)
    """torch's switches that change rounding: TF32, cuDNN (`numerics_now`)."""
    layout: Layout
    every: Annotated[int, Field(ge=1)] | Literal["boundaries"]
    """Steps between recorded states; boundaries: states at the stages' ends only, and no steps."""
    factory: FunctionRef
    load_batch: FunctionRef
    parameters: tuple[TensorInfo, ...]
    """As the factory builds them; a stage that has others says so."""
    buffers: tuple[TensorInfo, ...]
    ties: dict[str, str]
    """Second names of shared parameters, each with the name under which it is recorded."""
    stages: tuple[StageHeader, ...] = ()
    reads: tuple[FileRead, ...] = ()
    """Files that were opened through Python, other than its own, the record's, and the data sets."""
    complete: bool = False
    regenerated: Regenerated | None = None
    """Of a record whose run was made again (`auditspec record import`); null of one that was recorded."""


class StateInfo(Frozen):
    """The metadata of a state file."""

    stage: str
    step: int
    scalars: dict[str, Scalar] = Field(default_factory=dict)
    """Optimizer state that is not a tensor, by `parameter/key`."""


class BatchRow(Frozen):
    """One microbatch in a steps file."""

    dataset: str | None
    ids: tuple[Annotated[int, Field(ge=0)], ...] | None
    tensors: str | None
    """Key prefix in the batches file, where the batch itself is recorded."""
    form: str | None
    """JSON: how that batch is put together of its tensors and plain values."""
    weight: float
    """Factor of its loss in the step's gradient: its share; 0 for a pass without a gradient."""
    scale: float
    """Factor of a gradient scaler, divided out of the gradient again; 1 without one."""
    rank: int
    """Of the process that made it."""
    rng_cpu: bytes | None
    rng_device: bytes | None
    rng_numpy: bytes | None
    rng_python: bytes | None


class StepRow(Frozen):
    """One row of a steps file."""

    step: int
    seconds: float
    loss: float | None
    grad_norm: float | None
    without_gradient: tuple[str, ...]
    groups: Json[tuple[Options, ...]]
    batches: tuple[BatchRow, ...]


STEPS_SCHEMA = pa.schema(
    [
        pa.field("step", pa.int64(), nullable=False),
        pa.field("seconds", pa.float64(), nullable=False),
        pa.field("loss", pa.float64()),
        pa.field("grad_norm", pa.float64()),
        # parameters that the step skipped
        pa.field("without_gradient", pa.list_(pa.string()), nullable=False),
        pa.field("groups", pa.string(), nullable=False),  # JSON: list of Options
        pa.field(
            "batches",
            pa.list_(
                pa.struct(
                    [
                        pa.field("dataset", pa.string()),
                        pa.field("ids", pa.list_(pa.int64())),
                        pa.field("tensors", pa.string()),  # key prefix in the batches file
                        pa.field("form", pa.string()),  # JSON, of a batch that is recorded itself
                        pa.field("weight", pa.float64(), nullable=False),
                        pa.field("scale", pa.float64(), nullable=False),
                        pa.field("rank", pa.int32(), nullable=False),
                        pa.field("rng_cpu", pa.binary()),
                        pa.field("rng_device", pa.binary()),
                        pa.field("rng_numpy", pa.binary()),
                        pa.field("rng_python", pa.binary()),
                    ]
                )
            ),
            nullable=False,
        ),
    ]
)
"""Columns of a steps file. A null random state means that the step drew no random number."""
LEAST = 2**14
"""Bytes that a shorter steps file counts as, when its size must explain what it holds."""


def stage_folder(index: int, stage_id: str) -> str:
    """Folder of a stage, relative to the record."""
    return f"{index:02d}-{stage_id}"


def state_file(step: int) -> str:
    """File of the state before step `step` (after step `step` - 1)."""
    return f"state-{step:06d}.safetensors"


def steps_file(step: int) -> str:
    """File of the segment of steps that begins with step `step`."""
    return f"steps-{step:06d}.parquet"


def batches_file(step: int) -> str:
    """File of the batches of the segment that begins with step `step`."""
    return f"batches-{step:06d}.safetensors"


def segment_length(every: int | Literal["boundaries"]) -> int:
    """Steps per part file: `every`, or the multiple of it that is closest below 50."""
    return 50 if every == "boundaries" else every * max(1, 50 // every)


def first_segment(every: int | Literal["boundaries"]) -> int:
    """Steps of a stage's first part file, which a self-check waits for: up to the first state, or a few."""
    length = segment_length(every)
    return length if every == "boundaries" else min(length, every * -(-FIRST // every))


def dump_options(groups: Sequence[dict[str, Any]]) -> str:
    """Hyperparameters of all groups as JSON; floats survive exactly."""
    return json.dumps(groups, separators=(",", ":"), sort_keys=True)
