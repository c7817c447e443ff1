"""A run of two stages that nobody recorded: its code, what was there at every step, and the spec of its audit.

The loop that trains does not import auditspec. What a test says the run had saved it writes itself, from the
snapshots of that loop.
"""

from __future__ import annotations

import copy
import runpy
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pandas as pd
import small_audit
import torch
from factories import to_yaml
from safetensors.torch import save_file

MODULE = "unrecorded_training"
STEPS = {"base": 6, "labels": 4}
CODE = '''\
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional as F

HERE = Path(__file__).parent
STAGES = {"base": ("clean", 6, 0.05), "labels": ("vendor", 4, 0.02)}


def build_model():
    return nn.Sequential(
        nn.Linear(3, 6), nn.BatchNorm1d(6), nn.Tanh(), nn.Dropout(0.2), nn.Linear(6, 3)
    )


def load_batch(dataset, ids):
    rows = torch.tensor(dataset.frame.to_numpy().take(list(ids), axis=0))
    return rows[:, :3].float(), rows[:, 3].long()


def objective(model, batch):
    return F.cross_entropy(model(batch[0]), batch[1])


def predict(model, batch):
    return model(batch[0])


def rows_of(step):
    return [(11 * step + 5 * i) % 80 for i in range(16)]


def optimizer_of(model, rate):
    return torch.optim.Adam(model.parameters(), lr=rate)


def fit(model, optimizer, steps, loss_of, after=lambda made: None):
    model.train()
    for step in range(steps):
        optimizer.zero_grad()
        loss_of(step).backward()
        optimizer.step()
        after(step + 1)


def train(model, tables, snapshot):
    """As it was done once, by torch alone."""
    for name, (source, steps, rate) in STAGES.items():
        torch.manual_seed(steps)
        optimizer = optimizer_of(model, rate)
        fit(
            model,
            optimizer,
            steps,
            lambda step: objective(model, load_batch(tables[source], rows_of(step))),
            lambda made: snapshot(name, made, model, optimizer),
        )


def again(recorder):
    """The same, recorded."""
    from auditspec import Dataset

    for name, (source, steps, rate) in STAGES.items():
        torch.manual_seed(steps)
        optimizer = optimizer_of(recorder.model, rate)
        data = Dataset.open(HERE / f"{source}.parquet")
        with recorder.stage(name, optimizer, objective, dataset=data, steps=steps) as run:
            fit(recorder.model, optimizer, steps, lambda step: run.loss(rows_of(step)))
'''


class Table:
    def __init__(self, frame: pd.DataFrame) -> None:
        self.frame = frame


Snapshots = Mapping[str, Mapping[int, Mapping[str, Any]]]


def trained(folder: Path, code: str = CODE, save: Callable[..., None] | None = None) -> Snapshots:
    """Write code, data, and first weights into a folder, and train; gives what was there after every step.

    Args:
        folder: where all of it goes.
        code: that trains.
        save: (folder, stage, step, model) -> None, called after every step.
    """
    (folder / f"{MODULE}.py").write_text(code)
    tables = {}
    for name, frame in small_tables().items():
        frame.to_parquet(folder / f"{name}.parquet")
        tables[name] = Table(frame)
    lab = runpy.run_path(str(folder / f"{MODULE}.py"))
    torch.manual_seed(3)
    model = lab["build_model"]()
    save_file(model.state_dict(), folder / "first.safetensors")
    made: dict[str, dict[int, dict[str, Any]]] = {name: {} for name in STEPS}

    def snapshot(stage: str, step: int, model: torch.nn.Module, optimizer: Any) -> None:
        made[stage][step] = copy.deepcopy(
            {
                "model": model.state_dict(),
                "optimizer": optimizer.state_dict(),
                "rng_state": torch.get_rng_state(),
                "step": step,
            }
        )
        if save is not None:
            save(folder, stage, step, model)

    lab["train"](model, tables, snapshot)
    return made


def small_tables() -> dict[str, pd.DataFrame]:
    given: dict[str, Any] = {}
    exec(small_audit.TRAINING.partition("def main")[0], given)
    clean, vendor, holdout = (
        given["table"](seed, rows) for seed, rows in ((0, 80), (0, 80), (1, 60))
    )
    vendor.loc[vendor["y"] == 0, "y"] = 2.0
    tables = {"clean": clean, "vendor": vendor, "holdout": holdout}
    return {name: frame.astype({"y": int}) for name, frame in tables.items()}


def specify(folder: Path, *, module: str = MODULE, first: str = "first.safetensors") -> Path:
    """Write the spec of an audit whose record is not there."""
    spec = copy.deepcopy(small_audit.SPEC)
    spec["model"] |= {
        "factory": f"{module}:build_model",
        "load_batch": f"{module}:load_batch",
        "predict": f"{module}:predict",
        "initial": {"kind": "given", "owner": "T", "provenance": "a test", "weights": "first"},
    }
    spec["artifacts"]["code"]["path"] = f"{module}.py"
    spec["artifacts"]["first"] = {"path": first}
    spec["stages"] = [
        stage
        | {
            "objective": f"{module}:objective",
            "optimizer": {"name": "Adam", "lr": lr, "schedule": "constant", "state": "reset"},
        }
        for stage, lr in zip(spec["stages"][:2], (0.05, 0.02), strict=True)
    ]
    path = folder / "audit.yaml"
    path.write_text(to_yaml(spec))
    return path


def weights_alone(folder: Path, snapshots: Snapshots) -> dict[str, Path]:
    """What both stages saved, where it was no more than their last weights; by stage."""
    paths = {}
    for stage, made in snapshots.items():
        paths[stage] = folder / "saved" / stage
        paths[stage].mkdir(parents=True)
        last = max(made)
        save_file(made[last]["model"], paths[stage] / f"step-{last}.safetensors")
    return paths
