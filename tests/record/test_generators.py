"""The states of the process's random generators."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch

from auditspec.errors import RecordError
from auditspec.record.generators import drawing_from, generators, set_generators

CPU = torch.device("cpu")


def draw() -> tuple[float, float, float]:
    return float(torch.rand(())), float(np.random.normal()), random.gauss(0, 1)


def test_a_state_brings_every_generator_back() -> None:
    random.gauss(0, 1)  # it keeps a second number for later
    state = generators(CPU)
    numbers = [draw() for _ in range(3)]
    set_generators(state, CPU)
    assert [draw() for _ in range(3)] == numbers
    assert all(isinstance(tensor, torch.Tensor) for tensor in state.values())


def test_drawing_from_a_state_leaves_the_process_where_it_was() -> None:
    state = generators(CPU)
    first = draw()
    before = generators(CPU)
    with drawing_from(state, CPU):
        assert draw() == first
    assert all(torch.equal(t, before[kind]) for kind, t in generators(CPU).items())


@pytest.mark.parametrize("kind", ["cpu", "numpy", "python"])
def test_a_state_that_no_generator_takes_is_refused(kind: str) -> None:
    with pytest.raises(RecordError, match="cannot be used"):
        set_generators({kind: torch.zeros(3, dtype=torch.uint8)}, CPU)
