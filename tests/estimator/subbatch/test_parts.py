"""Which rows of every step are taken."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from training import StagePlan, train

from auditspec.errors import UnsupportedError
from auditspec.estimator.subbatch.parts import cost_of_parts, parts_of, require_rows, taken
from auditspec.record.batches import ITEMS
from auditspec.record.trajectory import Microbatch, Step


def step_of(index: int, *rows: int, weight: float = 1.0) -> Step:
    batches = tuple(Microbatch("data", tuple(range(n)), weight / len(rows), {}) for n in rows)
    return Step(index, (), batches, 0.0, None, None)


def stage_of(*steps: Step, name: str = "tune") -> Any:
    return SimpleNamespace(id=name, steps=steps)


@given(
    st.lists(st.integers(1, 70), min_size=1, max_size=3),
    st.floats(1 / 64, 0.999),
    st.integers(1, 4),
    st.integers(20, 60),
)
def test_the_share_is_kept_over_a_stage(
    rows: list[int], share: float, together: int, steps: int
) -> None:
    stage = stage_of(*(step_of(k, *rows) for k in range(steps)))
    numbers = taken(stage, share, together)
    every = sum(rows) * steps
    assert abs(sum(map(sum, numbers)) - share * every) <= max(together, 1) * (1 + len(rows))
    assert all(0 <= n <= m for row in numbers for n, m in zip(row, rows, strict=True))
    least = min(together, *rows)
    assert all(
        n == 0 or n >= min(least, share * m) - 1
        for r in numbers
        for n, m in zip(r, rows, strict=True)
    )
    found = list(parts_of(stage, share, together))
    paid = sum(part.gradients for part in found if part is not None)
    assert paid == pytest.approx(cost_of_parts(stage, share, together))


@given(st.integers(1, 40), st.floats(1 / 64, 0.999))
def test_what_is_taken_stands_for_all_on_average(rows: int, share: float) -> None:
    """Weights of the rows that are taken, over a long stage, add up to those of all steps."""
    steps = 400
    stage = stage_of(*(step_of(k, rows) for k in range(steps)))
    weights = sum(
        sum(batch.weight for batch in part.step.batches)
        for part in parts_of(stage, share)
        if part is not None
    )
    assert weights == pytest.approx(steps, rel=0, abs=2 / share)


def test_a_smaller_share_takes_some_of_the_rows_of_a_larger_one() -> None:
    stage = stage_of(*(step_of(k, 16) for k in range(30)))
    for large, small in zip(parts_of(stage, 0.5), parts_of(stage, 0.25), strict=True):
        assert large is not None
        assert small is not None
        assert {*small.step.batches[0].ids} < {*large.step.batches[0].ids}


def test_other_stages_take_other_rows() -> None:
    steps = [step_of(k, 16) for k in range(10)]
    one, two = (
        [p.step.batches[0].ids for p in parts_of(stage_of(*steps, name=name), 0.5) if p]
        for name in ("one", "two")
    )
    assert one != two


def test_every_row_is_the_step_itself() -> None:
    stage = stage_of(step_of(0, 8, 3), step_of(1, 8))
    found = [part for part in parts_of(stage, 1.0) if part is not None]
    assert [part.step for part in found] == [*stage.steps]
    assert [part.whole for part in found] == [True, True]
    assert cost_of_parts(stage, 1.0) == 3


def test_passes_without_a_gradient_stay_whole() -> None:
    passing = replace(step_of(0, 8, 8).batches[0], weight=0.0)
    step = replace(step_of(0, 8, 8), batches=(passing, step_of(0, 8).batches[0]))
    (part,) = parts_of(stage_of(step), 0.5)
    assert part is not None
    assert part.step.batches[0] == passing
    assert len(part.step.batches[1].ids) == 4
    assert part.gradients == 1.5


def test_recorded_tensors_are_taken_by_rows_and_counts_by_their_share() -> None:
    batch = {
        "x": torch.arange(8.0)[:, None],
        "place": torch.zeros(1, 5),
        "n": torch.tensor(3),
        ITEMS: torch.tensor(80),
    }
    microbatch = Microbatch(None, (), 1.0, {}, batch)
    step = Step(0, (), (microbatch,), 0.0, None, None)
    (part,) = parts_of(stage_of(step), 0.5)
    assert part is not None
    left = part.step.batches[0].batch
    assert left["x"].shape == (4, 1)
    assert left["place"].shape == (1, 5)
    assert int(left["n"]) == 3
    assert float(left[ITEMS]) == 40
    assert batch["x"].shape == (8, 1)


@pytest.mark.parametrize(
    "batch",
    [torch.tensor(1.0), {"x": torch.zeros(8, 2), "edges": torch.zeros(30, 2)}],
    ids=["no rows", "rows of two kinds"],
)
def test_minibatches_without_rows_are_refused_by_name(batch: Any) -> None:
    step = Step(0, (), (Microbatch(None, (), 1.0, {}, batch),), 0.0, None, None)
    with pytest.raises(UnsupportedError, match=r"'tune'.*cannot be taken apart") as refused:
        require_rows([stage_of(step)])
    assert "paired-replay" in refused.value.remedy


def test_steps_of_a_record_are_taken(tmp_path: Path) -> None:
    recorded = train(tmp_path, (StagePlan("one", 6, microbatches=2),))
    (stage,) = recorded.trajectory.stages
    found = list(parts_of(stage, 0.5))
    assert sum(part.gradients for part in found if part) == pytest.approx(6, abs=0.5)
