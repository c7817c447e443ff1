"""Training states: copied, put into models and optimizers, compared."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from training import build_mlp, build_normed, build_sparse, cross_entropy

from auditspec.record.state import State, capture, deviation, put_back, restore, snapshot

BATCH = (
    torch.linspace(-1, 1, 24, dtype=torch.float64).view(6, 4),
    torch.arange(6) % 5,
    torch.arange(6) % 3,
)
OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "plain SGD": lambda p: torch.optim.SGD(p, lr=0.1),
    "momentum": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9),
    "AdamW": lambda p: torch.optim.AdamW(p, lr=0.01),
    "Adagrad, which begins with state": lambda p: torch.optim.Adagrad(p, lr=0.1),
    "NAdam": lambda p: torch.optim.NAdam(p, lr=0.01),
    "Adafactor": lambda p: torch.optim.Adafactor(p, lr=0.01),
}
optimizers = pytest.mark.parametrize("kind", OPTIMIZERS.values(), ids=OPTIMIZERS)


def steps(model: Any, optimizer: torch.optim.Optimizer, count: int) -> None:
    for _ in range(count):
        optimizer.zero_grad()
        cross_entropy(model, BATCH).backward()
        optimizer.step()


def same(left: State, right: State) -> bool:
    def equal(x: Any, y: Any) -> bool:
        return torch.equal(x, y) if isinstance(x, Tensor) else bool(x == y)

    return (
        all(equal(t, right.parameters[n]) for n, t in left.parameters.items())
        and all(equal(t, right.buffers[n]) for n, t in left.buffers.items())
        and left.optimizer_state.keys() == right.optimizer_state.keys()
        and all(
            equal(value, right.optimizer_state[name][slot])
            for name, slots in left.optimizer_state.items()
            for slot, value in slots.items()
        )
    )


@optimizers
@pytest.mark.parametrize("before", [0, 3])
def test_a_snapshot_brings_back_and_stays_usable(kind: Any, before: int) -> None:
    """Also one of a fresh optimizer, whose state must be gone again."""
    torch.manual_seed(0)
    model = build_normed()
    optimizer = kind(model.parameters())
    steps(model, optimizer, before)
    kept, wanted, ends = snapshot(model, optimizer), capture(model, optimizer), []
    for _ in range(2):
        steps(model, optimizer, 2)
        ends.append(capture(model, optimizer))
        assert deviation(ends[-1], wanted) > 0
        put_back(kept, model, optimizer)
        assert same(capture(model, optimizer), wanted)
    assert same(*ends)


@optimizers
def test_a_state_goes_into_a_fresh_model_and_optimizer(kind: Any) -> None:
    torch.manual_seed(0)
    model, other = build_mlp(), build_mlp()
    optimizer, fresh = kind(model.parameters()), kind(other.parameters())
    steps(model, optimizer, 2)
    restore(capture(model, optimizer), other, fresh)
    steps(model, optimizer, 2)
    steps(other, fresh, 2)
    assert same(capture(other, fresh), capture(model, optimizer))


def test_a_state_without_moments_leaves_a_fresh_optimizer_as_its_class_begins() -> None:
    model = build_mlp()
    optimizer = torch.optim.Adagrad(model.parameters(), lr=0.1, initial_accumulator_value=0.5)
    restore(capture(model, None), model, optimizer)
    sums = [s["sum"] for s in optimizer.state.values()]
    assert len(sums) == 4
    assert all(bool((s == 0.5).all()) for s in sums)


def test_moments_of_sparse_gradients_are_brought_back() -> None:
    model = build_sparse()
    optimizer = torch.optim.SparseAdam(model.parameters(), lr=0.1)
    steps(model, optimizer, 2)
    kept, wanted = snapshot(model, optimizer), capture(model, optimizer)
    steps(model, optimizer, 2)
    put_back(kept, model, optimizer)
    assert same(capture(model, optimizer), wanted)


def test_another_models_state_is_refused() -> None:
    with pytest.raises(KeyError, match=r"norm\.weight"):
        restore(capture(build_normed(), None), build_mlp())


def test_deviation_is_relative_and_knows_infinity() -> None:
    one = State({"w": torch.tensor([3.0, 4.0])}, {"b": torch.tensor([1])})
    two = State({"w": torch.tensor([3.0, 4.5])}, {"b": torch.tensor([2])})
    assert deviation(two, one) == pytest.approx(0.1)
    bad = State({"w": torch.tensor([float("nan"), 0.0])}, {})
    assert deviation(bad, one) == float("inf")
    assert deviation(one, one) == 0
