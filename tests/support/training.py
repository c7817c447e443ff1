"""Tiny real training runs, recorded, for the tests of records, estimators, and checks.

Everything is float64 unless asked otherwise, smooth (tanh), and takes milliseconds.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from extensions import EXTENSIONS, WITH_DATA
from own_optimizers import OWN
from torch import Tensor, nn

from auditspec import Dataset, Recorder
from auditspec.engine.loading import Functions
from auditspec.engine.rerun import Rerun
from auditspec.estimator.counterfactual import Counterfactual
from auditspec.estimator.interventions import Arm
from auditspec.record.trajectory import Trajectory

ROWS, CLASSES = 48, 3
FEATURES = ["x0", "x1", "x2", "x3"]


def table(seed: int = 0) -> pd.DataFrame:
    """Rows with four features (x3 is always 0), a token (5 of 8 occur), and a class."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(ROWS, 4))
    x[:, 3] = 0.0
    y = (x[:, 0] + 0.5 * x[:, 1] > 0).astype(int) + (x[:, 2] > 0.7).astype(int)
    return pd.DataFrame(x, columns=FEATURES).assign(token=rng.integers(0, 5, ROWS), y=y)


def load_batch(dataset: Dataset, ids: Any) -> tuple[Tensor, Tensor, Tensor]:
    columns = (dataset.frame[FEATURES], dataset.frame["token"], dataset.frame["y"])
    x, token, y = (torch.tensor(c.to_numpy().take(list(ids), axis=0)) for c in columns)
    return x, token, y


