"""One stage of a run while it is recorded: from its declaration to its last state."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TypeVar

from torch import Tensor
from torch.optim import Optimizer

from auditspec.artifacts.datasets import Dataset
from auditspec.errors import RecordError
from auditspec.record.describe import (
    check_same_groups,
    named_datasets,
    refuse_compiled_since,
    refuse_stage_id,
    refuse_unrecordable,
)
from auditspec.record.describe_optimizer import groups_of
from auditspec.record.format import RecordHeader, StageHeader, first_segment, stage_folder
from auditspec.record.state import device_of, restore, set_random_state
from auditspec.record.trajectory import StageTrajectory
from auditspec.recorder.committed import CommittedStage
from auditspec.recorder.data_parallel import Replicas
from auditspec.recorder.declaration import DeclaredStage, refuse_another_stage, stage_header
from auditspec.recorder.events import OpenStage, Source, StepMade
from auditspec.recorder.main_guard import refuse_training_on_import
from auditspec.recorder.open_record import OpenRecord
from auditspec.recorder.opening import arithmetic_now
from auditspec.recorder.probe import Probe
from auditspec.recorder.reproduction import Reproduction
from auditspec.recorder.resume import drop_after, last_whole_step
from auditspec.recorder.self_check import SelfCheck
from auditspec.recorder.sharded import Shards
from auditspec.recorder.stage import StageRecorder
from auditspec.recorder.states import States
from auditspec.recorder.writer import StageWriter

S = TypeVar("S", bound=Source)


@contextmanager
def recording(
    record: OpenRecord, declared: DeclaredStage, source: Callable[[OpenStage], S]
) -> Iterator[S]:
    """Record a stage; what is entered is its source.

    Args:
        record: of its run, as the stage before left it.
        declared: what the training script says of the stage.
        source: hears the steps.

    Raises:
        RecordError: as `Recorder.stage`.
    """
    if record.stage is not None:
        raise RecordError(
            f"stage '{record.stage}' is still open", "leave it before the next begins"
        )
    index, change = record.next_stage, record.change
    datasets, resumed = named_datasets(declared.dataset), index < len(record.header.stages)
    states = record.states(declared.optimizer)
    header = states.led(partial(_declare, record, declared, datasets, states))
    folder = record.folder / stage_folder(index, header.id)
    start, drawn = 0, dict(change.generators) if change else {}
    if resumed:
        start, drawn = _restore(record, folder, declared.optimizer, drawn)
    writer = StageWriter(folder, record.header, record.background)
    told = partial(record.change_stage, index)
    recorder = StageRecorder(header, record.model, declared.optimizer, writer, start, told)
    joint = (Shards if record.ranks.sharded else Replicas)(states, header, writer, start, told)
    check = _check(record, header, declared)
    committed, record.committed = record.committed, None
    hear = recorder.hear if committed is None else committed.hearing(recorder)
    stage = OpenStage(
        header=header,
        model=record.model,
        called=record.wrapper,
        optimizer=declared.optimizer,
        states=states,
        objective=declared.objective,
        load_batch=check.loading(record.load_batch),
        datasets=datasets,
        start=start,
        tell=joint.telling(check.telling(hear)),
        passing=joint.passing,
        skip=recorder.skip,
        stop=recorder.stop,
    )
    if record.reproduction is not None:
        stage = _seen(record, stage, recorder, record.reproduction)
    heard = source(stage)

    record.stage, record.change = header.id, None
    try:
        if header.complete:
            yield heard
        else:
            joint.begin()
            states.led(partial(_begin, recorder, heard, drawn, committed))
            heard.attach()
            check.begin(start, notes=record.ranks.size == 1)
            yield heard
            joint.end(recorder.skipped)
            record.header = states.led(partial(_end, record, folder, recorder, check))
    finally:
        heard.detach()
        joint.detach()
        check.end()
        record.stage = None
    record.next_stage += 1


def _declare(
    record: OpenRecord, declared: DeclaredStage, datasets: Mapping[str, Dataset], states: States
) -> StageHeader:
    """The header of a stage that begins: the recorded one, or a new one, which is written.

    Raises:
        RecordError: if the stage cannot be recorded, or is not the one that is recorded.
    """
    index, stages = record.next_stage, record.header.stages
    refuse_stage_id(declared.stage_id, [stage.id for stage in stages[:index]])
    refuse_unrecordable(record.model, sharded=record.ranks.sharded)
    refuse_compiled_since(record.model, record.compiled)
    record.data.update(data.path for data in datasets.values())
    record.paths |= {name: data.path for name, data in datasets.items()}
    header = stage_header(declared, record.model, datasets, record.before(states))
    if index < len(stages):
        refuse_another_stage(stages[index], header, record.folder)
        groups = groups_of(record.model, declared.optimizer)
        check_same_groups(stages[index].groups, tuple(groups))
        return stages[index]
    record.save(stages=(*stages, header))
    return header


def _restore(
    record: OpenRecord, folder: Path, optimizer: Optimizer, drawn: dict[str, Tensor]
) -> tuple[int, dict[str, Tensor]]:
    """Put the last whole state of a recorded stage into model and optimizer.

    Returns:
        Its step, and the generators that belong to its first state: those of `drawn` where the
        record holds no state.
    """
    trajectory = StageTrajectory(folder, record.header.stages[record.next_stage], record.header)
    if trajectory.header.complete:
        start = trajectory.header.steps
    else:
        start = last_whole_step(folder)
        drop_after(folder, start)
    if start == 0 and 0 not in trajectory.state_steps:
        return 0, drawn
    state = trajectory.state(start)
    restore(state, record.model, optimizer)
    set_random_state(state.rng, device_of(record.model))
    record.last = state
    return start, state.generators


def _check(record: OpenRecord, header: StageHeader, declared: DeclaredStage) -> SelfCheck:
    """The self-check of a stage, which checks nothing where it is not wanted, or was made.

    Raises:
        RecordError: if the training code trains when it is imported.
    """
    on = record.self_check and record.header.every != "boundaries" and header.self_check is None
    if on:
        refuse_training_on_import(record.factory, record.load_batch, declared.objective)
    index = record.next_stage
    return SelfCheck(
        record.folder,
        header,
        min(first_segment(record.header.every), header.steps) if on else 0,
        Probe(record.model, declared.optimizer),
        record.paths,
        submit=record.background.submit,
        noted=lambda checked: record.change_stage(index, self_check=checked),
    )


def _seen(
    record: OpenRecord, stage: OpenStage, recorder: StageRecorder, reproduction: Reproduction
) -> OpenStage:
    """A stage whose beginning and steps a reproduction sees before they are recorded."""

    def tell(event: StepMade) -> None:
        with record.reads.during(None):
            reproduction.step(stage, recorder.made + 1)
        stage.tell(event)

    if record.next_stage == 0:  # its script was given the recorder, and sets these after that
        record.save(**arithmetic_now())
    with record.reads.during(None):
        reproduction.begin(stage)
    return replace(stage, tell=tell)


def _begin(
    recorder: StageRecorder,
    heard: Source,
    drawn: dict[str, Tensor],
    committed: CommittedStage | None,
) -> None:
    """Keep the first state, with the generators that belong to it."""
    recorder.begin(heard, drawn)
    if committed is not None and heard.stage.start == 0:
        committed.require_begun(recorder.header, heard.state())


def _end(
    record: OpenRecord, folder: Path, recorder: StageRecorder, check: SelfCheck
) -> RecordHeader:
    """End a stage whose steps were made; the record's header then."""
    record.last = recorder.end()
    check.finish()
    reads = record.reads.files(record.data)
    record.header = record.header.model_copy(update={"reads": reads})
    record.change_stage(record.next_stage, complete=True)
    if record.destination is not None:
        record.background.submit(partial(record.destination.stage_ended, folder))
    return record.header
