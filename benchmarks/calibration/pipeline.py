"""The audited code of the calibration study: lies beside `networks.py` and `plan.json` in one folder.

`plan.json` says what is trained; it is read as a part of the code, so that the code's digest covers it.
"""

from __future__ import annotations

import json
import math
import pkgutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import networks
import numpy as np
import torch
from safetensors.torch import load as load_tensors
from torch import Tensor, nn
from torch.nn import functional as F

from auditspec import Dataset, Recorder
from auditspec.artifacts.checkpoints import read_tensors, write_tensors

PLAN: dict[str, Any] = json.loads(pkgutil.get_data(__name__, "plan.json") or b"")
Batch = tuple[Tensor, Tensor]


def build_model() -> nn.Module:
    """The model, with whatever its factory puts into it."""
    model = networks.build(PLAN["kind"])
    if PLAN["plant"] is not None:
        networks.plant(model, **PLAN["plant"])
    if PLAN["smuggled"] is not None:
        model.load_state_dict(load_tensors(pkgutil.get_data(__name__, PLAN["smuggled"]) or b""))
    return model


def load_batch(dataset: Dataset, ids: Sequence[int]) -> Batch:
    """Pixels or columns [B, D], or token ids [B, T], and classes [B]: the column after those."""
    rows, width = dataset.frame.to_numpy()[list(ids)], PLAN["columns"]
    x = torch.tensor(rows[:, :width]).to(torch.int64 if PLAN["tokens"] else torch.float32)
    return x, torch.tensor(rows[:, width]).long()


def cross_entropy(model: nn.Module, batch: Batch) -> Tensor:
    """Mean over the batch."""
    return F.cross_entropy(model(batch[0]), batch[1])


def predict(model: nn.Module, batch: Batch) -> Tensor:
    """Logits [B, C]."""
    logits: Tensor = model(batch[0])
    return logits


def new_head(model: Any) -> None:
    networks.new_head(model)


def new_head_alone(model: Any) -> None:
    networks.new_head_alone(model)


def adapter(model: Any) -> None:
    networks.adapter(model)


def adapter_alone(model: Any) -> None:
    networks.adapter_alone(model)


def copied_head(model: Any) -> None:
    networks.copied_head(model)


def copied_adapter(model: Any) -> None:
    networks.copied_adapter(model)


def copied_body(model: Any) -> None:
    networks.copied_body(model)


def side_path(model: Any) -> None:
    networks.side_path(model, **PLAN["side"])


def train(folder: Path) -> None:
    """Train and record; the weights go to `model.safetensors`."""
    torch.manual_seed(PLAN["seed"])
    model = build_model()
    if PLAN["given"] is not None:
        model.load_state_dict(read_tensors(folder / PLAN["given"]))
    kind = getattr(torch.optim, PLAN["optimizer"])
    record = folder / "record"
    with Recorder(
        record, model, every=1, factory=build_model, load_batch=load_batch, self_check=False
    ) as recorder:
        for index, stage in enumerate(PLAN["stages"]):
            data, steps = Dataset.open(folder / f"{stage['data']}.parquet"), stage["steps"]
            torch.manual_seed(stage["seed"])
            if stage["change"] is not None:
                recorder.extend(globals()[stage["change"]])
            trained = [p for p in model.parameters() if p.requires_grad]
            optimizer = kind(trained, lr=stage["lr"], **PLAN["options"])
            with recorder.stage(
                stage["id"], optimizer, cross_entropy, dataset=data, steps=steps
            ) as run:
                for step in run.steps:
                    falling = (1 + math.cos(math.pi * step / steps)) / 2
                    optimizer.param_groups[0]["lr"] = stage["lr"] * falling
                    draw = np.random.default_rng([PLAN["seed"], index, step])
                    size = min(PLAN["batch"], len(data))
                    optimizer.zero_grad()
                    run.loss(draw.choice(len(data), size, replace=False).tolist()).backward()
                    optimizer.step()
    write_tensors(folder / "model.safetensors", model.state_dict())
