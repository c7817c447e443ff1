"""Loaders of torch, recorded: the rows of every batch, and nothing else changed."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from library_audit import hold_against_truth
from library_loops import landed, objective
from torch import Tensor, nn
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    IterableDataset,
    RandomSampler,
    Subset,
    TensorDataset,
    WeightedRandomSampler,
)

from auditspec import Dataset, Recorder
from auditspec.artifacts.digest import digest_file
from auditspec.errors import RecordError
from auditspec.integrations.loader import collated, recorded
from auditspec.record.trajectory import Trajectory

ROWS = 23


def build_net() -> nn.Module:
    return nn.Sequential(nn.Linear(2, 4), nn.Dropout(0.3), nn.Tanh(), nn.Linear(4, 2))


def load_batch(dataset: Dataset, ids: Any) -> tuple[Tensor, Tensor]:
    rows = torch.tensor(dataset.frame.to_numpy().take(list(ids), axis=0))
    return rows[:, :2].float(), rows[:, 2].long()


@collated()
def load_items(dataset: Dataset) -> Any:
    return items(dataset.frame)


def frame() -> pd.DataFrame:
    draw = np.random.default_rng(0)
    return pd.DataFrame(draw.normal(size=(ROWS, 2)), columns=["a", "b"]).assign(
        y=draw.integers(0, 2, ROWS).astype(float)
    )


def items(table: pd.DataFrame | None = None) -> TensorDataset:
    rows = torch.tensor((frame() if table is None else table).to_numpy())
    return TensorDataset(rows[:, :2].float(), rows[:, 2].long())


class Augmented(TensorDataset):
    """Items to which noise is added, of torch's or of numpy's random numbers."""

    def __getitem__(self, index: int) -> Any:
        x, y = super().__getitem__(index)
        return x + 0.1 * torch.randn(2) + 0.1 * torch.tensor(np.random.randn(2)).float(), y


class Stream(IterableDataset[Any]):
    def __iter__(self) -> Iterator[Any]:
        return iter(items())


class Keyed(TensorDataset):
    def __getitem__(self, index: Any) -> Any:
        return super().__getitem__(int(index[1:]))


Make = Callable[[], Any]
LOADERS: dict[str, Make] = {
    "in order": lambda: DataLoader(items(), batch_size=4),
    "shuffled": lambda: DataLoader(items(), batch_size=4, shuffle=True),
    "a generator of its own": lambda: DataLoader(
        items(), batch_size=4, shuffle=True, generator=torch.Generator().manual_seed(3)
    ),
    "drop_last": lambda: DataLoader(items(), batch_size=4, shuffle=True, drop_last=True),
    "a sampler with replacement": lambda: DataLoader(
        items(), batch_size=4, sampler=WeightedRandomSampler(torch.arange(1.0, ROWS + 1), 16)
    ),
    "a batch sampler": lambda: DataLoader(
        items(), batch_sampler=BatchSampler(RandomSampler(range(ROWS)), 5, drop_last=True)
    ),
    "a list of batches": lambda: DataLoader(items(), batch_sampler=[[1, 2], [7], [3, 1, 0]]),
    "lists of rows as keys": lambda: DataLoader(
        items(), batch_size=None, sampler=BatchSampler(RandomSampler(range(ROWS)), 6, False)
    ),
    "a part of a part": lambda: DataLoader(
        Subset(Subset(items(), range(4, 20)), [3, 0, 9, 11, 12, 15]), batch_size=2, shuffle=True
    ),
}
WORKERS: dict[str, Make] = {
    "two workers": lambda: DataLoader(items(), batch_size=4, shuffle=True, num_workers=2),
    "workers that persist and fetch ahead": lambda: DataLoader(
        items(),
        batch_size=3,
        shuffle=True,
        num_workers=2,
        persistent_workers=True,
        prefetch_factor=4,
    ),
}


def train(
    batches: Callable[[Any], Any], loader: Any, epochs: int, model: nn.Module, optimizer: Any
) -> list[Any]:
    """A plain loop; gives the batches it saw."""
    seen = []
    for _ in range(epochs):
        for batch in batches(loader):
            seen.append([part.clone() for part in batch])
            optimizer.zero_grad()
            objective(model, batch).backward()
            optimizer.step()
    return seen


def plain(make: Make, epochs: int = 2) -> tuple[list[Any], nn.Module, Tensor]:
    """Batches, weights, and the next random number of a loop that records nothing."""
    torch.manual_seed(7)
    np.random.seed(7)
    model = build_net()
    seen = train(lambda loader: loader, make(), epochs, model, optimizer_of(model))
    return seen, model, torch.rand(1)


def optimizer_of(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)


def record(
    folder: Path,
    make: Make,
    epochs: int = 2,
    load: Any = load_batch,
    rows: bool = True,
    **options: Any,
) -> tuple[list[Any], nn.Module, Tensor, Trajectory]:
    frame().to_parquet(folder / "data.parquet")
    data = Dataset.open(folder / "data.parquet")
    torch.manual_seed(7)
    np.random.seed(7)
    model = build_net()
    loader = make()
    torch_state = torch.get_rng_state()
    with Recorder(
        folder / "record", model, every=3, factory=build_net, load_batch=load
    ) as recorder:
        steps = options.pop("steps", None) or epochs * len(loader)
        optimizer = optimizer_of(model)
        with recorder.stage(
            "one", optimizer, objective, steps=steps, dataset=data if rows else ()
        ) as run:
            assert torch.equal(torch_state, torch.get_rng_state())
            seen = train(
                lambda loader: recorded(loader, run, **options), loader, epochs, model, optimizer
            )
    return seen, model, torch.rand(1), Trajectory.open(folder / "record")


def lands(trajectory: Trajectory, load: Any = load_batch) -> None:
    """Every window is re-run bit for bit."""
    folder = trajectory.folder.parent
    landed(folder, Dataset.open(folder / "data.parquet"), build_net, load=load)


def same_batches(ours: Any, theirs: Any) -> bool:
    return all(
        len(a) == len(b) and all(map(torch.equal, a, b)) for a, b in zip(ours, theirs, strict=True)
    )


@pytest.mark.parametrize("name", [*LOADERS, *WORKERS])
def test_rows_are_those_of_the_batches_and_nothing_changes(tmp_path: Path, name: str) -> None:
    make = (LOADERS | WORKERS)[name]
    seen, model, draw = plain(make)
    ours, recorded_model, next_draw, trajectory = record(tmp_path, make)
    assert same_batches(ours, seen)
    assert torch.equal(draw, next_draw)
    assert all(map(torch.equal, model.parameters(), recorded_model.parameters()))
    table = frame().to_numpy()
    for batch, step in zip(seen, trajectory.stages[0].steps, strict=True):
        (microbatch,) = step.batches
        assert microbatch.batch is None
        assert np.array_equal(table[list(microbatch.ids), :2].astype("float32"), batch[0].numpy())
    lands(trajectory)


def test_a_loop_that_leaves_an_epoch_early_keeps_its_rows(tmp_path: Path) -> None:
    frame().to_parquet(tmp_path / "data.parquet")
    data = Dataset.open(tmp_path / "data.parquet")
    torch.manual_seed(0)
    model = build_net()
    optimizer = optimizer_of(model)
    loader = WORKERS["workers that persist and fetch ahead"]()
    with (
        Recorder(
            tmp_path / "record", model, every=1, factory=build_net, load_batch=load_batch
        ) as recorder,
        recorder.stage("one", optimizer, objective, steps=4, dataset=data) as run,
    ):
        for _ in range(2):
            for number, batch in enumerate(recorded(loader, run)):
                optimizer.zero_grad()
                objective(model, batch).backward()
                optimizer.step()
                if number == 1:
                    break
    lands(Trajectory.open(tmp_path / "record"))


def test_another_pass_of_the_same_loader_in_between(tmp_path: Path) -> None:
    frame().to_parquet(tmp_path / "data.parquet")
    data = Dataset.open(tmp_path / "data.parquet")
    model, loader = build_net(), LOADERS["shuffled"]()
    optimizer = optimizer_of(model)
    options: dict[str, Any] = {"every": 1, "factory": build_net, "load_batch": load_batch}
    with (
        Recorder(tmp_path / "record", model, **options) as recorder,
        recorder.stage("one", optimizer, objective, steps=6, dataset=data) as run,
    ):
        for batch in recorded(loader, run):
            optimizer.zero_grad()
            objective(model, batch).backward()
            optimizer.step()
            assert len(list(loader)) == 6
    lands(Trajectory.open(tmp_path / "record"))


def test_what_a_loader_draws_at_random_is_recorded_whole_beside_its_rows(tmp_path: Path) -> None:
    noisy: Make = lambda: DataLoader(Augmented(*items().tensors), batch_size=4, shuffle=True)  # noqa: E731
    with pytest.raises(RecordError, match="load_batch makes another batch of rows") as error:
        record(tmp_path, noisy)
    shutil.rmtree(tmp_path / "record")
    assert "whole=True" in str(error.value.remedy)
    seen, model, draw = plain(noisy)
    ours, recorded_model, next_draw, trajectory = record(tmp_path, noisy, whole=True)
    assert same_batches(ours, seen)
    assert torch.equal(draw, next_draw)
    assert all(map(torch.equal, model.parameters(), recorded_model.parameters()))
    assert {bool(b.ids) for s in trajectory.stages[0].steps for b in s.batches} == {True}
    lands(trajectory)


@pytest.mark.parametrize("name", ["no load_batch", "no data set", "a stream"])
def test_batches_are_recorded_where_rows_cannot_be_loaded(tmp_path: Path, name: str) -> None:
    make: Make = LOADERS["shuffled"]
    if name == "a stream":
        make = lambda: DataLoader(Stream(), batch_size=4)  # noqa: E731
    load = None if name == "no load_batch" else load_batch
    seen, _, _, trajectory = record(tmp_path, make, load=load, rows=name != "no data set", steps=12)
    batches = [step.batches[0] for step in trajectory.stages[0].steps]
    assert same_batches([b.tensors for b in batches], seen)
    assert {bool(b.ids) for b in batches} == {name == "no load_batch"}
    lands(trajectory)


def test_a_load_batch_of_the_data_set_and_its_collation(tmp_path: Path) -> None:
    assert load_items.__name__ == "load_items"
    _, _, _, trajectory = record(tmp_path, LOADERS["shuffled"], load=load_items)
    assert trajectory.header.load_batch.name.endswith(":load_items")
    lands(trajectory, load_items)


SCRIPT = """
from torch import nn
from auditspec import Recorder
from auditspec.integrations.loader import collated


