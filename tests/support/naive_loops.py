"""Real loops that a record cannot hold, and the cause that a self-check should name: one a loop."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from training import FEATURES, Dataset, build_mlp32, table

from auditspec import Recorder

OWN = np.random.default_rng(3)
"""A generator that no one records."""
AVERAGE = [torch.zeros(6, 4)]
CURRICULUM = {"epoch": 0}
"""What training sets, and a fresh process does not."""


def load(dataset: Dataset, ids: Any) -> tuple[Tensor, Tensor]:
    rows = list(ids)
    x = torch.tensor(dataset.frame[FEATURES].to_numpy()[rows], dtype=torch.float32)
    return x, torch.tensor(dataset.frame["y"].to_numpy()[rows])


def load_with_noise(dataset: Dataset, ids: Any) -> tuple[Tensor, Tensor]:
    x, y = load(dataset, ids)
    return x + torch.from_numpy(OWN.normal(size=x.shape)).float(), y


def load_by_epoch(dataset: Dataset, ids: Any) -> tuple[Tensor, Tensor]:
    x, y = load(dataset, ids)
    return x * (1 + CURRICULUM["epoch"]), y


def cross_entropy(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    return nn.functional.cross_entropy(model(batch[0], batch[1]), batch[1])


def noisy_loss(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    return cross_entropy(model, batch) * float(1 + 0.5 * OWN.random())


def smoothed_by_epoch(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    smoothing = 0.2 * CURRICULUM["epoch"]
    return nn.functional.cross_entropy(
        model(batch[0], batch[1]), batch[1], label_smoothing=smoothing
    )


def needs_training(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    if not CURRICULUM["epoch"]:
        raise ValueError("no epoch has begun")
    return cross_entropy(model, batch)


class Dropping(nn.Module):
    def __init__(self, p: float) -> None:
        super().__init__()
        self.one, self.drop, self.two = nn.Linear(4, 6), nn.Dropout(p), nn.Linear(6, 3)
        self.register_buffer("seen", torch.zeros(()))

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return self.two(self.drop(torch.tanh(self.one(x))))


def build_dropping() -> nn.Module:
    return Dropping(0.2)


def penalty(model: nn.Module) -> Tensor:
    return sum((p.square().sum() for p in model.parameters()), torch.zeros(()))


@dataclass
class Loop:
    """What a loop's step has at hand."""

    run: Any
    model: Any
    optimizer: torch.optim.Optimizer
    data: Dataset
    step: int

    @property
    def ids(self) -> list[int]:
        return [(7 * self.step + 3 * i) % 48 for i in range(8)]

    def make(
        self,
        *,
        on_loss: Callable[[Tensor], Tensor] = lambda loss: loss,
        zero: bool = True,
        edit: Callable[[], object] = lambda: None,
    ) -> None:
        if zero:
            self.optimizer.zero_grad()
        on_loss(self.run.loss(self.ids)).backward()
        edit()
        self.optimizer.step()

    def gradients(self) -> list[Tensor]:
        return [p.grad for p in self.model.parameters() if p.grad is not None]


@dataclass(frozen=True)
class Case:
    """A loop, and the cause to be named; None: it can be recorded after all."""

    code: str | None
    step: Callable[[Loop], object]
    build: Callable[[], nn.Module] = build_mlp32
    load: Callable[..., Any] = load
    objective: Callable[..., Tensor] = cross_entropy
    prepare: Callable[[Any, torch.optim.Optimizer], object] = lambda model, optimizer: None
    clip_norm: float | None = None
    steps: int = 20
    optimizer: Callable[..., torch.optim.Optimizer] = torch.optim.AdamW


def two_backwards(loop: Loop) -> None:
    loop.optimizer.zero_grad()
    loss = loop.run.loss(loop.ids)
    loss.backward(retain_graph=True)
    loss.backward()
    loop.optimizer.step()


SCALERS: dict[int, torch.amp.GradScaler] = {}


def clip_scaled(loop: Loop) -> None:
    scaler = SCALERS.setdefault(id(loop.model), torch.amp.GradScaler("cpu"))
    loop.optimizer.zero_grad()
    scaler.scale(loop.run.loss(loop.ids)).backward()
    nn.utils.clip_grad_norm_(loop.model.parameters(), 1.0)
    scaler.step(loop.optimizer)
    scaler.update()


def halve_state(loop: Loop) -> None:
    loop.make()
    for slots in loop.optimizer.state.values():
        slots["exp_avg"].mul_(0.5)


