"""Repeated rows, against uniform sampling."""

from __future__ import annotations

import numpy as np
import pytest

from auditspec.record.matching import StageRows
from auditspec.record.usage import CHANCE, Usage, usage_of

ROWS = 200


def usage(steps: list[list[int]], contents: list[int] | None = None) -> Usage:
    rows = StageRows("one", ("data",), steps=[[("data", n) for n in step] for step in steps])
    return usage_of(rows, {"data": list(range(ROWS)) if contents is None else contents})


def uniform(seed: int, steps: int = 40, size: int = 16) -> list[list[int]]:
    draw = np.random.default_rng(seed)
    return [draw.choice(ROWS, size, replace=False).tolist() for _ in range(steps)]


def test_counts() -> None:
    found = usage([[0, 1, 1], [0, 2, 3]])
    assert (found.seen, found.distinct, found.constant, found.most) == (6, 4, 1, 2)
    assert found.declared == ROWS


def test_uniform_sampling_is_what_it_is_compared_with() -> None:
    """No alarm in 200 honest runs, and the expected number of different rows is their mean."""
    runs = [usage(uniform(seed)) for seed in range(200)]
    assert not any(run.few or run.overused for run in runs)
    mean = np.mean([run.distinct for run in runs])
    assert runs[0].expected == pytest.approx(mean, rel=0.01)


@pytest.mark.parametrize("epochs", [1, 3])
def test_epochs_without_replacement_and_whole_batches_are_usual(epochs: int) -> None:
    draw = np.random.default_rng(0)
    order = np.concatenate([draw.permutation(ROWS) for _ in range(epochs)])
    found = usage(order.reshape(-1, 20).tolist())
    assert (found.few, found.overused, found.distinct) == (False, 0, ROWS)
    whole = usage([list(range(ROWS))] * 30)
    assert (whole.few, whole.overused, whole.constant) == (False, 0, ROWS)


def test_a_few_rows_in_every_batch_are_seen() -> None:
    found = usage([[*range(8), *step[:8]] for step in uniform(1)])
    assert (found.overused, found.overused_in, found.constant) == (8, 40, 8)
    assert found.usual == pytest.approx(40 * (1 - (1 - 1 / ROWS) ** 16), rel=1e-6)
    assert not found.few


def test_a_few_rows_in_many_batches_are_seen() -> None:
    steps = [[*range(8), *s[:8]] if i % 2 else s for i, s in enumerate(uniform(1))]
    found = usage(steps)
    assert found.overused == 8
    assert found.constant == 0
    assert 20 <= found.overused_in < 40


def test_far_fewer_rows_than_declared_are_seen() -> None:
    found = usage([[n % 25 for n in step] for step in uniform(2)])
    assert found.few
    assert found.distinct == 25


def test_copies_under_other_numbers_are_one_example() -> None:
    contents = [n % 4 if n < 100 else n for n in range(ROWS)]
    hidden = usage([[step * 2 % 100, *range(100, 107)] for step in range(40)], contents)
    assert hidden.distinct == 2 + 7
    honest = usage(uniform(3), contents)  # the declared data themselves hold these rows so often
    assert honest.overused == 0


def test_data_that_was_declared_and_never_read_is_named() -> None:
    rows = StageRows("one", ("data", "more"), steps=[[("data", 0)]])
    assert usage_of(rows, {"data": [0, 1], "more": [2]}).unread == ("more",)


def test_without_the_declared_rows_nothing_is_expected() -> None:
    rows = StageRows("one", ("data",), steps=[[(None, (b"x",)), (None, (b"x",))]] * 5, nowhere=10)
    found = usage_of(rows, {"data": [0, 1]})
    assert (found.expected, found.overused, found.distinct, found.constant) == (None, 0, 1, 1)
    assert 0 < CHANCE < 1e-3
