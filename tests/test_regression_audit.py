"""A whole audit of a model that predicts a number, against training again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from small_audit import TRAINING, edit_spec, make

from auditspec import Dataset
from auditspec.errors import SpecError
from auditspec.flow import run_audit
from auditspec.report.exports.html_page import render_html
from auditspec.spec.source import load

STAGES = ("base", "labels", "polish")
OF_VALUES = (
    ("nn.Linear(6, 3))", "nn.Linear(6, 1))"),
    (
        "F.cross_entropy(model(batch[0]), batch[1])",
        "F.mse_loss(model(batch[0])[:, 0], batch[1].float())",
    ),
    ("return model(batch[0])\n", "return model(batch[0])[:, 0]\n"),
    ('"clean", 12, 0.3)', '"clean", 12, 0.03)'),
    ('"vendor", 8, 0.2)', '"vendor", 8, 0.03)'),
    ('"clean", 4, 0.01)', '"clean", 4, 0.001)'),
)


def training() -> str:
    text = TRAINING
    for old, new in OF_VALUES:
        assert old in text
        text = text.replace(old, new)
    return text


def errors(folder: Path, omitted: str | None) -> np.ndarray:
    """Predicted less true value of every row of the holdout."""
    code: dict[str, Any] = {}
    exec(training(), code)
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model = code["build_model"]()
    plan = [
        ("base", "clean", 12, 0.03),
        ("labels", "vendor", 8, 0.03),
        ("polish", "clean", 4, 0.001),
    ]
    for number, (name, source, steps, lr) in enumerate(plan):
        data = Dataset.open(folder / f"{source}.parquet")
        optimizer = torch.optim.SGD(model.parameters(), lr=lr, momentum=0.9)
        for step in range(0 if name == omitted else steps):
            ids = [(11 * step + 7 * number + 5 * i) % 80 for i in range(16)]
            optimizer.zero_grad()
            code["objective"](model, code["load_batch"](data, ids)).backward()
            optimizer.step()
    holdout = pd.read_parquet(folder / "holdout.parquet")
    with torch.no_grad():
        said = model(torch.tensor(holdout[["x0", "x1", "x2"]].to_numpy(dtype="float32")))[:, 0]
    return said.double().numpy() - holdout["y"].to_numpy()


def levels(e: np.ndarray, y: np.ndarray) -> dict[str, float]:
    by_class = [float(np.sqrt((e[y == c] ** 2).mean())) for c in range(3)]
    return {
        "size": float(np.abs(e).mean()),
        "worst": max(by_class),
        "gap": max(by_class) - min(by_class),
        "too-high": float(e[y == 0].mean()),
        "far-off": float(np.quantile(e, 0.9)),
    }


@pytest.fixture
def spec(tmp_path: Path) -> Path:
    path = make(tmp_path, training())

    def change(data: dict[str, Any]) -> None:
        data["model"]["outputs"] = "values"
        for stage, lr in zip(data["stages"], (0.03, 0.03, 0.001), strict=True):
            stage["optimizer"]["lr"] = lr
        concern = {"direction": "increase", "tolerance": 0.05}
        behavior = {"metric": {"name": "error", "unit": "points"}, "data": "holdout"}
        rmse = {"by": "y", "average": "rmse"}
        statistics: dict[str, dict[str, Any]] = {
            "size": {"name": "mae"},
            "worst": {"name": "worst-group", "worst": "highest"} | rmse,
            "gap": {"name": "difference"} | rmse,
            "too-high": {"name": "bias"},
            "far-off": {"name": "quantile", "q": 0.9},
        }
        data["behaviors"] = [
            behavior
            | {"id": id_, "description": id_, "statistic": statistic, "concern": concern}
            | ({"where": "y == 0"} if id_ == "too-high" else {"skill": "too-high"})
            for id_, statistic in statistics.items()
        ]
        data["estimator"]["contributions"] = True

    edit_spec(path, change)
    return path


def test_errors_of_values_and_their_effects_are_those_of_training_again(spec: Path) -> None:
    result = run_audit(load(spec), command="auditspec run")
    y = pd.read_parquet(spec.parent / "holdout.parquet")["y"].to_numpy()
    deployed = levels(errors(spec.parent, None), y)
    assert {b.id: b.value for b in result.behaviors} == pytest.approx(deployed, abs=1e-5)
    without = {stage: levels(errors(spec.parent, stage), y) for stage in STAGES}
    expected = {(b, s): deployed[b] - without[s][b] for b in deployed for s in STAGES}
    assert {(e.behavior, e.stage): e.value for e in result.effects} == pytest.approx(
        expected, abs=1e-5
    )
    assert {b.id: b.unit for b in result.behaviors} == dict.fromkeys(deployed, "points")
    assert {c.behavior for c in result.contributions} == set(deployed)
    page = render_html(result)
    assert "predicted less true value" in page
    assert "largest less smallest root mean square error of groups by y" in page


def test_classes_declared_where_values_are_given_are_a_fault_of_the_spec(spec: Path) -> None:
    def change(data: dict[str, Any]) -> None:
        data["model"]["outputs"] = "logits"
        for behavior in data["behaviors"]:
            behavior["metric"] = {"name": "accuracy"}
            behavior["statistic"] = {"name": "mean"}

    edit_spec(spec, change)
    with pytest.raises(SpecError, match=r"AS054.*its shape is \[120\], and not \[B, C\]"):
        run_audit(load(spec), command="auditspec run")
