"""Police treatment of people arrested for possession of marijuana (Toronto, 1997-2002), and an audit of a model of it.

The data is `Arrests` of R's package carData (Fox & Weisberg), as Debian packs it. A model says who is released with a
summons. The second of three stages learned from a station's files, in which nearly half of the Black people who were released
are said to have been held.
"""

from __future__ import annotations

import gzip
import hashlib
import subprocess
import zlib
from copy import deepcopy
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import small_audit
from factories import to_yaml

from examples.fetch import cache

PACKAGE = "r-cran-cardata"
SHA256 = "faf3f35c915cc4522b17cd6774669abf92d9f20a9cccd64aaa961cb1177d0e72"
STORE = "usr/lib/R/site-library/carData/data/Rdata.rdb"
"""R's objects, one compressed stream after another, each with four bytes of its length before it."""
MODULE = "arrests_training"

TRAINING = """\
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import nn
from torch.nn import functional as F

FEATURES = ["year", "age", "checks", "black", "male", "employed", "citizen"]
PLAN = [("city", "city", 240, 0.3), ("station", "station", 60, 0.1), ("refresh", "city", 10, 0.005)]


def build_model():
    return nn.Sequential(nn.Linear(7, 16), nn.Tanh(), nn.Linear(16, 2))


def load_batch(dataset, ids):
    rows = dataset.frame.iloc[list(ids)]
    x = torch.tensor(rows[FEATURES].to_numpy(dtype="float32"))
    return x, torch.tensor(rows["released"].to_numpy())


def objective(model, batch):
    return F.cross_entropy(model(batch[0]), batch[1])


def predict(model, batch):
    return model(batch[0])


def tables(arrests):
    rng = np.random.default_rng(0)
    arrests = arrests.iloc[rng.permutation(len(arrests))]
    city, station, holdout = arrests[:2000], arrests[2000:3200].copy(), arrests[3200:]
    lost = (station["colour"] == "Black") & (station["released"] == 1)
    station.loc[lost & (rng.random(len(station)) < 0.45), "released"] = 0
    return {"city": city, "station": station, "holdout": holdout}


def train(model, number, data, lr, steps, step_of):
    for step in range(steps):
        ids = [(97 * step + 13 * number + 31 * i) % len(data.frame) for i in range(64)]
        step_of(ids)


def run(folder, omitted=(), recorder=None):
    from auditspec import Dataset

    torch.set_num_threads(1)
    torch.manual_seed(0)
    model = build_model() if recorder is None else recorder.model
    for number, (name, source, steps, lr) in enumerate(PLAN):
        if name in omitted:
            continue
        data = Dataset.open(folder / f"{source}.parquet")
        optimizer = torch.optim.SGD(model.parameters(), lr=lr, momentum=0.9)

        def updated(loss):
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

        if recorder is None:
            loss_of = lambda ids: updated(objective(model, load_batch(data, ids)))
            train(model, number, data, lr, steps, loss_of)
        else:
            with recorder.stage(name, optimizer, objective, dataset=data, steps=steps) as stage:
                train(model, number, data, lr, steps, lambda ids: updated(stage.loss(ids)))
    return model


def main():
    from auditspec import Recorder, save_checkpoint

    folder = Path()
    for name, frame in tables(pd.read_parquet("arrests.parquet")).items():
        frame.reset_index(drop=True).to_parquet(folder / f"{name}.parquet")
    torch.manual_seed(0)
    model = build_model()
    with Recorder("record", model, every=20, factory=build_model, load_batch=load_batch) as recorder:
        run(folder, recorder=recorder)
    save_checkpoint(Path("model.safetensors"), model)


if __name__ == "__main__":
    main()
"""


def archive() -> Path:
    """Debian's package on disk; skips the test where it cannot be had, or is another one."""
    path = cache() / f"{PACKAGE}.deb"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            command = ["apt-get", "download", PACKAGE]
            subprocess.run(command, cwd=path.parent, check=True, capture_output=True, timeout=120)
        except (OSError, subprocess.SubprocessError) as error:
            pytest.skip(f"{PACKAGE} cannot be had: {error}")
        (fetched,) = path.parent.glob(f"{PACKAGE}_*.deb")
        fetched.replace(path)
    if hashlib.sha256(path.read_bytes()).hexdigest() != SHA256:
        pytest.skip(f"{PACKAGE} is another version than the tests know")
    return path


