"""An audit whose training code is a package, trained by `python -m`: relative imports, a function that
extends the model, an optimizer class and a metric of its own, CSV data with text, weights from elsewhere.

Its record names `reader.train:…`; the code artifact is the package's folder.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from small_audit import lock

FILES = {
    "reader/__init__.py": "from .model import build_model\n",
    "reader/model.py": """\
import torch
from torch import nn


def build_model():
    return nn.Sequential(nn.Linear(3, 6), nn.Tanh(), nn.Linear(6, 3))


def add_head(model):
    model[2] = nn.Linear(6, 4)


class SignSGD(torch.optim.Optimizer):
    def __init__(self, params, lr=0.1):
        super().__init__(params, {"lr": lr})

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    p -= group["lr"] * p.grad.sign()
""",
    "reader/types.py": "Batch = tuple\n",  # the name of a standard module, inside the package
    "reader/metrics.py": """\
from .train import predict


def confidence(model, batch):
    return predict(model, batch).softmax(1).amax(1)
""",
    "reader/train.py": """\
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch.nn import functional as F

from auditspec import Dataset, Recorder
from auditspec.artifacts.checkpoints import write_tensors

from . import types
from .model import SignSGD, add_head, build_model

try:
    import a_package_that_is_optional
except ImportError:
    a_package_that_is_optional = None


def load_batch(dataset, ids) -> types.Batch:
    rows = dataset.frame.iloc[list(ids)]
    x = torch.tensor(rows[["x0", "x1", "x2"]].to_numpy(), dtype=torch.float32)
    return x, torch.tensor(rows["kind"].to_numpy())


def cross_entropy(model, batch, *, smoothing=0.0):
    return F.cross_entropy(model(batch[0]), batch[1], label_smoothing=smoothing)


def predict(model, batch):
    return model(batch[0])


def table(seed, rows, kinds):
    rng = np.random.default_rng(seed)
    kind = np.arange(rows) % kinds
    x = rng.normal(size=(rows, 3)) + 1.5 * np.eye(4, 3)[kind]
    frame = pd.DataFrame(x, columns=["x0", "x1", "x2"])
    return frame.assign(kind=kind, source=np.where(np.arange(rows) % 5 < 2, "web", "scan"))


def main():
    torch.set_num_threads(1)
    torch.manual_seed(0)
    for name, seed, rows, kinds in (
        ("base", 0, 80, 3), ("vendor", 1, 60, 4), ("trusted", 2, 60, 4), ("holdout", 3, 120, 4)
    ):
        table(seed, rows, kinds).to_csv(f"{name}.csv", index=False)
    model = build_model()
    write_tensors(Path("given.safetensors"), model.state_dict())
    write_tensors(Path("clean.safetensors"), build_model().state_dict())
    with Recorder("record", model, every=3, factory=build_model, load_batch=load_batch) as recorder:
        plan = [("first", "base", None, "SGD", 0.3), ("vendor", "vendor", add_head, "AdamW", 0.01),
                ("last", "base", None, "own", 0.001)]
        for number, (name, source, extend, kind, lr) in enumerate(plan):
            data = Dataset.open(Path(f"{source}.csv"))
            if extend:
                recorder.extend(extend)
            parameters = model.parameters()
            optimizer = (
                torch.optim.SGD(parameters, lr=lr, momentum=0.9, nesterov=True) if kind == "SGD"
                else torch.optim.AdamW(parameters, lr=lr, betas=(0.9, 0.99), eps=1e-7)
                if kind == "AdamW" else SignSGD(parameters, lr=lr)
            )
            with recorder.stage(name, optimizer, cross_entropy, dataset=data, steps=6) as run:
                for step in run.steps:
                    ids = [(11 * step + 7 * number + 5 * i) % 60 for i in range(12)]
                    optimizer.zero_grad()
                    run.loss(ids).backward()
                    optimizer.step()
    write_tensors(Path("deployed.safetensors"), model.state_dict())


if __name__ == "__main__":
    main()
""",
}

SPEC = """\
auditspec: "1"
audit: {id: reader-1, title: A reader}
auditor: {name: A. Auditor, organization: Lab, role: auditor, independence: none declared}
system: {name: reader, version: "1.0", owner: Team, intended_use: reading}

model:
  factory: reader.model:build_model
  load_batch: reader.train:load_batch
  predict: reader.train:predict
  checkpoint: deployed
  initial:
    kind: given
    owner: Supplier
    provenance: bought in spring
    weights: given
    reference: clean

artifacts:
  code:
    path: reader
  record:
    path: record
  deployed:
    path: deployed.safetensors
  given:
    path: given.safetensors
  clean:
    path: clean.safetensors
  base:
    path: base.csv
    label: kind
  vendor:
    path: vendor.csv
    label: kind
  trusted:
    path: trusted.csv
  holdout:
    path: holdout.csv
    label: kind

stages:
  - id: first
    owner: Team
    description: from the given weights
    data:
      - base
    objective: reader.train:cross_entropy
    optimizer:
      name: SGD
      lr: 0.3
      momentum: 0.9
      nesterov: true
      schedule: constant
      state: reset
  - id: vendor
    owner: Vendor
    description: another kind
    data:
      - vendor
    objective: reader.train:cross_entropy
    extend: reader.model:add_head
    reference: trusted
    optimizer:
      name: AdamW
      lr: 0.01
      betas: [0.9, 0.99]
      eps: 1.0e-7
      weight_decay: 0.01
      schedule: constant
      state: reset
  - id: last
    owner: Team
    description: a last pass
    data:
      - base
    objective: reader.train:cross_entropy
    optimizer:
      name: reader.model:SignSGD
      lr: 0.001
      schedule: constant
      state: reset

behaviors:
  - id: zero-as-three
    description: a 0 from the web is read as a 3
    metric:
      name: rate
      class: 3
    data: holdout
    where: kind == 0 and source in ["web"]
    concern:
      direction: increase
      limit: 0.2
      tolerance: 0.12
      severity: high
  - id: margin
    description: a 0 is scored as a 1
    metric:
      name: logit-margin
      positive: 1
      negative: 0
    data: holdout
    where: kind == 0 and source != "scan"
    skill: accuracy
    concern:
      direction: increase
      tolerance: 0.5
  - id: accuracy
    description: a kind is misread
    metric:
      name: accuracy
    data: holdout
    concern:
      direction: decrease
      tolerance: 0.05
  - id: sure
    description: too sure of itself
    metric:
      name: custom
      entrypoint: reader.metrics:confidence
      unit: probability
    data: holdout
    where: x0 > 0.5
    concern:
      direction: increase
      tolerance: 0.1

estimator:
  method: auto
  budget:
    gradients: 1000
  device: cpu

policy:
  fail_on: ["severity>=high"]
  inconclusive: fail
  suppress:
    - behavior: margin
      reason: known
      owner: Lab
      expires: 2999-01-01
"""


def make(folder: Path) -> Path:
    """Train, and write the spec with its lock; gives the spec's path."""
    for name, text in FILES.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(text)
    command = [sys.executable, "-B", "-m", "reader.train"]
    subprocess.run(command, cwd=folder, check=True)
    spec = folder / "audit.yaml"
    spec.write_text(SPEC)
    lock(spec)
    return spec
