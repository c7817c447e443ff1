"""Audited code of `isolation_cost`: digits as sequences of 64 pixels, read by a transformer of five million parameters.

Run as a program, it trains two stages on `all.parquet` beside it, recorded.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from auditspec import Dataset, Recorder, save_checkpoint

STEPS = 60
"""Of each stage, on 16 images: 1,024 pixels a step."""


class Reader(nn.Module):
    """A transformer's encoder over pixels, its mean, and a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.pixel = nn.Linear(1, 256)
        self.place = nn.Parameter(0.02 * torch.randn(64, 256))
        layer = nn.TransformerEncoderLayer(
            256, 4, dim_feedforward=1024, dropout=0.0, batch_first=True
        )
        self.layers = nn.TransformerEncoder(layer, 6, enable_nested_tensor=False)
        self.head = nn.Linear(256, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Logits, [B, 10], of pixels [B, 64]."""
        logits: Tensor = self.head(self.layers(self.pixel(x[..., None]) + self.place).mean(1))
        return logits


def build_model() -> nn.Module:
    """A fresh model."""
    return Reader()


def load_batch(dataset: Dataset, ids: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Pixels [B, 64] and classes [B]."""
    rows = dataset.frame.iloc[list(ids)]
    pixels = rows.drop(columns="digit").to_numpy(dtype="float32")
    return torch.from_numpy(pixels), torch.from_numpy(rows["digit"].to_numpy(copy=True))


def objective(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    """Mean cross-entropy."""
    return cross_entropy(model(batch[0]), batch[1])


def predict(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    """Logits."""
    logits: Tensor = model(batch[0])
    return logits


def main() -> None:
    """Train and record."""
    here = Path(__file__).parent
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model, data = build_model(), Dataset.open(here / "all.parquet")
    with Recorder(here / "record", model, factory=build_model, load_batch=load_batch) as recorder:
        for name, rate in (("base", 3e-4), ("tune", 1e-4)):
            optimizer = torch.optim.AdamW(model.parameters(), rate)
            with recorder.stage(
                name, optimizer, objective=objective, dataset=data, steps=STEPS
            ) as run:
                for step in run.steps:
                    ids = [(16 * step + 7 * place) % len(data) for place in range(16)]
                    loss = run.loss(ids)
                    optimizer.zero_grad()
                    loss.backward()
                    optimizer.step()
    save_checkpoint(here / "model.safetensors", model)


if __name__ == "__main__":
    main()
