"""Fits of a Lightning trainer, recorded and audited; truth comes from fitting again with Lightning."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from library_audit import hold_against_truth
from library_loops import data_in, items, landed, load_batch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, IterableDataset

L: Any = pytest.importorskip("lightning")

from auditspec import Dataset, Recorder  # noqa: E402
from auditspec.errors import RecordError  # noqa: E402
from auditspec.integrations.lightning import RecordStage, training_step  # noqa: E402
from auditspec.record.trajectory import Trajectory  # noqa: E402

ROWS = 40
QUIET: dict[str, Any] = {
    "accelerator": "cpu",
    "logger": False,
    "enable_checkpointing": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
}
pytestmark = pytest.mark.filterwarnings(
    "ignore::lightning.fabric.utilities.warnings.PossibleUserWarning",
    "ignore:.*LeafSpec:FutureWarning",  # what Lightning asks of torch
)


@pytest.fixture(autouse=True)
def _quiet() -> None:
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)


class Net(L.LightningModule):
    """A small net; subclasses differ in one thing."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.Linear(2, 8), nn.BatchNorm1d(8), nn.GELU(), nn.Dropout(0.2), nn.Linear(8, 2)
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        loss = F.cross_entropy(self(batch[0]), batch[1])
        self.log("loss", loss)
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val", F.cross_entropy(self(batch[0]), batch[1]))

    def configure_optimizers(self) -> Any:
        return torch.optim.AdamW(self.parameters(), lr=0.05)


class Dicts(Net):
    def training_step(self, batch: Any) -> Any:
        return {"loss": F.cross_entropy(self.net(batch[0]), batch[1]), "more": 1}


class ByStep(Net):
    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.SGD(self.parameters(), lr=0.1, momentum=0.9, nesterov=True)
        schedule = torch.optim.lr_scheduler.OneCycleLR(
            optimizer, 0.2, total_steps=self.trainer.estimated_stepping_batches
        )
        return [optimizer], [{"scheduler": schedule, "interval": "step"}]


class ByEpoch(Net):
    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.AdamW(self.parameters(), lr=0.05, fused=True)
        return [optimizer], [torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5)]


class WarmUp(Net):
    def optimizer_step(self, epoch: Any, batch_idx: int, optimizer: Any, closure: Any) -> None:
        for group in optimizer.param_groups:
            group["lr"] = 0.01 * min(1, (self.trainer.global_step + 1) / 4)
        optimizer.step(closure=closure)


class Named(Net):
    def training_step(self, batch: Any, batch_idx: int) -> Any:
        return F.cross_entropy(self.net(batch["x"]), batch["y"])


class Signs(torch.optim.Optimizer):
    """Of the training code; it runs the closure as Lightning wants it to."""

    def __init__(self, params: Any, lr: float) -> None:
        super().__init__(params, {"lr": lr})

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:  # type: ignore[override]
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for p in group["params"]:
                slots = self.state[p]
                slots["mean"] = 0.5 * slots.get("mean", torch.zeros_like(p)) + p.grad
                p.sub_(slots["mean"].sign(), alpha=group["lr"])
        return loss


class OwnOptimizer(Net):
    def configure_optimizers(self) -> Any:
        return Signs(self.parameters(), lr=0.01)


def build_net() -> Net:
    return Net()


def objective(model: nn.Module, batch: Any) -> Tensor:
    return training_step(model, batch)


class Stream(IterableDataset[Any]):
    def __iter__(self) -> Iterator[Any]:
        return iter(items(ROWS))


class NamedItems(torch.utils.data.Dataset[Any]):
    def __len__(self) -> int:
        return ROWS

    def __getitem__(self, i: int) -> dict[str, Tensor]:
        x, y = items(ROWS)[i]
        return {"x": x, "y": y}


def loader(**options: Any) -> DataLoader[Any]:
    return DataLoader(items(ROWS), **{"batch_size": 8, "shuffle": True, **options})


