"""The audited code of the calibration study: copied into every audit's folder, and run from there.

It reads `plan.json`, and trains and records what that says.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from auditspec import Dataset, Recorder
from auditspec.artifacts.checkpoints import write_tensors

LABEL = "digit"
PIXELS = [f"p{i}" for i in range(64)]
Batch = tuple[Tensor, Tensor]


def build_mlp() -> nn.Module:
    """64-32-32-10, GELU."""
    return nn.Sequential(
        nn.Flatten(),
        nn.Linear(64, 32),
        nn.GELU(),
        nn.Linear(32, 32),
        nn.GELU(),
        nn.Linear(32, 10),
    )


def build_cnn() -> nn.Module:
    """Two convolutions and a linear layer, ReLU."""
    return nn.Sequential(
        nn.Conv2d(1, 6, kernel_size=3, padding=1),
        nn.ReLU(),
        nn.Conv2d(6, 12, kernel_size=3, padding=1, stride=2),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(12 * 4 * 4, 10),
    )


def load_batch(dataset: Dataset, ids: Sequence[int]) -> Batch:
    """Images [B, 1, 8, 8] from 0 to 1, and classes [B]."""
    rows = dataset.frame.to_numpy().take(list(ids), axis=0)
    return (
        torch.tensor(rows[:, :64]).float().view(-1, 1, 8, 8) / 16,
        torch.tensor(rows[:, 64]).long(),
    )


def cross_entropy(model: nn.Module, batch: Batch) -> Tensor:
    """Mean over the batch."""
    return F.cross_entropy(model(batch[0]), batch[1])


def predict(model: nn.Module, batch: Batch) -> Tensor:
    """Logits [B, 10]."""
    logits: Tensor = model(batch[0])
    return logits


def train(folder: Path) -> None:
    """Train and record the pipeline of `plan.json`; the weights go to `model.safetensors`."""
    plan = json.loads((folder / "plan.json").read_text())
    torch.manual_seed(plan["seed"])
    factory = build_mlp if plan["model"] == "mlp" else build_cnn
    model = factory()
    kind = getattr(torch.optim, plan["optimizer"])
    optimizer: Any = None
    record = folder / "record"
    with Recorder(record, model, every=1, factory=factory, load_batch=load_batch) as recorder:
        for index, stage in enumerate(plan["stages"]):
            data = Dataset.open(folder / f"{stage['data']}.parquet")
            rows, steps = len(data), stage["steps"]
            if optimizer is None or stage["state"] == "reset":
                optimizer = kind(model.parameters(), lr=stage["lr"], **plan["options"])
            with recorder.stage(
                stage["id"], optimizer, cross_entropy, dataset=data, steps=steps
            ) as run:
                for step in run.steps:
                    falling = (1 + math.cos(math.pi * step / steps)) / 2
                    scale = falling if stage["schedule"] == "cosine" else 1.0
                    optimizer.param_groups[0]["lr"] = stage["lr"] * scale
                    draw = np.random.default_rng([plan["seed"], index, step])
                    ids = draw.choice(rows, min(plan["batch"], rows), replace=False).tolist()
                    optimizer.zero_grad()
                    run.loss(ids).backward()
                    optimizer.step()
    write_tensors(folder / "model.safetensors", model.state_dict())
