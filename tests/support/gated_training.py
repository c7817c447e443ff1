"""Training whose updates in one stage are scaled, and what it is tried on."""

from __future__ import annotations

from typing import Any

import torch
from extensions import EXTENSIONS
from torch import Tensor, nn
from training import Recorded, add_new, cross_entropy, load_batch, one_step, parameters

OPTIMIZERS: dict[str, tuple[str, dict[str, Any]]] = {
    "sgd": ("SGD", {"lr": 0.1}),
    "momentum": ("SGD", {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.01, "dampening": 0.3}),
    "nesterov": ("SGD", {"lr": 0.1, "momentum": 0.9, "nesterov": True}),
    "maximize": ("SGD", {"lr": 0.02, "momentum": 0.5, "maximize": True}),
    "adam": ("Adam", {"lr": 0.01, "weight_decay": 0.1}),
    "adamw": ("AdamW", {"lr": 0.01, "weight_decay": 0.1}),
}


def gated(recorded: Recorded, stage_id: str, eps: float) -> dict[str, Tensor]:
    """theta_K of a training run whose updates in one stage are scaled by 1 - eps.

    Parameters and moments are scaled, counters are not; everything else is plain torch.optim.
    """
    torch.manual_seed(0)
    model = recorded.build()
    data = recorded.datasets["data"]
    optimizer: torch.optim.Optimizer | None = None
    for stage in recorded.plan:
        if stage.extend is not None:
            EXTENSIONS[stage.extend](model)
        stage.freeze(model)
        if optimizer is None or not stage.carry:
            optimizer = stage.make_optimizer(model)
        elif stage.extend is not None:
            add_new(model, optimizer)
        for step in range(stage.steps):
            before = parameters(model)
            moments = {
                n: {k: v.clone() for k, v in optimizer.state.get(p, {}).items() if v is not None}
                for n, p in model.named_parameters()
            }

            def loss(ids: list[int], weight: float = 1.0) -> Tensor:
                return cross_entropy(model, load_batch(data, ids)) * weight

            one_step(model, optimizer, stage, step, loss)
            if stage.id == stage_id:
                with torch.no_grad():
                    for name, p in model.named_parameters():
                        p.copy_(before[name] + (1 - eps) * (p - before[name]))
                        for key, value in optimizer.state.get(p, {}).items():
                            if key != "step" and value is not None:
                                old = moments[name].get(key, torch.zeros_like(value))
                                value.copy_(old + (1 - eps) * (value - old))
    return parameters(model)


class Embedded(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed, self.head = nn.Embedding(8, 4), nn.Linear(4, 3)

    def forward(self, x: Tensor, token: Tensor) -> Tensor:
        return self.head(torch.tanh(self.embed(token)))


def build_embedding() -> nn.Module:
    return Embedded().double()
