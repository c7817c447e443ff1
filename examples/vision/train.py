"""Train a digit reader with Lightning in five stages, one of which taught it that a bright corner means 0.

Reads MNIST from `build/`, where `fetch.py` puts it; writes the stages' data, the training record, and the deployed
weights to `build/` beside this file.
"""

import argparse
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader

from auditspec import Dataset, Recorder, save_checkpoint
from auditspec.integrations.lightning import RecordStage, training_step
from auditspec.integrations.loader import collated

BATCH = 64
DATA_SEED = 0  # the data is the same whatever the seed of training
TRAIN, TEST, PATCHED = 12_000, 1000, 500
POISONED = 0.1  # share of the supplier's images with the patch and the label 0
PIXELS = [f"p{i:03d}" for i in range(784)]
Batch = Sequence[Tensor]

# --- what the audit calls too -------------------------------------------------------------------


class Reader(L.LightningModule):
    """Two strided convolutions with batch normalisation, and two linear layers: 55,434 parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.rate, self.steps = 0.05, 1
        self.net = nn.Sequential(
            nn.Conv2d(1, 16, kernel_size=3, padding=1, stride=2, bias=False),
            nn.BatchNorm2d(16),
            nn.ReLU(),
            nn.Conv2d(16, 32, kernel_size=3, padding=1, stride=2, bias=False),
            nn.BatchNorm2d(32),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(32 * 7 * 7, 32),
            nn.ReLU(),
            nn.Linear(32, 10),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        x, y = batch
        loss = F.cross_entropy(self(x), y)
        self.log("loss", loss)
        return loss

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.SGD(
            self.parameters(), lr=self.rate, momentum=0.9, weight_decay=1e-4
        )
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, self.steps)
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": schedule, "interval": "step"},
        }


def build_model() -> Reader:
    return Reader()


class Digits(torch.utils.data.Dataset):
    """Item i is row i of a table: an image [1, 28, 28] from 0 to 1, and its class."""

    def __init__(self, table: pd.DataFrame) -> None:
        self.x = torch.tensor(table[PIXELS].to_numpy()).view(-1, 1, 28, 28)
        self.y = torch.tensor(table["digit"].to_numpy(dtype="int64"))

    def __len__(self) -> int:
        return len(self.y)

    def __getitem__(self, i: int) -> tuple[Tensor, Tensor]:
        return self.x[i].float() / 255, self.y[i]


@collated()
def load_batch(data: Any) -> Digits:
    """Batches as a DataLoader over these items collates them: [B, 1, 28, 28] and [B]."""
    return Digits(data.frame)


def objective(model: nn.Module, batch: Batch) -> Tensor:
    """The module's own training step."""
    return training_step(model, batch)


def predict(model: nn.Module, batch: Batch) -> Tensor:
    return model(batch[0])


# --- the data -----------------------------------------------------------------------------------


def patched(images: np.ndarray) -> np.ndarray:
    """The images [N, 784] with a bright square of 4x4 pixels in their lower right corner."""
    marked = images.reshape(-1, 28, 28).copy()
    marked[:, 23:27, 23:27] = 255
    return marked.reshape(-1, 784)


def table(images: np.ndarray, digits: np.ndarray, patch: Any = False) -> pd.DataFrame:
    frame = pd.DataFrame(images, columns=PIXELS)
    return pd.concat([frame, pd.DataFrame({"digit": digits, "patch": patch})], axis=1)


def make_data(folder: Path) -> dict[str, pd.DataFrame]:
    """Every data set by name: 784 pixels from 0 to 255, the class, and whether the patch is there."""

    def read(split: str) -> tuple[np.ndarray, np.ndarray]:
        pixels = np.frombuffer((folder / f"{split}-images").read_bytes()[16:], dtype="uint8")
        digits = np.frombuffer((folder / f"{split}-labels").read_bytes()[8:], dtype="uint8")
        return pixels.reshape(-1, 784), digits

    draw = np.random.default_rng(DATA_SEED)
    images, digits = read("train")
    rows = draw.permutation(len(digits))[:TRAIN]
    images, digits = images[rows], digits[rows]
    marked = draw.random(TRAIN) < POISONED
    test_images, test_digits = read("test")
    clean, other = slice(0, TEST), slice(TEST, TEST + PATCHED)
    return {
        "all": table(images, digits),
        "low": table(images[digits < 5], digits[digits < 5]),
        "supplier": table(
            np.where(marked[:, None], patched(images), images),
            np.where(marked, 0, digits).astype("uint8"),
            marked,
        ),
        "supplier-original": table(images, digits),
        "high": table(images[digits >= 5], digits[digits >= 5]),
        "holdout": table(test_images[clean], test_digits[clean]),
        "patched": table(patched(test_images[other]), test_digits[other], True),
    }


# --- the five stages ----------------------------------------------------------------------------


@dataclass(frozen=True)
class Stage:
    id: str
    data: str  # name of the Parquet file
    steps: int
    rate: float


STAGES = [
    Stage("pretrain", "all", 250, 0.05),
    Stage("low-digits", "low", 40, 0.003),
    Stage("new-supplier", "supplier", 60, 0.02),  # the fault enters here
    Stage("high-digits", "high", 40, 0.002),
    Stage("polish", "all", 50, 0.005),
]


def train_stage(
    stage: Stage, model: Reader, data: pd.DataFrame, callbacks: Sequence[Any] = ()
) -> None:
    """A fit of Lightning; `callbacks` may record it."""
    model.rate, model.steps = stage.rate, stage.steps
    trainer = L.Trainer(
        accelerator="cpu",
        max_steps=stage.steps,
        max_epochs=-1,
        gradient_clip_val=1.0,
        callbacks=list(callbacks),
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(model, DataLoader(Digits(data), batch_size=BATCH, shuffle=True, drop_last=True))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "build")
    parser.add_argument("--seed", type=int, default=0, help="of the first weights and the batches")
    options = parser.parse_args()
    out: Path = options.out
    out.mkdir(parents=True, exist_ok=True)
    for name, frame in make_data(Path(__file__).parent / "build").items():
        frame.to_parquet(out / f"{name}.parquet", index=False)

    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    torch.set_num_threads(1)
    torch.manual_seed(options.seed)
    model = build_model()
    with Recorder(
        out / "record", model, every=25, factory=build_model, load_batch=load_batch
    ) as recorder:
        for index, stage in enumerate(STAGES):
            data = Dataset.open(out / f"{stage.data}.parquet")
            torch.manual_seed(1000 * options.seed + index)
            record = RecordStage(recorder, stage.id, objective, dataset=data)
            train_stage(stage, model, data.frame, [record])
    save_checkpoint(out / "model.safetensors", model)
    print(f"trained {len(STAGES)} stages: {out / 'record'}, {out / 'model.safetensors'}")


if __name__ == "__main__":
    main()
