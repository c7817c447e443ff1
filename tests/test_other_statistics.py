"""Whole audits of statistics that are no means, against retraining and resampling by hand."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from statistics import NormalDist
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from measures import Median
from small_audit import TRAINING, edit_spec

from auditspec import Dataset
from auditspec.behaviors import statistics
from auditspec.behaviors.statistics.interface import student
from auditspec.flow import run_audit
from auditspec.report.exports.html_page import render_html
from auditspec.results import AuditResult
from auditspec.spec.source import load

STAGES = ("base", "labels", "polish")
RESAMPLES = 200
Level = Callable[[np.ndarray], float]


@pytest.fixture(autouse=True)
def plugged_in(monkeypatch: pytest.MonkeyPatch) -> None:
    known = (*statistics.STATISTICS, Median)
    monkeypatch.setattr(statistics, "STATISTICS", known)


@pytest.fixture
def spec(audit_spec: Path) -> Path:
    """The small audit's margin as a median on its slice, and as the difference of two groups."""

    def change(data: dict[str, Any]) -> None:
        median, _ = data["behaviors"]
        gap = median | {"id": "gap", "where": None}
        del gap["where"]
        median["statistic"] = {"name": "median"}
        gap["statistic"] = {"name": "difference", "by": "y", "group": 0}
        data["behaviors"] = [median, gap]

    edit_spec(audit_spec, change)
    return audit_spec


def audited(spec: Path, **estimator: Any) -> AuditResult:
    edit_spec(spec, lambda data: data["estimator"].update(estimator))
    return run_audit(load(spec), command="auditspec run")


# --- by hand --------------------------------------------------------------------------------------


def margins(folder: Path, *omitted: str) -> np.ndarray:
    """Scores of every row of the holdout after training without some stages."""
    code: dict[str, Any] = {}
    exec(TRAINING, code)
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model = code["build_model"]()
    plan = [("base", "clean", 12, 0.3), ("labels", "vendor", 8, 0.2), ("polish", "clean", 4, 0.01)]
    for number, (name, source, steps, lr) in enumerate(plan):
        if name in omitted:
            continue
        data = Dataset.open(folder / f"{source}.parquet")
        optimizer = torch.optim.SGD(model.parameters(), lr=lr, momentum=0.9)
        for step in range(steps):
            ids = [(11 * step + 7 * number + 5 * i) % 80 for i in range(16)]
            optimizer.zero_grad()
            code["objective"](model, code["load_batch"](data, ids)).backward()
            optimizer.step()
    holdout = Dataset.open(folder / "holdout.parquet")
    with torch.no_grad():
        logits = model.eval()(code["load_batch"](holdout, range(len(holdout.frame)))[0])
    return (logits[:, 2] - logits[:, 0]).double().numpy()


def levels(folder: Path) -> dict[str, tuple[np.ndarray, Callable[..., float]]]:
    """By behaviour, its rows and its level of scores of some of all rows."""
    y = pd.read_parquet(folder / "holdout.parquet")["y"].to_numpy()

    def median(scores: np.ndarray, rows: np.ndarray) -> float:
        return float(np.median(scores[rows][y[rows] == 0]))

    def gap(scores: np.ndarray, rows: np.ndarray) -> float:
        here, zero = scores[rows], y[rows] == 0
        return float(here[zero].mean() - here[~zero].mean())

    return {"zero-as-two": (np.flatnonzero(y == 0), median), "gap": (np.arange(len(y)), gap)}


def by_hand(folder: Path) -> dict[tuple[str, str], tuple[float, np.ndarray]]:
    """Each effect, and the same on the resamples that the audit draws, [R]."""
    whole, without = margins(folder), {stage: margins(folder, stage) for stage in STAGES}
    every = np.arange(len(whole))
    draws = np.random.default_rng(0).multinomial(
        len(every), np.full(len(every), 1 / len(every)), RESAMPLES
    )
    found = {}
    for behavior, (_, level) in levels(folder).items():
        for stage in STAGES:
            effects = [
                level(whole, rows) - level(without[stage], rows)
                for rows in (every, *(np.repeat(every, drawn) for drawn in draws))
            ]
            found[behavior, stage] = effects[0], np.array(effects[1:])
    return found