def build():
    return nn.Linear(1, 1)


@collated()
def load_batch(data):
    return data.frame


print(Recorder("record", build(), factory=build, load_batch=load_batch).header.load_batch)
"""


def test_a_decorated_function_is_that_of_the_script_that_it_stands_in(tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text(SCRIPT)
    ran = subprocess.run(
        [sys.executable, "script.py"], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    digest = digest_file(tmp_path / "script.py")[0]
    assert "script:load_batch" in ran.stdout
    assert digest in ran.stdout


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: [items()[0]], "a list is no DataLoader"),
        (lambda: DataLoader(items(), in_order=False), "in_order=False"),
        (
            lambda: DataLoader(Subset(items(), [0, 1]).dataset.__class__(*items()[:5])),
            "has 5 items, and 'data' 23 rows",
        ),
        (
            lambda: DataLoader(Keyed(*items().tensors), batch_sampler=[["r1", "r2"]]),
            "the key 'r1', which is no row of 'data'",
        ),
    ],
)
def test_what_is_refused_by_name(tmp_path: Path, make: Make, said: str) -> None:
    with pytest.raises(RecordError, match=said) as error:
        record(tmp_path, make)
    assert error.value.remedy


def test_rows_that_persistent_workers_drew_before(tmp_path: Path) -> None:
    loader = WORKERS["workers that persist and fetch ahead"]()
    list(loader)
    with pytest.raises(RecordError, match="drawn before they could be noted"):
        record(tmp_path, lambda: loader)


def test_a_stage_that_is_resumed(tmp_path: Path) -> None:
    record(tmp_path, LOADERS["shuffled"])
    data = Dataset.open(tmp_path / "data.parquet")
    model = build_net()
    options: Any = {"every": 3, "factory": build_net, "load_batch": load_batch, "resume": True}
    with Recorder(tmp_path / "record", model, **options) as recorder:
        optimizer = optimizer_of(model)
        with recorder.stage("one", optimizer, objective, steps=12, dataset=data) as run:
            assert list(recorded(LOADERS["shuffled"](), run)) == []
    with pytest.raises(RecordError, match="a loader begins its order anew"):
        stopped(tmp_path / "half", data, resume=False)
        stopped(tmp_path / "half", data, resume=True)


def stopped(folder: Path, data: Dataset, *, resume: bool) -> None:
    """A run that is killed in the middle of its stage."""
    model = build_net()
    optimizer = optimizer_of(model)
    recorder = Recorder(
        folder, model, every=1, factory=build_net, load_batch=load_batch, resume=resume
    )
    try:
        with recorder.stage("one", optimizer, objective, steps=120, dataset=data) as run:
            for epoch in range(11):
                if epoch == 10:
                    raise KeyboardInterrupt
                train(
                    lambda loader: recorded(loader, run),
                    LOADERS["shuffled"](),
                    1,
                    model,
                    optimizer,
                )
    except KeyboardInterrupt:
        recorder._record.background.wait()


TRAINING = """
def build_model():
    return nn.Sequential(nn.Linear(3, 6), nn.Tanh(), nn.Dropout(0.2), nn.Linear(6, 3))


def objective(model, batch):
    return F.cross_entropy(model(batch[0]), batch[1])


def train(model, stage, source, recorder):
    from contextlib import nullcontext

    model.train()
    loader = DataLoader(Rows(tables()[source]), batch_size=16, shuffle=True, num_workers=NUM)
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATES[stage])
    stage_of = nullcontext()
    if recorder is not None:
        from auditspec import Dataset
        from auditspec.integrations.loader import recorded

        data = Dataset.open(f"{source}.parquet")
        stage_of = recorder.stage(stage, optimizer, objective, dataset=data, steps=2 * len(loader))
    with stage_of as run:
        for epoch in range(2):
            for batch in loader if run is None else recorded(loader, run):
                optimizer.zero_grad()
                objective(model, batch).backward()
                optimizer.step()


NUM = 0
"""
ADAMW = {"name": "AdamW", "weight_decay": 0.01, "betas": [0.9, 0.999], "eps": 1e-8}


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 2])
def test_an_audit_says_what_training_without_the_stage_gives(tmp_path: Path, workers: int) -> None:
    hold_against_truth(
        tmp_path, TRAINING.replace("NUM = 0", f"NUM = {workers}"), ADAMW, self_check=workers > 0
    )
