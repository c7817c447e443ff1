"""A Trainer's training, told to a recorder: its stage, every batch with its rows, and every loss."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any
from unittest.mock import patch

import torch
from torch import nn
from transformers import TrainerCallback

from auditspec.artifacts.datasets import Dataset
from auditspec.errors import EvidenceError, RecordError
from auditspec.integrations.first_batch import OtherRowsError, refuse_other_rows
from auditspec.integrations.hf_rebuilt import nothing
from auditspec.integrations.hf_refusals import refuse_batch
from auditspec.integrations.numbered_rows import number_rows, take_rows
from auditspec.record.batches import ITEMS
from auditspec.record.format import stage_folder, steps_file
from auditspec.record.matching import holds_rows
from auditspec.recorder.events import Objective
from auditspec.recorder.recorder import Recorder
from auditspec.recorder.resume import drop_after, last_whole_step

OTHERWISE = (
    "pass rows=: the row number of each example of train_dataset, where it is not its position; and let load_batch "
    "make of rows what the trainer's collate function makes. Pass whole=True where that draws random numbers, or "
    "leave out dataset="
)
"""What to do where `load_batch` makes another batch than a trainer."""


class Hearing(TrainerCallback):
    """Opens the recorder's stage when training begins, and tells it of every batch and its loss."""

    def __init__(
        self,
        recorder: Recorder,
        stage: str,
        objective: Objective,
        dataset: Dataset | Sequence[Dataset],
        stack: ExitStack,
    ) -> None:
        self._recorder = recorder
        self._stage = stage
        self._objective = objective
        self._dataset = dataset
        self._stack = stack
        self._rows: tuple[Sequence[int] | None] | None = None
        self._run: Any = None
        self._compares = recorder.load_batch is not None
        """Whether the next batch is still to be held against its rows."""

    def listen(
        self, trainer: Any, rows: tuple[Sequence[int] | None] | None, *, compares: bool
    ) -> None:
        """Be called by a trainer; with `rows`, its batches carry their numbers, and the first is held against them.

        A stage that a resumed record holds whole is not trained again.
        """
        self._rows = rows
        self._compares = compares and self._compares
        recorded = self._recorded
        if recorded is not None and recorded.complete:
            trainer.create_optimizer()
            with self._recorder.stage(
                self._stage,
                trainer.optimizer,
                self._objective,
                steps=recorded.steps,
                dataset=self._dataset,
                clip_norm=trainer.args.max_grad_norm or None,
            ) as self._run:
                pass
            self._stack.enter_context(patch.object(trainer, "train", nothing))
            return
        trainer.add_callback(self)
        self._stack.callback(trainer.remove_callback, self)
        compute_loss = trainer.compute_loss

        def heard(model: nn.Module, inputs: Any, *args: Any, **options: Any) -> Any:
            if self._run is None or not model.training or not torch.is_grad_enabled():
                return compute_loss(model, inputs, *args, **options)
            rows = None if self._rows is None else take_rows(inputs)
            batch = dict(inputs)
            if rows is not None and self._compares:
                self._compare(batch, rows)
            if options.get(ITEMS) is not None:
                times = _times(trainer)
                batch[ITEMS] = options[ITEMS] if times == 1 else options[ITEMS] / times
            refuse_batch(batch)
            self._run.batch(rows, tensors=batch)
            loss = compute_loss(model, inputs, *args, **options)
            self._run.watch(loss[0] if isinstance(loss, tuple) else loss)
            return loss

        self._stack.enter_context(patch.object(trainer, "compute_loss", heard))

    def _compare(self, batch: dict[str, Any], rows: Sequence[int]) -> None:
        """Hold the first batch against the rows that it is said to hold.

        Raises:
            OtherRowsError: if `load_batch` makes another one of them.
        """
        load_batch: Any = self._recorder.load_batch
        dataset: Any = self._dataset
        refuse_other_rows(batch, load_batch, dataset, rows, holds_rows, OTHERWISE)
        self._compares = False

    def on_train_begin(self, args: Any, state: Any, control: Any, **given: Any) -> None:
        """Open the stage; the optimizer is there, and no step was made."""
        if self._run is not None:
            raise RecordError(
                f"stage '{self._stage}' was trained already", "record each train() as a stage"
            )
        if given["model"] is not self._recorder.model:
            raise RecordError(
                f"stage '{self._stage}': the trainer trains another model than the recorder's",
                "build it around the model that it is given",
            )
        recorded = self._recorded
        steps = state.max_steps - state.global_step if recorded is None else recorded.steps
        made = state.global_step - (state.max_steps - steps)
        if recorded is not None:
            self._go_back_to(made)
        if self._rows is not None:
            number_rows(given["train_dataloader"], *self._rows)
        self._run = self._stack.enter_context(
            self._recorder.stage(
                self._stage,
                given["optimizer"],
                self._objective,
                steps=steps,
                dataset=self._dataset,
                clip_norm=args.max_grad_norm or None,
            )
        )

    def on_train_end(self, args: Any, state: Any, control: Any, **given: Any) -> None:
        """Count the steps that were not made, where a callback ended the training early."""
        self._run.stage.stop(state.max_steps - state.global_step)

    def finish(self, trainer: Any) -> None:
        """Be sure that the trainer trained.

        Raises:
            RecordError: if it did not.
        """
        if self._run is None:
            raise RecordError(
                f"stage '{self._stage}': the trainer did not train", "call trainer.train() inside"
            )

    @property
    def _recorded(self) -> Any:
        """The stage's header in a record that is resumed; None for a new stage."""
        return next((s for s in self._recorder.header.stages if s.id == self._stage), None)

    def _go_back_to(self, step: int) -> None:
        """Let a resumed record end where the trainer's checkpoint goes on.

        Raises:
            RecordError: if the record has no part that ends there.
        """
        header = self._recorder.header
        index = [stage.id for stage in header.stages].index(self._stage)
        folder = self._recorder.folder / stage_folder(index, self._stage)
        whole = last_whole_step(folder)
        parts = [s for s in range(whole) if (folder / steps_file(s)).exists()]
        if step not in (*parts, whole):
            raise RecordError(
                f"stage '{self._stage}': the trainer goes on after step {step}, the record can only after "
                f"{', '.join(map(str, sorted({*parts, whole})))}",
                "resume from a checkpoint of one of those steps, or begin a new record",
            )
        drop_after(folder, step)


