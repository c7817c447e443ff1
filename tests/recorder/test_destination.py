"""A record in a store is the record of a folder, however often the run or the line to the store breaks."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import stores
import torch
from torch import nn

from auditspec import Recorder
from auditspec.artifacts.fetch import fetch
from auditspec.artifacts.stores import Store
from auditspec.errors import RecordError, UsageError
from auditspec.record.trajectory import Trajectory
from auditspec.user_folders import cache_folder

STEPS = 5


@pytest.fixture(params=stores.KINDS)
def bucket(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[str]:
    with stores.bucket(request.param, tmp_path, monkeypatch) as url:
        yield f"{url}/run"


remote = pytest.mark.parametrize("bucket", [k for k in stores.KINDS if k != "file"], indirect=True)
"""A folder is a folder (test_resume.py), and never out."""


def build_model() -> nn.Module:
    return nn.Linear(3, 2)


def objective(model: nn.Module, batch: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
    return nn.functional.mse_loss(model(batch[0]), batch[1])


def train(place: str | Path, *, resume: bool = False, stop_in: str = "") -> nn.Module:
    """Two stages; ends with KeyboardInterrupt in the middle of the one that is named."""
    torch.manual_seed(0)
    model = build_model()
    with Recorder(
        place, model, every=2, factory=build_model, resume=resume, self_check=False
    ) as recorder:
        for stage, rate in (("one", 0.1), ("two", 0.01)):
            optimizer = torch.optim.SGD(model.parameters(), lr=rate)
            with recorder.stage(stage, optimizer, objective, steps=STEPS) as run:
                for step in run.steps:
                    if stage == stop_in and step == 3:
                        raise KeyboardInterrupt
                    generator = torch.Generator().manual_seed(step)
                    batch = (
                        torch.randn(4, 3, generator=generator),
                        torch.randn(4, 2, generator=generator),
                    )
                    run.batch(tensors=batch)
                    loss = objective(model, batch)
                    optimizer.zero_grad()
                    loss.backward()
                    optimizer.step()
    return model


def in_store(url: str) -> set[str]:
    return {file.path for file in Store(url).files()}


def same_as(url: str, folder: Path, around: Path) -> bool:
    """Whether a store's record has the files and the states of a folder's."""
    copy = fetch(url, around)
    assert {p.relative_to(copy) for p in copy.rglob("*")} == {
        p.relative_to(folder) for p in folder.rglob("*")
    }
    one, other = Trajectory.open(copy), Trajectory.open(folder)
    return one.header.complete and all(
        torch.equal(a.state(step).parameters[name], b.state(step).parameters[name])
        for a, b in zip(one.stages, other.stages, strict=True)
        for step in a.state_steps
        for name in a.state(step).parameters
    )


def test_a_record_in_a_store_is_that_of_a_folder(bucket: str, tmp_path: Path) -> None:
    train(tmp_path / "run")
    train(bucket)
    assert same_as(bucket, tmp_path / "run", tmp_path / "c")
    assert not [*(cache_folder() / "records").glob("*")]
    with pytest.raises(RecordError, match="already"):
        train(bucket)


@remote
def test_a_killed_run_goes_on_here_or_on_another_machine(
    bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train(tmp_path / "run")
    with pytest.raises(KeyboardInterrupt):
        train(bucket, stop_in="two")
    assert {name for name in in_store(bucket) if "/" in name}
    assert not any(name.startswith("01") or name == "manifest.json" for name in in_store(bucket))
    Trajectory.open(fetch(bucket, tmp_path / "half"))  # what is there is readable
    monkeypatch.setenv("AUDITSPEC_CACHE", str(tmp_path / "another-machine"))
    model = train(bucket, resume=True)
    assert same_as(bucket, tmp_path / "run", tmp_path / "c")
    last = Trajectory.open(tmp_path / "run").stages[-1].last
    assert torch.equal(dict(model.named_parameters())["weight"], last.parameters["weight"])


@remote
def test_a_store_that_is_out_for_a_while_stops_no_training(
    bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train(tmp_path / "run")
    with monkeypatch.context() as out:

        def down(self: Store, source: Path, path: str = "") -> None:
            raise UsageError("the line is dead")

        out.setattr(Store, "put", down)
        with pytest.raises(RecordError, match="the line is dead; the whole record lies in"):
            train(bucket)
    assert in_store(bucket) == set()
    train(bucket, resume=True)
    assert same_as(bucket, tmp_path / "run", tmp_path / "c")
