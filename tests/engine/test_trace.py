"""A tape against the computation that it was written from, on other inputs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from auditspec.engine.trace import NotTapedError, Tape


def gradient(w: Tensor, x: Tensor) -> list[Tensor | None]:
    with torch.enable_grad():
        leaf = w.detach().requires_grad_()
        loss = F.dropout(torch.tanh(x @ leaf), 0.5).square().mean()
        return [torch.autograd.grad(loss, leaf)[0], None, loss.detach()]


def test_a_tape_gives_what_the_computation_gives_on_other_inputs() -> None:
    inputs = [[torch.randn(4, 3), torch.randn(5, 4)] for _ in range(3)]
    _, tape = Tape.record(gradient, inputs[0])
    for seed, (w, x) in enumerate(inputs):
        torch.manual_seed(seed)
        wanted, after = gradient(w, x), torch.rand(1)
        torch.manual_seed(seed)
        found = tape([w, x])
        assert found[1] is None
        assert torch.equal(found[0], wanted[0])
        assert torch.equal(found[2], wanted[2])
        assert torch.equal(torch.rand(1), after)  # it drew as many random numbers
    assert tape.operations > 5
    assert tape.elements > 5 * 3


def test_what_is_changed_in_place_is_changed_again() -> None:
    def count(buffer: Tensor, x: Tensor) -> list[Tensor | None]:
        buffer.mul_(0.5).add_(x)
        return [buffer * 2]

    buffer = torch.ones(2)
    _, tape = Tape.record(count, [buffer, torch.ones(2)])
    other = torch.zeros(2)
    assert torch.equal(*[tape([other, torch.full((2,), 3.0)])[0], torch.full((2,), 6.0)])
    assert torch.equal(other, torch.full((2,), 3.0))


def test_repeated_operations_are_made_once() -> None:
    made: list[str] = []

    class Counting(TorchDispatchMode):
        def __torch_dispatch__(
            self, func: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            made.append(str(func))
            return func(*args, **(kwargs or {}))

    def compute(x: Tensor) -> list[Tensor | None]:
        mask, again = x.gt(0), x.gt(0)
        x.cos()  # nobody uses it
        back = (x * 1).T.exp().T.T.T + torch.scalar_tensor(2.0)
        return [mask & again, back, x * 1, x * 1, torch.rand(2), torch.rand(2)]

    _, tape = Tape.record(compute, [torch.randn(2, 3)])
    x = torch.randn(2, 3)
    torch.manual_seed(0)
    wanted = compute(x)
    torch.manual_seed(0)
    with Counting():
        found = tape([x])
    assert all(torch.equal(a, b) for a, b in zip(found, wanted, strict=True))
    assert made.count("aten.gt.Scalar") == 1
    assert made.count("aten.cos.default") == 0
    assert made.count("aten.scalar_tensor.default") == 0
    assert made.count("aten.rand.default") == 2
    found[2].fill_(0.0)  # an output is a tensor of its own
    assert torch.equal(found[3], x)
    assert torch.equal(x, wanted[2])
    assert tape.operations > len(made)


def test_constants_are_held_by_reference() -> None:
    scale = torch.ones(1)
    _, tape = Tape.record(lambda x: [x * scale], [torch.ones(2)])
    scale.fill_(5.0)
    assert torch.equal(tape([torch.ones(2)])[0], torch.full((2,), 5.0))


@pytest.mark.parametrize(
    "taken",
    [
        lambda x: x.sum().item(),
        lambda x: float(x.sum()),
        lambda x: bool(x.sum() > 0),
        lambda x: x.tolist(),
        lambda x: x.numpy(),
        lambda x: x.nonzero(),
        lambda x: x[x > 0],
        lambda x: torch.equal(x, x),
        lambda x: x.unique(),
    ],
)
def test_what_depends_on_values_is_refused(taken: Callable[[Tensor], object]) -> None:
    def compute(x: Tensor) -> list[Tensor | None]:
        taken(x)
        return [x * 2]

    with pytest.raises(NotTapedError):
        Tape.record(compute, [torch.randn(4)])