def fit(
    folder: Path,
    kind: type = Net,
    batches: Any = None,
    *,
    rows: bool = True,
    stages: int = 2,
    val: bool = False,
    whole: bool = False,
    ckpt_path: Any = None,
    **options: Any,
) -> Trajectory:
    """Fit one model in stages; every window of the record is then re-run bit for bit."""
    data = data_in(folder, ROWS)
    options = {**QUIET, "max_epochs": 2, **options}
    callbacks = options.pop("callbacks", list)
    torch.manual_seed(0)
    model = kind()
    with Recorder(
        folder / "record", model, every=3, factory=FACTORIES[kind], load_batch=load_batch
    ) as recorder:
        for number in range(stages):
            torch.manual_seed(number)
            stage = RecordStage(
                recorder,
                f"stage-{number}",
                objective,
                dataset=data if rows else None,
                whole=whole,
            )
            trainer = L.Trainer(**options, callbacks=[*callbacks(), stage])
            trainer.fit(
                model,
                loader() if batches is None else batches(),
                loader() if val else None,
                ckpt_path=ckpt_path,
            )
    return landed(folder, data, FACTORIES[kind], objective)


def build_dicts() -> Net:
    return Dicts()


def build_by_step() -> Net:
    return ByStep()


def build_by_epoch() -> Net:
    return ByEpoch()


def build_warm_up() -> Net:
    return WarmUp()


def build_named() -> Net:
    return Named()


def build_own_optimizer() -> Net:
    return OwnOptimizer()


FACTORIES: dict[type, Any] = {
    Net: build_net,
    Dicts: build_dicts,
    ByStep: build_by_step,
    ByEpoch: build_by_epoch,
    WarmUp: build_warm_up,
    Named: build_named,
    OwnOptimizer: build_own_optimizer,
}

CASES: dict[str, dict[str, Any]] = {
    "plain": {},
    "a dict with the loss, and no number of the batch": {"kind": Dicts},
    "accumulation": {"accumulate_grad_batches": 3},
    "clipping by norm": {"gradient_clip_val": 0.1},
    "a schedule by step": {"kind": ByStep, "gradient_clip_val": 0.5, "accumulate_grad_batches": 2},
    "a schedule by epoch, fused": {"kind": ByEpoch, "max_epochs": 3},
    "an optimizer_step of the module": {"kind": WarmUp},
    "an optimizer of the training code": {"kind": OwnOptimizer, "accumulate_grad_batches": 2},
    "bf16-mixed": {"precision": "bf16-mixed", "accumulate_grad_batches": 2},
    "workers": {"batches": partial(loader, num_workers=2, persistent_workers=True)},
    "validation between": {"val": True, "val_check_interval": 2},
    "steps in place of epochs": {"max_steps": 7, "max_epochs": -1},
    "part of each epoch": {"limit_train_batches": 3},
    "new loaders every epoch": {"reload_dataloaders_every_n_epochs": 1},
    "batches in place of rows": {"rows": False},
    "a stream": {
        "batches": lambda: DataLoader(Stream(), batch_size=8),
        "max_steps": 6,
        "max_epochs": -1,
    },
    "dict batches": {
        "kind": Named,
        "rows": False,
        "batches": lambda: DataLoader(NamedItems(), batch_size=8, shuffle=True),
    },
}


@pytest.mark.parametrize("name", CASES)
def test_what_is_fitted_is_run_again_bit_for_bit(tmp_path: Path, name: str) -> None:
    trajectory = fit(tmp_path, **CASES[name])
    batches = [b for s in trajectory.stages for step in s.steps for b in step.batches]
    assert all(step.loss is not None for s in trajectory.stages for step in s.steps)
    rows = CASES[name].get("rows", True) and name != "a stream"
    assert {b.batch is None for b in batches} == {rows}
    if rows:
        assert {b.dataset for b in batches} == {"data"}
    if name == "accumulation":
        assert {b.weight for b in batches} == {1 / 3}
        assert [len(step.batches) for step in trajectory.stages[0].steps] == [3, 2, 3, 2]
    if name == "bf16-mixed":
        autocast = trajectory.stages[0].header.autocast
        assert autocast is not None
        assert (autocast.dtype, autocast.around, autocast.cache) == ("bfloat16", "objective", False)


@pytest.mark.parametrize("schedule", [{0: 1, 1: 2}, {0: 3, 1: 1}])
def test_accumulation_that_changes(tmp_path: Path, schedule: dict[int, int]) -> None:
    accumulates = L.pytorch.callbacks.GradientAccumulationScheduler
    trajectory = fit(tmp_path, stages=1, callbacks=lambda: [accumulates(schedule)])
    weights = [b.weight for step in trajectory.stages[0].steps for b in step.batches]
    assert weights == [1 / n for n in schedule.values() for _ in range(5)]