def _times(trainer: Any) -> int:
    """By what a trainer multiplies a loss that it divided by the count of a whole step, that of all ranks included.

    As `Trainer.compute_loss` does where `average_tokens_across_devices`; a re-run has one process, and multiplies by 1.
    """
    counted = trainer.model_accepts_loss_kwargs or trainer.compute_loss_func
    shared = trainer.args.average_tokens_across_devices and counted
    processes: int = trainer.accelerator.num_processes if shared else 1
    return processes


def are_numbered(
    trainer: Any, dataset: Dataset | Sequence[Dataset], rows: Sequence[int] | None
) -> bool:
    """Whether the batches' rows are those of one data set.

    Raises:
        OtherRowsError: if they are said to be, and cannot.
    """
    if not isinstance(dataset, Dataset):
        return False
    for option in ("packing", "shuffle_dataset"):
        if getattr(trainer.args, option, False):
            raise OtherRowsError(
                f"with {option}=True the trainer's examples are not the rows of '{dataset.name}'",
                "leave out dataset=: the batches are recorded whole, and the audit looks for their rows",
            )
    examples = trainer.train_dataset
    if rows is None:
        with contextlib.suppress(EvidenceError):  # no table: its rows are known to its reader only
            rows = range(len(dataset))
    if rows is not None and hasattr(examples, "__len__") and len(rows) != len(examples):
        raise OtherRowsError(
            f"the trainer's train_dataset has {len(examples)} examples, '{dataset.name}' {len(rows)} rows",
            "pass rows=: the row number of each example; or leave out dataset=",
        )
    return True
