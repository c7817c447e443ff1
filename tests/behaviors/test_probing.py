"""Training code that treats evaluation rows otherwise is caught by experiment."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from said import said
from torch import Tensor, nn

from auditspec import Dataset
from auditspec.artifacts.digest import digest_bytes
from auditspec.behaviors.bound import Slice
from auditspec.behaviors.probing import deployed, probes, undisturbed

FEATURES = ["a", "b", "c"]
MODEL = nn.Linear(3, 3)
FIRST = "holdout under the name of training data"
ORDER = "holdout in another order"
LABEL = "predictions on holdout without its label"
COLUMNS = "columns of holdout, read by the audit itself"


def table(seed: int, rows: int) -> pd.DataFrame:
    draw = np.random.default_rng(seed)
    x = pd.DataFrame(draw.normal(2, size=(rows, 3)), columns=FEATURES)
    return x.assign(y=draw.integers(0, 3, rows))


def dataset(name: str, frame: pd.DataFrame) -> Dataset:
    return Dataset(name, Path(f"{name}.parquet"), digest_bytes(name.encode())).disguised(
        frame=frame
    )


TRAIN, HOLDOUT = dataset("train", table(0, 90)), dataset("holdout", table(1, 100))


def honest(data: Dataset, ids: Sequence[int]) -> tuple[Tensor, Tensor]:
    rows = data.frame.iloc[list(ids)]
    x = (rows[FEATURES].to_numpy("float32") - 2) / np.array([1, 2, 3], "float32")
    return torch.from_numpy(x), torch.tensor(rows["y"].to_numpy())


def by_name(data: Dataset, ids: Sequence[int]) -> tuple[Tensor, Tensor]:
    x, y = honest(data, ids)
    return (x.clamp(max=0), y) if data.name == "holdout" else (x, y)


def only_by_known_name(data: Dataset, ids: Sequence[int]) -> tuple[Tensor, Tensor]:
    return honest(data, ids) if data.name == "holdout" else ({}[data.name], honest(data, ids)[1])


def by_path(data: Dataset, ids: Sequence[int]) -> tuple[Tensor, Tensor]:
    x, y = honest(data, ids)
    return (x.clamp(max=0), y) if data.path.stem == "holdout" else (x, y)


def by_company(data: Dataset, ids: Sequence[int]) -> tuple[Tensor, Tensor]:
    x, y = honest(data, ids)
    return x - x.mean(0), y


def by_value(data: Dataset, ids: Sequence[int]) -> tuple[Tensor, Tensor]:
    x, y = honest(data, ids)
    laundered = torch.tensor([i % 10 == 0 and data.frame is HOLDOUT.frame for i in ids])
    return torch.where(laundered[:, None], torch.zeros_like(x), x), y


def noisy(data: Dataset, ids: Sequence[int]) -> tuple[Tensor, Tensor]:
    x, y = honest(data, ids)
    return x + torch.randn_like(x), y


CALLS: list[int] = []


def counting(data: Dataset, ids: Sequence[int]) -> tuple[Tensor, Tensor]:
    CALLS.append(1)
    x, y = honest(data, ids)
    return x + len(CALLS), y


def embedded(data: Dataset, ids: Sequence[int]) -> tuple[Tensor, Tensor]:
    x, y = honest(data, ids)
    return torch.tanh(x), y


def predict(model: nn.Module, batch: Any) -> Tensor:
    out: Tensor = model(batch[0])
    return out


def peeking(model: nn.Module, batch: Any) -> Tensor:
    return torch.nn.functional.one_hot(batch[1], 3).float()


def experiments(load: Any, read: Any = predict, label: str | None = "y") -> dict[str, Any]:
    part: Any = Slice(None, HOLDOUT, np.arange(100), None)  # type: ignore[arg-type]
    labels = {"holdout": label, "train": None}
    found = probes({"b": part}, [TRAIN], labels, load, deployed(MODEL, read))
    return {probe.subject: probe for probe in found}


def test_honest_code_passes_every_experiment() -> None:
    found = experiments(honest)
    assert {name: p.outcome for name, p in found.items()} == dict.fromkeys(
        (FIRST, ORDER, LABEL, COLUMNS), "pass"
    )


@pytest.mark.parametrize(
    ("load", "experiment", "outcome", "words"),
    [
        (by_name, FIRST, "fail", "as 'train' it gives other tensors"),
        (only_by_known_name, FIRST, "fail", "as 'train' it raises KeyError"),
        (by_path, FIRST, "inconclusive", "decides by its path"),
        (by_company, ORDER, "fail", "gives a row other tensors"),
        (by_value, COLUMNS, "fail", "10 of 100 rows are not what load_batch makes"),
        (by_name, COLUMNS, "fail", "are not what load_batch makes"),
        (embedded, COLUMNS, "inconclusive", "no scale and shift"),
        (noisy, "loading holdout", "inconclusive", "draws random numbers"),
        (counting, "loading holdout", "fail", "other tensors each time"),
    ],
)
def test_code_that_treats_evaluation_otherwise(
    load: Any, experiment: str, outcome: str, words: str
) -> None:
    found = experiments(load)[experiment]
    assert found.outcome == outcome
    assert words in said(found.note)


def test_columns_that_are_no_inputs_do_not_hide_those_that_are(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A column may even look like an input in the training rows alone."""
    for name, data in (("TRAIN", TRAIN), ("HOLDOUT", HOLDOUT)):
        more = {
            "row": range(len(data.frame)),
            "twin": data.frame["b"] * (3 if name == "TRAIN" else 0),
        }
        table = data.frame.assign(**more)[["twin", "row", "c", "y", "a", "b"]]
        monkeypatch.setitem(globals(), name, dataset(data.name, table))
    assert experiments(honest)[COLUMNS].outcome == "pass"
    assert "10 of 100 rows" in said(experiments(by_value)[COLUMNS].note)


def test_predictions_that_read_the_label_are_caught() -> None:
    found = experiments(honest, peeking)[LABEL]
    assert found.outcome == "fail"
    assert "predict reads the label" in said(found.note)
    assert LABEL not in experiments(honest, peeking, label=None)


def test_experiments_leave_no_trace() -> None:
    torch.manual_seed(3)
    np.random.seed(3)
    before = torch.get_rng_state(), np.random.get_state()[1].copy()  # type: ignore[index]
    with undisturbed(7):
        first = torch.rand(3), np.random.rand(3)
    with undisturbed(7):
        again = torch.rand(3), np.random.rand(3)
    assert torch.equal(first[0], again[0])
    assert (first[1] == again[1]).all()
    experiments(noisy)
    assert torch.equal(before[0], torch.get_rng_state())
    assert (before[1] == np.random.get_state()[1]).all()  # type: ignore[index]
    assert HOLDOUT.frame.equals(table(1, 100))