def zero_between(loop: Loop) -> None:
    for part in range(2):
        loop.optimizer.zero_grad()
        loop.run.loss(loop.ids[part::2], weight=0.5).backward()
    loop.optimizer.step()


def augmented(loop: Loop, *, watched: bool) -> None:
    """A batch of the loop's own making, of declared rows."""
    loop.optimizer.zero_grad()
    loop.run.batch(loop.ids)
    x, y = load(loop.data, loop.ids)
    loss = cross_entropy(loop.model, (x + 0.5, y))
    if watched:
        loop.run.watch(loss)
    loss.backward()
    loop.optimizer.step()


def own_loss(loop: Loop, weight: float = 1.0, *, other: bool = False) -> None:
    """The batch is declared, and the loss computed by the loop."""
    loop.optimizer.zero_grad()
    x, y = load(loop.data, loop.ids)
    loop.run.batch(tensors=(x, y))
    logits = loop.model(x, y)
    loss = nn.functional.mse_loss(logits, nn.functional.one_hot(y, 3).float())
    loss = loss if other else nn.functional.cross_entropy(logits, y)
    (loss * weight).backward()
    loop.optimizer.step()


def own_autocast(loop: Loop) -> None:
    """Autocast where no hook of the model sees it: the loop calls the model's parts."""
    loop.optimizer.zero_grad()
    loop.run.batch(loop.ids)
    x, y = load(loop.data, loop.ids)
    with torch.autocast("cpu", torch.bfloat16):
        logits = loop.model.two(torch.tanh(loop.model.one(x)))
        loss = nn.functional.cross_entropy(logits, y)
    loss.backward()
    loop.optimizer.step()


def autocast_layers(model: Any, optimizer: torch.optim.Optimizer) -> None:
    for layer in (model.one, model.two):
        layer.forward = torch.autocast("cpu", torch.bfloat16)(layer.forward)


def set_epoch(model: Any, optimizer: torch.optim.Optimizer) -> None:
    CURRICULUM["epoch"] = 1


def decay_by_hand(loop: Loop) -> None:
    loop.make()
    with torch.no_grad():
        for p in loop.model.parameters():
            p.mul_(0.99)


def unit_rows(loop: Loop) -> None:
    """A constraint on the weights, after every step."""
    loop.make()
    with torch.no_grad():
        loop.model.one.weight.div_(loop.model.one.weight.norm(dim=1, keepdim=True))


def late(loop: Loop) -> None:
    """Nothing odd in the steps that are noted."""
    loop.make()
    if loop.step == 8:
        with torch.no_grad():
            loop.model.one.weight.mul_(0.9)


def counting(loop: Loop) -> None:
    loop.make()
    loop.model.seen.add_(1)


def noisy(loop: Loop) -> None:
    for gradient in loop.gradients():
        gradient.add_(torch.randn_like(gradient), alpha=0.01)


def hooked(model: Any, optimizer: torch.optim.Optimizer) -> None:
    model.one.weight.register_hook(lambda gradient: gradient.sign())


def step_hook(model: Any, optimizer: torch.optim.Optimizer) -> None:
    def halve(*args: Any) -> None:
        with torch.no_grad():
            model.one.bias.mul_(0.5)

    optimizer.register_step_post_hook(halve)


def halving(graph: Any, inputs: Any) -> Callable[..., Any]:
    """A backend of torch.compile, which like any other gives other numbers."""
    return lambda *given: [output * 0.5 for output in graph.forward(*given)]


def compile_late(loop: Loop) -> None:
    if loop.step == 0:
        loop.model.compile(backend=halving)
    loop.make()


def build_compiled() -> nn.Module:
    model = build_dropping()
    model.compile(backend="inductor")
    return model


def other_dropout(model: Any, optimizer: torch.optim.Optimizer) -> None:
    model.drop.p = 0.5


def clip(loop: Loop, norm: float, kind: float = 2.0) -> Callable[[], object]:
    return lambda: nn.utils.clip_grad_norm_(loop.model.parameters(), norm, kind)


def averaged(loop: Loop) -> None:
    """Evaluation and an average of weights, outside the model."""
    loop.make()
    with torch.no_grad():
        AVERAGE[:] = [loop.model.one.weight.clone().lerp(mean, 0.9) for mean in AVERAGE]
        loop.model.eval()
        loop.model(*load(loop.data, loop.ids))
        loop.model.train()


