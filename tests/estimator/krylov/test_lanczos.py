"""The Krylov basis: orthonormal, nested, ended by deflation, closed under parts."""

from __future__ import annotations

import torch
from torch import Tensor

from auditspec.estimator.krylov.lanczos import lanczos


def symmetric(n: int, seed: int = 0) -> Tensor:
    a = torch.randn(n, n, generator=torch.Generator().manual_seed(seed)).double()
    return (a + a.T) / 2


def start(c: int, n: int) -> Tensor:
    return torch.randn(c, n, generator=torch.Generator().manual_seed(1)).double()


def test_the_basis_is_orthonormal_and_projects_the_operator() -> None:
    a, v = symmetric(40), start(3, 40)
    space = lanczos(a.mv, v, 20)
    assert len(space) == 20
    assert torch.allclose(space.basis @ space.basis.T, torch.eye(20).double(), atol=1e-12)
    assert torch.allclose(space.projected, space.basis @ a @ space.basis.T, atol=1e-12)
    assert torch.allclose(space.combine(space.coordinates(v)), v, atol=1e-12)
    assert torch.allclose(space.image(space.coordinates(v)), v @ a, atol=1e-12)


def test_it_stays_orthogonal_where_plain_lanczos_does_not() -> None:
    """Eigenvalues over twelve orders of magnitude make the three-term recurrence lose the basis."""
    a = torch.diag(torch.logspace(-8, 4, 60).double())
    space = lanczos(a.mv, start(1, 60), 30)
    assert torch.allclose(space.basis @ space.basis.T, torch.eye(30).double(), atol=1e-12)


def test_low_powers_of_the_operator_are_exact() -> None:
    a, v = symmetric(40), start(2, 40)
    space = lanczos(a.mv, v, 8)  # four blocks of two: polynomials up to the third power
    powered = torch.linalg.matrix_power(space.projected, 3) @ space.coordinates(v)
    assert torch.allclose(space.combine(powered), v @ a @ a @ a, rtol=1e-10)


def test_zero_and_dependent_vectors_are_left_out_and_an_invariant_space_ends_it() -> None:
    a = torch.diag(torch.tensor([1.0, 2.0, 3.0, 4.0]).double())
    v = torch.tensor([[1.0, 1, 0, 0], [0, 0, 0, 0], [2, 2, 0, 0]]).double()
    assert len(lanczos(a.mv, v, 10)) == 2
    assert len(lanczos(a.mv, torch.zeros(1, 4).double(), 10)) == 0


def test_parts_are_kept_apart() -> None:
    a, mask = symmetric(10), torch.arange(10).double() < 4
    parts = [mask.double(), (~mask).double()]
    space = lanczos(a.mv, start(1, 10), 10, parts)
    assert len(space) == 10
    gram = (space.basis * parts[0]) @ space.basis.T
    assert torch.allclose(gram @ gram, gram, atol=1e-12)
    assert torch.allclose(gram, torch.diag(gram.diagonal()), atol=1e-12)