def half() -> list[Any]:
    from lightning.pytorch.plugins.precision import MixedPrecision

    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**30, growth_interval=3)
    return [MixedPrecision("16-mixed", "cpu", scaler)]


def test_steps_that_a_scaler_skips(tmp_path: Path) -> None:
    trajectory = fit(tmp_path, stages=1, max_epochs=3, plugins=half())
    (stage,) = trajectory.stages
    weights = [b.weight for step in stage.steps for b in step.batches]
    assert 0.0 in weights
    assert len(stage.steps) == stage.header.steps < 15 == len(weights)
    assert {b.scale for step in stage.steps for b in step.batches} > {1.0}
    assert stage.header.autocast is not None
    assert stage.header.autocast.dtype == "float16"


def stops() -> list[Any]:
    class Stops(L.Callback):
        def on_train_batch_end(self, trainer: Any, *args: Any) -> None:
            trainer.should_stop = trainer.global_step >= 4

    return [Stops()]


def no_better() -> list[Any]:
    return [L.pytorch.callbacks.EarlyStopping("loss", min_delta=10.0, patience=1)]


def timed() -> list[Any]:
    """What `max_time` adds, by a clock that goes on with the steps."""

    class Steps(L.pytorch.callbacks.Timer):
        made = 0

        def on_train_batch_end(self, trainer: Any, *args: Any, **options: Any) -> None:
            self.made = trainer.global_step
            super().on_train_batch_end(trainer, *args, **options)

        def time_elapsed(self, *args: Any) -> float:
            return self.made

    return [Steps({"seconds": 4})]


@pytest.mark.parametrize(
    ("options", "steps"),
    [
        ({"callbacks": stops}, 4),
        ({"callbacks": no_better, "max_epochs": 5}, 10),
        ({"callbacks": timed}, 4),
    ],
    ids=["should_stop", "EarlyStopping", "max_time"],
)
def test_a_fit_that_stops_early(tmp_path: Path, options: dict[str, Any], steps: int) -> None:
    trajectory = fit(tmp_path, **options)
    assert [stage.header.steps for stage in trajectory.stages] == [steps, steps]


def test_batches_that_the_module_changes_at_random_are_recorded_whole(tmp_path: Path) -> None:
    trajectory = fit(tmp_path, Augments, stages=1, whole=True)
    batches = [b for step in trajectory.stages[0].steps for b in step.batches]
    assert all(b.batch is not None and len(b.ids) == 8 for b in batches)


def test_nothing_changes_by_being_recorded(tmp_path: Path) -> None:
    options: dict[str, Any] = {"max_epochs": 2, "accumulate_grad_batches": 2} | QUIET
    data, models, draws = data_in(tmp_path, ROWS), [], []
    for records in (False, True):
        torch.manual_seed(0)
        model = Net()
        with Recorder(
            tmp_path / str(records), model, factory=build_net, load_batch=load_batch
        ) as recorder:
            torch.manual_seed(1)
            stage = RecordStage(recorder, "one", objective, dataset=data)
            trainer = L.Trainer(**options, callbacks=[stage] if records else [])
            trainer.fit(model, loader(num_workers=2), loader())
        models.append(model.state_dict())
        draws.append(torch.rand(1))
    assert all(torch.equal(models[0][name], models[1][name]) for name in models[0])
    assert torch.equal(*draws)
    assert "training_step" not in vars(model)
    assert "process_dataloader" not in vars(trainer.strategy)


def test_a_fit_that_goes_on_from_a_checkpoint(tmp_path: Path) -> None:
    torch.manual_seed(0)
    first = L.Trainer(**{**QUIET, "max_epochs": 2})
    first.fit(Net(), loader())
    first.save_checkpoint(tmp_path / "two.ckpt")
    trajectory = fit(tmp_path, stages=1, max_epochs=4, ckpt_path=tmp_path / "two.ckpt")
    (stage,) = trajectory.stages
    assert (stage.header.boundary, stage.header.steps) == ("given", 10)
    assert stage.first.optimizer_state


def test_a_fit_that_fails_leaves_an_open_record(tmp_path: Path) -> None:
    class Fails(L.Callback):
        def on_train_batch_end(self, trainer: Any, *args: Any) -> None:
            if trainer.global_step == 3:
                raise KeyError("elsewhere")

    with pytest.raises(KeyError, match="elsewhere"):
        fit(tmp_path, callbacks=lambda: [Fails()])
    record = Trajectory.open(tmp_path / "record")
    assert not record.header.complete
    assert [stage.header.complete for stage in record.stages] == [False]


