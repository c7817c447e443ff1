"""A Trainer around the model of a re-run: the loss of a recorded batch is that of its own `compute_loss`."""

from __future__ import annotations

import contextlib
import io
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest.mock import patch

import torch
from accelerate.state import AcceleratorState
from torch import Tensor, nn
from transformers import (
    PrinterCallback,
    ProgressCallback,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)

from auditspec.errors import EstimationError
from auditspec.integrations.hf_refusals import forms
from auditspec.integrations.model_attributes import Attributes
from auditspec.record.batches import ITEMS
from auditspec.record.generators import undisturbed
from auditspec.record.state import device_of
from auditspec.recorder.reproduction import Reproduction

BuildTrainer = Callable[[nn.Module], Trainer]


class _ReadyError(Exception):
    """Training is about to begin."""


class _StopAtBegin(TrainerCallback):
    def on_train_begin(self, *args: Any, **given: Any) -> None:
        raise _ReadyError


class Rebuilt:
    """A trainer around the model of a re-run, as its `train()` stands before the first step.

    The model is left as it was; what the trainer changed about it is put on for each loss. Nothing is
    saved, reported, or drawn from the process's random numbers.
    """

    def __init__(self, build: BuildTrainer, model: nn.Module) -> None:
        device, attributes, before = device_of(model), Attributes(model), forms(model)
        try:
            with undisturbed(device), _aside(device):
                AcceleratorState._reset_state()
                trainer = build(model)
                if not isinstance(trainer, Trainer) or trainer.model is not model:
                    raise EstimationError(
                        f"{build.__name__} builds no trainer around the model that it is given",
                        "audit with the code that trained the model",
                    )
                _keep_activations(trainer.args)
                trainer.callback_handler.callbacks = [_StopAtBegin()]
                with contextlib.suppress(_ReadyError):
                    trainer.train()
            self._changes = attributes.changes()
        finally:
            attributes.restore()
            model.to(device)
        if forms(model) != before:
            raise EstimationError(
                f"{build.__name__} builds a trainer that changes the model",
                "audit with the code that trained the model",
            )
        trainer.optimizer = trainer.lr_scheduler = None
        self._trainer = trainer
        self._model = model

    def loss(self, batch: Mapping[str, Any]) -> Tensor:
        """What `compute_loss` gives of a recorded batch."""
        inputs = dict(batch)
        items = inputs.pop(ITEMS, None)
        with self._changes.on():
            loss: Any = self._trainer.compute_loss(self._model, inputs, num_items_in_batch=items)
        for metrics in getattr(self._trainer, "_metrics", {}).values():
            metrics.clear()  # TRL's, which only logging would empty
        found: Tensor = loss
        return found


def _keep_activations(args: Any) -> None:
    """Compute no activation twice, which saves memory, changes no number, and has no second derivative.

    The names are those of transformers from 5.24 on, and before.
    """
    for name in ("activation_checkpointing", "gradient_checkpointing"):
        if getattr(args, name, None):
            setattr(args, name, False)


@contextmanager
def nothing_saved() -> Iterator[None]:
    """Build and run trainers that write no folder and ask no hub."""
    with (
        patch.object(TrainingArguments, "should_save", False),
        patch.object(Trainer, "init_hf_repo", nothing),
    ):
        yield


def train_beside(trainer: Any, reproduction: Reproduction) -> None:
    """Have a trainer that trains again tell when it would save, print nothing, and report to no service."""
    for callback in [*trainer.callback_handler.callbacks]:
        reports = type(callback).__module__.startswith("transformers.integrations")
        if reports or isinstance(callback, PrinterCallback | ProgressCallback):
            trainer.remove_callback(callback)

    def save(*args: Any, **options: Any) -> None:
        reproduction.save()

    trainer._save_checkpoint = save
    reproduction.arguments = vars(trainer.args)


@contextmanager
def _aside(device: torch.device) -> Iterator[None]:
    """Build a trainer that leaves no trace outside the process, shows no bar, and stays on a device."""
    with ExitStack() as stack:
        stack.enter_context(nothing_saved())
        stack.enter_context(contextlib.redirect_stderr(io.StringIO()))
        stack.enter_context(warnings.catch_warnings(action="ignore"))
        if device.type == "cpu":
            stack.enter_context(patch.object(torch.cuda, "is_available", _never))
        yield


def _never() -> bool:
    return False


def nothing(*args: Any, **options: Any) -> None:
    """In place of a method that is not to do anything."""
