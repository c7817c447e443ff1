"""The passes of several ranks, made by one process, and their average as gloo sums it."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from auditspec.engine.data_parallel import SEGMENT, averaged, by_rank
from auditspec.record.trajectory import Microbatch


def passes(*ranks: int) -> list[Microbatch]:
    return [Microbatch("data", (i,), 1.0, {}, rank=rank) for i, rank in enumerate(ranks)]


def ring(flat: np.ndarray) -> np.ndarray:
    """[ranks, numbers] -> [numbers], number by number: the rank below the owner's begins, the owner ends."""
    n, numbers = flat.shape
    pieces = -(-numbers * flat.itemsize // SEGMENT)
    segments = n * max(2, -(-pieces // n))
    length = -(-numbers // segments)
    sums = np.empty(numbers, flat.dtype)
    for place in range(numbers):
        owner = place // length // (segments // n)
        total = flat[(owner + n - 1) % n, place]
        for back in range(2, n + 1):
            total = total + flat[(owner - back) % n, place]
        sums[place] = total
    return sums


@pytest.mark.parametrize("ranks", [3, 4, 5])
@pytest.mark.parametrize("rows", [1, 7, 60])
def test_a_bucket_is_summed_as_the_ring_sums_it(ranks: int, rows: int) -> None:
    generator = torch.Generator().manual_seed(rows)
    parameters = {"w": torch.zeros(rows, 5), "b": torch.zeros(3), "idle": torch.zeros(2)}
    gradients: list[dict[str, Tensor | None]] = [
        {n: torch.randn(p.shape, generator=generator) for n, p in parameters.items() if n != "idle"}
        for _ in range(ranks)
    ]
    gradients[1]["b"] = None  # no loss of this rank reached it
    found = averaged(gradients, ranks, parameters, [("b", "idle", "w")])

    def laid(own: dict[str, Tensor | None]) -> Tensor:
        held = [own.get(n) for n in ("b", "idle", "w")]
        full = [
            torch.zeros_like(parameters[n]) if g is None else g
            for n, g in zip(("b", "idle", "w"), held, strict=True)
        ]
        return torch.cat([g.flatten() for g in full]) * (1 / ranks)

    wanted = torch.from_numpy(ring(np.stack([laid(own).numpy() for own in gradients])))
    assert found["idle"] is None
    assert found["b"] is not None
    assert found["w"] is not None
    assert torch.equal(found["b"], wanted[:3])
    assert torch.equal(found["w"].flatten(), wanted[5:])
    in_turn = averaged(gradients, ranks, parameters, [])
    assert in_turn["w"] is not None
    assert torch.allclose(in_turn["w"], found["w"], atol=1e-6)
    assert rows < 60 or not torch.equal(in_turn["w"], found["w"])


def test_a_bucket_of_what_the_model_does_not_have_is_left_to_the_order_of_ranks() -> None:
    parameters = {"w": torch.zeros(2), "narrow": torch.zeros(2, dtype=torch.bfloat16)}
    gradients: list[dict[str, Tensor | None]] = [
        {n: torch.ones_like(p) for n, p in parameters.items()} for _ in range(4)
    ]
    for buckets in ([("gone",)], [("w", "narrow")], [()]):
        found = averaged(gradients, 4, parameters, buckets)
        assert all(torch.equal(found[n], torch.ones_like(p)) for n, p in parameters.items())  # type: ignore[arg-type]


def test_every_rank_begins_with_the_same_buffers_and_the_first_leaves_its_own() -> None:
    buffers = {"mean": torch.tensor([1.0])}
    seen = []
    for own in by_rank(passes(0, 1, 0, 1, 2), buffers):
        for made in own:
            seen.append((made.rank, float(buffers["mean"])))
            buffers["mean"] += 10 ** (made.rank + 1)
    assert seen == [(0, 1.0), (0, 11.0), (1, 1.0), (1, 101.0), (2, 1.0)]
    assert float(buffers["mean"]) == 21.0


def test_the_passes_of_one_process_advance_the_buffers_one_after_another() -> None:
    buffers = {"mean": torch.tensor([0.0])}
    for own in by_rank(passes(0, 0, 0), buffers):
        for _ in own:
            buffers["mean"] += 1
    assert float(buffers["mean"]) == 3.0


def test_a_gradient_over_ranks_can_be_differentiated_once_more() -> None:
    """BatchNorm's statistics are put back between the ranks, and no graph minds."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Tanh(), nn.Linear(4, 1)).double()
    x = torch.randn(2, 6, 3, dtype=torch.float64)
    first = model[0].weight

    def gradient(*, create_graph: bool) -> Tensor:
        total = torch.zeros_like(first)
        for own in by_rank(passes(0, 1), dict(model.named_buffers())):
            for made in own:
                loss = model(x[made.rank]).square().mean()
                (g,) = torch.autograd.grad(loss, [first], create_graph=create_graph)
                total = total + g
        return total

    w = torch.randn_like(first)
    (product,) = torch.autograd.grad((gradient(create_graph=True) * w).sum(), [first])
    ends = []
    for eps in (1e-5, -1e-5):
        with torch.no_grad():
            first.add_(w, alpha=eps)
        ends.append(gradient(create_graph=False))
        with torch.no_grad():
            first.sub_(w, alpha=eps)
    assert torch.allclose(product, (ends[0] - ends[1]) / 2e-5, rtol=1e-6, atol=1e-8)
