"""Schedules and groups in a spec: what is wrong is told at its place."""

from pathlib import Path
from typing import Any

import pytest
from factories import to_yaml
from small_audit import SPEC

from auditspec.errors import SpecError
from auditspec.spec.source import load


def problem(tmp_path: Path, **optimizer: Any) -> str:
    data = SPEC | {"stages": [dict(stage) for stage in SPEC["stages"]]}
    data["stages"][0]["optimizer"] = {"name": "AdamW", "lr": 0.1} | optimizer
    path = tmp_path / "audit.yaml"
    path.write_text(to_yaml(data))
    try:
        load(path)
    except SpecError as error:
        return str(error)
    return ""


@pytest.mark.parametrize(
    ("schedule", "said"),
    [
        ("linear", ""),
        ({"name": "cosine", "warmup": 0.1, "end": 0.1}, ""),
        ({"name": "wsd", "decay": 5}, ""),
        ("lineer", "did you mean 'linear'?"),
        ({"name": "wsd"}, "missing key 'decay'"),
        ({"name": "cosin"}, "'cosine'"),
        ({"name": "cosine", "power": 2.0}, "unknown key 'power'"),
        ({"name": "linear", "warmup": -1}, ">= 0"),
        ({"name": "linear", "end": 2.0}, "<= 1"),
    ],
)
def test_schedules(tmp_path: Path, schedule: Any, said: str) -> None:
    found = problem(tmp_path, schedule=schedule)
    assert (said in found) if said else not found
    assert found.count("error[") == bool(said)


@pytest.mark.parametrize(
    ("group", "said"),
    [
        ({"parameters": "biases-and-norms", "weight_decay": 0.0}, ""),
        ({"parameters": ["*.bias"], "lr": 0.01, "betas": [0.9, 0.95]}, ""),
        ({"weight_decay": 0.0}, "missing key 'parameters'"),
        ({"parameters": []}, "at least 1"),
        ({"parameters": "biases"}, "biases-and-norms"),
        ({"parameters": ["*"], "decay": 0.1}, "unknown key 'decay'"),
    ],
)
def test_groups(tmp_path: Path, group: Any, said: str) -> None:
    found = problem(tmp_path, groups=[group])
    assert (said in found) if said else not found


def test_predict_where_a_metric_looks_at_logits(tmp_path: Path) -> None:
    model = {key: value for key, value in SPEC["model"].items() if key != "predict"}
    path = tmp_path / "audit.yaml"
    path.write_text(to_yaml(SPEC | {"model": model}))
    with pytest.raises(SpecError, match=r"AS049.*metric 'logit-margin' looks at the logits"):
        load(path)
    metric = {"name": "custom", "entrypoint": "small_training:margin", "unit": "nats"}
    behaviors = [SPEC["behaviors"][0] | {"metric": metric}]
    path.write_text(to_yaml(SPEC | {"model": model, "behaviors": behaviors}))
    assert load(path).spec.model.predict is None