class Mlp(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(4, 6), nn.Linear(6, CLASSES)

    def forward(self, x: Tensor, token: Tensor) -> Tensor:
        return self.two(torch.tanh(self.one(x)))


class Tied(nn.Module):
    """An embedding with unused rows whose weights also read the classes out."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(8, 4)
        self.mix = nn.Linear(4, 4)
        self.head = nn.Linear(4, 8, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, x: Tensor, token: Tensor) -> Tensor:
        return self.head(torch.tanh(self.mix(x) + self.embed(token)))[:, :CLASSES]


class Dropped(Mlp):
    def forward(self, x: Tensor, token: Tensor) -> Tensor:
        hidden = nn.functional.dropout(torch.tanh(self.one(x)), 0.3, self.training)
        return self.two(hidden)


class Normed(Mlp):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(6)

    def forward(self, x: Tensor, token: Tensor) -> Tensor:
        return self.two(torch.tanh(self.norm(self.one(x))))


class Buffered(Mlp):
    """A buffer that is no part of the state dict, as rotary embeddings have."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("scale", torch.ones(1), persistent=False)

    def forward(self, x: Tensor, token: Tensor) -> Tensor:
        return super().forward(x, token) * self.scale


def build_buffered() -> nn.Module:
    return Buffered().double()


def build_mlp() -> nn.Module:
    return Mlp().double()


def build_tied() -> nn.Module:
    return Tied().double()


def build_dropped() -> nn.Module:
    return Dropped().double()


def build_normed() -> nn.Module:
    return Normed().double()


class Routed(Mlp):
    """Two heads in turn, as a mixture of experts has; the objective's token decides."""

    def __init__(self) -> None:
        super().__init__()
        self.other = nn.Linear(6, CLASSES)
        self.idle = nn.Parameter(torch.ones(2))

    def forward(self, x: Tensor, token: Tensor) -> Tensor:
        head = self.two if int(token[0]) % 2 else self.other
        return head(torch.tanh(self.one(x)))


def build_routed() -> nn.Module:
    return Routed().double()


class Embedded(nn.Module):
    """Nothing but an embedding, five of whose eight rows occur."""

    def __init__(self, *, sparse: bool) -> None:
        super().__init__()
        self.embed = nn.Embedding(8, CLASSES, sparse=sparse)

    def forward(self, x: Tensor, token: Tensor) -> Tensor:
        return self.embed(token)


def build_embedded() -> nn.Module:
    return Embedded(sparse=False).double()


def build_sparse() -> nn.Module:
    return Embedded(sparse=True).double()


def build_tied32() -> nn.Module:
    return Tied()


def build_dropped32() -> nn.Module:
    return Dropped()


def build_mlp32() -> nn.Module:
    return Mlp()


def cross_entropy(model: nn.Module, batch: tuple[Tensor, Tensor, Tensor]) -> Tensor:
    x, token, y = batch
    return nn.functional.cross_entropy(model(x.to(next(model.parameters())), token), y)


def smoothed(model: nn.Module, batch: tuple[Tensor, Tensor, Tensor]) -> Tensor:
    x, token, y = batch
    logits = model(x.to(next(model.parameters())), token)
    return nn.functional.cross_entropy(logits, y, label_smoothing=0.1)


def own_loss(model: nn.Module, batch: tuple[Tensor, Tensor, Tensor]) -> Tensor:
    """Two passes, random numbers of its own, and a penalty on the weights."""
    x, token, y = batch
    x = x.to(next(model.parameters()))
    clean = model(x, token).log_softmax(1)
    noisy = model(x + 0.1 * torch.randn_like(x), token).log_softmax(1)
    consistency = nn.functional.kl_div(
        noisy, clean.detach(), log_target=True, reduction="batchmean"
    )
    penalty = sum(p.square().sum() for p in model.parameters())
    return nn.functional.nll_loss(clean, y) + consistency + 1e-2 * penalty


def predict(model: nn.Module, batch: tuple[Tensor, Tensor, Tensor]) -> Tensor:
    x, token, _ = batch
    return model(x.to(next(model.parameters())), token)


@dataclass(frozen=True)
class StagePlan:
    id: str
    steps: int = 6
    optimizer: str = "SGD"
    options: dict[str, Any] = field(default_factory=lambda: {"lr": 0.1, "momentum": 0.9})
    split: bool = False
    """Two parameter groups with their own rates."""
    carry: bool = False
    clip_norm: float | None = None
    microbatches: int = 1
    shift: int = 0
    frozen: tuple[str, ...] = ()
    """Parameters whose names begin so."""
    lean: bool = False
    """Frozen parameters are left out of the optimizer."""

    keep_gradients: bool = False
    """zero_grad(set_to_none=False)"""
    dropped: tuple[str, ...] = ()
    """Parameters whose gradients are set to None before each update, as in gradual unfreezing."""
    autocast: torch.dtype | None = None
    extend: str | None = None
    """A function of `extensions` that changes the model before the stage."""

    def casting(self) -> torch.autocast:
        return torch.autocast("cpu", self.autocast or torch.bfloat16, self.autocast is not None)

    def freeze(self, model: nn.Module) -> None:
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(not name.startswith(self.frozen or "-"))
            if not parameter.requires_grad:
                parameter.grad = None

    def make_optimizer(self, model: nn.Module) -> torch.optim.Optimizer:
        kind: Any = OWN.get(self.optimizer) or getattr(torch.optim, self.optimizer)
        parameters = [p for p in model.parameters() if p.requires_grad or not self.lean]
        if not self.split:
            return kind(parameters, **self.options)
        half = self.options | {"lr": self.options["lr"] / 2, "weight_decay": 0.05}
        return kind(
            [{"params": parameters[:1]}, {"params": parameters[1:], **half}], **self.options
        )

    def ids(self, step: int) -> list[int]:
        return [(7 * step + 5 * self.shift + 3 * i) % ROWS for i in range(8)]

    def rates(self, optimizer: torch.optim.Optimizer, step: int) -> None:
        """A cosine schedule, a function of the step."""
        for group in optimizer.param_groups:
            base = group.setdefault("base_lr", group["lr"])
            group["lr"] = base * 0.5 * (1 + math.cos(math.pi * step / (self.steps + 2)))


SGD3 = (
    StagePlan("one", shift=0),
    StagePlan("two", shift=1),
    StagePlan("three", shift=2),
)


@dataclass
class Recorded:
    folder: Path
    model: nn.Module
    trajectory: Trajectory
    functions: Functions
    datasets: dict[str, Dataset]
    plan: tuple[StagePlan, ...]
    build: Callable[[], nn.Module]

    def rerun(self, **options: Any) -> Rerun:
        return Rerun(self.trajectory, self.functions, self.datasets, **options)


def train(
    folder: Path,
    plan: Iterable[StagePlan] = SGD3,
    build: Callable[[], nn.Module] = build_mlp,
    every: Any = 2,
    *,
    resume: bool = False,
    stop_at: tuple[str, int] | None = None,
    seed: int = 0,
    objective: Callable[..., Tensor] = cross_entropy,
    load: Callable[..., Any] = load_batch,
) -> Recorded:
    """Train with the recorder; `stop_at` raises KeyboardInterrupt there, as an interrupted run."""
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / "data.parquet").exists():
        table().to_parquet(folder / "data.parquet")
    data = Dataset.open(folder / "data.parquet")
    plan = tuple(plan)
    torch.manual_seed(seed)
    model = build()
    optimizer: torch.optim.Optimizer | None = None
    with Recorder(
        folder / "record", model, every=every, factory=build, load_batch=load, resume=resume
    ) as recorder:
        for stage in plan:
            if stage.extend is not None:
                given = data if stage.extend in WITH_DATA else ()
                recorder.extend(EXTENSIONS[stage.extend], dataset=given)
            stage.freeze(model)
            if optimizer is None or not stage.carry:
                optimizer = stage.make_optimizer(model)
            elif stage.extend is not None:
                add_new(model, optimizer)
            with recorder.stage(
                stage.id,
                optimizer,
                objective,
                dataset=data,
                steps=stage.steps,
                clip_norm=stage.clip_norm,
            ) as run:
                for step in run.steps:
                    if stop_at == (stage.id, step):
                        raise KeyboardInterrupt
                    one_step(model, optimizer, stage, step, run.loss)
    return Recorded(
        folder,
        model,
        Trajectory.open(folder / "record"),
        Functions(
            build,
            load,
            dict.fromkeys((s.id for s in plan), objective),
            predict,
            {f"own_optimizers:{name}": kind for name, kind in OWN.items()},
            {f"extensions:{name}": function for name, function in EXTENSIONS.items()},
        ),
        {"data": data},
        plan,
        build,
    )


