"""Record what a Lightning `Trainer` trains.

::

    def objective(model, batch):  # at the top of a module; `module:objective` in the spec
        return training_step(model, batch)

    trainer = Trainer(..., callbacks=[RecordStage(recorder, "tune", objective, dataset=data)])
    trainer.fit(recorder.model, loader)

The objective is the module's own `training_step`. It is heard where Lightning calls it: with the batch on its
device, under its autocast, right before it draws random numbers. The closure that Lightning hands to
`optimizer.step` is run by the recorder, once, right before the step.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Mapping
from contextlib import AbstractContextManager, contextmanager
from functools import cache, partial, wraps
from typing import TYPE_CHECKING, Any

from lightning.pytorch import callbacks
from lightning.pytorch.callbacks import (
    Callback,
    Checkpoint,
    GradientAccumulationScheduler,
    StochasticWeightAveraging,
)
from lightning.pytorch.plugins.precision import MixedPrecision, Precision
from lightning.pytorch.utilities.model_helpers import is_overridden
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset

from auditspec.artifacts.datasets import Dataset
from auditspec.errors import RecordError
from auditspec.integrations.loader import LoaderBatches, bare, noted_sampler
from auditspec.recorder.events import Objective, OpenStage
from auditspec.recorder.recorder import Recorder
from auditspec.recorder.torch_hooks import TorchHooks

if TYPE_CHECKING:
    from collections.abc import Iterator

    from lightning.pytorch import LightningModule, Trainer


def training_step(model: nn.Module, batch: Any) -> Tensor:
    """The loss that a module's own `training_step` gives, without a trainer.

    What it logs goes nowhere.

    Args:
        model: a LightningModule.
        batch: as its `training_step` takes it; the number of the batch is given as 0.

    Raises:
        RecordError: if it gives no loss, or reads the trainer, the epoch, or the step.
    """
    step: Any = model.training_step
    arguments = (batch, 0)[: len(inspect.signature(step).parameters)]
    with _without_trainer(model):
        return _loss_of(step(*arguments))


class RecordStage(Callback):
    """Records one `fit` as one stage.

    Rows are read off the loader's batch sampler, as `auditspec.integrations.loader.recorded` does; the number
    of steps, the clipping, the accumulation, and the precision are the trainer's.

    Args:
        recorder: whose model is fitted.
        stage_id: the stage's id, as the spec will name it.
        objective: (model, batch) -> loss, which calls `training_step`.
        dataset: whose row i is item i of the training loader's data set; None: the batches are recorded.
        whole: record the batches beside their rows, where the loader or the module changes them at random.
    """

    def __init__(
        self,
        recorder: Recorder,
        stage_id: str,
        objective: Objective,
        *,
        dataset: Dataset | None = None,
        whole: bool = False,
    ) -> None:
        self.recorder = recorder
        self.stage_id = stage_id
        self.objective = objective
        self.dataset = dataset
        self.whole = whole
        self._stage: AbstractContextManager[TrainerHooks] | None = None
        self._hooks: TrainerHooks | None = None
        """Of the open stage."""
        self._last_step = 0
        """The trainer's `global_step` after as many steps as the stage is to have."""

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Have the loaders note their rows from their first pass on, which begins before training does.

        A run that is made again (`Recorder.reproduction`) saves no checkpoints in the place of its own.
        """
        strategy: Any = trainer.strategy
        if self.recorder.reproduction is not None:
            made: Any = trainer
            made.callbacks = [c for c in _callbacks(trainer) if not isinstance(c, Checkpoint)]
            made.save_checkpoint = _save_nothing

        def process_dataloader(given: object) -> object:
            loader = type(strategy).process_dataloader(strategy, given)
            rows = self.dataset is not None and isinstance(loader, DataLoader)
            if rows and not isinstance(bare(loader).dataset, IterableDataset):
                noted_sampler(bare(loader))
            return loader

        strategy.process_dataloader = process_dataloader

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin the stage.

        Raises:
            RecordError: if the trainer trains in a way that cannot be recorded.
        """
        refuse(trainer, pl_module)
        if pl_module is not self.recorder.model:
            raise RecordError(
                "the trainer fits another model than the one that is recorded",
                "fit recorder.model",
            )
        (optimizer,) = trainer.optimizers
        clip, steps = trainer.gradient_clip_val, _steps(trainer)
        stage = self.recorder.stage(
            self.stage_id,
            optimizer,
            self.objective,
            dataset=self.dataset or (),
            steps=steps,
            clip_norm=float(clip) if clip else None,
            source=partial(TrainerHooks, trainer, self.whole),
        )
        self._hooks = stage.__enter__()
        self._stage, self._last_step = stage, trainer.global_step + steps
        opened = self._hooks.stage
        if opened.header.complete:  # a record that is resumed holds it, and has set the model
            trainer.should_stop = True
            trainer.fit_loop.min_epochs = trainer.fit_loop.epoch_loop.min_steps = None
        elif opened.start:
            error = RecordError(
                f"{opened.place(opened.start)}: a fit begins its order anew, and cannot go on in the middle",
                "record the stage again from its start, in a new folder",
            )
            self._end(error)
            raise error

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """End the stage; a trainer that stopped early made fewer steps than it was to."""
        if self._hooks is not None:
            self._hooks.stage.stop(self._last_step - trainer.global_step)
        self._end(None)

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        """Hear no more; the record then has the stage up to where it was interrupted."""
        self._end(exception)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Leave strategy and trainer as they were."""
        vars(trainer.strategy).pop("process_dataloader", None)
        vars(trainer).pop("save_checkpoint", None)

    def _end(self, error: BaseException | None) -> None:
        stage, self._stage, self._hooks = self._stage, None, None
        if stage is None:
            return
        if error is None:
            stage.__exit__(None, None, None)
            return
        try:
            stage.__exit__(type(error), error, error.__traceback__)
        except BaseException as same:
            if same is not error:
                raise


class TrainerHooks(TorchHooks):
    """Hears a trainer through its module's `training_step` and its optimizer.

    Args:
        trainer: that fits the stage's model.
        whole: record batches beside their rows.
        stage: what to hear.
    """

    def __init__(self, trainer: Trainer, whole: bool, stage: OpenStage) -> None:
        super().__init__(stage)
        self._trainer = trainer
        self._whole = whole
        self._loader: tuple[Any, LoaderBatches | None] = (None, None)
        """The present one, and what declares the batches of this epoch."""
        self._batch_idx = -1
        """Number, in its epoch, of the batch that was heard last."""

    def attach(self) -> None:
        """Put the hooks on, and hear every `training_step`."""
        super().attach()
        module: Any = self.stage.model
        step = module.training_step

        @wraps(step)
        def heard(batch: Any, *arguments: Any, **options: Any) -> Any:
            self._declare_batch(batch)
            self._note_autocast("objective")
            self._computing = True  # autocast that the step enters itself is its own business
            try:
                output = step(batch, *arguments, **options)
            finally:
                self._computing = False
            self.watch(_loss_of(output))
            return output

        module.training_step = heard

    def detach(self) -> None:
        """Take the hooks off."""
        vars(self.stage.model).pop("training_step", None)
        super().detach()

    def _declare_batch(self, batch: Any) -> None:
        """Declare the batch that `training_step` is given.

        Raises:
            RecordError: if the trainer left one out, so that nobody knows this one's rows.
        """
        loader, index = self._trainer.train_dataloader, self._trainer.fit_loop.batch_idx
        data = next(iter(self.stage.datasets.values()), None)
        before, batches = self._loader
        if batches is None or loader is not before or index <= self._batch_idx:  # another epoch
            batches = LoaderBatches(self, loader, data, whole=self._whole)
            self._loader = (loader, batches)
        if data is not None and 0 <= self._batch_idx < index - 1:
            raise RecordError(
                f"{self._place}: the trainer left a batch out, so that this one's rows are unknown",
                "leave out rows in the sampler, and give no empty batches",
            )
        self._batch_idx = index
        batches.declare(batch, 1 / self._trainer.accumulate_grad_batches)


def refuse(trainer: Trainer, module: LightningModule) -> None:
    """Refuse by name what a re-run on one device by a plain loop does not repeat.

    Raises:
        RecordError: naming it, with what to do instead.
    """
    averaging = [c for c in _callbacks(trainer) if isinstance(c, _AVERAGING)]
    precision = trainer.precision_plugin
    known = type(precision) in (Precision, MixedPrecision)
    clipped = trainer.gradient_clip_val and str(trainer.gradient_clip_algorithm or "norm") != "norm"
    several = "several optimizers" if len(trainer.optimizers) != 1 else "several loaders"
    cases = (
        (trainer.world_size > 1, f"{trainer.world_size} processes", "train in one process"),
        (
            not module.automatic_optimization,
            "manual optimization",
            "record the loop as a plain one, with recorder.stage, or let Lightning make the steps",
        ),
        (
            len(trainer.optimizers) != 1 or not isinstance(trainer.train_dataloader, DataLoader),
            several,
            "train with one optimizer on one DataLoader",
        ),
        (clipped, "clipping by value", "clip by norm: gradient_clip_algorithm='norm'"),
        (
            is_overridden("configure_gradient_clipping", module),
            "a configure_gradient_clipping of the module's own",
            "clip by norm with Trainer(gradient_clip_val=...)",
        ),
        (
            bool(averaging),
            f"{type(averaging[0]).__name__ if averaging else ''}, which changes weights outside the "
            "optimizer,",
            "train without it, or average recorded states afterwards",
        ),
        (
            not known,
            f"the precision {getattr(precision, 'precision', type(precision).__name__)}",
            "use 32-true, bf16-mixed, or 16-mixed; build the model in another one in its factory",
        ),
        (
            getattr(module, "_compiler_ctx", None) is not None,
            "a module compiled after it was built",
            "compile its parts in the factory",
        ),
        (
            trainer.strategy.model is not module,
            f"{type(trainer.strategy).__name__}, which trains through a wrapper of the module,",
            "leave strategy= as it is by default",
        ),
    )
    for applies, what, remedy in cases:
        if applies:
            raise RecordError(f"{what} cannot be recorded", remedy)


_AVERAGING = (
    StochasticWeightAveraging,
    *(getattr(callbacks, name) for name in ("WeightAveraging",) if hasattr(callbacks, name)),
)


def _save_nothing(*args: Any, **options: Any) -> None:
    """In place of `Trainer.save_checkpoint`."""


def _callbacks(trainer: Any) -> list[Callback]:
    return list(trainer.callbacks)


def _steps(trainer: Trainer) -> int:
    """The most optimizer steps that a fit will make, from where it stands.

    Raises:
        RecordError: if Lightning does not know.
    """
    steps = trainer.estimated_stepping_batches
    if not math.isfinite(steps) or steps < 0:
        raise RecordError(
            "the trainer does not know how many steps it will make", "pass max_steps= to it"
        )
    schedules = [c for c in _callbacks(trainer) if isinstance(c, GradientAccumulationScheduler)]
    changes = any(len(schedule.scheduling) > 1 for schedule in schedules)
    return int(steps) * (trainer.accumulate_grad_batches if changes else 1) - trainer.global_step


def _loss_of(output: Any) -> Tensor:
    """The loss in what a `training_step` gives.

    Raises:
        RecordError: if there is none.
    """
    loss = output.get("loss") if isinstance(output, Mapping) else output
    if not isinstance(loss, Tensor):
        raise RecordError(
            f"training_step gives {type(output).__name__}, and no loss",
            "return the loss, or a dict with 'loss', for every batch",
        )
    return loss


@contextmanager
def _without_trainer(module: Any) -> Iterator[None]:
    """Let a module be called that no trainer holds; one that is held stays as it is."""
    kind = type(module)
    if getattr(module, "_trainer", None) is None:
        module.__class__ = _alone(kind)  # type: ignore[arg-type]  # a class is hashable
    try:
        yield
    finally:
        module.__class__ = kind


@cache
def _alone(kind: type[Any]) -> type[Any]:
    """The class of a module without a trainer: what it logs goes nowhere, and what it asks is refused."""

    def nothing(*args: Any, **options: Any) -> None:
        """Log nothing."""

    def refused(name: str) -> property:
        def read(module: nn.Module) -> Any:
            raise RecordError(
                f"{kind.__name__}.training_step reads self.{name}, which a re-run does not have",
                "put what the loss depends on into the batch or into a buffer",
            )

        return property(read)

    asked = {name: refused(name) for name in ("trainer", "current_epoch", "global_step")}
    silent = dict.fromkeys(("log", "log_dict", "print"), nothing)
    return type(kind.__name__, (kind,), {**silent, **asked, "__module__": kind.__module__})
