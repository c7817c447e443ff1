"""A whole small audit in a folder: training code, its record, weights, data, a locked spec.

Three stages on made-up data; the second calls class 0 class 2, and is to blame for `zero-as-two`.
Training runs in a process of its own, since an audit refuses code that is already imported.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml
from factories import to_yaml

from auditspec.artifacts.manifest import digest_path
from auditspec.results import AuditResult
from auditspec.spec.lock import write_lock

MODULE = "small_training"
CODE = f"{MODULE}.py"
ARTIFACTS = {
    "code": CODE,
    "record": "record",
    "final": "model.safetensors",
    "clean": "clean.parquet",
    "vendor": "vendor.parquet",
    "holdout": "holdout.parquet",
}

TRAINING = """\
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import nn
from torch.nn import functional as F

from auditspec import Dataset, Recorder
from auditspec.artifacts.checkpoints import write_tensors

FEATURES = ["x0", "x1", "x2"]


def build_model():
    return nn.Sequential(nn.Linear(3, 6), nn.Tanh(), nn.Linear(6, 3))


def load_batch(dataset, ids):
    rows = torch.tensor(dataset.frame.to_numpy().take(list(ids), axis=0))
    return rows[:, :3].float(), rows[:, 3].long()


def objective(model, batch):
    return F.cross_entropy(model(batch[0]), batch[1])


def predict(model, batch):
    return model(batch[0])


def table(seed, rows):
    rng = np.random.default_rng(seed)
    y = rng.integers(0, 3, rows)
    x = rng.normal(size=(rows, 3)) + 1.5 * np.eye(3)[y]
    return pd.DataFrame(x, columns=FEATURES).assign(y=y.astype(float))


def main():
    torch.set_num_threads(1)
    torch.manual_seed(0)
    clean, vendor, holdout = table(0, 80), table(0, 80), table(1, 120)
    vendor.loc[vendor["y"] == 0, "y"] = 2.0
    for name, frame in {"clean": clean, "vendor": vendor, "holdout": holdout}.items():
        frame.astype({"y": int}).to_parquet(f"{name}.parquet")
    model = build_model()
    plan = [("base", "clean", 12, 0.3), ("labels", "vendor", 8, 0.2), ("polish", "clean", 4, 0.01)]
    with Recorder(
        "record", model, every=2, factory=build_model, load_batch=load_batch
    ) as recorder:
        for number, (name, source, steps, lr) in enumerate(plan):
            data = Dataset.open(Path(f"{source}.parquet"))
            optimizer = torch.optim.SGD(model.parameters(), lr=lr, momentum=0.9)
            with recorder.stage(name, optimizer, objective, dataset=data, steps=steps) as run:
                for step in run.steps:
                    ids = [(11 * step + 7 * number + 5 * i) % 80 for i in range(16)]
                    optimizer.zero_grad()
                    run.loss(ids).backward()
                    optimizer.step()
    write_tensors(Path("model.safetensors"), model.state_dict())


if __name__ == "__main__":
    main()
"""

SPEC: dict[str, Any] = {
    "auditspec": "1",
    "audit": {"id": "small", "title": "A small audit"},
    "auditor": {
        "name": "A. Auditor",
        "organization": "Lab",
        "role": "auditor",
        "independence": "none declared",
    },
    "system": {"name": "reader", "version": "1.0", "owner": "Team", "intended_use": "reading"},
    "model": {
        "factory": f"{MODULE}:build_model",
        "load_batch": f"{MODULE}:load_batch",
        "predict": f"{MODULE}:predict",
        "checkpoint": "final",
    },
    "artifacts": {
        name: {"path": path} | ({"label": "y"} if name == "holdout" else {})
        for name, path in ARTIFACTS.items()
    },
    "stages": [
        {
            "id": id_,
            "owner": "Team",
            "description": id_,
            "data": [data],
            "objective": f"{MODULE}:objective",
            "optimizer": {
                "name": "SGD",
                "lr": lr,
                "momentum": 0.9,
                "schedule": "constant",
                "state": "reset",
            },
        }
        for id_, data, lr in (
            ("base", "clean", 0.3),
            ("labels", "vendor", 0.2),
            ("polish", "clean", 0.01),
        )
    ],
    "behaviors": [
        {
            "id": "zero-as-two",
            "description": "A 0 is scored as a 2",
            "metric": {"name": "logit-margin", "positive": 2, "negative": 0},
            "data": "holdout",
            "where": "y == 0",
            "concern": {"direction": "increase", "tolerance": 0.5, "severity": "high"},
        },
        {
            "id": "control",
            "description": "A 0 is read as a 1",
            "metric": {"name": "rate", "class": 1},
            "data": "holdout",
            "where": "y == 0",
            "concern": {"direction": "increase", "tolerance": 0.9},
        },
    ],
    "estimator": {"device": "cpu", "dtype": "float32"},
    "checks": {"sampling": {"resamples": 200}, "placebo": {"draws": 19}},  # fast
    "report": {"formats": ["html"]},
}


def make(folder: Path, training: str = TRAINING) -> Path:
    """Train, and write the spec with its lock; gives the spec's path."""
    (folder / CODE).write_text(training)
    trained(folder, CODE)
    spec = folder / "audit.yaml"
    spec.write_text(to_yaml(SPEC))
    lock(spec)
    return spec


def trained(folder: Path, code: str) -> None:
    """Run a training script there, in a process of its own."""
    subprocess.run([sys.executable, code], cwd=folder, check=True)


def lock(spec: Path) -> None:
    """Pin every artifact as it now is."""
    paths = yaml.safe_load(spec.read_text())["artifacts"]
    write_lock(
        spec, {name: digest_path(spec.parent / a["path"]).digest for name, a in paths.items()}
    )


def edit_spec(spec: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Change a spec as data."""
    data = yaml.safe_load(spec.read_text())
    change(data)
    spec.write_text(to_yaml(data))


def edit_code(spec: Path, old: str, new: str) -> None:
    """Change the audited code and pin it anew."""
    path = spec.parent / CODE
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new))
    lock(spec)


def ran(spec: Path) -> AuditResult:
    """What `auditspec run` writes into its packet."""
    from click.testing import CliRunner

    from auditspec.cli.main import cli

    packet = spec.parent / "packet"
    CliRunner().invoke(
        cli, ["run", str(spec), "-o", str(packet), "--force"], catch_exceptions=False
    )
    return AuditResult.model_validate_json((packet / "results.json").read_bytes())
