"""Record a training run: two or three lines in a plain PyTorch loop.

::

    with Recorder("record", model, every=50, factory=build_model, load_batch=load_batch) as recorder:
        with recorder.stage("pretrain", optimizer, cross_entropy, dataset=data, steps=1000) as run:
            for step in run.steps:
                loss = run.loss(ids_of(step))  # cross_entropy(model, load_batch(data, ids))
                optimizer.zero_grad(); loss.backward(); optimizer.step()

Hooks do the rest: before the step they read the hyperparameters as used, after it they count it
and keep the state. A process that is killed loses at most the open segment; started again with
`resume=True`, the loop goes on from the last whole one, provided that its batches and learning
rates are functions of the step.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, TypeVar, overload

from torch import Tensor, nn
from torch.optim import Optimizer

from auditspec.artifacts.datasets import Dataset
from auditspec.errors import RecordError
from auditspec.record.commitment import Commitment
from auditspec.record.describe import (
    check_factory,
    check_same_groups,
    function_ref,
    is_compiled,
    named_datasets,
    refuse_compiled_since,
    refuse_stage_id,
    refuse_unrecordable,
)
from auditspec.record.describe_optimizer import groups_of, inner_optimizer
from auditspec.record.extension import BoundExtend, Extend, bound
from auditspec.record.format import (
    RecordHeader,
    StageHeader,
    first_segment,
    stage_folder,
)
from auditspec.record.plan import Plan
from auditspec.record.state import (
    State,
    device_of,
    is_sharded,
    restore,
    set_random_state,
)
from auditspec.record.trajectory import StageTrajectory
from auditspec.recorder.committed import CommittedStage
from auditspec.recorder.committing import commit
from auditspec.recorder.data_parallel import Replicas, plain
from auditspec.recorder.declaration import (
    Before,
    DeclaredStage,
    refuse_another_stage,
    stage_header,
)
from auditspec.recorder.destination import Destination
from auditspec.recorder.events import Objective, OpenStage, Source, StepMade
from auditspec.recorder.extending import Extended, extension_of, refuse_to_extend
from auditspec.recorder.files_read import TrainingReads
from auditspec.recorder.joins import ModelChange
from auditspec.recorder.main_guard import refuse_training_on_import
from auditspec.recorder.opening import arithmetic_now, begun_header, fresh_header
from auditspec.recorder.probe import Probe
from auditspec.recorder.ranks import Ranks
from auditspec.recorder.reproduction import Reproduction
from auditspec.recorder.resume import drop_after, last_whole_step
from auditspec.recorder.self_check import SelfCheck, wanted
from auditspec.recorder.sharded import Shards, put_away
from auditspec.recorder.stage import StageRecorder
from auditspec.recorder.states import States
from auditspec.recorder.torch_hooks import TorchHooks
from auditspec.recorder.writer import StageWriter, finish_manifest, write_header
from auditspec.recorder.writer_thread import Background

S = TypeVar("S", bound=Source)


class Recorder:
    """Writes a training record (docs/record.md) while a plain PyTorch loop trains.

    Args:
        folder: where the record goes; created if it is not there. Or a URL in a store: then it is written in
            auditspec's cache, and put into the store stage by stage.
        model: the model that is trained, in place; on several processes, the DistributedDataParallel around
            it, or what `fully_shard` was given, on every rank (docs/record.md).
        every: steps between recorded states. 1 records every state (dense); `"boundaries"` keeps
            the states at the stages' ends and no steps.
        factory: () -> model, the function that built `model`.
        load_batch: (dataset, ids) -> batch; None where every batch is recorded as tensors.
        resume: go on with the record that stands in `folder`, if there is one.
        self_check: re-run the first steps of every stage at once in a fresh process, and refuse a record
            that will not hold; the environment variable AUDITSPEC_SELF_CHECK=0 turns it off.

    Raises:
        RecordError: if a record is there and `resume` is false, if it was made by other code or
            for another model, or if the model cannot be recorded (wrapped models, and otherwise sharded ones).
    """

    def __init__(
        self,
        folder: str | Path,
        model: nn.Module,
        *,
        factory: Callable[[], nn.Module],
        load_batch: Callable[[Any, Any], Any] | None = None,
        every: int | Literal["boundaries"] = 50,
        resume: bool = False,
        self_check: bool = True,
    ) -> None:
        put_away(model)
        self._ranks = Ranks.here(sharded=is_sharded(model))
        self._destination: Destination | None = None
        """Of the rank that writes."""
        self.folder = self._ranks.led(partial(self._go_to, folder, resume))
        self.wrapper = model
        """What `run.loss` calls; to be set anew where the model was extended and wrapped again."""
        self.model = model = plain(model)
        self.load_batch = load_batch
        self.reproduction: Reproduction | None = None
        """Where the run that is recorded is made again: sees its steps, and keeps trainers from saving."""
        self._self_check = wanted(self_check)
        refuse_training_on_import()
        refuse_unrecordable(model, sharded=self._ranks.sharded)
        fresh = fresh_header(model, self._ranks, every, factory, load_batch)
        self._reads = TrainingReads(self.folder)
        with self._reads.during("factory"):
            self._ranks.led(partial(check_factory, factory, model, fresh))
        self._reads.name(factory)
        self._factory = factory
        self._compiled = is_compiled(model)
        self._extensions: list[BoundExtend] = []
        self._data: set[Path] = set()
        self._paths: dict[str, Path] = {}
        """Of the data sets so far, by name."""
        self._model_change: ModelChange | None = None
        self.header = self._ranks.led(partial(begun_header, self.folder, fresh, resume))
        self._reads.add(self.header.reads)
        self._background = Background()
        self._last: State | None = None
        self._next_stage = 0
        self._open: str | None = None
        """Id of the stage that is open."""
        self._committed: CommittedStage | None = None
        """What was committed to for the next stage."""

    def __enter__(self) -> Recorder:
        return self

    def _go_to(self, place: str | Path, resume: bool) -> Path:
        """Where the record is written."""
        self._destination = Destination(place, resume=resume)
        return self._destination.folder

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if kind is None:
            self.finish()
        else:
            self._reads.stop()
            self._background.stop()
            if self._destination is not None:
                self._destination.stop()

    def extend(self, change: Extend, *, dataset: Dataset | Sequence[Dataset] = ()) -> nn.Module:
        """Change the model before the next stage: a new head, adapters, a frozen copy, a wrapper.

        Call it before the optimizer is made. Re-runs call the function too. It is also called on
        models with other values, to find which of the tensors that it makes depend on those that it
        finds: in a counterfactual those are made anew, and all others begin as they did.

        Args:
            change: (model) -> None, a function at the top of a module that changes it in place; or one
                that gives the model that is trained from then on, as `get_peft_model` does.
            dataset: data sets of the next stage that the function is given after the model, such as
                those whose outputs of a reference model it keeps in a buffer.

        Returns:
            The model that is trained from now on, which is `Recorder.model` too.

        Raises:
            RecordError: if a stage is open, if the model was changed since the last one already, or
                if the function cannot be repeated: it does something else to a model that the
                factory built, makes other values of the same ones, or keeps some that depend on the
                trained ones outside parameters and buffers.
        """
        refuse_to_extend(self._open, self._model_change, sharded=self._ranks.sharded)
        ref = function_ref(change)
        datasets = named_datasets(dataset)
        self._data.update(data.path for data in datasets.values())
        given = list(datasets.values())
        frozen = self.header.stages[self._next_stage - 1].frozen if self._next_stage else None
        extension = extension_of(
            self.model, ref, bound(change, given), self._factory, self._extensions, frozen
        )
        with self._reads.during("extend"):
            extended = Extended.by(extension, self.model)
        self.model = self.wrapper = extended.made.model
        self._model_change = extended.recorded(ref, given)
        self._extensions.append(extension.extend)
        self._reads.name(change)
        return self.model

    def commit(
        self,
        stage_id: str,
        optimizer: Optimizer,
        objective: Objective,
        plan: Plan,
        *,
        code: str | Path,
        dataset: Dataset | Sequence[Dataset] = (),
        clip_norm: float | None = None,
    ) -> Commitment:
        """Commit to the next stage; every step that it makes is then held against the plan.

        Call it right before the stage, with the seeds set, and seal what it gives (`seal_commitment`,
        `auditspec record commit`) before the first step. Nothing may draw random numbers in between.

        Args:
            stage_id: the stage's id.
            optimizer: of the stage, as it begins.
            objective: of the stage.
            plan: its steps.
            code: the file or folder that the spec will name as its code.
            dataset: the stage's data sets; rows of the plan are those of the first, unless it says otherwise.
            clip_norm: of the stage.

        Raises:
            RecordError: if the stage cannot be recorded, or the plan is none of rows.
            EvidenceError: if the code cannot be read.
        """
        inner = inner_optimizer(optimizer)
        steps = len(plan.batches)
        declared = DeclaredStage(stage_id, inner, objective, steps, dataset, clip_norm)
        states = self._states(inner)
        before = Before(self.header, self._next_stage, self._last, self._model_change, states)

        def made() -> Commitment:
            committed = commit(declared, plan, Path(code), self.model, before, self.folder)
            self._committed = committed
            return committed.commitment

        return self._ranks.led(made, states.serve)

    @overload
    def stage(
        self,
        stage_id: str,
        optimizer: Optimizer,
        objective: Objective,
        *,
        steps: int,
        dataset: Dataset | Sequence[Dataset] = (),
        clip_norm: float | None = None,
    ) -> AbstractContextManager[TorchHooks]: ...

    @overload
    def stage(
        self,
        stage_id: str,
        optimizer: Optimizer,
        objective: Objective,
        *,
        steps: int,
        dataset: Dataset | Sequence[Dataset] = (),
        clip_norm: float | None = None,
        source: Callable[[OpenStage], S],
    ) -> AbstractContextManager[S]: ...

    def stage(
        self,
        stage_id: str,
        optimizer: Optimizer,
        objective: Objective,
        *,
        steps: int,
        dataset: Dataset | Sequence[Dataset] = (),
        clip_norm: float | None = None,
        source: Callable[[OpenStage], Source] = TorchHooks,
    ) -> AbstractContextManager[Source]:
        """Record one stage of `steps` optimizer steps; what is entered is the stage's source.

        Whether the optimizer's state was reset, carried, or given is read off the optimizer: it has
        none, exactly what the stage before left, or some of another origin.

        Args:
            stage_id: the stage's id, as the spec will name it: letters, digits, '.', '_' and '-'.
            optimizer: any optimizer over parameters of the model: a class of torch.optim, or one that
                stands at the top of a module of the training code; a wrapper is taken off.
            objective: (model, batch) -> scalar loss.
            steps: optimizer steps that the stage will make.
            dataset: the data sets that the ids point into; the first is the default.
            clip_norm: the largest gradient norm, where the loop calls `clip_grad_norm_`.
            source: hears the steps; `TorchHooks` for a plain PyTorch loop.

        Raises:
            RecordError: if the stage cannot be recorded, if it differs from what a resumed record
                says, if the disk is too small for it, or if it ends after another number of steps.
        """
        inner = inner_optimizer(optimizer)
        declared = DeclaredStage(stage_id, inner, objective, steps, dataset, clip_norm)
        return self._record(declared, source)

    @contextmanager
    def _record(
        self, declared: DeclaredStage, source: Callable[[OpenStage], Source]
    ) -> Iterator[Source]:
        if self._open is not None:
            raise RecordError(
                f"stage '{self._open}' is still open", "leave it before the next begins"
            )
        index, change = self._next_stage, self._model_change
        datasets, resumed = named_datasets(declared.dataset), index < len(self.header.stages)
        states = self._states(declared.optimizer)
        led = partial(self._ranks.led, serve=states.serve)
        header = led(partial(self._declare, index, declared, datasets, states))
        folder = self.folder / stage_folder(index, header.id)
        start, drawn = 0, dict(change.generators) if change else {}
        if resumed:
            start, drawn = self._restore(folder, index, declared.optimizer, drawn)
        writer = StageWriter(folder, self.header, self._background)
        told = partial(self._change_stage, index)
        recorder = StageRecorder(header, self.model, declared.optimizer, writer, start, told)
        kind = Shards if self._ranks.sharded else Replicas
        replicas = kind(self._ranks, self.model, header, writer, start, told, states.serve)
        check = self._check(index, header, declared)
        committed, self._committed = self._committed, None
        hear = recorder.hear if committed is None else committed.hearing(recorder)
        stage = OpenStage(
            header=header,
            model=self.model,
            called=self.wrapper,
            optimizer=declared.optimizer,
            states=states,
            objective=declared.objective,
            load_batch=check.loading(self.load_batch),
            datasets=datasets,
            start=start,
            tell=replicas.telling(check.telling(hear)),
            passing=replicas.passing,
            skip=recorder.skip,
            stop=recorder.stop,
        )
        if self.reproduction is not None:
            stage = self._seen(stage, recorder, self.reproduction)
        heard = source(stage)

        self._open, self._model_change = header.id, None
        try:
            if header.complete:
                yield heard
            else:
                replicas.begin()
                led(partial(self._begin, recorder, heard, drawn, committed))
                heard.attach()
                check.begin(start, notes=self._ranks.size == 1)
                yield heard
                replicas.end(recorder.skipped)
                self.header = led(partial(self._end, index, folder, recorder, check))
        finally:
            heard.detach()
            replicas.detach()
            check.end()
            self._open = None
        self._next_stage += 1

    def _states(self, optimizer: Optimizer) -> States:
        """States of the run between two steps."""
        put_away(self.model)
        return States(self._ranks, self.model, optimizer, self.folder)

    @staticmethod
    def _begin(
        recorder: StageRecorder,
        heard: Source,
        drawn: dict[str, Tensor],
        committed: CommittedStage | None,
    ) -> None:
        """Begin a stage, with the generators that belong to its first state."""
        recorder.begin(heard, drawn)
        if committed is not None and heard.stage.start == 0:
            committed.require_begun(recorder.header, heard.state())

    def _end(
        self, index: int, folder: Path, recorder: StageRecorder, check: SelfCheck
    ) -> RecordHeader:
        """End a stage whose steps were made; the record's header then."""
        self._last = recorder.end()
        check.finish()
        reads = self._reads.files(self._data)
        self.header = self.header.model_copy(update={"reads": reads})
        self._change_stage(index, complete=True)
        if self._destination is not None:
            self._background.submit(partial(self._destination.stage_ended, folder))
        return self.header

    def _seen(
        self, stage: OpenStage, recorder: StageRecorder, reproduction: Reproduction
    ) -> OpenStage:
        """A stage whose beginning and steps a reproduction sees before they are recorded."""

        def tell(event: StepMade) -> None:
            with self._reads.during(None):
                reproduction.step(stage, recorder.made + 1)
            stage.tell(event)

        if self._next_stage == 0:  # its script was given the recorder, and sets these after that
            self._save(**arithmetic_now())
        with self._reads.during(None):
            reproduction.begin(stage)
        return replace(stage, tell=tell)

    def _check(self, index: int, header: StageHeader, declared: DeclaredStage) -> SelfCheck:
        """The self-check of a stage, which checks nothing where it is not wanted, or was made.

        Raises:
            RecordError: if the training code trains when it is imported.
        """
        on = self._self_check and self.header.every != "boundaries" and header.self_check is None
        if on:
            refuse_training_on_import(self._factory, self.load_batch, declared.objective)
        return SelfCheck(
            self.folder,
            header,
            min(first_segment(self.header.every), header.steps) if on else 0,
            Probe(self.model, declared.optimizer),
            self._paths,
            submit=self._background.submit,
            noted=lambda checked: self._change_stage(index, self_check=checked),
        )

    def _declare(
        self,
        index: int,
        declared: DeclaredStage,
        datasets: Mapping[str, Dataset],
        states: States,
    ) -> StageHeader:
        """The header of a stage that begins: the recorded one, or a new one, which is written.

        Raises:
            RecordError: if the stage cannot be recorded, or is not the one that is recorded.
        """
        stages = self.header.stages
        refuse_stage_id(declared.stage_id, [stage.id for stage in stages[:index]])
        refuse_unrecordable(self.model, sharded=self._ranks.sharded)
        refuse_compiled_since(self.model, self._compiled)
        self._data.update(data.path for data in datasets.values())
        self._paths |= {name: data.path for name, data in datasets.items()}
        before = Before(self.header, index, self._last, self._model_change, states)
        header = stage_header(declared, self.model, datasets, before)
        if index < len(stages):
            refuse_another_stage(stages[index], header, self.folder)
            groups = groups_of(self.model, declared.optimizer)
            check_same_groups(stages[index].groups, tuple(groups))
            return stages[index]
        self._save(stages=(*stages, header))
        return header

    def finish(self) -> None:
        """Close the record: mark it complete and write the manifest of its files.

        Raises:
            RecordError: if a resumed record has stages that were not entered again.
            OSError: if the disk is full.
        """
        self._ranks.led(self._finish)
        self._reads.stop()
        self._background.stop()

    def _finish(self) -> None:
        if self._next_stage != len(self.header.stages):
            missing = self.header.stages[self._next_stage].id
            raise RecordError(
                f"stage '{missing}' of the record was not run again", "resume with every stage"
            )
        if not self.header.complete:
            self._save(complete=True, reads=self._reads.files(self._data))
        self._background.wait()
        finish_manifest(self.folder)
        if self._destination is not None:
            self._destination.finish()

    def _restore(
        self, folder: Path, index: int, optimizer: Optimizer, drawn: dict[str, Tensor]
    ) -> tuple[int, dict[str, Tensor]]:
        """Put the last whole state of a recorded stage into model and optimizer.

        Returns:
            Its step, and the generators that belong to its first state: those of `drawn` where the
            record holds no state.
        """
        trajectory = StageTrajectory(folder, self.header.stages[index], self.header)
        if trajectory.header.complete:
            start = trajectory.header.steps
        else:
            start = last_whole_step(folder)
            drop_after(folder, start)
        if start == 0 and 0 not in trajectory.state_steps:
            return 0, drawn
        state = trajectory.state(start)
        restore(state, self.model, optimizer)
        set_random_state(state.rng, device_of(self.model))
        self._last = state
        return start, state.generators

    def _change_stage(self, index: int, **changes: Any) -> None:
        stages = list(self.header.stages)
        stages[index] = stages[index].model_copy(update=changes)
        self._save(stages=tuple(stages))

    def _save(self, **changes: Any) -> None:
        self.header = self.header.model_copy(update=changes)
        self._background.submit(partial(write_header, self.folder, self.header))
