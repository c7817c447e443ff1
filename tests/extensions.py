"""Functions that change a model of `training` between its stages, as a lab's code would."""

from __future__ import annotations

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
    """Changes what it carries."""
    with torch.no_grad():
        model.one.weight.mul_(0.5)  # type: ignore


EXTENSIONS = {
    f.__name__: f
    for f in (add_adapters, new_head, wide_head, untie, grow_token_bias, unsteady, shrink)
}