def test_a_record_that_is_resumed(tmp_path: Path) -> None:
    whole = fit(tmp_path, stages=1)
    data, model = data_in(tmp_path, ROWS), Net()
    options: dict[str, Any] = {"factory": build_net, "load_batch": load_batch, "resume": True}
    with Recorder(tmp_path / "record", model, every=3, **options) as recorder:
        stage = RecordStage(recorder, "stage-0", objective, dataset=data)
        trainer = L.Trainer(**QUIET, max_epochs=2, min_epochs=1, callbacks=[stage])
        trainer.fit(model, loader())
        assert trainer.global_step == 0
    last = whole.stages[0].last
    assert all(torch.equal(p, last.parameters[name]) for name, p in model.named_parameters())


def test_a_fit_cannot_go_on_in_the_middle(tmp_path: Path) -> None:
    class Fails(L.Callback):
        def on_train_batch_end(self, trainer: Any, *args: Any) -> None:
            if trainer.global_step == 60:
                raise KeyError("elsewhere")

    with pytest.raises(KeyError):
        fit(tmp_path, callbacks=lambda: [Fails()], max_epochs=20)
    data, model = data_in(tmp_path, ROWS), Net()
    options: dict[str, Any] = {"factory": build_net, "load_batch": load_batch, "resume": True}
    recorder = Recorder(tmp_path / "record", model, every=3, **options)
    stage = RecordStage(recorder, "stage-0", objective, dataset=data)
    trainer = L.Trainer(**QUIET, max_epochs=20, callbacks=[stage])
    with pytest.raises(RecordError, match="a fit begins its order anew"):
        trainer.fit(model, loader())


class Manual(Net):
    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False


class Two(Manual):
    def configure_optimizers(self) -> Any:
        return [torch.optim.SGD(part.parameters(), lr=0.1) for part in (self.net[0], self.net[4])]


class Clips(Net):
    def configure_gradient_clipping(self, optimizer: Any, *args: Any, **options: Any) -> None:
        self.clip_gradients(optimizer, gradient_clip_val=0.5, gradient_clip_algorithm="norm")


class NoLoss(Net):
    def training_step(self, batch: Any, batch_idx: int) -> Any:
        return None


class Augments(Net):
    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        return [batch[0] + torch.randn_like(batch[0]), batch[1]]


def build_manual() -> Net:
    return Manual()


def build_clips() -> Net:
    return Clips()


def build_no_loss() -> Net:
    return NoLoss()


def build_augments() -> Net:
    return Augments()


FACTORIES |= {
    Manual: build_manual,
    Two: build_manual,
    Clips: build_clips,
    NoLoss: build_no_loss,
    Augments: build_augments,
}


def averages() -> list[Any]:
    return [L.pytorch.callbacks.StochasticWeightAveraging(swa_lrs=0.01)]


