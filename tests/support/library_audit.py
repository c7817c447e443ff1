"""A small audit of stages that a library trains: code, record, weights, data, spec; and its truth.

The training code of a test defines `build_model`, `objective`, `predict`, and `train(model, stage, run)`, where
`run` is the recorder, or None where nothing is recorded. Each stage is seeded by its number, so that training
again without one of them, which does not import auditspec, repeats the batches of those after it.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from copy import deepcopy
from pathlib import Path
from typing import Any

import small_audit
from factories import to_yaml

from auditspec.record.trajectory import Trajectory
from auditspec.results import AuditResult

RATES = {"base": 0.05, "labels": 0.05, "polish": 0.002}
COMMON = (
    f"""
RATES = {RATES}
"""
    + """
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader

FEATURES = ["x0", "x1", "x2"]
STAGES = (("base", "clean"), ("labels", "vendor"), ("polish", "clean"))

class Rows(torch.utils.data.Dataset):
    '''Item i is row i of a table.'''

    def __init__(self, frame):
        self.rows = torch.tensor(frame.to_numpy())

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, i):
        return self.rows[i, :3].float(), self.rows[i, 3].long()


def load_batch(dataset, ids):
    rows = torch.tensor(dataset.frame.to_numpy().take(list(ids), axis=0))
    return rows[:, :3].float(), rows[:, 3].long()


def predict(model, batch):
    return model(batch[0])


def table(seed, rows):
    rng = np.random.default_rng(seed)
    y = rng.integers(0, 3, rows)
    x = rng.normal(size=(rows, 3)) + 1.5 * np.eye(3)[y]
    return pd.DataFrame(x, columns=FEATURES).assign(y=y.astype(float))


def tables():
    clean, vendor, holdout = table(0, 80), table(0, 80), table(1, 120)
    vendor.loc[vendor["y"] == 0, "y"] = 2.0
    return {"clean": clean, "vendor": vendor, "holdout": holdout}


def margin(trained):
    model = build_model()  # without what a library put into the trained one
    model.load_state_dict(trained.state_dict())
    holdout = tables()["holdout"]
    x = torch.tensor(holdout.loc[holdout["y"] == 0, FEATURES].to_numpy()).float()
    with torch.no_grad():
        logits = model.eval()(x)
    return float((logits[:, 2] - logits[:, 0]).double().mean())


def built():
    torch.manual_seed(0)
    return build_model()


def record():
    from auditspec import Recorder
    from auditspec.artifacts.checkpoints import write_tensors

    for name, frame in tables().items():
        frame.astype({"y": int}).to_parquet(f"{name}.parquet")
    model = built()
    with Recorder("record", model, every=EVERY, factory=build_model, load_batch=LOAD) as recorder:
        for number, (stage, source) in enumerate(STAGES):
            torch.manual_seed(number)
            train(model, stage, source, recorder)
    write_tensors(Path("model.safetensors"), model.state_dict())


def truth():
    import json

    margins = {}
    for without in (None, *(stage for stage, _ in STAGES)):
        model = built()
        for number, (stage, source) in enumerate(STAGES):
            torch.manual_seed(number)
            if stage != without:
                train(model, stage, source, None)
        margins[str(without)] = margin(model)
    assert "auditspec" not in sys.modules
    print(json.dumps(margins))


EVERY, LOAD = 2, load_batch


def main():
    torch.set_num_threads(1)
    {"record": record, "truth": truth}[sys.argv[1]]()
"""
)
MAIN = """

if __name__ == "__main__":
    main()
"""


def make(
    folder: Path, training: str, optimizer: Mapping[str, Any], *, self_check: bool = False
) -> Path:
    """Train and record, and write the spec with its lock; gives the spec's path.

    Args:
        folder: where all of it goes.
        training: the library's part of the training code.
        optimizer: as the spec declares it, of every stage.
        self_check: whether each stage is checked in a fresh process while it is recorded.
    """
    (folder / small_audit.CODE).write_text(COMMON + training + MAIN)
    run(folder, "record", AUDITSPEC_SELF_CHECK=str(int(self_check)))
    checked = [stage.header.self_check for stage in Trajectory.open(folder / "record").stages]
    assert [c and c.outcome for c in checked] == ["bitwise" if self_check else None] * 3
    spec = specify(folder, optimizer)
    small_audit.lock(spec)
    return spec


def specify(folder: Path, optimizer: Mapping[str, Any]) -> Path:
    """Write the spec without its lock, and give its path."""
    data = deepcopy(small_audit.SPEC)
    for stage in data["stages"]:
        rate = {"lr": RATES[stage["id"]]}
        stage["optimizer"] = {"state": "reset", "schedule": "constant", **rate, **optimizer}
    spec = folder / "audit.yaml"
    spec.write_text(to_yaml(data))
    return spec


def run(folder: Path, what: str, **environment: str) -> str:
    """Run the training code in a process of its own."""
    ran = subprocess.run(
        [sys.executable, small_audit.CODE, what],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"OMP_NUM_THREADS": "1"} | environment,
    )
    assert ran.returncode == 0, ran.stderr[-3000:]
    return ran.stdout


def hold_against_truth(
    folder: Path, training: str, optimizer: Mapping[str, Any], *, self_check: bool
) -> AuditResult:
    """Audit: the record lands bitwise, and what it would have been without a stage is what training gives."""
    return agrees_with_truth(make(folder, training, optimizer, self_check=self_check))


def agrees_with_truth(spec: Path) -> AuditResult:
    """Audit a locked spec, whose code lies beside it, and hold every effect against training again."""
    found = small_audit.ran(spec)
    outcomes = {check.id: check for check in found.checks}
    fidelity = outcomes["record-fidelity"]
    assert (fidelity.outcome, fidelity.statistic) == ("pass", 0.0), fidelity
    effects = {e.stage: e for e in found.effects if e.behavior == "zero-as-two"}
    truth: dict[str, float] = json.loads(run(spec.parent, "truth").splitlines()[-1])
    for stage, effect in effects.items():
        assert effect.exact
        assert abs(effect.counterfactual - truth[stage]) < 1e-6, stage
        assert abs(effect.value - (truth["None"] - truth[stage])) < 2e-6, stage
    assert effects["labels"].value > 0.5
    return found
