"""A stage that was committed to, sealed, trained, and signed, on the data of `training`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from training import ROWS, build_mlp32, cross_entropy, load_batch, table

from auditspec import Dataset, Plan, Recorder
from auditspec.record.commitment import Commitment
from auditspec.record.trajectory import Trajectory

STEPS = 6


def batches(shift: int = 0) -> list[list[int]]:
    return [[(7 * k + shift + 3 * i) % ROWS for i in range(8)] for k in range(STEPS)]


@dataclass(frozen=True)
class Run:
    """What may be otherwise in training than in what was committed to."""

    seed: int = 0
    lr: float = 0.1
    momentum: float = 0.9
    optimizer: str = "SGD"
    batches: Sequence[Sequence[int]] = tuple(batches())
    rates: Sequence[float] | None = None
    clip_norm: float | None = None
    objective: Callable[..., Any] = cross_entropy
    relabel: int | None = None
    """A row with another label in the data."""
    poison: float = 0.0
    """Added to a weight before the stage begins."""
    draws: int = 0
    """Random numbers drawn before the stage begins."""
    stage: str = "tune"


def recorded(folder: Path, run: Run, *, committing: bool = False) -> tuple[Commitment | None, Path]:
    """Train as `run` says, with or without committing to that; gives what was committed to, and the record."""
    folder.mkdir(parents=True, exist_ok=True)
    frame = table()
    if run.relabel is not None:
        frame.loc[run.relabel, "y"] = (frame.loc[run.relabel, "y"] + 1) % 3
    frame.to_parquet(folder / "data.parquet")
    data = Dataset.open(folder / "data.parquet")
    torch.manual_seed(run.seed)
    model = build_mlp32()
    with torch.no_grad():
        model.one.weight[0, 0] += run.poison
    torch.rand(run.draws)
    options = {"lr": run.lr} | ({"momentum": run.momentum} if run.optimizer == "SGD" else {})
    optimizer = getattr(torch.optim, run.optimizer)(model.parameters(), **options)
    commitment = None
    with Recorder(
        folder / "record", model, every=2, factory=build_mlp32, load_batch=load_batch
    ) as recorder:
        if committing:
            plan = Plan(run.batches, run.rates)
            commitment = recorder.commit(
                run.stage,
                optimizer,
                run.objective,
                plan,
                code=Path(__file__).with_name("training.py"),
                dataset=data,
                clip_norm=run.clip_norm,
            )
        train(recorder, optimizer, run, data)
    return commitment, folder / "record"


def train(recorder: Recorder, optimizer: Any, run: Run, data: Dataset) -> None:
    """The stage's loop."""
    with recorder.stage(
        run.stage,
        optimizer,
        run.objective,
        dataset=data,
        steps=len(run.batches),
        clip_norm=run.clip_norm,
    ) as stage:
        for step in stage.steps:
            optimizer.zero_grad()
            stage.loss(run.batches[step]).backward()
            if run.clip_norm is not None:
                torch.nn.utils.clip_grad_norm_(recorder.model.parameters(), run.clip_norm)
            if run.rates is not None:
                optimizer.param_groups[0]["lr"] = run.rates[step]
            optimizer.step()


def opened(record: Path) -> Trajectory:
    return Trajectory.open(record)


def other(**changes: Any) -> Run:
    return replace(Run(), **changes)