def add_new(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Give a carried optimizer the parameters that the model has got since."""
    held = {id(p) for group in optimizer.param_groups for p in group["params"]}
    new = [p for p in model.parameters() if id(p) not in held]
    optimizer.add_param_group({"params": new})


def one_step(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    stage: StagePlan,
    step: int,
    loss: Callable[..., Tensor],
) -> None:
    stage.rates(optimizer, step)
    optimizer.zero_grad(set_to_none=not stage.keep_gradients)
    ids, n = stage.ids(step), stage.microbatches
    for part in range(n):
        with stage.casting():
            value = loss(ids[part::n], **({"weight": 1 / n} if n > 1 else {}))
        value.backward()
    if stage.clip_norm is not None:
        nn.utils.clip_grad_norm_(model.parameters(), stage.clip_norm)
    for name, parameter in model.named_parameters():
        if name in stage.dropped:
            parameter.grad = None
    optimizer.step()


Rows = tuple[Dataset, Callable[[int], int]]
"""Other rows of a stage: their data set, and the row that takes an example's place."""


def retrain(
    recorded: Recorded,
    without: str | Collection[str] | None,
    seed: int = 0,
    *,
    rows: Mapping[str, Rows] | None = None,
    weights: Mapping[str, Tensor] | None = None,
    path: dict[str, dict[str, Tensor]] | None = None,
) -> nn.Module:
    """Train once more with plain torch.optim, leaving stages out; knows nothing of the record.

    Random numbers (dropout) are drawn as the recorded run drew them: the generator goes through
    the left-out stages too. `rows` are those of stages that are trained on others, `weights` the
    first model's; `path` is given the state dict at the end of every stage that is trained.
    """
    omitted = {without} if isinstance(without, str) else {*(without or ())}
    torch.manual_seed(seed)
    model = recorded.build()
    if weights is not None:
        model.load_state_dict(weights)
    optimizer: torch.optim.Optimizer | None = None
    for stage in recorded.plan:
        if stage.extend is not None:
            given = [recorded.datasets["data"]] if stage.extend in WITH_DATA else []
            EXTENSIONS[stage.extend](model, *given)
        stage.freeze(model)
        if optimizer is None or not stage.carry:
            optimizer = stage.make_optimizer(model)
        elif stage.extend is not None:
            add_new(model, optimizer)
        before = (
            {k: v.clone() for k, v in model.state_dict().items()},
            _clone(optimizer.state_dict()),
        )
        objective = recorded.functions.objectives[stage.id]
        data, row = (rows or {}).get(stage.id, (recorded.datasets["data"], int))

        def loss(
            ids: list[int],
            weight: float = 1.0,
            objective: Any = objective,
            data: Dataset = data,
            row: Callable[[int], int] = row,
        ) -> Tensor:
            value: Tensor = objective(
                model, recorded.functions.load_batch(data, [row(i) for i in ids])
            )
            return value * weight

        for step in range(stage.steps):
            one_step(model, optimizer, stage, step, loss)
        if stage.id in omitted:
            model.load_state_dict(before[0])
            optimizer.load_state_dict(before[1])
        elif path is not None:
            path[stage.id] = {k: v.clone() for k, v in model.state_dict().items()}
    return model


def by_stage(found: Mapping[Arm, Counterfactual]) -> dict[str, Counterfactual]:
    """Counterfactuals without one stage, by its id."""
    return {made.stage: made for made in found.values()}


def _clone(state: dict[str, Any]) -> dict[str, Any]:
    slots = {
        i: {k: v.clone() if isinstance(v, Tensor) else v for k, v in s.items()}
        for i, s in state["state"].items()
    }
    return {"state": slots, "param_groups": [dict(g) for g in state["param_groups"]]}


def parameters(model: nn.Module) -> dict[str, Tensor]:
    return {n: p.detach().clone() for n, p in model.named_parameters()}


def relative(left: dict[str, Tensor], right: dict[str, Tensor]) -> float:
    """||left - right|| / ||right|| over all tensors."""
    numerator = sum(float((left[n].double() - t.double()).square().sum()) for n, t in right.items())
    denominator = sum(float(t.double().square().sum()) for t in right.values())
    return math.sqrt(numerator / denominator) if denominator else math.sqrt(numerator)