def moves() -> list[Any]:
    if not hasattr(L.pytorch.callbacks, "WeightAveraging"):
        pytest.skip("this Lightning has no such callback")
    return [L.pytorch.callbacks.WeightAveraging(avg_fn=lambda a, b, n: a)]


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "manual optimization": ({"kind": Manual}, "manual optimization"),
    "two optimizers": ({"kind": Two}, "manual optimization|several optimizers"),
    "two loaders": ({"batches": lambda: [loader(), loader()], "rows": False}, "several loaders"),
    "clipping by value": (
        {"gradient_clip_val": 1.0, "gradient_clip_algorithm": "value"},
        "clipping by value",
    ),
    "clipping of its own": ({"kind": Clips}, "configure_gradient_clipping"),
    "SWA": ({"callbacks": averages}, "StochasticWeightAveraging"),
    "EMA": ({"callbacks": moves}, "WeightAveraging"),
    "a stream without an end": (
        {"batches": lambda: DataLoader(Stream(), batch_size=8)},
        "does not know how many steps",
    ),
    "double precision": ({"precision": "64-true"}, "the precision 64-true"),
    "no loss": ({"kind": NoLoss}, "no loss"),
    "an augmentation of the module": ({"kind": Augments}, "load_batch makes another batch"),
    "another model": ({}, "fits another model"),
    "two processes": ({}, "2 processes"),
    "a wrapper": ({"strategy": "ddp", "devices": 1}, "DDPStrategy, which trains through a wrapper"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_refused_by_name(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    options, said = REFUSED[name]
    if name == "two processes":
        monkeypatch.setattr(L.Trainer, "world_size", 2)
    with pytest.raises(RecordError, match=said) as error:
        if name == "another model":
            other = L.Trainer(
                **QUIET, max_epochs=1, callbacks=[stage_of(tmp_path, data_in(tmp_path, ROWS))]
            )
            other.fit(Net(), loader())
        fit(tmp_path, **options)
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
    assert error.value.remedy


def stage_of(folder: Path, data: Dataset) -> RecordStage:
    recorder = Recorder(folder / "other", Net(), factory=build_net, load_batch=load_batch)
    return RecordStage(recorder, "one", objective, dataset=data)


def test_a_compiled_module(tmp_path: Path) -> None:
    data = data_in(tmp_path, ROWS)
    model = Net()
    recorder = Recorder(tmp_path / "record", model, factory=build_net, load_batch=load_batch)
    trainer = L.Trainer(
        **QUIET, max_epochs=1, callbacks=[RecordStage(recorder, "one", objective, dataset=data)]
    )
    with pytest.raises(RecordError, match="compiled after it was built"):
        trainer.fit(torch.compile(model, backend="eager"), loader())


class Asks(Net):
    def training_step(self, batch: Any, batch_idx: int) -> Any:
        return super().training_step(batch, batch_idx) * (1 + self.current_epoch)


class AsksTrainer(Net):
    def training_step(self, batch: Any, batch_idx: int) -> Any:
        return super().training_step(batch, batch_idx) * self.trainer.world_size


@pytest.mark.parametrize(("kind", "asked"), [(Asks, "current_epoch"), (AsksTrainer, "trainer")])
def test_an_objective_that_asks_the_trainer(kind: type, asked: str) -> None:
    with pytest.raises(RecordError, match=f"reads self.{asked}, which a re-run does not have"):
        objective(kind(), items(ROWS)[:4])


def test_the_objective_is_the_training_step_and_logs_nowhere() -> None:
    model, batch = Net().eval(), items(ROWS)[:4]
    loss = objective(model, batch)
    assert torch.equal(loss, F.cross_entropy(model(batch[0]), batch[1]))
    assert type(model) is Net


TRAINING = """
import lightning as L


class Net(L.LightningModule):
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(
            nn.Linear(3, 6), nn.BatchNorm1d(6), nn.Tanh(), nn.Dropout(0.1), nn.Linear(6, 3)
        )

    def forward(self, x):
        return self.net(x)

    def training_step(self, batch, batch_idx):
        loss = F.cross_entropy(self(batch[0]), batch[1])
        self.log("loss", loss)
        return loss

    def configure_optimizers(self):
        optimizer = torch.optim.AdamW(self.parameters(), lr=self.rate, weight_decay=0.01)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(
            optimizer, self.trainer.estimated_stepping_batches
        )
        return [optimizer], [{"scheduler": schedule, "interval": "step"}]


def build_model():
    return Net()


def objective(model, batch):
    from auditspec.integrations.lightning import training_step

    return training_step(model, batch)


def train(model, stage, source, recorder):
    import logging

    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    model.rate = RATES[stage]
    callbacks = []
    if recorder is not None:
        from auditspec import Dataset
        from auditspec.integrations.lightning import RecordStage

        data = Dataset.open(f"{source}.parquet")
        callbacks = [RecordStage(recorder, stage, objective, dataset=data)]
    model.train()
    trainer = L.Trainer(
        accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, max_epochs=4, callbacks=callbacks, OPTIONS
    )
    trainer.fit(model, DataLoader(Rows(tables()[source]), batch_size=8, shuffle=True))
"""
ADAMW = {
    "name": "AdamW",
    "weight_decay": 0.01,
    "betas": [0.9, 0.999],
    "eps": 1e-8,
    "schedule": "cosine",
}


@pytest.mark.slow
@pytest.mark.parametrize(
    "options", ["accumulate_grad_batches=2, gradient_clip_val=0.5", "precision='bf16-mixed'"]
)
def test_an_audit_says_what_training_without_the_stage_gives(tmp_path: Path, options: str) -> None:
    hold_against_truth(
        tmp_path, TRAINING.replace("OPTIONS", options), ADAMW, self_check="bf16" in options
    )
