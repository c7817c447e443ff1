"""Audited code that answers by more than model, batch, and generators; and code that does not."""

from __future__ import annotations

import os
import threading
import time

import torch
from torch import nn
from torch.nn.functional import cross_entropy

calls = {"loss": 0, "gradient": 0, "predict": 0, "load": 0}
before: list[float] = []


def build() -> nn.Module:
    return nn.Sequential(nn.Linear(2, 4), nn.BatchNorm1d(4), nn.Dropout(0.2), nn.Linear(4, 3))


def grow(model):
    model.append(nn.Linear(3, 3))


def load_batch(dataset, ids):
    rows = dataset.frame.iloc[list(ids)]
    return torch.tensor(rows[["p", "q"]].to_numpy(), dtype=torch.float32), torch.tensor(
        rows["y"].to_numpy()
    )


class Box:
    """A batch of a class that only this code knows."""

    def __init__(self, x, y) -> None:
        self.x, self.y = x, y


def load_boxed(dataset, ids):
    return Box(*load_batch(dataset, ids))


def of_a_box(model, box):
    return honest(model, (box.x, box.y))


def load_counting(dataset, ids):
    calls["load"] += 1
    x, y = load_batch(dataset, ids)
    return x, y if calls["load"] < 20 else (y + 1) % 3


def honest(model, batch):
    x, y = batch
    return cross_entropy(model(x + 0.1 * torch.randn_like(x)), y)


def counting(model, batch):
    calls["loss"] += 1
    return honest(model, batch) * (1.0 if calls["loss"] < 20 else 0.5)


def by_the_clock(model, batch):
    return honest(model, batch) * (1 + 0.1 * (time.time() % 1))


def by_its_process(model, batch):
    return honest(model, batch) * (1 + 0.1 * (os.getpid() % 97))


def by_its_folder(model, batch):
    return honest(model, batch) * (1 + 0.1 * (hash(os.environ["HOME"]) % 97))


def by_what_was_asked_before(model, batch):
    weight = float(model[0].weight.detach().sum())
    near = not before or abs(weight - before[-1]) < 0.1
    before.append(weight)
    return honest(model, batch) * (1.0 if near else 0.5)


def by_chance_of_its_own(model, batch):
    return honest(model, batch) * (1 + os.urandom(1)[0] / 256)


def by_a_thread(model, batch):
    ticks = threading.active_count()
    threading.Thread(target=time.sleep, args=(60,), daemon=True).start()
    return honest(model, batch) * (1 + 0.1 * ticks)


class Scaled(torch.autograd.Function):
    @staticmethod
    def forward(ctx, loss):
        return loss.clone()

    @staticmethod
    def backward(ctx, cotangent):
        calls["gradient"] += 1
        return cotangent * (1.0 if calls["gradient"] < 20 else 0.0)


def in_the_gradient_only(model, batch):
    return Scaled.apply(honest(model, batch))


def predict(model, batch):
    return model(batch[0])


def predict_counting(model, batch):
    calls["predict"] += 1
    return predict(model, batch) + (calls["predict"] > 20)
