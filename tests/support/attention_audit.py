"""Small audits of transformers with torch's default attention: an encoder layer, GPT-2, and BERT.

Each is trained with dropout, in a process of its own, on token sequences that name one of two
classes; the second of three stages flips the labels of class 0, and is to blame for `zero-as-one`.
"""

from __future__ import annotations

import copy
import json
import subprocess
import sys
from pathlib import Path
from typing import Any, Literal

import small_audit
from factories import to_yaml

Kind = Literal["encoder", "gpt2", "bert"]

MODELS: dict[Kind, str] = {
    "encoder": """
class Reader(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(30, 32)
        layer = nn.TransformerEncoderLayer(32, 4, 64, dropout=0.1, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(32, 2)

    def forward(self, tokens):
        return self.head(self.encoder(self.embed(tokens)).mean(1))


def build_model():
    return Reader()
""",
    "gpt2": """
from transformers import GPT2Config, GPT2ForSequenceClassification


def build_model():
    config = GPT2Config(
        vocab_size=30, n_positions=16, n_embd=32, n_layer=2, n_head=4, num_labels=2, pad_token_id=0
    )
    return Logits(GPT2ForSequenceClassification(config))
""",
    "bert": """
from transformers import BertConfig, BertForSequenceClassification


def build_model():
    config = BertConfig(
        vocab_size=30,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=64,
        max_position_embeddings=16,
        num_labels=2,
    )
    return Logits(BertForSequenceClassification(config))
""",
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

LENGTH = 8
COLUMNS = [f"t{i}" for i in range(LENGTH)]
PLAN = [("base", "clean", 12, 5e-3), ("labels", "vendor", 8, 2e-3), ("polish", "clean", 6, 1e-4)]


class Logits(nn.Module):
    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, tokens):
        return self.inner(input_ids=tokens).logits

{model}

def load_batch(dataset, ids):
    rows = torch.tensor(dataset.frame.to_numpy().take(list(ids), axis=0))
    return rows[:, :LENGTH], rows[:, LENGTH]


def objective(model, batch):
    return F.cross_entropy(model(batch[0]), batch[1])


def predict(model, batch):
    return model(batch[0])


def table(seed, rows):
    rng = np.random.default_rng(seed)
    y = rng.integers(0, 2, rows)
    tokens = rng.integers(1, 16, (rows, LENGTH)) + 14 * y[:, None] * (rng.random((rows, LENGTH)) < 0.5)
    return pd.DataFrame(tokens, columns=COLUMNS).assign(y=y)


def main():
    torch.set_num_threads(1)
    torch.manual_seed(0)
    clean, vendor, holdout = table(0, 96), table(2, 96), table(1, 80)
    vendor.loc[vendor["y"] == 0, "y"] = 1
    for name, frame in {"clean": clean, "vendor": vendor, "holdout": holdout}.items():
        frame.to_parquet(f"{name}.parquet")
    model = build_model()
    with Recorder("record", model, every=3, factory=build_model, load_batch=load_batch) as recorder:
        for number, (name, source, steps, lr) in enumerate(PLAN):
            data = Dataset.open(Path(f"{source}.parquet"))
            optimizer = torch.optim.AdamW(model.parameters(), lr=lr)
            with recorder.stage(name, optimizer, objective, dataset=data, steps=steps) as run:
                for step in run.steps:
                    ids = [(11 * step + 7 * number + 5 * i) % 96 for i in range(16)]
                    optimizer.zero_grad()
                    run.loss(ids).backward()
                    optimizer.step()
    write_tensors(Path("model.safetensors"), model.state_dict())


if __name__ == "__main__":
    main()
"""

RATES = {"base": 5e-3, "labels": 2e-3, "polish": 1e-4}


def make(folder: Path, kind: Kind) -> Path:
    """Train one of the models, and write the spec with its lock; gives the spec's path."""
    (folder / small_audit.CODE).write_text(TRAINING.replace("{model}", MODELS[kind]))
    subprocess.run([sys.executable, small_audit.CODE], cwd=folder, check=True)
    spec = folder / "audit.yaml"
    spec.write_text(to_yaml(_spec()))
    small_audit.lock(spec)
    return spec


def _spec() -> dict[str, Any]:
    data = copy.deepcopy(small_audit.SPEC)
    for stage in data["stages"]:
        rate = RATES[stage["id"]]
        stage["optimizer"] = {"name": "AdamW", "lr": rate, "schedule": "constant", "state": "reset"}
    data["behaviors"] = [
        {
            "id": "zero-as-one",
            "description": "A 0 is scored as a 1",
            "metric": {"name": "logit-margin", "positive": 1, "negative": 0},
            "data": "holdout",
            "where": "y == 0",
            "concern": {"direction": "increase", "tolerance": 0.1, "severity": "high"},
        }
    ]
    return data


RETRAINING = """\
import json

import numpy as np
import pandas as pd
import torch
from torch.nn import functional as F

import small_training as code


def margin(model):
    frame = pd.read_parquet("holdout.parquet")
    rows = torch.tensor(frame[frame["y"] == 0].to_numpy())
    model.eval()
    with torch.no_grad():
        logits = model(rows[:, :code.LENGTH])
    model.train()
    return float((logits[:, 1] - logits[:, 0]).mean())


def train(without):
    torch.manual_seed(0)
    model = code.build_model()
    for number, (name, source, steps, lr) in enumerate(code.PLAN):
        rows = torch.tensor(pd.read_parquet(f"{source}.parquet").to_numpy())
        before = {k: v.clone() for k, v in model.state_dict().items()}
        optimizer = torch.optim.AdamW(model.parameters(), lr=lr)
        for step in range(steps):
            ids = [(11 * step + 7 * number + 5 * i) % 96 for i in range(16)]
            optimizer.zero_grad()
            F.cross_entropy(model(rows[ids][:, :code.LENGTH]), rows[ids][:, code.LENGTH]).backward()
            optimizer.step()
        if name == without:  # random numbers are drawn as in the whole run
            model.load_state_dict(before)
    return margin(model)


torch.set_num_threads(1)
whole = train(None)
print(json.dumps({name: whole - train(name) for name, *_ in code.PLAN}))
"""


def retrained(folder: Path) -> dict[str, float]:
    """Mean effect of every stage by plain retraining: a loop that knows nothing of the record."""
    done = subprocess.run(
        [sys.executable, "-c", RETRAINING],
        cwd=folder,
        check=True,
        stdout=subprocess.PIPE,
        text=True,
    )
    effects: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return effects
