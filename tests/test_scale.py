"""docs/scale.md is what its script prints, and the script counts as the estimators forecast."""

from __future__ import annotations

import runpy
from pathlib import Path
from typing import Any

import pytest
from training import Recorded, StagePlan, train

from auditspec.estimator.forecast import gradients_of, state_bytes
from auditspec.estimator.interface import Terms
from auditspec.estimator.interventions import Arm
from auditspec.estimator.replay.replay import Replay
from auditspec.estimator.subbatch.subbatch import SubBatchReplay
from auditspec.sealed.process import ARENA

DOCS = Path(__file__).parents[1] / "docs"
SCALE: dict[str, Any] = runpy.run_path(str(DOCS / "scale.py"))
STAGES = ("one", "two", "three", "four")
ADAM = {"lr": 0.01}


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Recorded:
    plan = [
        StagePlan(stage, optimizer="AdamW", options=ADAM, steps=6, shift=i)
        for i, stage in enumerate(STAGES)
    ]
    return train(tmp_path_factory.mktemp("run"), tuple(plan))


def test_the_page_is_what_its_script_prints() -> None:
    assert SCALE["table"]() in (DOCS / "scale.md").read_text(encoding="utf-8")


def test_the_script_counts_as_the_estimators_forecast(recorded: Recorded) -> None:
    record = recorded.trajectory
    case = SCALE["Case"](len(STAGES), *state_bytes(record))
    training = sum(map(gradients_of, record.stages))
    arms = Arm.each(STAGES[:-1])
    exact = Replay(batched=False).forecast(record, arms, Terms())
    assert exact.gradients == (case.exact_gradients() - 1) * training
    assert exact.memory == case.exact_memory()
    assert exact.disk == case.exact_disk()
    rows = SubBatchReplay().forecast(record, arms, Terms(budget=int(exact.gradients * 0.9)))
    assert rows.memory == case.rows_memory()
    assert rows.disk == case.rows_disk()
    assert SubBatchReplay.with_twin == SCALE["WITH_TWIN"]
    assert SCALE["CROSSES"] == ARENA // 2


def test_a_record_takes_what_is_counted(recorded: Recorded) -> None:
    """Of states only; what stands beside them is small, which this model's states are too."""
    record = recorded.trajectory
    case = SCALE["Case"](len(STAGES), *state_bytes(record))
    states = [stage.state(k) for stage in record.stages for k in stage.state_steps]
    held = sum(
        tensor.numel() * tensor.element_size()
        for state in states
        for group in (state.parameters, state.buffers, *state.optimizer_state.values())
        for tensor in group.values()
        if hasattr(tensor, "numel")
    )
    kept = {len(stage.state_steps) - 1 for stage in record.stages}
    assert len(kept) == 1
    assert held == case.record(*kept)
