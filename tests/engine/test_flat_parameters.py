"""Parameters in one vector."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from auditspec.engine.flat_parameters import FlatParameters, Layout


def tensors() -> dict[str, Tensor]:
    return {
        "a": torch.arange(6.0).view(2, 3),
        "b": torch.tensor(7.0),
        "c": torch.tensor([8.0, 9.0]),
    }


def test_a_vector_holds_the_parameters_in_order() -> None:
    layout = Layout(tensors())
    vector = layout.vector(tensors())
    assert torch.equal(vector, torch.tensor([0.0, 1, 2, 3, 4, 5, 7, 8, 9]))
    for view, wanted in zip(layout.views(vector), tensors().values(), strict=True):
        assert torch.equal(view, wanted)
    gaps = layout.vector({"b": None, "c": torch.ones(2, dtype=torch.float64)})
    assert torch.equal(gaps, torch.tensor([0.0] * 7 + [1.0] * 2))


def test_rows_split_into_what_they_were_made_of() -> None:
    layout = Layout(tensors())
    rows = {n: torch.stack([t, 2 * t]) for n, t in tensors().items() if n != "b"}
    split = layout.split(layout.rows(rows, 2))
    assert torch.equal(split.pop("b"), torch.zeros(2))
    for name, part in split.items():
        assert torch.equal(part, rows[name])


def test_a_model_computes_with_the_memory_and_gets_its_own_back() -> None:
    model = nn.Linear(2, 1)
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    where = [p.data_ptr() for p in model.parameters()]
    with FlatParameters(dict(model.named_parameters())) as memory:
        assert torch.equal(memory.theta[:2], before["weight"][0])
        memory.theta.copy_(torch.tensor([1.0, 2.0, 3.0]))
        assert model(torch.ones(2)).item() == 6
    assert [p.data_ptr() for p in model.parameters()] == where
    for name, p in model.named_parameters():
        assert torch.equal(p, before[name])
