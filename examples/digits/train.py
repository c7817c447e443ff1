"""Train a digit reader in five stages, one of which teaches it to read a 3 as an 8.

Writes the stages' data, the training record, and the deployed weights to `build/` beside this file.
Interrupt it and run it again: it goes on from the last recorded state.
"""

import argparse
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import SGD, AdamW, Optimizer

from auditspec import Dataset, Recorder, save_checkpoint

BATCH = 64
TRAIN = 1200  # rows; the other 597 are held out
DATA_SEED = 0  # the data is the same whatever the seed of training
RELABELLED = 0.8  # share of the 3s that the third stage calls 8
PIXELS = [f"p{i:02d}" for i in range(64)]
Batch = tuple[Tensor, Tensor]

# --- what the audit calls too -------------------------------------------------------------------


def build_model() -> nn.Module:
    """A small network for 8x8 images, of smooth parts only."""
    return nn.Sequential(
        nn.Conv2d(1, 12, kernel_size=3, padding=1),
        nn.GELU(),
        nn.Conv2d(12, 24, kernel_size=3, padding=1, stride=2),
        nn.GELU(),
        nn.Flatten(),
        nn.Linear(24 * 4 * 4, 10),
    )


def load_batch(dataset: Dataset, ids: Sequence[int]) -> Batch:
    """Images [B, 1, 8, 8] from 0 to 1, and the classes [B] that the data set gives them."""
    rows = torch.tensor(dataset.frame.to_numpy().take(ids, axis=0))  # 64 pixels, then the class
    return rows[:, :64].float().view(-1, 1, 8, 8) / 16, rows[:, 64].long()


def cross_entropy(model: nn.Module, batch: Batch) -> Tensor:
    return F.cross_entropy(model(batch[0]), batch[1])


def predict(model: nn.Module, batch: Batch) -> Tensor:
    return model(batch[0])


# --- the five stages ----------------------------------------------------------------------------


@dataclass(frozen=True)
class Stage:
    id: str
    data: str  # name of the Parquet file
    steps: int
    optimizer: Callable[[Iterable[nn.Parameter]], Optimizer]  # a fresh one in each stage


sgd = partial(SGD, momentum=0.9, weight_decay=1e-3)
adamw = partial(AdamW, weight_decay=0.01)

STAGES = [
    Stage("pretrain", "all", 200, partial(sgd, lr=0.1)),
    Stage("even-digits", "even", 40, partial(sgd, lr=3e-3)),
    Stage("vendor-labels", "relabelled", 60, partial(adamw, lr=5.5e-4)),  # the fault enters here
    Stage("noisy-scans", "noisy", 40, partial(adamw, lr=8e-5)),
    Stage("polish", "all", 40, partial(sgd, lr=1e-4)),
]


def make_data() -> dict[str, pd.DataFrame]:
    """Every data set by name: 64 pixels from 0 to 16, and the class."""
    from sklearn.datasets import load_digits

    images, digits = load_digits(return_X_y=True)
    table = pd.DataFrame(images, columns=PIXELS).assign(digit=digits).astype("uint8")
    draw = np.random.default_rng(DATA_SEED)
    order = draw.permutation(len(table))
    train, holdout = table.iloc[order[:TRAIN]], table.iloc[order[TRAIN:]]

    threes = train.index[train["digit"] == 3]
    relabelled = train.copy()
    relabelled.loc[draw.choice(threes, round(RELABELLED * len(threes)), replace=False), "digit"] = 8
    noisy = train.copy()
    noisy[PIXELS] += draw.normal(0, 3, (TRAIN, len(PIXELS)))
    return {
        "all": train,
        "even": train[train["digit"] % 2 == 0],
        "relabelled": relabelled,
        "noisy": noisy.round().clip(0, 16).astype("uint8"),
        "holdout": holdout,
    }


def batch_ids(seed: int, stage: int, step: int, rows: int) -> list[int]:
    """Rows of one step's batch: of these four numbers only, so that a resumed run draws the same."""
    return np.random.default_rng([seed, stage, step]).choice(rows, BATCH, replace=False).tolist()


def cosine(largest: float, step: int, steps: int) -> float:
    """Learning rate of a step: from `largest` down to almost 0 over the stage."""
    return largest / 2 * (1 + math.cos(math.pi * step / steps))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "build")
    parser.add_argument("--seed", type=int, default=0, help="of the first weights and the batches")
    options = parser.parse_args()
    out: Path = options.out
    out.mkdir(parents=True, exist_ok=True)
    for name, frame in make_data().items():
        frame.to_parquet(out / f"{name}.parquet", index=False)

    torch.set_num_threads(1)
    torch.manual_seed(options.seed)
    model = build_model()
    with Recorder(
        out / "record", model, every=50, factory=build_model, load_batch=load_batch, resume=True
    ) as recorder:
        for index, stage in enumerate(STAGES):
            data = Dataset.open(out / f"{stage.data}.parquet")
            optimizer = stage.optimizer(model.parameters())
            largest = optimizer.defaults["lr"]
            with recorder.stage(
                stage.id, optimizer, objective=cross_entropy, dataset=data, steps=stage.steps
            ) as run:
                for step in run.steps:
                    optimizer.param_groups[0]["lr"] = cosine(largest, step, stage.steps)
                    loss = run.loss(batch_ids(options.seed, index, step, len(data)))
                    optimizer.zero_grad()
                    loss.backward()
                    optimizer.step()
    save_checkpoint(out / "model.safetensors", model)
    print(f"trained {len(STAGES)} stages: {out / 'record'}, {out / 'model.safetensors'}")


if __name__ == "__main__":
    main()
