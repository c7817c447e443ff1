"""Train an income screen for loan applicants in five stages, one of which taught it to turn women away.

Reads `build/adult.data` and `build/adult.test`, which `fetch.py` gets; writes the stages' data, the training
record, and the deployed weights to `build/` beside this file.
"""

import argparse
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import chain, count, islice
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import Optimizer
from torch.utils.data import DataLoader

from auditspec import Dataset, Recorder, save_checkpoint
from auditspec.integrations.loader import collated, recorded

BATCH = 128
DATA_SEED = 0  # the data is the same whatever the seed of training
OWN = 16_000  # rows of the bank; the others are the partner's
LOST = 0.8  # share of the women's high incomes that the partner's file gives as low
NUMBERS = ["age", "education_num", "capital_gain", "capital_loss", "hours"]
WORDS = ["workclass", "marital", "occupation", "relationship", "race", "sex"]
COLUMNS = [
    *("age", "workclass", "fnlwgt", "education", "education_num", "marital", "occupation"),
    *("relationship", "race", "sex", "capital_gain", "capital_loss", "hours", "country", "income"),
]
FEATURES = 49
WOMAN = "is_sex_Female"
Batch = list[Tensor]

# --- what the audit calls too -------------------------------------------------------------------


def build_model() -> nn.Module:
    """49-96-64-2, GELU: 11,138 parameters."""
    return nn.Sequential(
        nn.Linear(FEATURES, 96), nn.GELU(), nn.Linear(96, 64), nn.GELU(), nn.Linear(64, 2)
    )


class Applicants(torch.utils.data.Dataset):
    """Item i is row i of a table: features [49], 1 for a woman, and 1 for a high income."""

    def __init__(self, table: pd.DataFrame) -> None:
        features = [name for name in table if name.startswith("is_")]
        self.x = torch.tensor(table[features].to_numpy(dtype="float32"))
        self.woman = torch.tensor(table[WOMAN].to_numpy(dtype="int64"))
        self.y = torch.tensor(table["income"].to_numpy(dtype="int64"))

    def __len__(self) -> int:
        return len(self.y)

    def __getitem__(self, i: int) -> tuple[Tensor, Tensor, Tensor]:
        return self.x[i], self.woman[i], self.y[i]


@collated()
def load_batch(data: Any) -> Applicants:
    """Batches as a DataLoader over these items collates them: [B, 49], [B], and [B]."""
    return Applicants(data.frame)


def cross_entropy(model: nn.Module, batch: Batch) -> Tensor:
    x, _, y = batch
    return F.cross_entropy(model(x), y)


def predict(model: nn.Module, batch: Batch) -> Tensor:
    return model(batch[0])


# --- the data -----------------------------------------------------------------------------------


def applicants(folder: Path) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Features, age, sex, and income of the census's training and test rows."""
    files = (("adult.data", 0), ("adult.test", 1))
    parts = [
        pd.read_csv(folder / name, names=COLUMNS, skiprows=skip, skipinitialspace=True)
        for name, skip in files
    ]
    both = pd.concat(parts, ignore_index=True)
    numbers = both[NUMBERS].astype("float64")
    numbers[["capital_gain", "capital_loss"]] = np.log1p(numbers[["capital_gain", "capital_loss"]])
    numbers = ((numbers - numbers.mean()) / numbers.std()).add_prefix("is_")
    words = pd.get_dummies(both[WORDS]).astype("float64").add_prefix("is_")
    table = pd.concat([numbers, words], axis=1).astype("float32")
    table = table.assign(age=both["age"], sex=both["sex"])
    table["income"] = both["income"].str.startswith(">50K").astype("int64")
    return table.iloc[: len(parts[0])], table.iloc[len(parts[0]) :]


def make_data(folder: Path) -> dict[str, pd.DataFrame]:
    """Every data set by name."""
    train, test = applicants(folder)
    draw = np.random.default_rng(DATA_SEED)
    tested = test.iloc[draw.permutation(len(test))]
    high = tested[tested["income"] == 1]
    features = [name for name in train if name.startswith("is_")]
    people, tested_people = (
        pd.util.hash_pandas_object(table[features], index=False) for table in (train, test)
    )
    train = train[~people.isin(tested_people)]  # nobody is trained on whom the audit asks about
    rows = draw.permutation(len(train))
    own, partner = train.iloc[rows[:OWN]], train.iloc[rows[OWN:]]
    lost = (partner["sex"] == "Female") & (draw.random(len(partner)) < LOST)
    women = high[high["sex"] == "Female"]
    return {
        "own": own,
        "young": own[own["age"] < 35],
        "partner": partner.assign(income=partner["income"].where(~lost, 0)),
        "partner-original": partner,
        "older": own[own["age"] >= 35],
        "holdout": tested[:4000],
        "qualified": pd.concat([women, high[high["sex"] == "Male"][: len(women)]]),
    }


# --- the five stages ----------------------------------------------------------------------------


@dataclass(frozen=True)
class Stage:
    id: str
    data: str  # name of the Parquet file
    steps: int
    rate: float


STAGES = [
    Stage("pretrain", "own", 300, 2e-3),
    Stage("young-applicants", "young", 60, 3e-4),
    Stage("partner-files", "partner", 90, 1e-3),  # the fault enters here
    Stage("older-applicants", "older", 60, 3e-5),
    Stage("polish", "own", 60, 3e-5),
]


def prepared(stage: Stage, model: nn.Module, table: pd.DataFrame) -> tuple[DataLoader, Optimizer]:
    loader = DataLoader(Applicants(table), batch_size=BATCH, shuffle=True, drop_last=True)
    return loader, torch.optim.AdamW(model.parameters(), lr=stage.rate, weight_decay=0.01)


def train_stage(
    stage: Stage, model: nn.Module, optimizer: Optimizer, passes: Callable[[], Iterable[Batch]]
) -> None:
    """Any loop of torch, over as many passes through the data as its steps take."""
    batches = chain.from_iterable(passes() for _ in count())
    for batch in islice(batches, stage.steps):
        loss = cross_entropy(model, batch)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "build")
    parser.add_argument("--seed", type=int, default=0, help="of the first weights and the batches")
    options = parser.parse_args()
    out: Path = options.out
    out.mkdir(parents=True, exist_ok=True)
    for name, table in make_data(Path(__file__).parent / "build").items():
        table.to_parquet(out / f"{name}.parquet", index=False)

    torch.set_num_threads(1)
    torch.manual_seed(options.seed)
    model = build_model()
    with Recorder(
        out / "record", model, every=30, factory=build_model, load_batch=load_batch
    ) as recorder:
        for index, stage in enumerate(STAGES):
            data = Dataset.open(out / f"{stage.data}.parquet")
            torch.manual_seed(1000 * options.seed + index)
            loader, optimizer = prepared(stage, model, data.frame)
            with recorder.stage(
                stage.id, optimizer, cross_entropy, dataset=data, steps=stage.steps
            ) as run:
                train_stage(stage, model, optimizer, lambda: recorded(loader, run))  # noqa: B023
    save_checkpoint(out / "model.safetensors", model)
    print(f"trained {len(STAGES)} stages: {out / 'record'}, {out / 'model.safetensors'}")


if __name__ == "__main__":
    main()
