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

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, TypeVar, overload

from torch import nn
from torch.optim import Optimizer

from auditspec.artifacts.datasets import Dataset
from auditspec.record.commitment import Commitment
from auditspec.record.describe import (
    check_factory,
    function_ref,
    is_compiled,
    named_datasets,
    refuse_unrecordable,
)
from auditspec.record.describe_optimizer import inner_optimizer
from auditspec.record.extension import Extend, bound
from auditspec.record.format import RecordHeader
from auditspec.record.plan import Plan
from auditspec.record.state import is_sharded
from auditspec.recorder.committing import commit
from auditspec.recorder.data_parallel import plain
from auditspec.recorder.declaration import DeclaredStage
from auditspec.recorder.destination import Destination
from auditspec.recorder.events import Objective, OpenStage, Source
from auditspec.recorder.extending import Extended, extension_of, refuse_to_extend
from auditspec.recorder.files_read import TrainingReads
from auditspec.recorder.fully_shard import put_away
from auditspec.recorder.main_guard import refuse_training_on_import
from auditspec.recorder.open_record import OpenRecord
from auditspec.recorder.opening import begun_header, fresh_header
from auditspec.recorder.ranks import Ranks
from auditspec.recorder.recording import recording
from auditspec.recorder.reproduction import Reproduction
from auditspec.recorder.self_check import wanted
from auditspec.recorder.torch_hooks import TorchHooks

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
        ranks = Ranks.here(sharded=is_sharded(model))
        destination: list[Destination] = []

        def go() -> Path:
            destination.append(Destination(folder, resume=resume))
            return destination[0].folder

        place, inner = ranks.led(go), plain(model)
        refuse_training_on_import()
        refuse_unrecordable(inner, sharded=ranks.sharded)
        fresh = fresh_header(inner, ranks, every, factory, load_batch)
        reads = TrainingReads(place)
        with reads.during("factory"):
            ranks.led(partial(check_factory, factory, inner, fresh))
        reads.name(factory)
        self._record = OpenRecord(
            folder=place,
            destination=destination[0] if destination else None,
            header=ranks.led(partial(begun_header, place, fresh, resume)),
            ranks=ranks,
            model=inner,
            wrapper=model,
            factory=factory,
            load_batch=load_batch,
            reads=reads,
            compiled=is_compiled(inner),
            self_check=wanted(self_check),
        )
        reads.add(self._record.header.reads)

    @property
    def folder(self) -> Path:
        """Where the record is written."""
        return self._record.folder

    @property
    def header(self) -> RecordHeader:
        """Of the record so far."""
        return self._record.header

    @property
    def model(self) -> nn.Module:
        """That is trained, as a re-run builds it: without a wrapper of several processes."""
        return self._record.model

    @property
    def load_batch(self) -> Callable[[Any, Any], Any] | None:
        """As it was given."""
        return self._record.load_batch

    @property
    def wrapper(self) -> nn.Module:
        """What `run.loss` calls; to be set anew where the model was extended and wrapped again."""
        return self._record.wrapper

    @wrapper.setter
    def wrapper(self, wrapper: nn.Module) -> None:
        self._record.wrapper = wrapper

    @property
    def reproduction(self) -> Reproduction | None:
        """Where the run that is recorded is made again: sees its steps, and keeps trainers from saving."""
        return self._record.reproduction

    @reproduction.setter
    def reproduction(self, reproduction: Reproduction | None) -> None:
        self._record.reproduction = reproduction

    def __enter__(self) -> Recorder:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if kind is None:
            self.finish()
        else:
            self._record.reads.stop()
            self._record.background.stop()
            if self._record.destination is not None:
                self._record.destination.stop()

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
        record = self._record
        refuse_to_extend(record.stage, record.change, sharded=record.ranks.sharded)
        ref = function_ref(change)
        datasets = named_datasets(dataset)
        record.data.update(data.path for data in datasets.values())
        given = list(datasets.values())
        frozen = record.header.stages[record.next_stage - 1].frozen if record.next_stage else None
        extension = extension_of(
            record.model, ref, bound(change, given), record.factory, record.extensions, frozen
        )
        with record.reads.during("extend"):
            extended = Extended.by(extension, record.model)
        record.model = record.wrapper = extended.made.model
        record.change = extended.recorded(ref, given)
        record.extensions.append(extension.extend)
        record.reads.name(change)
        return record.model

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
        record, inner = self._record, inner_optimizer(optimizer)
        steps = len(plan.batches)
        declared = DeclaredStage(stage_id, inner, objective, steps, dataset, clip_norm)
        states = record.states(inner)
        before = record.before(states)

        def made() -> Commitment:
            record.committed = commit(
                declared, plan, Path(code), record.model, before, record.folder
            )
            return record.committed.commitment

        return states.led(made)

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
        return recording(self._record, declared, source)

    def finish(self) -> None:
        """Close the record: mark it complete and write the manifest of its files.

        Raises:
            RecordError: if a resumed record has stages that were not entered again.
            OSError: if the disk is full.
        """
        self._record.ranks.led(self._record.finish)
        self._record.reads.stop()
        self._record.background.stop()
