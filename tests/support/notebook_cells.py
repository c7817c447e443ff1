"""The cells of a notebook, as `python - < notebook_cells.py` runs them: no file is the main module.

The first writes what an audit imports, as `%%writefile training_code.py` does; the last prints what the self-check said.
"""

from importlib import import_module
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from auditspec import Dataset, Recorder

Path("training_code.py").write_text(
    """
import torch
from torch import nn


def build_model():
    return nn.Linear(2, 2)


def load_batch(data, ids):
    rows = torch.tensor(data.frame.to_numpy().take(list(ids), axis=0))
    return rows[:, :2].float(), rows[:, 2].long()


def objective(model, batch):
    return nn.functional.cross_entropy(model(batch[0]), batch[1])
"""
)

code = import_module("training_code")
draw = np.random.default_rng(0)
table = pd.DataFrame(draw.normal(size=(20, 2)), columns=["a", "b"])
table.assign(y=draw.integers(0, 2, 20).astype(float)).to_parquet("data.parquet")
data = Dataset.open("data.parquet")
model = code.build_model()
optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
options = {"factory": code.build_model, "load_batch": code.load_batch, "every": 2}
with (
    Recorder("record", model, **options) as recorder,
    recorder.stage("one", optimizer, code.objective, dataset=data, steps=4) as run,
):
    for step in run.steps:
        optimizer.zero_grad()
        run.loss([step, step + 1, step + 2]).backward()
        optimizer.step()
print(recorder.header.factory.name, recorder.header.stages[0].self_check)
