"""Models of the size that people fine-tune on a laptop, trained with AdamW: a GPT of characters, a BERT-like classifier of words,
and a CNN with BatchNorm.

Each is trained through four stages, from random weights or from given ones. The two middle stages teach something that later
ones do not repeat, and that a slice of the held-out rows sees. Data, rates, and slices were fixed by exact effects
alone (`python -m benchmarks.larger_models --only-exact --first-seed 1`; benchmarks/README.md).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from torch import Tensor, nn
from torch.nn import functional as F

from .gpt import Transformer
from .larger_tables import ALPHABET, CONTEXT, GROUPS, HELD, WINDOW, WORDS, groups, images, spellings
from .pipeline import Batch, Tables


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
    concerns: dict[str, int]
    """Of each slice, in the order of the held-out data: 1 where its loss must not rise, -1 where it must not fall."""
    batch: int
    every: int
    """Steps between recorded states."""
    steps: int = 60
    lr: float = 1e-3
    given: int = 0
    """Steps at three times the learning rate on `GIVEN` before the first stage, which are no part of the record."""

    def rate(self, step: int) -> float:
        """Learning rate of a step of a stage."""
        return self.lr * (1 - step / self.steps)

    @property
    def slices(self) -> dict[str, slice]:
        """Held-out rows of each slice."""
        return {n: slice(HELD * i, HELD * (i + 1)) for i, n in enumerate(self.concerns)}


def build_gpt() -> nn.Module:
    """6 layers of width 256, context 128: 4,788,769 parameters."""
    return Transformer(len(ALPHABET), 6, 256, CONTEXT)


def build_bert() -> nn.Module:
    """4 layers of width 192 over 32 words, four classes: 2,170,756 parameters."""
    return Transformer(WORDS, 4, 192, WINDOW, len(GROUPS))


def build_cnn() -> nn.Module:
    """Three convolutions with BatchNorm and a linear layer: 26,090 parameters."""
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


_GPT = Larger(
    "gpt-5m", "GPT, 4.8 M", build_gpt, spellings, ("law", "prophets", "gospels", "poetry"),
    {"today": 1, "long s": -1, "thorns": -1}, batch=8, every=60,
)  # fmt: skip
_BERT = Larger(
    "bert", "BERT, 2.2 M", build_bert, groups, ("all", "mistaken", "marked", "rest"),
    {"plain": 1, "prophets": 1, "marked": 1}, batch=32, every=60,
)  # fmt: skip
_CNN = Larger(
    "cnn-batchnorm", "CNN, BatchNorm", build_cnn, images, ("all", "mistaken", "patched", "rest"),
    {"plain": 1, "threes": 1, "patched": 1}, batch=64, every=1,
)  # fmt: skip


def _given(setting: Larger) -> Larger:
    return replace(
        setting,
        name=f"{setting.name}-given",
        title=f"{setting.title}, given weights",
        lr=setting.lr / 3,
        given=240,
    )


LARGER = {s.name: s for base in (_CNN, _BERT, _GPT) for s in (base, _given(base))}
