"""A fairness audit of real people: every statistic of groups against training again, and formulas written out here."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import arrests
import numpy as np
import pandas as pd
import pytest
import torch

from auditspec.flow import run_audit
from auditspec.results import AuditResult
from auditspec.spec.source import load

pytestmark = pytest.mark.slow
STAGES = ("city", "station", "refresh")


@pytest.fixture(scope="module")
def spec(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return arrests.make(tmp_path_factory.mktemp("arrests"))


@pytest.fixture(scope="module")
def result(spec: Path) -> AuditResult:
    return run_audit(load(spec), command="auditspec run")


def levels(folder: Path, *omitted: str) -> dict[str, float]:
    """Every behaviour of the model that is trained without some stages."""
    code: dict[str, Any] = {}
    exec(arrests.TRAINING, code)
    people = pd.read_parquet(folder / "holdout.parquet")
    x = torch.tensor(people[code["FEATURES"]].to_numpy(dtype="float32"))
    model = code["run"](folder, omitted)
    with torch.no_grad():
        p = model(x).double().softmax(1).numpy()
    chosen, truth = p.argmax(1), people["released"].to_numpy()
    black = people["colour"].to_numpy() == "Black"

    def rate(*masks: np.ndarray) -> float:
        return float(chosen[np.logical_and.reduce(masks)].mean())

    gaps = [rate(~black, truth == y) - rate(black, truth == y) for y in (1, 0)]
    shares = [rate(black), rate(~black)]
    female = people["sex"].to_numpy() == "Female"
    crossed = [rate(a, b) for a in (black, ~black) for b in (female, ~female)]
    bins = np.ceil(p[:, 1] * 5).clip(1)
    errors = [abs((p[bins == b, 1] - truth[bins == b]).sum()) for b in np.unique(bins)]
    return {
        "opportunity": gaps[0],
        "odds": max(map(abs, gaps)),
        "impact": min(shares) / max(shares),
        "worst": min(crossed),
        "calibration": sum(errors) / len(truth),
        "surprise": float(-np.log(p[np.arange(len(truth)), truth]).mean()),
    }


def test_levels_and_effects_are_those_of_training_again(spec: Path, result: AuditResult) -> None:
    deployed = levels(spec.parent)
    assert {b.id: b.value for b in result.behaviors} == pytest.approx(deployed, abs=1e-6)
    without = {stage: levels(spec.parent, stage) for stage in STAGES}
    expected = {(b, s): deployed[b] - without[s][b] for b in deployed for s in STAGES}
    found = {(e.behavior, e.stage): e.value for e in result.effects}
    assert found == pytest.approx(expected, abs=1e-6)
    assert all(e.exact for e in result.effects)
    for effect in result.effects:
        assert effect.low < effect.value < effect.high, effect


def test_the_station_is_answerable_for_every_gap(spec: Path, result: AuditResult) -> None:
    for behavior in ("opportunity", "odds", "impact", "worst"):
        (verdict,) = [v for v in result.verdicts if v.behavior == behavior]
        assert (verdict.verdict, verdict.parties) == ("attributed", ("station",)), behavior


def test_groups_are_told_with_their_levels(spec: Path, result: AuditResult) -> None:
    people = pd.read_parquet(spec.parent / "holdout.parquet")
    by_id = {b.id: b for b in result.behaviors}
    sizes = people.groupby(["colour", "sex"]).size()
    told = {g.name: g.examples for g in by_id["worst"].groups}
    assert told == {f"{colour}, {sex}": n for (colour, sex), n in sizes.items()}
    white, black = (g.level for g in by_id["opportunity"].groups)
    assert by_id["opportunity"].value == pytest.approx(white - black, abs=1e-12)
    assert min(g.level for g in by_id["worst"].groups if g.level) == by_id["worst"].value
