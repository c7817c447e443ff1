"""Data-parallel training by plain torch, which knows nothing of the recorder: runs with and without a stage.

`python plain_parallel.py RANK WORLD FOLDER CASE…` writes FOLDER/CASE/plain-RANK.pt: the state dict at the end of every run,
by the stage that was left out ("" for none).
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

ROWS, WORDS = 64, 11
STAGES = ("base", "labels", "polish")
STEPS = 5


def table() -> pd.DataFrame:
    """Rows with four features, six tokens, and a class."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(ROWS, 4))
    frame = pd.DataFrame(x, columns=[f"x{i}" for i in range(4)])
    tokens = rng.integers(0, WORDS, size=(ROWS, 6))
    frame[[f"t{i}" for i in range(6)]] = tokens
    return frame.assign(y=(x[:, 0] > 0).astype(int) + (x[:, 1] > 0.7).astype(int))


def rows_of(frame: pd.DataFrame, ids: Any) -> tuple[Tensor, Tensor, Tensor]:
    some = frame.iloc[list(ids)]
    x = torch.tensor(some[[f"x{i}" for i in range(4)]].to_numpy())
    tokens = torch.tensor(some[[f"t{i}" for i in range(6)]].to_numpy())
    return x, tokens, torch.tensor(some["y"].to_numpy())


