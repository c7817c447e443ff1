"""Audited code of `audit_cost`, and the transformer of the larger settings.

Run as a program, it trains a GPT of characters through some stages on tables beside it, each recorded; with an argument, without
a record.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from auditspec import Dataset, Recorder, save_checkpoint

LAYERS, WIDTH, BATCH, STEPS, STAGES = 6, 256, 8, 60, 4
DATA = ("law", "prophets", "gospels", "poetry")
"""Tables that the stages train on, in turn: 129 characters a row, as numbers."""
SYMBOLS, CONTEXT, RATE = 33, 128, 1e-3
STRIDE = 7
"""From a row to the next."""


class Block(nn.Module):
    """Self-attention and a feed-forward layer, each after a LayerNorm."""

    def __init__(self, width: int, heads: int, causal: bool) -> None:
        super().__init__()
        self.heads, self.causal = heads, causal
        self.norm_1, self.norm_2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, h: Tensor) -> Tensor:
        """[B, T, D] -> [B, T, D]."""
        b, t, d = h.shape
        heads = self.qkv(self.norm_1(h)).view(b, t, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        q, k, v = heads.unbind(0)
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=self.causal)
        h = h + self.out(mixed.transpose(1, 2).reshape(b, t, d))
        return h + self.down(F.gelu(self.up(self.norm_2(h))))


class Transformer(nn.Module):
    """A transformer over symbols; with classes it reads the mean of its last layer, without the next symbol."""

    def __init__(
        self, symbols: int, layers: int, width: int, context: int, classes: int | None = None
    ) -> None:
        super().__init__()
        self.classes = classes
        self.embed = nn.Embedding(symbols, width)
        self.place = nn.Parameter(0.02 * torch.randn(context, width))
        blocks = (Block(width, width // 32, classes is None) for _ in range(layers))
        self.blocks = nn.Sequential(*blocks)
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, classes or symbols)
        nn.init.normal_(self.embed.weight, std=0.02)

    def forward(self, x: Tensor) -> Tensor:
        """Symbols [B, T] -> logits [B, T, C], or [B, classes]."""
        h = self.norm(self.blocks(self.embed(x) + self.place[: x.shape[1]]))
        logits: Tensor = self.head(h if self.classes is None else h.mean(1))
        return logits


def build_model() -> nn.Module:
    """A fresh model."""
    return Transformer(SYMBOLS, LAYERS, WIDTH, CONTEXT)


def load_batch(dataset: Dataset, ids: Sequence[int]) -> Tensor:
    """Characters, [B, 129]."""
    return torch.from_numpy(dataset.frame.to_numpy()[list(ids)])


def loss(model: nn.Module, batch: Tensor) -> Tensor:
    """Mean -log p of each row's characters but its first, [B]."""
    logits: Tensor = model(batch[:, :-1])
    return F.cross_entropy(logits.transpose(1, 2), batch[:, 1:], reduction="none").mean(1)


def objective(model: nn.Module, batch: Tensor) -> Tensor:
    """The rows' mean."""
    return loss(model, batch).mean()


def ids(stage: int, step: int, rows: int) -> list[int]:
    """Rows of a step's minibatch: no two of a stage are the same while there are enough."""
    first = (stage * STEPS + step) * BATCH
    return [STRIDE * place % rows for place in range(first, first + BATCH)]


def main(recorded: bool) -> None:
    """Train every stage."""
    here = Path(__file__).parent
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model = build_model()
    recorder = (
        Recorder(here / "record", model, every=STEPS, factory=build_model, load_batch=load_batch)
        if recorded
        else None
    )
    with recorder or nullcontext():
        for stage in range(STAGES):
            data = Dataset.open(here / f"{DATA[stage % len(DATA)]}.parquet")
            optimizer = torch.optim.AdamW(model.parameters(), RATE)
            with (
                recorder.stage(
                    f"stage-{stage}", optimizer, objective=objective, dataset=data, steps=STEPS
                )
                if recorder
                else nullcontext()
            ) as run:
                for step in run.steps if run else range(STEPS):
                    optimizer.param_groups[0]["lr"] = RATE * (1 - step / STEPS)
                    rows = ids(stage, step, len(data))
                    value = run.loss(rows) if run else objective(model, load_batch(data, rows))
                    optimizer.zero_grad()
                    value.backward()
                    optimizer.step()
    save_checkpoint(here / "model.safetensors", model)


if __name__ == "__main__":
    main(recorded=len(sys.argv) == 1)
