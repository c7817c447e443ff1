"""Record what a Hugging Face `Trainer` trains, or TRL's trainers for supervised tuning and preferences.

::

    @trainer_objective
    def sft(model):  # builds the trainer around a model; the objective is its own compute_loss
        return SFTTrainer(model, SFTConfig(...), train_dataset=rows("sft"), processing_class=tokenizer())

    with Recorder("record", model, factory=build_model, every=20) as recorder:
        with record(recorder, "sft", sft, dataset=data) as trainer:
            trainer.train()

A re-run builds the trainer again, around its own model, up to where `train()` would make the first step,
and asks its `compute_loss` for the loss of the recorded batches.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import lru_cache, partial, wraps
from typing import Any

from accelerate.state import AcceleratorState
from torch import Tensor, nn
from transformers import Trainer

from auditspec.artifacts.datasets import Dataset
from auditspec.errors import RecordError
from auditspec.integrations.hf_hearing import Hearing, are_numbered
from auditspec.integrations.hf_rebuilt import (
    BuildTrainer,
    Rebuilt,
    nothing_saved,
    train_beside,
)
from auditspec.integrations.hf_refusals import forms, refuse
from auditspec.integrations.model_attributes import Attributes
from auditspec.record.state import device_of
from auditspec.recorder.events import Objective
from auditspec.recorder.recorder import Recorder

REFERENCE = "reference"
"""Name of the submodule that `keep_reference` adds."""
MODELS = 4
"""Models around which an objective's trainer is kept; one that is asked about again later is built anew."""


def trainer_objective(build: BuildTrainer) -> Objective:
    """The loss that a trainer computes, as the objective of a stage: a decorator.

    Args:
        build: (model) -> the trainer around it, a function at the top of a module. A re-run calls it
            too, under random numbers of its own, and saves nothing.

    Returns:
        (model, batch) -> loss, of the same name. The batch is a dict of the inputs as they reach
        `compute_loss`, and `num_items_in_batch` where the trainer counts them.
    """
    built = lru_cache(maxsize=MODELS)(partial(Rebuilt, build))

    @wraps(build)
    def objective(model: nn.Module, batch: Any) -> Tensor:
        return built(model).loss(batch)

    return objective


@contextmanager
def record(
    recorder: Recorder,
    stage: str,
    objective: Objective,
    *,
    dataset: Dataset | Sequence[Dataset] = (),
    rows: Sequence[int] | None = None,
    whole: bool = False,
) -> Iterator[Trainer]:
    """Build a trainer around the recorder's model, and record its `train()` as one stage.

    What the trainer changes about the model besides its values (a patched forward, dropout that DPO
    switches off, autocast) ends with the block, so that the next stage does not depend on it.

    Args:
        recorder: of the run.
        stage: the stage's id, as the spec will name it.
        objective: made by `trainer_objective`.
        dataset: the data set whose rows the trainer's `train_dataset` holds, so that the record says
            which rows each batch was made of. Several, or none: the batches are recorded without.
        rows: row number of each example of `train_dataset`, where it is not its position.
        whole: leave out the comparison of the first batch with what `load_batch` makes of its rows, where
            examples or collation draw random numbers, as for masked language models.

    Raises:
        RecordError: if the trainer does what cannot be recorded, if `train_dataset` has another length
            than the data set (or `rows`) or other rows, or if `recorder.stage` refuses the stage.
    """
    model, again = recorder.model, recorder.reproduction
    attributes, before = Attributes(model), forms(model)
    with ExitStack() as stack:
        stack.callback(attributes.restore)
        if again is not None:
            stack.enter_context(nothing_saved())
        AcceleratorState._reset_state()  # it keeps one precision a process, this trainer may have another
        trainer = builder_of(objective)(model)
        refuse(trainer, model, before, recorder.header.layout.world_size)
        if str(device_of(model)) != recorder.header.device:
            raise RecordError(
                f"the trainer moved the model to {device_of(model)}, the record says {recorder.header.device}",
                "move the model there before it is given to the recorder",
            )
        numbered = are_numbered(trainer, dataset, rows)
        hearing = Hearing(recorder, stage, objective, dataset, stack)
        hearing.listen(trainer, (rows,) if numbered else None, compares=not whole)
        if again is not None:
            train_beside(trainer, again)
        yield trainer
        hearing.finish(trainer)


def keep_reference(model: Any) -> None:
    """Keep a frozen copy of a model in the model itself, as the reference model of DPO: for `Recorder.extend`.

    The copy is part of every recorded state, and in a counterfactual it is another one. It computes in
    eval mode, whatever the mode of the model around it. An earlier reference gives way.

    ::

        def add_reference(model):  # at the top of a module of the training code
            keep_reference(model)

        recorder.extend(add_reference)
    """
    if hasattr(model, REFERENCE):
        delattr(model, REFERENCE)
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    reference = copy.deepcopy(base).requires_grad_(False)
    reference.register_forward_pre_hook(_to_eval)
    reference.register_forward_hook(_to_train, always_call=True)
    model.add_module(REFERENCE, reference)


def reference_of(model: nn.Module) -> Any:
    """The reference model that `keep_reference` added: `DPOTrainer(model, ref_model=reference_of(model), …)`.

    Raises:
        RecordError: if there is none.
    """
    reference = getattr(model, REFERENCE, None)
    if not isinstance(reference, nn.Module):
        raise RecordError(
            "the model holds no reference model",
            "recorder.extend(…) with a function that calls keep_reference, before the stage",
        )
    return reference


def _to_eval(reference: nn.Module, args: Any) -> None:
    reference.eval()


def _to_train(reference: nn.Module, args: Any, outputs: Any) -> None:
    reference.train()


def builder_of(objective: Objective) -> BuildTrainer:
    """The function that an objective was made of: (model) -> trainer.

    Raises:
        RecordError: if it was not made by `trainer_objective`.
    """
    build: BuildTrainer | None = getattr(objective, "__wrapped__", None)
    if build is None:
        raise RecordError(
            f"{getattr(objective, '__name__', objective)!r} builds no trainer",
            "decorate the function that builds it with @trainer_objective",
        )
    return build