class Mlp(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(4, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor, tokens: Tensor) -> Tensor:
        hidden = nn.functional.dropout(torch.tanh(self.one(x)), 0.2, self.training)
        return self.two(hidden)


class Normed(Mlp):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(8)

    def forward(self, x: Tensor, tokens: Tensor) -> Tensor:
        return self.two(torch.tanh(self.norm(self.one(x))))


class Routed(Mlp):
    """Every rank may take another head, and one is never taken."""

    def __init__(self) -> None:
        super().__init__()
        self.other, self.idle = nn.Linear(8, 3), nn.Linear(8, 3)

    def forward(self, x: Tensor, tokens: Tensor) -> Tensor:
        head = self.two if int(tokens[0, 0]) % 2 else self.other
        return head(torch.tanh(self.one(x)))


class Gpt(nn.Module):
    """A decoder of one layer, whose last state gives the class; tied to nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.place = nn.Embedding(WORDS, 16), nn.Embedding(6, 16)
        self.norm, self.last = nn.LayerNorm(16), nn.LayerNorm(16)
        self.qkv, self.out = nn.Linear(16, 48), nn.Linear(16, 16)
        self.head = nn.Linear(16, 3)

    def forward(self, x: Tensor, tokens: Tensor) -> Tensor:
        h = self.embed(tokens) + self.place.weight
        h = nn.functional.dropout(h, 0.1, self.training)
        q, k, v = self.qkv(self.norm(h)).view(*h.shape[:2], 2, 24).transpose(1, 2).chunk(3, -1)
        mixed = nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        h = h + self.out(mixed.transpose(1, 2).flatten(2))
        return self.head(self.last(h)[:, -1])


def build_mlp() -> nn.Module:
    return Mlp()


def build_mlp64() -> nn.Module:
    return Mlp().double()


def build_normed() -> nn.Module:
    return Normed()


def build_routed() -> nn.Module:
    return Routed()


def build_gpt() -> nn.Module:
    return Gpt()


def build_gpt64() -> nn.Module:
    return Gpt().double()


def loss_of(model: nn.Module, batch: tuple[Tensor, Tensor, Tensor]) -> Tensor:
    x, tokens, y = batch
    return nn.functional.cross_entropy(model(x.to(next(model.parameters())), tokens), y)


@dataclass(frozen=True)
class Case:
    """A run of three stages on every rank."""

    build: Callable[[], nn.Module]
    optimizer: str = "AdamW"
    options: dict[str, Any] = field(default_factory=lambda: {"lr": 0.01})
    microbatches: int = 1
    clip_norm: float | None = None
    wrapped: dict[str, Any] = field(default_factory=dict)
    length: int = STEPS
    """Steps of each stage."""

    def steps(self, stage: str, rank: int, world: int) -> Iterator[list[list[int]]]:
        """The rows of each step's microbatches; the last step's batch is shorter on later ranks."""
        for step in range(self.length):
            shift = 17 * STAGES.index(stage) + (step * world + rank) * 7
            rows = [
                (shift + 3 * i) % ROWS for i in range(8 - min(rank, 3) * (step == self.length - 1))
            ]
            yield [rows[part :: self.microbatches] for part in range(self.microbatches)]

    def optimizer_of(self, model: nn.Module) -> torch.optim.Optimizer:
        kind: Any = getattr(torch.optim, self.optimizer)
        optimizer: torch.optim.Optimizer = kind(model.parameters(), **self.options)
        return optimizer


SGD: dict[str, Any] = {"optimizer": "SGD", "options": {"lr": 0.1, "momentum": 0.9}}
CASES = {
    "mlp": Case(build_mlp, clip_norm=0.5),
    "mlp64": Case(build_mlp64, **SGD),
    "accumulated": Case(build_mlp, microbatches=2),
    "normed": Case(build_normed, **SGD),
    "routed": Case(build_routed, **SGD, wrapped={"find_unused_parameters": True}),
    "gpt": Case(build_gpt, clip_norm=1.0),
    "gpt64": Case(build_gpt64),
    "buckets": Case(
        build_gpt, wrapped={"bucket_cap_mb": 0.001, "find_unused_parameters": True}, **SGD
    ),
    "rebuilt": Case(build_gpt, wrapped={"bucket_cap_mb": 0.001}),
    "static": Case(build_gpt, wrapped={"static_graph": True}),
    "short": Case(build_gpt, length=2, wrapped={"bucket_cap_mb": 0.001}),
}


def one_step(
    case: Case,
    wrapped: DistributedDataParallel,
    optimizer: torch.optim.Optimizer,
    microbatches: list[list[int]],
    loss: Callable[[list[int]], Tensor],
) -> None:
    """A step of one rank, its microbatches accumulated without averaging in between."""
    optimizer.zero_grad()
    for number, rows in enumerate(microbatches, 1):
        with nullcontext() if number == len(microbatches) else wrapped.no_sync():
            loss(rows).backward()
    if case.clip_norm is not None:
        nn.utils.clip_grad_norm_(wrapped.parameters(), case.clip_norm)
    optimizer.step()


def trained(case: Case, frame: pd.DataFrame, without: str) -> dict[str, Tensor]:
    """The end of a run without a stage, whose random numbers are drawn all the same."""
    rank, world = torch.distributed.get_rank(), torch.distributed.get_world_size()
    torch.manual_seed(0)
    model = case.build()
    wrapped = DistributedDataParallel(model, **case.wrapped)
    torch.manual_seed(100 + rank)
    for stage in STAGES:
        before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        optimizer = case.optimizer_of(model)

        def loss(rows: list[int]) -> Tensor:
            return loss_of(wrapped, rows_of(frame, rows)) / case.microbatches

        for microbatches in case.steps(stage, rank, world):
            one_step(case, wrapped, optimizer, microbatches, loss)
        if stage == without:
            model.load_state_dict(before)
    return model.state_dict()


def joined() -> tuple[Path, list[str]]:
    """Join the processes that the arguments name; the folder, and the cases."""
    rank, world, folder, *cases = sys.argv[1:]
    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        "gloo",
        rank=int(rank),
        world_size=int(world),
        init_method=f"file://{folder}/store-{Path(sys.argv[0]).stem}",
        timeout=timedelta(seconds=60),
    )
    return Path(folder), cases


def main() -> None:
    folder, cases = joined()
    for name in cases:
        runs = {without: trained(CASES[name], table(), without) for without in ("", *STAGES)}
        (folder / name).mkdir(exist_ok=True)
        torch.save(runs, folder / name / f"plain-{torch.distributed.get_rank()}.pt")
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main()