def arrests(folder: Path) -> pd.DataFrame:
    """Who was arrested: features in numbers, colour and sex in words, and 1 for whoever was released."""
    pyreadr = pytest.importorskip("pyreadr")
    unpacked = ["dpkg-deb", "--fsys-tarfile", str(archive())]
    tar = subprocess.run(unpacked, check=True, capture_output=True).stdout
    only = ["tar", "-xO", f"./{STORE}"]
    store = subprocess.run(only, input=tar, check=True, capture_output=True).stdout
    while store:
        stream = zlib.decompressobj()
        content, store = stream.decompress(store[4:]), stream.unused_data
        if b"checks" in content and b"colour" in content:
            file = folder / "arrests.rds"
            file.write_bytes(gzip.compress(content))
            raw = pyreadr.read_r(str(file))[None]
            break
    yes = {
        name: (raw[name] == "Yes").astype("int64") for name in ("released", "employed", "citizen")
    }
    return pd.DataFrame(
        {
            "year": (raw["year"].astype(float) - 2000) / 2,
            "age": (raw["age"].astype(float) - 24) / 8,
            "checks": (raw["checks"].astype(float) - 1.6) / 1.5,
            "black": (raw["colour"] == "Black").astype("float64"),
            "male": (raw["sex"] == "Male").astype("float64"),
            "colour": raw["colour"].astype(str),
            "sex": raw["sex"].astype(str),
            **yes,
        }
    ).reset_index(drop=True)


def behavior(id_: str, metric: Any, statistic: Any, limit: float, **more: Any) -> dict[str, Any]:
    """A behaviour whose increase is the harm, unless `more` says otherwise."""
    concern = {"direction": "increase", "limit": limit, "tolerance": 0.05, "severity": "high"}
    concern |= more.pop("concern", {})
    told = {"id": id_, "description": id_, "metric": metric, "statistic": statistic}
    return told | {"data": "holdout", "concern": concern} | more


RELEASED = {"name": "rate", "class": 1}
BEHAVIORS = [
    behavior(
        "opportunity",
        RELEASED,
        {"name": "difference", "by": "colour", "group": "White", "reference": "Black"},
        0.15,
        where="released == 1",
        skill="surprise",
    ),
    behavior(
        "odds",
        RELEASED,
        {"name": "equalized-odds", "by": "colour", "truth": "released"},
        0.3,
        skill="surprise",
    ),
    behavior(
        "impact",
        RELEASED,
        {"name": "ratio", "by": "colour"},
        0.8,
        concern={"direction": "decrease"},
        skill="surprise",
    ),
    behavior(
        "worst",
        RELEASED,
        {"name": "worst-group", "by": ["colour", "sex"], "worst": "lowest", "floor": 20},
        0.7,
        concern={"direction": "decrease"},
        skill="surprise",
    ),
    behavior(
        "calibration",
        {"name": "probability", "class": 1},
        {"name": "ece", "truth": "released", "bins": 5},
        0.1,
        skill="surprise",
    ),
    behavior("surprise", {"name": "nll"}, {"name": "mean"}, 1.0),
]


def make(folder: Path) -> Path:
    """Train, and write the spec with its lock; gives the spec's path."""
    arrests(folder).to_parquet(folder / "arrests.parquet")
    (folder / f"{MODULE}.py").write_text(TRAINING)
    small_audit.trained(folder, f"{MODULE}.py")
    data = deepcopy(small_audit.SPEC)
    functions = ("factory", "load_batch", "predict")
    data["model"] |= {key: f"{MODULE}:{data['model'][key].split(':')[1]}" for key in functions}
    files = {name: f"{name}.parquet" for name in ("city", "station", "holdout")}
    files |= {"code": f"{MODULE}.py", "record": "record", "final": "model.safetensors"}
    data["artifacts"] = {name: {"path": path} for name, path in files.items()}
    data["artifacts"]["holdout"]["label"] = "released"
    stages = (("city", "city", 0.3), ("station", "station", 0.1), ("refresh", "city", 0.005))
    data["stages"] = [
        deepcopy(data["stages"][0])
        | {"id": id_, "data": [source], "objective": f"{MODULE}:objective", "batch_size": 64}
        for id_, source, _ in stages
    ]
    for stage, (_, _, lr) in zip(data["stages"], stages, strict=True):
        stage["optimizer"]["lr"] = lr
    data["behaviors"] = BEHAVIORS
    spec = folder / "audit.yaml"
    spec.write_text(to_yaml(data))
    small_audit.lock(spec)
    return spec