COMPILED = {
    "compiled by the factory": Case(None, lambda o: o.make(), build=build_compiled),
    "compiled inside the stage": Case("compile", compile_late),
}
CASES: dict[str, Case] = {
    "a loss term": Case(
        "loss-term", lambda o: o.make(on_loss=lambda loss: loss + 0.05 * penalty(o.model))
    ),
    "a small loss term": Case(
        "loss-term", lambda o: o.make(on_loss=lambda loss: loss + 1e-4 * penalty(o.model))
    ),
    "clipping of scaled gradients": Case("clipping-scaled", clip_scaled),
    "state halved between steps": Case("other-update", halve_state),
    "no zero_grad": Case("zero-grad", lambda o: o.make(zero=False)),
    "zero_grad between two passes": Case("zero-grad-between", zero_between),
    "augmented rows": Case("own-batch", lambda o: augmented(o, watched=False)),
    "augmented rows, and their loss": Case("own-batch", lambda o: augmented(o, watched=True)),
    "undeclared clipping": Case("clipping", lambda o: o.make(edit=clip(o, 0.1))),
    "clipping by value": Case(
        "clipping-by-value",
        lambda o: o.make(edit=lambda: nn.utils.clip_grad_value_(o.model.parameters(), 0.01)),
    ),
    "another norm's clipping": Case(
        "other-clipping", lambda o: o.make(edit=clip(o, 0.01, torch.inf)), clip_norm=0.1
    ),
    "noise on gradients": Case("edited", lambda o: o.make(edit=lambda: noisy(o))),
    "a masked gradient": Case(
        "edited", lambda o: o.make(edit=lambda: o.model.one.weight.grad[:, 0].zero_())
    ),
    "divided gradients": Case(
        "factor-after",
        lambda o: o.make(edit=lambda: [g.div_(3) for g in o.gradients()]),
        optimizer=torch.optim.SGD,
    ),
    "gradient hooks": Case("gradient-hooks", lambda o: o.make(), prepare=hooked),
    "two backward passes": Case("backwards", two_backwards),
    "a loss of one's own, multiplied": Case("factor", lambda o: own_loss(o, 0.3)),
    "a scaled loss without a scaler": Case("scaler", lambda o: own_loss(o, 2.0**16)),
    "another loss": Case("other-objective", lambda o: own_loss(o, other=True)),
    "decay by hand": Case("outside", decay_by_hand),
    "a constraint on weights": Case("outside", unit_rows),
    "a step hook": Case("other-update", lambda o: o.make(), prepare=step_hook),
    "a generator of one's own in load_batch": Case(
        "random-batch", lambda o: o.make(), load=load_with_noise
    ),
    "load_batch by epoch": Case(
        "other-batch", lambda o: o.make(), load=load_by_epoch, prepare=set_epoch
    ),
    "a generator of one's own in the objective": Case(
        "random-objective", lambda o: o.make(), objective=noisy_loss
    ),
    "an objective by epoch": Case(
        "other-loss", lambda o: o.make(), objective=smoothed_by_epoch, prepare=set_epoch
    ),
    "an objective that needs the script": Case(
        "fails", lambda o: o.make(), objective=needs_training, prepare=set_epoch
    ),
    "autocast around the model's parts": Case("autocast", own_autocast),
    "autocast inside layers": Case("other-model", lambda o: o.make(), prepare=autocast_layers),
    "another rate of dropout": Case(
        "other-model", lambda o: o.make(), build=build_dropping, prepare=other_dropout
    ),
    "a buffer that the loop changes": Case("buffer", counting, build=build_dropping),
    "a change after the noted steps": Case("not-noted", late),
    "a loss multiplied by hand": Case(None, lambda o: o.make(on_loss=lambda loss: 0.3 * loss)),
    "run.loss called twice": Case(None, lambda o: (o.run.loss(o.ids[:3]), o.make())),
    "an average of weights in a model of its own": Case(None, averaged),
}


def train(folder: Path, case: Case, every: Any = 10, **options: Any) -> Recorder:
    """Train and record; a case's preparation comes between the model and the recorder's stage."""
    folder.mkdir(parents=True, exist_ok=True)
    table().to_parquet(folder / "data.parquet")
    data = Dataset.open(folder / "data.parquet")
    CURRICULUM["epoch"] = 0
    torch.manual_seed(0)
    model = case.build()
    optimizer = case.optimizer(model.parameters(), lr=1e-2)
    recorder = Recorder(
        folder / "record", model, factory=case.build, load_batch=case.load, every=every, **options
    )
    case.prepare(model, optimizer)
    with (
        recorder,
        recorder.stage(
            "tune",
            optimizer,
            case.objective,
            dataset=data,
            steps=case.steps,
            clip_norm=case.clip_norm,
        ) as run,
    ):
        for step in run.steps:
            case.step(Loop(run, model, optimizer, data, step))
    return recorder
