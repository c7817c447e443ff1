"""Functions that change a model of `training` between its stages, as a lab's code would."""

from __future__ import annotations

import copy
import itertools
import random
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn


class Adapted(nn.Module):
    """A linear layer with a low-rank update (Hu et al. 2022), whose own weights are frozen."""

    def __init__(self, base: nn.Linear, rank: int = 2) -> None:
        super().__init__()
        self.base = base.requires_grad_(False)
        self.down = nn.Parameter(torch.randn(rank, base.in_features).to(base.weight))
        self.up = nn.Parameter(torch.zeros(base.out_features, rank).to(base.weight))
        self.register_buffer("scale", torch.tensor(0.5).to(base.weight))

    def forward(self, x: Tensor) -> Tensor:
        return self.base(x) + self.scale * (x @ self.down.T @ self.up.T)


def add_adapters(model: nn.Module) -> None:
    model.one = Adapted(model.one)  # type: ignore[arg-type]


def new_head(model: nn.Module) -> None:
    """Another layer under the same name."""
    old = model.two
    model.two = nn.Linear(old.in_features, old.out_features).to(old.weight)  # type: ignore


def wide_head(model: nn.Module) -> None:
    """Four classes instead of three."""
    old = model.two
    model.two = nn.Linear(old.in_features, 4).to(old.weight)  # type: ignore


def untie(model: nn.Module) -> None:
    model.head.weight = nn.Parameter(torch.randn_like(model.embed.weight))  # type: ignore


def grow_token_bias(model: nn.Module) -> None:
    """Renames nothing, drops nothing; a parameter that the loss does not reach."""
    model.spare = nn.Parameter(torch.randn(3).double())


def unsteady(model: nn.Module) -> None:
    """Depends on more than the architecture."""
    if model.training and next(model.parameters()).abs().sum() > UNSTEADY:
        model.spare = nn.Parameter(torch.zeros(1))


UNSTEADY = 1e3


def shrink(model: nn.Module) -> None:
    """Writes into what goes on."""
    with torch.no_grad():
        model.one.weight.mul_(0.5)  # type: ignore


# --- functions whose tensors come from trained ones ---------------------------------------------


def copy_adapters(model: nn.Module) -> None:
    """Adapters around a deep copy of the trained layer."""
    model.one = Adapted(copy.deepcopy(model.one))  # type: ignore[arg-type]


def load_head(model: nn.Module) -> None:
    """A new head that begins with the weights of the old one."""
    old: nn.Linear = model.two  # type: ignore[assignment]
    new = nn.Linear(old.in_features, old.out_features).to(old.weight)
    new.load_state_dict(old.state_dict())
    model.two = new


def _merged(layer: Adapted) -> Tensor:
    update: Tensor = layer.scale * (layer.up @ layer.down)  # type: ignore
    return (layer.base.weight + update).detach()


def merge_adapters(model: nn.Module) -> None:
    """The low-rank update goes into new weights; the adapters go."""
    layer: Adapted = model.one  # type: ignore[assignment]
    merged = nn.Linear(layer.base.in_features, layer.base.out_features).to(layer.base.weight)
    with torch.no_grad():
        merged.weight.copy_(_merged(layer))
        merged.bias.copy_(layer.base.bias)
    model.one = merged


def merge_in_place(model: nn.Module) -> None:
    """The same, into the old weights."""
    layer: Adapted = model.one  # type: ignore[assignment]
    layer.base.weight.data = _merged(layer)
    model.one = layer.base.requires_grad_(True)


def more_tokens(model: nn.Module) -> None:
    """Ten rows in place of eight: the old ones, one that is new, and the mean of the old ones."""
    old: Tensor = model.embed.weight.detach()  # type: ignore
    rows = [old, torch.randn(1, old.shape[1]).to(old), old.mean(0, keepdim=True)]
    model.embed = nn.Embedding(10, old.shape[1], _weight=torch.cat(rows))
    model.head = nn.Linear(old.shape[1], 10, bias=False)
    model.head.weight = model.embed.weight


def add_teacher(model: nn.Module) -> None:
    """A frozen copy of the whole model, as the reference model of DPO is."""
    model.teacher = copy.deepcopy(model).requires_grad_(False)


def keep_reference(model: nn.Module) -> None:
    """The present weights of a layer, and their mean, in buffers."""
    weight: Tensor = model.one.weight.detach()  # type: ignore
    model.register_buffer("reference", weight.clone())
    model.register_buffer("mean", weight.mean(0))


def noisy_copy(model: nn.Module) -> None:
    """A copy with noise."""
    old: nn.Linear = model.two  # type: ignore[assignment]
    new = nn.Linear(old.in_features, old.out_features).to(old.weight)
    with torch.no_grad():
        new.weight.copy_(old.weight + 0.1 * torch.randn_like(old.weight))
        noise = np.random.normal(size=len(old.bias)) + random.gauss(0, 1)
        new.bias.copy_(old.bias * (1 + 0.1 * torch.tensor(noise)))
    model.two = new


def start_over(model: nn.Module) -> None:
    """Draws new values into the old head."""
    model.two.reset_parameters()  # type: ignore


def keep_outputs(model: nn.Module, data: Any) -> None:
    """What the model says of every row, in a buffer: reference log-probabilities."""
    frame = data.frame
    x = torch.tensor(frame[["x0", "x1", "x2", "x3"]].to_numpy())
    with torch.no_grad():
        outputs = model(x.to(next(model.parameters())), torch.tensor(frame["token"].to_numpy()))
    model.register_buffer("outputs", outputs.log_softmax(1), persistent=False)


def hide_teacher(model: nn.Module) -> None:
    """A frozen copy that is no part of the module tree."""
    model.teachers = [copy.deepcopy(model)]


TEACHER: nn.Module | None = None


def global_teacher(model: nn.Module) -> None:
    """A frozen copy in a global variable."""
    global TEACHER
    TEACHER = copy.deepcopy(model)


def clock(model: nn.Module) -> None:
    """Other values each time."""
    model.spare = nn.Parameter(torch.tensor([float(next(TICKS))]).double())


TICKS = itertools.count()


def brittle(model: nn.Module) -> None:
    """Works on the weights that it was given first, and on no others."""
    weight: Tensor = model.one.weight.detach()  # type: ignore
    if SEEN and not torch.equal(SEEN[0], weight):
        raise ValueError("these are not my weights")
    SEEN.append(weight.clone())


SEEN: list[Tensor] = []

EXTENSIONS = {
    f.__name__: f
    for f in (
        add_adapters,
        new_head,
        wide_head,
        untie,
        grow_token_bias,
        unsteady,
        shrink,
        copy_adapters,
        load_head,
        merge_adapters,
        merge_in_place,
        more_tokens,
        add_teacher,
        keep_reference,
        noisy_copy,
        start_over,
        keep_outputs,
        hide_teacher,
        global_teacher,
        clock,
        brittle,
    )
}
WITH_DATA = frozenset({"keep_outputs"})
"""Those that are given the data set too."""