# --- audited --------------------------------------------------------------------------------------


def test_effects_levels_and_intervals_are_those_computed_by_hand(spec: Path) -> None:
    result, expected = audited(spec), by_hand(spec.parent)
    spreads = {key: draws.std() for key, (_, draws) in expected.items()}
    moved = np.max(
        [np.abs(draws - effect) / spreads[key] for key, (effect, draws) in expected.items()], axis=0
    )
    c = max(float(np.quantile(moved, 0.95)), NormalDist().inv_cdf(0.975))
    small = len(
        levels(spec.parent)["zero-as-two"][0]
    )  # the smaller of the two groups: its error is the least known
    assert len(result.effects) == len(expected)
    for effect in result.effects:
        value, _ = expected[effect.behavior, effect.stage]
        half = student(c, small - 1) * spreads[effect.behavior, effect.stage]
        half *= math.sqrt(small / (small - 1)) if effect.behavior == "gap" else 1
        assert effect.exact
        assert effect.value == pytest.approx(value, abs=1e-4)
        assert effect.high - effect.value == pytest.approx(half, rel=2e-3)
        assert effect.value - effect.low == pytest.approx(half, rel=2e-3)
    whole, lacking = margins(spec.parent), margins(spec.parent, "labels")
    every = np.arange(len(whole))
    for behavior in result.behaviors:
        _, level = levels(spec.parent)[behavior.id]
        ours = [p for p in result.paths if p.behavior == behavior.id]
        paths = {p.arm: p.levels[-1] for p in ours if p.levels}
        assert behavior.value == pytest.approx(level(whole, every), abs=1e-4)
        assert paths[()] == pytest.approx(level(whole, every), abs=1e-4)
        assert paths["omit labels",] == pytest.approx(level(lacking, every), abs=1e-4)
    # the mean tells another story: the audit did not read it
    means = {
        "zero-as-two": whole[levels(spec.parent)["zero-as-two"][0]].mean(),
        "gap": whole.mean(),
    }
    assert all(abs(b.value - means[b.id]) > 0.01 for b in result.behaviors if b.value is not None)


def test_the_verdict_names_the_stage_and_the_report_says_what_was_read(spec: Path) -> None:
    result = audited(spec)
    assert {b.id: b.statistic for b in result.behaviors} == {
        "zero-as-two": "median",
        "gap": "mean where y is 0 less the mean elsewhere",
    }
    assert all(v.verdict == "attributed" and v.parties == ("labels",) for v in result.verdicts)
    outcomes = {check.id: check.outcome for check in result.checks}
    assert all(outcomes[id_] == "pass" for id_ in ("spot-check", "refinement", "precision"))
    page = render_html(result)
    assert "median" in page
    assert "mean where y is 0 less the mean elsewhere" in page


@pytest.mark.parametrize("method", ["displacement", "first-order"])
def test_estimates_state_an_error_and_are_held_against_replay(spec: Path, method: str) -> None:
    result, expected = audited(spec, method=method), by_hand(spec.parent)
    checks = {check.id: check for check in result.checks}
    compared = [d for d in checks["spot-check"].details if d.reference is not None]
    assert compared
    for detail in compared:
        assert detail.stage is not None
        value, _ = expected[str(detail.behavior), detail.stage]
        assert detail.reference == pytest.approx(value, abs=1e-4)
    estimated = [e for e in result.effects if not e.exact]
    assert estimated
    for effect in estimated:
        assert effect.error is not None
        assert effect.error > 0
        assert effect.high - effect.low > 2 * effect.error
    assert checks["refinement"].outcome in ("pass", "fail")
    assert checks["placebo"].outcome in ("pass", "fail", "inconclusive")
    assert checks["precision"].outcome == "pass"
    if method == "first-order":
        assert all(e.linear is not None for e in result.effects)
